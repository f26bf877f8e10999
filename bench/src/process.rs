//! What daemons cost, as `/proc` tells it (`proc_pid_stat(5)`, `proc_pid_status(5)`).

use std::fs;
use std::ops::Sub;
use std::time::Duration;

/// The daemons of the subject under measurement, by process id. Empty where the kernel does the work.
#[derive(Debug, Clone, Default)]
pub struct Daemons(pub Vec<u32>);

/// Processor time spent, in user and kernel mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime(Duration);

impl Daemons {
    /// The processor time that they have spent together so far; `None` if there are none, or one
    /// is gone.
    #[must_use]
    pub fn cpu_time(&self) -> Option<CpuTime> {
        let hertz = rustix::param::clock_ticks_per_second();
        let ticks = self.sum(|pid| ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))?;
        Some(CpuTime(Duration::from_secs_f64(ticks as f64 / hertz as f64)))
    }

    /// The memory of the largest of them in bytes; `None` if there are none, or one is gone.
    #[must_use]
    pub fn resident(&self) -> Option<u64> {
        let resident = |pid| resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
        self.0.iter().map(|pid| resident(*pid)).collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    fn sum(&self, of: impl Fn(u32) -> Option<u64>) -> Option<u64> {
        if self.0.is_empty() { None } else { self.0.iter().map(|pid| of(*pid)).sum() }
    }
}

impl CpuTime {
    /// In seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// `utime` and `stime`, fields 14 and 15 of `stat`. The name in the second can hold anything,
/// blanks and parentheses too.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// `VmRSS` of `status`, which is in KiB, in bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_after_the_name_whatever_it_holds() {
        let stat = "42 (a ) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 5 0 100 1 2";
        assert_eq!(ticks(stat), Some(200));
        assert_eq!(ticks("42 (cut) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_has_a_cost_and_none_has_none() {
        let own = Daemons(vec![std::process::id()]);
        assert!(own.resident().is_some_and(|bytes| bytes > 100_000));
        assert!(own.cpu_time().is_some());
        assert_eq!(Daemons::default().cpu_time(), None);
        assert_eq!(Daemons::default().resident(), None);
    }
}
