//! Where each frame of an `AF_XDP` socket is: every one is in exactly one place, and none is ever lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Frames of one length, behind one another.
#[derive(Debug)]
pub struct Ledger {
    /// Where the first begins.
    first: u64,
    frame_len: u32,
    /// Whose each is.
    places: Box<[Place]>,
    /// Those at rest, the last one to be used first: it is still in the processor's cache.
    free: Vec<u32>,
    lent: usize,
    shown: Arc<Shown>,
}

/// What a ledger shows to other threads: how things stood when it did last.
#[derive(Debug, Default)]
pub struct Shown {
    lent: AtomicUsize,
    free: AtomicUsize,
}

/// How many frames are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    /// The kernel's.
    pub lent: usize,
    /// Nobody's.
    pub free: usize,
}

impl Shown {
    /// How things stood.
    #[must_use]
    pub fn frames(&self) -> Frames {
        Frames { lent: self.lent.load(Relaxed), free: self.free.load(Relaxed) }
    }
}

/// Whose a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nobody's.
    Free,
    /// The kernel's: in one of its rings, or on its way between them.
    Lent,
    /// Ours, in use.
    Held,
}

impl Ledger {
    /// `count` frames of `frame_len` bytes, a power of two, from `first` on; all of them free.
    #[must_use]
    pub fn new(first: u64, frame_len: u32, count: u32) -> Self {
        let places = vec![Place::Free; count as usize].into();
        Self { first, frame_len, places, free: (0..count).rev().collect(), lent: 0, shown: Arc::default() }
    }

    /// Takes a free frame to be used; returns where it begins.
    pub fn hold(&mut self) -> Option<u64> {
        let frame = self.free.pop()?;
        self.places[frame as usize] = Place::Held;
        Some(self.first + u64::from(frame) * u64::from(self.frame_len))
    }

    /// Notes that the frame that begins at `start` and was held is the kernel's now.
    ///
    /// # Panics
    /// If it was not held.
    pub fn lend(&mut self, start: u64) {
        let frame = self.frame(start).filter(|frame| self.places[*frame as usize] == Place::Held);
        self.places[frame.expect("a frame that is held") as usize] = Place::Lent;
        self.lent += 1;
    }

    /// Notes that the kernel has given back the frame around `at`, which is held now; returns where it begins.
    /// `None`, and nothing is changed, if the kernel did not have it.
    pub fn take_back(&mut self, at: u64) -> Option<u64> {
        let frame = self.frame(at).filter(|frame| self.places[*frame as usize] == Place::Lent)?;
        self.places[frame as usize] = Place::Held;
        self.lent -= 1;
        Some(self.first + u64::from(frame) * u64::from(self.frame_len))
    }

    /// Frees the frame that begins at `start` and was held.
    ///
    /// # Panics
    /// If it was not held.
    pub fn release(&mut self, start: u64) {
        let frame = self.frame(start).filter(|frame| self.places[*frame as usize] == Place::Held);
        let frame = frame.expect("a frame that is held");
        self.places[frame as usize] = Place::Free;
        self.free.push(frame);
    }

    /// How many the kernel has.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Shows how things stand, by what [`shown`](Self::shown) returns.
    pub fn show(&self) {
        self.shown.lent.store(self.lent, Relaxed);
        self.shown.free.store(self.free.len(), Relaxed);
    }

    /// What it shows.
    #[must_use]
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// Checks what must always hold, the long way, for tests.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self) {
        let count = |wanted| self.places.iter().filter(|place| **place == wanted).count();
        assert_eq!((count(Place::Free), count(Place::Lent)), (self.free.len(), self.lent));
        let distinct: HashSet<_> = self.free.iter().collect();
        assert_eq!(distinct.len(), self.free.len(), "a frame is free once");
        assert!(self.free.iter().all(|frame| self.places[*frame as usize] == Place::Free));
    }

    fn frame(&self, at: u64) -> Option<u32> {
        let frame = at.checked_sub(self.first)? / u64::from(self.frame_len);
        u32::try_from(frame).ok().filter(|frame| (*frame as usize) < self.places.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_goes_round() {
        let mut ledger = Ledger::new(4096, 2048, 2);
        let (a, b) = (ledger.hold().unwrap(), ledger.hold().unwrap());
        assert_eq!((a, b, ledger.hold()), (4096, 6144, None));
        ledger.lend(a);
        assert_eq!(ledger.take_back(b), None, "it was not lent");
        assert_eq!(ledger.take_back(a + 300), Some(a));
        assert_eq!(ledger.take_back(a), None, "once only");
        ledger.release(a);
        assert_eq!((ledger.free(), ledger.lent()), (1, 0));
        assert_eq!([0, 8192, u64::MAX].map(|at| ledger.take_back(at)), [None; 3], "none of these frames");
        ledger.check();
    }

    proptest! {
        /// Whatever is asked and whatever the kernel gives back, also what it never had, each frame is in
        /// one place, and in the end all can be had again.
        #[test]
        fn no_frame_is_ever_lost(steps in proptest::collection::vec((0..4u8, any::<u64>()), 0..400)) {
            let mut ledger = Ledger::new(1 << 14, 2048, 8);
            let (mut held, mut kernel) = (VecDeque::new(), VecDeque::new());
            for (step, number) in steps {
                match step {
                    0 => held.extend(ledger.hold()),
                    1 => if let Some(start) = held.pop_front() {
                        ledger.lend(start);
                        kernel.push_back(start);
                    },
                    2 => if let Some(start) = held.pop_front() {
                        ledger.release(start);
                    },
                    _ => {
                        let at = match kernel.front() {
                            Some(start) if number % 3 > 0 => start + number % 2048,
                            _ => number % (1 << 16),
                        };
                        let back = ledger.take_back(at);
                        prop_assert_eq!(back.is_some(), kernel.contains(&(at - at % 2048)));
                        kernel.retain(|start| Some(*start) != back);
                        held.extend(back);
                    }
                }
                ledger.check();
                prop_assert_eq!(ledger.free() + held.len() + kernel.len(), 8);
                prop_assert_eq!(ledger.lent(), kernel.len());
            }
            for start in kernel {
                prop_assert_eq!(ledger.take_back(start), Some(start));
                held.push_back(start);
            }
            held.into_iter().for_each(|start| ledger.release(start));
            prop_assert_eq!(ledger.free(), 8);
        }
    }
}
