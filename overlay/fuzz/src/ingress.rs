//! The whole way from the wire to the device, held against a plain model of what may come through.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay::admit::SourceCheck;
use overlay::wire::ecn::Ecn;
use overlay::wire::ip::{Packet, Version};
use overlay::wire::vnet::{self, GsoKind, VnetHdr};
use overlay::wire::{Format, checksum, icmp, vxlan};

use crate::input::Input;
use crate::packets::{cut, fill_header, normalised, packet, same_as_etherparse, same_id, successor};
use crate::{
    IngressRig, MTU, OURS, OVERLAY_ADDRESS, OVERLAY_ADDRESS_V6, PEERS, PORT, dropped, encapsulation,
};

/// Who sends: peers, two of them behind one address, this host itself, and somebody else.
const SENDERS: [Ipv4Addr; 6] = [
    Ipv4Addr::new(192, 168, 199, 238),
    Ipv4Addr::new(192, 168, 199, 7),
    Ipv4Addr::new(192, 168, 199, 238),
    Ipv4Addr::new(192, 168, 199, 64),
    Ipv4Addr::new(192, 168, 1, 12),
    Ipv4Addr::new(192, 168, 66, 6),
];

/// Whose address a packet claims to have.
const SOURCES: [Ipv4Addr; 14] = [
    Ipv4Addr::new(10, 1, 63, 2),
    Ipv4Addr::new(10, 1, 7, 2),
    Ipv4Addr::new(10, 1, 8, 2),
    Ipv4Addr::new(10, 1, 64, 2),
    Ipv4Addr::new(10, 1, 64, 200),
    Ipv4Addr::new(10, 1, 9, 3),
    Ipv4Addr::new(192, 168, 199, 238),
    Ipv4Addr::new(192, 168, 1, 12),
    Ipv4Addr::new(10, 1, 63, 255),
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(255, 255, 255, 255),
    Ipv4Addr::new(0, 0, 0, 0),
    Ipv4Addr::new(169, 254, 1, 1),
];

/// And where it is to go.
const DESTINATIONS: [Ipv4Addr; 10] = [
    Ipv4Addr::new(192, 168, 1, 12),
    Ipv4Addr::new(192, 168, 199, 7),
    Ipv4Addr::new(10, 1, 9, 3),
    Ipv4Addr::new(10, 1, 9, 0),
    Ipv4Addr::new(10, 1, 63, 2),
    Ipv4Addr::new(8, 8, 8, 8),
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(255, 255, 255, 255),
    Ipv4Addr::new(10, 1, 255, 255),
];

/// Runs one input: some datagrams, some of which arrive joined.
///
/// # Panics
/// If a packet is lost without being counted, or one comes through, or comes out, other than it should.
pub fn run(data: &[u8], format: Format) {
    let mut input = Input::new(data);
    let mode = input.byte();
    let check = [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off][usize::from(mode & 3) % 3];
    let mut rig = IngressRig::new(format, check, mode & 4 == 0);
    let refused = if mode & 8 != 0 { input.byte() } else { 0 };
    rig.device.refuse(refused);

    let mut model = Model { format, check, packets: 0, expected: VecDeque::new() };
    let mut last: Option<Vec<u8>> = None;
    let mut sent = 0;
    for _ in 0..MAX_ARRIVALS {
        if input.is_empty() || sent > MAX_SENT {
            break;
        }
        let arrival = arrival(&mut input, format, &mut last);
        model.arrive(&arrival);
        let Arrival { outer, payload, ecn, segment_len, truncated } = arrival;
        sent += payload.len();
        rig.wire.arrive(outer, payload, ecn, segment_len, truncated);
    }
    rig.worker.step();

    let totals = rig.totals();
    assert_eq!(
        totals.packets + totals.echoes + dropped(&totals),
        model.packets,
        "in = out + dropped: {totals:?}"
    );
    let echoes = rig.echoes.take_sent();
    assert!(echoes.len() as u64 <= totals.echoes && echoes.len() <= 51);
    let answers = rig.icmp.take_sent();
    assert_eq!(answers.len() as u64, totals.icmp_sent);
    for (to, mut answer) in answers {
        let len = answer.len();
        let answer = Packet::parse(&mut answer).expect("an answer is a packet");
        assert!(len <= icmp::max_len(answer.version()));
        assert_eq!((answer.src(), answer.dst()), (overlay_address(answer.version()), to));
    }
    for written in rig.device.take_written() {
        model.written(&written, refused == 0);
    }
    assert!(refused != 0 || model.expected.is_empty(), "{} packets are missing", model.expected.len());
}

/// The kinds of IPv4 options, as far as they can be read.
fn kinds(mut options: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some((kind, rest)) = options.split_first().filter(|(kind, _)| **kind != 0) {
        kinds.push(*kind);
        let len = match (kind, rest.first()) {
            (1, _) => 1,
            (_, Some(len)) if *len >= 2 => usize::from(*len),
            _ => break,
        };
        options = options.get(len..).unwrap_or_default();
    }
    kinds
}

fn overlay_address(version: Version) -> IpAddr {
    match version {
        Version::V4 => OVERLAY_ADDRESS.into(),
        Version::V6 => OVERLAY_ADDRESS_V6.into(),
    }
}

/// Whether a packet that may pass is an echo to this node's daemon.
fn is_echo(inner: &[u8]) -> bool {
    let mut bytes = inner.to_vec();
    let Ok(packet) = Packet::parse(&mut bytes) else { return false };
    let (protocol, reply) = match packet.version() {
        Version::V4 => (1, 0),
        Version::V6 => (58, 129),
    };
    let icmp = packet.payload();
    packet.protocol() == protocol
        && !packet.is_fragment()
        && packet.dst() == overlay_address(packet.version())
        && icmp.len() >= 25
        && icmp[0] == reply
        && icmp[8..16] == *b"overlayd"
        && matches!(icmp[16], b'?' | b'!')
}

/// The packet with a mark that it had outside (RFC 6040, figure 4); none if it would not be understood.
fn marked(mut inner: Vec<u8>, outer: Ecn) -> Option<Vec<u8>> {
    let v6 = inner[0] >> 4 == 6;
    let within = if v6 { inner[1] >> 4 & 3 } else { inner[1] & 3 };
    let now = match (within, outer) {
        (0, Ecn::Ce) => return None,
        (1..=3, Ecn::Ce) => 3,
        (2, Ecn::Ect1) => 1,
        (within, _) => within,
    };
    inner[1] = if v6 { inner[1] & !0x30 | now << 4 } else { inner[1] & !3 | now };
    fill_header(&mut inner);
    Some(inner)
}

/// A batch of the real wire has sixteen.
const MAX_ARRIVALS: usize = 16;
/// Datagrams that the kernel joins to one.
const MAX_RUN: usize = 64;
/// Bytes of one input: more of the same would only take longer.
const MAX_SENT: usize = 64 << 10;

struct Arrival {
    outer: Ipv4Addr,
    payload: Vec<u8>,
    ecn: Ecn,
    segment_len: Option<usize>,
    truncated: bool,
}

/// One arrival of the input: a datagram that is wrong in any way, or a run of them, most of which continue
/// the one before.
fn arrival(input: &mut Input<'_>, format: Format, last: &mut Option<Vec<u8>>) -> Arrival {
    let flags = input.byte();
    let from = input.byte();
    let (outer, ecn) = (SENDERS[usize::from(from & 63) % SENDERS.len()], Ecn::of_tos(from >> 6));
    let inner = match last.take().filter(|_| flags & 1 != 0) {
        Some(last) => successor(&last),
        None => packet(input, &SOURCES, &DESTINATIONS),
    };
    let mut headers = encapsulation(format, inner[..].first().map_or(4, |first| first >> 4));
    if flags & 2 != 0
        && let Some(byte) = headers.get_mut(usize::from(input.byte()) % vxlan::HEADER_LEN)
    {
        *byte ^= input.byte();
    }
    let mut payload = [&headers[..], &inner].concat();
    let mut segment_len = None;
    *last = Some(inner);
    if flags & 4 != 0 {
        let first = payload.len();
        for _ in 0..usize::from(input.byte()) % MAX_RUN {
            let next = successor(last.as_deref().unwrap_or_default());
            if payload.len() + first > 65_507 {
                break;
            }
            payload.extend([&headers[..], &next].concat());
            *last = Some(next);
        }
        segment_len = Some(first.max(1));
    }
    if flags & 8 != 0 {
        segment_len = Some(usize::from(input.word()).max(1));
    }
    if flags & 16 != 0 {
        payload.truncate(usize::from(input.word()));
    }
    payload.truncate(65_507);
    Arrival { outer, payload, ecn, segment_len, truncated: flags & 0xe0 == 0xe0 }
}

/// What should come of it, in the simplest words.
struct Model {
    format: Format,
    check: SourceCheck,
    /// Datagrams, as the wire would have counted them.
    packets: u64,
    /// The packets that come through, in order.
    expected: VecDeque<Vec<u8>>,
}

impl Model {
    fn arrive(&mut self, arrival: &Arrival) {
        let Arrival { outer, payload, ecn, segment_len, truncated } = arrival;
        if *truncated || payload.is_empty() {
            self.packets += 1;
            return;
        }
        let uncut = self.format != Format::FlannelUdp
            && payload.len() >= vxlan::HEADER_LEN + 6
            && segment_len.is_some_and(|len| {
                let total = match payload[22] >> 4 {
                    4 => usize::from(u16::from_be_bytes([payload[24], payload[25]])),
                    6 if payload.len() >= 28 => {
                        40 + usize::from(u16::from_be_bytes([payload[26], payload[27]]))
                    }
                    _ => return false,
                };
                payload.len() > len && payload.len() == vxlan::HEADER_LEN + total
            });
        let step = segment_len.filter(|_| !uncut).unwrap_or(payload.len());
        for datagram in payload.chunks(step) {
            self.packets += 1;
            let inner = self.inner(datagram, *outer).and_then(|inner| marked(inner, *ecn));
            // An echo between daemons is not for the host.
            self.expected.extend(inner.filter(|inner| !is_echo(inner)));
        }
    }

    /// The packet in a datagram, if it may pass.
    fn inner(&self, datagram: &[u8], outer: Ipv4Addr) -> Option<Vec<u8>> {
        let inner = match self.format {
            Format::FlannelUdp => datagram,
            Format::Vxlan { .. } => {
                let (header, inner) = datagram.split_at_checked(vxlan::HEADER_LEN)?;
                let ours = header[0] & 8 != 0
                    && header[4..7] == [0, 0, 1]
                    && header[8..14] == OURS.0
                    && match header[20..22] {
                        [0x08, 0x00] => inner.first().is_some_and(|first| first >> 4 == 4),
                        [0x86, 0xdd] => inner.first().is_some_and(|first| first >> 4 == 6),
                        _ => false,
                    };
                ours.then_some(inner)?
            }
        };
        if inner.first()? >> 4 == 6 {
            return self.inner_v6(inner, outer);
        }
        let header_len = usize::from(inner.first()? & 15) * 4;
        let total_len = usize::from(u16::from_be_bytes([*inner.get(2)?, *inner.get(3)?]));
        let form = inner[0] >> 4 == 4
            && header_len >= 20
            && (header_len..=inner.len()).contains(&total_len)
            && checksum::sum(&inner[..header_len]) == 0xffff;
        if !form {
            return None;
        }
        let source = Ipv4Addr::new(inner[12], inner[13], inner[14], inner[15]);
        if !self.may_come_from(source, outer) || !Self::may_go_to(&inner[..total_len]) {
            return None;
        }
        let mut inner = inner[..total_len].to_vec();
        if self.format == Format::FlannelUdp {
            if inner[8] <= 1 {
                return None;
            }
            inner[8] -= 1;
        }
        Some(normalised(&inner))
    }

    fn inner_v6(&self, inner: &[u8], outer: Ipv4Addr) -> Option<Vec<u8>> {
        let total_len = 40 + usize::from(u16::from_be_bytes([*inner.get(4)?, *inner.get(5)?]));
        let mut inner = inner.get(..total_len)?.to_vec();
        let own = inner[8..16] == [0xfd, 0, 0, 0, 0, 0, 0, 9];
        let outer = outer.to_string();
        let known = PEERS.iter().any(|(_, public_ip)| *public_ip == outer);
        let owner = match inner[8..16] {
            [0xfd, 0, 0, 0, 0, 0, 0, 63] => Some(0),
            [0xfd, 0, 0, 0, 0, 0, 0, 7] => Some(1),
            [0xfd, 0, 0, 0, 0, 0, 0, 8] => Some(2),
            _ => None,
        };
        let owned = owner.is_some_and(|index: usize| PEERS[index].1 == outer);
        let may = match self.check {
            SourceCheck::Strict => known && owned,
            SourceCheck::Loose => known,
            SourceCheck::Off => true,
        };
        let source = Ipv6Addr::from(<[u8; 16]>::try_from(&inner[8..24]).ok()?);
        let martian = source.is_unspecified()
            || source.is_loopback()
            || source.is_multicast()
            || source.is_unicast_link_local();
        if own || !may || martian || !Self::may_go_to(&inner) {
            return None;
        }
        if self.format == Format::FlannelUdp {
            if inner[7] <= 1 {
                return None;
            }
            inner[7] -= 1;
        }
        Some(normalised(&inner))
    }

    /// Whether the destination is one that routers know, and is left to them.
    fn may_go_to(inner: &[u8]) -> bool {
        let mut copy = inner.to_vec();
        let packet = Packet::parse(&mut copy).expect("its form has been looked at");
        let to_the_port = packet.protocol() == 17
            && !packet.is_later_fragment()
            && packet.payload().get(2..4) == Some(&PORT.to_be_bytes());
        match packet.dst() {
            IpAddr::V4(dst) => {
                let options = kinds(&inner[20..packet.header_len()]);
                let tunnel_end = dst == Ipv4Addr::new(192, 168, 1, 12)
                    || dst == OVERLAY_ADDRESS
                    || PEERS.iter().any(|(_, public_ip)| *public_ip == dst.to_string());
                let nested = to_the_port && tunnel_end;
                !nested
                    && !matches!(dst.octets(), [0 | 127 | 169 | 224.., ..] if dst.octets()[0] != 169 || dst.octets()[1] == 254)
                    && !options.into_iter().any(|kind| kind == 131 || kind == 137)
            }
            IpAddr::V6(dst) => {
                !(dst.is_unspecified()
                    || dst.is_loopback()
                    || dst.is_multicast()
                    || dst.is_unicast_link_local()
                    || packet.is_routed())
            }
        }
    }

    fn may_come_from(&self, source: Ipv4Addr, outer: Ipv4Addr) -> bool {
        let own = source.octets()[..3] == [10, 1, 9] || source == Ipv4Addr::new(192, 168, 1, 12);
        let outer = outer.to_string();
        let known = PEERS.iter().any(|(_, public_ip)| *public_ip == outer);
        let owner = match source.octets() {
            [10, 1, 63, _] => Some(0),
            [10, 1, 7, _] => Some(1),
            [10, 1, 8, _] => Some(2),
            [10, 1, 64, 0..128] => Some(3),
            _ => None,
        };
        let owned = owner.is_some_and(|index: usize| PEERS[index].1 == outer) || source.to_string() == outer;
        let martian = !(known && owned)
            && (matches!(source.octets()[0], 0 | 127 | 224..) || source.octets()[..2] == [169, 254]);
        !own && !martian
            && match self.check {
                SourceCheck::Strict => known && owned,
                SourceCheck::Loose => known,
                SourceCheck::Off => true,
            }
    }

    /// Takes what was written from what was expected, if all that was expected is to be found.
    fn written(&mut self, written: &[u8], complete: bool) {
        let (header, bytes) = written.split_first_chunk::<{ vnet::LEN }>().expect("a virtio header");
        let header = VnetHdr::parse(header).expect("a header that we would accept");
        let mut bytes = bytes.to_vec();
        let whole = Packet::parse(&mut bytes).expect("a packet is written");
        same_as_etherparse(&whole);
        if header.needs_csum {
            assert!(usize::from(header.csum_start + header.csum_offset) + 2 <= whole.bytes().len());
        }
        if !complete {
            return;
        }
        let bytes = normalised(&bytes);
        if self.expected.front() == Some(&bytes) {
            // As it came; if the kernel is to cut it, it was longer than the overlay's packets.
            assert!(
                header.gso.is_none()
                    || bytes.len() > MTU as usize
                    || header.gso.is_some_and(|gso| gso.kind == GsoKind::Udp)
            );
            self.expected.pop_front();
            return;
        }
        let gso = header.gso.expect("what is not as it came is made of several");
        let segments = cut(&bytes, gso.kind, gso.size.into()).expect("it can be cut");
        assert!(segments.len() > 1);
        for segment in segments {
            let expected = self.expected.pop_front().expect("a packet that arrived");
            // Where an unfragmented datagram's identification does not matter, all of a run have one.
            let mut segment = segment;
            if same_id(&segment, gso.kind) {
                segment[4..6].copy_from_slice(&expected[4..6]);
            }
            assert_eq!(normalised(&segment), expected);
        }
    }
}
