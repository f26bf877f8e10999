//! Programs that run beside a test, and waiting for what they do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use rustix::process::{Pid, Signal, kill_process};

/// A program running in the background. Its output goes to a file, which is printed if the test
/// fails; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with its output and errors in `<name>.log` in `directory`.
    #[track_caller]
    pub fn spawn(name: &str, mut command: Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = fs::File::options().create(true).append(true).open(&log);
        let file = file.unwrap_or_else(|error| panic!("open {}: {error}", log.display()));
        let errors = file.try_clone().expect("a second handle on the log file");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { name: name.into(), child, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for the state of a child")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = self.ended_within(limit);
        status.unwrap_or_else(|| panic!("waited {limit:?} in vain for the end of {}", self.name))
    }

    /// Waits for its end, and returns `None` if it has not come by then.
    pub fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.exited() {
                None if start.elapsed() < limit => std::thread::sleep(POLL),
                status => return status,
            }
        }
    }

    /// The processor time that it has had so far, without that of programs it has run.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        // To the nanosecond, unlike the ticks of /proc/PID/stat.
        let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(self.child.id().cast_signed()));
        Duration::from(clock.and_then(clock_gettime).expect("read a process's clock"))
    }

    /// Whether it waits for something to happen, rather than for its turn on a processor.
    #[track_caller]
    pub fn sleeps(&self) -> bool {
        let file = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {file}: {error}"));
        // The state follows the name, which is in brackets and may be anything (proc_pid_stat(5)).
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S'))
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(limit)
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).unwrap_or_else(|error| panic!("signal {}: {error}", self.name));
        }
    }

    /// Ends it as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        // It may have ended by itself: that is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("── {} ──\n{}", self.log.display(), self.log());
        }
    }
}

/// Waits until `condition` holds, asking again every few milliseconds; panics after `limit`, naming
/// `what` was awaited. Returns how long it took.
#[track_caller]
pub fn await_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if condition() {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(POLL);
    }
}

/// Long against anything that a machine does which is busy with other tests, and short against the runner's
/// patience: what is awaited so long will not come.
pub const SOON: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(10);
