//! IPv4 headers (RFC 791).

use crate::checksum;
use crate::drops::DropReason;
use crate::header::{Fragment, Header, Version};

const MIN_HEADER_LEN: usize = 20;

/// Checks lengths and header checksum of the packet that `bytes` begin with, and returns its
/// header and its total length.
///
/// # Errors
/// [`DropReason::Truncated`] if there are fewer bytes than the header says,
/// [`DropReason::Malformed`] for a header that contradicts itself.
#[inline]
pub(crate) fn parse(bytes: &[u8]) -> Result<(Header, usize), DropReason> {
    let Some(fixed) = bytes.first_chunk::<MIN_HEADER_LEN>() else { return Err(DropReason::Truncated) };
    let len = usize::from(fixed[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if len < MIN_HEADER_LEN || total_len < len {
        return Err(DropReason::Malformed);
    }
    if bytes.len() < total_len {
        return Err(DropReason::Truncated);
    }
    if checksum::sum(&bytes[..len]) != 0xffff {
        return Err(DropReason::Malformed);
    }
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let header = Header {
        version: Version::V4,
        len,
        protocol: fixed[9],
        fragment: Fragment::new(field & 0x1fff, field & 0x2000 != 0),
        routed: false,
    };
    Ok((header, total_len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::Packet;
    use crate::samples::udp_packet;

    #[test]
    fn contradictions_are_refused() {
        let good = udp_packet("10.1.9.3", "10.1.63.2", 64, &[1; 30]);
        let broken = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Packet::parse(&mut bytes).unwrap_err()
        };
        assert_eq!(broken(0, 0x44), DropReason::Malformed);
        assert_eq!(broken(3, 19), DropReason::Malformed);
        assert_eq!(broken(10, good[10] ^ 1), DropReason::Malformed);
    }

    #[test]
    fn fragments_are_seen() {
        let seen = |field: [u8; 2]| {
            let mut bytes = udp_packet("10.1.9.3", "10.1.63.2", 64, &[1; 16]);
            bytes[6..8].copy_from_slice(&field);
            bytes[10..12].fill(0);
            let sum = !checksum::sum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            let packet = Packet::parse(&mut bytes).unwrap();
            (packet.dont_fragment(), packet.is_fragment(), packet.is_later_fragment())
        };
        assert_eq!(seen([0x40, 0]), (true, false, false));
        assert_eq!(seen([0x20, 0]), (false, true, false));
        assert_eq!(seen([0x20, 2]), (false, true, true));
        assert_eq!(seen([0, 2]), (false, true, true));
    }
}
