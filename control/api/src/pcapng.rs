//! Packets as a pcapng file (draft-ietf-opsawg-pcapng): a section, an interface, the packets.
//!
//! A comment on each packet says which way it went, and why it was dropped if it was.

use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use byteorder::LittleEndian;
use etherparse::PacketBuilder;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{Block, PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness};

use overlay::capture::Captured;
use overlay::peer_state::Direction;

/// Makes the blocks of one file.
pub struct Writer {
    file: PcapNgWriter<Vec<u8>>,
    last: Option<SystemTime>,
}

impl Writer {
    /// One whose first [`blocks`](Self::blocks) are those that a file begins with: the section, and the interface by its
    /// name. (libpcap 1.10 reads no second interface of this type.)
    #[must_use]
    pub fn new(interface: &str) -> Self {
        let application = concat!("overlayd ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(application.into())],
            ..SectionHeaderBlock::default()
        };
        let file = PcapNgWriter::with_section_header(Vec::new(), section).expect(IN_MEMORY);
        let mut writer = Self { file, last: None };
        writer.write(InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            // No limit that would hold for all packets.
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(interface.into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        });
        writer
    }

    /// What has been written since this was asked last: whole blocks.
    pub fn blocks(&mut self) -> Vec<u8> {
        mem::take(self.file.get_mut())
    }

    /// Writes the block of one packet.
    pub fn packet(&mut self, packet: &Captured) {
        let Captured { when, direction, reason, outer, bytes, len } = packet;
        self.last = Some(*when);
        let mut data = outer.map_or_else(Vec::new, |(from, to)| outer_header(from, to, *len));
        let original = data.len() + len;
        data.extend(bytes);
        let (way, flags) = match direction {
            Direction::Egress => ("egress", OUTBOUND),
            Direction::Ingress => ("ingress", INBOUND),
        };
        let layer = if outer.is_some() { "outer" } else { "inner" };
        let comment = match reason {
            Some(reason) => format!("{way}, {layer}, dropped: {}", reason.label()),
            None => format!("{way}, {layer}"),
        };
        self.write(EnhancedPacketBlock {
            interface_id: INTERFACE_NUMBER,
            timestamp: since_epoch(*when),
            original_len: u32::try_from(original).unwrap_or(u32::MAX),
            data: data.into(),
            options: vec![EnhancedPacketOption::Comment(comment.into()), EnhancedPacketOption::Flags(flags)],
        });
    }

    /// Writes the block that ends a file: how many packets it has, and how many it lacks.
    #[expect(clippy::disallowed_methods, reason = "captured packets have dates")]
    pub fn end(&mut self, count: u64, missed: u64) {
        let last = since_epoch(self.last.unwrap_or_else(SystemTime::now)).as_nanos() as u64;
        self.write(InterfaceStatisticsBlock {
            interface_id: INTERFACE_NUMBER,
            // The format has the upper half first; the crate writes the number as one.
            timestamp: last.rotate_left(32),
            options: vec![
                InterfaceStatisticsOption::IsbIfRecv(count + missed),
                InterfaceStatisticsOption::IsbIfDrop(missed),
            ],
        });
    }

    fn write<'a>(&mut self, block: impl PcapNgBlock<'a>) {
        self.file.write_pcapng_block(block).expect(IN_MEMORY);
    }
}

/// How many packets a file lacks, as its last block says; `None` if that is cut off or of another kind.
#[must_use]
pub fn missed(file: &[u8]) -> Option<u64> {
    let len = usize::try_from(u32::from_le_bytes(*file.last_chunk()?)).ok()?;
    let last = file.get(file.len().checked_sub(len)?..)?;
    let (_, Block::InterfaceStatistics(statistics)) = Block::from_slice::<LittleEndian>(last).ok()? else {
        return None;
    };
    statistics.options.iter().find_map(|option| match option {
        InterfaceStatisticsOption::IsbIfDrop(missed) => Some(*missed),
        _ => None,
    })
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

fn since_epoch(when: SystemTime) -> Duration {
    when.duration_since(UNIX_EPOCH).unwrap_or_default()
}

const IN_MEMORY: &str = "a file in memory takes every block of its one interface";
const INTERFACE_NUMBER: u32 = 0;
/// Of the timestamps, as a power of ten.
const NANOSECONDS: u8 = 9;
/// The direction in a packet's flags.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// Over IPv4, which takes less than IPv6.
const MAX_PAYLOAD: usize = 65_535 - 20 - 8;

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_wire::drops::DropReason;

    #[test]
    fn blocks_are_whole_words_that_name_their_length_at_both_ends() {
        let mut writer = Writer::new("flannel.1");
        let packet = |outer, bytes: &[u8]| Captured {
            when: UNIX_EPOCH + Duration::from_nanos((1 << 32) + 7),
            direction: Direction::Ingress,
            reason: Some(DropReason::WrongVni),
            outer,
            bytes: bytes.to_vec(),
            len: 100,
        };
        let ends = ("192.168.1.12:40000".parse().unwrap(), "192.168.199.238:8472".parse().unwrap());
        let mut file = writer.blocks();
        writer.packet(&packet(Some(ends), &[8; 7]));
        let outer = writer.blocks();
        writer.packet(&packet(None, &[0x45; 21]));
        writer.end(2, 3);
        file.extend(&outer);
        file.extend(writer.blocks());
        let (mut rest, mut kinds) = (&file[..], Vec::new());
        while let Some((kind, after)) = rest.split_first_chunk() {
            let len = u32::from_le_bytes(*after.first_chunk().unwrap()) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(rest[len - 4..len], after[..4], "at both ends");
            kinds.push(u32::from_le_bytes(*kind));
            rest = &rest[len..];
        }
        // Section, interface, packet, packet, statistics.
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 5]);
        let statistics = &file[file.len() - 52..];
        assert_eq!(statistics[12..20], [1, 0, 0, 0, 7, 0, 0, 0], "the time of the last packet");
        assert_eq!(missed(&file), Some(3));
        assert_eq!(missed(&file[..file.len() - 4]), None);

        let ip = &outer[28..];
        assert_eq!(u16::from_be_bytes([ip[2], ip[3]]), 128, "the length of the whole packet");
        assert_eq!(ip[20..28], [0x9c, 0x40, 0x21, 0x18, 0, 108, 0, 0]);
        assert!(outer.windows(34).any(|text| text == b"ingress, outer, dropped: wrong_vni"));

        let ends = ("[2001:db8::12]:40000".parse().unwrap(), "[2001:db8::238]:8472".parse().unwrap());
        writer.packet(&packet(Some(ends), &[8; 7]));
        let ip = &writer.blocks()[28..];
        assert_eq!(
            (ip[0] >> 4, u16::from_be_bytes([ip[4], ip[5]])),
            (6, 108),
            "the length without its header"
        );
        assert_eq!(ip[40..48], [0x9c, 0x40, 0x21, 0x18, 0, 108, 0, 0]);
    }
}
