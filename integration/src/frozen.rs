//! One thread of a process that stands still while the others go on, as one that has come to be stuck does.

use std::fs;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A thread that is held by a tracer until it is killed with its process.
#[derive(Debug)]
pub struct Thread {
    tracer: Option<JoinHandle<()>>,
}

impl Thread {
    /// Stops a thread of this id, as it is known in a container whose process 1 is `init`.
    #[track_caller]
    pub fn stop(init: u32, thread: &str) -> Self {
        let thread = Pid::from_raw(seen_from_here(init, thread));
        let (stopped, has_stopped) = mpsc::channel();
        // All of it is one thread's to do: only the tracer may ask, and the traced one's end is for it to see.
        let tracer = std::thread::spawn(move || {
            ptrace::seize(thread, ptrace::Options::empty()).expect("trace the thread");
            ptrace::interrupt(thread).expect("stop the thread");
            let wait = || waitpid(thread, Some(WaitPidFlag::__WALL));
            assert!(matches!(wait(), Ok(WaitStatus::PtraceEvent(..))), "the thread does not stop");
            stopped.send(()).expect("somebody waits");
            loop {
                match wait() {
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return,
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => panic!("wait for the traced thread: {error}"),
                }
            }
        });
        has_stopped.recv().expect("the thread to be stopped");
        Self { tracer: Some(tracer) }
    }
}

impl Drop for Thread {
    /// Waits until it has been killed.
    fn drop(&mut self) {
        if let Some(tracer) = self.tracer.take().filter(|_| !std::thread::panicking()) {
            tracer.join().expect("the tracer");
        }
    }
}

/// The id, outside of a container, of what has this one inside.
#[track_caller]
fn seen_from_here(init: u32, thread: &str) -> i32 {
    let namespace = |path: String| fs::read_link(path).ok();
    let inside = namespace(format!("/proc/{init}/ns/pid"));
    let processes = fs::read_dir("/proc").expect("list the processes").flatten();
    let processes =
        processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let mut threads = processes
        .filter(|process| namespace(process.path().join("ns/pid").display().to_string()) == inside)
        .flat_map(|process| fs::read_dir(process.path().join("task")).into_iter().flatten().flatten());
    let found = threads.find(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ids.and_then(|ids| ids.split_whitespace().next_back()) == Some(thread)
    });
    let found = found.unwrap_or_else(|| panic!("no thread {thread} in the container of {init}"));
    found.file_name().to_string_lossy().parse().expect("a number")
}
