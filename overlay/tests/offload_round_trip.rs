//! Segmenting and coalescing undo each other: whatever goes through both comes out as the same
//! packets, flow by flow, and coalescing alone never changes what a receiver sees.

use etherparse::PacketBuilder;
use overlay::wire::checksum;
use overlay::wire::coalesce::Coalescer;
use overlay::wire::ip::Packet;
use overlay::wire::segment::{Segments, fill_checksum};
use overlay::wire::vnet::{Gso, GsoKind};
use proptest::prelude::*;

/// One packet of a stream, as it is generated.
#[derive(Debug, Clone)]
struct Spec {
    flow: u8,
    udp: bool,
    len: usize,
    flags: u8,
    tos: u8,
    ttl: u8,
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
        (mostly(0, 0..=1), prop::bool::weighted(0.3), prop_oneof![6 => Just(100usize), 1 => 0usize..100]),
        (prop_oneof![8 => Just(0x10u8), 2 => any::<u8>()], mostly(0, 0..=3), mostly(64, 1..=64)),
        (mostly(1, 0..=3), mostly(9, 0..=9), mostly(0, 0..=2)),
        (prop::bool::weighted(0.05), prop::bool::weighted(0.1)),
    );
    let spec = spec.prop_map(
        |((flow, udp, len), (flags, tos, ttl), (timestamp, window, jump), (damaged, unfilled))| Spec {
            flow,
            udp,
            len,
            flags,
            tos,
            ttl,
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
    let (mut sequence, mut id) = ([u32::MAX - 500; 4], [65_530u16; 4]);
    specs
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            let flow = usize::from(spec.flow) + if spec.udp { 2 } else { 0 };
            sequence[flow] = sequence[flow].wrapping_add(u32::from(spec.jump));
            id[flow] = id[flow].wrapping_add(1 + u16::from(spec.jump));
            let payload: Vec<u8> = (0..spec.len).map(|at| (at + i) as u8).collect();
            let ip = PacketBuilder::ipv4([10, 1, 63, 2], [10, 1, 9, 3], spec.ttl);
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
                bytes[33] = spec.flags;
                sequence[flow] = sequence[flow].wrapping_add(spec.len as u32);
            }
            bytes[1] = spec.tos;
            bytes[4..6].copy_from_slice(&id[flow].to_be_bytes());
            bytes[10..12].fill(0);
            let sum = !checksum::sum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            fill(&mut bytes, spec.unfilled);
            if spec.damaged {
                *bytes.last_mut().unwrap() ^= 0x40;
            }
            bytes
        })
        .collect()
}

/// Puts the transport checksum, or leaves it for later as a virtual wire does.
fn fill(bytes: &mut [u8], unfilled: bool) {
    let offset = if bytes[9] == 6 { 16 } else { 6 };
    let mut packet = Packet::parse(bytes).unwrap();
    let len = packet.payload().len();
    let pseudo = checksum::pseudo_header(packet.src(), packet.dst(), packet.protocol(), len);
    packet.bytes_mut()[20 + offset..22 + offset].copy_from_slice(&pseudo.to_be_bytes());
    if !unfilled {
        let header = overlay::wire::vnet::VnetHdr {
            needs_csum: true,
            csum_start: 20,
            csum_offset: offset as u16,
            ..Default::default()
        };
        fill_checksum(&mut packet, &header).unwrap();
    }
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
            if spec.unfilled && arrived != sent {
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
        udp in any::<bool>(),
        flags in prop::sample::select(vec![0x10u8, 0x18, 0x11, 0x50]),
    ) {
        prop_assume!(payload.len() > usize::from(size));
        prop_assume!(payload.len() / usize::from(size) < 100);
        let spec = Spec {
            flow: 0, udp, len: 0, flags, tos: 0, ttl: 64, timestamp: 1, window: 9, jump: 0, damaged: false, unfilled: false,
        };
        let mut whole = packets(&[spec]).remove(0);
        whole.extend(&payload);
        let len = whole.len() as u16;
        whole[2..4].copy_from_slice(&len.to_be_bytes());
        if udp {
            whole[24..26].copy_from_slice(&(len - 20).to_be_bytes());
        }
        whole[10..12].fill(0);
        let sum = !checksum::sum(&whole[..20]);
        whole[10..12].copy_from_slice(&sum.to_be_bytes());
        fill(&mut whole, true);
        let gso = Gso { kind: if udp { GsoKind::Udp } else { GsoKind::Tcp4 }, size };
        prop_assert_eq!(coalesce(&cut(&whole, gso)), [(whole, Some(gso))]);
    }
}

#[test]
fn a_plain_run_is_merged_whole() {
    let spec = Spec {
        flow: 0,
        udp: false,
        len: 100,
        flags: 0x10,
        tos: 0,
        ttl: 64,
        timestamp: 1,
        window: 9,
        jump: 0,
        damaged: false,
        unfilled: false,
    };
    for udp in [false, true] {
        let merged = coalesce(&packets(&vec![Spec { udp, ..spec.clone() }; 40]));
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].1.unwrap().size, 100);
    }
}
