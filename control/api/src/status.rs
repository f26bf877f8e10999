//! What the control socket tells: the answer of `GET /v1/status`, as JSON and as tables for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::reach::{Routed, Way};
use overlay::stats::Totals;
use overlay_support::text::{Align, plural, size, table};
use overlay_wire::drops::DropReason;

/// The whole state of one daemon at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The overlay device; none where there is no tunnel.
    pub device: Option<DeviceStatus>,
    /// How packets travel between nodes.
    pub backend: BackendStatus,
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// This node's share of it.
    pub lease: LeaseStatus,
    /// Where leases live.
    pub store: StoreStatus,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
    /// Leases of another backend type, which are no peers.
    pub ignored_leases: usize,
    /// Lease keys that cannot be read.
    pub garbage_leases: usize,
    /// Leases that are not used, whatever they say: how many, and why the first of them are not.
    pub refused_leases: usize,
    /// `10.1.66.0-24 of 192.168.1.66: its subnet …`.
    pub refused: Vec<String>,
    /// Nodes that share what only one may have: who they are, and what to do.
    #[serde(default)]
    pub conflicts: Vec<String>,
    /// What the kernel does for the data plane, by name, and whether it does.
    pub offloads: BTreeMap<String, bool>,
    /// Why one of them is not in use now although it is to be had, by name.
    #[serde(default)]
    pub offloads_held: BTreeMap<String, String>,
    /// Which way packets take to the wire; nothing where there is no tunnel.
    #[serde(default)]
    pub io: Option<IoStatus>,
    /// How the data plane's threads stand among the other threads of the host; nothing where there is no tunnel.
    #[serde(default)]
    pub priority: Option<PriorityStatus>,
    /// What is asked of sources: `strict`, `loose` or `off`; nothing where there is no tunnel.
    pub source_check: Option<String>,
    /// Whether what enters the overlay from outside the network gets this host's address as its source.
    #[serde(default)]
    pub return_path_masq: bool,
    /// Whether overlayd has iptables accept what is forwarded between pods.
    #[serde(default)]
    pub forward_rules: bool,
    /// What was forwarded since the data plane started.
    pub counters: Directions<Counters>,
    /// What was dropped since the data plane started, by reason; every reason is listed.
    pub drops: Directions<BTreeMap<String, u64>>,
    /// ICMP errors sent to inner senders.
    pub icmp_sent: u64,
    /// What of the network leads into the device; nothing where there is no tunnel.
    #[serde(default)]
    pub routed: Option<Routed>,
    /// Device, routes and rules.
    pub host: HostStatus,
}

/// Which way packets take to the wire.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IoStatus {
    /// The rings of the interface, if they are used.
    pub rings: Option<RingStatus>,
    /// Why they are not, if they were to be.
    pub fallback: Option<String>,
}

/// The underlay's interface, with rings beside the sockets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RingStatus {
    /// The interface.
    pub interface: String,
    /// Where the XDP program is: `native`, in the driver, or `generic`.
    pub mode: String,
    /// Whether the card itself reads and writes the frames.
    pub zero_copy: bool,
    /// Rings in each direction, one for each receive queue.
    pub queues: u32,
    /// Peers whose next hop is known: the others are reached by sockets.
    pub next_hops: usize,
    /// Datagrams by the rings.
    pub datagrams: Directions<u64>,
    /// Datagrams by the sockets (from the wire: runs of them).
    pub by_sockets: Directions<u64>,
    /// Datagrams lost by the rings, by reason; every reason is listed.
    pub drops: BTreeMap<String, u64>,
    /// Where the frames of the shared memory are.
    pub frames: Directions<FrameStatus>,
}

/// The frames of all queues for one direction. What is neither lent nor free a worker has in hand: less than a batch,
/// and for a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FrameStatus {
    /// How many there are.
    pub all: usize,
    /// How many the kernel has: of those to be received into all, but for what a worker has in hand.
    pub lent: usize,
    /// How many are at rest: of those to be sent all, but for what is on its way.
    pub free: usize,
}

impl IoStatus {
    fn to_text(&self) -> String {
        let Some(rings) = &self.rings else {
            let why = self.fallback.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            return format!("udp sockets{why}");
        };
        let RingStatus { interface, mode, queues, next_hops, .. } = rings;
        let copy = if rings.zero_copy { "zero-copy" } else { "copying" };
        format!(
            "xdp on {interface} ({mode}, {copy}), {queues} queue{}, {next_hops} next hop{} known",
            plural(usize::try_from(*queues).unwrap_or(usize::MAX)),
            plural(*next_hops)
        )
    }
}

/// How the data plane's threads stand among the other threads of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PriorityStatus {
    /// Whether they may have real time.
    pub real_time: bool,
    /// Their nice value otherwise, if it was set.
    pub nice: Option<i32>,
    /// How long their turns are, in microseconds, if that was set.
    pub turn_us: Option<u64>,
    /// Whether the processors are crowded now: then they have real time, if they may.
    pub crowded: bool,
    /// What they were to have and could not, each with the reason.
    pub refused: Vec<String>,
}

impl PriorityStatus {
    fn to_text(&self) -> String {
        let mut parts = Vec::new();
        if self.real_time {
            let now = if self.crowded { "now" } else { "not now" };
            parts.push(format!("real time while the processors are crowded ({now})"));
        }
        parts.extend(self.nice.map(|nice| format!("nice {nice}")));
        parts.extend(self.turn_us.map(|turn| format!("turns of {} ms", turn as f64 / 1e3)));
        if parts.is_empty() {
            parts.push("as started".to_owned());
        }
        parts.extend(self.refused.iter().map(|refused| format!("no {refused}")));
        parts.join("; ")
    }
}

/// What this host's kernel has been brought to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// What others have removed or changed and was put back, since the daemon started.
    pub restored: u64,
    /// What cannot be put right; while there is any, `/readyz` says 503.
    pub problems: Vec<String>,
}

/// The overlay device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// The largest inner packet, in bytes.
    pub mtu: u32,
    /// Its queues; one thread each in each direction.
    pub queues: usize,
    /// Its address.
    pub address: Ipv4Addr,
}

/// How packets travel between nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum BackendStatus {
    /// flannel's UDP encapsulation.
    Udp {
        /// UDP port of every node.
        port: u16,
    },
    /// VXLAN.
    Vxlan {
        /// UDP port of every node.
        port: u16,
        /// The network identifier.
        vni: u32,
        /// The address that frames to this node carry.
        vtep_mac: String,
        /// Whether nodes on one link send each other plain packets.
        direct_routing: bool,
    },
    /// Plain routes.
    HostGw {
        /// The interface to the link that all nodes are on.
        interface: String,
    },
    /// None of our business.
    Alloc,
}

impl BackendStatus {
    /// The UDP port of every node; none without a tunnel.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Udp { port } | Self::Vxlan { port, .. } => Some(*port),
            Self::HostGw { .. } | Self::Alloc => None,
        }
    }

    /// Whether that is the port that packets are sent from, too.
    #[must_use]
    pub fn has_one_port(&self) -> bool {
        matches!(self, Self::Udp { .. })
    }
}

/// This node's lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The subnet of this node's containers.
    pub subnet: Ipv4Net,
    /// The address that the other nodes send to.
    pub public_ip: Ipv4Addr,
    /// `held` when the store has it; `saved` while only the state of an earlier run says so; `lost`
    /// while it is to be taken again.
    pub state: LeaseState,
}

/// How sure the lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The store has it.
    Held,
    /// Known from an earlier run; the store has not been reached yet.
    Saved,
    /// The store has it no more, and no other has been taken yet.
    Lost,
}

/// Where leases live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `etcd` or `dir`.
    pub kind: String,
    /// Its endpoints and prefix, or its path.
    pub r#where: String,
    /// Whether changes are being followed at this moment.
    pub connected: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The subnet of its containers.
    pub subnet: Ipv4Net,
    /// Where its tunnel ends.
    pub public_ip: Ipv4Addr,
    /// The address that frames to it carry, with VXLAN.
    pub vtep_mac: Option<String>,
    /// Which way packets to it go.
    pub way: Way,
    /// Why they do not go as they should.
    pub problem: Option<String>,
    /// The largest inner packet that the path to it takes in one piece, in bytes, where that is known to be less than
    /// the device's MTU.
    pub mtu: Option<u32>,
}

/// Something for each direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Directions<T> {
    /// From the overlay device to the wire.
    pub egress: T,
    /// From the wire to the overlay device.
    pub ingress: T,
}

/// What was forwarded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Inner packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<&Totals> for Counters {
    fn from(totals: &Totals) -> Self {
        Self { packets: totals.packets, bytes: totals.bytes }
    }
}

/// One line of the text: what it is about, and what there is to say.
type Line = (&'static str, String);

/// As many are named in the text.
const NAMED_REFUSED: usize = 10;

/// The drops of `totals`, for each of `reasons`.
#[must_use]
pub fn drops(totals: &Totals, reasons: &[DropReason]) -> BTreeMap<String, u64> {
    reasons.iter().map(|reason| (reason.label().to_owned(), totals.drops(*reason))).collect()
}

impl Status {
    /// The state as text for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let lines = [self.node_lines(), self.tunnel_lines(), self.lease_lines(), self.host_lines()];
        for (name, text) in lines.into_iter().flatten() {
            let _ = writeln!(out, "{name:<13} {text}");
        }
        out += &self.peers_text();
        if self.device.is_none() {
            return out;
        }
        out += &self.traffic_text();
        out += &self.drops_text();
        if self.icmp_sent > 0 {
            let _ = writeln!(out, "\n{} ICMP error{} sent", self.icmp_sent, plural(self.icmp_sent as usize));
        }
        out
    }

    /// What this node is.
    fn node_lines(&self) -> Vec<Line> {
        let backend = match &self.backend {
            BackendStatus::Udp { port } => format!("udp, port {port}"),
            BackendStatus::Vxlan { port, vni, vtep_mac, direct_routing } => {
                let direct = if *direct_routing { ", direct routing" } else { "" };
                format!("vxlan, VNI {vni}, port {port}, VTEP {vtep_mac}{direct}")
            }
            BackendStatus::HostGw { interface } => format!("host-gw, on the link of {interface}"),
            BackendStatus::Alloc => "alloc".to_owned(),
        };
        let lease = match self.lease.state {
            LeaseState::Held => "held",
            LeaseState::Saved => "saved, not yet confirmed by the store",
            LeaseState::Lost => "lost, to be taken again",
        };
        let store = if self.store.connected { "connected" } else { "NOT connected" };
        let device = |device: &DeviceStatus| {
            let DeviceStatus { name, mtu, queues, address } = device;
            format!("{name}, address {address}, MTU {mtu}, {queues} queue{}", plural(*queues))
        };
        vec![
            ("version", self.version.clone()),
            ("device", self.device.as_ref().map_or("none".to_owned(), device)),
            ("backend", backend),
            ("network", self.network.to_string()),
            ("lease", format!("{} ({lease}), public address {}", self.lease.subnet, self.lease.public_ip)),
            ("store", format!("{} {} ({store})", self.store.kind, self.store.r#where)),
        ]
    }

    /// How the tunnel works.
    fn tunnel_lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if let Some(routed) = self.routed.as_ref().filter(|routed| !routed.whole) {
            lines.push(("routed", routed.to_text()));
        }
        if let Some(io) = &self.io {
            lines.push(("wire", io.to_text()));
        }
        if let Some(priority) = &self.priority {
            lines.push(("priority", priority.to_text()));
        }
        if let Some(source_check) = &self.source_check {
            lines.push(("offloads", self.offloads_text()));
            let held = self.offloads_held.iter();
            lines.extend(held.map(|(name, reason)| ("", format!("{name}: off, because {reason}"))));
            lines.push(("source check", source_check.clone()));
        }
        lines
    }

    /// What is wrong with leases.
    fn lease_lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if self.ignored_leases > 0 {
            lines.push(("ignored", format!("{} of another backend type", self.ignored_leases)));
        }
        if self.garbage_leases > 0 {
            let (garbage, s) = (self.garbage_leases, plural(self.garbage_leases));
            lines.push(("skipped", format!("{garbage} lease key{s} cannot be read (see the log)")));
        }
        lines.extend(self.refused.iter().take(NAMED_REFUSED).map(|refused| ("not used", refused.clone())));
        let more = self.refused_leases.saturating_sub(NAMED_REFUSED);
        if more > 0 {
            lines.push(("not used", format!("{more} more leases (see 'overlayctl leases')")));
        }
        lines.extend(self.conflicts.iter().map(|conflict| ("conflict", conflict.clone())));
        lines
    }

    /// What has become of this host.
    fn host_lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let restored = self.host.restored;
        if restored > 0 {
            let s = plural(usize::try_from(restored).unwrap_or(usize::MAX));
            let text = format!("{restored} time{s} what others had removed or changed (see the log)");
            lines.push(("put back", text));
        }
        lines.extend(self.host.problems.iter().map(|problem| ("PROBLEM", problem.clone())));
        lines
    }

    fn peers_text(&self) -> String {
        let mut out = format!("\n{} peer{}\n", self.peers.len(), plural(self.peers.len()));
        let peers = self.peers.iter().map(|peer| {
            let mac = peer.vtep_mac.clone().unwrap_or_else(|| "-".to_owned());
            vec![peer.subnet.to_string(), peer.public_ip.to_string(), mac, peer.way.to_string()]
        });
        out += &table(
            &["SUBNET", "PUBLIC IP", "VTEP MAC", "WAY"].map(|name| (name, Align::Left)),
            peers.collect(),
        );
        for (peer, problem) in self.peers.iter().filter_map(|peer| Some((peer, peer.problem.as_ref()?))) {
            let _ = writeln!(out, "\n{}: {problem}", peer.subnet);
        }
        out
    }

    fn rings(&self) -> Option<&RingStatus> {
        self.io.as_ref()?.rings.as_ref()
    }

    fn traffic_text(&self) -> String {
        let mut columns = vec![("", Align::Left), ("PACKETS", Align::Right), ("BYTES", Align::Right)];
        let mut traffic = [("egress", &self.counters.egress), ("ingress", &self.counters.ingress)].map(
            |(name, Counters { packets, bytes })| vec![name.to_owned(), packets.to_string(), size(*bytes)],
        );
        if let Some(RingStatus { datagrams, by_sockets, .. }) = self.rings() {
            // A packet that others cut is several, and a run that came by a socket counts as one.
            columns.extend([("BY RING", Align::Right), ("BY SOCKET", Align::Right)]);
            traffic[0].extend([datagrams.egress, by_sockets.egress].map(|count| count.to_string()));
            traffic[1].extend([datagrams.ingress, by_sockets.ingress].map(|count| count.to_string()));
        }
        format!("\ntraffic\n{}", table(&columns, traffic.into()))
    }

    fn drops_text(&self) -> String {
        let drops = [("egress", &self.drops.egress), ("ingress", &self.drops.ingress)];
        let drops: Vec<_> = drops
            .into_iter()
            .chain(self.rings().map(|rings| ("rings", &rings.drops)))
            .flat_map(|(direction, drops)| {
                drops.iter().map(move |(reason, count)| (direction, reason, count))
            })
            .filter(|(_, _, count)| **count > 0)
            .map(|(direction, reason, count)| vec![direction.to_owned(), reason.clone(), count.to_string()])
            .collect();
        if drops.is_empty() {
            return "\nno drops\n".to_owned();
        }
        let seen = |reason: &&DropReason| drops.iter().any(|row| row[1] == reason.label());
        let hints: Vec<_> = DropReason::ALL
            .iter()
            .filter(seen)
            .filter_map(|reason| Some(format!("{}: {}\n", reason.label(), reason.hint()?)))
            .collect();
        let columns = [("", Align::Left), ("REASON", Align::Left), ("PACKETS", Align::Right)];
        format!("\ndrops\n{}{}", table(&columns, drops), hints.concat())
    }

    fn offloads_text(&self) -> String {
        let named = |wanted: bool| -> Vec<&str> {
            let those = self.offloads.iter().filter(|(_, on)| **on == wanted);
            those.map(|(name, _)| name.as_str()).collect()
        };
        match (named(true), named(false)) {
            (on, off) if off.is_empty() => on.join(", "),
            (on, off) if on.is_empty() => format!("none ({} off)", off.join(", ")),
            (on, off) => format!("{} ({} off)", on.join(", "), off.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::example;

    #[test]
    fn json_round_trips_and_lists_every_reason() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["backend"]["type"], "vxlan");
        assert_eq!(json["lease"]["state"], "held");
        assert_eq!(json["drops"]["ingress"]["wrong_vni"], 7);
        assert_eq!(json["drops"]["egress"]["no_route"], 0);
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), example());
    }

    #[test]
    fn without_a_tunnel_there_is_nothing_to_say_of_one() {
        let mut status = example();
        status.device = None;
        status.backend = BackendStatus::HostGw { interface: "eth0".to_owned() };
        (status.source_check, status.offloads) = (None, BTreeMap::new());
        status.peers[0].way = Way::None;
        status.peers[0].problem = Some("192.168.199.238 is not on the link of eth0".to_owned());
        assert_eq!(serde_json::to_value(&status).unwrap()["backend"]["type"], "host-gw");
        let text = status.to_text();
        assert!(text.contains("host-gw, on the link of eth0"), "{text}");
        assert!(text.ends_with("\n10.1.63.0/24: 192.168.199.238 is not on the link of eth0\n"), "{text}");
        assert!(!text.contains("offloads") && !text.contains("traffic"), "{text}");
    }

    #[test]
    fn the_text_is_aligned_and_leaves_out_what_is_zero() {
        let text = example().to_text();
        for line in [
            "device        flannel.1, address 10.1.9.0, MTU 1450, 2 queues",
            "offloads      gso, tso (uso off)",
            "              tunnel-gso: off, because a rule could act",
            "wire          xdp on eth0 (native, copying), 1 queue, 0 next hops known",
            "skipped       1 lease key cannot be read (see the log)",
            "conflict      two nodes",
            "  10.1.63.0/24  192.168.199.238  02:00:00:00:00:09  tunnel",
            "  egress        12  5.0 MiB        5          0",
            "  ingress     3000    900 B        6          0",
            "  ingress  wrong_vni        7",
            "  rings    ring_full        2",
            "put back      2 times what others had removed or changed (see the log)",
            "PROBLEM       nft: broken",
        ] {
            assert!(text.lines().any(|got| got == line), "no {line:?} in:\n{text}");
        }
        assert!(!text.contains("no_route") && !text.contains("ICMP"), "{text}");
    }
}
