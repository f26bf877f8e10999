//! Sleeping until a descriptor is readable or somebody says stop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    #[inline]
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

    /// Sleeps for `limit`, or until it is raised. Returns whether it is.
    fn sleep(&self, limit: Duration) -> bool {
        let mut fds = [libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(limit.subsec_nanos().cast_signed()),
        };
        // SAFETY: `fds` is an array of one pollfd, whose descriptor is open for the call; no signal mask is given.
        unsafe { libc::ppoll(fds.as_mut_ptr(), 1, &raw const limit, std::ptr::null()) };
        self.is_raised()
    }
}

/// For how long a batch waits in all, be it for a wire that takes nothing; by default not at all.
#[derive(Debug, Default)]
pub struct Patience {
    /// Ends any wait.
    stop: Option<Arc<StopFlag>>,
    left: Duration,
}

impl Patience {
    /// Waits, once it [begins](Self::begin), but not while `stop` is raised.
    #[must_use]
    pub fn new(stop: Arc<StopFlag>) -> Self {
        Self { stop: Some(stop), left: Duration::ZERO }
    }

    /// Begins a batch, which may wait for `whole` in all.
    #[inline]
    pub fn begin(&mut self, whole: Duration) {
        self.left = whole;
    }

    /// Whether there is any left.
    #[inline]
    #[must_use]
    pub fn is_left(&self) -> bool {
        !self.left.is_zero() && self.stop.as_ref().is_some_and(|stop| !stop.is_raised())
    }

    /// Sleeps until `fd` takes something to write. Returns whether it does.
    pub fn await_writable(&mut self, fd: BorrowedFd<'_>) -> bool {
        self.spend(|stop, left| wait_writable(fd, stop, left).unwrap_or(false))
    }

    /// Sleeps for a moment, where no descriptor tells when to go on. Returns whether it may be tried again.
    pub fn pause(&mut self) -> bool {
        self.spend(|stop, left| !stop.sleep(PAUSE.min(left)))
    }

    fn spend(&mut self, wait: impl FnOnce(&StopFlag, Duration) -> bool) -> bool {
        let Some(stop) = self.stop.as_ref().filter(|_| !self.left.is_zero()) else { return false };
        let begun = Instant::now();
        let result = wait(stop, self.left);
        self.left = self.left.saturating_sub(begun.elapsed());
        result
    }
}

/// Short beside the time in which a full queue of a network card empties itself.
const PAUSE: Duration = Duration::from_micros(100);

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
