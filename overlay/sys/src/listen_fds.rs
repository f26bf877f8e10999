//! Descriptors that the service manager hands over at start (`sd_listen_fds(3)`).

use std::env;
use std::io;
use std::iter;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first of them (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the descriptors that `LISTEN_FDS` tells of, closed on exec from now on, each with its name in
/// `LISTEN_FDNAMES`, which is empty if it has none. None if they are meant for another process, or have been taken before.
///
/// # Errors
/// `EBADF` if one that is told of is not open.
pub fn take() -> io::Result<Vec<(String, OwnedFd)>> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let count = RawFd::try_from(number("LISTEN_FDS").unwrap_or(0)).unwrap_or(0);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(iter::repeat(String::new()));
    (FIRST..FIRST.saturating_add(count)).zip(names).map(|(fd, name)| Ok((name, own(fd)?))).collect()
}

fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes its flag by value, whatever the descriptor.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, was so when the process began, and by the protocol it is for this function's
    // caller, who can come here only once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
