//! The machine that a figure was measured on: without it the figure means nothing.

use std::fs;
use std::process::Command;

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
    /// Processes that were ready to run in the minute before: above zero, other programs took
    /// part of the figures.
    pub load: f64,
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
            load: fs::read_to_string("/proc/loadavg")
                .ok()
                .and_then(|text| text.split(' ').next()?.parse().ok())
                .unwrap_or(0.0),
            versions: programs.iter().map(|(name, path)| ((*name).into(), version(path))).collect(),
        }
    }

    /// Whether so much else is running that the figures cannot be trusted.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.load > 0.25 * self.cpus as f64
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_name_a_kernel_and_memory() {
        let machine = Machine::look(&[("nothing", "/no/such/program".into())]);
        assert!(machine.kernel.starts_with("Linux ") && machine.cpus > 0 && machine.memory > 1 << 20);
        assert_eq!(machine.versions, [("nothing".to_owned(), "not found".to_owned())]);
    }
}
