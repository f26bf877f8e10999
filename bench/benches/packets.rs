//! What happens to a packet between the two system calls: encapsulation, segmentation, coalescing.

use std::hint::black_box;
use std::net::Ipv4Addr;

use bench::lookup;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use etherparse::PacketBuilder;
use overlay::batch::Batch;
use overlay::table::{Hop, PeerTable, Route};
use overlay::wire::coalesce::Coalescer;
use overlay::wire::ip::{Packet, Version};
use overlay::wire::martian;
use overlay::wire::segment::Segments;
use overlay::wire::vnet::{self, Gso, GsoKind};

fn main() {
    divan::main();
}

/// Small packets of one flow, put into a batch one by one: the batch of a worker.
#[divan::bench(args = [64, 1_400])]
fn encapsulate(bencher: Bencher<'_, '_>, len: usize) {
    let table = lookup::table(2, |_| 24);
    let hop = hop(&table);
    let packet = udp(len);
    let mut batch = Batch::new(BATCH, 1);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        batch.clear();
        for _ in 0..BATCH {
            batch.next_read()[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(&packet);
            batch.push(0, hop, packet.len());
        }
        black_box(batch.runs(0).len())
    });
}

/// One super-packet, put into a batch in segments with their encapsulation.
#[divan::bench(args = VERSIONS)]
fn encapsulate_super_packet(bencher: Bencher<'_, '_>, version: Version) {
    let table = lookup::table(2, |_| 24);
    let hop = hop(&table);
    let packet = tcp(version, 0, SUPER_PAYLOAD);
    let mut batch = Batch::new(1, 1);
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        batch.clear();
        batch.next_read()[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(&packet);
        black_box(batch.push_segments(0, hop, packet.len(), gso(version)).map(|pushed| pushed.packets))
    });
}

/// The headers of all segments of one super-packet, with the checksum over each one's payload.
#[divan::bench(args = VERSIONS)]
fn segment(bencher: Bencher<'_, '_>, version: Version) {
    let mut bytes = tcp(version, 0, SUPER_PAYLOAD);
    let counter = BytesCount::new(bytes.len());
    let packet = Packet::parse(&mut bytes).expect("a packet");
    let mut headers = [0; 120];
    bencher.counter(counter).bench_local(|| {
        let segments = Segments::new(&packet, gso(version)).expect("a super-packet");
        for index in 0..segments.count() {
            segments.write_headers(index, &mut headers[..segments.headers_len()]);
            black_box(&headers);
        }
    });
}

/// Segments of one flow, verified and merged.
#[divan::bench(args = VERSIONS)]
fn coalesce(bencher: Bencher<'_, '_>, version: Version) {
    let mut segments: Vec<Vec<u8>> = (0..MERGED).map(|i| tcp(version, i, SEGMENT)).collect();
    let total: usize = segments.iter().map(Vec::len).sum();
    let mut coalescer = Coalescer::default();
    bencher.counter(BytesCount::new(total)).bench_local(|| {
        coalescer.clear();
        let mut start = 0;
        for segment in &mut segments {
            let packet = Packet::parse(segment).expect("a packet");
            assert!(coalescer.offer(start, &packet, true), "it continues the flow");
            start += packet.bytes().len();
        }
        black_box(coalescer.merged().map(|merged| merged.parts.len()))
    });
}

/// What no router forwards, looked for in good packets of a batch.
#[divan::bench(args = VERSIONS)]
fn martian(bencher: Bencher<'_, '_>, version: Version) {
    let mut bytes: Vec<Vec<u8>> = (0..BATCH).map(|index| tcp(version, index, 64)).collect();
    let packets: Vec<Packet<'_>> =
        bytes.iter_mut().map(|bytes| Packet::parse(bytes).expect("a packet")).collect();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        let good = |packet: &&Packet<'_>| {
            let packet = black_box(*packet);
            !martian::is_martian(packet.src()) && martian::check(packet).is_ok()
        };
        assert_eq!(packets.iter().filter(good).count(), BATCH);
    });
}

fn hop(table: &PeerTable) -> &Hop {
    match table.route(DST.into()) {
        Route::Peer(hop) => hop,
        other => panic!("{other:?} for {DST:?}"),
    }
}

fn udp(len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv4(SRC, DST, 64).udp(4000, 53);
    builder.write(&mut bytes, &vec![0x5a; len]).expect("a vector takes it");
    bytes
}

/// The `index`th of a flow's segments of that length, or a super-packet.
fn tcp(version: Version, index: usize, len: usize) -> Vec<u8> {
    let ip = match version {
        Version::V4 => PacketBuilder::ipv4(SRC, DST, 64),
        Version::V6 => PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64),
    };
    let mut bytes = Vec::new();
    let builder = ip.tcp(4000, 80, (index * len) as u32, 500).ack(77);
    builder.write(&mut bytes, &vec![0x5a; len]).expect("a vector takes it");
    if version == Version::V4 {
        bytes[4..6].copy_from_slice(&(index as u16).to_be_bytes());
        bytes[10..12].fill(0);
        let sum = !overlay::wire::checksum::sum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn gso(version: Version) -> Gso {
    Gso { kind: GsoKind::tcp(version), size: SEGMENT as u16 }
}

const SRC: [u8; 4] = Ipv4Addr::new(10, 0, 0, 2).octets();
const DST: [u8; 4] = Ipv4Addr::new(10, 0, 1, 2).octets();
/// Packets of a worker's batch.
const BATCH: usize = 64;
/// Payload of a TCP segment with an MTU of 1450.
const SEGMENT: usize = 1_410;
const MERGED: usize = 44;
/// As much as those segments have together.
const SUPER_PAYLOAD: usize = SEGMENT * MERGED;
const VERSIONS: [Version; 2] = [Version::V4, Version::V6];
