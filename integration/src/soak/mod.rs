//! The soak: hosts, pods, an etcd and mixed traffic, to which something happens again and again, drawn from
//! a seed, while what must always hold is checked.
//!
//! - Each TCP transfer ends, and every octet of it is what was sent.
//! - No datagram is doubled or changed, and none overtaken by a later one of its flow ([`Deed::may_reorder`]).
//! - Where nothing stands in the way of packets ([`Deed::may_lose`]), none is lost.
//! - In = out + dropped by reason, on every node, against what was really sent.
//! - A daemon that runs all the time takes no more memory, descriptors and threads than at its beginning.
//! - No frame of the memory that a daemon with `--io=xdp` shares with the kernel is lost. Two are such ones: one that
//!   comes back with its rings, and the one that runs all the time.

mod deeds;
mod flows;
mod ledger;
mod streams;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub use deeds::Deed;
use flows::Flows;
pub use flows::Loss;
use ledger::End;
pub use ledger::Held;
use streams::Streams;

use crate::noise::Noise;
use crate::overlayd::{Overlayd, await_mesh};
use crate::service_manager::ServiceManager;
use crate::site::{Host, Pod, Site};
use crate::store::{Backend, Store};

/// The overlay under test.
pub struct Ground<'h> {
    site: &'h Site,
    store: Store,
    device: &'static str,
    flags: Vec<String>,
    nodes: Vec<Node<'h>>,
}

struct Node<'h> {
    host: &'h Host,
    /// Whether its daemon uses the rings of its interface.
    by_rings: bool,
    pod: Pod,
    /// Only absent while it is being replaced.
    daemon: Option<Overlayd<'h>>,
    /// Looks at this process so far, and what it held when it had seen enough to have all that it needs.
    looks: u32,
    held: Option<Held>,
}

/// What a soak has seen.
#[derive(Debug, Default)]
pub struct Report {
    /// For each deed: how often, and what became of the datagrams meanwhile.
    pub deeds: BTreeMap<Deed, (u64, Loss)>,
    /// Datagrams that the counters were held against.
    pub counted: u64,
    /// Finished TCP transfers, and their octets.
    pub transfers: (u64, u64),
    /// What the daemon that ran all the time held at its beginning and its end.
    pub held: Option<(Held, Held)>,
}

/// Soaks for so long, with more flags for each daemon. Panics as soon as something does not hold.
#[track_caller]
pub fn run(duration: Duration, seed: u64, flags: &[String]) -> Report {
    let (site, worker, master) = Site::two_hosts();
    let third = site.host("third", "192.168.50.7");
    let store = Store::etcd(&site, Backend::Vxlan);
    let mut ground = Ground::start(&site, [&worker, &master, &third], store, flags);
    let mut noise = Noise::seeded(seed);
    let mut report = Report::default();
    let (mut flows, streams) = ground.traffic(seed);
    flows.await_more(SOME, PATIENCE);
    let begun = Instant::now();
    let mut count = 0_usize;
    // Each once at least, whatever is drawn.
    while count < Deed::ALL.len() || begun.elapsed() < duration {
        let drawn = (noise.number() >> 32) as usize % Deed::ALL.len();
        let deed = Deed::ALL[if count < Deed::ALL.len() { count } else { drawn }];
        let started = Instant::now();
        deed.perform(&mut ground, &mut noise);
        flows.await_more(SOME, PATIENCE);
        ground.await_settled();
        let loss = flows.pause();
        println!(
            "{:>6.0} s  {}: {} of {} datagrams lost, {} overtaken, settled after {:.1} s",
            begun.elapsed().as_secs_f64(),
            deed.name(),
            loss.lost,
            loss.sent,
            loss.overtaken,
            started.elapsed().as_secs_f64()
        );
        assert!(loss.lost == 0 || deed.may_lose(), "{}: {loss:?}", deed.name());
        assert!(loss.overtaken == 0 || deed.may_reorder(), "{}: {loss:?}", deed.name());
        report.add(deed, loss);
        count += 1;
        if count.is_multiple_of(BETWEEN_ACCOUNTS) {
            streams.pause(PATIENCE);
            report.counted += ground.check_accounts();
            ground.check_held();
            streams.resume();
        }
        flows.resume();
    }
    flows.pause();
    streams.pause(PATIENCE);
    report.counted += ground.check_accounts();
    report.held = ground.check_held();
    report.transfers = streams.done();
    report
}

impl Report {
    fn add(&mut self, deed: Deed, loss: Loss) {
        let (times, total) = self.deeds.entry(deed).or_default();
        *times += 1;
        total.sent += loss.sent;
        total.lost += loss.lost;
        total.overtaken += loss.overtaken;
    }

    /// As a table for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (deed, (times, Loss { sent, lost, overtaken })) in &self.deeds {
            let name = deed.name();
            text += &format!(
                "{name:<40} {times:>4} ×  {sent:>9} datagrams, {lost:>6} lost, {overtaken:>5} overtaken\n"
            );
        }
        let (transfers, octets) = self.transfers;
        text += &format!("{transfers} TCP transfers, {} MiB, every octet as it was sent\n", octets >> 20);
        text += &format!("{} datagrams counted: in = out + dropped on every node\n", self.counted);
        if let Some((first, last)) = self.held {
            text += &format!(
                "the daemon that was never restarted: {} → {} MiB, {} → {} descriptors, {} threads\n",
                first.memory >> 10,
                last.memory >> 10,
                first.descriptors,
                last.descriptors,
                last.threads
            );
        }
        text
    }
}

impl<'h> Ground<'h> {
    #[track_caller]
    fn start(site: &'h Site, hosts: [&'h Host; 3], store: Store, flags: &[String]) -> Self {
        let mut ground =
            Self { site, store, device: Backend::Vxlan.device(), flags: flags.to_vec(), nodes: Vec::new() };
        for (host, by_rings) in hosts.into_iter().zip([false, true, true]) {
            let daemon = ground.launch(host, by_rings, None);
            let pod = host.bridge_and_pod(&daemon.env());
            ground.nodes.push(Node { host, by_rings, pod, daemon: Some(daemon), looks: 0, held: None });
        }
        let daemons: Vec<_> = ground.nodes.iter().filter_map(|node| node.daemon.as_ref()).collect();
        await_mesh(&daemons);
        ground
    }

    #[track_caller]
    fn launch(&self, host: &'h Host, by_rings: bool, manager: Option<ServiceManager>) -> Overlayd<'h> {
        let launch = host.overlayd(&self.store).flag(if by_rings { "--io=xdp" } else { "--io=udp" });
        let launch = self.flags.iter().fold(launch, |launch, flag| launch.flag(flag));
        let mut daemon = match manager {
            Some(manager) => launch.by(manager).spawn(),
            None => launch.spawn(),
        };
        daemon.wait_ready(PATIENCE);
        daemon
    }

    /// Has a node's process followed by another.
    #[track_caller]
    fn replace(&mut self, index: usize, end: fn(Overlayd<'h>) -> ServiceManager) {
        let before = self.nodes[index].daemon.take().expect("a daemon");
        let env = before.env();
        let Node { host, by_rings, .. } = self.nodes[index];
        let daemon = self.launch(host, by_rings, Some(end(before)));
        assert_eq!(daemon.env(), env, "a node keeps its subnet");
        let node = &mut self.nodes[index];
        (node.daemon, node.looks, node.held) = (Some(daemon), 0, None);
    }

    /// Flows and streams between all pods.
    #[track_caller]
    fn traffic(&self, seed: u64) -> (Flows, Streams) {
        let (mut flows, streams) = (Flows::default(), Streams::default());
        let ways = self.nodes.iter().flat_map(|from| self.nodes.iter().map(move |to| (from, to)));
        let ways = ways.filter(|(from, to)| from.host.name != to.host.name);
        for (number, (from, to)) in ways.enumerate() {
            let name = format!("{} → {}", from.host.name, to.host.name);
            flows.add(&name, &from.pod.ns, &to.pod.ns, to.pod.address, PER_SECOND);
            streams.add(&name, &from.pod.ns, &to.pod.ns, to.pod.address, seed.wrapping_add(number as u64));
        }
        (flows, streams)
    }

    /// Waits until each daemon follows the store and knows the others and nobody else.
    #[track_caller]
    fn await_settled(&mut self) {
        for index in 0..self.nodes.len() {
            let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
            let mut wanted: Vec<_> =
                others.filter_map(|(_, node)| Some(node.daemon.as_ref()?.env().base_with_length())).collect();
            wanted.sort_unstable();
            let daemon = self.nodes[index].daemon();
            crate::process::await_until(PATIENCE, "the daemons to know each other", || {
                let status = daemon.status();
                status.peers() == wanted
                    && status.0["store"]["connected"] == true
                    && status.0["lease"]["state"] == "held"
            });
        }
    }

    #[track_caller]
    fn check_accounts(&self) -> u64 {
        let ends: Vec<_> = self
            .nodes
            .iter()
            .map(|node| End { host: node.host, pod: (&node.pod.ns, node.pod.address) })
            .collect();
        let counted = ledger::check(&ends, self.device, NOBODY);
        self.nodes.iter().filter(|node| node.by_rings).for_each(|node| ledger::check_frames(node.host));
        counted
    }

    /// Checks every daemon, and returns what the last one, which is never replaced, held and holds.
    #[track_caller]
    fn check_held(&mut self) -> Option<(Held, Held)> {
        let mut last = None;
        for node in &mut self.nodes {
            let now = Held::by(node.daemon().id());
            node.looks += 1;
            if node.looks == SETTLED {
                node.held = Some(now);
            }
            if let Some(held) = node.held {
                held.check(now, &node.host.name);
            }
            last = node.held.map(|held| (held, now));
        }
        last
    }
}

impl<'h> Node<'h> {
    #[track_caller]
    fn daemon(&mut self) -> &mut Overlayd<'h> {
        self.daemon.as_mut().expect("a daemon")
    }
}

/// In the network, and nobody's.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 255, 9);
/// Datagrams a second of each of six flows: little enough that what the kernel holds lasts for seconds.
const PER_SECOND: u32 = 250;
/// Datagrams of a flow that show that it flows.
const SOME: u64 = 50;
/// After every so many deeds the counters are held against what was sent.
const BETWEEN_ACCOUNTS: usize = 5;
/// A process has touched its buffers and met each kind of event by its so-manieth look.
const SETTLED: u32 = 3;
/// A machine may be busy; an overlay that needs longer is dead.
const PATIENCE: Duration = Duration::from_secs(60);
