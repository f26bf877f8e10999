//! The underlay by `AF_XDP`: what it can carry goes by the rings of a [`Port`], past the
//! kernel's stack; the rest by the sockets that are there all the same.
//!
//! By the sockets go packets to nodes whose next hop is not known yet (which has the kernel find it), packets that are
//! larger than the path, packets over IPv6, and large segments in runs, of which the kernel makes more than the ring does.
//! By them come fragments, and what has come to another interface or a queue without a ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use overlay_sys::wake;
use overlay_sys::xdp_prog::Attached;
use overlay_wire::MacAddr;
use overlay_wire::frame::Template;
use overlay_wire::outer;

use super::port::{Port, PortState};
use super::rings::{RingCounts, RxQueue, TxQueue};
use super::udp::{self, UdpReceiver, UdpTransmitter};
use super::{Arrival, Receiver, Transmitter, Underlay, Unsent};
use crate::batch::{Batch, Run};

/// The rings of a port, dealt out to workers.
pub struct Rings {
    by: By,
    mac: MacAddr,
    /// By worker.
    rx: Vec<Vec<RxQueue>>,
    tx: Vec<Arc<Mutex<TxQueue>>>,
    /// Workers that have not found their socket empty yet.
    behind: Arc<AtomicUsize>,
    counts: Arc<RingCounts>,
}

impl Rings {
    /// Deals the queues of `port` out to `workers`: each receives by as many as there are for it, none if there
    /// are fewer, and sends by one, which it may share.
    #[must_use]
    pub fn deal(port: Port, workers: usize) -> (Attached, Arc<PortState>, Self) {
        let state = port.state();
        let Port { mtu, mac, rx: all, tx, attached, counts, .. } = port;
        let by = By { mtu: mtu as usize, copies: !state.zero_copy };
        let mut rx: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
        for (index, queue) in all.into_iter().enumerate() {
            rx[index % workers].push(queue);
        }
        (attached, state, Self { by, mac, rx, tx, behind: Arc::new(AtomicUsize::new(workers)), counts })
    }

    /// The two directions of the `index`th worker, by its rings and these sockets.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    ///
    /// # Panics
    /// If there are not so many workers.
    pub fn join(
        &mut self,
        index: usize,
        transmitter: UdpTransmitter,
        receiver: UdpReceiver,
    ) -> io::Result<(Underlay<UdpTransmitter, XdpTransmitter>, Underlay<UdpReceiver, XdpReceiver>)> {
        let (queue, counts) = (&self.tx[index % self.tx.len()], &self.counts);
        let transmitter =
            XdpTransmitter::new(Arc::clone(queue), self.mac, self.by, Arc::clone(counts), transmitter)?;
        let rings = std::mem::take(&mut self.rx[index]);
        let receiver = XdpReceiver::new(rings, receiver, Arc::clone(&self.behind), Arc::clone(counts))?;
        Ok((Underlay::Rings(transmitter), Underlay::Rings(receiver)))
    }
}

/// The sending side of one worker.
pub struct XdpTransmitter {
    /// For each lane.
    templates: Vec<Template>,
    queue: Arc<Mutex<TxQueue>>,
    by: By,
    counts: Arc<RingCounts>,
    sockets: UdpTransmitter,
}

/// What decides which of two ways a run goes.
#[derive(Debug, Clone, Copy)]
struct By {
    /// The interface's.
    mtu: usize,
    /// Whether the kernel makes a packet of its own of each frame.
    copies: bool,
}

impl XdpTransmitter {
    /// Sends by `queue` with the source address `mac` what goes `by` it, and all else by `sockets`. The outer
    /// headers are the same.
    ///
    /// # Errors
    /// A socket cannot be asked.
    fn new(
        queue: Arc<Mutex<TxQueue>>,
        mac: MacAddr,
        by: By,
        counts: Arc<RingCounts>,
        sockets: UdpTransmitter,
    ) -> io::Result<Self> {
        let template = |lane| Ok(Template::new(mac, udp::outer(lane)?));
        let templates = sockets.sockets().iter().map(template).collect::<io::Result<_>>()?;
        Ok(Self { templates, queue, by, counts, sockets })
    }
}

impl Transmitter for XdpTransmitter {
    fn lanes(&self) -> usize {
        self.templates.len()
    }

    fn takes_super_packets(&self) -> bool {
        self.sockets.takes_super_packets()
    }

    fn transmit(&mut self, batch: &Batch, mut failed: impl FnMut(Unsent<'_>)) {
        let Self { templates, queue, by, counts, sockets } = self;
        sockets.begin();
        let mut waiting = false;
        for (lane, template) in templates.iter_mut().enumerate() {
            let mut runs = batch.runs(lane);
            // A flow's packets keep their order also where they take turns between ring and sockets.
            while let Some(first) = runs.first() {
                let next_hop = by.next_hop(first);
                let same = runs.iter().take_while(|run| by.next_hop(run) == next_hop).count().max(1);
                let (now, rest) = runs.split_at(same);
                if let Some(mac) = next_hop {
                    let mut queue = lock(queue);
                    for run in now {
                        queue.push(run, mac, template, batch.bytes(), sockets.patience(), &mut failed);
                    }
                    waiting = true;
                } else {
                    if std::mem::take(&mut waiting) {
                        let _ = lock(queue).flush(sockets.patience());
                    }
                    let datagrams: usize = now.iter().map(Run::count).sum();
                    counts.sent_by_socket.fetch_add(datagrams as u64, Relaxed);
                    sockets.send(lane, now, batch, &mut failed);
                }
                runs = rest;
            }
        }
        if waiting {
            // What is not sent now, is with what comes next; or it is lost with the interface, which the
            // control plane sees.
            let _ = lock(queue).flush(sockets.patience());
        }
    }
}

impl By {
    /// The next hop of `run`, if it goes by the ring. The frames there are of IPv4.
    fn next_hop(self, run: &Run) -> Option<MacAddr> {
        if run.super_packet().is_some() || run.to().is_ipv6() {
            return None;
        }
        let len = outer::LEN + run.segment_len();
        let limit = run.peer().path_mtu().map_or(self.mtu, |path| self.mtu.min(path as usize));
        let by_ring = len <= limit && !self.is_better_sent_whole(run);
        if by_ring { run.peer().next_hop() } else { None }
    }

    /// Whether the kernel's one way through its stack for all of a run counts for more than what the ring spares.
    fn is_better_sent_whole(self, run: &Run) -> bool {
        if self.copies { run.count() >= MANY } else { run.count() > 1 && run.segment_len() > LARGE }
    }
}

/// Where the kernel copies, it makes a packet of each frame, and sends each with a soft interrupt of its own: a run of
/// so many is better off in one piece, however short its datagrams are.
const MANY: usize = 4;
/// Where the card reads the frames itself, only long datagrams are, in bytes. (A guess: with no such card at hand it
/// was not measured.)
const LARGE: usize = 600;

fn lock(queue: &Mutex<TxQueue>) -> MutexGuard<'_, TxQueue> {
    // Taken for each batch: parking_lot's hands over what is contended, which was not measured here.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While the rings have something, the socket, by which little comes, is looked at after so many batches: in vain,
/// that costs as much as some packets.
const BEFORE_SOCKET: u32 = 16;

/// The receiving side of one worker: rings, and a socket.
pub struct XdpReceiver {
    rings: Vec<RxQueue>,
    socket: UdpReceiver,
    /// Which of the rings, or behind them the socket, the last batch is of.
    from: usize,
    /// The ring that was looked at last.
    turn: usize,
    /// Batches of the rings since the socket was looked at.
    batches: u32,
    /// Until the sockets of all workers are found empty.
    begins: Option<Begins>,
    counts: Arc<RingCounts>,
    readiness: OwnedFd,
}

/// The beginning of one worker among several.
struct Begins {
    /// Workers that have not found their socket empty yet.
    others: Arc<AtomicUsize>,
    /// Whether this one has.
    is_drained: bool,
    /// Since when.
    since: Option<Instant>,
    /// When the socket last had something.
    had: Option<Instant>,
}

impl Begins {
    fn new(others: Arc<AtomicUsize>) -> Self {
        Self { others, is_drained: false, since: None, had: None }
    }

    /// Notes at `now` whether the socket has something; returns whether the rings may begin: every worker's socket
    /// has been quiet for long enough, or this has taken too long for the rings to wait any more.
    fn note(&mut self, now: Instant, has_something: bool) -> bool {
        let since = *self.since.get_or_insert(now);
        let had = *self.had.get_or_insert(now);
        if has_something {
            self.had = Some(now);
        } else if !self.is_drained && now - had >= QUIET {
            self.is_drained = true;
            self.others.fetch_sub(1, Relaxed);
        }
        now - since > PATIENCE || (!has_something && self.others.load(Relaxed) == 0)
    }
}

/// What came before there was a program may still be in the kernel's queues, behind a soft interrupt that waits for a
/// processor. A socket that has nothing for so long gets no more of it.
const QUIET: Duration = Duration::from_millis(4);
/// Long for a thread to be started in, short for packets to wait.
const PATIENCE: Duration = Duration::from_millis(100);
/// Until a socket is looked at again. The worker sleeps meanwhile: before soft interrupts by its priority, it would
/// keep off what it waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl XdpReceiver {
    /// Receives by `rings` and by `socket`.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    fn new(
        rings: Vec<RxQueue>,
        socket: UdpReceiver,
        others: Arc<AtomicUsize>,
        counts: Arc<RingCounts>,
    ) -> io::Result<Self> {
        let descriptors = rings.iter().map(|ring| ring.frames().socket()).chain([socket.readiness()]);
        let readiness = wake::any_of(descriptors)?;
        let from = rings.len();
        let begins = Some(Begins::new(others));
        Ok(Self { rings, socket, from, turn: 0, batches: 0, begins, counts, readiness })
    }
}

impl XdpReceiver {
    /// What the socket has, if it has something.
    fn by_socket(&mut self) -> Option<usize> {
        self.batches = 0;
        let received = self.socket.receive().ok().filter(|count| *count > 0)?;
        self.from = self.rings.len();
        self.counts.received_by_socket.fetch_add(received as u64, Relaxed);
        Some(received)
    }

    /// What the next ring that has something has.
    fn by_ring(&mut self) -> Option<usize> {
        self.batches += 1;
        for _ in 0..self.rings.len() {
            // Each has its turn, so that none can starve the others.
            self.turn = (self.turn + 1) % self.rings.len();
            let received = self.rings[self.turn].receive();
            if received > 0 {
                self.from = self.turn;
                return Some(received);
            }
        }
        None
    }
}

impl Receiver for XdpReceiver {
    fn receive(&mut self) -> io::Result<usize> {
        if let Some(mut begins) = self.begins.take() {
            // What has come to the sockets before there was a program is older than what is in the rings, and one
            // worker's socket may have what belongs before another's ring.
            let received = self.by_socket();
            if !begins.note(Instant::now(), received.is_some()) {
                self.begins = Some(begins);
                if received.is_none() {
                    thread::sleep(LOOK_AGAIN);
                }
                return received.ok_or_else(|| io::ErrorKind::WouldBlock.into());
            }
            if let Some(received) = received {
                return Ok(received);
            }
        }
        let received = if self.batches < BEFORE_SOCKET {
            self.by_ring().or_else(|| self.by_socket())
        } else {
            self.by_socket().or_else(|| self.by_ring())
        };
        received.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn arrival(&self, index: usize) -> Arrival {
        match self.rings.get(self.from) {
            Some(ring) => ring.arrival(index),
            None => self.socket.arrival(index),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self.rings.get_mut(self.from) {
            Some(ring) => ring.bytes(),
            None => self.socket.bytes(),
        }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    fn is_pending(&mut self) -> bool {
        self.rings.iter_mut().any(RxQueue::is_pending)
    }
}

#[cfg(test)]
mod tests {
    use overlay_wire::{Format, vnet};

    use super::*;
    use crate::table::tests::{local, peer};
    use crate::table::{PeerTable, Route};

    /// Whether a run of so many datagrams of that length goes by the ring, where the kernel copies and where not.
    fn goes_by_ring(count: usize, len: usize, prepare: impl Fn(&crate::peer_state::PeerState)) -> [bool; 2] {
        let table = PeerTable::new(local(Format::FlannelUdp), vec![peer("10.1.63.0/24", "192.168.199.238")]);
        let Route::Peer(hop) = table.route("10.1.63.2".parse().unwrap()) else { panic!("no route") };
        hop.state.set_next_hop(Some(NEXT_HOP));
        prepare(&hop.state);
        let mut batch = Batch::new(count, 1);
        for _ in 0..count {
            batch.next_read()[vnet::LEN..vnet::LEN + len].fill(0);
            batch.push(0, hop, len);
        }
        let [run] = batch.runs(0) else { panic!("one run") };
        [true, false].map(|copies| match (By { mtu: 1500, copies }).next_hop(run) {
            Some(mac) => mac == NEXT_HOP,
            None => false,
        })
    }

    const NEXT_HOP: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    #[test]
    fn rings_begin_once_every_socket_has_been_quiet_or_too_late() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let others = Arc::new(AtomicUsize::new(2));
        let [mut one, mut two] = [Begins::new(Arc::clone(&others)), Begins::new(others)];
        assert!(!one.note(after(0), false), "nothing yet is not nothing any more");
        assert!(!two.note(after(0), true));
        assert!(!one.note(after(4), false), "the other's socket is not quiet");
        assert!(!two.note(after(3), true));
        assert!(!two.note(after(6), false), "it has been for 3 ms only");
        assert!(two.note(after(7), false) && one.note(after(7), false));

        let mut alone = Begins::new(Arc::new(AtomicUsize::new(1)));
        assert!(!alone.note(after(0), true) && !alone.note(after(100), true));
        assert!(alone.note(after(101), true), "a busy socket keeps the rings waiting for so long only");
    }

    #[test]
    fn what_pays_goes_by_the_ring_if_there_is_a_next_hop_and_it_fits_the_path() {
        assert_eq!(goes_by_ring(1, 64, |_| ()), [true, true]);
        assert_eq!(goes_by_ring(1, 1472, |_| ()), [true, true]);
        assert_eq!(goes_by_ring(1, 1473, |_| ()), [false, false], "it does not fit the interface");
        assert_eq!(goes_by_ring(1, 1400, |peer| peer.set_path_mtu(Some(1400))), [false, false]);
        assert_eq!(goes_by_ring(1, 1300, |peer| peer.set_path_mtu(Some(1400))), [true, true]);
        assert_eq!(goes_by_ring(1, 64, |peer| peer.set_next_hop(None)), [false, false]);
        assert_eq!(goes_by_ring(MANY, 64, |_| ()), [false, true], "many small ones");
        assert_eq!(goes_by_ring(2, LARGE + 1, |_| ()), [true, false], "two long ones");
    }
}
