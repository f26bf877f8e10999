//! The virtio header that stands in front of every packet read from or written to the TUN
//! (`struct virtio_net_hdr_v1`, `linux/virtio_net.h`, in the machine's byte order).

use super::checksum;
use super::ipv4::{Packet, protocol};

/// Length of the header in bytes.
pub const LEN: usize = 12;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

/// What the kernel must know of a packet beyond its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHdr {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl VnetHdr {
    /// The header with which a packet that came through the tunnel is written to a TUN of MTU
    /// `mtu`.
    ///
    /// Plain for a finished packet. A kernel VXLAN peer behind nothing but virtual links hands
    /// over packets that its kernel meant to finish later: the TCP or UDP checksum field holds
    /// the bare pseudo-header sum, and a TCP segment can be larger than any MTU. Such a packet is
    /// marked, so that the kernel fills the checksum, and cuts the segment, where it leaves.
    #[must_use]
    pub fn for_arrival(packet: &Packet<'_>, mtu: usize) -> Self {
        let plain = Self::default();
        let payload = packet.payload();
        let (min_len, csum_offset) = match packet.protocol() {
            protocol::TCP => (20, 16),
            protocol::UDP => (8, 6),
            _ => return plain,
        };
        if packet.is_fragment() || payload.len() < min_len {
            return plain;
        }
        let field = u16::from_be_bytes([payload[csum_offset], payload[csum_offset + 1]]);
        let no_checksum = packet.protocol() == protocol::UDP && field == 0;
        let unfilled = checksum::pseudo_header(packet.src(), packet.dst(), packet.protocol(), payload.len());
        if no_checksum || field != unfilled {
            return plain;
        }

        let ip_len = packet.header_len();
        let unfinished =
            Self { flags: NEEDS_CSUM, csum_start: ip_len as u16, csum_offset: csum_offset as u16, ..plain };
        if packet.protocol() != protocol::TCP || packet.bytes().len() <= mtu {
            return unfinished;
        }
        let headers = ip_len + usize::from(payload[12] >> 4) * 4;
        if headers >= mtu || headers >= packet.bytes().len() {
            return unfinished;
        }
        Self {
            gso_type: GSO_TCPV4,
            hdr_len: headers as u16,
            gso_size: (mtu - headers).min(usize::from(u16::MAX)) as u16,
            ..unfinished
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use etherparse::PacketBuilder;

    use super::super::ipv4::tests::udp_packet;
    use super::*;

    const SRC: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 3);
    const DST: Ipv4Addr = Ipv4Addr::new(10, 1, 63, 2);

    fn tcp_packet(len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(SRC.octets(), DST.octets(), 64)
            .tcp(80, 4000, 1, 500)
            .ack(7)
            .write(&mut bytes, &vec![0x5a; len])
            .unwrap();
        bytes
    }

    /// Puts the bare pseudo-header sum where the checksum belongs, as an unfinished packet has it.
    fn unfill(bytes: &mut [u8], protocol: u8, offset: usize) {
        let sum = checksum::pseudo_header(SRC, DST, protocol, bytes.len() - 20);
        bytes[20 + offset..22 + offset].copy_from_slice(&sum.to_be_bytes());
    }

    fn header_for(bytes: &mut [u8]) -> VnetHdr {
        VnetHdr::for_arrival(&Packet::parse(bytes).unwrap(), 1450)
    }

    #[test]
    fn a_finished_packet_is_left_alone() {
        assert_eq!(header_for(&mut tcp_packet(100)), VnetHdr::default());
        assert_eq!(header_for(&mut tcp_packet(4000)), VnetHdr::default());
        assert_eq!(header_for(&mut udp_packet("10.1.9.3", "10.1.63.2", 9, b"abc")), VnetHdr::default());
    }

    #[test]
    fn an_unfilled_checksum_is_to_be_filled() {
        let mut tcp = tcp_packet(0);
        unfill(&mut tcp, protocol::TCP, 16);
        let header = header_for(&mut tcp);
        assert_eq!(header, VnetHdr { flags: 1, csum_start: 20, csum_offset: 16, ..Default::default() });

        let mut udp = udp_packet("10.1.9.3", "10.1.63.2", 9, b"abc");
        unfill(&mut udp, protocol::UDP, 6);
        let header = header_for(&mut udp);
        assert_eq!(header, VnetHdr { flags: 1, csum_start: 20, csum_offset: 6, ..Default::default() });
    }

    #[test]
    fn a_large_unfinished_segment_is_to_be_cut_to_the_mtu() {
        let mut tcp = tcp_packet(60_000);
        unfill(&mut tcp, protocol::TCP, 16);
        let expected =
            VnetHdr { flags: 1, gso_type: 1, hdr_len: 40, gso_size: 1410, csum_start: 20, csum_offset: 16 };
        assert_eq!(header_for(&mut tcp), expected);
        let bytes = expected.to_bytes();
        assert_eq!(bytes[..2], [1, 1]);
        assert_eq!(bytes[4..6], 1410u16.to_ne_bytes());
    }

    #[test]
    fn udp_without_checksum_and_fragments_are_left_alone() {
        let mut udp = udp_packet("10.1.9.3", "10.1.63.2", 9, b"abc");
        udp[26..28].fill(0);
        assert_eq!(header_for(&mut udp), VnetHdr::default());

        let mut fragment = udp_packet("10.1.9.3", "10.1.63.2", 9, b"abc");
        unfill(&mut fragment, protocol::UDP, 6);
        fragment[6] = 0x20;
        fragment[10..12].fill(0);
        let sum = !checksum::sum(&fragment[..20]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(header_for(&mut fragment), VnetHdr::default());
    }
}
