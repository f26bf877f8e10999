//! Real time for the workers, while they need it and no more than is good for the others.
//!
//! A worker that gives way while it looks for more and has its processor back only a time slice later shares it with
//! somebody who computes: the processors are *crowded*. Then a worker sleeps as soon as there is nothing to do, since
//! giving way costs milliseconds, and has real time, so that it is let go as soon as a packet wakes it, as
//! the kernel's soft interrupts are.
//!
//! Real time is on credit. A worker that has used it up without a pause is *tired* and takes turns with the others
//! for a while. So floods take from ordinary threads what those would get of half the processors, and their fair
//! share of the other half. Only the warden, a thread that sees no packet, can give real time: workers have no
//! privilege.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Builder, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use overlay_sys::priority::{self, OURSELVES, Scheduling};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, gettid, set_capabilities};

use crate::priority::{Priority, REAL_TIME};

/// What workers and warden tell each other.
#[derive(Debug)]
pub struct Crowd {
    crowded: AtomicBool,
    workers: Vec<CachePadded<Standing>>,
    /// How much of its time a worker may have as real time.
    share: f64,
    warden: OnceLock<Thread>,
    over: AtomicBool,
}

/// One worker.
#[derive(Debug, Default)]
struct Standing {
    /// 0 until it has begun.
    thread: AtomicI32,
    real_time: AtomicBool,
    tired: AtomicBool,
}

/// The warden at work; it ends when this is dropped.
#[derive(Debug)]
pub struct Warden {
    crowd: Arc<Crowd>,
    thread: Option<JoinHandle<()>>,
}

impl Warden {
    /// Begins, for so many workers that look for more for so long before they sleep; none where they are to be ordinary
    /// threads. To workers that never look the processors are crowded for ever, for they cannot tell.
    ///
    /// # Errors
    /// The thread is not to be had.
    pub fn of(priority: &Priority, workers: usize, awake: Duration) -> std::io::Result<Option<Self>> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let start = || Self::start(priority, workers, processors, awake.is_zero());
        priority.is_wanted().then(start).transpose()
    }

    pub(crate) fn start(
        priority: &Priority,
        workers: usize,
        processors: usize,
        always: bool,
    ) -> std::io::Result<Self> {
        let crowd = Arc::new(Crowd {
            crowded: AtomicBool::new(always),
            workers: (0..workers).map(|_| CachePadded::default()).collect(),
            share: share(workers, processors),
            warden: OnceLock::new(),
            over: AtomicBool::new(false),
        });
        let (watched, fair) = (Arc::clone(&crowd), priority.fair().filter(|_| priority.real_time()));
        let thread = Builder::new().name("warden".into()).spawn(move || watched.watch(fair, always))?;
        // It has been started just now, so there is none before it.
        let _ = crowd.warden.set(thread.thread().clone());
        Ok(Self { crowd, thread: Some(thread) })
    }

    /// The place of the worker of this number.
    #[must_use]
    pub fn place(&self, index: usize) -> Place {
        Place { crowd: Arc::clone(&self.crowd), index, since: None, used: Duration::ZERO }
    }

    /// Whether the processors are crowded at this moment.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.crowd.crowded.load(Relaxed)
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.crowd.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // If it has panicked, it has said so itself.
            let _ = thread.join();
        }
    }
}

/// A worker's side.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    index: usize,
    /// Since when it has real time and works, if it does.
    since: Option<Instant>,
    /// How much of its credit it has used before.
    used: Duration,
}

impl Place {
    /// The calling thread is this worker.
    pub fn take(&self) {
        self.standing().thread.store(gettid().as_raw_nonzero().get(), Relaxed);
        self.crowd.call();
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.crowd.crowded.load(Relaxed)
    }

    /// Somebody who computes shares the processor.
    pub(crate) fn report_crowd(&self) {
        if !self.crowd.crowded.swap(true, Relaxed) {
            self.crowd.call();
        }
    }

    /// It has worked and goes on.
    pub(crate) fn worked(&mut self) {
        if !self.standing().real_time.load(Relaxed) {
            self.since = None;
            return;
        }
        let now = Instant::now();
        let Some(since) = self.since else {
            (self.since, self.used) = (Some(now), Duration::ZERO);
            return;
        };
        if self.used + (now - since) > CREDIT && !self.standing().tired.swap(true, Relaxed) {
            self.crowd.call();
        }
    }

    /// Runs `sleep`, by which credit comes back.
    pub(crate) fn rest<T>(&mut self, sleep: impl FnOnce() -> T) -> T {
        let Some(since) = self.since.filter(|_| self.standing().real_time.load(Relaxed)) else {
            // It may be given real time while it sleeps, which is then new.
            self.since = None;
            return sleep();
        };
        let asleep = Instant::now();
        let result = sleep();
        let awake = Instant::now();
        let share = self.crowd.share;
        let back = (awake - asleep).mul_f64(share / (1.0 - share));
        self.used = (self.used + (asleep - since)).saturating_sub(back);
        self.since = Some(awake);
        result
    }

    fn standing(&self) -> &Standing {
        &self.crowd.workers[self.index]
    }
}

impl Crowd {
    fn call(&self) {
        if let Some(warden) = self.warden.get() {
            warden.unpark();
        }
    }

    /// The warden's work; `fair` is how workers are scheduled without real time, if they may have that.
    fn watch(&self, fair: Option<Scheduling>, always: bool) {
        // It has to come before those that it watches. What was refused to them is refused to it.
        if fair.is_some() {
            let _ = priority::set(OURSELVES, Scheduling::RealTime { priority: 2 });
        }
        keep_only(CapabilitySet::SYS_NICE);
        let mut course = Course::new(self.workers.len(), self.share, always);
        let mut times = Times::now();
        while !self.over.load(Relaxed) {
            let idle = || {
                let before = std::mem::replace(&mut times, Times::now());
                times.idle_since(&before)
            };
            let tired: Vec<bool> = self.workers.iter().map(|worker| worker.tired.load(Relaxed)).collect();
            let step = course.step(Instant::now(), self.crowded.load(Relaxed), &tired, idle);
            for (worker, real_time) in self.workers.iter().zip(&step.real_time) {
                if let Some(fair) = fair {
                    worker.give(*real_time, fair);
                }
            }
            if step.calm {
                self.crowded.store(false, Relaxed);
            }
            match step.next {
                Some(next) => thread::park_timeout(next.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
    }
}

impl Standing {
    /// Gives or takes real time.
    fn give(&self, real_time: bool, fair: Scheduling) {
        let thread = self.thread.load(Relaxed);
        if thread == 0 || self.real_time.load(Relaxed) == real_time {
            return;
        }
        // One that ends just now needs neither.
        if priority::set(thread, if real_time { REAL_TIME } else { fair }).is_ok() {
            self.real_time.store(real_time, Relaxed);
            if real_time {
                self.tired.store(false, Relaxed);
            }
        }
    }
}

/// How much of its time each of so many workers may have as real time, on so many processors: all together half of
/// the processors, and each no more than half of one.
fn share(workers: usize, processors: usize) -> f64 {
    (processors as f64 / (2 * workers.max(1)) as f64).min(0.5)
}

/// Gives up all other capabilities of the calling thread.
fn keep_only(kept: CapabilitySet) {
    // To have less is never refused.
    if let Ok(held) = capabilities(None) {
        let (effective, permitted) = (held.effective & kept, held.permitted & kept);
        let _ = set_capabilities(
            None,
            CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() },
        );
    }
}

/// Who has real time, and until when.
#[derive(Debug)]
struct Course {
    always: bool,
    /// How long a tired worker rests.
    rest: Duration,
    resting: Vec<Option<Instant>>,
    /// When it is to be seen whether the processors are crowded still.
    look_at: Option<Instant>,
    /// How long it was from the last look to that.
    pause: Duration,
    /// When they were found to be calm last.
    calm_at: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
struct Step {
    /// Who has real time.
    real_time: Vec<bool>,
    /// Whether the processors are crowded no more.
    calm: bool,
    /// When to look again, if nobody calls before.
    next: Option<Instant>,
}

impl Course {
    fn new(workers: usize, share: f64, always: bool) -> Self {
        Self {
            always,
            rest: CREDIT.mul_f64((1.0 - share) / share),
            resting: vec![None; workers],
            look_at: None,
            pause: *PAUSE.start(),
            calm_at: None,
        }
    }

    /// `idle` tells how much of their time the processors had nothing to do since it was called last.
    fn step(&mut self, now: Instant, crowded: bool, tired: &[bool], mut idle: impl FnMut() -> f64) -> Step {
        let mut calm = false;
        let longer = |pause: Duration| (2 * pause).min(*PAUSE.end());
        match self.look_at {
            _ if !crowded || self.always => {}
            None => {
                idle();
                // Whoever is crowded again, as soon as it has been calm, is so for longer.
                let again = self.calm_at.is_some_and(|calm_at| now < calm_at + self.pause);
                self.pause = if again { longer(self.pause) } else { *PAUSE.start() };
                self.look_at = Some(now + self.pause);
            }
            Some(at) if now < at => {}
            Some(_) if idle() >= CALM => {
                (self.look_at, self.calm_at, calm) = (None, Some(now), true);
            }
            Some(_) => {
                self.pause = longer(self.pause);
                self.look_at = Some(now + self.pause);
            }
        }
        let rest = self.rest;
        let rank = |(resting, tired): (&mut Option<Instant>, &bool)| {
            *resting = match *resting {
                None if *tired => Some(now + rest),
                Some(until) if now >= until => None,
                unchanged => unchanged,
            };
            crowded && !calm && resting.is_none()
        };
        let real_time = self.resting.iter_mut().zip(tired).map(rank).collect();
        Step {
            real_time,
            calm,
            next: self.look_at.into_iter().chain(self.resting.iter().flatten().copied()).min(),
        }
    }
}

/// The time of all processors together.
#[derive(Debug, Clone, Copy)]
struct Times {
    idle: u64,
    all: u64,
}

impl Times {
    fn now() -> Self {
        Self::read(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// As `proc_stat(5)` has them, in its first line; guests' time, after the eighth, is in the first already.
    fn read(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let ticks = line.split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = ticks.map(|ticks| ticks.parse().unwrap_or(0)).collect();
        // Idle and waiting for a disk.
        Self { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().sum() }
    }

    /// Which share of the time since then was idle. Where nobody tells, nobody computes.
    fn idle_since(&self, before: &Self) -> f64 {
        match self.all.saturating_sub(before.all) {
            0 => 1.0,
            all => self.idle.saturating_sub(before.idle) as f64 / all as f64,
        }
    }
}

/// How long a worker may have real time without a pause.
const CREDIT: Duration = Duration::from_millis(4);
/// How long the processors count as crowded, before it is looked whether they are, at first and at most.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(8);
/// With so much idle time nobody shares a processor who has a choice.
const CALM: f64 = 0.25;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use overlay_sys::affinity;

    use super::*;
    use crate::priority::Wanted;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn all_workers_together_have_real_time_for_half_of_the_processors() {
        for (workers, processors, each) in [(4, 2, 0.25), (16, 8, 0.25), (2, 8, 0.5), (64, 2, 1.0 / 64.0)] {
            assert!((share(workers, processors) - each).abs() < 1e-9, "{workers} on {processors}");
        }
    }

    #[test]
    fn a_tired_worker_rests_until_its_share_is_kept() {
        let begin = Instant::now();
        let mut course = Course::new(2, 0.25, false);
        let none = || unreachable!("nobody asks for idle time");
        assert_eq!(course.step(begin, false, &[false; 2], none).real_time, [false; 2]);
        assert_eq!(course.step(begin, true, &[false; 2], || 0.0).real_time, [true; 2]);
        let step = course.step(begin + 4 * MS, true, &[true, false], none);
        // A quarter of the time is real: 4 ms, then none for 12.
        assert_eq!((step.real_time, step.next), (vec![false, true], Some(begin + 16 * MS)));
        assert_eq!(course.step(begin + 15 * MS, true, &[true, false], none).real_time, [false, true]);
        assert_eq!(course.step(begin + 16 * MS, true, &[true, false], none).real_time, [true; 2]);
    }

    #[test]
    fn it_is_calm_when_processors_idle_and_seldom_looked_for_while_they_do_not() {
        let begin = Instant::now();
        let mut course = Course::new(1, 0.25, false);
        let mut at = |ms, crowded, idle: f64| course.step(begin + ms * MS, crowded, &[false], || idle);
        assert_eq!(at(0, true, 1.0).next, Some(begin + 500 * MS));
        assert_eq!(at(500, true, 0.1).next, Some(begin + 1500 * MS));
        assert_eq!(at(1500, true, 0.9), Step { real_time: vec![false], calm: true, next: None });
        // Crowded again at once.
        assert_eq!(at(1600, true, 1.0).next, Some(begin + 3600 * MS));
        assert!(at(3600, true, 0.9).calm);
        // And after a while.
        assert_eq!(at(9000, true, 1.0).next, Some(begin + 9500 * MS));
    }

    #[test]
    fn who_never_looks_for_more_is_in_a_crowd_for_ever() {
        let mut course = Course::new(1, 0.25, true);
        let step = course.step(Instant::now(), true, &[false], || unreachable!("it does not matter"));
        assert_eq!(step, Step { real_time: vec![true], calm: false, next: None });
    }

    #[test]
    fn idle_time_is_read_from_the_first_line() {
        let before = Times::read("cpu  10 20 30 400 50 6 7 8 9 9\ncpu0 1 1 1 1\n");
        assert_eq!((before.idle, before.all), (450, 531));
        let after = Times::read("cpu  85 20 30 420 55 6 7 8 9 9\n");
        assert!((after.idle_since(&before) - 0.25).abs() < 1e-9);
        assert!((before.idle_since(&before) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn credit_is_used_by_work_and_comes_back_by_rest() {
        let warden = Warden::start(&Priority::default(), 1, 2, true).unwrap();
        let mut place = warden.place(0);
        place.take();
        let standing = || &place.crowd.workers[0];
        standing().real_time.store(true, Relaxed);
        place.worked();
        assert_eq!(place.used, Duration::ZERO);
        place.since = place.since.map(|since| since - 3 * MS);
        place.worked();
        assert!(!place.standing().tired.load(Relaxed), "3 ms of 4");
        place.rest(|| ());
        assert!(place.used >= 3 * MS, "{:?}", place.used);
        place.since = place.since.map(|since| since - 2 * MS);
        place.worked();
        assert!(place.standing().tired.load(Relaxed), "5 ms of 4");
        place.rest(|| thread::sleep(10 * MS));
        assert!(place.used < 5 * MS, "{:?}", place.used);
        // Without real time nothing is used.
        place.standing().real_time.store(false, Relaxed);
        place.worked();
        assert_eq!(place.since, None);
    }

    #[test]
    fn real_time_that_is_given_to_a_sleeper_counts_from_its_first_work() {
        let warden = Warden::start(&Priority::default(), 1, 2, true).unwrap();
        let mut place = warden.place(0);
        let crowd = Arc::clone(&place.crowd);
        let standing = &crowd.workers[0];
        standing.real_time.store(true, Relaxed);
        place.worked();
        place.since = place.since.map(|since| since - 5 * MS);
        // Taken in its last batch.
        standing.real_time.store(false, Relaxed);
        place.rest(|| standing.real_time.store(true, Relaxed));
        place.worked();
        assert!(!standing.tired.load(Relaxed) && place.used == Duration::ZERO);
    }

    /// By what the kernel says that each has had, however much else runs.
    #[test]
    fn a_flood_leaves_ordinary_threads_more_than_the_kernel_would_save_for_them() {
        let priority = Priority::of(Wanted::RealTime);
        let warden = Warden::start(&priority, 4, 2, true).unwrap();
        let standing = &warden.crowd.workers[0];
        let (done, times) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
        let had = |index: usize| Duration::from_nanos(times[index].load(Relaxed));
        // Both on one processor, and neither ever sleeps.
        let work = |index: usize, mut each: Box<dyn FnMut() + Send>| {
            let pinned = affinity::pin_to(0);
            while pinned.is_ok() && !done.load(Relaxed) {
                each();
                times[index].store(own_time(), Relaxed);
            }
        };
        let tired = AtomicU64::new(0);
        thread::scope(|threads| {
            threads.spawn(|| work(0, Box::new(std::hint::spin_loop)));
            let mut place = warden.place(0);
            threads.spawn(|| {
                priority.enter();
                place.take();
                let (mut real, tired) = (false, &tired);
                work(
                    1,
                    Box::new(move || {
                        place.worked();
                        // It sees each change itself, however late others come to look.
                        let was = std::mem::replace(&mut real, standing.real_time.load(Relaxed));
                        tired.fetch_add(u64::from(was && !real), Relaxed);
                    }),
                );
            });
            while had(0) + had(1) < Duration::from_millis(400) {
                thread::sleep(MS);
            }
            done.store(true, Relaxed);
        });
        let tired = tired.into_inner();
        assert!(tired > 2 || !priority.real_time(), "it was tired {tired} times");
        // Real time for a quarter, and of the rest a quarter for the other one. The kernel keeps a twentieth from
        // real time.
        assert!(10 * had(0) > had(1), "{:?} beside {:?}", had(0), had(1));
    }

    /// The processor time of the calling thread, in nanoseconds.
    fn own_time() -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32).as_nanos() as u64
    }
}
