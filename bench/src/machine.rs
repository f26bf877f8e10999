//! The machine that a figure was measured on: without it the figure means nothing.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What was there when the run began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// The processor, as the kernel calls it.
    pub cpu: String,
    /// Processors that this program may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// System and release, as in `Linux 6.18.0 x86_64`.
    pub kernel: String,
    /// The share of its processor time, from 0 to 1, that others took in the half second before
    /// the run or in that after it, whichever was more: what they took meanwhile cannot be told
    /// from the run itself.
    pub busy: f64,
    /// The programs that take part, each with what it says about its version.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// Looks around. `programs` are those that take part, by name and path.
    #[must_use]
    pub fn look(programs: &[(&str, String)]) -> Self {
        let system = rustix::system::uname();
        let word = |word: &std::ffi::CStr| word.to_string_lossy().into_owned();
        Self {
            name: word(system.nodename()),
            cpu: value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into()),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: value("/proc/meminfo", "MemTotal")
                .and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024),
            kernel: format!(
                "{} {} {}",
                word(system.sysname()),
                word(system.release()),
                word(system.machine())
            ),
            busy: busy(),
            versions: programs.iter().map(|(name, path)| ((*name).into(), version(path))).collect(),
        }
    }

    /// Looks again whether others are at work.
    pub fn look_again(&mut self) {
        self.busy = self.busy.max(busy());
    }

    /// Whether so much else was running that the figures cannot be trusted.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy > 0.1
    }
}

/// The share of processor time that is in use now.
fn busy() -> f64 {
    let times = || processor_times(&fs::read_to_string("/proc/stat").unwrap_or_default());
    let before = times();
    std::thread::sleep(WINDOW);
    let after = times();
    let (used, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    used as f64 / all.max(1) as f64
}

/// Time in use and all time, of all processors together, in ticks (`proc_stat(5)`). Time that the
/// host of a virtual machine took for others is in use.
fn processor_times(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().unwrap_or_default();
    // Guests' time, after the eighth, is in the first already.
    let times = line.split_whitespace().skip(1).take(8).map(|ticks| ticks.parse::<u64>().unwrap_or(0));
    let times: Vec<u64> = times.collect();
    let all = times.iter().sum();
    // Idle and waiting for a disk.
    let idle: u64 = times.iter().skip(3).take(2).sum();
    (all - idle, all)
}

/// The value of the first line of a file with this name before a colon.
fn value(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The first line that a program prints when asked for its version; some print it as an error.
fn version(program: &str) -> String {
    let Ok(output) = Command::new(program).arg("--version").output() else { return "not found".into() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("says nothing").to_owned()
}

/// How long to look whether others are at work.
const WINDOW: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_in_use() {
        assert_eq!(processor_times("cpu  10 20 30 400 50 6 7 8 9 9\ncpu0 1 1 1 1\n"), (81, 531));
        assert_eq!(processor_times(""), (0, 0));
    }

    #[test]
    fn the_machine_has_a_name_a_kernel_and_memory() {
        let machine = Machine::look(&[("nothing", "/no/such/program".into())]);
        assert!(machine.kernel.starts_with("Linux ") && machine.cpus > 0 && machine.memory > 1 << 20);
        assert_eq!(machine.versions, [("nothing".to_owned(), "not found".to_owned())]);
    }
}
