//! The daemon: brings what the store says and what this host has together, until it is told to stop.
//!
//! One task follows the store ([`crate::membership`]); this loop turns what it publishes into a
//! running [`Node`]. All of it runs on one thread: packets are the workers' business.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay::drops::DropReason;
use overlay::forwarder::OnFailure;
use overlay::handover::Inherited;
use overlay::ingress::SourceCheck;
use overlay::offload::Offload;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::flags::{FlagError, Flags, SourceCheckFlag, StoreKind};
use crate::host::firewall::{self, Firewall};
use crate::host::link::HostChanges;
use crate::host::{HostError, Masquerade, routes};
use crate::iface::{self, IfaceError, IfaceSpec, Underlay};
use crate::lease::LeaseBackend;
use crate::membership::{BadConfig, Membership, Terms, View};
use crate::netconf::{Backend, NetworkConfig};
use crate::node::{Node, NodeError, NodeOptions, Plan, Reached, Tunnel};
use crate::service_manager;
use crate::socket::{ControlSocket, StatusSource, path};
use crate::state::{SavedState, StateError};
use crate::status::{
    BackendStatus, Counters, DeviceStatus, Directions, LeaseState, LeaseStatus, PeerStatus, Status,
    StoreStatus, drops,
};
use crate::store::{DirStore, EtcdStore, LeaseStore, StoreError};
use crate::subnet_file::{Previous, SubnetFile};

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
    /// A file that others wait for cannot be written.
    #[error("cannot write {path}: {source} (see --subnet-file)")]
    SubnetFile {
        /// The file.
        path: String,
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

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting or from going on. The host's rules and files stay in place, so that
/// the next start disturbs as little as it can.
pub async fn run(flags: Flags) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    tokio::select! {
        error = serve(flags) => return error,
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
    }
    service_manager::stopping();
    Ok(())
}

async fn serve(flags: Flags) -> Result<(), DaemonError> {
    let spec = IfaceSpec {
        iface: flags.iface.clone(),
        regex: flags.iface_regex.clone(),
        can_reach: flags.iface_can_reach,
        public_ip: flags.public_ip,
    };
    let mut changes = HostChanges::subscribe()?;
    let underlay = iface::choose(&spec).await?;
    tell_underlay(&underlay, "interface chosen");
    let (store, usable): (Arc<dyn LeaseStore>, _) = match &flags.store {
        StoreKind::Etcd => {
            let (endpoints, prefix) = (flags.etcd_endpoints.0.clone(), flags.etcd_prefix.clone());
            let store = EtcdStore::connect_as(endpoints, prefix, flags.etcd_access()?).await?;
            let usable = store.check_files().await;
            (Arc::new(store), usable)
        }
        StoreKind::Dir(path) => (Arc::new(DirStore::open(path)?), Ok(())),
    };

    let (failed, mut failures) = mpsc::unbounded_channel();
    let on_failure: OnFailure = Arc::new(move |worker: &str, error: std::io::Error| {
        // The receiver is gone only when the daemon is stopping anyway.
        let _ =
            failed.send(format!("worker {worker} cannot go on: {error} (was the overlay device deleted?)"));
    });
    let (public_ip, lease_address) = watch::channel(underlay.public_ip);
    let mut daemon = Daemon::new(flags, spec, underlay, public_ip, store.describe(), on_failure);

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
    let membership = Membership::new(store, terms, saved, out).following(lease_address).run();
    tokio::pin!(membership);
    let mut resync = interval(daemon.resync_period());
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = service_manager::alive_every().map(interval);
    loop {
        tokio::select! {
            error = &mut membership => return Err(error.into()),
            Some(failure) = failures.recv() => return Err(DaemonError::Worker(failure)),
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
            _ = resync.tick() => daemon.sync_host().await,
            () = tick(&mut watchdog) => daemon.show_life(),
            () = sleep_until(daemon.save_at.unwrap_or_else(Instant::now)), if daemon.save_at.is_some() => {
                daemon.save();
            }
        }
    }
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
    on_failure: OnFailure,
    /// What an earlier run may have left in the kernel, until the first node is started.
    earlier: Option<Earlier>,
    running: Option<Running>,
    /// For the control socket, which answers from the same thread but outlives borrows of the rest.
    shared: Arc<Mutex<Shared>>,
    /// What the last resync could not put right.
    host_problems: Vec<String>,
    /// When the state is to be written next, if it has changed.
    save_at: Option<Instant>,
    /// What an earlier process has left.
    inherited: Inherited,
    /// The rounds of the workers when the service manager was last told that they are alive.
    rounds: Vec<(String, u64)>,
}

struct Running {
    node: Arc<Node>,
    firewall: Firewall,
    _socket: Option<ControlSocket>,
}

/// What an earlier run had put into the kernel, as its saved state tells.
struct Earlier {
    /// What its rules are named after.
    device: String,
    /// What its routes lie in.
    network: Ipv4Net,
}

impl Earlier {
    fn of(path: &Path) -> Option<Self> {
        let config = NetworkConfig::parse(&SavedState::read(path).ok()?.config).ok()?;
        Some(Self { device: config.device(), network: config.network })
    }

    /// Removes what the node of `plan` will not replace by its own. What another daemon has taken over since
    /// is left alone.
    async fn remove(&self, plan: &Plan) {
        let in_use = path::socket(&self.device).is_ok_and(|path| UnixStream::connect(path).is_ok());
        if self.device != plan.device()
            && !in_use
            && let Err(error) = firewall::remove_all(&self.device).await
        {
            warn!(%error, device = self.device, "rules of an earlier run stay behind");
        }
        if self.network != plan.config.network
            && !in_use
            && let Err(error) = routes::sync(self.network, false, &[]).await
        {
            warn!(%error, network = %self.network, "routes of an earlier run stay behind");
        }
    }
}

#[derive(Default)]
struct Shared {
    node: Weak<Node>,
    view: Option<(View, LeaseState)>,
    store: String,
}

impl Daemon {
    fn new(
        flags: Flags,
        spec: IfaceSpec,
        underlay: Underlay,
        public_ip: watch::Sender<Ipv4Addr>,
        store: String,
        on_failure: OnFailure,
    ) -> Self {
        let shared = Arc::new(Mutex::new(Shared { store: store.clone(), ..Shared::default() }));
        Self {
            earlier: Earlier::of(&SavedState::path(&flags.subnet_file)),
            flags,
            spec,
            underlay,
            no_underlay: None,
            public_ip,
            store,
            on_failure,
            running: None,
            shared,
            host_problems: Vec::new(),
            save_at: None,
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
        }
    }

    /// The state of an earlier run, if it is of this node and this network and still makes sense.
    fn saved_view(&self) -> Option<View> {
        let path = SavedState::path(&self.flags.subnet_file);
        let saved = match SavedState::read(&path) {
            Ok(saved) => saved,
            Err(StateError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return None;
            }
            Err(error) => {
                warn!(%error, "the saved state cannot be used: starting without");
                return None;
            }
        };
        if saved.store != self.store || saved.public_ip != self.underlay.public_ip {
            info!(path = %path.display(), "the saved state is of another network or address: starting without");
            return None;
        }
        let config = NetworkConfig::parse(&saved.config).ok()?;
        let kind = saved.lease.attrs.backend.kind();
        (kind == Some(config.backend.kind()) && config.fits(saved.lease.subnet)).then_some(View {
            config,
            config_text: saved.config,
            lease: saved.lease,
            held: false,
            peers: saved.peers,
            ignored: 0,
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
        let mut save_after = SAVE_DELAY;
        match &self.running {
            Some(running) if *running.node.plan() == plan => {
                if let Err(error) = running.node.publish(&view.peers).await {
                    error!(%error, "the peers cannot be updated: the earlier ones stay");
                }
            }
            _ => {
                self.rebuild(plan, &view).await?;
                // At once: what is in the kernel now is to be found by the next run, however this one ends.
                save_after = Duration::ZERO;
            }
        }
        let lock = || self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lock().view.replace((view.clone(), state));
        if state == LeaseState::Held && before.is_none_or(|(before, _)| worth_saving(&before, &view)) {
            let save_at = Instant::now() + save_after;
            self.save_at = Some(self.save_at.map_or(save_at, |earlier| earlier.min(save_at)));
        }
        Ok(())
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
            let (old, was) = (before.node.plan().device(), before.node.plan().subnet);
            if was == plan.subnet {
                info!(device, subnet = %was, "the node is rebuilt; connections of its containers go on");
            } else {
                warn!(device, before = %was, now = %plan.subnet, "the node is rebuilt: containers of the earlier subnet lose their connections, restart docker");
            }
            if old != device {
                before.node.forget_device();
            }
            drop(before);
            if old != device
                && let Err(error) = firewall::remove_all(&old).await
            {
                warn!(%error, device = old, "rules of the earlier device stay behind");
            }
        }
        if let Some(earlier) = self.earlier.take() {
            earlier.remove(&plan).await;
        }
        let options = self.options();
        let (node, firewall) =
            Node::start(plan, &options, &view.peers, &self.on_failure, &mut self.inherited).await?;
        let node = Arc::new(node);
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).node = Arc::downgrade(&node);
        self.write_subnet_file(node.plan())?;
        let socket = self.serve_socket(&device).await;
        let plan = node.plan();
        let (backend, port) = (plan.config.backend.name(), plan.wire().map(|(_, port)| port));
        info!(device, backend, subnet = %plan.subnet, mtu = plan.mtu(), port, peers = view.peers.len(), "forwarding");
        let running = Running { node, firewall, _socket: socket };
        service_manager::keep(running.node.tunnel().map(Tunnel::forwarder));
        self.running = Some(running);
        service_manager::ready();
        Ok(())
    }

    fn write_subnet_file(&self, plan: &Plan) -> Result<(), DaemonError> {
        let file = SubnetFile {
            network: plan.config.network,
            subnet: plan.subnet,
            mtu: plan.mtu(),
            ip_masq: self.flags.ip_masq,
        };
        let path = &self.flags.subnet_file;
        file.write(path)
            .map_err(|source| DaemonError::SubnetFile { path: path.display().to_string(), source })
    }

    /// Without a control socket the node forwards all the same.
    async fn serve_socket(&self, device: &str) -> Option<ControlSocket> {
        let shared = Arc::clone(&self.shared);
        let source: StatusSource =
            Arc::new(move || shared.lock().unwrap_or_else(PoisonError::into_inner).status());
        let path = match path::socket(device) {
            Ok(path) => path,
            Err(error) => {
                warn!(%error, "no control socket: the network namespace cannot be told");
                return None;
            }
        };
        match ControlSocket::serve(&path, source).await {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!(path = %path.display(), %error, "no control socket: overlayctl cannot ask this daemon");
                None
            }
        }
    }

    /// Addresses, devices or routes of this host have changed: its own addresses are no valid source from
    /// the wire, who is on our link may be another, and the interface to the other nodes may be another.
    async fn host_changed(&mut self) {
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
        let view = self.shared.lock().unwrap_or_else(PoisonError::into_inner).view.clone();
        if let (Some(running), Some((view, _))) = (&self.running, view)
            && let Err(error) = running.node.publish(&view.peers).await
        {
            error!(%error, "this host's addresses and routes cannot be read: the earlier ones count");
        }
    }

    /// Makes `underlay` the interface to the other nodes. They learn of it by our lease, which keeps its subnet.
    async fn move_to(&mut self, underlay: Underlay) {
        tell_underlay(&underlay, "the interface to the other nodes has changed");
        self.underlay = underlay;
        self.public_ip.send_replace(self.underlay.public_ip);
        self.restart().await;
    }

    /// Builds the node for what is known. What fails is tried again at the next resync.
    async fn restart(&mut self) {
        let view = self.shared.lock().unwrap_or_else(PoisonError::into_inner).view.clone();
        let Some((view, _)) = view else { return };
        if let Err(error) = self.rebuild(self.plan(&view), &view).await {
            let problems = vec![error.to_string()];
            if problems != self.host_problems {
                error!(%error, "the node cannot be rebuilt: trying again at every resync");
                self.host_problems = problems;
            }
        }
    }

    /// What others have taken away is put back. A lasting problem is told once.
    async fn sync_host(&mut self) {
        if self.running.is_none() {
            self.restart().await;
        }
        let Some(running) = &mut self.running else { return };
        let synced = [running.node.sync().await.map(drop), running.firewall.sync().await.map(drop)];
        let problems: Vec<String> =
            synced.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
        if problems != self.host_problems {
            for problem in &problems {
                warn!(%problem, "the host is not as it should be: trying again at every resync");
            }
            if problems.is_empty() {
                info!("the host is as it should be again");
            }
            self.host_problems = problems;
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

    fn save(&mut self) {
        self.save_at = None;
        let view = match &self.shared.lock().unwrap_or_else(PoisonError::into_inner).view {
            Some((view, _)) => view.clone(),
            None => return,
        };
        let state = SavedState {
            store: self.store.clone(),
            public_ip: self.underlay.public_ip,
            config: view.config_text,
            lease: view.lease,
            peers: view.peers,
        };
        let path = SavedState::path(&self.flags.subnet_file);
        match state.write(&path) {
            Ok(()) => debug!(path = %path.display(), peers = state.peers.len(), "state saved"),
            Err(error) => {
                warn!(path = %path.display(), %error, "the state cannot be saved: a restart would wait for the store");
            }
        }
    }
}

impl Drop for Daemon {
    /// A change that was not written yet is written before the daemon is gone.
    fn drop(&mut self) {
        if self.save_at.is_some() {
            self.save();
        }
    }
}

impl Shared {
    fn status(&self) -> Option<Status> {
        let node = self.node.upgrade()?;
        let (view, state) = self.view.as_ref()?;
        let plan = node.plan();
        let (egress, ingress) = node.tunnel().map(Tunnel::totals).unwrap_or_default();
        let (kind, place) = self.store.split_once(' ').unwrap_or((&self.store, ""));
        let peer = |Reached { lease, way, problem }: Reached| PeerStatus {
            subnet: lease.subnet,
            public_ip: lease.attrs.public_ip,
            vtep_mac: match lease.attrs.backend {
                LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac.to_string()),
                _ => None,
            },
            way,
            problem,
        };
        Some(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: node.tunnel().map(|tunnel| DeviceStatus {
                name: plan.device(),
                mtu: plan.mtu(),
                queues: tunnel.queues,
                address: plan.overlay_address(),
            }),
            backend: match plan.config.backend {
                Backend::Udp { port } => BackendStatus::Udp { port },
                Backend::Vxlan { vni, port, direct_routing, .. } => {
                    BackendStatus::Vxlan { port, vni, vtep_mac: plan.vtep_mac.to_string(), direct_routing }
                }
                Backend::HostGw => BackendStatus::HostGw { interface: plan.underlay.name.clone() },
                Backend::Alloc => BackendStatus::Alloc,
            },
            network: plan.config.network,
            lease: LeaseStatus { subnet: plan.subnet, public_ip: plan.underlay.public_ip, state: *state },
            store: StoreStatus {
                kind: kind.to_owned(),
                r#where: place.to_owned(),
                connected: view.connected,
            },
            peers: node.peers().into_iter().map(peer).collect(),
            ignored_leases: view.ignored,
            garbage_leases: view.garbage,
            conflicts: view.conflicts.iter().map(ToString::to_string).collect(),
            offloads: node.tunnel().map_or_else(BTreeMap::new, |tunnel| {
                Offload::ALL
                    .into_iter()
                    .map(|offload| (offload.label().to_owned(), tunnel.offloads.is_on(offload)))
                    .collect()
            }),
            source_check: node.tunnel().map(|tunnel| {
                match tunnel.source_check {
                    SourceCheck::Strict => "strict",
                    SourceCheck::Loose => "loose",
                    SourceCheck::Off => "off",
                }
                .to_owned()
            }),
            counters: Directions { egress: Counters::from(&egress), ingress: Counters::from(&ingress) },
            drops: Directions {
                egress: drops(&egress, &DropReason::EGRESS),
                ingress: drops(&ingress, &DropReason::INGRESS),
            },
            icmp_sent: egress.icmp_sent + ingress.icmp_sent,
        })
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
/// How long changes of the peers are gathered before they are written to disk.
const SAVE_DELAY: Duration = Duration::from_millis(500);
