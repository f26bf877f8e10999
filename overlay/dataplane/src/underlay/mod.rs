//! The way to the wire and back: UDP payloads to and from the other nodes, by sockets ([`udp`]) or by the rings of
//! the interface ([`xdp`]).

pub mod ledger;
pub mod port;
pub mod rings;
pub mod udp;
pub mod whole;
pub mod xdp;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::BorrowedFd;

pub use overlay_sys::wake::Patience;
use overlay_wire::ecn::Ecn;

use crate::batch::{Batch, Run};

/// Sends encapsulated packets.
pub trait Transmitter: Send {
    /// How many lanes there are to send by: each has an outer source port of its own.
    fn lanes(&self) -> usize;

    /// Whether it takes super-packets whole, to peers that do so themselves.
    fn takes_super_packets(&self) -> bool;

    /// Sends all of `batch`, each lane in order, waiting while the kernel's buffers are full. What
    /// cannot be sent is handed to `failed`; the rest goes on.
    fn transmit(&mut self, batch: &Batch, failed: impl FnMut(Unsent<'_>));
}

/// Datagrams that could not be sent.
#[derive(Debug)]
pub struct Unsent<'a> {
    /// The run that they are part of.
    pub run: &'a Run,
    /// The first of them there.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Bytes of inner packets in them.
    pub inner_len: usize,
    /// Why.
    pub error: io::Error,
}

/// UDP payload from the wire: one datagram, or several of one sender and equal length.
#[derive(Debug)]
pub struct Arrival {
    /// The sender's address and port.
    pub from: SocketAddr,
    /// What the outer header says of congestion, the same in all of them.
    pub ecn: Ecn,
    /// Where in the receiver's memory the payloads lie, behind one another.
    pub place: Range<usize>,
    /// The length of each but the last, if there are several.
    pub segment_len: Option<usize>,
    /// Whether the end was lost for want of room.
    pub truncated: bool,
}

/// Receives encapsulated packets.
pub trait Receiver: Send {
    /// Receives what is there, up to a batch, and returns the number of arrivals. What the last batch
    /// left in memory is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; otherwise what the underlay has to report.
    fn receive(&mut self) -> io::Result<usize>;

    /// The `index`th arrival of the last batch.
    ///
    /// # Panics
    /// If there have not been so many.
    fn arrival(&self, index: usize) -> Arrival;

    /// The memory that all arrivals of a batch lie in.
    fn bytes(&mut self) -> &mut [u8];

    /// What to sleep on until there is something to receive.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// Whether something has been received that is lost with this receiver.
    fn is_pending(&mut self) -> bool {
        false
    }
}

/// How datagrams reach the wire, chosen when the workers start.
pub enum Underlay<S, R> {
    /// By sockets alone.
    Sockets(S),
    /// By rings, with sockets beside them.
    Rings(R),
}

impl<S: Transmitter, R: Transmitter> Transmitter for Underlay<S, R> {
    fn lanes(&self) -> usize {
        match self {
            Self::Sockets(sockets) => sockets.lanes(),
            Self::Rings(rings) => rings.lanes(),
        }
    }

    fn takes_super_packets(&self) -> bool {
        match self {
            Self::Sockets(sockets) => sockets.takes_super_packets(),
            Self::Rings(rings) => rings.takes_super_packets(),
        }
    }

    fn transmit(&mut self, batch: &Batch, failed: impl FnMut(Unsent<'_>)) {
        match self {
            Self::Sockets(sockets) => sockets.transmit(batch, failed),
            Self::Rings(rings) => rings.transmit(batch, failed),
        }
    }
}

impl<S: Receiver, R: Receiver> Receiver for Underlay<S, R> {
    fn receive(&mut self) -> io::Result<usize> {
        match self {
            Self::Sockets(sockets) => sockets.receive(),
            Self::Rings(rings) => rings.receive(),
        }
    }

    fn arrival(&self, index: usize) -> Arrival {
        match self {
            Self::Sockets(sockets) => sockets.arrival(index),
            Self::Rings(rings) => rings.arrival(index),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Sockets(sockets) => sockets.bytes(),
            Self::Rings(rings) => rings.bytes(),
        }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        match self {
            Self::Sockets(sockets) => sockets.readiness(),
            Self::Rings(rings) => rings.readiness(),
        }
    }

    fn is_pending(&mut self) -> bool {
        match self {
            Self::Sockets(sockets) => sockets.is_pending(),
            Self::Rings(rings) => rings.is_pending(),
        }
    }
}
