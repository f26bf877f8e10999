//! When the kernel lets a thread go: before whom, and how soon (`sched(7)`).

use std::io;
use std::time::Duration;

/// How a thread is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// In turns with all ordinary threads (`SCHED_OTHER`).
    Fair {
        /// From −20, with the largest share, to 19.
        nice: i32,
        /// How long a turn is; the shorter, the sooner it comes. Nothing for the kernel's own, as before Linux 6.12.
        slice: Option<Duration>,
    },
    /// Before all ordinary threads, and in turns with those of this priority (`SCHED_RR`).
    RealTime {
        /// From 1 to 99.
        priority: u32,
    },
    /// In a way that is none of ours.
    Other,
}

/// The calling thread.
pub const OURSELVES: i32 = 0;

/// Schedules a thread of this process so.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE`, or in a control group that may not have real time; `ESRCH` if it has ended.
pub fn set(thread: i32, to: Scheduling) -> io::Result<()> {
    let (policy, nice, priority, slice) = match to {
        Scheduling::Fair { nice, slice } => (libc::SCHED_OTHER, nice, 0, slice),
        Scheduling::RealTime { priority } => (libc::SCHED_RR, 0, priority, None),
        Scheduling::Other => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let attributes = Attributes {
        size: SIZE,
        policy: policy.cast_unsigned(),
        nice,
        priority,
        runtime: slice.map_or(0, |slice| slice.as_nanos() as u64),
        ..Attributes::default()
    };
    // SAFETY: the call reads `size` bytes, which `attributes` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const attributes, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a thread of this process is scheduled.
///
/// # Errors
/// `EPERM` where somebody confines this process; `ESRCH` if the thread has ended.
pub fn get(thread: i32) -> io::Result<Scheduling> {
    let mut attributes = Attributes::default();
    // SAFETY: the call writes no more than `SIZE` bytes, which `attributes` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, SIZE, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let slice = Some(Duration::from_nanos(attributes.runtime)).filter(|slice| !slice.is_zero());
    Ok(match attributes.policy.cast_signed() {
        libc::SCHED_OTHER => Scheduling::Fair { nice: attributes.nice, slice },
        libc::SCHED_RR => Scheduling::RealTime { priority: attributes.priority },
        _ => Scheduling::Other,
    })
}

/// `struct sched_attr` in its first version (`sched_setattr(2)`), which every kernel knows.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SIZE: u32 = size_of::<Attributes>() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_scheduled_as_was_asked_for() {
        let ours = get(OURSELVES).unwrap();
        let inside = std::thread::spawn(move || {
            set(OURSELVES, Scheduling::Fair { nice: 7, slice: Some(Duration::from_micros(300)) }).unwrap();
            get(OURSELVES).unwrap()
        });
        // Before Linux 6.12 a fair thread has no slice of its own.
        let inside = inside.join().unwrap();
        assert!(matches!(inside, Scheduling::Fair { nice: 7, .. }), "{inside:?}");
        assert_eq!(get(OURSELVES).unwrap(), ours, "the others stay as they are");
        assert!(set(OURSELVES, Scheduling::Other).is_err());
    }
}
