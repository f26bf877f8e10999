//! Packets made of a fuzzer's bytes, and what is checked of those that come out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpSlice, UdpSlice};
use overlay::wire::checksum;
use overlay::wire::ip::{Packet, Version, protocol};
use overlay::wire::segment::MAX_IP_LEN;
use overlay::wire::vnet::GsoKind;

use crate::PORT;
use crate::input::Input;

/// A packet of the input: flags that say what is put right about it, a length to which it is filled up,
/// how many bytes are taken literally, and these.
pub fn packet(input: &mut Input<'_>, sources: &[Ipv4Addr], destinations: &[Ipv4Addr]) -> Vec<u8> {
    let mend = Mend(input.word());
    let places = input.byte();
    let filled = usize::from(input.word()) % if mend.has(Mend::LONG) { usize::MAX } else { MAX_FILLED };
    let literal = usize::from(input.byte());
    let mut bytes = input.bytes(literal).to_vec();
    if bytes.len() < filled {
        bytes.extend_from_slice(&FILLER[bytes.len()..filled]);
    }
    let pick = |all: &[Ipv4Addr], index: u8| all[usize::from(index) % all.len()];
    mend.mend(&mut bytes, pick(sources, places & 0x0f), pick(destinations, places >> 4));
    bytes
}

/// Most packets are not much longer than the underlay's, for the sake of speed; a few are as long as can be.
const MAX_FILLED: usize = 2048;
/// What they are filled with.
static FILLER: [u8; 1 << 16] = {
    let mut filler = [0; 1 << 16];
    let mut at = 0;
    while at < filler.len() {
        filler[at] = at as u8;
        at += 1;
    }
    filler
};

/// What is put right.
#[derive(Debug, Clone, Copy)]
struct Mend(u16);

impl Mend {
    const FORM: u16 = 1;
    const SOURCE: u16 = 2;
    const DESTINATION: u16 = 4;
    const CHECKSUM: u16 = 8;
    const TCP: u16 = 16;
    const UDP: u16 = 32;
    const TRANSPORT_CHECKSUM: u16 = 64;
    const UNFILLED: u16 = 128;
    const WHOLE: u16 = 256;
    const V6: u16 = 512;
    const TO_THE_TUNNEL: u16 = 1024;
    const LONG: u16 = 0xf000;

    fn has(self, what: u16) -> bool {
        self.0 & what == what
    }

    fn mend(self, bytes: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) {
        if self.has(Self::V6) {
            return self.mend_v6(bytes, src, dst);
        }
        if self.has(Self::FORM) {
            let len = bytes.len().max(40);
            bytes.resize(len, 0);
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        if bytes.len() < 40 {
            return;
        }
        if self.has(Self::SOURCE) {
            bytes[12..16].copy_from_slice(&src.octets());
        }
        if self.has(Self::DESTINATION) {
            bytes[16..20].copy_from_slice(&dst.octets());
        }
        if self.has(Self::WHOLE) {
            bytes[6..8].copy_from_slice(&[0x40, 0]);
            bytes[8] = 64;
        }
        let header_len = usize::from(bytes[0] & 15) * 4;
        if header_len < 20 || bytes.len() < header_len + 20 {
            return;
        }
        if self.has(Self::TCP) {
            bytes[9] = protocol::TCP;
            bytes[header_len + 12] = 0x50;
            bytes[header_len + 13] = 0x10;
        } else if self.has(Self::UDP) {
            let len = (bytes.len() - header_len) as u16;
            bytes[9] = protocol::UDP;
            if self.has(Self::TO_THE_TUNNEL) {
                bytes[header_len + 2..header_len + 4].copy_from_slice(&PORT.to_be_bytes());
            }
            bytes[header_len + 4..header_len + 6].copy_from_slice(&len.to_be_bytes());
        }
        if self.has(Self::TRANSPORT_CHECKSUM) {
            fill_transport(bytes, self.has(Self::UNFILLED));
        }
        if self.has(Self::CHECKSUM) {
            fill_header(bytes);
        }
    }
}

impl Mend {
    fn mend_v6(self, bytes: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) {
        let len = bytes.len().clamp(60, 65_575);
        bytes.resize(len, 0);
        if self.has(Self::FORM) {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        if self.has(Self::SOURCE) {
            bytes[8..24].copy_from_slice(&v6(src).octets());
        }
        if self.has(Self::DESTINATION) {
            bytes[24..40].copy_from_slice(&v6(dst).octets());
        }
        if self.has(Self::WHOLE) {
            bytes[7] = 64;
        }
        if self.has(Self::TCP) {
            bytes[6] = protocol::TCP;
            bytes[52..54].copy_from_slice(&[0x50, 0x10]);
        } else if self.has(Self::UDP) {
            bytes[6] = protocol::UDP;
            bytes[44..46].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        if self.has(Self::TRANSPORT_CHECKSUM) {
            fill_transport(bytes, self.has(Self::UNFILLED));
        }
    }
}

/// The IPv6 address that stands for an IPv4 one: `10.1.63.2` is `fd00:0:0:63::2`, others are `fc00::/96`.
#[must_use]
pub fn v6(address: Ipv4Addr) -> Ipv6Addr {
    match address.octets() {
        [10, 1, subnet, host] => Ipv6Addr::new(0xfd00, 0, 0, subnet.into(), 0, 0, 0, host.into()),
        [127, 0, 0, 1] => Ipv6Addr::LOCALHOST,
        [224, ..] => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        [0, 0, 0, 0] => Ipv6Addr::UNSPECIFIED,
        [169, ..] => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        other => Ipv6Addr::new(
            0xfc00,
            0,
            0,
            0,
            0,
            0,
            u16::from_be_bytes([other[0], other[1]]),
            u16::from_be_bytes([other[2], other[3]]),
        ),
    }
}

/// Where the transport header of a packet begins and what it is, whether or not the IPv4 checksum is right.
fn shape(bytes: &[u8]) -> Option<(usize, u8)> {
    match bytes.first()? >> 4 {
        6 => {
            let mut copy = bytes.to_vec();
            let packet = Packet::parse(&mut copy).ok()?;
            Some((packet.header_len(), packet.protocol()))
        }
        _ => {
            let header_len = usize::from(bytes[0] & 15) * 4;
            (header_len >= 20 && bytes.len() >= header_len).then(|| (header_len, bytes[9]))
        }
    }
}

/// A packet that continues `packet`: the next segment of its flow, or the next datagram.
#[must_use]
pub fn successor(packet: &[u8]) -> Vec<u8> {
    let mut next = packet.to_vec();
    let Some((header_len, kind)) = shape(packet).filter(|(header_len, _)| packet.len() >= header_len + 20)
    else {
        return next;
    };
    if packet[0] >> 4 != 6 {
        let id = u16::from_be_bytes([next[4], next[5]]).wrapping_add(1);
        next[4..6].copy_from_slice(&id.to_be_bytes());
    }
    let pseudo = pseudo_header(packet, header_len, kind).to_be_bytes();
    let unfilled = field_at(kind).is_some_and(|at| packet[header_len + at..header_len + at + 2] == pseudo);
    if kind == protocol::TCP {
        let transport = packet.len() - header_len;
        let len = transport - (usize::from(packet[header_len + 12] >> 4) * 4).min(transport);
        let at = header_len + 4;
        let sequence = u32::from_be_bytes([next[at], next[at + 1], next[at + 2], next[at + 3]]);
        next[at..at + 4].copy_from_slice(&sequence.wrapping_add(len as u32).to_be_bytes());
    }
    fill_transport(&mut next, unfilled);
    fill_header(&mut next);
    next
}

/// Where the checksum stands in a transport header.
fn field_at(kind: u8) -> Option<usize> {
    match kind {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        _ => None,
    }
}

fn pseudo_header(bytes: &[u8], header_len: usize, kind: u8) -> u16 {
    let len = bytes.len() - header_len;
    match bytes[0] >> 4 {
        6 => checksum::pseudo_header::<32>(bytes[8..40].try_into().expect("two addresses"), kind, len),
        _ => checksum::pseudo_header::<8>(bytes[12..20].try_into().expect("two addresses"), kind, len),
    }
}

fn fill_transport(bytes: &mut [u8], unfilled: bool) {
    let Some((header_len, kind)) = shape(bytes) else { return };
    let Some(at) = field_at(kind).map(|at| header_len + at).filter(|at| at + 2 <= bytes.len()) else {
        return;
    };
    let pseudo = pseudo_header(bytes, header_len, kind);
    bytes[at..at + 2].fill(0);
    let sum = if unfilled { pseudo } else { !checksum::add(pseudo, checksum::sum(&bytes[header_len..])) };
    let sum = if sum == 0 { 0xffff } else { sum };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Fills the IP header's checksum.
pub fn fill_header(bytes: &mut [u8]) {
    if bytes[0] >> 4 == 6 {
        return;
    }
    let header_len = usize::from(bytes[0] & 15) * 4;
    if header_len < 20 || bytes.len() < header_len {
        return;
    }
    bytes[10..12].fill(0);
    let sum = !checksum::sum(&bytes[..header_len]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Checks that etherparse reads the same in a packet that has passed our check.
///
/// # Panics
/// If it does not.
pub fn same_as_etherparse(packet: &Packet<'_>) {
    let bytes = packet.bytes();
    if packet.version() == Version::V6 {
        let header = Ipv6HeaderSlice::from_slice(bytes).expect("etherparse reads the header");
        assert_eq!(40 + usize::from(header.payload_length()), bytes.len());
        assert_eq!(IpAddr::from(header.source_addr()), packet.src());
        assert_eq!(IpAddr::from(header.destination_addr()), packet.dst());
        assert_eq!(header.hop_limit(), packet.ttl());
        if !packet.has_extensions() {
            assert_eq!(header.next_header().0, packet.protocol());
            assert_eq!(&bytes[40..], packet.payload());
        }
        return;
    }
    let header = Ipv4HeaderSlice::from_slice(bytes).expect("etherparse reads the header");
    assert_eq!(usize::from(header.ihl()) * 4, packet.header_len());
    assert_eq!(usize::from(header.total_len()), bytes.len());
    assert_eq!(IpAddr::from(header.source_addr()), packet.src());
    assert_eq!(IpAddr::from(header.destination_addr()), packet.dst());
    assert_eq!(header.protocol().0, packet.protocol());
    assert_eq!(header.ttl(), packet.ttl());
    assert_eq!(header.dont_fragment(), packet.dont_fragment());
    assert_eq!(header.is_fragmenting_payload(), packet.is_fragment());
    assert_eq!(header.fragments_offset().value() != 0, packet.is_later_fragment());
    // (Its own header has no place for the reserved flag, which nobody is to look at.)
    if bytes[6] & 0x80 == 0 {
        assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
    }
    assert_eq!(&bytes[usize::from(header.ihl()) * 4..], packet.payload());
}

/// Checks that the TCP or UDP checksum of a whole packet is right, as etherparse computes it.
///
/// # Panics
/// If it is not, or there is none.
pub fn assert_transport_checksum(packet: &Packet<'_>) {
    let payload = packet.payload();
    let (sum, field) = match packet.protocol() {
        protocol::TCP => {
            let tcp = TcpSlice::from_slice(payload).expect("a TCP segment");
            let sum = match (packet.src(), packet.dst()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets()),
                (IpAddr::V6(src), IpAddr::V6(dst)) => tcp.calc_checksum_ipv6(src.octets(), dst.octets()),
                mixed => panic!("{mixed:?}"),
            };
            (sum.expect("short enough"), tcp.checksum())
        }
        protocol::UDP => {
            let udp = UdpSlice::from_slice(payload).expect("a datagram");
            let (header, payload) = (udp.to_header(), udp.payload());
            let sum = match (packet.src(), packet.dst()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                }
                mixed => panic!("{mixed:?}"),
            };
            (sum.expect("short enough"), udp.checksum())
        }
        other => panic!("protocol {other} has no checksum to look at"),
    };
    assert_eq!(sum, field, "the checksum of protocol {}", packet.protocol());
}

/// `packet`, with header checksum and a transport checksum that is right, or left to be filled, in the one
/// form among those that mean the same.
#[must_use]
pub fn normalised(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    fill_header(&mut bytes);
    let Some((header_len, kind)) = shape(&bytes) else { return bytes };
    let Some(field) = field_at(kind).and_then(|at| bytes.get(header_len + at..header_len + at + 2)) else {
        return bytes;
    };
    let pseudo = pseudo_header(&bytes, header_len, kind);
    let right = checksum::add(pseudo, checksum::sum(&bytes[header_len..])) == 0xffff;
    let absent = kind == protocol::UDP && field == [0, 0];
    if !absent && (right || field == pseudo.to_be_bytes()) {
        fill_transport(&mut bytes, false);
    }
    bytes
}

/// `packet`, cut into segments of `size` payload bytes the way the kernel does it (`tcp_gso_segment`,
/// `__udp_gso_segment`), slowly and simply; `None` if it is nothing that can be cut.
#[must_use]
pub fn cut(packet: &[u8], kind: GsoKind, size: usize) -> Option<Vec<Vec<u8>>> {
    let mut copy = packet.to_vec();
    let parsed = Packet::parse(&mut copy).ok()?;
    let v6 = parsed.version() == Version::V6;
    let ip_len = parsed.header_len();
    let tcp = kind != GsoKind::Udp;
    let transport_len = if tcp { (usize::from(packet.get(ip_len + 12)? >> 4) * 4).max(20) } else { 8 };
    let headers_len = ip_len + transport_len;
    let of_kind = match kind {
        GsoKind::Tcp4 => !v6 && parsed.protocol() == protocol::TCP,
        GsoKind::Tcp6 => v6 && parsed.protocol() == protocol::TCP,
        GsoKind::Udp => parsed.protocol() == protocol::UDP,
    };
    let cannot = parsed.is_fragment() || parsed.is_routed() || ip_len > MAX_IP_LEN;
    if cannot || !of_kind || packet.len() <= headers_len {
        return None;
    }
    let count = (packet.len() - headers_len).div_ceil(size);
    let segments = packet[headers_len..].chunks(size).enumerate().map(|(index, payload)| {
        let mut segment = [&packet[..headers_len], payload].concat();
        let total_len = segment.len() as u16;
        if v6 {
            segment[4..6].copy_from_slice(&(total_len - 40).to_be_bytes());
        } else {
            segment[2..4].copy_from_slice(&total_len.to_be_bytes());
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if tcp {
            let at = ip_len + 4;
            let first = u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
            let sequence = first.wrapping_add((index * size) as u32);
            segment[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < count {
                segment[ip_len + 13] &= !0x09;
            }
            if index > 0 {
                segment[ip_len + 13] &= !0x80;
            }
        } else {
            let len = (segment.len() - ip_len) as u16;
            segment[ip_len + 4..ip_len + 6].copy_from_slice(&len.to_be_bytes());
        }
        fill_transport(&mut segment, false);
        fill_header(&mut segment);
        segment
    });
    Some(segments.collect())
}

/// Whether a super-packet's segments may all have the identification of the first: IPv4 datagrams that are
/// never fragmented (and IPv6 has none).
#[must_use]
pub fn same_id(packet: &[u8], kind: GsoKind) -> bool {
    kind == GsoKind::Udp && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0
}
