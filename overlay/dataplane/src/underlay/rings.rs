//! The two ends of an `AF_XDP` queue, apart from its sockets: frames are taken, filled or read, and given back, by
//! whatever [`RxFrames`] and [`TxFrames`] do with them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

pub use overlay_sys::xsk::Piece;
use overlay_sys::xsk::{RxSocket, TxSocket};
use overlay_wire::MacAddr;
use overlay_wire::frame::{self, Datagram, Refused, Template};

use super::ledger::Ledger;
use super::{Arrival, Patience, Unsent};
use crate::batch::Run;

/// Packets of a batch: the kernel's own NAPI budget.
const RX_BATCH: usize = 64;
/// A kernel takes at least 32 frames at a call, and says each time that it can take no more: with so many calls all
/// frames of a queue are taken, also by one that gives none back at once.
const TRIES_AT_ONCE: u32 = 64;

/// What has gone by the rings of an interface, over all its queues; added to once a batch.
#[derive(Debug, Default)]
pub struct RingCounts {
    /// Datagrams received.
    pub received: AtomicU64,
    /// Frames handed over by the program that were not whole after all.
    pub malformed: AtomicU64,
    /// Datagrams whose checksum was wrong. (The socket way has the kernel count them, as `UdpInCsumErrors`.)
    pub bad_checksum: AtomicU64,
    /// Datagrams sent.
    pub sent: AtomicU64,
    /// Datagrams that the interface dropped for want of room.
    pub refused: AtomicU64,
    /// Arrivals that came by the sockets all the same: fragments, and queues without a ring.
    pub received_by_socket: AtomicU64,
    /// Datagrams that left by the sockets all the same.
    pub sent_by_socket: AtomicU64,
}

/// Frames that are lent to the kernel, to come back with packets.
pub trait RxFrames {
    /// Gives the frame that begins at `start` away, to be seen at the next [`lent`](Self::lent). Whether there
    /// was room.
    fn lend(&mut self, start: u64) -> bool;
    /// What was given away is seen.
    fn lent(&mut self);
    /// The next packet.
    fn receive(&mut self) -> Option<Piece>;
    /// What was received has been noted.
    fn taken(&mut self);
    /// Looks for packets, where that takes more than waiting.
    fn poll(&mut self) {}
    /// Whether there is something to receive.
    fn is_pending(&mut self) -> bool;
    /// All frames.
    fn memory(&mut self) -> &mut [u8];
}

/// Frames that are lent to the kernel with packets, to come back empty.
pub trait TxFrames {
    /// The `len` bytes at `start`.
    fn frame(&mut self, start: u64, len: u32) -> &mut [u8];
    /// Hands `piece` over, to be sent at the next [`kick`](Self::kick). Whether there was room.
    fn send(&mut self, piece: Piece) -> bool;
    /// Has sent what was handed over; returns whether all of it has been taken.
    ///
    /// # Errors
    /// As [`TxSocket::kick`].
    fn kick(&mut self) -> io::Result<bool>;
    /// Where the next frame begins that has been sent.
    fn completed(&mut self) -> Option<u64>;
}

/// The receiving end of a queue.
pub struct RxQueue<F = RxSocket> {
    frames: F,
    ledger: Ledger,
    local: SocketAddrV4,
    /// Where the frames of the last batch begin.
    held: Vec<u64>,
    /// Its datagrams, with their places in all of the memory.
    arrivals: Vec<Datagram>,
    counts: Arc<RingCounts>,
}

impl<F: RxFrames> RxQueue<F> {
    /// Receives what is for `local` into the frames of `ledger`, all of which are lent at once.
    #[must_use]
    pub fn new(mut frames: F, mut ledger: Ledger, local: SocketAddrV4, counts: Arc<RingCounts>) -> Self {
        while let Some(start) = ledger.hold() {
            ledger.lend(start);
            frames.lend(start);
        }
        frames.lent();
        ledger.show();
        let (held, arrivals) = (Vec::with_capacity(RX_BATCH), Vec::with_capacity(RX_BATCH));
        Self { frames, ledger, local, held, arrivals, counts }
    }

    /// Takes what is there, up to a batch; what the last one left is gone. Returns the number of datagrams.
    pub fn receive(&mut self) -> usize {
        self.give_back();
        if !self.frames.is_pending() {
            self.frames.poll();
        }
        let (mut taken, mut bad_checksum) = (0, 0);
        while taken < RX_BATCH {
            let Some(piece) = self.frames.receive() else { break };
            taken += 1;
            let Some(start) = self.ledger.take_back(piece.start) else { continue };
            self.held.push(start);
            let (from, to) = (piece.start as usize, piece.start as usize + piece.len as usize);
            let parsed = self.frames.memory().get_mut(from..to).map(|bytes| frame::parse(bytes, self.local));
            match parsed {
                Some(Ok(datagram)) => {
                    let place = from + datagram.place.start..from + datagram.place.end;
                    self.arrivals.push(Datagram { place, ..datagram });
                }
                Some(Err(Refused::Checksum)) => bad_checksum += 1,
                Some(Err(Refused::Malformed)) | None => {}
            }
        }
        if taken > 0 {
            self.frames.taken();
            let whole = self.arrivals.len();
            self.counts.received.fetch_add(whole as u64, Relaxed);
            if whole < taken {
                self.counts.bad_checksum.fetch_add(bad_checksum as u64, Relaxed);
                self.counts.malformed.fetch_add((taken - whole - bad_checksum) as u64, Relaxed);
            }
            self.ledger.show();
        }
        self.arrivals.len()
    }

    /// The `index`th datagram of the batch.
    ///
    /// # Panics
    /// If there have not been so many.
    #[must_use]
    pub fn arrival(&self, index: usize) -> Arrival {
        let Datagram { from, ecn, place } = self.arrivals[index].clone();
        Arrival { from: from.into(), ecn, place, segment_len: None, truncated: false }
    }

    /// The memory that the batch lies in.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.frames.memory()
    }

    /// Whether there is something to receive.
    pub fn is_pending(&mut self) -> bool {
        self.frames.is_pending()
    }

    /// What the frames are of.
    #[must_use]
    pub fn frames(&self) -> &F {
        &self.frames
    }

    /// Where each frame is.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn give_back(&mut self) {
        self.arrivals.clear();
        if self.held.is_empty() {
            return;
        }
        for start in self.held.drain(..) {
            self.ledger.lend(start);
            self.frames.lend(start);
        }
        self.frames.lent();
        self.ledger.show();
    }
}

/// The sending end of a queue.
pub struct TxQueue<F = TxSocket> {
    frames: F,
    ledger: Ledger,
    frame_len: u32,
    /// Datagrams handed over since the last count.
    sent: u64,
    counts: Arc<RingCounts>,
}

impl<F: TxFrames> TxQueue<F> {
    /// Sends by the frames of `ledger`, of `frame_len` bytes each.
    #[must_use]
    pub fn new(frames: F, ledger: Ledger, frame_len: u32, counts: Arc<RingCounts>) -> Self {
        ledger.show();
        Self { frames, ledger, frame_len, sent: 0, counts }
    }

    /// Hands the datagrams of `run`, whose slices lie in `bytes`, over as frames to `mac`. They leave at the next
    /// [`flush`](Self::flush), or before if frames run out. What cannot be sent with `patience`, or is not for IPv4 to
    /// carry, is handed to `failed`.
    pub fn push(
        &mut self,
        run: &Run,
        mac: MacAddr,
        template: &mut Template,
        bytes: &[u8],
        patience: &mut Patience,
        failed: &mut impl FnMut(Unsent<'_>),
    ) {
        let SocketAddr::V4(to) = run.to() else {
            let error = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            return failed(Unsent { run, first: 0, count: run.count(), inner_len: run.inner_len(), error });
        };
        for (index, datagram) in run.singly().enumerate() {
            let start = match self.frame(patience) {
                Ok(start) => start,
                Err(error) => {
                    let count = run.count() - index;
                    let inner_len = run.inner_len() * count / run.count();
                    return failed(Unsent { run, first: index, count, inner_len, error });
                }
            };
            let frame = self.frames.frame(start, self.frame_len);
            let slices = datagram.slices.iter().map(|slice| &bytes[slice.start..slice.start + slice.len]);
            let len = template.write(frame, mac, to, run.ecn(), slices) as u32;
            self.ledger.lend(start);
            // There is a place in the ring for each frame.
            self.frames.send(Piece { start, len });
            self.sent += 1;
        }
    }

    /// Has sent what was handed over, waiting while the kernel can take no more.
    ///
    /// # Errors
    /// `ENETDOWN` or `ENXIO` if there is no interface to send by; `EAGAIN` if it takes nothing and `patience` is at its
    /// end. What is left is sent with what comes next.
    pub fn flush(&mut self, patience: &mut Patience) -> io::Result<()> {
        self.counts.sent.fetch_add(std::mem::take(&mut self.sent), Relaxed);
        let mut tries = 0;
        while let Err(error) = self.frames.kick() {
            match error.raw_os_error() {
                // The interface has dropped one; it goes on with the next.
                Some(libc::EBUSY) => _ = self.counts.refused.fetch_add(1, Relaxed),
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => {}
                _ => return Err(error),
            }
            if self.reap() > 0 {
                tries = 0;
            } else if !may_try_again(&mut tries, patience) {
                return Err(error);
            }
        }
        self.reap();
        self.ledger.show();
        Ok(())
    }

    /// A frame to be filled.
    fn frame(&mut self, patience: &mut Patience) -> io::Result<u64> {
        let mut tries = 0;
        loop {
            if let Some(start) = self.ledger.hold() {
                return Ok(start);
            }
            if self.reap() > 0 {
                continue;
            }
            self.flush(patience)?;
            if self.ledger.free() == 0 && !may_try_again(&mut tries, patience) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Frees what has been sent; returns how many frames that was.
    fn reap(&mut self) -> usize {
        let mut count = 0;
        while let Some(start) = self.frames.completed() {
            if let Some(start) = self.ledger.take_back(start) {
                self.ledger.release(start);
                count += 1;
            }
        }
        count
    }
}

/// Gives way to others at first, which costs a busy wire no time; then sleeps, so that a thread of real time leaves
/// its processor to others while a wire takes nothing. Returns whether it is worth a try.
///
/// That a socket can be written to says only that the ring is half empty, not that the wire takes anything.
fn may_try_again(tries: &mut u32, patience: &mut Patience) -> bool {
    *tries += 1;
    if *tries > TRIES_AT_ONCE {
        return patience.pause();
    }
    thread::yield_now();
    patience.is_left()
}

impl RxFrames for RxSocket {
    fn lend(&mut self, start: u64) -> bool {
        self.lend(start)
    }

    fn lent(&mut self) {
        self.lent();
    }

    fn receive(&mut self) -> Option<Piece> {
        self.receive()
    }

    fn taken(&mut self) {
        self.taken();
    }

    fn poll(&mut self) {
        self.poll();
    }

    fn is_pending(&mut self) -> bool {
        self.is_pending()
    }

    fn memory(&mut self) -> &mut [u8] {
        self.memory()
    }
}

impl TxFrames for TxSocket {
    fn frame(&mut self, start: u64, len: u32) -> &mut [u8] {
        self.frame(start, len)
    }

    fn send(&mut self, piece: Piece) -> bool {
        self.send(piece)
    }

    fn kick(&mut self) -> io::Result<bool> {
        self.kick()
    }

    fn completed(&mut self) -> Option<u64> {
        self.completed()
    }
}

#[cfg(test)]
mod tests;
