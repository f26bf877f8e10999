//! Watches what the host's rules do to the overlay's packets: netfilter's, IPsec policies, and those of policy
//! routing.
//!
//! What drops packets between pods is told. And super-packets leave whole (`overlay::underlay::whole`) only as long as
//! no rule could refuse, change or divert the tunnel's packets, since they go past the host's hooks, policies and
//! routing rules.
//!
//! The programs that list rules run only when the kernel says that rules have changed, each after a pause that grows
//! with what they take. Nobody waits for them: while a change is not understood in half a second, nothing leaves whole.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay::offload::{Offload, Offloads};
use overlay::table::{PeerTable, SharedTable};
use rustix::process::geteuid;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::host::events::Polled;
use crate::host::firewall::ruleset::{Connection, Device, Listings, Packet, Ruleset, Way};
use crate::host::firewall::verdict::{self, Deeds, Overlay, Refusal, Traffic};
use crate::host::ipsec::{self, Outgoing};
use crate::host::rule_events::{RuleEvents, Version};
use crate::host::{HostError, docker, policy_routing};

/// What is watched over.
#[derive(Debug)]
pub struct Watched {
    /// The overlay, as remedies name it.
    pub overlay: Overlay,
    /// This node's pods.
    pub pods: Ipv4Net,
    /// The device by which packets reach the pods of other nodes.
    pub way_out: String,
    /// The tunnel, if super-packets may leave it whole.
    pub whole: Option<Whole>,
}

/// A tunnel that super-packets may leave whole.
#[derive(Debug)]
pub struct Whole {
    /// Our address.
    pub own: Ipv4Addr,
    /// The interface that they leave by.
    pub underlay: String,
    /// Its index.
    pub index: u32,
    /// The UDP port of every node.
    pub port: u16,
    /// The other nodes.
    pub table: SharedTable,
    /// Where it is switched.
    pub offloads: Arc<Offloads>,
}

/// Watches, until it is dropped.
#[derive(Debug)]
pub struct RuleWatch {
    task: JoinHandle<()>,
    held: watch::Receiver<Option<String>>,
}

impl RuleWatch {
    /// Begins to watch. Nothing leaves whole before the rules are known.
    #[must_use]
    pub fn start(watched: Watched) -> Self {
        let (held, told) = watch::channel(None);
        let mut watcher = Watcher {
            watched,
            held,
            polled: Polled::now(),
            known: None,
            pause: Duration::ZERO,
            rested_at: Instant::now(),
            said: Vec::new(),
            standing: None,
        };
        watcher.hold(NOT_YET.to_owned());
        Self { task: tokio::spawn(watcher.run()), held: told }
    }

    /// Why super-packets do not leave whole, if it is for the host's rules.
    #[must_use]
    pub fn why_not_whole(&self) -> Option<String> {
        self.held.borrow().clone()
    }
}

impl Drop for RuleWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watcher {
    watched: Watched,
    held: watch::Sender<Option<String>>,
    polled: Polled,
    known: Option<Known>,
    /// How long the programs rest before they run again.
    pause: Duration,
    rested_at: Instant,
    /// What drops between pods and has been told.
    said: Vec<Refusal>,
    /// What drops between pods and is to be told if it stays: others put their rules one by one.
    standing: Option<(Vec<Refusal>, Instant)>,
}

/// What is known of netfilter's rules.
struct Known {
    version: Version,
    /// For which peers it holds; `None` if nothing is done to packets to any address.
    peers: Option<Arc<PeerTable>>,
    /// What is done to the tunnel's packets, or may be.
    reason: Option<String>,
    /// When the rules could not be read: then they are read again.
    failed_at: Option<Instant>,
}

/// What has been found out about the rules, apart from their words.
struct Judged {
    tunnel: Deeds,
    depends_on_peers: bool,
    pods: Deeds,
}

impl Watcher {
    async fn run(mut self) {
        let mut events = RuleEvents::subscribe();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut decided_at) = (true, Instant::now());
        loop {
            let is_news = self.is_news();
            if is_news {
                self.judge_soon().await;
            }
            if is_news || told || !events.is_complete() || decided_at.elapsed() >= AGAIN {
                self.decide().await;
                decided_at = Instant::now();
            }
            self.tell_refusals();
            told = tokio::select! {
                () = events.changed() => true,
                _ = look.tick() => false,
            };
        }
    }

    /// Whether netfilter's rules, or the peers that it depends on, are others than those that were judged.
    fn is_news(&mut self) -> bool {
        let version = Version::now(&mut self.polled);
        let Some(known) = &self.known else { return true };
        let others = match (&known.peers, &self.watched.whole) {
            (Some(peers), Some(whole)) => !Arc::ptr_eq(peers, &whole.table.current()),
            _ => false,
        };
        let again = known.failed_at.is_some_and(|at| at.elapsed() >= AGAIN);
        known.version != version || others || again
    }

    /// Reads the rules and judges them, after what is left of the pause.
    async fn judge_soon(&mut self) {
        let begin = Instant::now();
        let rested = self.rested_at + self.pause;
        if rested > begin + PROMPT {
            self.hold(CHANGED.to_owned());
        }
        sleep_until(begin.max(rested)).await;
        let version = Version::now(&mut self.polled);
        let started = Instant::now();
        let peers = self.watched.whole.as_ref().map(|whole| whole.table.current());
        let judging = judge(packets_of(&self.watched, peers.as_deref()).await);
        tokio::pin!(judging);
        let judged = match timeout(PROMPT, &mut judging).await {
            Ok(judged) => judged,
            Err(_) => {
                self.hold(CHANGED.to_owned());
                judging.await
            }
        };
        self.pause = (started.elapsed() * PART).max(GAP);
        self.rested_at = Instant::now();
        match judged {
            Ok(Judged { tunnel, depends_on_peers, pods }) => {
                let reason = tunnel.first().await;
                let peers = peers.filter(|_| depends_on_peers);
                self.known = Some(Known { version, peers, reason, failed_at: None });
                let found = pods.findings(Traffic::Pods, &self.watched.overlay).await;
                if !found.unread.is_empty() {
                    debug!(rules = found.unread.join("; "), "rules that may act on packets between pods");
                }
                self.standing = Some((found.refusals, Instant::now()));
            }
            Err(error) => {
                let reason = Some(format!("the host's rules cannot be read: {error}"));
                let failed_at = Some(Instant::now());
                self.known = Some(Known { version, peers: None, reason, failed_at });
            }
        }
    }

    /// Whether super-packets may leave whole now.
    async fn decide(&mut self) {
        let (Some(whole), Some(known)) = (&self.watched.whole, &self.known) else { return };
        let reason = match &known.reason {
            Some(reason) => Some(reason.clone()),
            None => beside_netfilter(whole).await,
        };
        match reason {
            Some(reason) => self.hold(format!("{reason} could act on the tunnel's packets")),
            None => {
                if self.held.send_replace(None).is_some_and(|reason| !is_passing(&reason)) {
                    info!("tunnel-gso: on again, no rule of the host could act on the tunnel's packets");
                }
                whole.offloads.release(Offload::TunnelGso);
            }
        }
    }

    /// Has nothing leave whole, and says why.
    fn hold(&mut self, reason: String) {
        let Some(whole) = &self.watched.whole else { return };
        whole.offloads.hold(Offload::TunnelGso);
        let news = self.held.borrow().as_ref() != Some(&reason);
        if news && !is_passing(&reason) && whole.offloads.is_to_be_had(Offload::TunnelGso) {
            info!("tunnel-gso: off, because {reason}");
        }
        self.held.send_replace(Some(reason));
    }

    /// What drops packets between pods is told once, if it stays.
    fn tell_refusals(&mut self) {
        let Some((refusals, _)) = self.standing.take_if(|(_, since)| since.elapsed() >= STAYS) else {
            return;
        };
        for refusal in refusals.iter().filter(|refusal| !self.said.contains(refusal)) {
            let Refusal { by, remedy } = refusal;
            warn!(
                by,
                remedy, "the host's firewall drops packets between pods, and no rule of ours can overrule it"
            );
        }
        self.said = refusals;
    }
}

/// What is to be asked of the rules.
struct Asked {
    /// The tunnel's packets, to the nodes there are and to any address.
    tunnel: Option<[Packet; 2]>,
    pods: Vec<Packet>,
}

async fn packets_of(watched: &Watched, peers: Option<&PeerTable>) -> Asked {
    let tunnel = watched.whole.as_ref().map(|whole| {
        let nodes: Vec<Ipv4Addr> =
            peers.into_iter().flat_map(PeerTable::peers).map(|peer| peer.public_ip).collect();
        let [mut sent, _] =
            verdict::of_tunnel(whole.own, &nodes, &Device::named(&whole.underlay), whole.port, false);
        if let Way::Sent { user, .. } = &mut sent.way {
            *user = Some(geteuid().as_raw());
        }
        sent.connection = Connection::Any;
        let anywhere = Packet { to: vec![Ipv4Net::default()], ..sent.clone() };
        [sent, anywhere]
    });
    let (network, device) = (watched.overlay.network, watched.overlay.device.as_str());
    let bridge = docker::bridge_of_pods(&[network], watched.pods, device).await;
    let (bridge, way_out) = (Device::named(&bridge), Device::named(&watched.way_out));
    let pods = verdict::between_pods(watched.pods, &[network], &bridge, &way_out);
    Asked { tunnel, pods }
}

/// Reads the rules, and judges them on a thread of its own: there may be very many.
async fn judge(Asked { tunnel, pods }: Asked) -> Result<Judged, HostError> {
    let listings = Listings::read().await?;
    let judged = spawn_blocking(move || {
        let ruleset = Ruleset::parse(&listings);
        let deeds = |packet: &Packet| Deeds::of(&ruleset, std::slice::from_ref(packet));
        let anywhere = tunnel.as_ref().map(|[_, anywhere]| deeds(anywhere)).unwrap_or_default();
        let depends_on_peers = !anywhere.is_nothing();
        let tunnel = match &tunnel {
            Some([sent, _]) if depends_on_peers => deeds(sent),
            _ => anywhere,
        };
        Judged { tunnel, depends_on_peers, pods: Deeds::of(&ruleset, &pods) }
    });
    judged.await.map_err(|error| HostError::Program {
        command: "nft -j list ruleset".to_owned(),
        reason: format!("what it says is not understood: {error}"),
    })
}

/// What could act on the tunnel's packets beside netfilter.
async fn beside_netfilter(whole: &Whole) -> Option<String> {
    let to = whole.table.current().peers().iter().map(|peer| peer.public_ip.into()).collect();
    let packets = Outgoing { from: whole.own, to, port: whole.port, device: whole.index };
    match ipsec::acting_on(&packets) {
        Ok(None) => {}
        Ok(policy) => return policy,
        Err(error) => return Some(format!("an IPsec policy, none of which can be read ({error}),")),
    }
    match policy_routing::acting_on(geteuid().as_raw()).await {
        Ok(rule) => rule,
        Err(error) => Some(format!("a routing rule, none of which can be read ({error}),")),
    }
}

/// What is no word about a rule, and over soon.
fn is_passing(reason: &str) -> bool {
    matches!(reason, NOT_YET | CHANGED)
}

const NOT_YET: &str = "the host's rules are not read yet";
const CHANGED: &str = "the host's rules have changed, and are not read again yet";

/// How often is looked at what gives no event.
const LOOK: Duration = Duration::from_secs(1);
/// How long a change may go without being understood.
const PROMPT: Duration = Duration::from_millis(500);
/// Between two readings, at least.
const GAP: Duration = Duration::from_millis(200);
/// And so many times what reading takes.
const PART: u32 = 9;
/// When is looked again at what could not be read, or changes by time.
const AGAIN: Duration = Duration::from_secs(30);
/// How long something drops before it is told.
const STAYS: Duration = Duration::from_millis(1500);
