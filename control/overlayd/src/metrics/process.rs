//! The process itself, by the names that all of Prometheus's clients use, and what each worker costs.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use rustix::param::page_size;
use rustix::time::{ClockId, clock_gettime};

use super::writer::{About, Writer};
use crate::threads::cpu_times;

/// The process that asks.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
}

impl Default for Process {
    #[expect(clippy::disallowed_methods, reason = "metrics have dates")]
    fn default() -> Self {
        Self { started: SystemTime::now() }
    }
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        let about = About("process_cpu", "Processor time of all threads", Some(Unit::Seconds));
        let used = clock_gettime(ClockId::ProcessCPUTime);
        out.counter(about, used.tv_sec as f64 + used.tv_nsec as f64 / 1e9)?;
        let about = About("process_start_time", "When the process began", Some(Unit::Seconds));
        out.gauge(about, unix(self.started))?;
        // What /proc does not tell is left out.
        if let Some(resident) = resident() {
            out.gauge(
                About("process_resident_memory", "Memory that it has in use", Some(Unit::Bytes)),
                resident,
            )?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory itself.
            let open = open.count().saturating_sub(1) as i64;
            out.gauge(About("process_open_fds", "Open file descriptors", None), open)?;
        }
        Ok(())
    }
}

/// The processor time of each thread whose name says a direction and a queue, by both: `egress-0`.
pub(super) fn workers() -> Vec<([(&'static str, String); 2], f64)> {
    let worker = |(name, used): (String, Duration)| {
        let (direction, queue) = name.split_once('-')?;
        let labels = [("direction", direction.to_owned()), ("queue", queue.to_owned())];
        ["egress", "ingress"].contains(&direction).then_some((labels, used.as_secs_f64()))
    };
    let mut workers: Vec<_> = cpu_times().filter_map(worker).collect();
    workers.sort_by(|(a, _), (b, _)| a.cmp(b));
    workers
}

/// A moment as Prometheus has it.
pub(super) fn unix(moment: SystemTime) -> f64 {
    moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn resident() -> Option<i64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page_size() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_threads_named_so() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (started, running) = std::sync::mpsc::channel();
        let worker = std::thread::Builder::new().name("egress-7".to_owned()).spawn(move || {
            started.send(()).unwrap();
            let _ = stopped.recv();
        });
        running.recv().unwrap();
        let told = workers();
        drop(stop);
        worker.unwrap().join().unwrap();
        let wanted = [("direction", "egress".to_owned()), ("queue", "7".to_owned())];
        assert_eq!(told.iter().map(|(labels, _)| labels).collect::<Vec<_>>(), [&wanted]);
    }
}
