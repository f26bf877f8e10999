//! What a worker does when there is nothing to do: look again for a moment, then sleep.
//!
//! Waking a sleeping thread costs more than forwarding a packet. Between packets that come one
//! after the other a worker therefore stays awake, for a bounded time and giving its processor to
//! whoever else wants it. What others take of it does not count: where the processors are all busy, they
//! would be gone for longer than any worker waits, and each packet would find its worker asleep.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::wake::{StopFlag, Woken, wait_readable};

/// Giving way takes less than a microsecond if nobody else wants the processor.
const GIVEN_WAY: Duration = Duration::from_micros(5);

/// How long one worker stays awake.
#[derive(Debug)]
pub struct Idle {
    awake: Duration,
    since: Option<Instant>,
}

impl Idle {
    /// Stays awake for `awake` of its own time after the last packet; zero sleeps at once.
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
            let since = *self.since.get_or_insert(now);
            if now - since < self.awake {
                thread::yield_now();
                let away = now.elapsed();
                if away > GIVEN_WAY {
                    self.since = Some(since + away);
                }
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
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;
    use crate::sys::affinity;

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

    #[test]
    fn the_time_of_others_does_not_count() {
        const AWAKE: Duration = Duration::from_millis(1);
        let (quiet, _writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        stop.raise();
        let done = AtomicBool::new(false);
        thread::scope(|threads| {
            // One that wants the processor as much as we do, and gives it back after milliseconds.
            threads.spawn(|| {
                affinity::pin_to(0).unwrap();
                while !done.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let waiter = threads.spawn(|| {
                affinity::pin_to(0).unwrap();
                let mut idle = Idle::new(AWAKE);
                let begun = Instant::now();
                let mut woken = Woken::Readable;
                while begun.elapsed() < 20 * AWAKE && woken == Woken::Readable {
                    // It would say that it is to stop if it went to sleep.
                    woken = idle.wait(quiet.as_fd(), &stop).unwrap();
                }
                woken
            });
            let woken = waiter.join();
            done.store(true, Relaxed);
            assert_eq!(woken.unwrap(), Woken::Readable);
        });
    }
}
