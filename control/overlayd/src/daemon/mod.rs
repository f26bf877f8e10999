//! The daemon: brings what the store says and what this host has together, until it is told to stop.
//!
//! Its parts are tasks that tell each other what has happened, and of which none waits for another:
//!
//! | task | what it owns |
//! | --- | --- |
//! | a [`LeaseManager`] | our lease, and what the store says |
//! | [`host_facts`] | what leases are judged by of this host |
//! | [`keeper`] | the node: builds it, replaces it, looks after it |
//! | [`rules`] | the firewall's rules, with the programs that these take |
//! | [`saving`] | the subnet file and the saved state |
//! | [`serving`] | what is served over TCP and on the control socket |
//!
//! What is wrong with any of them they report to [`crate::problems`]. The main loop, here, waits for nothing but
//! messages. All of it runs on one thread, and what may block on others: packets are the workers' business.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use overlay::handover::Inherited;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{debug, error, info, warn};

use crate::events::Events;
use crate::health::Health;
use crate::metrics::{HostMeter, Metrics};
use crate::page::Page;
use crate::privileges;
use crate::problems::{Part, Problems};
use crate::socket::Facts;
use overlay_flags::{ConnectError, Connected, Flags};
use overlay_host::link::HostChanges;
use overlay_host::reconcile::Reconcile;
use overlay_leases::lease::{Ground, HostFacts, LeaseBackend};
use overlay_leases::manager::{LeaseManager, Links};
use overlay_leases::membership::{MembershipError, Standing, Terms, View};
use overlay_leases::meters::{Meters, StoreMeter};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::store::{MAX_KEYS, StoreId};
use overlay_node::service_manager;
use overlay_support::problem::Problem;

mod earlier;
mod error;
mod hints;
mod host_facts;
mod keeper;
mod options;
mod report;
mod rules;
mod saving;
mod serving;
mod underlay;
mod watchdog;

use earlier::Earlier;
pub use error::DaemonError;
use keeper::{Inbox, Keeper, Means};
use report::{Restored, Shared};
use rules::Rules;
use saving::{Files, Left};
use serving::Serving;
use watchdog::Watchdog;

/// Runs the daemon until SIGTERM or SIGINT. SIGHUP has it apply the network configuration as it is then.
///
/// # Errors
/// What keeps it from starting or from going on. The host's rules and files stay in place, so that
/// the next start disturbs as little as it can.
pub async fn run(flags: Flags, events: Events) -> Result<(), DaemonError> {
    run_with(flags, events, Flags::lease_manager).await
}

/// The same with the lease manager that `connect` gives for the flags.
///
/// # Errors
/// As of [`run`].
pub async fn run_with(
    flags: Flags,
    events: Events,
    connect: impl AsyncFnOnce(&Flags, &StoreMeter) -> Result<Connected, ConnectError>,
) -> Result<(), DaemonError> {
    if !flags.without_effect.is_empty() {
        debug!(flags = flags.without_effect.join(", "), "these flags of flanneld's have no effect here");
    }
    let mut signals = Signals::new().map_err(DaemonError::Signals)?;
    let starting = Daemon::start(flags, events, Arc::clone(&signals.reload), connect);
    tokio::pin!(starting);
    let mut daemon = tokio::select! {
        started = &mut starting => started?,
        () = signals.stopped() => return Ok(()),
    };
    let result = daemon.go_on(&mut signals).await;
    if result.is_ok() {
        service_manager::stopping();
        end_in_time();
    }
    daemon.end().await;
    result
}

/// What the process is told by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Told of each SIGHUP.
    reload: Arc<Notify>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            reload: Arc::default(),
        })
    }

    /// Ends when the process is to end. May be cancelled.
    async fn stopped(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return info!("SIGTERM: stopping"),
                _ = self.interrupt.recv() => return info!("SIGINT: stopping"),
                _ = self.hangup.recv() => {
                    info!("SIGHUP: reading the network configuration again");
                    self.reload.notify_one();
                }
            }
        }
    }
}

/// Ends the process after [`END`], whatever still hangs then.
fn end_in_time() {
    // By a thread of its own, which waits for nothing of ours.
    std::thread::spawn(|| {
        std::thread::sleep(END);
        error!("stopping takes longer than {} s: ending without", END.as_secs());
        std::process::exit(0);
    });
}

/// The running daemon.
struct Daemon {
    lease: JoinHandle<MembershipError>,
    keeper: JoinHandle<(Result<(), DaemonError>, Files)>,
    /// What the keeper has left, once it has ended.
    files: Option<Files>,
    stop: watch::Sender<bool>,
    standing: watch::Receiver<Standing>,
    shared: Arc<Mutex<Shared>>,
    problems: Problems,
    /// How long our lease lasts.
    ttl: Duration,
    watchdog: Watchdog,
}

impl Daemon {
    async fn start(
        flags: Flags,
        events: Events,
        reload: Arc<Notify>,
        connect: impl AsyncFnOnce(&Flags, &StoreMeter) -> Result<Connected, ConnectError>,
    ) -> Result<Self, DaemonError> {
        let flags = Arc::new(flags);
        let (health, meters, host_meter) = (Health::default(), Meters::default(), HostMeter::default());
        let problems = Problems::told_to(health.clone());
        let restored = Restored::counted_on(host_meter.clone());
        let shared = Arc::new(Mutex::new(Shared::new(problems.clone(), restored.clone())));
        let source = serving::source(&flags, &meters, &health, &shared);
        let metrics = Metrics::new(&meters, &host_meter, Arc::clone(&source), flags.metrics_peers);
        let page = Page::new(source, meters.lease.clone());
        let serving = Serving::start(&flags, &health, &metrics, page, &events, &shared, &problems);

        let left = Left::read(&flags.subnet_file).await;
        let changes = HostChanges::subscribe()?;
        let earlier = left.state.as_ref().map(|(saved, _)| saved.public_ip);
        let (spec, underlay) = underlay::choose(&flags, earlier).await?;
        let (manager, usable) = connect(&flags, &meters.store).await?;
        let addresses = flags.store_addresses().await;
        let host = host_facts::follow(spec.clone(), underlay.clone(), addresses.clone()).await?;
        shared.lock().set_facts(facts(&flags, &manager), manager.id());
        let saved = saved_view(&left, &manager.id(), underlay.public_ip, host.borrow().clone());
        // With a saved state, the node forwards while somebody puts the certificates right.
        if saved.is_none() {
            usable?;
        }

        let (public_ip, lease_address) = watch::channel(underlay.public_ip);
        let (publish, views) = watch::channel(None);
        let (ask, questions) = mpsc::channel(1);
        let (running, runs) = watch::channel(None);
        let (stand, standing) = watch::channel(Standing::default());
        let terms = terms(&flags, &left, saved.as_ref(), underlay.public_ip);
        let links = Links {
            terms,
            earlier: saved.clone(),
            public_ip: lease_address,
            reload,
            host,
            questions: ask,
            runs,
            views: publish,
            standing: stand,
            meters,
        };

        let (stop, stopped) = watch::channel(false);
        let ttl = Duration::from_secs(u64::from(flags.subnet_lease_ttl));
        let reconcile = Reconcile::start(Duration::from_secs(u64::from(flags.iptables_resync)))?;
        let inbox = Inbox { views, questions, changes, reconcile, stop: stopped };
        let keeper = Keeper::new(Means {
            confinement: privileges::confinement(&flags),
            priority: privileges::priority(&flags),
            addresses,
            rules: Rules::start(problems.clone(), restored.clone()),
            files: Files::start(&flags.subnet_file, &problems),
            inherited: inherit().await,
            earlier: left.of_last_run.as_ref().and_then(Earlier::of),
            networks: left.previous.network.into_iter().collect(),
            store: manager.id(),
            flags,
            spec,
            underlay,
            public_ip,
            running,
            serving,
            problems: problems.clone(),
            restored,
            host_meter,
            shared: Arc::clone(&shared),
        });
        Ok(Self {
            lease: tokio::spawn(async move { manager.take_part(links).await }),
            keeper: tokio::spawn(keeper.run(saved, inbox)),
            files: None,
            stop,
            standing,
            shared,
            problems,
            ttl,
            watchdog: Watchdog::new(),
        })
    }

    /// Passes on what the tasks tell, until the process is to end. Nothing here takes time.
    async fn go_on(&mut self, signals: &mut Signals) -> Result<(), DaemonError> {
        let mut lease_looks = interval(LEASE_LOOKS);
        lease_looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = signals.stopped() => return Ok(()),
                ended = &mut self.lease => return Err(ended.map_err(task_failed)?.into()),
                ended = &mut self.keeper => {
                    let (result, files) = ended.map_err(task_failed)?;
                    self.files = Some(files);
                    return result;
                }
                Ok(()) = self.standing.changed() => self.tell_standing(),
                _ = lease_looks.tick() => {
                    let problem = self.shared.lock().lease_problem(self.ttl);
                    self.problems.note(Part::Lease, problem);
                }
                () = self.watchdog.due() => self.watchdog.feed(self.shared.lock().rounds()),
            }
        }
    }

    fn tell_standing(&mut self) {
        let Standing { waits_for, not_applied, beyond } = self.standing.borrow_and_update().clone();
        // The lease task has said so itself.
        self.problems.note(Part::Waiting, waits_for.map(Problem::of));
        self.problems.report(Part::Config, not_applied);
        let left_out = (beyond > 0).then(|| {
            let text = format!("{beyond} keys beyond {MAX_KEYS} are not used, or what has more bytes than so many leases have: delete those that are no nodes'");
            Problem::new("too many", text)
        });
        self.problems.report(Part::Leases, left_out);
    }

    /// Stops what runs, and has written what waits to be written.
    async fn end(self) {
        let deadline = Instant::now() + WORTH_WAITING;
        self.lease.abort();
        // It may have ended by itself.
        let _ = self.stop.send(true);
        let files = match self.files {
            Some(files) => Some(files),
            None => timeout_at(deadline, self.keeper).await.ok().and_then(Result::ok).map(|(_, files)| files),
        };
        match files {
            Some(files) => files.stop(deadline).await,
            None => warn!("the node is not stopped in time: it is left as it is"),
        }
    }
}

/// A task has panicked, which ends the process where it is built for use.
fn task_failed(error: tokio::task::JoinError) -> DaemonError {
    DaemonError::Worker(format!("a task of the daemon has failed: {error}"))
}

/// What does not change while the daemon runs.
fn facts(flags: &Flags, leases: &Arc<dyn LeaseManager>) -> Arc<Facts> {
    Arc::new(Facts {
        started: std::time::Instant::now(),
        leases: Arc::clone(leases),
        settings: flags.settings.clone(),
        offloads: flags.offload.0.clone(),
    })
}

/// The state of an earlier run, if it is of this node and this network and still makes sense.
fn saved_view(left: &Left, store: &StoreId, public_ip: Ipv4Addr, host: HostFacts) -> Option<View> {
    let (saved, path) = left.state.as_ref()?;
    if !saved.store.is_same_store(store) || saved.public_ip != public_ip {
        info!(path = %path.display(), "the saved state is of another network or address: starting without");
        return None;
    }
    let config = NetworkConfig::parse(&saved.config).ok()?;
    let kind = saved.lease.attrs.backend.kind();
    let ground = Ground { config: &config, own: Some(saved.lease.subnet), public_ip, host: &host };
    let peers = ground.judge_saved(saved.peers.clone());
    let is_usable = kind == Some(config.backend.kind()) && config.fits(saved.lease.subnet);
    is_usable.then(|| View::unconfirmed((saved.config.clone(), config), saved.lease.clone(), peers, host))
}

fn terms(flags: &Flags, left: &Left, saved: Option<&View>, public_ip: Ipv4Addr) -> Terms {
    let vtep_mac = match saved.map(|view| &view.lease.attrs.backend) {
        Some(LeaseBackend::Vxlan { vtep_mac, .. }) => Some(*vtep_mac),
        _ => None,
    };
    Terms {
        public_ip,
        previous: left.previous.subnet.or(saved.map(|view| view.lease.subnet)),
        vtep_mac,
        ttl: Duration::from_secs(u64::from(flags.subnet_lease_ttl)),
        renew_margin: flags.renew_margin(),
    }
}

/// What an earlier process has left to us by way of the service manager.
async fn inherit() -> Inherited {
    let inherited = Inherited::take().unwrap_or_else(|error| {
        warn!(%error, "what the service manager hands over cannot be taken");
        Inherited::default()
    });
    let (queues, sockets, refused) = inherited.counts();
    if refused > 0 {
        warn!(refused, "the service manager hands over descriptors that are not ours: they are not used");
        // Those of another version may hold the device. What is good is open here, too, and will be kept again.
        service_manager::forget().await;
    }
    if queues + sockets > 0 {
        info!(queues, sockets, "going on with the device and the sockets of an earlier process");
    }
    inherited
}

/// How often it is looked whether the lease has outlived its time.
const LEASE_LOOKS: Duration = Duration::from_secs(1);
/// From the word to stop to the end of the process, at most.
const END: Duration = Duration::from_secs(2);
/// What of it may go by with waiting for the node and for files.
const WORTH_WAITING: Duration = Duration::from_millis(1700);
