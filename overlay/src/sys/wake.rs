//! Sleeping until a descriptor is readable or somebody says stop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A flag that sleeping threads notice. Once raised it stays so.
#[derive(Debug)]
pub struct StopFlag {
    raised: AtomicBool,
    event: OwnedFd,
}

impl StopFlag {
    /// A flag not raised.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when there is no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointer; the result is checked before it is used.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { raised: AtomicBool::new(false), event })
    }

    /// Whether it is up: for threads that are busy and do not sleep.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Wakes all who sleep on it, now and later.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Relaxed);
        let one = 1u64;
        // SAFETY: writes the eight bytes of `one`. It can only fail with the counter at its
        // maximum, in which case the flag is up already.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// A worker without work shows this often that it is not stuck.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(2);

/// Why [`wait_readable`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// There is something to read, or an error to be fetched by reading; or nothing for so long that
    /// the sleeper is to show that it is alive.
    Readable,
    /// The stop flag is up.
    Stopped,
}

/// Sleeps until `fd` is readable or `stop` is raised, whichever comes first, but not for longer than
/// [`LONGEST_SLEEP`].
///
/// # Errors
/// `ENOMEM` from `poll`; an interrupted call is repeated.
pub fn wait_readable(fd: BorrowedFd<'_>, stop: &StopFlag) -> io::Result<Woken> {
    let entry = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut fds = [entry(fd), entry(stop.event.as_fd())];
    loop {
        // SAFETY: `fds` is an array of two pollfd, both descriptors are open for the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, LONGEST_SLEEP.as_millis() as libc::c_int) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        return Ok(if fds[1].revents != 0 { Woken::Stopped } else { Woken::Readable });
    }
}

/// Sleeps until `fd` takes something to write, but not for longer than `limit`, and not once `stop` is raised.
/// Returns whether it does.
///
/// # Errors
/// `ENOMEM` from `poll`; an interrupted call counts as a sleep that is over.
pub fn wait_writable(fd: BorrowedFd<'_>, stop: &StopFlag, limit: Duration) -> io::Result<bool> {
    let entry = |fd: BorrowedFd<'_>, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let mut fds = [entry(fd, libc::POLLOUT), entry(stop.event.as_fd(), libc::POLLIN)];
    let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `fds` is an array of two pollfd, both descriptors are open for the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), 2, limit) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
    }
    Ok(fds[0].revents != 0 && fds[1].revents == 0)
}

/// A descriptor that is readable while any of `fds` is.
///
/// # Errors
/// `EMFILE` or `ENFILE` when there is no descriptor to be had.
pub fn any_of<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1 takes no pointer; the result is checked before it is used.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    for fd in fds {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the event outlives the call, which reads it.
        let added = unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_wakes_a_sleeper_and_stays_up() {
        let (quiet, _writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        std::thread::scope(|threads| {
            let sleeper = threads.spawn(|| wait_readable(quiet.as_fd(), &stop).unwrap());
            assert!(!stop.is_raised());
            stop.raise();
            assert_eq!(sleeper.join().unwrap(), Woken::Stopped);
        });
        assert_eq!(wait_readable(quiet.as_fd(), &stop).unwrap(), Woken::Stopped);
    }

    #[test]
    fn any_of_several_wakes_a_sleeper() {
        use std::io::Write;
        let (quiet, _writer) = io::pipe().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        writer.write_all(b"x").unwrap();
        let both = any_of([quiet.as_fd(), reader.as_fd()].into_iter()).unwrap();
        assert_eq!(wait_readable(both.as_fd(), &stop).unwrap(), Woken::Readable);
    }

    #[test]
    fn data_wakes_a_sleeper() {
        use std::io::Write;
        let (reader, mut writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        writer.write_all(b"x").unwrap();
        assert_eq!(wait_readable(reader.as_fd(), &stop).unwrap(), Woken::Readable);
    }
}
