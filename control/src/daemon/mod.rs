//! The daemon: brings what the store says and what this host has together, until it is told to stop.
//!
//! One task follows the store ([`crate::membership`]); this loop turns what it publishes into a
//! running [`Node`]. All of it runs on one thread: packets are the workers' business.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay::confine::Confinement;
use overlay::forwarder::OnFailure;
use overlay::handover::Inherited;
use overlay::ingress::SourceCheck;
use overlay::priority::Priority;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, Interval, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::events::Events;
use crate::flags::{FlagError, Flags, SourceCheckFlag, StoreKind};
use crate::health::Health;
use crate::host::firewall::{self, Firewall};
use crate::host::leftovers::devices_with_rules;
use crate::host::link::{self, HostChanges};
use crate::host::{HostError, Masquerade};
use crate::iface::{self, IfaceError, IfaceSpec, Underlay};
use crate::lease::{Ground, LeaseBackend};
use crate::listen::{self, ListenError};
use crate::membership::{BadConfig, Membership, Terms, View};
use crate::metrics::{Meters, Metrics, Repaired, StoreMeter};
use crate::netconf::NetworkConfig;
use crate::node::{Node, NodeError, NodeOptions, Plan, Tunnel};
use crate::page::Page;
use crate::privileges;
use crate::reconcile::Reconcile;
use crate::service_manager;
use crate::socket::{ControlSocket, Facts, path};
use crate::state::SavedState;
use crate::status::LeaseState;
use crate::store::{DirStore, EtcdStore, LeaseStore, StoreError, is_same_store};
use crate::subnet_file::Previous;
use crate::takeover::{self, TakeoverError};
use crate::unit;

mod earlier;
mod hints;
mod host;
mod report;
mod saving;
mod serving;

use earlier::{Earlier, remove_stale_rules};
use hints::Hints;
use report::Shared;
use saving::Lasting;

/// Why the daemon cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Flags that do not go together.
    #[error(transparent)]
    Flags(#[from] FlagError),
    /// No interface to the other nodes.
    #[error(transparent)]
    Iface(#[from] IfaceError),
    /// The store cannot be used at all.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network configuration is bad, and there is no earlier one.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The data plane or the host's configuration.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The host cannot be watched.
    #[error(transparent)]
    Host(#[from] HostError),
    /// What is to be told over TCP cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// What flanneld has left cannot be taken over.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// A file that others wait for cannot be written.
    #[error("cannot write {}: {source}{} (see --subnet-file)", path.display(), unit::hint(path, source))]
    SubnetFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// A worker has given up.
    #[error("{0}")]
    Worker(String),
}

/// Runs the daemon until SIGTERM or SIGINT. SIGHUP has it apply the network configuration as it is then.
///
/// # Errors
/// What keeps it from starting or from going on. The host's rules and files stay in place, so that
/// the next start disturbs as little as it can.
pub async fn run(flags: Flags, events: Events) -> Result<(), DaemonError> {
    if !flags.without_effect.is_empty() {
        debug!(flags = flags.without_effect.join(", "), "these flags of flanneld's have no effect here");
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    let reload = Arc::<Notify>::default();
    let serving = serve(flags, Arc::clone(&reload), events);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            error = &mut serving => return error,
            _ = terminate.recv() => {
                info!("SIGTERM: stopping");
                break;
            }
            _ = interrupt.recv() => {
                info!("SIGINT: stopping");
                break;
            }
            _ = hangup.recv() => {
                info!("SIGHUP: reading the network configuration again");
                reload.notify_one();
            }
        }
    }
    service_manager::stopping();
    Ok(())
}

async fn serve(flags: Flags, reload: Arc<Notify>, events: Events) -> Result<(), DaemonError> {
    let (health, meters) = (Health::default(), Meters::default());
    let shared = Arc::<Mutex<Shared>>::default();
    let source = serving::source(&flags, &meters, &health, &shared);
    let metrics = Metrics::new(&meters, Arc::clone(&source), flags.metrics_peers);
    let page = Page::new(source, meters.lease.clone());
    let services = serving::services(&flags, &health, &metrics, page, &events);
    let _listeners = listen::serve(services).await?;
    let spec = flags.iface_spec();
    let mut changes = HostChanges::subscribe()?;
    let underlay = iface::choose(&spec).await?;
    tell_underlay(&underlay, "interface chosen");
    let (store, usable) = connect_store(&flags, &meters.store).await?;
    let (failed, mut failures) = mpsc::unbounded_channel();
    let (public_ip, lease_address) = watch::channel(underlay.public_ip);
    let told = Told { health, meters: meters.clone(), metrics, events, shared };
    let mut daemon = Daemon::new(flags, spec, underlay, public_ip, Arc::clone(&store), failed, told);

    let saved = daemon.saved_view();
    let terms = daemon.terms(saved.as_ref());
    // With a saved state, the node forwards while somebody puts the certificates right.
    if saved.is_none() {
        usable?;
    }
    if let Some(view) = saved.clone() {
        info!(subnet = %view.lease.subnet, peers = view.peers.len(), "forwarding from the saved state of an earlier run");
        daemon.apply(view, LeaseState::Saved).await?;
    }

    let (out, mut views) = watch::channel(None);
    let membership = Membership::new(store, terms, saved, out)
        .following(lease_address)
        .reloading(reload)
        .measured(meters)
        .run();
    tokio::pin!(membership);
    let mut reconcile = Reconcile::start(daemon.resync_period())?;
    let mut watchdog = service_manager::alive_every().map(interval);
    loop {
        tokio::select! {
            error = &mut membership => return Err(error.into()),
            Some(failure) = failures.recv() => daemon.worker_failed(failure).await?,
            Ok(()) = views.changed() => {
                let view = views.borrow_and_update().clone();
                if let Some(view) = view {
                    let state = if view.held { LeaseState::Held } else { LeaseState::Lost };
                    daemon.apply(view, state).await?;
                }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    changes = HostChanges::subscribe()?;
                }
                daemon.host_changed().await;
            }
            touched = reconcile.due(daemon.interest()) => daemon.sync_host(touched).await,
            () = sleep_until(daemon.revival_at()), if daemon.revival.is_some() => daemon.revive().await,
            () = sleep_until(daemon.ready_at.unwrap_or_else(Instant::now)), if daemon.ready_at.is_some() => {
                daemon.tell_ready();
            }
            () = tick(&mut watchdog) => daemon.show_life(),
            () = sleep_until(daemon.save_at.unwrap_or_else(Instant::now)), if daemon.save_at.is_some() => {
                daemon.save();
            }
            () = sleep_until(daemon.lasting.due.unwrap_or_else(Instant::now)), if daemon.lasting.due.is_some() => {
                daemon.save_lasting();
            }
        }
    }
}

/// The store that the flags name.
///
/// Also says whether its certificates can be used as they are now; they may be put right later.
///
/// # Errors
/// It cannot be used at all.
pub async fn connect_store(
    flags: &Flags,
    meter: &StoreMeter,
) -> Result<(Arc<dyn LeaseStore>, Result<(), StoreError>), DaemonError> {
    Ok(match &flags.store {
        StoreKind::Etcd => {
            let (endpoints, prefix) = (flags.etcd_endpoints.0.clone(), flags.etcd_prefix.clone());
            let store = EtcdStore::connect_as(endpoints, prefix, flags.etcd_access()?, meter.clone()).await?;
            let usable = store.check_files().await;
            (Arc::new(store), usable)
        }
        StoreKind::Dir(path) => (Arc::new(DirStore::open(path)?.measured(meter.clone())), Ok(())),
    })
}

/// What runs, and what it was made from.
struct Daemon {
    flags: Flags,
    spec: IfaceSpec,
    underlay: Underlay,
    /// Why no interface fits any more, as last said.
    no_underlay: Option<String>,
    /// What our lease is to say of the underlay.
    public_ip: watch::Sender<Ipv4Addr>,
    store: String,
    failed: mpsc::UnboundedSender<Failure>,
    /// What the node before the next one may have left in the kernel.
    earlier: Option<Earlier>,
    running: Option<Running>,
    /// How many nodes have been built: a worker's last words concern the node that it belonged to.
    generation: u64,
    /// The attempt to build the node again whose device was deleted, or whose interface has changed.
    revival: Option<Revival>,
    /// Stays while a node is built again, and says so.
    socket: Option<(String, ControlSocket)>,
    /// For the control socket, which answers from the same thread but outlives borrows of the rest.
    shared: Arc<Mutex<Shared>>,
    health: Health,
    meters: Meters,
    metrics: Metrics,
    events: Events,
    /// What the last look at the device and at the rules could not put right.
    link_problem: Option<String>,
    rules_problem: Option<String>,
    /// Why docker's containers are not where the other nodes look for them.
    docker_problem: Option<String>,
    /// The networks that the overlay has, and has had as far as is known: docker's bridge may still be in one.
    networks: Vec<Ipv4Net>,
    /// Since when the store has not confirmed the lease.
    unconfirmed_since: Option<Instant>,
    /// When the state is to be written next, if it has changed.
    save_at: Option<Instant>,
    /// Why it could not be written last time, as last said.
    unsaved: Option<String>,
    /// The copy of it that outlives a reboot.
    lasting: Lasting,
    /// What has been said about dropped packets.
    hints: Hints,
    /// When the service manager is told that we are ready, if the store says nothing before.
    ready_at: Option<Instant>,
    /// What an earlier process has left.
    inherited: Inherited,
    /// What workers may do.
    confinement: Confinement,
    /// How they stand among the other threads of the host.
    priority: Priority,
    /// The rounds of the workers when the service manager was last told that they are alive.
    rounds: Vec<(String, u64)>,
}

/// By what the daemon tells of itself.
struct Told {
    health: Health,
    meters: Meters,
    metrics: Metrics,
    events: Events,
    shared: Arc<Mutex<Shared>>,
}

struct Running {
    node: Arc<Node>,
    firewall: Firewall,
}

/// A worker has given up.
struct Failure {
    generation: u64,
    worker: String,
    error: std::io::Error,
}

/// The attempt to build a node again that cannot go on as it was.
struct Revival {
    /// What is put back by it, if somebody has taken it away.
    put_back: Option<String>,
    at: Instant,
    /// After the next failure.
    pause: Duration,
    /// The last failure, said once.
    problem: Option<String>,
}

impl Daemon {
    fn new(
        flags: Flags,
        spec: IfaceSpec,
        underlay: Underlay,
        public_ip: watch::Sender<Ipv4Addr>,
        leases: Arc<dyn LeaseStore>,
        failed: mpsc::UnboundedSender<Failure>,
        Told { health, meters, metrics, events, shared }: Told,
    ) -> Self {
        let lasting = Lasting::new(&flags.subnet_file);
        let earlier_network = Previous::read(&flags.subnet_file).ok().and_then(|previous| previous.network);
        let store = leases.describe();
        let facts = Arc::new(Facts {
            started: std::time::Instant::now(),
            store: leases,
            settings: flags.settings.clone(),
            offloads: flags.offload.0.clone(),
        });
        {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.store.clone_from(&store);
            shared.facts = Some(facts);
        }
        Self {
            earlier: Earlier::of(&SavedState::path(&flags.subnet_file)),
            confinement: privileges::confinement(&flags),
            priority: privileges::priority(&flags),
            flags,
            spec,
            underlay,
            no_underlay: None,
            public_ip,
            store,
            failed,
            running: None,
            generation: 0,
            revival: None,
            socket: None,
            shared,
            health,
            meters,
            metrics,
            events,
            link_problem: None,
            rules_problem: None,
            docker_problem: None,
            networks: earlier_network.into_iter().collect(),
            unconfirmed_since: Some(Instant::now()),
            save_at: None,
            unsaved: None,
            lasting,
            hints: Hints::default(),
            ready_at: None,
            inherited: inherit(),
            rounds: Vec::new(),
        }
    }

    fn resync_period(&self) -> Duration {
        Duration::from_secs(u64::from(self.flags.iptables_resync))
    }

    fn options(&self) -> NodeOptions {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        NodeOptions {
            masquerade: Masquerade {
                return_path: self.flags.return_path_masq,
                ip_masq: self.flags.ip_masq,
                fully_random: !self.flags.ip_masq_fully_random_disable,
            },
            forward_rules: self.flags.iptables_forward_rules,
            firewall: self.flags.firewall,
            blackhole: self.flags.ip_blackhole_route,
            source_check: match self.flags.source_check {
                SourceCheckFlag::Strict => SourceCheck::Strict,
                SourceCheckFlag::Loose => SourceCheck::Loose,
                SourceCheckFlag::Off => SourceCheck::Off,
            },
            queues: self.flags.queues.map_or(cpus.min(MAX_DEFAULT_QUEUES), usize::from),
            offloads: self.flags.offload.0.clone(),
            spread_source_ports: self.flags.source_port_spread,
            stay_awake: Duration::from_micros(u64::from(self.flags.spin)),
            pin: self.flags.pin,
            io: self.flags.io,
            confinement: self.confinement.clone(),
            priority: self.priority.clone(),
        }
    }

    /// The state of an earlier run, if it is of this node and this network and still makes sense.
    fn saved_view(&self) -> Option<View> {
        let (saved, path) = self.read_saved()?;
        if !is_same_store(&saved.store, &self.store) || saved.public_ip != self.underlay.public_ip {
            info!(path = %path.display(), "the saved state is of another network or address: starting without");
            return None;
        }
        let config = NetworkConfig::parse(&saved.config).ok()?;
        let kind = saved.lease.attrs.backend.kind();
        let ground =
            Ground { config: &config, own: Some(saved.lease.subnet), public_ip: self.underlay.public_ip };
        let peers = ground.judge_saved(saved.peers);
        (kind == Some(config.backend.kind()) && config.fits(saved.lease.subnet)).then_some(View {
            config,
            config_text: saved.config,
            lease: saved.lease,
            held: false,
            peers,
            ignored: 0,
            refused: Vec::new(),
            refused_count: 0,
            garbage: 0,
            conflicts: Vec::new(),
            connected: false,
        })
    }

    fn terms(&self, saved: Option<&View>) -> Terms {
        let previous = Previous::read(&self.flags.subnet_file).unwrap_or_else(|error| {
            warn!(path = %self.flags.subnet_file.display(), %error, "cannot read the subnet file of an earlier run");
            Previous::default()
        });
        let vtep_mac = match saved.map(|view| &view.lease.attrs.backend) {
            Some(LeaseBackend::Vxlan { vtep_mac, .. }) => Some(*vtep_mac),
            _ => None,
        };
        Terms {
            public_ip: self.underlay.public_ip,
            previous: previous.subnet.or(saved.map(|view| view.lease.subnet)),
            vtep_mac,
            ttl: Duration::from_secs(u64::from(self.flags.subnet_lease_ttl)),
            renew_margin: self.flags.renew_margin(),
        }
    }

    /// Brings the host to what `view` says.
    async fn apply(&mut self, view: View, state: LeaseState) -> Result<(), DaemonError> {
        let plan = self.plan(&view);
        let device = plan.device();
        let mut save_after = SAVE_DELAY;
        let built = self.generation;
        match &self.running {
            Some(running) if *running.node.plan() == plan => {
                if let Err(error) = running.node.publish(&view.peers).await {
                    error!(%error, "the peers cannot be updated: the earlier ones stay");
                }
            }
            // It will be built as the view says that is kept below.
            None if self.revival.is_some() => {}
            _ => {
                let had_device = link::index_of(&device).await.is_ok();
                if let Err(error) = self.rebuild(plan, &view).await {
                    // The daemon ends; the device would stay.
                    if !had_device {
                        let _ = link::remove_unused_tun(&device).await;
                    }
                    return Err(error);
                }
                // At once: what is in the kernel now is to be found by the next run, however this one ends.
                save_after = Duration::ZERO;
            }
        }
        self.unconfirmed_since = match (view.connected && state == LeaseState::Held, self.unconfirmed_since) {
            (true, _) => None,
            (false, since) => since.or_else(|| Some(Instant::now())),
        };
        let lock = || self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lock().view.replace((view.clone(), state));
        if state == LeaseState::Held && before.is_none_or(|(before, _)| worth_saving(&before, &view)) {
            let save_at = Instant::now() + save_after;
            self.save_at = Some(self.save_at.map_or(save_at, |earlier| earlier.min(save_at)));
        }
        if built != self.generation {
            self.look_at_docker().await;
        }
        self.tell_health();
        if state == LeaseState::Saved {
            self.ready_at = Some(Instant::now() + PATIENCE);
        } else if built != self.generation || self.ready_at.is_some() {
            self.tell_ready();
        }
        if built != self.generation {
            // It takes a few programs, for which the lease need not wait.
            tokio::spawn(remove_stale_rules(device));
        }
        Ok(())
    }

    fn tell_ready(&mut self) {
        self.ready_at = None;
        service_manager::ready();
    }

    fn plan(&self, view: &View) -> Plan {
        let vtep_mac = match view.lease.attrs.backend {
            LeaseBackend::Vxlan { vtep_mac, .. } => vtep_mac,
            _ => overlay::MacAddr::default(),
        };
        Plan {
            config: view.config.clone(),
            subnet: view.lease.subnet,
            vtep_mac,
            underlay: self.underlay.clone(),
        }
    }

    async fn rebuild(&mut self, plan: Plan, view: &View) -> Result<(), DaemonError> {
        let device = plan.device();
        if let Some(before) = self.running.take() {
            let was = before.node.plan().subnet;
            if was == plan.subnet {
                info!(device, subnet = %was, "the node is rebuilt; connections of its containers go on");
            } else {
                warn!(device, before = %was, now = %plan.subnet, "the node is rebuilt: containers of the earlier subnet lose their connections");
            }
            self.take_over_from(before);
        }
        if let Some(earlier) = self.earlier.take() {
            earlier.remove(&plan).await;
        }
        // Rules that were there before are of an earlier run, and worth more than none. Whoever has left its
        // sockets has left its rules, too.
        let had_rules = !self.inherited.is_empty()
            || devices_with_rules().await.is_ok_and(|devices| devices.contains(&device));
        takeover::from_flanneld(&plan).await?;
        let built = self.build(plan, view).await;
        if built.is_err() && !had_rules {
            // What is not there need not be removed, and what cannot be is told by the error that follows.
            let _ = firewall::remove_all(&device).await;
        }
        let running = self.running.insert(built?);
        // A node without a tunnel has no use for it, and must not keep others from the port.
        self.inherited = Inherited::default();
        service_manager::keep(running.node.tunnel().map(Tunnel::forwarder));
        self.serve_socket(&device).await;
        Ok(())
    }

    /// Stops a node. The next one goes on with its device and its sockets, in which what arrives meanwhile
    /// waits.
    fn take_over_from(&mut self, before: Running) {
        let plan = before.node.plan();
        self.earlier = Some(Earlier::own(plan));
        match before.node.tunnel().map(|tunnel| tunnel.forwarder().hand_over()) {
            Some(Ok(inherited)) => self.inherited = inherited,
            Some(Err(error)) => warn!(%error, "the next node does without the sockets of this one"),
            None => {}
        }
        self.tell_health();
    }

    async fn build(&mut self, plan: Plan, view: &View) -> Result<Running, DaemonError> {
        self.generation += 1;
        let (generation, failed) = (self.generation, self.failed.clone());
        let on_failure: OnFailure = Arc::new(move |worker: &str, error: std::io::Error| {
            // The receiver is gone only when the daemon is stopping anyway.
            let _ = failed.send(Failure { generation, worker: worker.to_owned(), error });
        });
        let options = self.options();
        let (node, firewall) =
            Node::start(plan, &options, &view.peers, &on_failure, &mut self.inherited).await?;
        let plan = node.plan();
        self.write_subnet_file(plan)?;
        let (backend, port) = (plan.config.backend.name(), plan.wire().map(|(_, port)| port));
        info!(device = plan.device(), backend, subnet = %plan.subnet, mtu = plan.mtu(), port, peers = view.peers.len(), "forwarding");
        let node = Arc::new(node);
        self.meters.host.built();
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).node = Arc::downgrade(&node);
        Ok(Running { node, firewall })
    }

    /// A worker that has lost its device is no reason to end; any other is.
    async fn worker_failed(&mut self, failure: Failure) -> Result<(), DaemonError> {
        let Failure { generation, worker, error } = failure;
        if generation != self.generation || self.running.is_none() {
            return Ok(());
        }
        if error.raw_os_error() != Some(EBADFD) {
            return Err(DaemonError::Worker(format!("worker {worker} cannot go on: {error}")));
        }
        self.device_gone().await;
        Ok(())
    }

    async fn device_gone(&mut self) {
        if let Some(before) = self.running.take() {
            let device = before.node.plan().device();
            self.take_over_from(before);
            warn!(device, "the overlay device was deleted by somebody else: making it anew");
            self.build_again(Some(format!("the device {device} with everything on it"))).await;
        }
    }

    async fn build_again(&mut self, put_back: Option<String>) {
        self.revival = Some(Revival { put_back, at: Instant::now(), pause: FIRST_PAUSE, problem: None });
        self.revive().await;
    }

    fn revival_at(&self) -> Instant {
        self.revival.as_ref().map_or_else(Instant::now, |revival| revival.at)
    }

    /// Builds the node again, as the latest view has it. What fails is tried again, later and later.
    async fn revive(&mut self) {
        let view = self.shared.lock().unwrap_or_else(PoisonError::into_inner).view.clone();
        let (Some(mut revival), Some((view, _))) = (self.revival.take(), view) else { return };
        let plan = self.plan(&view);
        let device = plan.device();
        match self.rebuild(plan, &view).await {
            Ok(()) => {
                if let Some(what) = revival.put_back {
                    self.restored(Repaired::Device, what);
                }
            }
            Err(error) => {
                // It has what this attempt had, sockets above all, and the next one needs their port.
                service_manager::keep(None);
                let problem = error.to_string();
                if revival.problem.as_ref() != Some(&problem) {
                    error!(%problem, device, "the node cannot be built again: trying again");
                }
                revival.problem = Some(problem);
                revival.at = Instant::now() + revival.pause;
                revival.pause = (2 * revival.pause).min(LONGEST_PAUSE);
                self.revival = Some(revival);
            }
        }
        self.tell_health();
    }

    /// Without a control socket the node forwards all the same.
    async fn serve_socket(&mut self, device: &str) {
        if self.socket.as_ref().is_some_and(|(served, _)| served == device) {
            return;
        }
        self.socket = None;
        let path = match path::socket(device) {
            Ok(path) => path,
            Err(error) => {
                warn!(%error, "no control socket: the network namespace cannot be told");
                return;
            }
        };
        let others = self.metrics.router("/v1/metrics").merge(self.events.router());
        match ControlSocket::serve(&path, Arc::clone(&self.shared) as _, others).await {
            Ok(socket) => {
                if let Some(group) = self.flags.control_socket_group
                    && let Err(error) = socket.give_to(group)
                {
                    warn!(group, %error, "the control socket stays with the group that overlayd runs as: in its unit, SupplementaryGroups= makes it a member of another");
                }
                self.socket = Some((device.to_owned(), socket));
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "no control socket: overlayctl cannot ask this daemon");
            }
        }
    }

    /// Tells the service manager that we are alive, if every worker is.
    fn show_life(&mut self) {
        let tunnel = self.running.as_ref().and_then(|running| running.node.tunnel());
        let rounds = tunnel.map_or_else(Vec::new, |tunnel| tunnel.forwarder().rounds());
        // A worker of an earlier node is not meant, even if it had the same name.
        let stuck: Vec<&str> = rounds
            .iter()
            .filter(|worker| self.rounds.contains(worker))
            .map(|(name, _)| name.as_str())
            .collect();
        if stuck.is_empty() {
            service_manager::alive();
        } else {
            error!(
                workers = stuck.join(","),
                "workers are stuck: the service manager will restart the daemon"
            );
        }
        self.rounds = rounds;
    }
}

/// What an earlier process has left to us by way of the service manager.
fn inherit() -> Inherited {
    let inherited = Inherited::take().unwrap_or_else(|error| {
        warn!(%error, "what the service manager hands over cannot be taken");
        Inherited::default()
    });
    let (queues, sockets, refused) = inherited.counts();
    if refused > 0 {
        warn!(refused, "the service manager hands over descriptors that are not ours: they are not used");
        // Those of another version may hold the device. What is good is open here, too, and will be kept again.
        service_manager::forget();
    }
    if queues + sockets > 0 {
        info!(queues, sockets, "going on with the device and the sockets of an earlier process");
    }
    inherited
}

/// The next tick; never without an interval.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => _ = interval.tick().await,
        None => std::future::pending().await,
    }
}

fn tell_underlay(underlay: &Underlay, what: &str) {
    info!(
        interface = underlay.name,
        address = %underlay.address,
        public_ip = %underlay.public_ip,
        mtu = underlay.mtu,
        reason = underlay.reason,
        "{what}"
    );
}

/// Whether the saved state of `before` would mislead a node that is now as `after` says.
fn worth_saving(before: &View, after: &View) -> bool {
    (&before.config_text, &before.lease, &before.peers) != (&after.config_text, &after.lease, &after.peers)
}

/// Queues by default: what the busiest node of a cluster has use for; more cost memory and wake-ups.
const MAX_DEFAULT_QUEUES: usize = 8;
/// A store that answers does so by then. Who waits for us reads the subnet file, docker's options above all:
/// it is to say what the store says now, and not what an earlier run has saved.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long changes of the peers are gathered before they are written to disk.
const SAVE_DELAY: Duration = Duration::from_millis(500);
/// After the first failure to make a deleted device anew, doubled after each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What a TUN says once its device is gone (`drivers/net/tun.c`).
const EBADFD: i32 = 77;
