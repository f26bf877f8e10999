//! What keeps this node from being as it should. Whoever meets it reports it here; it is in the log once, and in the
//! status, `/readyz` and the metrics for as long as it lasts.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tracing::{debug, error, info, warn};

use crate::health::Health;
use overlay_support::problem::Problem;

/// What there is to be wrong with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What the node waits for before it can forward anything.
    Waiting,
    /// The data plane.
    Node,
    /// A network configuration that is to be applied.
    Config,
    /// The interface to the other nodes.
    Underlay,
    /// The MTU of the overlay beside that interface's.
    Mtu,
    /// The device, its address and its routes, and routes to other nodes.
    Link,
    /// The firewall's rules.
    Rules,
    /// Docker's bridge.
    Docker,
    /// Our lease.
    Lease,
    /// The leases in the store.
    Leases,
    /// The subnet file.
    SubnetFile,
    /// The state that the next run starts from.
    State,
    /// Its copy that outlives a reboot.
    LastingState,
    /// The control socket.
    Socket,
    /// What is served over TCP, by the flag that names its address.
    Served(&'static str),
}

/// A problem that lasts.
#[derive(Debug)]
struct Known {
    problem: Problem,
    /// Whether the log has heard of it from here.
    said: bool,
}

/// All that is wrong. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    known: Arc<Mutex<BTreeMap<Part, Known>>>,
    health: Health,
}

impl Problems {
    /// Tells `health` of them.
    #[must_use]
    pub fn told_to(health: Health) -> Self {
        Self { known: Arc::default(), health }
    }

    /// Makes `now` what is wrong with `part`. The log hears of it when it comes, and when it has gone.
    pub fn report(&self, part: Part, now: Option<Problem>) {
        let before = self.set(part, now.clone(), true).filter(|before| before.said);
        let (trouble, over) = sentences(part);
        match (before, now) {
            (Some(before), Some(now)) if before.problem.kind() == now.kind() => {
                debug!(problem = now.text(), "still: {trouble}");
            }
            (_, Some(now)) if is_grave(part) => error!(problem = now.text(), "{trouble}"),
            (_, Some(now)) => warn!(problem = now.text(), "{trouble}"),
            (Some(_), None) => info!("{over}"),
            (None, None) => {}
        }
    }

    /// The same without a word to the log, for what has been said there already.
    pub fn note(&self, part: Part, now: Option<Problem>) {
        self.set(part, now, false);
    }

    fn set(&self, part: Part, now: Option<Problem>, said: bool) -> Option<Known> {
        let mut known = self.known();
        let before = match now {
            Some(problem) => known.insert(part, Known { problem, said }),
            None => known.remove(&part),
        };
        self.health.set(texts(&known));
        before
    }

    /// What is wrong with `part`.
    #[must_use]
    pub fn of(&self, part: Part) -> Option<Problem> {
        self.known().get(&part).map(|known| known.problem.clone())
    }

    /// All of it, for people.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        texts(&self.known())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Part, Known>> {
        self.known.lock()
    }
}

fn texts(known: &BTreeMap<Part, Known>) -> Vec<String> {
    known.values().map(|known| known.problem.text().to_owned()).collect()
}

/// Whether packets do not go where they should.
fn is_grave(part: Part) -> bool {
    matches!(part, Part::Node | Part::Config | Part::Underlay | Part::Lease)
}

/// What the log says when a problem comes, and when it has gone.
fn sentences(part: Part) -> (&'static str, &'static str) {
    match part {
        Part::Waiting => ("nothing is forwarded yet", "what was waited for is there"),
        Part::Node => ("the node cannot be built: trying again", "the node is built as it should be"),
        Part::Config => (
            "the network configuration in the store cannot be applied: the node stays as it is",
            "the network configuration is applied, or the one that could not be is gone",
        ),
        Part::Underlay => (
            "the interface to the other nodes is not as it was: waiting for it, or another, to be there",
            "there is an interface to the other nodes again",
        ),
        Part::Mtu => (
            "the overlay's MTU is more than fits: long packets are sent in fragments, or lost",
            "the overlay's MTU fits",
        ),
        Part::Link => ("the host is not as it should be: trying again", "the host is as it should be again"),
        Part::Rules => (
            "the firewall's rules are not as they should be, forwarding goes on: trying again",
            "the firewall's rules are as they should be again",
        ),
        Part::Docker => {
            ("docker's bridge is not as it should be", "docker's bridge is as it should be again")
        }
        Part::Leases => ("the store has more leases than are used", "all leases of the store are used again"),
        Part::Lease => ("the lease is not as it should be", "the lease is as it should be again"),
        Part::SubnetFile => (
            "the subnet file cannot be written, forwarding goes on: trying again (see --subnet-file)",
            "the subnet file is written",
        ),
        Part::State => {
            ("the state cannot be saved: a restart would wait for the store", "the state is saved")
        }
        Part::LastingState => (
            "the state cannot be saved: after a reboot, a start would wait for the store",
            "the state is saved for after a reboot",
        ),
        Part::Socket => (
            "no control socket, overlayctl cannot ask this daemon: trying again",
            "the control socket is served",
        ),
        Part::Served(_) => ("what is asked for is not served: trying again", "what is asked for is served"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_knows_all_that_is_wrong_until_it_is_over() {
        let health = Health::default();
        let problems = Problems::told_to(health.clone());
        problems.report(Part::Rules, Some(Problem::new("nft", "nft is gone")));
        problems.report(Part::Waiting, Some(Problem::of("no lease")));
        assert_eq!(health.problems().unwrap(), ["no lease", "nft is gone"]);
        problems.report(Part::Rules, Some(Problem::new("nft", "nft is still gone")));
        assert_eq!(problems.texts(), ["no lease", "nft is still gone"]);
        assert_eq!(problems.of(Part::Rules).unwrap().text(), "nft is still gone");
        problems.report(Part::Rules, None);
        problems.note(Part::Waiting, None);
        assert_eq!(health.problems().unwrap(), Vec::<String>::new());
    }
}
