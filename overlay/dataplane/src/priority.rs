//! How the workers stand among the other threads of the host.
//!
//! Containers use the processors. The kernel's own tunnels run in soft interrupts, which wait for nobody; a worker is
//! a thread, and whenever a packet wakes it, it waits for its turn. So it has a larger share than an ordinary
//! thread and short turns, which come soon; and real time, which is at once, while the processors are crowded
//! ([`warden`](crate::warden)), bounded so that the others have theirs.

use std::io;
use std::thread;
use std::time::Duration;

pub use overlay_sys::priority::Scheduling;
use overlay_sys::priority::{self, OURSELVES};

/// What the workers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A larger share, short turns, and real time while the processors are crowded.
    RealTime,
    /// A larger share and short turns.
    Nice,
    /// Nothing: they stand as the process was started.
    None,
}

/// What they get of it; the default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Priority {
    /// Anything at all.
    is_wanted: bool,
    fair: Option<Scheduling>,
    real_time: bool,
    refused: Vec<String>,
}

impl Priority {
    /// As much of it as can be had: a thread tries it out.
    #[must_use]
    pub fn of(wanted: Wanted) -> Self {
        if wanted == Wanted::None {
            return Self::default();
        }
        let tried = thread::scope(|threads| threads.spawn(|| try_out(wanted)).join());
        tried.unwrap_or_default()
    }

    /// Schedules the calling thread so, for as long as it runs.
    pub fn enter(&self) {
        if let Some(fair) = self.fair {
            // It has been tried: should it be refused now, packets go on as the others'.
            let _ = priority::set(OURSELVES, fair);
        }
    }

    /// Whether workers are anything but ordinary threads.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// How they are scheduled when they have no real time; nothing if that is as they were started.
    #[must_use]
    pub fn fair(&self) -> Option<Scheduling> {
        self.fair
    }

    /// Whether they may have real time.
    #[must_use]
    pub fn real_time(&self) -> bool {
        self.real_time
    }

    /// What was asked for and could not be had, each with the reason.
    #[must_use]
    pub fn refused(&self) -> &[String] {
        &self.refused
    }
}

fn try_out(wanted: Wanted) -> Priority {
    let mut got = Priority { is_wanted: true, ..Priority::default() };
    let mut attempt = |what: &str, to| match priority::set(OURSELVES, to) {
        Ok(()) => true,
        Err(error) => {
            got.refused.push(format!("{what}: {}", remedy(&error)));
            false
        }
    };
    let now = priority::get(OURSELVES);
    let fair = candidates(now.as_ref().ok());
    let had = fair.into_iter().find(|(what, fair)| attempt(what, *fair)).map(|(_, fair)| fair);
    got.real_time = wanted == Wanted::RealTime && had.is_some() && attempt("real time", REAL_TIME);
    // What the kernel makes of it: versions before 6.12 leave the turns as they are.
    got.fair = had.map(|fair| match priority::set(OURSELVES, fair).and_then(|()| priority::get(OURSELVES)) {
        Ok(seen @ Scheduling::Fair { .. }) => seen,
        _ => fair,
    });
    got
}

fn remedy(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "the kernel refuses it: give CAP_SYS_NICE, and for real time a control group that may have it"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// What to ask for, the best first, by a thread that is scheduled as `now`. Whoever has given it a larger share, or
/// real time, has meant it.
fn candidates(now: Option<&Scheduling>) -> Vec<(&'static str, Scheduling)> {
    let fair = |nice| Scheduling::Fair { nice, slice: Some(TURN) };
    match now {
        Some(Scheduling::Fair { nice, .. }) if *nice <= NICE => vec![("short turns", fair(*nice))],
        Some(Scheduling::Fair { nice, .. }) => {
            vec![("a larger share", fair(NICE)), ("short turns", fair(*nice))]
        }
        _ => Vec::new(),
    }
}

/// The lowest real-time priority: before all ordinary threads, and behind every other real-time thread of the host.
pub(crate) const REAL_TIME: Scheduling = Scheduling::RealTime { priority: 1 };
/// Three times an ordinary thread's share.
const NICE: i32 = -5;
/// The shortest turn that the kernel gives.
const TURN: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_share_that_somebody_has_given_stays() {
        let asked = |now| candidates(Some(&now)).into_iter().map(|(_, fair)| fair).collect::<Vec<_>>();
        let fair = |nice| Scheduling::Fair { nice, slice: Some(TURN) };
        assert_eq!(asked(Scheduling::Fair { nice: 0, slice: None }), [fair(NICE), fair(0)]);
        assert_eq!(asked(fair(-20)), [fair(-20)]);
        assert_eq!(asked(Scheduling::RealTime { priority: 3 }), []);
    }

    #[test]
    fn nothing_is_asked_for_if_nothing_is_wanted() {
        let nothing = Priority::of(Wanted::None);
        assert!(!nothing.is_wanted() && nothing.fair().is_none() && !nothing.real_time());
        assert_eq!(nothing.refused(), [""; 0]);
        assert!(!Priority::of(Wanted::Nice).real_time());
    }
}
