//! The overlay device: a TUN of several queues, each for one worker in each direction.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::SetupError;
use crate::sys;

/// A packet as it crosses the device: a virtio header ([`crate::wire::vnet::LEN`] bytes), then
/// the IP packet.
pub trait Device: Send {
    /// Reads one packet, header first, and returns the length of both; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// What the device has to say; `EBADFD` or `EIO` once it has been deleted.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet, header first.
    ///
    /// # Errors
    /// `EINVAL` if the kernel does not accept the packet with that header, `EIO` while the device is down.
    fn write(&mut self, packet: &[u8]) -> io::Result<()>;

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

impl Device for TunQueue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.write(packet).map(drop)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens `queues` queues of the TUN device `name`, which is created if need be and vanishes with
/// the last of them. It is down and without address at first.
///
/// # Errors
/// What failed, and how to mend it.
pub fn open(name: &str, queues: usize) -> Result<Vec<TunQueue>, SetupError> {
    (0..queues)
        .map(|_| {
            let fd = sys::tun::open_queue(name).map_err(|source| SetupError {
                call: "open a queue of the TUN device",
                object: name.to_owned(),
                remedy: remedy(&source),
                source,
            })?;
            Ok(TunQueue(File::from(fd)))
        })
        .collect()
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
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
