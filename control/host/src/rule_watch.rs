//! Watches what the host's rules do to the overlay's packets: netfilter's, IPsec policies, and those of policy
//! routing.
//!
//! What drops packets between pods is told. And super-packets leave whole (`overlay::underlay::whole`) only as long as
//! no rule could refuse, change or divert the tunnel's packets, since they go past the host's hooks, policies and
//! routing rules.
//!
//! The programs that list rules run only when the kernel says that rules have changed, each after a pause that grows
//! with what they take. Pause and programs together have half a second: from then on nothing leaves whole until the
//! change is understood.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use rustix::process::geteuid;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::events::Polled;
use crate::firewall::ruleset::{Connection, Device, Listings, Packet, Ruleset, Way};
use crate::firewall::verdict::{self, Deeds, Findings, Overlay, Refusal, Traffic};
use crate::ipsec::{self, Outgoing};
use crate::rule_events::{RuleEvents, Version};
use crate::{HostError, docker, policy_routing};
use overlay::offload::{Offload, Offloads};
use overlay::table::{PeerTable, SharedTable};

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
        let watcher = Watcher {
            watched,
            held,
            polled: Polled::now(),
            known: None,
            decided_for: None,
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
    /// The peers for which it was last decided.
    decided_for: Option<Arc<PeerTable>>,
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

/// What has been found out about the rules.
struct Judged {
    /// What is done to the tunnel's packets, or may be.
    reason: Option<String>,
    depends_on_peers: bool,
    pods: Findings,
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
            let is_due = !events.is_complete() || decided_at.elapsed() >= AGAIN;
            if is_news || told || is_due || self.has_other_peers() {
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

    /// Whether the peers are others than those for which it was last decided.
    fn has_other_peers(&self) -> bool {
        let Some(whole) = &self.watched.whole else { return false };
        !self.decided_for.as_ref().is_some_and(|peers| Arc::ptr_eq(peers, &whole.table.current()))
    }

    /// Reads the rules and judges them, after what is left of the pause.
    async fn judge_soon(&mut self) {
        let now = Instant::now();
        let rested = self.rested_at + self.pause;
        let deadline = if rested > now + PROMPT { now } else { now + PROMPT };
        let Self { watched, polled, held, .. } = self;
        let work = async {
            sleep_until(rested).await;
            let (started, version) = (Instant::now(), Version::now(polled));
            let peers = watched.whole.as_ref().map(|whole| whole.table.current());
            let judged = judge(watched, peers.as_deref()).await;
            (started.elapsed(), version, peers, judged)
        };
        let late = || hold(watched, held, CHANGED.to_owned());
        let (took, version, peers, judged) = finish(work, deadline, late).await;
        self.pause = (took * PART).max(GAP);
        self.rested_at = Instant::now();
        match judged {
            Ok(Judged { reason, depends_on_peers, pods }) => {
                let peers = peers.filter(|_| depends_on_peers);
                self.known = Some(Known { version, peers, reason, failed_at: None });
                if !pods.unread.is_empty() {
                    debug!(rules = pods.unread.join("; "), "rules that may act on packets between pods");
                }
                self.standing = Some((pods.refusals, Instant::now()));
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
        let peers = whole.table.current();
        let reason = match &known.reason {
            Some(reason) => Some(reason.clone()),
            None => beside_netfilter(whole, &peers).await,
        };
        self.decided_for = Some(peers);
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
    fn hold(&self, reason: String) {
        hold(&self.watched, &self.held, reason);
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

fn hold(watched: &Watched, held: &watch::Sender<Option<String>>, reason: String) {
    let Some(whole) = &watched.whole else { return };
    whole.offloads.hold(Offload::TunnelGso);
    let news = held.borrow().as_ref() != Some(&reason);
    if news && !is_passing(&reason) && whole.offloads.is_to_be_had(Offload::TunnelGso) {
        info!("tunnel-gso: off, because {reason}");
    }
    held.send_replace(Some(reason));
}

/// What `work` comes to. If it is not done at the `deadline`, it is called `late`, and goes on.
async fn finish<T>(work: impl Future<Output = T>, deadline: Instant, late: impl FnOnce()) -> T {
    tokio::pin!(work);
    match timeout_at(deadline, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            late();
            work.await
        }
    }
}

/// What is to be asked of the rules.
struct Asked {
    /// The tunnel's packets, to the nodes there are and to any address.
    tunnel: Option<[Packet; 2]>,
    pods: Vec<Packet>,
}

async fn packets_of(watched: &Watched, peers: Option<&PeerTable>) -> Result<Asked, HostError> {
    let (network, device) = (watched.overlay.network, watched.overlay.device.as_str());
    let bridge = docker::bridge_of_pods(&[network], watched.pods, device).await;
    let underlay = watched.whole.as_ref().map(|whole| whole.underlay.clone()).unwrap_or_default();
    let names = [bridge, watched.way_out.clone(), underlay];
    // A bridge may have very many ports.
    let devices = spawn_blocking(move || names.each_ref().map(|name| Device::named(name)));
    let [bridge, way_out, underlay] = devices.await.map_err(not_understood)?;
    let tunnel = watched.whole.as_ref().map(|whole| {
        let nodes: Vec<Ipv4Addr> =
            peers.into_iter().flat_map(PeerTable::peers).filter_map(|peer| peer.public.v4()).collect();
        let [mut sent, _] = verdict::of_tunnel(whole.own, &nodes, &underlay, whole.port, false);
        if let Way::Sent { user, .. } = &mut sent.way {
            *user = Some(geteuid().as_raw());
        }
        sent.connection = Connection::Any;
        let anywhere = Packet { to: vec![Ipv4Net::default()], ..sent.clone() };
        [sent, anywhere]
    });
    Ok(Asked { tunnel, pods: verdict::between_pods(watched.pods, &[network], &bridge, &way_out) })
}

/// Reads the rules, and judges them on a thread of its own: there may be very many.
async fn judge(watched: &Watched, peers: Option<&PeerTable>) -> Result<Judged, HostError> {
    let Asked { tunnel, pods } = packets_of(watched, peers).await?;
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
        (tunnel, depends_on_peers, Deeds::of(&ruleset, &pods))
    });
    let (tunnel, depends_on_peers, pods) = judged.await.map_err(not_understood)?;
    let pods = pods.findings(Traffic::Pods, &watched.overlay).await;
    Ok(Judged { reason: tunnel.first().await, depends_on_peers, pods })
}

fn not_understood(error: JoinError) -> HostError {
    HostError::Program {
        command: "nft -j list ruleset".to_owned(),
        reason: format!("what it says is not understood: {error}"),
    }
}

/// What could act on the tunnel's packets beside netfilter.
async fn beside_netfilter(whole: &Whole, peers: &PeerTable) -> Option<String> {
    let to = peers.peers().iter().filter_map(|peer| Some(peer.public.v4()?.into())).collect();
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

/// How often is looked at what gives no event. With [`PROMPT`] it is less than the second in which a change takes effect.
const LOOK: Duration = Duration::from_millis(400);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_one_for_all_of_the_work() {
        for (rests, reads, late) in [(100, 300, false), (400, 300, true), (0, 700, true)] {
            let begin = Instant::now();
            let work = async {
                sleep(Duration::from_millis(rests)).await;
                sleep(Duration::from_millis(reads)).await;
            };
            let called = Cell::new(false);
            finish(work, begin + PROMPT, || called.set(true)).await;
            assert_eq!(called.get(), late, "{rests} and {reads} ms");
            assert!(begin.elapsed() >= Duration::from_millis(rests + reads), "it is finished");
        }
    }
}
