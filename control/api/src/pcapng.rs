//! Packets as a pcapng file (draft-ietf-opsawg-pcapng): a section, an interface, the packets.
//!
//! A comment on each packet says which way it went, and why it was dropped if it was.

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use etherparse::PacketBuilder;

use overlay::capture::Captured;
use overlay::peer_state::Direction;

/// Makes the blocks of one file.
#[derive(Debug, Default)]
pub struct Writer {
    last: Option<SystemTime>,
}

impl Writer {
    /// The blocks that a file begins with: the section, and the interface by its name. (libpcap 1.10 reads no second
    /// interface of this type.)
    #[must_use]
    pub fn head(&self, interface: &str) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_le_bytes());
        // Version 1.0, and no word about the section's length.
        body.extend([1, 0, 0, 0]);
        body.extend(u64::MAX.to_le_bytes());
        let application = concat!("overlayd ", env!("CARGO_PKG_VERSION"));
        option(&mut body, SHB_USERAPPL, application.as_bytes());
        end_of_options(&mut body);
        let mut out = block(SECTION, &body);
        body.clear();
        body.extend(LINKTYPE_RAW.to_le_bytes());
        body.extend([0; 2]);
        // No limit that would hold for all packets.
        body.extend(0_u32.to_le_bytes());
        option(&mut body, IF_NAME, interface.as_bytes());
        option(&mut body, IF_TSRESOL, &[NANOSECONDS]);
        end_of_options(&mut body);
        out.extend(block(INTERFACE, &body));
        out
    }

    /// The block of one packet.
    #[must_use]
    pub fn packet(&mut self, packet: &Captured) -> Vec<u8> {
        let Captured { when, direction, reason, outer, bytes, len } = packet;
        self.last = Some(*when);
        let header = outer.map_or_else(Vec::new, |(from, to)| outer_header(from, to, *len));
        let (captured, original) = (header.len() + bytes.len(), header.len() + len);
        let mut body = Vec::with_capacity(captured + 96);
        body.extend(INTERFACE_NUMBER.to_le_bytes());
        body.extend(timestamp(*when));
        body.extend(u32::try_from(captured).unwrap_or(u32::MAX).to_le_bytes());
        body.extend(u32::try_from(original).unwrap_or(u32::MAX).to_le_bytes());
        body.extend(header);
        body.extend(bytes);
        pad(&mut body);
        let (way, flags) = match direction {
            Direction::Egress => ("egress", OUTBOUND),
            Direction::Ingress => ("ingress", INBOUND),
        };
        let layer = if outer.is_some() { "outer" } else { "inner" };
        let comment = match reason {
            Some(reason) => format!("{way}, {layer}, dropped: {}", reason.label()),
            None => format!("{way}, {layer}"),
        };
        option(&mut body, COMMENT, comment.as_bytes());
        option(&mut body, EPB_FLAGS, &flags.to_le_bytes());
        end_of_options(&mut body);
        block(PACKET, &body)
    }

    /// The block that ends a file: how many packets it has, and how many it lacks.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "captured packets have dates")]
    pub fn tail(&self, count: u64, missed: u64) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(INTERFACE_NUMBER.to_le_bytes());
        body.extend(timestamp(self.last.unwrap_or_else(SystemTime::now)));
        option(&mut body, ISB_IFRECV, &(count + missed).to_le_bytes());
        option(&mut body, ISB_IFDROP, &missed.to_le_bytes());
        end_of_options(&mut body);
        block(STATISTICS, &body)
    }
}

/// How many packets a file lacks, as its last block says; `None` if that is cut off or of another kind.
#[must_use]
pub fn missed(file: &[u8]) -> Option<u64> {
    let len = usize::try_from(u32::from_le_bytes(*file.last_chunk()?)).ok()?;
    let block = file.get(file.len().checked_sub(len)?..)?;
    let is_statistics = u32::from_le_bytes(*block.first_chunk()?) == STATISTICS;
    // Type and length, then interface and time, then each option's code and length before its value.
    let value = block.get(8 + 12 + 4 + 8 + 4..)?.first_chunk()?;
    is_statistics.then(|| u64::from_le_bytes(*value))
}

/// The IP and UDP header that the kernel puts in front of `len` bytes of payload, as far as is known of it.
fn outer_header(from: SocketAddr, to: SocketAddr, len: usize) -> Vec<u8> {
    let mut header = Vec::new();
    let (ip, headers_len) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (PacketBuilder::ipv4(from.octets(), to.octets(), 64), 20 + 8),
        (IpAddr::V6(from), IpAddr::V6(to)) => (PacketBuilder::ipv6(from.octets(), to.octets(), 64), 40 + 8),
        _ => return header,
    };
    let builder = ip.udp(from.port(), to.port());
    // A payload of that length gives the lengths; its checksum is not known, and 0 says so.
    let payload = vec![0; len.min(MAX_PAYLOAD)];
    if builder.write(&mut header, &payload).is_ok() {
        header.truncate(headers_len);
        header[headers_len - 2..].fill(0);
    }
    header
}

fn timestamp(when: SystemTime) -> [u8; 8] {
    let nanos = when.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let [high, low] = [(nanos >> 32) as u32, nanos as u32].map(u32::to_le_bytes);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&high);
    bytes[4..].copy_from_slice(&low);
    bytes
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
    [&kind.to_le_bytes(), &len, body, &len].concat()
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

const INTERFACE_NUMBER: u32 = 0;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// IPv4 or IPv6, as its first half-byte says.
const LINKTYPE_RAW: u16 = 101;
const COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const NANOSECONDS: u8 = 9;
const EPB_FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
/// Over IPv4, which takes less than IPv6.
const MAX_PAYLOAD: usize = 65_535 - 20 - 8;

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_wire::drops::DropReason;

    #[test]
    fn blocks_are_whole_words_that_name_their_length_at_both_ends() {
        let mut writer = Writer::default();
        let packet = |outer, bytes: &[u8]| Captured {
            when: UNIX_EPOCH,
            direction: Direction::Ingress,
            reason: Some(DropReason::WrongVni),
            outer,
            bytes: bytes.to_vec(),
            len: 100,
        };
        let ends = ("192.168.1.12:40000".parse().unwrap(), "192.168.199.238:8472".parse().unwrap());
        let outer = writer.packet(&packet(Some(ends), &[8; 7]));
        let mut file = writer.head("flannel.1");
        file.extend(&outer);
        file.extend(writer.packet(&packet(None, &[0x45; 21])));
        file.extend(writer.tail(2, 3));
        let (mut rest, mut kinds) = (&file[..], Vec::new());
        while let Some((kind, after)) = rest.split_first_chunk() {
            let len = u32::from_le_bytes(*after.first_chunk().unwrap()) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(rest[len - 4..len], after[..4], "at both ends");
            kinds.push(u32::from_le_bytes(*kind));
            rest = &rest[len..];
        }
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET, STATISTICS]);
        assert_eq!(missed(&file), Some(3));
        assert_eq!(missed(&file[..file.len() - 4]), None);

        let ip = &outer[28..];
        assert_eq!(u16::from_be_bytes([ip[2], ip[3]]), 128, "the length of the whole packet");
        assert_eq!(ip[20..28], [0x9c, 0x40, 0x21, 0x18, 0, 108, 0, 0]);
        assert!(outer.windows(34).any(|text| text == b"ingress, outer, dropped: wrong_vni"));

        let ends = ("[2001:db8::12]:40000".parse().unwrap(), "[2001:db8::238]:8472".parse().unwrap());
        let ip = &writer.packet(&packet(Some(ends), &[8; 7]))[28..];
        assert_eq!(
            (ip[0] >> 4, u16::from_be_bytes([ip[4], ip[5]])),
            (6, 108),
            "the length without its header"
        );
        assert_eq!(ip[40..48], [0x9c, 0x40, 0x21, 0x18, 0, 108, 0, 0]);
    }
}
