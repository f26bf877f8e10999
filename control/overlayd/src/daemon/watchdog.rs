//! The service manager's watchdog: it is fed while the main loop and every worker make their rounds.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::error;

use overlay_node::Node;
use overlay_node::service_manager;

/// When it is fed, and what it has seen. Without a service manager that asks for it, never.
pub(super) struct Watchdog {
    every: Option<Interval>,
    /// Whose workers were looked at last.
    node: Weak<Node>,
    rounds: Rounds,
}

impl Watchdog {
    pub(super) fn new() -> Self {
        let every = service_manager::alive_every().map(|period| {
            let mut every = interval(period);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            every
        });
        Self { every, node: Weak::new(), rounds: Rounds::default() }
    }

    /// The next time; never without a watchdog. May be cancelled.
    pub(super) async fn due(&mut self) {
        match &mut self.every {
            Some(every) => _ = every.tick().await,
            None => std::future::pending().await,
        }
    }

    /// Tells the service manager that we are alive, if each of the node's workers, with its rounds so far, is.
    pub(super) fn feed(&mut self, (node, workers): (Weak<Node>, Vec<(String, u64)>)) {
        // Workers of a new node have the names of the earlier one's, and may by chance have made as many rounds.
        if !self.node.ptr_eq(&node) {
            self.node = node;
            self.rounds = Rounds::default();
        }
        let period = self.every.as_ref().map_or(Duration::MAX, Interval::period);
        let stuck = self.rounds.stuck(workers, period, Instant::now());
        if stuck.is_empty() {
            service_manager::alive();
        } else {
            error!(
                workers = stuck.join(","),
                "workers are stuck: the service manager will restart the daemon"
            );
        }
    }
}

/// The rounds of the workers when they were looked at last.
#[derive(Default)]
struct Rounds {
    seen: Vec<(String, u64)>,
    at: Option<Instant>,
}

impl Rounds {
    /// The workers that have not moved since the last look, a `period` ago. After a longer time the whole process has
    /// stood still, and they with it: that says nothing of them.
    fn stuck(&mut self, workers: Vec<(String, u64)>, period: Duration, now: Instant) -> Vec<String> {
        let paused = self.at.is_some_and(|at| now.duration_since(at) > period + period / 2);
        self.at = Some(now);
        let seen = std::mem::replace(&mut self.seen, workers);
        if paused {
            return Vec::new();
        }
        self.seen.iter().filter(|worker| seen.contains(worker)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_move_is_stuck_unless_nobody_could() {
        let workers = |rounds: [u64; 2]| {
            ["egress-0", "ingress-0"].into_iter().map(str::to_owned).zip(rounds).collect::<Vec<_>>()
        };
        let period = Duration::from_secs(10);
        let start = Instant::now();
        let mut seen = Rounds::default();
        let mut look =
            |rounds, after: u64| seen.stuck(workers(rounds), period, start + Duration::from_secs(after));
        assert!(look([1, 1], 0).is_empty(), "the first look says nothing");
        assert!(look([2, 2], 10).is_empty());
        assert_eq!(look([3, 2], 20), ["ingress-0"]);
        assert!(look([3, 2], 47).is_empty(), "the process was stopped for a while");
        assert_eq!(look([3, 3], 57), ["egress-0"]);
    }
}
