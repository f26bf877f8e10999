//! The usual subject of a test: the daemon on two hosts, and a pod on each.

use crate::overlayd::{Overlayd, await_mesh};
use crate::site::{Host, Pod};
use crate::store::Store;

/// Two running daemons that know each other, and a pod behind each.
#[derive(Debug)]
pub struct Pair<'h> {
    /// The first host's daemon.
    pub left: Overlayd<'h>,
    /// The second host's daemon.
    pub right: Overlayd<'h>,
    /// The pod on the first host.
    pub a: Pod,
    /// The pod on the second host.
    pub b: Pod,
}

impl<'h> Pair<'h> {
    /// Starts the daemons with more flags, waits until each has the other as its peer, and makes
    /// bridges and pods.
    #[track_caller]
    pub fn start(hosts: [&'h Host; 2], store: &Store, flags: &[&str]) -> Self {
        let [left, right] = Self::daemons(hosts, store, flags);
        let (a, b) = (hosts[0].bridge_and_pod(&left.env()), hosts[1].bridge_and_pod(&right.env()));
        Self { left, right, a, b }
    }

    /// Replaces both daemons by new ones with other flags. Subnets, bridges and pods stay.
    #[track_caller]
    pub fn restart(self, hosts: [&'h Host; 2], store: &Store, flags: &[&str]) -> Self {
        let Self { left, right, a, b } = self;
        left.stop();
        right.stop();
        let [left, right] = Self::daemons(hosts, store, flags);
        Self { left, right, a, b }
    }

    /// Checks that neither daemon has dropped a packet that it was meant to forward.
    #[track_caller]
    pub fn assert_nothing_dropped(&self) {
        for daemon in [&self.left, &self.right] {
            let status = daemon.status();
            let egress: u64 = FORWARDING_FAILED.iter().map(|reason| status.drops("egress", reason)).sum();
            assert_eq!(egress + status.all_drops("ingress"), 0, "{}", status.0["drops"]);
        }
    }

    #[track_caller]
    fn daemons(hosts: [&'h Host; 2], store: &Store, flags: &[&str]) -> [Overlayd<'h>; 2] {
        let start = |host: &'h Host| {
            let launch = host.overlayd(store);
            flags.iter().fold(launch, |launch, flag| launch.flag(flag)).start()
        };
        let daemons = hosts.map(start);
        await_mesh(&[&daemons[0], &daemons[1]]);
        daemons
    }
}

/// Why egress drops a packet that was good and had somewhere to go.
const FORWARDING_FAILED: [&str; 4] = ["malformed", "send_failed", "too_big", "truncated"];
