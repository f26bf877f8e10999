//! The receiving end of an `AF_XDP` queue, on a kernel that hands over whatever it likes: no frame is ever lost, and
//! what is right comes through.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use etherparse::PacketBuilder;
use overlay::underlay::ledger::Ledger;
use overlay::underlay::rings::{Piece, RingCounts, RxFrames, RxQueue};

use crate::input::Input;
use crate::packets::packet;
use crate::{VXLAN, encapsulation};

const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 12), 8472);
const SENDER: Ipv4Addr = Ipv4Addr::new(192, 168, 199, 238);
const SENDER_PORT: u16 = 51_234;
/// In front of the first, as if they were not the only ones.
const FIRST: u64 = 4096;
const FRAME: u64 = 2048;
const FRAMES: u64 = 16;
const HEADROOM: u64 = 256;
const UDP_CHECKSUM: usize = 40;

/// Runs one input: frames that arrive, or seem to, and batches taken of them.
///
/// # Panics
/// If a frame is lost, or a packet is lost without being counted, or comes through other than it was sent.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kernel, counts) = (Kernel::default(), Arc::<RingCounts>::default());
    let ledger = Ledger::new(FIRST, FRAME as u32, FRAMES as u32);
    let mut queue = RxQueue::new(kernel.clone(), ledger, LOCAL, Arc::clone(&counts));
    let mut model = Model::default();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            kind @ 0..=4 => {
                let (frame, payload) = frame(&mut input, kind);
                let Some(start) = kernel.receive_into(input.byte(), input.byte(), frame.len()) else {
                    continue;
                };
                queue.bytes()[start..start + frame.len()].copy_from_slice(&frame);
                model.arrived.push_back(Arrived { in_frame: true, payload });
            }
            // Of no frame.
            5 => {
                let mut start = u64::from(input.word()) * 3;
                if input.byte() & 1 != 0 {
                    start = u64::MAX - start;
                }
                if (FIRST..FIRST + FRAMES * FRAME).contains(&start) {
                    continue;
                }
                kernel.0.borrow_mut().arrived.push_back(Piece { start, len: u32::from(input.word()) });
                model.arrived.push_back(Arrived { in_frame: false, payload: None });
            }
            _ => model.take(&mut queue),
        }
        queue.ledger().check();
        let held = FRAMES as usize - queue.ledger().lent() - queue.ledger().free();
        assert_eq!(queue.ledger().free(), 0, "a frame that is received into is never at rest");
        let inside = model.arrived.iter().filter(|arrived| arrived.in_frame).count();
        assert_eq!(kernel.0.borrow().lent.len() + inside + held, FRAMES as usize, "a frame is lost");
    }
    while !model.arrived.is_empty() {
        model.take(&mut queue);
    }
    model.take(&mut queue);
    assert_eq!(kernel.0.borrow().lent.len(), FRAMES as usize, "all are the kernel's again");
    assert_eq!(queue.ledger().lent(), FRAMES as usize);
    let counted =
        [&counts.received, &counts.malformed, &counts.bad_checksum].map(|count| count.load(Relaxed));
    assert_eq!(counted.iter().sum::<u64>(), model.taken, "in = out + dropped: {counted:?}");
}

/// A frame for this end, and its payload if it must come through: as it should be, or damaged, or anything.
fn frame(input: &mut Input<'_>, kind: u8) -> (Vec<u8>, Option<Vec<u8>>) {
    if kind == 4 {
        let len = usize::from(input.word()) % 1500;
        return (input.bytes(len).to_vec(), None);
    }
    let mut payload = if input.byte() & 1 != 0 { encapsulation(VXLAN, 4) } else { Vec::new() };
    payload.extend(packet(input, &[SENDER], &[*LOCAL.ip()]));
    payload.truncate(1450);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(SENDER.octets(), LOCAL.ip().octets(), 64)
        .udp(SENDER_PORT, LOCAL.port())
        .write(&mut frame, &payload)
        .expect("write to a vector");
    match kind {
        0 => {}
        1 => frame[UDP_CHECKSUM..UDP_CHECKSUM + 2].fill(0),
        // Padded.
        2 => frame.extend(std::iter::repeat_n(0x55, usize::from(input.byte()))),
        _ => {
            let at = usize::from(input.word()) % frame.len();
            frame[at] ^= input.byte();
            return (frame, None);
        }
    }
    (frame, Some(payload))
}

/// The kernel's end. Clones are the same kernel; the memory is that of the one in the queue.
#[derive(Default)]
struct Kernel(Rc<RefCell<State>>, Vec<u8>);

#[derive(Default)]
struct State {
    lent: VecDeque<u64>,
    arrived: VecDeque<Piece>,
}

impl Clone for Kernel {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0), vec![0; (FIRST + FRAMES * FRAME) as usize])
    }
}

impl Kernel {
    /// Takes one of the frames that were lent for a packet of that length; where the packet begins.
    fn receive_into(&self, which: u8, gap: u8, len: usize) -> Option<usize> {
        let mut state = self.0.borrow_mut();
        let which = usize::from(which) % state.lent.len().max(1);
        let start = state.lent.remove(which)? + HEADROOM + u64::from(gap % 32);
        state.arrived.push_back(Piece { start, len: len as u32 });
        Some(start as usize)
    }
}

impl RxFrames for Kernel {
    fn lend(&mut self, start: u64) -> bool {
        self.0.borrow_mut().lent.push_back(start);
        true
    }

    fn lent(&mut self) {}

    fn receive(&mut self) -> Option<Piece> {
        self.0.borrow_mut().arrived.pop_front()
    }

    fn taken(&mut self) {}

    fn is_pending(&mut self) -> bool {
        !self.0.borrow().arrived.is_empty()
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.1
    }
}

/// What should come of it.
#[derive(Default)]
struct Model {
    /// What was not taken yet.
    arrived: VecDeque<Arrived>,
    taken: u64,
}

struct Arrived {
    in_frame: bool,
    /// That of what must come through.
    payload: Option<Vec<u8>>,
}

impl Model {
    fn take(&mut self, queue: &mut RxQueue<Kernel>) {
        let count = queue.receive();
        let batch = self.arrived.len().min(BATCH);
        self.taken += batch as u64;
        // In order; others may be between them.
        let mut index = 0;
        for wanted in self.arrived.drain(..batch).filter_map(|arrived| arrived.payload) {
            loop {
                assert!(index < count, "a packet is missing, or has changed");
                let arrival = queue.arrival(index);
                index += 1;
                if queue.bytes()[arrival.place] == wanted {
                    assert_eq!(arrival.from, (SENDER, SENDER_PORT).into());
                    break;
                }
            }
        }
        for index in 0..count {
            let place = queue.arrival(index).place;
            assert!(place.start <= place.end && place.end <= queue.bytes().len());
        }
    }
}

const MAX_STEPS: usize = 200;
/// As many as are taken at once.
const BATCH: usize = 64;
