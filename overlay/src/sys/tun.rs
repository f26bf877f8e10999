//! Opening TUN queues and asking the kernel for their virtio header (`linux/if_tun.h`).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_short};

/// Size of the `virtio_net_hdr_v1` in front of every packet, as set by `TUNSETVNETHDRSZ`.
pub const VNET_HDR_LEN: usize = 12;

/// Opens one queue of the TUN device `name`, non-blocking, with a virtio header of
/// [`VNET_HDR_LEN`] bytes and no offload on reads. Creates the device if there is none.
///
/// # Errors
/// What `/dev/net/tun` or the ioctl said: `EBUSY` if another process holds the queue of a
/// single-queue device, `EINVAL` if `name` belongs to a device that is no multi-queue TUN,
/// `EPERM` without `CAP_NET_ADMIN`, `E2BIG` beyond the kernel's 256 queues.
pub fn open_queue(name: &str) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let fd = OwnedFd::from(file);

    // SAFETY: `ifreq` is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a device name has 1 to {} bytes", request.ifr_name.len() - 1),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;

    let size = VNET_HDR_LEN as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `size` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    // SAFETY: TUNSETOFFLOAD takes its bits by value. None: reads return plain, finished packets.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0) })?;
    Ok(fd)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
