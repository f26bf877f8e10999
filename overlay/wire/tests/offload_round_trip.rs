//! Segmenting and coalescing undo each other: whatever goes through both comes out as the same
//! packets, flow by flow, and coalescing alone never changes what a receiver sees.

use etherparse::PacketBuilder;
use overlay_wire::checksum;
use overlay_wire::coalesce::Coalescer;
use overlay_wire::ip::{Packet, Version, protocol};
use overlay_wire::segment::{Segments, fill_checksum};
use overlay_wire::vnet::{Gso, GsoKind};
use proptest::prelude::*;

/// One packet of a stream, as it is generated.
#[derive(Debug, Clone)]
struct Spec {
    flow: u8,
    v6: bool,
    udp: bool,
    len: usize,
    flags: u8,
    tos: u8,
    ttl: u8,
    /// IPv6's flow label.
    label: u8,
    /// Whether there is an IPv6 extension header.
    extension: bool,
    timestamp: u8,
    window: u8,
    /// How far sequence and identification jump ahead of where they should be.
    jump: u8,
    damaged: bool,
    unfilled: bool,
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let mostly = |usual: u8, all: std::ops::RangeInclusive<u8>| prop_oneof![9 => Just(usual), 1 => all];
    let spec = (
        (
            mostly(0, 0..=1),
            prop::bool::weighted(0.3),
            prop::bool::weighted(0.3),
            prop_oneof![6 => Just(100usize), 1 => 0usize..100],
        ),
        (prop_oneof![8 => Just(0x10u8), 2 => any::<u8>()], mostly(0, 0..=3), mostly(64, 1..=64)),
        (mostly(1, 0..=3), mostly(9, 0..=9), mostly(0, 0..=2)),
        (prop::bool::weighted(0.05), prop::bool::weighted(0.1)),
        (mostly(5, 4..=5), prop::bool::weighted(0.05)),
    );
    let spec = spec.prop_map(
        |(
            (flow, udp, v6, len),
            (flags, tos, ttl),
            (timestamp, window, jump),
            (damaged, unfilled),
            (label, extension),
        )| Spec {
            flow,
            v6,
            udp,
            len,
            flags,
            tos,
            ttl,
            label,
            extension,
            timestamp,
            window,
            jump,
            damaged,
            unfilled,
        },
    );
    prop::collection::vec(spec, 0..60)
}

/// The packets of the stream, finished as a sender's kernel would send them, but for those marked.
fn packets(specs: &[Spec]) -> Vec<Vec<u8>> {
    let (mut sequence, mut id) = ([u32::MAX - 500; 8], [65_530u16; 8]);
    specs
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            let flow = usize::from(spec.flow) + if spec.udp { 2 } else { 0 } + if spec.v6 { 4 } else { 0 };
            sequence[flow] = sequence[flow].wrapping_add(u32::from(spec.jump));
            id[flow] = id[flow].wrapping_add(1 + u16::from(spec.jump));
            let payload: Vec<u8> = (0..spec.len).map(|at| (at + i) as u8).collect();
            let ip = if spec.v6 {
                PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], spec.ttl)
            } else {
                PacketBuilder::ipv4([10, 1, 63, 2], [10, 1, 9, 3], spec.ttl)
            };
            let ip_len = if spec.v6 { 40 } else { 20 };
            let mut bytes = Vec::new();
            if spec.udp {
                ip.udp(4000 + u16::from(spec.flow), 53).write(&mut bytes, &payload).unwrap();
            } else {
                let options = [1, 1, 8, 10, 0, 0, 0, spec.timestamp, 0, 0, 0, 0];
                ip.tcp(4000 + u16::from(spec.flow), 80, sequence[flow], u16::from(spec.window))
                    .ack(7)
                    .options_raw(&options)
                    .unwrap()
                    .write(&mut bytes, &payload)
                    .unwrap();
                bytes[ip_len + 13] = spec.flags;
                sequence[flow] = sequence[flow].wrapping_add(spec.len as u32);
            }
            if spec.v6 {
                bytes[..4].copy_from_slice(&[0x60 | spec.tos >> 4, spec.tos << 4, 0, spec.label]);
            } else {
                bytes[1] = spec.tos;
                bytes[4..6].copy_from_slice(&id[flow].to_be_bytes());
            }
            if spec.v6 && spec.extension {
                extend(&mut bytes);
            }
            finish_ip(&mut bytes);
            fill(&mut bytes, spec.unfilled);
            if spec.damaged {
                *bytes.last_mut().unwrap() ^= 0x40;
            }
            bytes
        })
        .collect()
}

/// Puts destination options, which are padding, between the IPv6 header and the rest.
fn extend(bytes: &mut Vec<u8>) {
    let options = [bytes[6], 0, 1, 4, 0, 0, 0, 0];
    bytes[6] = 60;
    bytes.splice(40..40, options);
}

/// Makes the lengths those of the packet, and the IPv4 header's checksum right.
fn finish_ip(bytes: &mut [u8]) {
    let len = bytes.len() as u16;
    if bytes[0] >> 4 == 6 {
        bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
    } else {
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes[10..12].fill(0);
        let sum = !checksum::sum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Puts the transport checksum, or leaves it for later as a virtual wire does.
fn fill(bytes: &mut [u8], unfilled: bool) {
    let mut packet = Packet::parse(bytes).unwrap();
    let offset = if packet.protocol() == protocol::TCP { 16 } else { 6 };
    let (start, pseudo) = (packet.header_len(), packet.pseudo_header());
    packet.bytes_mut()[start + offset..start + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
    if !unfilled {
        let header = overlay_wire::vnet::VnetHdr {
            needs_csum: true,
            csum_start: start as u16,
            csum_offset: offset as u16,
            ..Default::default()
        };
        fill_checksum(&mut packet, &header).unwrap();
    }
}

/// Whether the transport checksum looks as if it were left for later: one of 65,536 does by chance.
fn is_unfilled(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    let packet = Packet::parse(&mut bytes).unwrap();
    let offset = if packet.protocol() == protocol::TCP { 16 } else { 6 };
    packet.payload()[offset..offset + 2] == packet.pseudo_header().to_be_bytes()
}

/// What leaves a coalescer that is given `packets` in one buffer: packets, merged or not, and how
/// they are to be cut again.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Option<Gso>)> {
    let buffer = packets.concat();
    let mut out = Vec::new();
    let mut coalescer = Coalescer::default();
    let mut start = 0;
    for packet in packets {
        let mut copy = packet.clone();
        let parsed = Packet::parse(&mut copy).unwrap();
        if !coalescer.offer(start, &parsed, true) {
            release(&mut coalescer, &buffer, &mut out);
            if !coalescer.offer(start, &parsed, true) {
                out.push((packet.clone(), None));
            }
        }
        start += packet.len();
    }
    release(&mut coalescer, &buffer, &mut out);
    out
}

fn release(coalescer: &mut Coalescer, buffer: &[u8], out: &mut Vec<(Vec<u8>, Option<Gso>)>) {
    if let Some(single) = coalescer.single() {
        out.push((buffer[single].to_vec(), None));
    } else if let Some(merged) = coalescer.merged() {
        assert!(merged.vnet.needs_csum);
        let parts = merged.parts.iter().flat_map(|part| &buffer[part.clone()]);
        out.push((merged.headers.iter().chain(parts).copied().collect(), merged.vnet.gso));
    }
    coalescer.clear();
}

/// The packets that a super-packet is cut into.
fn cut(bytes: &[u8], gso: Gso) -> Vec<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let packet = Packet::parse(&mut bytes).unwrap();
    let segments = Segments::new(&packet, gso).unwrap();
    (0..segments.count())
        .map(|index| {
            let mut out = vec![0; segments.headers_len()];
            segments.write_headers(index, &mut out);
            out.extend(&packet.bytes()[segments.payload(index)]);
            out
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Coalesced and cut again, a stream is what it was, packet by packet; what was left for later
    /// has been done (and hides what was damaged before), and other damage is still seen.
    #[test]
    fn a_stream_comes_out_as_it_went_in(specs in specs()) {
        let sent = packets(&specs);
        let mut arrived = Vec::new();
        for (bytes, gso) in coalesce(&sent) {
            match gso {
                Some(gso) => arrived.extend(cut(&bytes, gso)),
                None => arrived.push(bytes),
            }
        }
        prop_assert_eq!(arrived.len(), sent.len());
        for ((arrived, sent), spec) in arrived.iter().zip(&sent).zip(&specs) {
            let mut expected = sent.clone();
            if is_unfilled(sent) && arrived != sent {
                fill(&mut expected, false);
            }
            prop_assert_eq!(arrived, &expected, "{:?}", spec);
        }
    }

    /// A super-packet that is cut and coalesced again is the same super-packet.
    #[test]
    fn a_super_packet_comes_out_as_it_went_in(
        payload in prop::collection::vec(any::<u8>(), 101..8000),
        size in 100u16..1500,
        (udp, v6, extension) in any::<(bool, bool, bool)>(),
        flags in prop::sample::select(vec![0x10u8, 0x18, 0x11, 0x50]),
    ) {
        prop_assume!(payload.len() > usize::from(size));
        prop_assume!(payload.len() / usize::from(size) < 100);
        let spec = Spec {
            v6, udp, len: 0, flags, extension, ..PLAIN
        };
        let mut whole = packets(&[spec]).remove(0);
        whole.extend(&payload);
        finish_ip(&mut whole);
        if udp {
            let start = Packet::parse(&mut whole).unwrap().header_len();
            let len = (whole.len() - start) as u16;
            whole[start + 4..start + 6].copy_from_slice(&len.to_be_bytes());
        }
        fill(&mut whole, true);
        let tcp = if v6 { GsoKind::tcp(Version::V6) } else { GsoKind::tcp(Version::V4) };
        let gso = Gso { kind: if udp { GsoKind::Udp } else { tcp }, size };
        let cut = cut(&whole, gso);
        if v6 && extension {
            // Cut like any other, but not joined again.
            let alone: Vec<_> = cut.iter().map(|segment| (segment.clone(), None)).collect();
            prop_assert_eq!(coalesce(&cut), alone);
        } else {
            prop_assert_eq!(coalesce(&cut), [(whole, Some(gso))]);
        }
    }
}

const PLAIN: Spec = Spec {
    flow: 0,
    v6: false,
    udp: false,
    len: 100,
    flags: 0x10,
    tos: 0,
    ttl: 64,
    label: 5,
    extension: false,
    timestamp: 1,
    window: 9,
    jump: 0,
    damaged: false,
    unfilled: false,
};

/// What makes a packet one of another kind.
type Change = fn(&mut Spec);

/// How many segments each packet that leaves is made of.
fn runs(specs: &[Spec]) -> Vec<usize> {
    let (mut arrived, mut sent) = (coalesce(&packets(specs)), specs.len());
    let runs = arrived.drain(..).map(|(bytes, gso)| gso.map_or(1, |gso| cut(&bytes, gso).len()));
    let runs: Vec<_> = runs.inspect(|run| sent -= run).collect();
    assert_eq!(sent, 0);
    runs
}

#[test]
fn a_plain_run_is_merged_whole() {
    for (udp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let merged = coalesce(&packets(&vec![Spec { udp, v6, ..PLAIN }; 40]));
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].1.unwrap().size, 100);
    }
}

#[test]
fn nothing_is_merged_across_a_boundary() {
    let boundaries: [(&str, bool, Change); 11] = [
        ("flow", true, |spec| spec.flow = 1),
        ("version", true, |spec| spec.v6 = !spec.v6),
        ("protocol", true, |spec| spec.udp = !spec.udp),
        ("ECN", true, |spec| spec.tos = 3),
        ("traffic class", true, |spec| spec.tos = 0xb8),
        ("hop limit", true, |spec| spec.ttl = 63),
        ("damage", true, |spec| spec.damaged = true),
        ("timestamp", false, |spec| spec.timestamp = 2),
        ("window", false, |spec| spec.window = 8),
        ("ECE", false, |spec| spec.flags = 0x50),
        ("a gap", false, |spec| spec.jump = 1),
    ];
    for v6 in [false, true] {
        for udp in [false, true] {
            let plain = Spec { v6, udp, ..PLAIN };
            for (name, of_udp, change) in boundaries {
                if udp && !of_udp {
                    continue;
                }
                let mut other = plain.clone();
                change(&mut other);
                let specs = [plain.clone(), plain.clone(), other, plain.clone(), plain.clone()];
                // A jump goes on from where it has landed.
                let expected: &[usize] = if name == "a gap" { &[2, 3] } else { &[2, 1, 2] };
                assert_eq!(runs(&specs), expected, "{name}, IPv6: {v6}, UDP: {udp}");
            }
        }
    }
    for (name, change) in [
        ("flow label", (|spec: &mut Spec| spec.label = 4) as Change),
        ("an extension header", |spec| spec.extension = true),
    ] {
        let plain = Spec { v6: true, ..PLAIN };
        let mut other = plain.clone();
        change(&mut other);
        let specs = [plain.clone(), plain.clone(), other, plain.clone(), plain.clone()];
        assert_eq!(runs(&specs), [2, 1, 2], "{name}");
    }
}

#[test]
fn a_shorter_segment_ends_its_run() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let plain = Spec { v6, udp, ..PLAIN };
            let short = Spec { len: 60, ..plain.clone() };
            assert_eq!(runs(&[plain.clone(), short.clone(), short, plain.clone(), plain]), [2, 1, 2]);
        }
    }
}
