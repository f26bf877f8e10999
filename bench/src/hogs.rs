//! What else keeps the processors busy during a measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};

use anyhow::Context;

use crate::plan::HostLoad;

/// Threads of this process that always want a processor. They end when this is dropped, and with the process
/// however that ends.
#[derive(Debug)]
pub struct Hogs {
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hogs {
    /// As many as `load` asks for on so many processors.
    ///
    /// # Errors
    /// A thread cannot be had, or not at the priority.
    pub fn start(load: HostLoad, processors: usize) -> anyhow::Result<Self> {
        let mut hogs = Self { done: Arc::default(), threads: Vec::new() };
        let nice = load.nice();
        for index in 0..load.hogs(processors) {
            let (done, (ready, settled)) = (Arc::clone(&hogs.done), std::sync::mpsc::channel());
            let thread = Builder::new().name(format!("hog-{index}")).spawn(move || {
                // Process 0 is the caller, and on Linux that is the thread.
                let set = rustix::process::setpriority_process(None, nice);
                let is_set = set.is_ok();
                let _ = ready.send(set);
                while is_set && !done.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            hogs.threads.push(thread.context("start a processor hog")?);
            settled
                .recv()
                .context("wait for a processor hog")?
                .context("give a processor hog its priority")?;
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The priorities of this process's hogs, as `proc_pid_stat(5)` has them: 20 is ordinary.
    fn priorities() -> Vec<i32> {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let of = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            name.starts_with("hog-").then(|| rest.split_whitespace().nth(15)?.parse().ok())?
        };
        tasks.filter_map(of).collect()
    }

    #[test]
    fn hogs_are_as_many_and_as_nice_as_the_load_says_and_go() {
        for (load, expected) in
            [(HostLoad::Idle, vec![]), (HostLoad::Awake, vec![39; 2]), (HostLoad::Busy, vec![20; 4])]
        {
            let hogs = Hogs::start(load, 2).unwrap();
            assert_eq!(priorities(), expected, "{load}");
            drop(hogs);
            assert_eq!(priorities(), [0; 0], "{load}");
        }
    }
}
