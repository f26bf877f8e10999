//! The underlay by `AF_XDP`: what it can carry goes by the rings of a [`Port`], past the
//! kernel's stack; the rest by the sockets that are there all the same.
//!
//! By the sockets go packets to nodes whose next hop is not known yet (which has the kernel find it), those that
//! are larger than the path, and large segments in runs, of which the kernel makes more than the ring does;
//! by them come fragments, and what has come to another interface or a queue without a ring.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::Socket;

use super::frame::{IP_AND_UDP_LEN, Template};
use super::port::{Port, PortState};
use super::rings::{RingCounts, RxQueue, TxQueue};
use super::udp::{UdpReceiver, UdpTransmitter};
use super::{Arrival, Receiver, Transmitter, Unsent, Way};
use crate::MacAddr;
use crate::batch::{Batch, Run};
use crate::sys::wake;
use crate::sys::xdp_prog::Attached;

/// The rings of a port, dealt out to workers.
pub struct Rings {
    mtu: u32,
    mac: MacAddr,
    /// By worker.
    rx: Vec<Vec<RxQueue>>,
    tx: Vec<Arc<Mutex<TxQueue>>>,
    counts: Arc<RingCounts>,
}

impl Rings {
    /// Deals the queues of `port` out to `workers`: each receives by as many as there are for it, none if there
    /// are fewer, and sends by one, which it may share.
    #[must_use]
    pub fn deal(port: Port, workers: usize) -> (Attached, Arc<PortState>, Self) {
        let state = port.state();
        let Port { mtu, mac, rx: all, tx, attached, counts, .. } = port;
        let mut rx: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
        for (index, queue) in all.into_iter().enumerate() {
            rx[index % workers].push(queue);
        }
        (attached, state, Self { mtu, mac, rx, tx, counts })
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
    ) -> io::Result<(Way<UdpTransmitter, XdpTransmitter>, Way<UdpReceiver, XdpReceiver>)> {
        let (queue, counts) = (&self.tx[index % self.tx.len()], &self.counts);
        let transmitter =
            XdpTransmitter::new(Arc::clone(queue), self.mac, self.mtu, Arc::clone(counts), transmitter)?;
        let rings = std::mem::take(&mut self.rx[index]);
        let receiver = XdpReceiver::new(rings, receiver, Arc::clone(counts))?;
        Ok((Way::Rings(transmitter), Way::Rings(receiver)))
    }
}

/// The sending side of one worker.
pub struct XdpTransmitter {
    /// For each lane.
    templates: Vec<Template>,
    queue: Arc<Mutex<TxQueue>>,
    mtu: usize,
    counts: Arc<RingCounts>,
    sockets: UdpTransmitter,
}

impl XdpTransmitter {
    /// Sends by `queue` with the source address `mac`, what fits `mtu`, and otherwise by `sockets`, whose
    /// addresses, TTL and type of service its own frames bear.
    ///
    /// # Errors
    /// A socket cannot be asked.
    fn new(
        queue: Arc<Mutex<TxQueue>>,
        mac: MacAddr,
        mtu: u32,
        counts: Arc<RingCounts>,
        sockets: UdpTransmitter,
    ) -> io::Result<Self> {
        let templates =
            sockets.sockets().iter().map(|socket| template(socket, mac)).collect::<io::Result<_>>()?;
        Ok(Self { templates, queue, mtu: mtu as usize, counts, sockets })
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
        let Self { templates, queue, mtu, counts, sockets } = self;
        let mut waiting = false;
        for (lane, template) in templates.iter_mut().enumerate() {
            let mut runs = batch.runs(lane);
            // A flow's packets keep their order also where they take turns between ring and sockets.
            while let Some(first) = runs.first() {
                let next_hop = next_hop(first, *mtu);
                let same = runs.iter().take_while(|run| next_hop_is(run, *mtu, next_hop)).count().max(1);
                let (now, rest) = runs.split_at(same);
                if let Some(mac) = next_hop {
                    let mut queue = lock(queue);
                    for run in now {
                        queue.push(run, mac, template, batch.bytes(), &mut failed);
                    }
                    waiting = true;
                } else {
                    if std::mem::take(&mut waiting) {
                        let _ = lock(queue).flush();
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
            let _ = lock(queue).flush();
        }
    }
}

/// The next hop of `run`, if it goes by the ring.
fn next_hop(run: &Run, mtu: usize) -> Option<MacAddr> {
    if run.super_packet().is_some() {
        return None;
    }
    let len = IP_AND_UDP_LEN + run.segment_len();
    let limit = run.peer().path_mtu().map_or(mtu, |path| mtu.min(path as usize));
    let by_ring = len <= limit && !(run.count() > 1 && run.segment_len() > LARGE);
    if by_ring { run.peer().next_hop() } else { None }
}

fn next_hop_is(run: &Run, mtu: usize, wanted: Option<MacAddr>) -> bool {
    next_hop(run, mtu) == wanted
}

/// Datagrams longer than this in a run go by the sockets: for them the kernel's one way through its stack for a
/// run counts for more than what the ring spares.
const LARGE: usize = 600;

fn template(socket: &Socket, mac: MacAddr) -> io::Result<Template> {
    let source: SocketAddrV4 =
        socket.local_addr()?.as_socket_ipv4().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let byte = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
    Ok(Template::new(mac, source, byte(socket.ttl_v4()?), byte(socket.tos_v4()?)))
}

fn lock(queue: &Mutex<TxQueue>) -> MutexGuard<'_, TxQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The receiving side of one worker: rings, and a socket.
pub struct XdpReceiver {
    rings: Vec<RxQueue>,
    socket: UdpReceiver,
    /// Which of the rings, or behind them the socket, the last batch is of.
    from: usize,
    counts: Arc<RingCounts>,
    readiness: OwnedFd,
}

impl XdpReceiver {
    /// Receives by `rings` and by `socket`.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    fn new(rings: Vec<RxQueue>, socket: UdpReceiver, counts: Arc<RingCounts>) -> io::Result<Self> {
        let descriptors = rings.iter().map(|ring| ring.frames().socket()).chain([socket.readiness()]);
        let readiness = wake::any_of(descriptors)?;
        let from = rings.len();
        Ok(Self { rings, socket, from, counts, readiness })
    }
}

impl Receiver for XdpReceiver {
    fn receive(&mut self) -> io::Result<usize> {
        let sources = self.rings.len() + 1;
        // Each has its turn, so that none can starve the others.
        for _ in 0..sources {
            self.from = (self.from + 1) % sources;
            let received = match self.rings.get_mut(self.from) {
                Some(ring) => ring.receive(),
                None => self
                    .socket
                    .receive()
                    .inspect(|count| {
                        self.counts.received_by_socket.fetch_add(*count as u64, Relaxed);
                    })
                    .unwrap_or(0),
            };
            if received > 0 {
                return Ok(received);
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
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
