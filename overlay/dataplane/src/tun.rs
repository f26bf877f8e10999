//! The overlay device: a TUN of several queues, each for one worker in each direction.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::SetupError;
use crate::offload::{Offload, Offloads};

/// A packet as it crosses the device: a virtio header ([`overlay_wire::vnet::LEN`] bytes), then
/// the IP packet.
pub trait Device: Send {
    /// Reads one packet, header first, and returns the length of both; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// What the device has to say; `EBADFD` or `EIO` once it has been deleted.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet, header first, from several places.
    ///
    /// # Errors
    /// `EINVAL` if the kernel does not accept the packet with that header, `EIO` while the device is down.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// What to sleep on until there is something to read.
    fn readiness(&self) -> BorrowedFd<'_>;
}

/// One queue of a TUN device.
#[derive(Debug)]
pub struct TunQueue(File);

impl TunQueue {
    /// A second handle of the same queue, for the worker of the other direction.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device for TunQueue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write_vectored(parts).map(drop)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens `count` queues of the TUN device `name`, those that were `inherited` among them. It is
/// created if need be, down and without address then, and stays when the last queue is closed, until
/// somebody deletes it: so an end of the process, however sudden, costs the packets of a moment, and no route.
/// Of `offloads`, what the kernel does not know is switched off.
///
/// # Errors
/// What failed, and how to mend it.
pub fn open(
    name: &str,
    count: usize,
    offloads: &Offloads,
    mut inherited: Vec<TunQueue>,
) -> Result<Vec<TunQueue>, SetupError> {
    let fail = |call| {
        move |source: io::Error| SetupError { call, object: name.to_owned(), remedy: remedy(&source), source }
    };
    inherited.truncate(count);
    let mut queues = inherited;
    while queues.len() < count {
        let fd = overlay_sys::tun::open_queue(name).map_err(fail("open a queue of the TUN device"))?;
        queues.push(TunQueue(File::from(fd)));
    }
    if let Some(queue) = queues.first() {
        let fd = queue.0.as_fd();
        overlay_sys::tun::set_persistent(fd).map_err(fail("keep the TUN device"))?;
        overlay_sys::tun::set_queue_len(name, QUEUE_LEN)
            .map_err(fail("size the queues of the TUN device"))?;
        let set = |tso, uso| overlay_sys::tun::set_offloads(fd, tso, uso);
        if offloads.is_on(Offload::Uso) && set(offloads.is_on(Offload::Tso), true).is_err() {
            offloads.switch_off(Offload::Uso);
        }
        if !offloads.is_on(Offload::Uso) && set(offloads.is_on(Offload::Tso), false).is_err() {
            offloads.switch_off(Offload::Tso);
            set(false, false).map_err(fail("switch off the offloads of the TUN device"))?;
        }
    }
    Ok(queues)
}

/// A descriptor from an earlier process as a queue, with its device's name; given back if it is none of
/// the kind that [`open`] opens.
///
/// # Errors
/// The descriptor.
pub fn inherit(fd: OwnedFd) -> Result<(String, TunQueue), OwnedFd> {
    match overlay_sys::tun::device_of(fd.as_fd()) {
        Some(device) => Ok((device, TunQueue(File::from(fd)))),
        None => Err(fd),
    }
}

/// Packets that a queue holds while nobody reads it: those of 400 ms at 10,000 a second, in which a new
/// process takes over also on a machine that has other things to do. The kernel's 500 are too few for
/// that, and many more would only make senders wait where the wire is slower than they are.
const QUEUE_LEN: u16 = 4000;

/// Has each flow always read from the same queue. By itself, the kernel moves a flow to the queue
/// that its answers are written to, and packets read from two queues overtake each other.
///
/// # Errors
/// The kernel has no BPF, or does not let us use it. Flows can be reordered then, once each.
pub fn steer_by_flow(queues: &[TunQueue]) -> io::Result<()> {
    match queues {
        [] | [_] => Ok(()),
        [queue, ..] => overlay_sys::bpf::steer(queue.0.as_fd(), overlay_sys::bpf::load_steering()?.as_fd()),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::ENOTTY) => {
            "/dev/net/tun is missing: load the kernel module 'tun', or give the container that device"
        }
        Some(libc::EPERM | libc::EACCES) => "run with CAP_NET_ADMIN, for instance as root",
        Some(libc::EBUSY) => "another process has this device open: stop it, or name another network",
        Some(libc::EINVAL | libc::EEXIST) => {
            "a device of this name and another kind exists (left by flanneld?): remove it with 'ip link delete'"
        }
        Some(libc::E2BIG) => "ask for fewer queues",
        _ => "see the kernel log",
    }
}
