//! Many datagrams a system call: `sendmmsg` and `recvmmsg` (Linux 3.0 and later), each message
//! with a segment size of its own (`UDP_SEGMENT`, Linux 4.18; `UDP_GRO`, 5.0; `linux/udp.h`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sockopt::{self, OfFamily};
use crate::wake::Patience;

/// Bytes of a message, somewhere in the batch's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Offset of the first.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// What one message of a `sendmmsg` is.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Destination address and port.
    pub to: SocketAddr,
    /// The type of service in its IPv4 header, the traffic class in an IPv6 one.
    pub tos: u8,
    /// Its bytes, in order.
    pub slices: &'a [Slice],
    /// Length of the datagrams that the kernel cuts it into; `None` if it is one.
    pub segment_len: Option<u16>,
}

/// An address as the kernel has it, of either family.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

// Both begin with the family.
const _: () = assert!(
    std::mem::offset_of!(libc::sockaddr_in, sin_family) == 0
        && std::mem::offset_of!(libc::sockaddr_in6, sin6_family) == 0
);

impl Name {
    #[inline]
    fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V6(address) => Self {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                },
            },
        }
    }

    #[inline]
    fn is_v6(&self) -> bool {
        // SAFETY: whichever of both was written last, by us or by the kernel, it begins with its family; a name begins
        // as one of the two, so that these bytes are always set.
        let family = unsafe { self.v4.sin_family };
        family == libc::AF_INET6 as libc::sa_family_t
    }

    /// How many bytes of it count.
    #[inline]
    fn len(&self) -> libc::socklen_t {
        let len = if self.is_v6() { size_of::<libc::sockaddr_in6>() } else { size_of::<libc::sockaddr_in>() };
        len as libc::socklen_t
    }

    #[inline]
    fn address(&self) -> SocketAddr {
        if self.is_v6() {
            // SAFETY: that is what it is by its family, and any bytes are valid values of its fields.
            let name = unsafe { self.v6 };
            let (ip, port) = (Ipv6Addr::from(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port));
            SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into()
        } else {
            // SAFETY: as above.
            let name = unsafe { self.v4 };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into()
        }
    }
}

/// The control message that sets the type of service (`IP_TOS`, Linux 3.13) or the traffic class (`IPV6_TCLASS`).
#[repr(C)]
#[derive(Clone, Copy)]
struct TosControl {
    header: libc::cmsghdr,
    tos: libc::c_int,
}

/// The control message that asks for segmentation.
#[repr(C)]
#[derive(Clone, Copy)]
struct SegmentControl {
    header: libc::cmsghdr,
    segment_len: u16,
}

/// Both. A message is given both, one of them, or none.
#[repr(C)]
#[derive(Clone, Copy)]
struct SendControls {
    tos: TosControl,
    segment: SegmentControl,
}

// The second begins where the kernel looks for it behind the first.
const _: () = assert!(
    size_of::<TosControl>().is_multiple_of(align_of::<libc::cmsghdr>())
        && std::mem::offset_of!(SendControls, segment) == size_of::<TosControl>()
);

/// The kernel's arrays for one `sendmmsg`, kept between calls.
pub struct SendArrays {
    patience: Patience,
    names: Box<[Name]>,
    controls: Box<[SendControls]>,
    iovecs: Vec<libc::iovec>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers inside are set anew in every call, before they are used; between calls
// they are never followed.
unsafe impl Send for SendArrays {}

impl SendArrays {
    /// Room for `capacity` messages a call.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let header = |level, kind, value_len: usize| libc::cmsghdr {
            // SAFETY: CMSG_LEN computes a length and touches no memory.
            cmsg_len: unsafe { libc::CMSG_LEN(value_len as u32) } as usize,
            cmsg_level: level,
            cmsg_type: kind,
        };
        let tos = header(libc::SOL_IP, libc::IP_TOS, size_of::<libc::c_int>());
        let segment = header(libc::SOL_UDP, libc::UDP_SEGMENT, size_of::<u16>());
        let control = SendControls {
            tos: TosControl { header: tos, tos: 0 },
            segment: SegmentControl { header: segment, segment_len: 0 },
        };
        Self {
            patience: Patience::default(),
            names: names(capacity),
            controls: vec![control; capacity].into(),
            iovecs: Vec::new(),
            headers: headers(capacity),
        }
    }

    /// Waits while a send buffer is full, as `patience` allows.
    #[must_use]
    pub fn waiting(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// What full buffers may still cost the batch.
    #[inline]
    pub fn patience(&mut self) -> &mut Patience {
        &mut self.patience
    }

    /// Sends the first of `messages`, as many as the kernel takes in one call; at least one.
    /// While the socket's send buffer is full, it waits as long as it may.
    ///
    /// # Errors
    /// The errno of the first message, `EAGAIN` if the buffer stays full. Later ones were not tried then; an
    /// error of a later message shows when it has become the first.
    ///
    /// # Panics
    /// If a message lies outside `bytes`.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        messages: impl Iterator<Item = Outgoing<'a>>,
    ) -> io::Result<usize> {
        self.iovecs.clear();
        let mut count = 0;
        for (i, message) in messages.take(self.headers.len()).enumerate() {
            self.names[i] = Name::of(message.to);
            self.iovecs.extend(message.slices.iter().map(|slice| {
                let bytes = &bytes[slice.start..slice.start + slice.len];
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
            }));
            let header = &mut self.headers[i].msg_hdr;
            header.msg_iovlen = message.slices.len();
            header.msg_controllen = 0;
            let controls = &mut self.controls[i];
            // Without the one in front the list begins at the other.
            header.msg_control = (&raw mut controls.segment).cast();
            if let Some(segment_len) = message.segment_len {
                controls.segment.segment_len = segment_len;
                header.msg_controllen = size_of::<SegmentControl>();
            }
            if message.tos != 0 {
                let tos = &mut controls.tos;
                (tos.header.cmsg_level, tos.header.cmsg_type) = match message.to {
                    SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TOS),
                    SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_TCLASS),
                };
                tos.tos = message.tos.into();
                header.msg_control = (&raw mut *controls).cast();
                header.msg_controllen += size_of::<TosControl>();
            }
            count += 1;
        }
        // Pointers last: the list of slices may have moved while it grew.
        let mut next = self.iovecs.as_mut_ptr();
        for i in 0..count {
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = self.names[i].len();
            header.msg_iov = next;
            next = next.wrapping_add(header.msg_iovlen);
        }
        loop {
            // A blocking call would wait for each message anew, and could not be ended.
            // SAFETY: the first `count` headers point to names, controls and iovecs of `self`, which
            // together cover `self.iovecs` exactly, and these to slices of `bytes`; all outlive the
            // call. sendmmsg writes only `msg_len` of the headers.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    count as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            let Err(error) = usize::try_from(sent).map_err(|_| io::Error::last_os_error()) else {
                return Ok(sent as usize);
            };
            let is_full = error.kind() == io::ErrorKind::WouldBlock;
            if !is_full || !self.patience.await_writable(socket) {
                return Err(error);
            }
        }
    }
}

/// A message that was received: one datagram, or several of one sender and equal length.
#[derive(Debug)]
pub struct Received {
    /// The sender's address and port.
    pub from: SocketAddr,
    /// The type of service or traffic class in its IP header, if [`tell_tos`] asks for it, and else 0.
    pub tos: u8,
    /// Where in the memory of the batch it lies.
    pub place: Range<usize>,
    /// The length of each datagram but the last, if there are several.
    pub segment_len: Option<usize>,
    /// Whether the end was lost for want of room.
    pub truncated: bool,
}

/// Room for the control messages of `UDP_GRO`, an int, of `IP_TOS`, a byte, or `IPV6_TCLASS`, an int, and for another
/// of that size.
type ControlBuffer = [u64; 8];

/// Buffers and the kernel's arrays for one `recvmmsg`, kept between calls.
pub struct RecvBatch {
    bytes: Vec<u8>,
    slot_len: usize,
    names: Box<[Name]>,
    controls: Box<[ControlBuffer]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: as for `SendArrays`.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    /// Buffers for `capacity` messages of at most `len` bytes.
    #[must_use]
    pub fn new(capacity: usize, len: usize) -> Self {
        Self {
            bytes: vec![0; capacity * len],
            slot_len: len,
            names: names(capacity),
            controls: vec![ControlBuffer::default(); capacity].into(),
            iovecs: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; capacity].into(),
            headers: headers(capacity),
        }
    }

    /// Receives what is there, without waiting, and returns how many messages that was.
    ///
    /// # Errors
    /// `EAGAIN` when there is none; otherwise what the socket has to report.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for (i, slot) in self.bytes.chunks_exact_mut(self.slot_len).enumerate() {
            self.iovecs[i] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<Name>() as u32;
            header.msg_control = (&raw mut self.controls[i]).cast();
            header.msg_controllen = size_of::<ControlBuffer>();
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
        }
        // SAFETY: every header points to a name, a control buffer and an iovec of `self`, each
        // iovec to a slot of its own inside `bytes`; all outlive the call, and nothing else
        // borrows them during it.
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

    /// The `index`th message of the last [`receive`](Self::receive).
    ///
    /// # Panics
    /// If `index` is not below the batch's capacity.
    #[inline]
    #[must_use]
    pub fn received(&self, index: usize) -> Received {
        let header = &self.headers[index];
        let len = (header.msg_len as usize).min(self.slot_len);
        let start = index * self.slot_len;
        let (segment_len, tos) = read_controls(&self.controls[index], header.msg_hdr.msg_controllen);
        Received {
            from: self.names[index].address(),
            tos,
            segment_len,
            place: start..start + len,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }

    /// The memory that the messages lie in.
    #[inline]
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// What `UDP_GRO` and `IP_TOS`, or `IPV6_TCLASS`, say in a control buffer of which the kernel has filled `filled` bytes; a
/// type of service of 0 if it says none.
#[inline]
fn read_controls(control: &ControlBuffer, filled: usize) -> (Option<usize>, u8) {
    const HEADER_LEN: usize = size_of::<libc::cmsghdr>();
    let filled = filled.min(size_of::<ControlBuffer>());
    let (mut segment_len, mut tos, mut at) = (None, 0, 0);
    while at + HEADER_LEN < filled {
        // SAFETY: `at` is a multiple of eight, as the buffer's start is aligned to; it holds a header and, since
        // it ends with a whole word, at least four bytes behind. Any bytes are valid values of these.
        let (header, value) = unsafe {
            let start = control.as_ptr().cast::<u8>().add(at);
            (start.cast::<libc::cmsghdr>().read(), start.add(HEADER_LEN).cast::<[u8; 4]>().read())
        };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let len = usize::try_from(libc::c_int::from_ne_bytes(value)).ok();
                segment_len = len.filter(|len| *len > 0);
            }
            (libc::SOL_IP, libc::IP_TOS) => tos = value[0],
            (libc::SOL_IPV6, libc::IPV6_TCLASS) => tos = libc::c_int::from_ne_bytes(value) as u8,
            _ => {}
        }
        let len = header.cmsg_len.max(HEADER_LEN);
        at = at.saturating_add(len).next_multiple_of(align_of::<libc::cmsghdr>());
    }
    (segment_len, tos)
}

fn names(count: usize) -> Box<[Name]> {
    vec![Name::of(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))); count].into()
}

fn headers(count: usize) -> Box<[libc::mmsghdr]> {
    // SAFETY: `mmsghdr` is integers and raw pointers throughout: all zeros is a valid value of it.
    vec![unsafe { std::mem::zeroed::<libc::mmsghdr>() }; count].into()
}

/// Has `socket` deliver datagrams of one sender and equal length as one message.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.0.
pub fn set_udp_gro(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    sockopt::set(socket, libc::SOL_UDP, libc::UDP_GRO, libc::c_int::from(on))
}

/// Has `socket` tell the type of service, or traffic class, of what it delivers. (What is delivered as one has one:
/// `inet_gro_receive`, net/ipv4/af_inet.c; `ipv6_gro_receive`, net/ipv6/ip6_offload.c.)
///
/// # Errors
/// None on Linux.
pub fn tell_tos(socket: BorrowedFd<'_>) -> io::Result<()> {
    OfFamily { v4: libc::IP_RECVTOS, v6: libc::IPV6_RECVTCLASS }.set(socket, 1)
}

/// Whether `socket` knows `UDP_SEGMENT`: sets it to 0, its default.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 4.18.
pub fn probe_udp_segment(socket: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
}

/// Sets `socket`'s buffers, in bytes, beyond what `net.core.{r,w}mem_max` allows to others.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn force_buffers(socket: BorrowedFd<'_>, receive: usize, send: usize) -> io::Result<()> {
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, receive as libc::c_int)?;
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, send as libc::c_int)
}

/// Has `socket` send without checksums: it refuses to segment then, which is what tests want of it.
///
/// # Errors
/// None on Linux.
pub fn set_no_check(socket: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    const FAMILIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    fn socket() -> (UdpSocket, SocketAddr) {
        socket_of(FAMILIES[0])
    }

    fn socket_of(address: IpAddr) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn plain(to: SocketAddr, slices: &[Slice]) -> Outgoing<'_> {
        Outgoing { to, tos: 0, slices, segment_len: None }
    }

    #[test]
    fn a_batch_arrives_in_order_with_its_source() {
        for address in FAMILIES {
            let (sender, from) = socket_of(address);
            let (receiver, to) = socket_of(address);
            let bytes: Vec<u8> = (0..=255).collect();
            let slices = [(0, 10), (10, 1), (11, 200), (250, 5)].map(|(start, len)| Slice { start, len });
            let messages = [plain(to, &slices[..1]), plain(to, &slices[1..2]), plain(to, &slices[2..])];
            let sent = SendArrays::new(8).send(sender.as_fd(), &bytes, messages.into_iter()).unwrap();
            assert_eq!(sent, 3);

            let mut batch = RecvBatch::new(8, 1000);
            assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 3);
            for (i, message) in messages.iter().enumerate() {
                let received = batch.received(i);
                assert_eq!(received.from, from);
                assert_eq!((received.truncated, received.segment_len), (false, None));
                let expected: Vec<u8> =
                    message.slices.iter().flat_map(|s| &bytes[s.start..s.start + s.len]).copied().collect();
                assert_eq!(batch.bytes()[received.place], expected);
            }
            let error = batch.receive(receiver.as_fd()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn one_call_carries_runs_of_different_segment_sizes() {
        for address in FAMILIES {
            let (sender, _) = socket_of(address);
            let (receiver, to) = socket_of(address);
            set_udp_gro(receiver.as_fd(), true).unwrap();
            probe_udp_segment(sender.as_fd()).unwrap();
            let bytes: Vec<u8> = (0..2000u32).map(|i| i as u8).collect();
            let (a, b) = ([Slice { start: 0, len: 950 }], [Slice { start: 950, len: 500 }]);
            let messages = [
                Outgoing { to, tos: 0, slices: &a, segment_len: Some(100) },
                Outgoing { to, tos: 1, slices: &b, segment_len: Some(250) },
            ];
            let sent = SendArrays::new(8).send(sender.as_fd(), &bytes, messages.into_iter()).unwrap();
            assert_eq!(sent, 2);
            let mut batch = RecvBatch::new(8, 2000);
            assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 2);
            let first = batch.received(0);
            assert_eq!((first.place.len(), first.segment_len), (950, Some(100)));
            let second = batch.received(1);
            assert_eq!((&batch.bytes()[second.place], second.segment_len), (&bytes[950..1450], Some(250)));
        }
    }

    #[test]
    fn what_is_said_of_congestion_arrives_and_keeps_runs_apart() {
        for address in FAMILIES {
            let (sender, _) = socket_of(address);
            let (receiver, to) = socket_of(address);
            set_udp_gro(receiver.as_fd(), true).unwrap();
            tell_tos(receiver.as_fd()).unwrap();
            let slices = [Slice { start: 0, len: 300 }];
            let all = [2, 0, 1, 3];
            for segment_len in [None, Some(100)] {
                let messages = all.map(|tos| Outgoing { to, tos, slices: &slices, segment_len });
                let sent = SendArrays::new(8).send(sender.as_fd(), &[7; 300], messages.into_iter()).unwrap();
                assert_eq!(sent, 4);
                let mut batch = RecvBatch::new(8, 2000);
                assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 4);
                for (index, tos) in all.into_iter().enumerate() {
                    let arrival = batch.received(index);
                    let expected = (tos, 300, segment_len.map(usize::from));
                    assert_eq!((arrival.tos, arrival.place.len(), arrival.segment_len), expected);
                }
            }
        }
    }

    #[test]
    fn what_the_other_family_would_have_to_carry_is_an_error_of_that_message_alone() {
        let ((sender, _), (receiver, to)) = (socket(), socket());
        let (_other, foreign) = socket_of(FAMILIES[1]);
        let slices = [Slice { start: 0, len: 5 }];
        let (good, bad) = (plain(to, &slices), plain(foreign, &slices));
        let mut arrays = SendArrays::new(4);
        assert_eq!(arrays.send(sender.as_fd(), &[7; 5], [good, bad, good].into_iter()).unwrap(), 1);
        let error = arrays.send(sender.as_fd(), &[7; 5], [bad, good].into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT));
        assert_eq!(arrays.send(sender.as_fd(), &[7; 5], [good].into_iter()).unwrap(), 1);
        assert_eq!(RecvBatch::new(4, 100).receive(receiver.as_fd()).unwrap(), 2);
    }

    #[test]
    fn a_datagram_longer_than_its_buffer_is_marked() {
        let (sender, _) = socket();
        let (receiver, to) = socket();
        sender.send_to(&[7; 100], to).unwrap();
        let mut batch = RecvBatch::new(1, 60);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 1);
        let received = batch.received(0);
        assert!(received.truncated);
        assert_eq!(received.place.len(), 60);
    }

    #[test]
    fn an_error_belongs_to_the_first_message() {
        let (sender, _) = socket();
        let (receiver, to) = socket();
        let bytes = vec![0; 70_000];
        let (too_long, good) = ([Slice { start: 0, len: 70_000 }], [Slice { start: 0, len: 5 }]);
        let (too_long, good) = (plain(to, &too_long), plain(to, &good));
        let mut arrays = SendArrays::new(4);
        let sent = arrays.send(sender.as_fd(), &bytes, [good, too_long, good].into_iter()).unwrap();
        assert_eq!(sent, 1);
        let error = arrays.send(sender.as_fd(), &bytes, [too_long, good].into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(RecvBatch::new(4, 100).receive(receiver.as_fd()).unwrap(), 1);
    }
}
