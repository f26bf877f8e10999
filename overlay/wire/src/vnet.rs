//! The virtio header that stands in front of every packet read from or written to the TUN
//! (`struct virtio_net_hdr_v1`, `linux/virtio_net.h`, in the machine's byte order).

use crate::drops::DropReason;
use crate::ip::{Packet, Version, protocol};

/// Length of the header in bytes.
pub const LEN: usize = 12;

/// What the kernel must know of a packet beyond its bytes, or tells of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHdr {
    /// Whether the transport checksum is still to be filled: its field holds the pseudo-header sum.
    pub needs_csum: bool,
    /// How the packet is to be cut into segments, if it is.
    pub gso: Option<Gso>,
    /// Where the transport header begins, with `needs_csum`.
    pub csum_start: u16,
    /// Where in it the checksum stands, with `needs_csum`.
    pub csum_offset: u16,
    /// Length of all headers, with `gso`.
    pub hdr_len: u16,
}

/// How a super-packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// What it is made of.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last, which can be shorter.
    pub size: u16,
}

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one flow, over either, since Linux 6.2.
    Udp,
}

impl GsoKind {
    /// The kind that TCP segments of that version make.
    #[inline]
    #[must_use]
    pub const fn tcp(version: Version) -> Self {
        match version {
            Version::V4 => Self::Tcp4,
            Version::V6 => Self::Tcp6,
        }
    }

    /// Whether `packet` can be of this kind.
    #[inline]
    #[must_use]
    pub fn fits(self, packet: &Packet<'_>) -> bool {
        match self {
            Self::Udp => packet.protocol() == protocol::UDP,
            tcp => packet.protocol() == protocol::TCP && tcp == Self::tcp(packet.version()),
        }
    }
}

const UDP_HEADER_LEN: usize = 8;
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside the type when the first segment has CWR; segmentation looks at the flag itself.
const GSO_ECN: u8 = 0x80;

impl VnetHdr {
    /// The header with which a packet that came through the tunnel is written to a TUN of MTU
    /// `mtu`.
    ///
    /// Plain for a finished packet. A kernel VXLAN peer behind nothing but virtual links hands
    /// over packets that its kernel meant to finish later: the TCP or UDP checksum field holds
    /// the bare pseudo-header sum, and a TCP segment can be larger than any MTU. Such a packet is
    /// marked, so that the kernel fills the checksum, and cuts the segment, where it leaves. How a
    /// UDP packet is to be cut cannot be seen from it: `uncut` says so.
    #[must_use]
    pub fn for_arrival(packet: &Packet<'_>, mtu: usize, uncut: Option<Gso>) -> Self {
        let plain = Self::default();
        let payload = packet.payload();
        let (min_len, csum_offset) = match packet.protocol() {
            protocol::TCP => (20, 16),
            protocol::UDP => (UDP_HEADER_LEN, 6),
            _ => return plain,
        };
        if packet.is_fragment() || payload.len() < min_len {
            return plain;
        }
        let field = u16::from_be_bytes([payload[csum_offset], payload[csum_offset + 1]]);
        let no_checksum = packet.protocol() == protocol::UDP && field == 0;
        if no_checksum || field != packet.pseudo_header() {
            return plain;
        }

        let ip_len = packet.header_len();
        let unfinished =
            Self { needs_csum: true, csum_start: ip_len as u16, csum_offset: csum_offset as u16, ..plain };
        if packet.protocol() != protocol::TCP {
            let hdr_len = (ip_len + UDP_HEADER_LEN) as u16;
            return if uncut.is_some() { Self { gso: uncut, hdr_len, ..unfinished } } else { unfinished };
        }
        if packet.bytes().len() <= mtu {
            return unfinished;
        }
        let headers = ip_len + usize::from(payload[12] >> 4) * 4;
        // What has no header of its own length nobody can cut, and the kernel drops it.
        if headers < ip_len + min_len || headers >= mtu || headers >= packet.bytes().len() {
            return unfinished;
        }
        let size = (mtu - headers).min(usize::from(u16::MAX)) as u16;
        let kind = GsoKind::tcp(packet.version());
        Self { gso: Some(Gso { kind, size }), hdr_len: headers as u16, ..unfinished }
    }

    /// Its bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        if let Some(gso) = self.gso {
            bytes[1] = match gso.kind {
                GsoKind::Tcp4 => GSO_TCPV4,
                GsoKind::Tcp6 => GSO_TCPV6,
                GsoKind::Udp => GSO_UDP_L4,
            };
            bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
            bytes[4..6].copy_from_slice(&gso.size.to_ne_bytes());
        }
        if self.needs_csum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        }
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a kind of super-packet that was not asked for, or of size zero.
    #[inline]
    pub fn parse(bytes: &[u8; LEN]) -> Result<Self, DropReason> {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::Tcp4),
            GSO_TCPV6 => Some(GsoKind::Tcp6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => return Err(DropReason::Malformed),
        };
        if kind.is_some() && field(4) == 0 {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            needs_csum: bytes[0] & NEEDS_CSUM != 0,
            gso: kind.map(|kind| Gso { kind, size: field(4) }),
            hdr_len: field(2),
            csum_start: field(6),
            csum_offset: field(8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;
    use crate::samples::with_extensions;
    use crate::samples::{ENDS, builder, udp_packet};

    fn tcp_packet((src, dst): (&str, &str), len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let tcp = builder(src, dst, 64).tcp(80, 4000, 1, 500).ack(7);
        tcp.write(&mut bytes, &vec![0x5a; len]).unwrap();
        bytes
    }

    /// Puts the bare pseudo-header sum where the checksum belongs, as an unfinished packet has it, and returns
    /// where that is.
    fn unfill(bytes: &mut [u8]) -> (u16, u16) {
        let packet = Packet::parse(bytes).unwrap();
        let offset = if packet.protocol() == protocol::TCP { 16 } else { 6 };
        let (start, pseudo) = (packet.header_len(), packet.pseudo_header());
        bytes[start + offset..start + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        (start as u16, offset as u16)
    }

    fn header_for(bytes: &mut [u8]) -> VnetHdr {
        VnetHdr::for_arrival(&Packet::parse(bytes).unwrap(), 1450, None)
    }

    #[test]
    fn a_finished_packet_is_left_alone() {
        for ends in ENDS {
            assert_eq!(header_for(&mut tcp_packet(ends, 100)), VnetHdr::default());
            assert_eq!(header_for(&mut tcp_packet(ends, 4000)), VnetHdr::default());
            assert_eq!(header_for(&mut udp_packet(ends.0, ends.1, 9, b"abc")), VnetHdr::default());
        }
    }

    #[test]
    fn an_unfilled_checksum_is_to_be_filled() {
        let options: (u8, &[u8]) = (60, &[0, 1, 4, 0, 0, 0, 0]);
        let udp = ENDS.map(|(src, dst)| udp_packet(src, dst, 9, b"abc"));
        let tcp = ENDS.map(|ends| tcp_packet(ends, 0));
        for mut packet in [&udp[..], &tcp[..], &[with_extensions(&[options], b"abc")]].concat() {
            let (csum_start, csum_offset) = unfill(&mut packet);
            let expected = VnetHdr { needs_csum: true, csum_start, csum_offset, ..Default::default() };
            assert_eq!(header_for(&mut packet), expected);
        }
    }

    #[test]
    fn a_large_unfinished_segment_is_to_be_cut_to_the_mtu() {
        let kinds = [(GsoKind::Tcp4, 1, 40), (GsoKind::Tcp6, 4, 60)];
        for (ends, (kind, number, hdr_len)) in ENDS.into_iter().zip(kinds) {
            let mut tcp = tcp_packet(ends, 60_000);
            let (csum_start, csum_offset) = unfill(&mut tcp);
            let size = 1450 - hdr_len;
            let gso = Some(Gso { kind, size });
            let expected = VnetHdr { needs_csum: true, gso, hdr_len, csum_start, csum_offset };
            assert_eq!(header_for(&mut tcp), expected);
            let bytes = expected.to_bytes();
            assert_eq!(bytes[..2], [1, number]);
            assert_eq!(bytes[4..6], size.to_ne_bytes());
            assert_eq!(VnetHdr::parse(&bytes), Ok(expected));
            tcp[usize::from(csum_start) + 12] = 0x40;
            assert_eq!(header_for(&mut tcp).gso, None, "a header shorter than a TCP header is");
        }
    }

    #[test]
    fn udp_without_checksum_and_fragments_are_left_alone() {
        let mut udp = udp_packet("10.1.9.3", "10.1.63.2", 9, b"abc");
        udp[26..28].fill(0);
        assert_eq!(header_for(&mut udp), VnetHdr::default());

        let mut fragment = udp_packet("10.1.9.3", "10.1.63.2", 9, b"abc");
        unfill(&mut fragment);
        fragment[6] = 0x20;
        fragment[10..12].fill(0);
        let sum = !checksum::sum(&fragment[..20]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(header_for(&mut fragment), VnetHdr::default());

        let first: (u8, &[u8]) = (44, &[0, 0, 1, 0, 0, 0, 7]);
        let mut fragment = with_extensions(&[first], b"abc");
        unfill(&mut fragment);
        assert_eq!(header_for(&mut fragment), VnetHdr::default());
    }
}
