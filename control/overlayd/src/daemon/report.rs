//! What the control socket tells of the daemon.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use overlay::admit::SourceCheck;
use overlay::forwarder::Forwarder;
use overlay::offload::Offload;
use overlay::priority::Scheduling;
use overlay::underlay::ledger::Frames;
use overlay::underlay::port::Attach;
use overlay_wire::drops::DropReason;
use overlay_wire::ip::Version;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;

use crate::metrics::{HostMeter, PeerSample, Repaired, Sample};
use crate::problems::{Part, Problems};
use crate::socket::{Facts, Source};
use overlay_api::status::{
    BackendStatus, Counters, DeviceStatus, Directions, FrameStatus, HostStatus, IoStatus, LeaseState,
    LeaseStatus, PeerStatus, PriorityStatus, RingStatus, Status, StoreStatus, drops,
};
use overlay_leases::lease::{Lease, LeaseBackend};
use overlay_leases::membership::View;
use overlay_leases::netconf::Backend;
use overlay_leases::store::StoreId;
use overlay_node::plan::Plan;
use overlay_node::ways::Reached;
use overlay_node::{Node, Tunnel};
use overlay_support::problem::Problem;

/// What was put back, counted for all who do so.
#[derive(Clone, Default)]
pub(super) struct Restored {
    count: Arc<AtomicU64>,
    meter: HostMeter,
}

impl Restored {
    pub(super) fn counted_on(meter: HostMeter) -> Self {
        Self { count: Arc::default(), meter }
    }

    /// Something of this `kind` was put back.
    pub(super) fn count(&self, kind: Repaired, what: String) {
        self.meter.repaired(kind);
        info!(what, "put back what somebody else has removed or changed");
        self.count.fetch_add(1, Relaxed);
    }
}

/// What there is to tell. It is kept for the socket, which answers at any time.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) facts: Option<Arc<Facts>>,
    pub(super) node: Weak<Node>,
    pub(super) view: Option<(View, LeaseState)>,
    pub(super) store: Option<StoreId>,
    pub(super) problems: Problems,
    pub(super) restored: Restored,
    /// Since when the store has not confirmed the lease.
    unconfirmed_since: Option<Instant>,
}

impl Source for Mutex<Shared> {
    fn status(&self) -> Option<Status> {
        self.lock().status()
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.lock().node.upgrade()
    }

    fn view(&self) -> Option<View> {
        self.lock().view.as_ref().map(|(view, _)| view.clone())
    }

    fn facts(&self) -> Option<Arc<Facts>> {
        self.lock().facts.clone()
    }

    fn excuse(&self) -> String {
        self.lock().excuse()
    }
}

impl Shared {
    pub(super) fn new(problems: Problems, restored: Restored) -> Self {
        Self { problems, restored, unconfirmed_since: Some(Instant::now()), ..Self::default() }
    }

    /// Notes what does not change any more.
    pub(super) fn set_facts(&mut self, facts: Arc<Facts>, store: StoreId) {
        self.facts = Some(facts);
        self.store = Some(store);
    }

    /// The running node, and the rounds of its workers.
    pub(super) fn rounds(&self) -> (Weak<Node>, Vec<(String, u64)>) {
        let node = self.node.upgrade();
        let tunnel = node.as_ref().and_then(|node| node.tunnel());
        (self.node.clone(), tunnel.map_or_else(Vec::new, |tunnel| tunnel.forwarder().rounds()))
    }

    /// Makes `view` what the store said last.
    pub(super) fn set_view(&mut self, view: View, state: LeaseState) {
        self.unconfirmed_since = match (view.connected && state == LeaseState::Held, self.unconfirmed_since) {
            (true, _) => None,
            (false, since) => since.or_else(|| Some(Instant::now())),
        };
        self.view = Some((view, state));
    }

    /// What is wrong with the lease, which lasts for `ttl`: by then, at the latest, the store has let it expire.
    pub(super) fn lease_problem(&self, ttl: Duration) -> Option<Problem> {
        if matches!(self.view, Some((_, LeaseState::Lost))) {
            return Some(Problem::new("lost", "the lease is lost, and not taken again yet"));
        }
        let unconfirmed = self.unconfirmed_since.is_some_and(|since| since.elapsed() >= ttl);
        let text = "the store has not confirmed the lease for as long as it lasts";
        unconfirmed.then(|| Problem::new("unconfirmed", text))
    }

    /// Why there is nothing to tell of a node.
    fn excuse(&self) -> String {
        let why = [Part::Waiting, Part::Node].into_iter().find_map(|part| self.problems.of(part));
        why.map_or_else(|| "the data plane is being rebuilt".to_owned(), |problem| problem.text().to_owned())
    }

    pub(super) fn sample(&self, offloads: Vec<Offload>) -> Sample {
        let node = self.node.upgrade();
        let tunnel = node.as_ref().and_then(|node| node.tunnel());
        let (totals, peers) = (tunnel.map(Tunnel::totals), tunnel.map(Tunnel::exchanged));
        let peer = |(subnet, public_ip, totals)| PeerSample { subnet, public_ip, totals };
        let peers = peers.into_iter().flatten().map(peer).collect();
        Sample { status: self.status(), totals, peers, offloads, ..Sample::default() }
    }

    fn status(&self) -> Option<Status> {
        let node = self.node.upgrade()?;
        let ((view, state), store) = (self.view.as_ref()?, self.store.as_ref()?);
        let plan = node.plan();
        let (egress, ingress) = node.tunnel().map(Tunnel::totals).unwrap_or_default();
        let mtu = |lease: &Lease| {
            let path = node.tunnel()?.state(lease)?.path_mtu()?;
            let (format, _) = plan.wire()?;
            Some(path.saturating_sub(format.overhead(Version::V4))).filter(|mtu| *mtu < plan.mtu())
        };
        let peer = |Reached { lease, way, problem }: Reached| PeerStatus {
            mtu: mtu(&lease),
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
            backend: backend(plan),
            network: plan.config.network,
            lease: LeaseStatus { subnet: plan.subnet, public_ip: plan.underlay.public_ip, state: *state },
            store: StoreStatus {
                kind: store.kind().to_owned(),
                r#where: store.place(),
                connected: view.connected,
            },
            peers: node.peers().into_iter().map(peer).collect(),
            ignored_leases: view.ignored,
            garbage_leases: view.garbage,
            refused_leases: view.refused_count,
            refused: view.refused.iter().map(ToString::to_string).collect(),
            conflicts: view.conflicts.iter().map(ToString::to_string).collect(),
            offloads: node.tunnel().map_or_else(BTreeMap::new, |tunnel| {
                Offload::ALL
                    .into_iter()
                    .map(|offload| (offload.label().to_owned(), tunnel.offloads.is_on(offload)))
                    .collect()
            }),
            offloads_held: node
                .why_not_whole()
                .map(|reason| (Offload::TunnelGso.label().to_owned(), reason))
                .into_iter()
                .collect(),
            io: node.tunnel().map(io),
            priority: node.tunnel().map(|tunnel| priority(tunnel.forwarder())),
            source_check: node.tunnel().map(|tunnel| source_check(tunnel.source_check).to_owned()),
            return_path_masq: node.masquerades_return_path(),
            forward_rules: node.accepts_forwarding(),
            counters: Directions { egress: Counters::from(&egress), ingress: Counters::from(&ingress) },
            drops: Directions {
                egress: drops(&egress, &DropReason::EGRESS),
                ingress: drops(&ingress, &DropReason::INGRESS),
            },
            routed: node.routed(),
            icmp_sent: egress.icmp_sent + ingress.icmp_sent,
            host: HostStatus { restored: self.restored.count.load(Relaxed), problems: self.problems.texts() },
        })
    }
}

fn backend(plan: &Plan) -> BackendStatus {
    match plan.config.backend {
        Backend::Udp { port } => BackendStatus::Udp { port },
        Backend::Vxlan { vni, port, direct_routing, .. } => {
            BackendStatus::Vxlan { port, vni, vtep_mac: plan.vtep_mac.to_string(), direct_routing }
        }
        Backend::HostGw => BackendStatus::HostGw { interface: plan.underlay.name.clone() },
        Backend::Alloc => BackendStatus::Alloc,
    }
}

/// As its flag names it.
fn source_check(check: SourceCheck) -> &'static str {
    match check {
        SourceCheck::Strict => "strict",
        SourceCheck::Loose => "loose",
        SourceCheck::Off => "off",
    }
}

fn priority(forwarder: &Forwarder) -> PriorityStatus {
    let priority = forwarder.priority();
    let (nice, turn) = match priority.fair() {
        Some(Scheduling::Fair { nice, slice }) => (Some(nice), slice),
        _ => (None, None),
    };
    PriorityStatus {
        real_time: priority.real_time(),
        nice,
        turn_us: turn.map(|turn| turn.as_micros() as u64),
        crowded: forwarder.is_crowded(),
        refused: priority.refused().to_vec(),
    }
}

fn frames((Frames { lent, free }, all): (Frames, usize)) -> FrameStatus {
    FrameStatus { all, lent, free }
}

/// Which way packets of `tunnel` take to the wire.
fn io(tunnel: &Tunnel) -> IoStatus {
    let rings = tunnel.forwarder().port().map(|port| {
        let (counts, kernel) = (&port.counts, port.dropped());
        let drops = [
            ("malformed", counts.malformed.load(Relaxed)),
            ("bad_checksum", counts.bad_checksum.load(Relaxed)),
            ("interface_full", counts.refused.load(Relaxed)),
            ("no_frame", kernel.no_frame),
            ("ring_full", kernel.ring_full),
            ("kernel", kernel.other + kernel.invalid),
        ];
        RingStatus {
            interface: port.interface.name.clone(),
            mode: match port.attach {
                Attach::Native => "native",
                Attach::Generic => "generic",
            }
            .to_owned(),
            zero_copy: port.zero_copy,
            queues: port.interface.queues,
            next_hops: tunnel.next_hops(),
            datagrams: Directions {
                egress: counts.sent.load(Relaxed),
                ingress: counts.received.load(Relaxed),
            },
            by_sockets: Directions {
                egress: counts.sent_by_socket.load(Relaxed),
                ingress: counts.received_by_socket.load(Relaxed),
            },
            drops: drops.map(|(name, count)| (name.to_owned(), count)).into(),
            frames: Directions { egress: frames(port.sending()), ingress: frames(port.receiving()) },
        }
    });
    IoStatus { rings, fallback: tunnel.without_rings.as_ref().map(|without| without.reason.clone()) }
}
