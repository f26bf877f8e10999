//! Many datagrams a system call: `sendmmsg` and `recvmmsg` (Linux 3.0 and later).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A datagram to be sent: where it goes, and where its bytes lie in the batch's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Destination address and port.
    pub to: SocketAddrV4,
    /// Offset of its first byte.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
    /// How many of them are the encapsulation.
    pub header_len: usize,
}

impl Message {
    /// Length of the inner packet in bytes.
    #[must_use]
    pub fn inner_len(&self) -> usize {
        self.len - self.header_len
    }
}

/// The kernel's arrays for one `sendmmsg`, kept between calls.
pub struct SendArrays {
    names: Box<[libc::sockaddr_in]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers inside are set anew in every call, before they are used; between calls
// they are never followed.
unsafe impl Send for SendArrays {}

impl SendArrays {
    /// Room for `capacity` messages a call.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { names: names(capacity), iovecs: iovecs(capacity), headers: headers(capacity) }
    }

    /// Sends the first of `messages`, as many as the kernel takes in one call; at least one.
    /// Blocks, on a blocking socket, while its send buffer is full.
    ///
    /// # Errors
    /// The errno of the first message. Later ones were not tried then; an error of a later
    /// message shows when it has become the first.
    ///
    /// # Panics
    /// If a message lies outside `bytes`.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        messages: impl Iterator<Item = Message>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for (i, message) in messages.take(self.headers.len()).enumerate() {
            let datagram = &bytes[message.start..message.start + message.len];
            self.names[i] = sockaddr(message.to);
            self.iovecs[i] =
                libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            count += 1;
        }
        // SAFETY: the first `count` headers point to names and iovecs of `self`, and these to
        // slices of `bytes`; all outlive the call. sendmmsg writes only `msg_len` of the headers.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count as u32, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Buffers and the kernel's arrays for one `recvmmsg`, kept between calls.
pub struct RecvBatch {
    bytes: Vec<u8>,
    slot_len: usize,
    headroom: usize,
    names: Box<[libc::sockaddr_in]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: as for `SendArrays`.
unsafe impl Send for RecvBatch {}

/// A datagram received, in its buffer.
#[derive(Debug)]
pub struct Received<'a> {
    /// The sender's address and port.
    pub from: SocketAddrV4,
    /// The free room in front, then the datagram up to the end.
    pub buffer: &'a mut [u8],
    /// Whether the datagram was longer than the buffer, and its end is lost.
    pub truncated: bool,
}

impl RecvBatch {
    /// Buffers for `capacity` datagrams of at most `datagram_len` bytes, each with `headroom`
    /// bytes free in front.
    #[must_use]
    pub fn new(capacity: usize, headroom: usize, datagram_len: usize) -> Self {
        let slot_len = headroom + datagram_len;
        Self {
            bytes: vec![0; capacity * slot_len],
            slot_len,
            headroom,
            names: names(capacity),
            iovecs: iovecs(capacity),
            headers: headers(capacity),
        }
    }

    /// Receives what is there, without waiting, and returns how many datagrams that was.
    ///
    /// # Errors
    /// `EAGAIN` when there is none; otherwise what the socket has to report.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let slots = self.bytes.chunks_exact_mut(self.slot_len);
        for (i, slot) in slots.enumerate() {
            let room = &mut slot[self.headroom..];
            self.iovecs[i] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
        }
        // SAFETY: every header points to a name and an iovec of `self`, each iovec to a slot of
        // its own inside `bytes`; all outlive the call, and nothing else borrows them during it.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The `index`th datagram of the last [`receive`](Self::receive).
    ///
    /// # Panics
    /// If `index` is not below the batch's capacity.
    pub fn datagram(&mut self, index: usize) -> Received<'_> {
        let header = &self.headers[index];
        let len = self.headroom + header.msg_len as usize;
        let name = &self.names[index];
        let start = index * self.slot_len;
        Received {
            from: SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)),
                u16::from_be(name.sin_port),
            ),
            buffer: &mut self.bytes[start..start + len.min(self.slot_len)],
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn names(count: usize) -> Box<[libc::sockaddr_in]> {
    vec![sockaddr(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)); count].into()
}

fn iovecs(count: usize) -> Box<[libc::iovec]> {
    vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; count].into()
}

fn headers(count: usize) -> Box<[libc::mmsghdr]> {
    // SAFETY: `mmsghdr` is integers and raw pointers throughout: all zeros is a valid value of it.
    vec![unsafe { std::mem::zeroed::<libc::mmsghdr>() }; count].into()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    fn socket() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    }

    #[test]
    fn a_batch_arrives_in_order_with_its_source() {
        let (sender, from) = socket();
        let (receiver, to) = socket();
        let bytes: Vec<u8> = (0..=255).collect();
        let messages =
            [(0, 10), (10, 1), (11, 200)].map(|(start, len)| Message { to, start, len, header_len: 0 });
        let sent = SendArrays::new(8).send(sender.as_fd(), &bytes, messages.into_iter()).unwrap();
        assert_eq!(sent, 3);

        let mut batch = RecvBatch::new(8, 4, 1000);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 3);
        for (i, message) in messages.iter().enumerate() {
            let received = batch.datagram(i);
            assert_eq!(received.from, from);
            assert!(!received.truncated);
            assert_eq!(received.buffer[4..], bytes[message.start..message.start + message.len]);
        }
        let error = batch.receive(receiver.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_datagram_longer_than_its_buffer_is_marked() {
        let (sender, _) = socket();
        let (receiver, to) = socket();
        sender.send_to(&[7; 100], to).unwrap();
        let mut batch = RecvBatch::new(1, 2, 60);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 1);
        let received = batch.datagram(0);
        assert!(received.truncated);
        assert_eq!(received.buffer.len(), 62);
    }

    #[test]
    fn an_error_belongs_to_the_first_message() {
        let (sender, _) = socket();
        let (receiver, to) = socket();
        let bytes = vec![0; 70_000];
        let too_long = Message { to, start: 0, len: 70_000, header_len: 0 };
        let good = Message { to, start: 0, len: 5, header_len: 0 };
        let mut arrays = SendArrays::new(4);
        let sent = arrays.send(sender.as_fd(), &bytes, [good, too_long, good].into_iter()).unwrap();
        assert_eq!(sent, 1);
        let error = arrays.send(sender.as_fd(), &bytes, [too_long, good].into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(RecvBatch::new(4, 0, 100).receive(receiver.as_fd()).unwrap(), 1);
    }
}
