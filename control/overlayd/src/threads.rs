//! What our own threads cost.

use std::fs;
use std::time::Duration;

/// The processor time of each of our threads, with its name (`/proc/PID/task/TID/schedstat`, in nanoseconds).
pub(crate) fn cpu_times() -> impl Iterator<Item = (String, Duration)> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|task| {
        // One that ends meanwhile has no files any more.
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim_end().to_owned();
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((name, Duration::from_nanos(schedstat.split(' ').next()?.parse().ok()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_found_by_name_with_what_they_have_used() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("egress-77".into()).spawn(move || {
            let mut sum = 0_u64;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        });
        let used = || cpu_times().find_map(|(name, used)| (name == "egress-77").then_some(used));
        while used().is_none_or(|used| used.is_zero()) {
            std::thread::yield_now();
        }
        drop(stop);
        thread.unwrap().join().unwrap();
    }
}
