//! What a worker does when there is nothing to do: look again for a moment, then sleep.
//!
//! Waking a sleeping thread costs more than forwarding a packet. So a worker stays awake for a bounded time after the
//! last packet. Meanwhile it yields the processor to other threads.
//!
//! The bound is on the worker's own time. The time that other threads take does not count: on a busy host it would use
//! up the whole bound at once, and every packet would have to wake its worker. But after [`LIMIT`] times the bound, with
//! what others have taken, the worker sleeps, because the scheduler prefers a thread that wakes to one that yields. It
//! also tells the [`warden`](crate::warden) that the processors are crowded, and until that is over no worker stays awake.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use overlay_sys::wake::{StopFlag, Woken, wait_readable};

use crate::warden::Place;

/// If it takes longer to give way, somebody else has run. Alone, it takes less than a microsecond, which counts
/// as our own.
const ALONE: Duration = Duration::from_micros(5);
/// With all that others take, a worker stays awake for so many times its own time.
const LIMIT: u32 = 20;

/// How long one worker stays awake.
#[derive(Debug)]
pub struct Idle {
    awake: Duration,
    /// When it first found nothing to do, and how much others have taken since.
    since: Option<(Instant, Duration)>,
    /// Where it stands among the other threads of the host, if somebody cares.
    place: Option<Place>,
}

impl Idle {
    /// Stays awake for `awake` of its own time after the last packet; zero sleeps at once.
    #[must_use]
    pub fn new(awake: Duration) -> Self {
        Self { awake, since: None, place: None }
    }

    /// The calling thread, in this place.
    #[must_use]
    pub fn at(self, place: Option<Place>) -> Self {
        place.iter().for_each(Place::take);
        Self { place, ..self }
    }

    /// There was something to do.
    pub fn busy(&mut self) {
        self.since = None;
        if let Some(place) = &mut self.place {
            place.worked();
        }
    }

    /// There was nothing to do: returns when to look again, or `Stopped`.
    ///
    /// # Errors
    /// `ENOMEM` from sleeping.
    pub fn wait(&mut self, fd: BorrowedFd<'_>, stop: &StopFlag) -> io::Result<Woken> {
        if !self.awake.is_zero() && !self.place.as_ref().is_some_and(Place::is_crowded) {
            let now = Instant::now();
            let (since, others) = *self.since.get_or_insert((now, Duration::ZERO));
            let all = now - since;
            if all < LIMIT * self.awake && all.saturating_sub(others) < self.awake {
                thread::yield_now();
                let away = now.elapsed();
                if away > ALONE {
                    self.since = Some((since, others + away));
                }
                return Ok(Woken::Readable);
            }
            if let Some(place) = self.place.as_ref().filter(|_| all >= LIMIT * self.awake) {
                place.report_crowd();
            }
        }
        self.since = None;
        match &mut self.place {
            Some(place) => place.rest(|| wait_readable(fd, stop)),
            None => wait_readable(fd, stop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use overlay_sys::affinity;

    use super::*;
    use crate::priority::Priority;
    use crate::warden::Warden;

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
    fn the_time_of_others_does_not_count_up_to_a_limit() {
        const AWAKE: Duration = Duration::from_millis(1);
        let (quiet, _writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        stop.raise();
        let warden = Warden::start(&Priority::default(), 1, 1, false).unwrap();
        let (both, done) = (Barrier::new(2), AtomicBool::new(false));
        thread::scope(|threads| {
            // One that wants the processor as much as we do, and gives it back after milliseconds.
            threads.spawn(|| {
                let pinned = affinity::pin_to(0);
                both.wait();
                while pinned.is_ok() && !done.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let waiter = threads.spawn(|| {
                let pinned = affinity::pin_to(0);
                both.wait();
                pinned.unwrap();
                let mut idle = Idle::new(AWAKE).at(Some(warden.place(0)));
                let (begun, own) = (Instant::now(), own_time());
                // It says that it is to stop as soon as it goes to sleep.
                let mut asleep = || idle.wait(quiet.as_fd(), &stop).unwrap() == Woken::Stopped;
                assert!(!asleep());
                let (counting, mut awake_at) = (Instant::now(), Duration::ZERO);
                loop {
                    let at = counting.elapsed();
                    if asleep() {
                        return (awake_at, begun.elapsed(), own_time() - own);
                    }
                    awake_at = at;
                }
            });
            let waited = waiter.join();
            done.store(true, Relaxed);
            let (awake_at, all, own) = waited.unwrap();
            assert!(awake_at < LIMIT * AWAKE, "still awake after {awake_at:?}");
            // The kernel may have let us go on at once each time that we gave way.
            assert!(all >= LIMIT * AWAKE || own >= AWAKE / 2, "asleep after {all:?}, {own:?} of it our own");
            assert!(warden.is_crowded() || own >= AWAKE / 2, "it slept without a word");
        });
    }

    #[test]
    fn where_processors_are_crowded_a_worker_sleeps_at_once() {
        let (quiet, _writer) = io::pipe().unwrap();
        let stop = StopFlag::new().unwrap();
        stop.raise();
        let warden = Warden::start(&Priority::default(), 1, 1, false).unwrap();
        let mut idle = Idle::new(Duration::from_secs(3600)).at(Some(warden.place(0)));
        assert_eq!(idle.wait(quiet.as_fd(), &stop).unwrap(), Woken::Readable);
        warden.place(0).report_crowd();
        // It would say so only from its sleep.
        assert_eq!(idle.wait(quiet.as_fd(), &stop).unwrap(), Woken::Stopped);
    }

    /// The processor time of the calling thread.
    fn own_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    }
}
