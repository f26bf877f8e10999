//! The queues on a kernel that exists in memory only, and does what it likes.

use std::collections::VecDeque;
use std::time::Duration;

use overlay_sys::wake::StopFlag;
use overlay_wire::outer::Outer;
use overlay_wire::{Format, vnet};
use proptest::prelude::*;

use super::*;
use crate::batch::Batch;
use crate::table::tests::{local, peer};
use crate::table::{PeerTable, Route};

const FRAME: u32 = 2048;
const FRAMES: u32 = 8;
const HERE: &str = "192.168.1.12:8472";
/// No test waits for so long.
const AGES: Duration = Duration::from_secs(3600);

/// The kernel's end of both directions.
#[derive(Default)]
struct Kernel {
    memory: Vec<u8>,
    lent: VecDeque<u64>,
    arrived: VecDeque<Piece>,
    handed_over: VecDeque<Piece>,
    sent: Vec<Vec<u8>>,
    completed: VecDeque<u64>,
    /// What the next kicks say, instead of sending.
    errors: VecDeque<i32>,
    /// How often it was asked to send.
    kicks: u32,
    /// Whether frames that were sent come back.
    keeps: bool,
    /// Whether it takes nothing.
    is_full: bool,
}

impl Kernel {
    fn new() -> Self {
        Self { memory: vec![0; (FRAMES * FRAME) as usize], ..Self::default() }
    }

    /// Receives `bytes` into the next frame lent, if there is one.
    fn arrive(&mut self, bytes: &[u8]) -> bool {
        let Some(start) = self.lent.pop_front() else { return false };
        let start = start + 256;
        self.memory[start as usize..start as usize + bytes.len()].copy_from_slice(bytes);
        self.arrived.push_back(Piece { start, len: bytes.len() as u32 });
        true
    }
}

impl RxFrames for Kernel {
    fn lend(&mut self, start: u64) -> bool {
        self.lent.push_back(start);
        self.lent.len() <= FRAMES as usize
    }

    fn lent(&mut self) {}

    fn receive(&mut self) -> Option<Piece> {
        self.arrived.pop_front()
    }

    fn taken(&mut self) {}

    fn is_pending(&mut self) -> bool {
        !self.arrived.is_empty()
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

impl TxFrames for Kernel {
    fn frame(&mut self, start: u64, len: u32) -> &mut [u8] {
        &mut self.memory[start as usize..][..len as usize]
    }

    fn send(&mut self, piece: Piece) -> bool {
        self.handed_over.push_back(piece);
        self.handed_over.len() <= FRAMES as usize
    }

    fn kick(&mut self) -> io::Result<bool> {
        self.kicks += 1;
        if let Some(errno) = self.errors.pop_front().or(self.is_full.then_some(libc::EAGAIN)) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        for Piece { start, len } in self.handed_over.drain(..) {
            self.sent.push(self.memory[start as usize..][..len as usize].to_vec());
            if !self.keeps {
                self.completed.push_back(start);
            }
        }
        Ok(true)
    }

    fn completed(&mut self) -> Option<u64> {
        self.completed.pop_front()
    }
}

fn rx() -> RxQueue<Kernel> {
    RxQueue::new(Kernel::new(), Ledger::new(0, FRAME, FRAMES), HERE.parse().unwrap(), Arc::default())
}

fn tx() -> TxQueue<Kernel> {
    TxQueue::new(Kernel::new(), Ledger::new(0, FRAME, FRAMES), FRAME, Arc::default())
}

/// A batch with one run of datagrams of `len` bytes.
fn batch(count: usize, len: usize) -> Batch {
    let local = crate::table::Local { port: 8472, ..local(Format::FlannelUdp) };
    let table = PeerTable::new(local, vec![peer("10.1.63.0/24", "192.168.1.12")]);
    let Route::Peer(hop) = table.route("10.1.63.2".parse().unwrap()) else { panic!("no route") };
    let mut batch = Batch::new(count, 1);
    for i in 0..count {
        batch.next_read()[vnet::LEN..vnet::LEN + len].fill(i as u8);
        batch.push(0, hop, len);
    }
    batch
}

fn template() -> Template {
    let outer = Outer::new("192.168.199.238:40000".parse().unwrap(), 64);
    Template::new(MacAddr([2, 0, 0, 0, 0, 1]), outer)
}

fn push(tx: &mut TxQueue<Kernel>, batch: &Batch) -> Vec<(usize, usize)> {
    push_with(&mut patience(AGES), tx, batch)
}

fn push_with(patience: &mut Patience, tx: &mut TxQueue<Kernel>, batch: &Batch) -> Vec<(usize, usize)> {
    let (mut failures, mut template) = (Vec::new(), template());
    for run in batch.runs(0) {
        tx.push(run, MacAddr([2, 0, 0, 0, 0, 9]), &mut template, batch.bytes(), patience, &mut |unsent| {
            failures.push((unsent.count, unsent.inner_len));
        });
    }
    failures
}

fn patience(whole: Duration) -> Patience {
    let mut patience = Patience::new(Arc::new(StopFlag::new().unwrap()));
    patience.begin(whole);
    patience
}

#[test]
fn what_is_sent_is_what_arrives() {
    let (mut tx, mut rx) = (tx(), rx());
    // More than there are frames.
    assert_eq!(push(&mut tx, &batch(20, 100)), []);
    tx.flush(&mut patience(AGES)).unwrap();
    assert_eq!((tx.frames.sent.len(), tx.ledger.free(), tx.counts.sent.load(Relaxed)), (20, 8, 20));
    let mut received = Vec::new();
    for frames in tx.frames.sent.chunks(4) {
        assert!(frames.iter().all(|frame| rx.frames.arrive(frame)));
        for index in 0..rx.receive() {
            let Arrival { from, place, .. } = rx.arrival(index);
            assert_eq!(from, "192.168.199.238:40000".parse().unwrap());
            assert_eq!(place.len(), 100);
            received.push(rx.bytes()[place.start]);
        }
    }
    assert_eq!(received, (0..20).collect::<Vec<_>>());
}

#[test]
fn what_the_kernel_cannot_take_at_once_is_waited_for() {
    let mut tx = tx();
    tx.frames.errors.extend([libc::EAGAIN, libc::EBUSY, libc::EAGAIN]);
    assert_eq!(push(&mut tx, &batch(3, 10)), []);
    tx.flush(&mut patience(AGES)).unwrap();
    assert_eq!((tx.frames.sent.len(), tx.counts.refused.load(Relaxed)), (3, 1));
}

#[test]
fn without_an_interface_the_rest_fails_and_nothing_is_lost() {
    let mut tx = tx();
    tx.frames.errors.push_back(libc::ENETDOWN);
    assert_eq!(push(&mut tx, &batch(10, 10)), [(2, 20)], "eight frames wait");
    tx.ledger.check();
    tx.flush(&mut patience(AGES)).unwrap();
    assert_eq!((tx.frames.sent.len(), tx.ledger.free()), (8, 8));
}

#[test]
fn frames_that_never_come_back_are_waited_for_in_vain_and_a_bounded_time() {
    let mut tx = tx();
    tx.frames.keeps = true;
    let mut patience = patience(Duration::from_millis(5));
    assert_eq!(push_with(&mut patience, &mut tx, &batch(10, 10)), [(2, 20)]);
    assert_eq!((tx.ledger.free(), tx.ledger.lent()), (0, 8));
}

#[test]
fn a_wire_that_takes_nothing_is_waited_for_once_a_batch() {
    for keeps in [false, true] {
        let mut tx = tx();
        (tx.frames.keeps, tx.frames.is_full) = (keeps, !keeps);
        let mut patience = patience(Duration::from_millis(5));
        assert_eq!(push_with(&mut patience, &mut tx, &batch(9, 10)), [(1, 10)]);
        assert!(!patience.is_left());
        tx.frames.kicks = 0;
        for _ in 0..50 {
            assert_eq!(push_with(&mut patience, &mut tx, &batch(1, 10)), [(1, 10)]);
        }
        assert_eq!(tx.frames.kicks, 50, "each is tried");
    }
}

#[test]
fn whoever_is_to_stop_waits_for_no_wire() {
    for keeps in [false, true] {
        let mut tx = tx();
        (tx.frames.keeps, tx.frames.is_full) = (keeps, !keeps);
        let stop = Arc::new(StopFlag::new().unwrap());
        let mut patience = Patience::new(Arc::clone(&stop));
        patience.begin(AGES);
        let failures = thread::scope(|threads| {
            let waiting = threads.spawn(|| push_with(&mut patience, &mut tx, &batch(10, 10)));
            stop.raise();
            waiting.join().unwrap()
        });
        assert_eq!(failures, [(2, 20)]);
    }
}

proptest! {
    /// Whatever arrives, and whatever descriptors the kernel makes up, each frame is either its own or held
    /// for the batch at hand, and can be received into again.
    #[test]
    fn receiving_never_leaks_a_frame(
        steps in proptest::collection::vec((0..5u8, any::<u64>(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..120)), 0..200),
    ) {
        let mut rx = rx();
        let good = {
            let mut tx = tx();
            push(&mut tx, &batch(1, 50));
            tx.flush(&mut patience(AGES)).unwrap();
            tx.frames.sent.remove(0)
        };
        let mut inside = 0;
        for (step, start, len, bytes) in steps {
            match step {
                0 => inside += usize::from(rx.frames.arrive(&good)),
                1 => inside += usize::from(rx.frames.arrive(&bytes)),
                2 => {
                    let mut damaged = good.clone();
                    let at = usize::from(len) % damaged.len();
                    damaged[at] ^= start as u8;
                    inside += usize::from(rx.frames.arrive(&damaged));
                }
                // One that was never lent, or lies anywhere: no frame comes with it.
                3 if rx.frames.lent.is_empty() => {}
                3 => {
                    let start = (1 << 20) | start;
                    rx.frames.arrived.push_back(Piece { start, len: u32::from(len) });
                }
                _ => {
                    for index in 0..rx.receive() {
                        let place = rx.arrival(index).place;
                        prop_assert!(place.end <= rx.bytes().len());
                    }
                    inside = 0;
                }
            }
            rx.ledger.check();
            prop_assert_eq!(rx.frames.lent.len() + rx.held.len() + inside, FRAMES as usize);
        }
        rx.receive();
        rx.receive();
        prop_assert_eq!((rx.frames.lent.len(), rx.ledger.lent()), (FRAMES as usize, FRAMES as usize));
    }
}
