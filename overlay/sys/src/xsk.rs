//! `AF_XDP` sockets (Linux 4.18; `linux/if_xdp.h`, Documentation/networking/af_xdp.rst): frames of an interface's
//! queue in memory that the kernel and this process share, and the four rings that say whose a frame is.
//!
//! Frames are numbered. The lower ones are for receiving, the others for sending, and the two halves of a
//! socket, [`RxSocket`] and [`TxSocket`], may be used by two threads. Which frame is where, is for
//! their user to know.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much memory a socket shares with the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of a frame: 2048 or 4096. A packet received begins [`HEADROOM`] bytes into it.
    pub frame: u32,
    /// Frames for receiving, a power of two.
    pub receive: u32,
    /// Frames for sending, a power of two.
    pub send: u32,
}

/// What the kernel keeps free in front of a received packet (`XDP_PACKET_HEADROOM`, `linux/bpf.h`).
pub const HEADROOM: u32 = 256;

/// Some bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin, from the first frame on.
    pub start: u64,
    /// How many.
    pub len: u32,
}

/// What the kernel has counted of a socket (`struct xdp_statistics`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Packets lost since there was no frame to receive them in.
    pub no_frame: u64,
    /// Packets lost since the receive ring was full.
    pub ring_full: u64,
    /// Packets lost for other reasons, above all by being longer than a frame.
    pub other: u64,
    /// Descriptors that were wrong; there should be none.
    pub invalid: u64,
}

/// A socket of one queue, its two halves not parted yet.
pub struct Socket {
    /// What receives.
    pub rx: RxSocket,
    /// What sends.
    pub tx: TxSocket,
    /// Whether the card itself reads and writes the frames.
    pub zero_copy: bool,
}

/// The receiving half. No frame is the kernel's yet.
pub struct RxSocket {
    shared: Arc<Shared>,
    fill: Ring<u64>,
    received: Ring<libc::xdp_desc>,
    len: usize,
    polls: bool,
}

/// The sending half.
pub struct TxSocket {
    shared: Arc<Shared>,
    send: Ring<libc::xdp_desc>,
    completed: Ring<u64>,
}

struct Shared {
    // Before the memory: what is closed uses it no more.
    socket: OwnedFd,
    memory: Mapping,
}

/// How a socket is to be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// The card is to read and write the frames itself, or else there is to be no socket.
    ZeroCopy,
    /// The kernel copies.
    Copy,
    /// The former if the driver can.
    Best,
}

impl Socket {
    /// A socket for `queue` of the interface of this index.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`, `ENOBUFS` if the memory exceeds `RLIMIT_MEMLOCK`, `EBUSY` if the queue has a
    /// socket, `EINVAL` if there is no such queue, `EOPNOTSUPP` for zero-copy that the driver cannot.
    pub fn open(interface: u32, queue: u32, sizes: Sizes, binding: Binding) -> io::Result<Self> {
        // SAFETY: takes no pointer; the result is checked.
        let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let frames = sizes.receive as usize + sizes.send as usize;
        let memory = Mapping::anonymous(frames * sizes.frame as usize)?;
        let registration = libc::xdp_umem_reg_v1 {
            addr: memory.start.as_ptr() as u64,
            len: memory.len as u64,
            chunk_size: sizes.frame,
            headroom: 0,
        };
        set(&socket, libc::XDP_UMEM_REG, &registration)?;
        set(&socket, libc::XDP_UMEM_FILL_RING, &sizes.receive)?;
        set(&socket, libc::XDP_UMEM_COMPLETION_RING, &sizes.send)?;
        set(&socket, libc::XDP_RX_RING, &sizes.receive)?;
        set(&socket, libc::XDP_TX_RING, &sizes.send)?;
        let offsets: libc::xdp_mmap_offsets = get(&socket, libc::XDP_MMAP_OFFSETS)?;
        let fill = Ring::map(&socket, &offsets.fr, sizes.receive, libc::XDP_UMEM_PGOFF_FILL_RING as i64)?;
        let completed =
            Ring::map(&socket, &offsets.cr, sizes.send, libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64)?;
        let received = Ring::map(&socket, &offsets.rx, sizes.receive, libc::XDP_PGOFF_RX_RING)?;
        let send = Ring::map(&socket, &offsets.tx, sizes.send, libc::XDP_PGOFF_TX_RING)?;
        // What it may have under way is bounded by its frames. And so many at one call; before Linux 6.17 it
        // is 32.
        let _ = crate::mmsg::force_buffers(socket.as_fd(), 0, SEND_BUFFER);
        let _ = set(&socket, XDP_MAX_TX_SKB_BUDGET, &sizes.send.min(MAX_BUDGET));
        let binding = match binding {
            Binding::ZeroCopy => libc::XDP_ZEROCOPY,
            Binding::Copy => libc::XDP_COPY,
            Binding::Best => 0,
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_USE_NEED_WAKEUP | binding,
            sxdp_ifindex: interface,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: passes an address of the length given.
        check(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        })?;
        let options: libc::xdp_options = get(&socket, libc::XDP_OPTIONS)?;
        let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        // Where the kernel copies, it has nothing to give.
        let polls = zero_copy && busy_poll(&socket).is_ok();
        let shared = Arc::new(Shared { socket, memory });
        Ok(Self {
            rx: RxSocket {
                shared: Arc::clone(&shared),
                fill,
                received,
                len: sizes.receive as usize * sizes.frame as usize,
                polls,
            },
            tx: TxSocket { shared, send, completed },
            zero_copy,
        })
    }
}

impl RxSocket {
    /// Gives the frame that begins at `start` to the kernel, once [`lent`](Self::lent) is called. Whether there
    /// was room: always, for as many frames as there are for receiving.
    #[inline]
    pub fn lend(&mut self, start: u64) -> bool {
        self.fill.push(start)
    }

    /// Lets the kernel see what was given to it.
    #[inline]
    pub fn lent(&mut self) {
        self.fill.publish();
        if self.fill.needs_wakeup() {
            // The driver has run out of frames, and sleeps.
            self.ask();
        }
    }

    /// Has the driver look for packets, on this thread, instead of waiting for when it would by itself.
    pub fn poll(&mut self) {
        if self.polls {
            self.ask();
        }
    }

    /// The call that wakes a driver, and has one that can be polled look for packets.
    fn ask(&self) {
        // SAFETY: receives nothing, into no memory.
        unsafe {
            let none = std::ptr::null_mut();
            libc::recvfrom(
                self.shared.socket.as_raw_fd(),
                none,
                0,
                libc::MSG_DONTWAIT,
                none.cast(),
                none.cast(),
            )
        };
    }

    /// The next packet received. Its frame is ours again, once [`taken`](Self::taken) is called.
    #[inline]
    pub fn receive(&mut self) -> Option<Piece> {
        let descriptor = self.received.pop()?;
        Some(Piece { start: descriptor.addr, len: descriptor.len })
    }

    /// Lets the kernel use the places in the ring again.
    #[inline]
    pub fn taken(&mut self) {
        self.received.publish();
    }

    /// Whether there is something to receive.
    #[inline]
    pub fn is_pending(&mut self) -> bool {
        !self.received.is_empty()
    }

    /// The frames for receiving. Only those that are ours are to be touched.
    #[inline]
    pub fn memory(&mut self) -> &mut [u8] {
        let start = self.shared.memory.start.as_ptr();
        // SAFETY: the mapping lives as long as `self`. These bytes are this half's alone: `TxSocket::frame` keeps
        // out of them, and there is one half of either kind. The kernel writes into frames that were lent to
        // it, which nobody looks at through this reference: the rings say when one is ours again, and its
        // bytes were written before that (`Ring::pop`, acquire).
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }

    /// The socket, to be put into the interface's map, and to sleep on.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

impl TxSocket {
    /// The frame of `len` bytes at `start`, which must be ours.
    ///
    /// # Panics
    /// If it lies outside the frames.
    #[inline]
    pub fn frame(&mut self, start: u64, len: u32) -> &mut [u8] {
        let memory = &self.shared.memory;
        let (start, len) = (start as usize, len as usize);
        assert!(start.checked_add(len).is_some_and(|end| end <= memory.len), "outside the frames");
        // SAFETY: within the mapping, which lives as long as `self`. Frames for sending are given out by one
        // ledger, which knows none of those for receiving; the kernel only reads what was handed to it.
        unsafe { std::slice::from_raw_parts_mut(memory.start.as_ptr().add(start), len) }
    }

    /// Hands `piece` over to be sent, once [`kick`](Self::kick) is called. Whether there was room in the ring.
    #[inline]
    pub fn send(&mut self, piece: Piece) -> bool {
        self.send.push(libc::xdp_desc { addr: piece.start, len: piece.len, options: 0 })
    }

    /// Has the kernel send what was handed over; returns whether it has taken all.
    ///
    /// # Errors
    /// `EAGAIN` when it can take no more at the moment, `EBUSY` if the interface has dropped one, `ENETDOWN` or
    /// `ENXIO` if there is no interface to send by.
    pub fn kick(&mut self) -> io::Result<bool> {
        self.send.publish();
        if self.send.needs_wakeup() && !self.send.is_drained() {
            // SAFETY: sends no bytes, to no address.
            let sent = unsafe {
                let none = std::ptr::null();
                libc::sendto(self.shared.socket.as_raw_fd(), none, 0, libc::MSG_DONTWAIT, none.cast(), 0)
            };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(self.send.is_drained())
    }

    /// Where the next frame begins that has been sent. It is ours again.
    #[inline]
    pub fn completed(&mut self) -> Option<u64> {
        let start = self.completed.pop()?;
        self.completed.publish();
        Some(start)
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

/// Has a call on `socket` poll its driver's queue (Linux 5.11; Documentation/networking/af_xdp.rst), and the driver
/// leave it to that, where the interface's `napi_defer_hard_irqs` and `gro_flush_timeout` say for how long.
fn busy_poll(socket: &OwnedFd) -> io::Result<()> {
    for (option, value) in [(SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, 20), (SO_BUSY_POLL_BUDGET, NAPI_BUDGET)]
    {
        set_at(socket, libc::SOL_SOCKET, option, &value)?;
    }
    Ok(())
}

/// What the kernel has counted of an `AF_XDP` socket.
///
/// # Errors
/// `ENOPROTOOPT` if it is none.
pub fn dropped(socket: BorrowedFd<'_>) -> io::Result<Dropped> {
    let all: libc::xdp_statistics = get(&socket, libc::XDP_STATISTICS)?;
    Ok(Dropped {
        no_frame: all.rx_fill_ring_empty_descs,
        ring_full: all.rx_ring_full,
        other: all.rx_dropped,
        invalid: all.rx_invalid_descs + all.tx_invalid_descs,
    })
}

/// One ring in memory shared with the kernel: of its two indices one is ours to advance.
struct Ring<T> {
    mapping: Mapping,
    offsets: libc::xdp_ring_offset,
    mask: u32,
    /// Our index, which may be ahead of what the kernel sees of it.
    own: u32,
    /// The kernel's, as last seen.
    other: u32,
    /// Whether ours is the producer's.
    produces: bool,
    entries: PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    fn map(
        socket: &OwnedFd,
        offsets: &libc::xdp_ring_offset,
        entries: u32,
        page_offset: i64,
    ) -> io::Result<Self> {
        let len = offsets.desc as usize + entries as usize * size_of::<T>();
        let mapping = Mapping::of(socket, len, page_offset)?;
        let produces =
            page_offset == libc::XDP_PGOFF_TX_RING || page_offset == libc::XDP_UMEM_PGOFF_FILL_RING as i64;
        let (mask, entries) = (entries - 1, PhantomData);
        Ok(Self { mapping, offsets: *offsets, mask, own: 0, other: 0, produces, entries })
    }

    /// Puts `entry` in, unless the ring is full.
    #[inline]
    fn push(&mut self, entry: T) -> bool {
        if self.own.wrapping_sub(self.other) > self.mask {
            self.other = self.index(self.offsets.consumer).load(Ordering::Acquire);
            if self.own.wrapping_sub(self.other) > self.mask {
                return false;
            }
        }
        let at = self.entry(self.own);
        // SAFETY: `entry` gives a place within the mapping, aligned for `T`. The kernel has consumed what was
        // there (acquire, above) and does not look again before the index is published.
        unsafe { at.write(entry) };
        self.own = self.own.wrapping_add(1);
        true
    }

    /// Takes the next entry out, if there is one.
    #[inline]
    fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let at = self.entry(self.own);
        // SAFETY: a place within the mapping, aligned for `T`, any bytes being a valid `T`. The kernel has written
        // it (acquire, in `is_empty`) and leaves it alone until the index is published.
        let entry = unsafe { at.read() };
        self.own = self.own.wrapping_add(1);
        Some(entry)
    }

    #[inline]
    fn is_empty(&mut self) -> bool {
        if self.own == self.other {
            self.other = self.index(self.offsets.producer).load(Ordering::Acquire);
        }
        self.own == self.other
    }

    /// Whether the kernel has consumed all that was published.
    #[inline]
    fn is_drained(&self) -> bool {
        self.index(self.offsets.consumer).load(Ordering::Acquire) == self.own
    }

    /// Lets the kernel see our index.
    #[inline]
    fn publish(&self) {
        let offset = if self.produces { self.offsets.producer } else { self.offsets.consumer };
        self.index(offset).store(self.own, Ordering::Release);
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.index(self.offsets.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    fn index(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: the kernel says that a 32-bit word of the ring lies there, aligned; the mapping is longer than
        // that, lives as long as `self`, and both sides access the word atomically.
        unsafe { self.mapping.start.as_ptr().add(offset as usize).cast::<AtomicU32>().as_ref() }
            .expect("a mapping is not at null")
    }

    #[inline]
    fn entry(&self, index: u32) -> *mut T {
        let first = self.mapping.start.as_ptr().wrapping_add(self.offsets.desc as usize).cast::<T>();
        first.wrapping_add((index & self.mask) as usize)
    }
}

/// Mapped memory.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory that no thread has a claim to; who may touch which part is said where it is done.
unsafe impl Send for Mapping {}
// SAFETY: as above; through a shared reference only its bounds are read.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(-1, len, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE)
    }

    fn of(file: &OwnedFd, len: usize, offset: i64) -> io::Result<Self> {
        Self::map(file.as_raw_fd(), len, offset, libc::MAP_SHARED | libc::MAP_POPULATE)
    }

    fn map(fd: libc::c_int, len: usize, offset: i64, flags: libc::c_int) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: asks for new memory at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd, offset) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if !std::ptr::eq(start.as_ptr().cast::<libc::c_void>(), libc::MAP_FAILED) => {
                Ok(Self { start, len })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

fn set<T>(socket: &impl AsRawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    set_at(socket, libc::SOL_XDP, option, value)
}

fn set_at<T>(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: passes a value of the length given.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), len) })
        .map(drop)
}

fn get<T: Copy>(socket: &impl AsRawFd, option: libc::c_int) -> io::Result<T> {
    // SAFETY: the types asked for are made of integers throughout: all zeros is a valid value of them.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, (&raw mut value).cast(), &raw mut len)
    })?;
    Ok(value)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `linux/if_xdp.h`, Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
// asm-generic/socket.h
const SO_BUSY_POLL: libc::c_int = 46;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
/// Packets of one poll: as many as the kernel's own take.
const NAPI_BUDGET: libc::c_int = 64;
/// Packets of one call: two batches of a worker.
const MAX_BUDGET: u32 = 128;
/// An `sk_buff` of a packet takes up to some 2.5 KiB.
const SEND_BUFFER: usize = 16 << 20;
