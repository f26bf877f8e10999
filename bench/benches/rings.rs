//! What `--io=xdp` costs beside the kernel: frames built and taken apart, and the accounts of where each is. The memory
//! is shared with nobody, and there is no device.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use bench::lookup;
use divan::Bencher;
use divan::counter::ItemsCount;
use overlay::MacAddr;
use overlay::batch::Batch;
use overlay::table::Route;
use overlay::underlay::Patience;
use overlay::underlay::ledger::Ledger;
use overlay::underlay::rings::{Piece, RxFrames, RxQueue, TxFrames, TxQueue};
use overlay::wire::frame::Template;
use overlay::wire::outer::Outer;
use overlay::wire::vnet;

fn main() {
    divan::main();
}

/// A worker's batch, from its slots into frames of the send ring.
#[divan::bench(args = [64, 1_400])]
fn send(bencher: Bencher<'_, '_>, len: usize) {
    let batch = batch(len);
    let mut queue = TxQueue::new(Memory::default(), ledger(), FRAME, Arc::default());
    let (mut template, mut patience) = (template(), Patience::default());
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for run in batch.runs(0) {
            queue.push(run, MAC, &mut template, batch.bytes(), &mut patience, &mut |unsent| {
                panic!("{unsent:?}")
            });
        }
        queue.flush(&mut patience).expect("nothing can fail");
    });
}

/// A batch of frames from the receive ring, as far as the loop that looks into them.
#[divan::bench(args = [64, 1_400])]
fn receive(bencher: Bencher<'_, '_>, len: usize) {
    let batch = batch(len);
    let mut memory = Memory::default();
    let run = &batch.runs(0)[0];
    let datagram = run.singly().next().expect("a datagram");
    let mut template = template();
    for frame in memory.bytes.chunks_exact_mut(FRAME as usize) {
        let frame = &mut frame[HEADROOM..];
        let slices = datagram.slices.iter().map(|slice| &batch.bytes()[slice.start..slice.start + slice.len]);
        memory.len = template.write(frame, MAC, LOCAL, run.ecn(), slices) as u32;
    }
    let mut queue = RxQueue::new(memory, ledger(), LOCAL, Arc::default());
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        let count = queue.receive();
        assert_eq!(count, BATCH);
        (0..count).for_each(|index| _ = black_box(queue.arrival(index)));
    });
}

/// A kernel that sends everything at once, or has every frame come back with what was in it.
struct Memory {
    bytes: Vec<u8>,
    len: u32,
    ring: VecDeque<Piece>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            bytes: vec![0; (FRAMES * FRAME) as usize],
            len: 0,
            ring: VecDeque::with_capacity(FRAMES as usize),
        }
    }
}

impl RxFrames for Memory {
    fn lend(&mut self, start: u64) -> bool {
        self.ring.push_back(Piece { start: start + HEADROOM as u64, len: self.len });
        true
    }

    fn lent(&mut self) {}

    fn receive(&mut self) -> Option<Piece> {
        self.ring.pop_front()
    }

    fn taken(&mut self) {}

    fn is_pending(&mut self) -> bool {
        !self.ring.is_empty()
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl TxFrames for Memory {
    fn frame(&mut self, start: u64, len: u32) -> &mut [u8] {
        &mut self.bytes[start as usize..][..len as usize]
    }

    fn send(&mut self, piece: Piece) -> bool {
        self.ring.push_back(piece);
        true
    }

    fn kick(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn completed(&mut self) -> Option<u64> {
        self.ring.pop_front().map(|piece| piece.start)
    }
}

fn batch(len: usize) -> Batch {
    let table = lookup::table(2, |_| 24);
    let Route::Peer(hop) = table.route(Ipv4Addr::new(10, 0, 1, 2).into()) else { panic!("a peer has it") };
    let mut batch = Batch::new(BATCH, 1);
    for _ in 0..BATCH {
        batch.next_read()[vnet::LEN..vnet::LEN + len].fill(0x5a);
        batch.push(0, hop, len);
    }
    batch
}

fn ledger() -> Ledger {
    Ledger::new(0, FRAME, FRAMES)
}

fn template() -> Template {
    let outer = Outer::new(SocketAddrV4::new(Ipv4Addr::new(172, 16, 0, 1), 40_000), 64);
    Template::new(MacAddr([2, 0, 0, 0, 0, 1]), outer)
}

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 16, 0, 2), 8472);
const BATCH: usize = 64;
const FRAME: u32 = 2048;
const FRAMES: u32 = 4096;
const HEADROOM: usize = 256;
