//! The options of a socket that are one number, for both families of IP.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An option that each family of IP has under a name of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfFamily {
    /// At the level `SOL_IP`.
    pub v4: libc::c_int,
    /// At the level `SOL_IPV6`.
    pub v6: libc::c_int,
}

impl OfFamily {
    /// Level and name for `socket`.
    fn on(self, socket: BorrowedFd<'_>) -> io::Result<(libc::c_int, libc::c_int)> {
        Ok(match get(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
            libc::AF_INET6 => (libc::SOL_IPV6, self.v6),
            _ => (libc::SOL_IP, self.v4),
        })
    }

    /// Sets it.
    pub fn set(self, socket: BorrowedFd<'_>, value: libc::c_int) -> io::Result<()> {
        let (level, name) = self.on(socket)?;
        set(socket, level, name, value)
    }

    /// Reads it.
    pub fn get(self, socket: BorrowedFd<'_>) -> io::Result<libc::c_int> {
        let (level, name) = self.on(socket)?;
        get(socket, level, name)
    }
}

/// Sets an option.
pub(crate) fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: passes one int, of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option.
pub(crate) fn get(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the length of `value`, and then `len` itself.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
