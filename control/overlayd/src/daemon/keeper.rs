//! The node, kept by a task of its own: built as the lease task says, put in the place of the one before, looked after
//! while the host changes under it.
//!
//! What cannot be had leaves the node as it runs, and is tried again, later and later.

use std::sync::Arc;
use std::time::Duration;

use overlay::handover::Inherited;
use parking_lot::MutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::earlier::Earlier;
use super::error::DaemonError;
use super::hints::Hints;
use super::options::options;
use super::report::Shared;
use super::rules::problem as of_host;
use super::saving::Files;
use super::underlay;
use crate::metrics::Repaired;
use crate::problems::Part;
use overlay_api::status::LeaseState;
use overlay_host::HostError;
use overlay_host::docker::{self, Bridge};
use overlay_host::events::{Interest, Touched};
use overlay_host::iface::{self, Underlay};
use overlay_host::link::{self, HostChanges};
use overlay_leases::lease::{Admitted, LeaseBackend};
use overlay_leases::membership::{Question, Refusal, View};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::state::SavedState;
use overlay_leases::subnet_file::SubnetFile;
use overlay_node::plan::{MtuProblem, Plan};
use overlay_node::service_manager;
use overlay_node::takeover;
use overlay_node::{Node, NodeError, NodeOptions, Tunnel, preflight};
use overlay_support::backoff::Backoff;
use overlay_support::claim::{self, Claim};
use overlay_support::problem::Problem;

mod deadline;
mod failures;
mod means;
mod ready;
mod retry;
mod rings;

use deadline::Deadline;
use failures::{Failure, Failures};
pub(super) use means::{Inbox, Means};
use ready::Ready;
use retry::Retry;
use rings::Rings;

/// The task.
pub(super) struct Keeper {
    means: Means,
    options: NodeOptions,
    running: Option<Arc<Node>>,
    /// What the node that ran last was made from, and the peers that it had.
    good: Option<(Plan, Admitted)>,
    /// What there is to be: the latest view.
    view: Option<(View, LeaseState)>,
    failures: Failures,
    retry: Retry,
    rings: Rings,
    /// Until when a process before this one may be about to end.
    predecessor: Option<Instant>,
    /// What no other daemon of this host may keep meanwhile: that of the node, and of those that were thought of.
    claims: Vec<Claim>,
    /// The last state that was saved.
    saved: Option<SavedState>,
    /// What has been said about dropped packets.
    hints: Hints,
    ready: Ready,
}

/// Has the claim to `device` among `claims`, if nobody else has it. Whose it is may take a look at all processes.
async fn take_claim(claims: &mut Vec<Claim>, device: String) -> Result<(), NodeError> {
    if !claims.iter().any(|claim| claim.device() == device) {
        let take = move || Claim::take(&device);
        claims.push(spawn_blocking(take).await.expect("taking a claim does not panic")?);
    }
    Ok(())
}

impl Keeper {
    pub(super) fn new(means: Means) -> Self {
        means.problems.note(Part::Node, Some(Problem::of("nothing is forwarded yet")));
        Self {
            options: options(
                &means.flags,
                means.confinement.clone(),
                means.priority.clone(),
                means.addresses.clone(),
            ),
            means,
            running: None,
            good: None,
            view: None,
            failures: Failures::new(),
            retry: Retry::new(),
            rings: Rings::new(),
            predecessor: None,
            claims: Vec::new(),
            saved: None,
            hints: Hints::default(),
            ready: Ready::new(),
        }
    }

    /// Keeps the node until it is to stop, or until there is nothing to be done but to begin anew.
    pub(super) async fn run(
        mut self,
        saved: Option<View>,
        mut inbox: Inbox,
    ) -> (Result<(), DaemonError>, Files) {
        if let Some(view) = saved {
            info!(subnet = %view.lease.subnet, peers = view.peers.len(), "forwarding from the saved state of an earlier run");
            self.take(view, LeaseState::Saved).await;
        }
        let result = loop {
            let (retry, interest) = (self.retry.due(), self.interest());
            tokio::select! {
                Ok(()) = inbox.stop.changed() => break Ok(()),
                Ok(()) = inbox.views.changed() => {
                    let view = inbox.views.borrow_and_update().clone();
                    if let Some(view) = view {
                        let state = if view.held { LeaseState::Held } else { LeaseState::Lost };
                        self.take(view, state).await;
                    }
                }
                Some(question) = inbox.questions.recv() => self.answer(question).await,
                failure = self.failures.next() => {
                    if let Err(error) = self.worker_failed(failure).await {
                        break Err(error);
                    }
                }
                changed = inbox.changes.changed() => {
                    if changed.is_err() {
                        inbox.changes = subscribed().await;
                    }
                    self.host_changed().await;
                }
                touched = inbox.reconcile.due(interest) => self.sync_host(touched).await,
                () = retry => self.build().await,
            }
        };
        if result.is_ok() {
            self.stop_running(Deadline::begins()).await;
        }
        (result, self.means.files)
    }

    /// Makes `view` what there is to be.
    async fn take(&mut self, view: View, state: LeaseState) {
        self.view = Some((view.clone(), state));
        self.shared().set_view(view, state);
        let plan = self.plan_of_view();
        let runs = self.running.as_ref().is_some_and(|node| Some(node.plan()) == plan.as_ref());
        if runs || self.retry.is_pending() {
            self.publish().await;
        } else {
            self.build().await;
        }
        if runs {
            self.save();
        }
        if state != LeaseState::Saved {
            self.ready.confirm();
        }
    }

    /// Tells the running node its peers: those of the latest view, if that is of the same network, else those that it
    /// has.
    async fn publish(&mut self) {
        let (Some(node), Some((plan, peers)), Some((view, _))) = (&self.running, &mut self.good, &self.view)
        else {
            return;
        };
        if plan.config == view.config {
            peers.clone_from(&view.peers);
        }
        let published = node.publish(peers).await;
        for what in published.as_ref().into_iter().flatten() {
            self.means.restored.count(Repaired::Link, what.clone());
        }
        if let Err(error) = published {
            self.means.problems.report(Part::Link, Some(of_host(&error)));
        }
    }

    /// Has the next run start from what runs, if it is what there is to be.
    fn save(&mut self) {
        let Some((view, LeaseState::Held)) = &self.view else { return };
        let state = SavedState {
            store: self.means.store.clone(),
            public_ip: self.means.underlay.public_ip,
            config: view.config_text.clone(),
            lease: view.lease.clone(),
            peers: view.peers.to_vec(),
        };
        if self.saved.as_ref() != Some(&state) {
            self.saved = Some(state.clone());
            self.means.files.save(state);
        }
    }

    fn plan_of_view(&self) -> Option<Plan> {
        let (view, _) = self.view.as_ref()?;
        Some(Plan {
            vtep_mac: match view.lease.attrs.backend {
                LeaseBackend::Vxlan { vtep_mac, .. } => vtep_mac,
                _ => overlay_wire::MacAddr::default(),
            },
            ..self.plan_of(view.config.clone(), view.lease.subnet)
        })
    }

    fn plan_of(&self, config: NetworkConfig, subnet: ipnet::Ipv4Net) -> Plan {
        Plan {
            config,
            subnet,
            vtep_mac: overlay_wire::MacAddr::default(),
            underlay: self.means.underlay.clone(),
        }
    }

    /// Whether this host can run a network, in which there is no lease yet.
    async fn answer(&mut self, Question { config, answer }: Question) {
        let runs = self.running.as_ref().is_some_and(|node| node.plan().config == config);
        let some_subnet = config.subnets().next().unwrap_or(config.network);
        let verdict = match runs {
            true => Ok(()),
            false => self.preflight(&self.plan_of(config, some_subnet)).await.map(drop),
        };
        let forwarding = self.running.is_some();
        if verdict.is_err() {
            // Another daemon may have what is only thought of.
            let ours = [
                self.running.as_ref().map(|node| node.plan().device()),
                self.plan_of_view().map(|plan| plan.device()),
            ];
            self.claims.retain(|claim| ours.iter().flatten().any(|device| device == claim.device()));
        }
        let verdict = verdict.map_err(|error| Refusal { problem: of_node(&error), forwarding });
        // Who has asked may have come to an end.
        let _ = answer.send(verdict);
    }

    /// Whether `plan` can be built, and by when it is to be. At the start, what a process before this one still has is
    /// waited for.
    async fn preflight(&mut self, plan: &Plan) -> Result<Deadline, NodeError> {
        let until = *self.predecessor.get_or_insert_with(|| Instant::now() + PREDECESSOR);
        let (mut waits, mut claimed) = (false, None);
        loop {
            let running = self.running.as_ref().map(|node| node.plan());
            let held = self.claims.len();
            let deadline = Deadline::begins();
            // Whose it is need be asked once only.
            let taken = match claimed.take().filter(|_| claim::is_anothers(&plan.device())) {
                Some(still) => Err(NodeError::Claimed(still)),
                None => take_claim(&mut self.claims, plan.device()).await,
            };
            let result = match taken {
                Ok(()) => {
                    let programs = deadline.of_programs(running.is_some());
                    preflight(plan, &self.options, running, &self.means.inherited, programs).await
                }
                refused => refused,
            };
            let Err(error) = result else { return Ok(deadline) };
            // Another daemon may have what cannot be had here.
            self.claims.truncate(held);
            if running.is_some() || !error.is_taken() || Instant::now() >= until {
                return Err(error.with_owner(plan).await);
            }
            if !std::mem::replace(&mut waits, true) {
                info!(%error, "is a process before this one about to end? Waiting for {} s", PREDECESSOR.as_secs());
            }
            if let NodeError::Claimed(by) = error {
                claimed = Some(by);
            }
            sleep(TAKEN_AGAIN).await;
        }
    }

    /// Builds what there is to be. If that cannot be had, what ran runs on.
    async fn build(&mut self) {
        self.retry.begins();
        let Some(plan) = self.plan_of_view() else { return };
        match self.replace(plan).await {
            Ok(()) => {
                self.retry.succeeded();
                self.means.problems.report(Part::Node, None);
                self.save();
            }
            Err(error) => {
                if self.running.is_none() {
                    self.put_back().await;
                }
                let consequence =
                    if self.running.is_some() { "the earlier one runs on" } else { "nothing is forwarded" };
                let text = format!("the node cannot be built as it should be, {consequence}: {error}");
                self.means.problems.report(Part::Node, Some(Problem::new(of_node(&error).kind(), text)));
                self.retry.failed();
            }
        }
        self.look_at_docker().await;
    }

    /// Puts a node of `plan` in the place of the one that runs, which runs until the last moment.
    async fn replace(&mut self, plan: Plan) -> Result<(), NodeError> {
        let deadline = self.preflight(&plan).await?;
        let programs = deadline.of_programs(self.running.is_some());
        plan.check_subnet(&self.options.stores).await?;
        let before = self.running.as_ref().map(|node| node.plan().clone());
        let before = before.or_else(|| self.good.as_ref().map(|(plan, _)| plan.clone()));
        self.tell_replacement(&plan);
        // Rules before routes: no packet takes the new way with a source that is to be rewritten.
        self.means.rules.want(plan.desired(&self.options.host));
        let goes_on = self.means.inherited.has_queues(&plan.device())
            || before.as_ref().is_some_and(|before| before.device() == plan.device());
        if !goes_on {
            self.means.rules.tried(programs).await;
        }
        self.stop_running(deadline).await;
        // Its device carries packets until here.
        takeover::from_flanneld(&plan, programs).await?;
        let had_device = link::index_of(&plan.device()).await.is_ok();
        let peers = self.view.as_ref().map(|(view, _)| view.peers.clone()).unwrap_or_default();
        if let Err(error) = self.start(plan.clone(), peers).await {
            if !had_device {
                // A device that nobody would find again.
                let _ = link::remove_unused_tun(&plan.device()).await;
            }
            return Err(error);
        }
        // Not before the new one is there: until then the earlier one's route keeps packets from going elsewhere.
        let earlier = self.means.earlier.take().into_iter().chain(before.as_ref().map(Earlier::own));
        for earlier in earlier {
            earlier.remove(&plan, &self.means.rules).await;
        }
        self.means.rules.tidy(plan.device());
        self.claims.retain(|claim| claim.device() == plan.device());
        Ok(())
    }

    fn tell_replacement(&self, plan: &Plan) {
        let Some(before) = self.running.as_ref().map(|node| node.plan().subnet) else { return };
        let device = plan.device();
        if before == plan.subnet {
            info!(device, subnet = %before, "the node is rebuilt; connections of its containers go on");
        } else {
            warn!(device, %before, now = %plan.subnet, "the node is rebuilt: containers of the earlier subnet lose their connections");
        }
    }

    /// Builds the node again that ran last, if what there is to be cannot be had.
    async fn put_back(&mut self) {
        let wanted = self.plan_of_view();
        let Some((plan, peers)) = self.good.clone().filter(|(plan, _)| Some(plan) != wanted.as_ref()) else {
            return;
        };
        self.means.rules.want(plan.desired(&self.options.host));
        if let Err(error) = self.start(plan, peers).await {
            warn!(%error, "the earlier node cannot be put back");
        }
    }

    /// Starts a node with `peers`; none runs.
    async fn start(&mut self, plan: Plan, peers: Admitted) -> Result<(), NodeError> {
        let on_failure = self.failures.of_next_node();
        let started = Node::start(plan, &self.options, &peers, &on_failure, &mut self.means.inherited).await;
        let (node, lacking) = match started {
            Ok((node, lacking)) => (Arc::new(node), lacking),
            Err(error) => {
                // It keeps what this attempt had, sockets above all, and the next one needs their port.
                service_manager::keep(None);
                return Err(error);
            }
        };
        self.means.problems.report(Part::Link, lacking.as_ref().map(of_host));
        // What it has no use for must not keep others from a port. Where it could not start, the earlier node has.
        self.means.inherited = Inherited::default();
        service_manager::keep(node.tunnel().map(Tunnel::forwarder));
        let plan = node.plan();
        let (device, backend) = (plan.device(), plan.config.backend.name());
        let port = plan.wire().map(|(_, port)| port);
        // Without a tunnel there is no device.
        let named = plan.config.backend.tunnel_device();
        info!(device = named, backend, subnet = %plan.subnet, mtu = plan.mtu(), port, peers = peers.len(), "forwarding");
        self.means.files.write_subnet_file(SubnetFile {
            network: plan.config.network,
            subnet: plan.subnet,
            mtu: plan.mtu(),
            ip_masq: self.means.flags.ip_masq,
        });
        let mtu = MtuProblem::of(&plan.config, &plan.underlay);
        let mtu = mtu.map(|mtu| Problem::new(mtu.text(), format!("{}; {}", mtu.text(), mtu.remedy())));
        self.means.problems.report(Part::Mtu, mtu);
        self.means.host_meter.built();
        self.means.serving.name(&device);
        self.good = Some((plan.clone(), peers));
        self.means.running.send_replace(Some((plan.config.clone(), plan.subnet)));
        self.shared().node = Arc::downgrade(&node);
        self.running = Some(node);
        let (written, served) = (self.means.files.subnet_file_tried(), self.means.serving.socket_tried());
        self.ready.tell_after(written, served);
        Ok(())
    }

    /// Stops the node that runs, if one does, early enough for the next one to be built by `deadline`. That one goes on
    /// with its device and its sockets, in which what arrives meanwhile waits.
    async fn stop_running(&mut self, deadline: Deadline) {
        let Some(before) = self.running.take() else { return };
        self.shared().node = std::sync::Weak::new();
        match before.tunnel().map(|tunnel| tunnel.forwarder().hand_over()) {
            Some(Ok(inherited)) => self.means.inherited = inherited,
            Some(Err(error)) => warn!(%error, "the next node does without the sockets of this one"),
            None => {}
        }
        let stopping = spawn_blocking(move || before.stop(deadline.to_stop()));
        let left_behind = stopping.await.unwrap_or_default();
        if !left_behind.is_empty() {
            warn!(
                workers = left_behind.join(","),
                "workers do not stop in time: they are left to themselves"
            );
        }
    }

    /// A worker that has lost its device is no reason to end; any other is.
    async fn worker_failed(&mut self, failure: Failure) -> Result<(), DaemonError> {
        if self.running.is_none() {
            return Ok(());
        }
        if !failure.is_for_its_device() {
            let Failure { worker, error } = failure;
            return Err(DaemonError::Worker(format!("worker {worker} cannot go on: {error}")));
        }
        if let Some(node) = &self.running {
            self.device_gone(node.plan().device()).await;
        }
        Ok(())
    }

    async fn device_gone(&mut self, device: String) {
        warn!(device, "this device of ours was deleted by somebody else: making it anew");
        self.stop_running(Deadline::begins()).await;
        self.build().await;
        if self.running.is_some() {
            let what = format!("the device {device} with everything on it");
            self.means.restored.count(Repaired::Device, what);
        }
    }

    /// Addresses, devices or routes of this host have changed: its own addresses are no valid source from
    /// the wire, who is on our link may be another, and the interface to the other nodes may be another.
    async fn host_changed(&mut self) {
        match iface::choose_again(&self.means.spec, &self.means.underlay).await {
            Ok(underlay) => {
                self.means.problems.report(Part::Underlay, None);
                if underlay != self.means.underlay {
                    self.move_to(underlay).await;
                    return;
                }
            }
            Err(error) => {
                let problem = underlay::problem(&self.means.underlay, &error);
                self.means.problems.report(Part::Underlay, Some(problem));
            }
        }
        self.retry.hasten();
        self.publish().await;
        self.look_at_docker().await;
    }

    /// Whether the bridge of this node's containers is in its subnet. Not ours to put right: docker's would have to
    /// be restarted.
    async fn look_at_docker(&mut self) {
        let Some(node) = &self.running else { return };
        let plan = node.plan();
        let (network, subnet, device) = (plan.config.network, plan.subnet, plan.device());
        if !self.means.networks.contains(&network) {
            self.means.networks.push(network);
        }
        let problem = match docker::bridge(&self.means.networks, subnet, &device).await {
            Ok(Bridge::Stranded(stranded)) => Some(Problem::new(subnet, stranded.problem())),
            Ok(_) => None,
            Err(error) => return warn!(%error, "docker's bridge cannot be looked at"),
        };
        self.means.problems.report(Part::Docker, problem);
    }

    /// Makes `underlay` the interface to the other nodes. They learn of it by our lease, which keeps its subnet.
    async fn move_to(&mut self, underlay: Underlay) {
        underlay::tell(&underlay, "the interface to the other nodes has changed");
        self.means.underlay = underlay;
        self.means.public_ip.send_replace(self.means.underlay.public_ip);
        self.build().await;
    }

    /// What of the host is ours to look after; `None` while nothing is.
    fn interest(&self) -> Option<Interest> {
        let plan = self.running.as_ref()?.plan();
        Some(Interest {
            device: plan.device(),
            tap: plan.tap(),
            underlay: plan.underlay.index,
            network: plan.config.network,
        })
    }

    /// What others have taken away is put back. A lasting problem is told once.
    async fn sync_host(&mut self, touched: Touched) {
        if !self.retry.is_pending()
            && let Some(tunnel) = self.running.as_ref().and_then(|node| node.tunnel())
            && let Some(why) = self.rings.why_others(tunnel).await
        {
            info!(interface = self.means.underlay.name, why, "new rings");
            self.build().await;
        }
        let Some(node) = &self.running else { return };
        if let Some(tunnel) = node.tunnel() {
            self.hints.look(&tunnel.totals());
        }
        if touched.rules {
            self.means.rules.look();
        }
        if !touched.link {
            return;
        }
        match node.sync().await {
            Err(HostError::NoDevice(device)) => self.device_gone(device).await,
            Ok(put) => {
                self.means.problems.report(Part::Link, None);
                put.into_iter().for_each(|what| self.means.restored.count(Repaired::Link, what));
            }
            Err(error) => self.means.problems.report(Part::Link, Some(of_host(&error))),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.means.shared.lock()
    }
}

/// What `error` is for people and for the log.
fn of_node(error: &NodeError) -> Problem {
    Problem::new(error.kind(), error)
}

/// Changes from now on, as soon as they can be had.
async fn subscribed() -> HostChanges {
    let mut pauses = Backoff::of_this_host();
    loop {
        match HostChanges::subscribe() {
            Ok(changes) => return changes,
            Err(error) => {
                error!(%error, "this host's changes are not told: trying again");
                sleep(pauses.pause()).await;
            }
        }
    }
}

/// How long a process before this one may take to end.
const PREDECESSOR: Duration = Duration::from_secs(5);
const TAKEN_AGAIN: Duration = Duration::from_millis(20);
