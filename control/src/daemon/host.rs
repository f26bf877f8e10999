//! What changes on the host while the daemon runs: what is ours is put back, what is the host's followed.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Daemon, Revival, tell_underlay};
use crate::host::HostError;
use crate::host::docker::{self, Bridge};
use crate::host::events::{Interest, Touched};
use crate::iface::{self, Underlay};
use crate::metrics::Repaired;
use crate::node::Tunnel;
use crate::status::LeaseState;

impl Daemon {
    /// Addresses, devices or routes of this host have changed: its own addresses are no valid source from
    /// the wire, who is on our link may be another, and the interface to the other nodes may be another.
    pub(super) async fn host_changed(&mut self) {
        match iface::choose_again(&self.spec, &self.underlay).await {
            Ok(underlay) => {
                self.no_underlay = None;
                if underlay != self.underlay {
                    self.move_to(underlay).await;
                    return;
                }
            }
            Err(error) => {
                let problem = error.to_string();
                if self.no_underlay.as_ref() != Some(&problem) {
                    error!(problem, interface = self.underlay.name, address = %self.underlay.address, "the interface to the other nodes is not as it was: waiting for it, or another, to be there");
                    self.no_underlay = Some(problem);
                }
            }
        }
        if let Some(revival) = &mut self.revival {
            // What it was waiting for may be there.
            revival.at = Instant::now();
        }
        let view = self.shared.lock().unwrap_or_else(PoisonError::into_inner).view.clone();
        if let (Some(running), Some((view, _))) = (&self.running, view)
            && let Err(error) = running.node.publish(&view.peers).await
        {
            error!(%error, "this host's addresses and routes cannot be read: the earlier ones count");
        }
        self.look_at_docker().await;
        self.tell_health();
    }

    /// Whether the bridge of this node's containers is in its subnet. Not ours to put right: docker's containers would have to
    /// be restarted.
    pub(super) async fn look_at_docker(&mut self) {
        let Some(running) = &self.running else { return };
        let plan = running.node.plan();
        if !self.networks.contains(&plan.config.network) {
            self.networks.push(plan.config.network);
        }
        let problem = match docker::bridge(&self.networks, plan.subnet, &plan.device()).await {
            Ok(Bridge::Stranded(stranded)) => Some(stranded.problem()),
            Ok(_) => None,
            Err(error) => {
                warn!(%error, "docker's bridge cannot be looked at");
                return;
            }
        };
        if let Some(problem) = problem.as_ref().filter(|_| self.docker_problem != problem) {
            warn!("{problem}");
        }
        self.docker_problem = problem;
    }

    /// Makes `underlay` the interface to the other nodes. They learn of it by our lease, which keeps its subnet.
    async fn move_to(&mut self, underlay: Underlay) {
        tell_underlay(&underlay, "the interface to the other nodes has changed");
        self.underlay = underlay;
        self.public_ip.send_replace(self.underlay.public_ip);
        self.build_again(None).await;
    }

    /// What of the host is ours to look after; `None` while nothing is.
    pub(super) fn interest(&self) -> Option<Interest> {
        let plan = self.running.as_ref()?.node.plan();
        Some(Interest { device: plan.device(), underlay: plan.underlay.index, network: plan.config.network })
    }

    /// What others have taken away is put back. A lasting problem is told once.
    pub(super) async fn sync_host(&mut self, touched: Touched) {
        let outdated = self.running.as_ref().and_then(|running| running.node.tunnel());
        if outdated.is_some_and(Tunnel::has_outdated_rings) {
            info!(interface = self.underlay.name, "the interface has another number of queues");
            self.build_again(None).await;
        }
        let Some(running) = &mut self.running else { return };
        if let Some(tunnel) = running.node.tunnel() {
            self.hints.look(&tunnel.totals());
        }
        let link = if touched.link { Some(running.node.sync().await) } else { None };
        let rules = if touched.rules { Some(running.firewall.sync().await) } else { None };
        match link {
            Some(Err(HostError::NoDevice(_))) => self.device_gone().await,
            Some(Ok(put)) => {
                tell_problem(&mut self.link_problem, None);
                put.into_iter().for_each(|what| self.restored(Repaired::Link, what));
            }
            Some(Err(error)) => tell_problem(&mut self.link_problem, Some(error.to_string())),
            None => {}
        }
        match rules {
            Some(Ok(put)) => {
                tell_problem(&mut self.rules_problem, None);
                if put {
                    self.restored(Repaired::Rules, "the firewall rules".to_owned());
                }
            }
            Some(Err(error)) => tell_problem(&mut self.rules_problem, Some(error.to_string())),
            None => {}
        }
        self.tell_health();
    }

    pub(super) fn restored(&self, kind: Repaired, what: String) {
        self.meters.host.repaired(kind);
        info!(what, "put back what somebody else has removed or changed");
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).host.restored += 1;
    }

    /// Whether this node does what it is there for, and if not, why.
    pub(super) fn tell_health(&self) {
        let mut problems: Vec<String> =
            [&self.no_underlay, &self.link_problem, &self.rules_problem, &self.docker_problem]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
        match &self.revival {
            Some(Revival { problem: Some(problem), .. }) => problems.push(problem.clone()),
            _ if self.running.is_none() => problems.push("nothing is forwarded yet".to_owned()),
            _ => {}
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        // The store has let it expire by then, at the latest.
        let ttl = Duration::from_secs(u64::from(self.flags.subnet_lease_ttl));
        if matches!(shared.view, Some((_, LeaseState::Lost))) {
            problems.push("the lease is lost, and not taken again yet".to_owned());
        } else if self.unconfirmed_since.is_some_and(|since| since.elapsed() >= ttl) {
            problems.push("the store has not confirmed the lease for as long as it lasts".to_owned());
        }
        shared.host.problems.clone_from(&problems);
        self.health.set(problems);
    }
}

/// Makes `now` the state of something that is looked at again and again, and says so if that is news.
fn tell_problem(before: &mut Option<String>, now: Option<String>) {
    if *before == now {
        return;
    }
    match &now {
        Some(problem) => warn!(%problem, "the host is not as it should be: trying again at every resync"),
        None => info!("the host is as it should be again"),
    }
    *before = now;
}
