//! What a worker does when there is nothing to do: look again for a moment, then sleep.
//!
//! Waking a sleeping thread costs more than forwarding a packet. Between packets that come one
//! after the other a worker therefore stays awake, for a bounded time and giving its processor to
//! whoever else wants it.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::wake::{StopFlag, Woken, wait_readable};

/// How long one worker stays awake.
#[derive(Debug)]
pub struct Idle {
    awake: Duration,
    since: Option<Instant>,
}

impl Idle {
    /// Stays awake for `awake` after the last packet; zero sleeps at once.
    #[must_use]
    pub fn new(awake: Duration) -> Self {
        Self { awake, since: None }
    }

    /// There was something to do.
    pub fn busy(&mut self) {
        self.since = None;
    }

    /// There was nothing to do: returns when to look again, or `Stopped`.
    ///
    /// # Errors
    /// `ENOMEM` from sleeping.
    pub fn wait(&mut self, fd: BorrowedFd<'_>, stop: &StopFlag) -> io::Result<Woken> {
        if !self.awake.is_zero() {
            let now = Instant::now();
            if now - *self.since.get_or_insert(now) < self.awake {
                thread::yield_now();
                return Ok(Woken::Readable);
            }
        }
        self.since = None;
        wait_readable(fd, stop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn it_sleeps_only_after_the_time_to_stay_awake() {
        let (quiet, mut writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        let mut idle = Idle::new(Duration::from_secs(3600));
        for _ in 0..100 {
            // With nothing to read, a sleep would never end.
            assert_eq!(idle.wait(quiet.as_fd(), &stop).unwrap(), Woken::Readable);
        }
        let mut sleeper = Idle::new(Duration::ZERO);
        writer.write_all(b"x").unwrap();
        assert_eq!(sleeper.wait(quiet.as_fd(), &stop).unwrap(), Woken::Readable);
        stop.raise();
        assert_eq!(sleeper.wait(quiet.as_fd(), &stop).unwrap(), Woken::Stopped);
    }
}
