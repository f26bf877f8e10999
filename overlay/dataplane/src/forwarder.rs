//! The workers: for each queue of the device one thread in each direction.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::time::{Duration, Instant};

use overlay_sys::affinity;
use overlay_sys::wake::StopFlag;
use overlay_sys::xdp_prog::Attached;
use parking_lot::{Mutex, MutexGuard};
use socket2::Socket;

use crate::admit::SourceCheck;
use crate::answers::RawSockets;
use crate::confine::Confinement;
use crate::echo::{self, Echo, OnAnswer, Ports};
use crate::error::SetupError;
use crate::handover::{Inherited, Role};
use crate::idle::Idle;
use crate::offload::Offloads;
use crate::priority::Priority;
use crate::stats::{Totals, WorkerStats};
use crate::table::{PeerTable, SharedTable};
use crate::tun::TunQueue;
use crate::underlay::port::{Attach, Port, PortState};
use crate::underlay::udp;
use crate::underlay::whole::TapQueue;
use crate::underlay::xdp::Rings;
use crate::warden::{Place, Warden};
use crate::witness::Watched;

mod pair;

use pair::{Between, Common, Pair};

/// What the forwarder stands between, and how strict it is.
pub struct Config {
    /// The overlay device, one queue for each pair of workers.
    pub queues: Vec<TunQueue>,
    /// The address and port that peers send to.
    pub listen: SocketAddr,
    /// Sockets of an earlier process that share it.
    pub inherited: Vec<Socket>,
    /// The underlay's interface, if its rings are used beside the sockets.
    pub port: Option<Port>,
    /// What is asked of sources.
    pub source_check: SourceCheck,
    /// The network's state; the forwarder follows what is published there.
    pub table: SharedTable,
    /// What the kernel is asked to do for us. What it cannot do is switched off.
    pub offloads: Arc<Offloads>,
    /// Whether flows leave by different source ports, so that routers and network cards on the way
    /// can tell them apart and spread them. Otherwise all leave by the port of `listen`.
    pub spread_source_ports: bool,
    /// The TAP by which super-packets leave whole, a queue for each worker; none if they do not.
    pub taps: Vec<TapQueue>,
    /// How long a worker looks for more before it sleeps; zero for not at all.
    pub stay_awake: Duration,
    /// Whether the workers of a queue are tied to one processor.
    pub pin: bool,
    /// What the workers may do besides.
    pub confinement: Confinement,
    /// How the workers stand among the other threads of the host.
    pub priority: Priority,
    /// Told of each answer to one of our echoes.
    pub on_answer: OnAnswer,
}

/// How long workers that are dropped are waited for. Each looks at the flag after every batch, and sleeps on it.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Running workers. They stop when this is dropped, if they have not been [stopped](Self::stop).
pub struct Forwarder {
    stop: Arc<StopFlag>,
    workers: Mutex<Workers>,
    egress: Vec<Arc<WorkerStats>>,
    ingress: Vec<Arc<WorkerStats>>,
    /// To be handed over to a later process.
    kept: Vec<Between<Socket>>,
    ports: Ports,
    watched: Arc<Watched>,
    port: Option<Arc<PortState>>,
    /// Kept for its program to stay attached.
    attached: Mutex<Option<Attached>>,
    priority: Priority,
    /// Where the workers are anything but ordinary threads.
    warden: Option<Warden>,
}

/// The threads, by name, that have not ended.
struct Workers {
    running: BTreeSet<String>,
    /// Tells the name of each that ends.
    ended: mpsc::Receiver<String>,
    tell: mpsc::Sender<String>,
}

/// Tells that a thread has ended, and holds nothing any more, however it came to that.
struct Ends {
    name: String,
    tell: mpsc::Sender<String>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        // Nobody waits once the forwarder is gone.
        let _ = self.tell.send(std::mem::take(&mut self.name));
    }
}

/// How workers run.
struct Manner {
    pin: bool,
    awake: Duration,
    priority: Priority,
    confinement: Confinement,
}

impl Manner {
    /// The calling thread is a worker of the pair of this index from now on, at this place.
    fn enter(&self, index: usize, place: Option<Place>) -> std::io::Result<Idle> {
        if self.pin {
            // A processor that is not there any more is no reason not to forward.
            let _ = affinity::pin_to(index);
        }
        self.priority.enter();
        let idle = Idle::new(self.awake).at(place);
        self.confinement.enter()?;
        Ok(idle)
    }
}

/// Told once for each worker that had to give up: its name and why.
pub type OnFailure = Arc<dyn Fn(&str, std::io::Error) + Send + Sync>;

impl Forwarder {
    /// Starts the workers. `on_failure` is called from a worker that cannot go on, for instance
    /// since the device has been deleted.
    ///
    /// # Errors
    /// A socket or a thread is not to be had; nothing runs then.
    pub fn start(config: Config, on_failure: &OnFailure) -> Result<Self, SetupError> {
        let count = config.queues.len();
        let common = Common {
            count,
            listen: config.listen,
            spread_source_ports: config.spread_source_ports,
            source_check: config.source_check,
            table: config.table,
            on_answer: config.on_answer,
            icmp: RawSockets::open()?,
            limits: Arc::default(),
            stop: Arc::new(StopFlag::new().map_err(pair::failed("create an eventfd", count))?),
            watched: Arc::default(),
            offloads: config.offloads,
        };
        let manner = Arc::new(Manner {
            pin: config.pin,
            awake: config.stay_awake,
            priority: config.priority,
            confinement: config.confinement,
        });
        let sockets = udp::open_shared(config.listen, count, &common.offloads, config.inherited)?;
        let thread = common.failed("start a thread");
        let (tell, ended) = mpsc::channel();
        let mut forwarder = Self {
            stop: Arc::clone(&common.stop),
            workers: Mutex::new(Workers { running: BTreeSet::new(), ended, tell }),
            egress: Vec::new(),
            ingress: Vec::new(),
            kept: Vec::new(),
            ports: Ports::default(),
            watched: Arc::clone(&common.watched),
            port: None,
            attached: Mutex::default(),
            warden: Warden::of(&manner.priority, 2 * count, manner.awake).map_err(&thread)?,
            priority: manner.priority.clone(),
        };
        let mut rings = config.port.map(|port| {
            let (attached, state, rings) = Rings::deal(port, count);
            forwarder.port = Some(state);
            *forwarder.attached() = Some(attached);
            rings
        });
        let mut taps = config.taps.into_iter();
        for (index, (queue, socket)) in config.queues.into_iter().zip(sockets).enumerate() {
            let between = Between { queue, socket, tap: taps.next() };
            forwarder.kept.push(between.copy().map_err(common.failed("duplicate a queue or a socket"))?);
            let pair = Pair::build(index, between, rings.as_mut(), &common, &mut forwarder.ports)?;
            forwarder.run(index, pair, &manner, on_failure).map_err(&thread)?;
        }
        Ok(forwarder)
    }

    /// Starts the threads of a pair.
    fn run(
        &mut self,
        index: usize,
        pair: Pair,
        manner: &Arc<Manner>,
        on_failure: &OnFailure,
    ) -> std::io::Result<()> {
        let Pair { egress, ingress, egress_stats, ingress_stats } = pair;
        self.egress.push(egress_stats);
        self.ingress.push(ingress_stats);
        let (place, way) = (self.place(2 * index), Arc::clone(manner));
        self.spawn(format!("egress-{index}"), on_failure, move |stop| {
            egress.run(way.enter(index, place)?, stop)
        })?;
        let (place, way) = (self.place(2 * index + 1), Arc::clone(manner));
        self.spawn(format!("ingress-{index}"), on_failure, move |stop| {
            ingress.run(way.enter(index, place)?, stop)
        })
    }

    fn place(&self, number: usize) -> Option<Place> {
        self.warden.as_ref().map(|warden| warden.place(number))
    }

    /// What the workers have seen of packets, and where to capture them.
    #[must_use]
    pub fn watched(&self) -> &Arc<Watched> {
        &self.watched
    }

    /// The counters of each worker from the device to the wire.
    #[must_use]
    pub fn egress(&self) -> Vec<Totals> {
        self.egress.iter().map(|stats| stats.totals()).collect()
    }

    /// The counters of each worker from the wire to the device.
    #[must_use]
    pub fn ingress(&self) -> Vec<Totals> {
        self.ingress.iter().map(|stats| stats.totals()).collect()
    }

    /// Asks the node whose overlay device has the address `to` for an answer with `token`, by a packet of
    /// `len` bytes, to be told of as an [`OnAnswer`].
    ///
    /// # Errors
    /// `HostUnreachable` if no node has it; otherwise what the kernel said.
    pub fn ask(&self, to: IpAddr, token: u64, len: usize, table: &PeerTable) -> std::io::Result<()> {
        let question = Echo { kind: echo::Kind::Question, token };
        echo::send(&self.ports, question, to, len, table)
    }

    /// What another forwarder can go on with after this one, in this process.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    pub fn hand_over(&self) -> std::io::Result<Inherited> {
        let copy = |name: &str, fd: BorrowedFd<'_>| Ok((name.to_owned(), fd.try_clone_to_owned()?));
        let queues = self.queues().map(|queue| copy("", queue.as_fd()));
        let sockets = self.sockets().map(|socket| copy("", socket.as_fd()));
        let tap = self.tap().map(|fd| copy(Role::Tap.name(), fd));
        let copies = queues.chain(sockets).chain(tap).collect::<std::io::Result<Vec<_>>>()?;
        let link = self.link()?.map(|link| (Role::Rings.name().to_owned(), link));
        Ok(copies.into_iter().chain(link).collect())
    }

    /// What a later process can go on with: the queues of the device.
    pub fn queues(&self) -> impl Iterator<Item = &TunQueue> {
        self.kept.iter().map(|kept| &kept.queue)
    }

    /// And the sockets that peers send to.
    pub fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.kept.iter().map(|kept| &kept.socket)
    }

    /// And the place of the program on the interface, where there is one in the driver: a card would begin anew,
    /// and lose what it has, if that were taken away and put back.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    pub fn link(&self) -> std::io::Result<Option<OwnedFd>> {
        let native = self.port.as_ref().is_some_and(|state| state.attach == Attach::Native);
        let attached = self.attached();
        let link = attached.as_ref().filter(|_| native).map(|attached| attached.link().as_fd());
        link.map(|fd| fd.try_clone_to_owned()).transpose()
    }

    /// And of the TAP by which super-packets leave whole, if there is one, its queues and the place of its program:
    /// the kernel takes longer to take it down, and to make it anew, than all else takes.
    pub fn tap(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let queues = self.kept.iter().filter_map(|kept| kept.tap.as_ref());
        let link = queues.clone().next().map(|queue| queue.link().as_fd());
        queues.map(AsFd::as_fd).chain(link)
    }

    /// The interface whose rings are used, if they are.
    #[must_use]
    pub fn port(&self) -> Option<&Arc<PortState>> {
        self.port.as_ref()
    }

    /// How the workers stand among the other threads of the host.
    #[must_use]
    pub fn priority(&self) -> &Priority {
        &self.priority
    }

    /// Whether the processors are crowded, so that workers sleep at once, and have real time if they may.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.warden.as_ref().is_some_and(Warden::is_crowded)
    }

    /// How often each worker has been round its loop, by name: one that stands still is stuck.
    #[must_use]
    pub fn rounds(&self) -> Vec<(String, u64)> {
        let named = |name: &'static str, all: &[Arc<WorkerStats>]| {
            let rounds =
                |(index, stats): (usize, &Arc<WorkerStats>)| (format!("{name}-{index}"), stats.rounds());
            all.iter().enumerate().map(rounds).collect::<Vec<_>>()
        };
        [named("egress", &self.egress), named("ingress", &self.ingress)].concat()
    }

    /// Has the workers stop, and waits for them for up to `patience`. Returns the names of those that have not ended
    /// by then: they are left behind, and end when what holds them up lets go of them.
    pub fn stop(&self, patience: Duration) -> Vec<String> {
        // First of all what comes goes to the sockets again, which may be handed over, as may the place of the
        // program that lets it pass. What is in the rings is forwarded before the workers stop.
        *self.attached() = None;
        self.stop.raise();
        let deadline = Instant::now() + patience;
        let mut workers = self.workers();
        while !workers.running.is_empty() {
            let Ok(name) = workers.ended.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            else {
                break;
            };
            workers.running.remove(&name);
        }
        workers.running.iter().cloned().collect()
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock()
    }

    fn attached(&self) -> MutexGuard<'_, Option<Attached>> {
        self.attached.lock()
    }

    fn spawn(
        &mut self,
        name: String,
        on_failure: &OnFailure,
        run: impl FnOnce(&StopFlag) -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let stop = Arc::clone(&self.stop);
        let on_failure = Arc::clone(on_failure);
        let mut workers = self.workers();
        let ends = Ends { name: name.clone(), tell: workers.tell.clone() };
        Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = run(&stop) {
                on_failure(&ends.name, error);
            }
        })?;
        workers.running.insert(name);
        drop(workers);
        Ok(())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop(LAST_WAIT);
    }
}
