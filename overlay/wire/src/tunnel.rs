//! A whole super-packet in its tunnel: the frame that a kernel's own VXLAN device would make of a TCP
//! super-packet, to be cut by the kernel or the network card, if by anybody (`struct
//! virtio_net_hdr_v1_hash_tunnel`, `linux/virtio_net.h`, Linux 6.17).

use crate::ip::Packet;
use crate::outer;
use crate::vnet::{Gso, GsoKind, VnetHdr};
use crate::vxlan;

/// Length of what stands before the VXLAN header: virtio, Ethernet, IPv4 and UDP header.
pub const HEADERS_LEN: usize = IP_AT + outer::LEN;

/// The virtio header is that of `TUNSETVNETHDRSZ` 24.
const ETHERNET_AT: usize = 24;
const IP_AT: usize = ETHERNET_AT + 14;
const UDP_AT: usize = IP_AT + 20;
/// IPv4, UDP and VXLAN with the inner Ethernet header.
const ENCAPSULATION_LEN: usize = outer::LEN + vxlan::HEADER_LEN;
const NEEDS_CSUM: u8 = 1;
const OUTER_CSUM: u8 = 8;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_TUNNEL_IPV4: u8 = 0x20;
const GSO_ECN: u8 = 0x80;
const CWR: u8 = 0x80;

/// What must be known of a TCP super-packet whose checksum is still to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperPacket {
    len: u16,
    gso: Gso,
    ip_len: u8,
    headers_len: u8,
    cwr: bool,
}

impl SuperPacket {
    /// Looks at `packet`, as read from the overlay device with `header`. `None` if it is no TCP super-packet,
    /// has IPv6 extension headers, or is too long to have a tunnel's headers in front.
    #[inline]
    #[must_use]
    pub fn of(packet: &Packet<'_>, header: &VnetHdr) -> Option<Self> {
        let gso = header.gso.filter(|gso| gso.kind != GsoKind::Udp && gso.kind.fits(packet))?;
        let (transport, len) = (packet.payload(), packet.bytes().len());
        if !header.needs_csum
            || packet.is_fragment()
            || packet.has_extensions()
            || transport.len() <= 20
            || len + ENCAPSULATION_LEN > usize::from(u16::MAX)
        {
            return None;
        }
        let tcp_len = usize::from(transport[12] >> 4) * 4;
        if tcp_len < 20 || transport.len() <= tcp_len || transport.len() - tcp_len <= usize::from(gso.size) {
            return None;
        }
        Some(Self {
            len: len as u16,
            gso,
            ip_len: packet.header_len() as u8,
            headers_len: (packet.header_len() + tcp_len) as u8,
            cwr: transport[13] & CWR != 0,
        })
    }

    /// Its length in bytes.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// How it is to be cut.
    #[inline]
    #[must_use]
    pub fn gso(&self) -> Gso {
        self.gso
    }

    /// How many segments it would be.
    #[inline]
    #[must_use]
    pub fn segments(&self) -> usize {
        (self.len() - usize::from(self.headers_len)).div_ceil(usize::from(self.gso.size))
    }

    /// Their bytes.
    #[inline]
    #[must_use]
    pub fn segments_len(&self) -> usize {
        self.len() + (self.segments() - 1) * usize::from(self.headers_len)
    }

    /// The length of what its outer headers stand in front of.
    #[inline]
    #[must_use]
    pub fn payload_len(&self) -> usize {
        vxlan::HEADER_LEN + self.len()
    }

    /// The length of the longest outer packet that it would be cut into.
    #[inline]
    #[must_use]
    pub fn outer_len(&self) -> usize {
        ENCAPSULATION_LEN + usize::from(self.headers_len) + usize::from(self.gso.size)
    }

    /// What stands before its VXLAN header on its way from `src` to `dst`, Ethernet addresses. The kernel fills the outer
    /// checksum, as the inner one, and counts identifications on.
    #[inline]
    #[must_use]
    pub fn headers(&self, outer: &[u8; outer::LEN], dst: [u8; 6], src: [u8; 6]) -> [u8; HEADERS_LEN] {
        let mut bytes = [0; HEADERS_LEN];
        let vxlan_at = HEADERS_LEN - ETHERNET_AT;
        let inner_at = (vxlan_at + vxlan::HEADER_LEN) as u16;

        let virtio = &mut bytes[..ETHERNET_AT];
        virtio[0] = NEEDS_CSUM | OUTER_CSUM;
        let inner = if self.gso.kind == GsoKind::Tcp6 { GSO_TCPV6 } else { GSO_TCPV4 };
        virtio[1] = inner | GSO_TUNNEL_IPV4 | if self.cwr { GSO_ECN } else { 0 };
        virtio[2..4].copy_from_slice(&(inner_at + u16::from(self.headers_len)).to_ne_bytes());
        virtio[4..6].copy_from_slice(&self.gso.size.to_ne_bytes());
        virtio[6..8].copy_from_slice(&(inner_at + u16::from(self.ip_len)).to_ne_bytes());
        virtio[8..10].copy_from_slice(&16_u16.to_ne_bytes());
        virtio[20..22].copy_from_slice(&((UDP_AT - ETHERNET_AT) as u16).to_le_bytes());
        virtio[22..24].copy_from_slice(&inner_at.to_le_bytes());

        let ethernet = &mut bytes[ETHERNET_AT..IP_AT];
        ethernet[..6].copy_from_slice(&dst);
        ethernet[6..12].copy_from_slice(&src);
        ethernet[12] = 0x08;

        bytes[IP_AT..].copy_from_slice(outer);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;
    use crate::ecn::Ecn;
    use crate::outer::Outer;
    use crate::samples::{super_packet, super_packet_header};

    const NOWHERE: [u8; outer::LEN] = [0; outer::LEN];

    fn of(mut bytes: Vec<u8>, header: &VnetHdr) -> Option<SuperPacket> {
        SuperPacket::of(&Packet::parse(&mut bytes).unwrap(), header)
    }

    #[test]
    fn the_frame_is_what_a_vxlan_device_sends() {
        let inner = super_packet(3000);
        let packet = of(inner.clone(), &super_packet_header(1400)).unwrap();
        assert_eq!((packet.segments(), packet.segments_len(), packet.outer_len()), (3, 3120, 1490));
        let from: SocketAddrV4 = "192.168.1.12:40001".parse().unwrap();
        let to: SocketAddrV4 = "192.168.199.238:8472".parse().unwrap();
        let outer = Outer::new(from, 61).headers(to, Ecn::Ect0, packet.payload_len(), 3);
        let headers = packet.headers(&outer, [2, 0, 0, 0, 0, 7], [1, 2, 3, 4, 5, 6]);
        let frame = [&headers[ETHERNET_AT..], &[0; vxlan::HEADER_LEN], &inner].concat();

        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("{sliced:?}") };
        let ip = ip.header();
        assert_eq!((ip.source_addr(), ip.destination_addr()), (*from.ip(), *to.ip()));
        assert_eq!((ip.ttl(), ip.ecn().value(), ip.dont_fragment()), (61, 2, false));
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        assert_eq!(usize::from(ip.total_len()), frame.len() - 14);
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("{sliced:?}") };
        assert_eq!((udp.source_port(), udp.destination_port()), (40001, 8472));
        assert_eq!(usize::from(udp.length()), frame.len() - 34);

        // Counted from the Ethernet header, as the kernel does.
        let word = |at: usize| usize::from(u16::from_ne_bytes([headers[at], headers[at + 1]]));
        let little = |at: usize| usize::from(u16::from_le_bytes([headers[at], headers[at + 1]]));
        assert_eq!(headers[..2], [9, 0x21]);
        assert_eq!((word(2), word(4), word(6), word(8)), (104, 1400, 84, 16));
        assert_eq!((little(20), little(22)), (34, 64));
        assert_eq!(frame[little(22)], inner[0]);
        assert_eq!(frame[word(6)..word(6) + 4], inner[20..24]);

        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 8, 0]);
    }

    #[test]
    fn ipv6_is_carried_over_ipv4() {
        let mut bytes = Vec::new();
        let packet = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(4000, 80, 7, 500).ack(77);
        packet.write(&mut bytes, &[7; 3000]).unwrap();
        let gso = Some(Gso { kind: GsoKind::Tcp6, size: 1400 });
        let packet =
            of(bytes, &VnetHdr { gso, csum_start: 40, hdr_len: 60, ..super_packet_header(1400) }).unwrap();
        assert_eq!((packet.segments(), packet.outer_len()), (3, 1510));
        let headers = packet.headers(&NOWHERE, [0; 6], [0; 6]);
        assert_eq!(headers[1], 0x24);
        assert_eq!(headers[2..4], 124_u16.to_ne_bytes());
        assert_eq!(headers[6..8], 104_u16.to_ne_bytes());
    }

    #[test]
    fn congestion_is_marked_in_both_places() {
        let mut inner = super_packet(3000);
        inner[33] |= CWR;
        let packet = of(inner, &super_packet_header(1400)).unwrap();
        assert_eq!(packet.headers(&NOWHERE, [0; 6], [0; 6])[1], 0xa1);
    }

    #[test]
    fn what_is_none_or_too_long_is_left_alone() {
        assert!(of(super_packet(65_535 - 40 - ENCAPSULATION_LEN), &super_packet_header(1400)).is_some());
        assert_eq!(of(super_packet(65_536 - 40 - ENCAPSULATION_LEN), &super_packet_header(1400)), None);
        assert_eq!(of(super_packet(1400), &super_packet_header(1400)), None, "one segment");
        assert_eq!(of(super_packet(3000), &VnetHdr { needs_csum: false, ..super_packet_header(1400) }), None);
        assert_eq!(of(super_packet(3000), &VnetHdr { gso: None, ..super_packet_header(1400) }), None);
        let udp = Some(Gso { kind: GsoKind::Udp, size: 1400 });
        assert_eq!(of(super_packet(3000), &VnetHdr { gso: udp, ..super_packet_header(1400) }), None);
        let udp = crate::samples::udp_packet("10.1.9.3", "10.1.63.2", 64, &[0; 3000]);
        assert_eq!(of(udp, &super_packet_header(1400)), None);
        for data_offset in [0x40, 0xf0] {
            let mut broken = super_packet(30);
            broken[32] = data_offset;
            assert_eq!(of(broken, &super_packet_header(10)), None);
        }
    }
}
