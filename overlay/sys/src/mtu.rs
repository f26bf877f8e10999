//! What a socket does about packets that may be larger than the path to their destination takes (`ip(7)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// When packets say that they must not be cut on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DontFragment {
    /// Never: what is larger than the path takes is cut, by us if we know and else on the way.
    Never,
    /// Always, and up to the interface's MTU, whatever is known of the path (Linux 2.6.22).
    Always,
}

/// Decides about the packets of `socket`.
///
/// # Errors
/// None on Linux, for an IPv4 socket.
pub fn set_dont_fragment(socket: BorrowedFd<'_>, when: DontFragment) -> io::Result<()> {
    let value: libc::c_int = match when {
        DontFragment::Never => libc::IP_PMTUDISC_DONT,
        DontFragment::Always => libc::IP_PMTUDISC_PROBE,
    };
    // SAFETY: passes one int, of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The largest packet, in bytes, that the kernel takes the path of a connected socket for.
///
/// # Errors
/// `ENOTCONN`.
pub fn path_mtu(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the length of `value`, and then `len` itself.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.cast_unsigned()) }
}
