//! The way to the wire and back: UDP payloads to and from the other nodes.

pub mod udp;

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;

use crate::batch::Batch;

/// Sends encapsulated packets.
pub trait Transmitter: Send {
    /// Sends all messages of `batch`, in order, waiting while the kernel's buffers are full.
    /// A message that cannot be sent is handed to `failed` with its index; the rest go on.
    fn transmit(&mut self, batch: &Batch, failed: impl FnMut(usize, io::Error));
}

/// A UDP payload from the wire.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// The sender's address and port.
    pub from: SocketAddrV4,
    /// [`HEADROOM`] bytes to be used freely, then the payload.
    pub buffer: &'a mut [u8],
    /// Whether the end of the payload was lost for want of room.
    pub truncated: bool,
}

/// Free bytes in front of every received payload: room for the virtio header.
pub const HEADROOM: usize = 16;

/// Receives encapsulated packets.
pub trait Receiver: Send {
    /// Hands every payload that is there, up to a batch, to `each`, and returns how many those were.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; otherwise what the underlay has to report.
    fn receive(&mut self, each: impl FnMut(Datagram<'_>)) -> io::Result<usize>;

    /// What to sleep on until there is something to receive.
    fn readiness(&self) -> BorrowedFd<'_>;
}
