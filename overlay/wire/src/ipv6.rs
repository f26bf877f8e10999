//! IPv6 headers (RFC 8200).

use crate::drops::DropReason;
use crate::header::{Fragment, Header, Version};

/// Length of the header without extensions.
pub const HEADER_LEN: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers that are looked behind. Four kinds may stand in a packet, one of them twice
/// (RFC 8200, section 4.1), and nobody shall keep us busy with a thousand.
const MAX_EXTENSIONS: usize = 8;

/// Checks the lengths of the packet that `bytes` begin with, and returns its header and its total
/// length. What stands behind extension headers that are not known, not whole or too many is taken
/// for their payload: a router forwards it.
///
/// # Errors
/// [`DropReason::Truncated`] if there are fewer bytes than the header says.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Header, usize), DropReason> {
    let Some(fixed) = bytes.first_chunk::<HEADER_LEN>() else { return Err(DropReason::Truncated) };
    let total_len = HEADER_LEN + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let Some(bytes) = bytes.get(..total_len) else { return Err(DropReason::Truncated) };
    let mut header = Header {
        version: Version::V6,
        len: HEADER_LEN,
        protocol: fixed[6],
        fragment: Fragment::Whole,
        routed: false,
    };
    for _ in 0..MAX_EXTENSIONS {
        let rest = &bytes[header.len..];
        if !step(&mut header, rest) || header.fragment == Fragment::Later {
            break;
        }
    }
    Ok((header, total_len))
}

/// Takes the extension header that `rest` begins with into `header`, if it is one.
fn step(header: &mut Header, rest: &[u8]) -> bool {
    if !matches!(header.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
        return false;
    }
    let Some([next, len, a, b, ..]) = rest.first_chunk::<8>() else { return false };
    let len = if header.protocol == FRAGMENT { 8 } else { 8 + usize::from(*len) * 8 };
    if rest.len() < len {
        return false;
    }
    match header.protocol {
        FRAGMENT => {
            let field = u16::from_be_bytes([*a, *b]);
            header.fragment = Fragment::new(field >> 3, field & 1 != 0);
        }
        // Segments left.
        ROUTING => header.routed |= *b > 0,
        _ => {}
    }
    header.protocol = *next;
    header.len += len;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::{Packet, protocol};
    use crate::samples::with_extensions;

    #[test]
    fn the_transport_is_found_behind_extension_headers() {
        let extensions: [(u8, &[u8]); 4] = [
            (HOP_BY_HOP, &[0, 1, 4, 0, 0, 0, 0]),
            (DESTINATION_OPTIONS, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (ROUTING, &[0, 4, 0, 0, 0, 0, 0]),
            (FRAGMENT, &[0, 0, 0, 0, 0, 0, 7]),
        ];
        let mut bytes = with_extensions(&extensions, b"hello");
        let packet = Packet::parse(&mut bytes).unwrap();
        assert_eq!((packet.protocol(), packet.header_len()), (protocol::UDP, HEADER_LEN + 8 + 16 + 8 + 8));
        assert_eq!(&packet.payload()[8..], b"hello");
        assert!(packet.has_extensions() && !packet.is_routed());
        assert!(!packet.is_fragment(), "alone in its fragment header (RFC 6946)");
    }

    #[test]
    fn fragments_and_segments_left_are_seen() {
        let seen = |extensions: &[(u8, &[u8])]| {
            let mut bytes = with_extensions(extensions, b"hello");
            let packet = Packet::parse(&mut bytes).unwrap();
            (packet.is_fragment(), packet.is_later_fragment(), packet.is_routed())
        };
        assert_eq!(seen(&[(FRAGMENT, &[0, 0, 1, 0, 0, 0, 7])]), (true, false, false));
        assert_eq!(seen(&[(FRAGMENT, &[0, 0, 8, 0, 0, 0, 7])]), (true, true, false));
        assert_eq!(seen(&[(ROUTING, &[0, 4, 2, 0, 0, 0, 0])]), (false, false, true));
    }

    #[test]
    fn nothing_is_read_behind_a_later_fragments_header() {
        // What looks like another extension header is the middle of a payload.
        let mut bytes = with_extensions(&[(FRAGMENT, &[0, 0, 8, 0, 0, 0, 7])], &[0xff; 8]);
        bytes[HEADER_LEN] = DESTINATION_OPTIONS;
        let packet = Packet::parse(&mut bytes).unwrap();
        assert_eq!((packet.protocol(), packet.header_len()), (DESTINATION_OPTIONS, HEADER_LEN + 8));
    }

    #[test]
    fn a_chain_that_does_not_end_is_payload() {
        let unfinished = |body: &[u8]| {
            let mut bytes = with_extensions(&[(HOP_BY_HOP, body)], b"");
            Packet::parse(&mut bytes).map(|packet| (packet.protocol(), packet.header_len())).unwrap()
        };
        assert_eq!(unfinished(&[9, 0, 0, 0, 0, 0, 0]), (HOP_BY_HOP, HEADER_LEN), "longer than the packet");
        let many = [(DESTINATION_OPTIONS, &[0u8; 7][..]); 20];
        let mut bytes = with_extensions(&many, b"hello");
        let packet = Packet::parse(&mut bytes).unwrap();
        assert_eq!(packet.protocol(), DESTINATION_OPTIONS);
        assert_eq!(packet.header_len(), HEADER_LEN + 8 * MAX_EXTENSIONS);
    }
}
