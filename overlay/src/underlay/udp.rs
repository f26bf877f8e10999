//! The underlay by UDP sockets: a batch is one `sendmmsg` or one `recvmmsg`.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Datagram, HEADROOM, Receiver, Transmitter};
use crate::batch::Batch;
use crate::error::SetupError;
use crate::sys::mmsg::{RecvBatch, SendArrays};

/// Datagrams of one system call. Sixty-four are what UDP GRO and the kernel's own NAPI budget take
/// at a time; more would add delay to the first of them and little to throughput.
pub const BATCH: usize = 64;
/// A virtual wire delivers datagrams as large as UDP allows, whatever its MTU says.
const DATAGRAM_LEN: usize = 65_535;
/// Socket buffers that hold some 2,000 full-sized packets, the burst of a millisecond at 25 Gb/s.
const SOCKET_BUFFER: usize = 4 << 20;

/// Opens `count` sockets that share `address`, among which the kernel spreads what comes in by
/// the sender's address and port.
///
/// # Errors
/// What failed, and how to mend it: above all a port that is taken, be it by a process or by a
/// kernel VXLAN device.
pub fn open(address: SocketAddrV4, count: usize) -> Result<Vec<Socket>, SetupError> {
    let fail = |source: io::Error| SetupError {
        call: "bind the UDP port",
        object: address.to_string(),
        remedy: remedy(&source),
        source,
    };
    // Another overlay daemon on the same port would share it too, and take half of the packets:
    // the port must be free for a socket that shares it with nobody.
    let alone = socket(false).map_err(fail)?;
    alone.bind(&address.into()).map_err(fail)?;
    drop(alone);
    (0..count)
        .map(|_| {
            let socket = socket(true).map_err(fail)?;
            socket.bind(&address.into()).map_err(fail)?;
            Ok(socket)
        })
        .collect()
}

fn socket(shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(shared)?;
    // Granted up to net.core.{r,w}mem_max; a smaller buffer is no error.
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            "the port is taken: see 'ss -ulnp', or 'ip -d link show type vxlan' for a kernel VXLAN device"
        }
        Some(libc::EADDRNOTAVAIL) => "no interface of this host has that address: see --iface",
        Some(libc::EACCES | libc::EPERM) => "run with CAP_NET_BIND_SERVICE, or choose a port above 1023",
        _ => "see the kernel log",
    }
}

/// The sending side of one socket.
pub struct UdpTransmitter {
    socket: Socket,
    arrays: SendArrays,
}

impl UdpTransmitter {
    /// Sends through `socket`, which stays in blocking mode: while its buffer is full, the sender
    /// waits, and the packets behind wait in the overlay device's queue.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        Self { socket, arrays: SendArrays::new(BATCH) }
    }
}

impl Transmitter for UdpTransmitter {
    fn transmit(&mut self, batch: &Batch, mut failed: impl FnMut(usize, io::Error)) {
        let messages = batch.messages();
        let mut next = 0;
        while next < messages.len() {
            let rest = messages[next..].iter().copied();
            match self.arrays.send(self.socket.as_fd(), batch.bytes(), rest) {
                Ok(sent) => next += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed(next, error);
                    next += 1;
                }
            }
        }
    }
}

/// The receiving side of one socket.
pub struct UdpReceiver {
    socket: Socket,
    batch: RecvBatch,
}

impl UdpReceiver {
    /// Receives from `socket`.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        Self { socket, batch: RecvBatch::new(BATCH, HEADROOM, DATAGRAM_LEN) }
    }
}

impl Receiver for UdpReceiver {
    fn receive(&mut self, mut each: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
        let count = self.batch.receive(self.socket.as_fd())?;
        for index in 0..count {
            let received = self.batch.datagram(index);
            each(Datagram { from: received.from, buffer: received.buffer, truncated: received.truncated });
        }
        Ok(count)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn free_address() -> SocketAddrV4 {
        let probe = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, probe.local_addr().unwrap().port())
    }

    #[test]
    fn a_batch_arrives_and_a_bad_message_does_not_stop_it() {
        let address = free_address();
        let receiver = open(address, 1).unwrap().remove(0);
        let mut receiver = UdpReceiver::new(receiver);
        let mut transmitter = UdpTransmitter::new(socket(false).unwrap());
        let mut batch = Batch::new(4);
        let unreachable = SocketAddrV4::new(Ipv4Addr::new(255, 255, 255, 255), 9);
        for (to, byte) in [(address, 1), (unreachable, 2), (address, 3)] {
            batch.next_read()[crate::wire::vnet::LEN] = byte;
            batch.push(to, &[0xee], 1);
        }
        let mut failures = Vec::new();
        transmitter.transmit(&batch, |index, error| failures.push((index, error.raw_os_error())));
        assert_eq!(failures, [(1, Some(libc::EACCES))]);

        let mut payloads = Vec::new();
        let received = receiver.receive(|datagram| payloads.push(datagram.buffer[HEADROOM..].to_vec()));
        assert_eq!(received.unwrap(), 2);
        assert_eq!(payloads, [[0xee, 1], [0xee, 3]]);
    }

    #[test]
    fn a_taken_port_is_an_error_even_if_its_holder_shares() {
        let address = free_address();
        let _holder = open(address, 2).unwrap();
        let error = open(address, 1).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("taken"), "{error}");
    }
}
