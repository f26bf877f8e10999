//! The state of the node, read when somebody asks.

use std::fmt;

use overlay::offload::Offload;
use overlay::stats::{Sizes, Totals};
use overlay_wire::drops::DropReason;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::peers::Slots;
use super::process::{unix, workers};
use super::sample::{Sample, SampleSource};
use super::writer::{About, Distribution, Writer};
use overlay_api::reach::Way;
use overlay_api::status::{BackendStatus, LeaseState, Status};
use overlay_leases::meters::LeaseMeter;

pub(super) struct State {
    source: SampleSource,
    lease: LeaseMeter,
    slots: Mutex<Slots>,
}

impl State {
    pub(super) fn new(source: SampleSource, lease: LeaseMeter, peers: usize) -> Self {
        Self { source, lease, slots: Mutex::new(Slots::new(peers)) }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        let Sample { status, totals, peers, offloads, problems, .. } = (self.source)();
        let build = [("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)];
        out.info("build", "The program", &build)?;
        let ready = problems.as_ref().is_some_and(Vec::is_empty);
        out.gauge(
            About("ready", "What /readyz says: whether the node does its work", None),
            i64::from(ready),
        )?;
        let problems = problems.map_or(0, |problems| problems.len() as i64);
        out.gauge(
            About("problems", "What keeps the node from being ready: see overlayctl status", None),
            problems,
        )?;
        self.lease(&mut out, status.as_ref())?;
        if let Some(status) = &status {
            node(&mut out, status)?;
        }
        if let Some((egress, ingress)) = &totals {
            traffic(&mut out, egress, ingress)?;
            let shown = self.slots.lock().show(peers);
            shown.encode(&mut out)?;
            let offload = |offload: &Offload| ([("offload", offload.label())], i64::from(true));
            out.gauges(
                About(
                    "offload_wanted",
                    "What the kernel is asked to do for the data plane (--offload)",
                    None,
                ),
                offloads.iter().map(offload),
            )?;
            out.counters(
                About("worker_cpu", "Processor time of each worker", Some(Unit::Seconds)),
                workers(),
            )?;
        }
        Ok(())
    }
}

impl State {
    fn lease(&self, out: &mut Writer<'_>, status: Option<&Status>) -> fmt::Result {
        let states = [("held", LeaseState::Held), ("saved", LeaseState::Saved), ("lost", LeaseState::Lost)];
        let now = status.map(|status| status.lease.state);
        out.gauges(
            About("lease_state", "1 for the state that this node's lease is in", None),
            states.map(|(name, state)| ([("state", name)], i64::from(now == Some(state)))),
        )?;
        let Some(times) = self.lease.times() else { return Ok(()) };
        let seconds = || Some(Unit::Seconds);
        let about = About("lease_taken_timestamp", "When this process took the lease", seconds());
        out.gauge(about, unix(times.taken))?;
        let about = About("lease_renewed_timestamp", "When the lease was renewed last, or taken", seconds());
        out.gauge(about, unix(times.renewed))?;
        // One that never ends has no such moment.
        match times.expires {
            Some(expires) => out.gauge(
                About("lease_expiry_timestamp", "When the lease ends unless it is renewed", seconds()),
                unix(expires),
            ),
            None => Ok(()),
        }
    }
}

fn node(out: &mut Writer<'_>, status: &Status) -> fmt::Result {
    let backend = match &status.backend {
        BackendStatus::Udp { .. } => "udp",
        BackendStatus::Vxlan { .. } => "vxlan",
        BackendStatus::HostGw { .. } => "host-gw",
        BackendStatus::Alloc => "alloc",
    };
    let labels = [
        ("backend", backend.to_owned()),
        ("device", status.device.as_ref().map_or_else(String::new, |device| device.name.clone())),
        ("network", status.network.to_string()),
        ("subnet", status.lease.subnet.to_string()),
        ("public_ip", status.lease.public_ip.to_string()),
    ];
    out.info("node", "This node", &labels)?;
    if let Some(device) = &status.device {
        let about = About("device_mtu", "The largest inner packet", Some(Unit::Bytes));
        out.gauge(about, i64::from(device.mtu))?;
        out.gauge(About("device_queues", "Queues of the overlay device", None), device.queues as i64)?;
    }
    let ways = [("tunnel", Way::Tunnel), ("direct", Way::Direct), ("none", Way::None)];
    out.gauges(
        About("peers", "The other nodes, by the way that packets to them take", None),
        ways.map(|(name, way)| {
            let count = status.peers.iter().filter(|peer| peer.way == way).count();
            ([("way", name)], count as i64)
        }),
    )?;
    let unreached = status.peers.iter().filter(|peer| peer.problem.is_some()).count();
    out.gauge(
        About("peers_unreached", "Nodes that are not reached as they should be", None),
        unreached as i64,
    )?;
    out.gauge(
        About("leases_ignored", "Leases of another backend type, which are no peers", None),
        status.ignored_leases as i64,
    )?;
    out.gauge(
        About("leases_unreadable", "Lease keys that cannot be read", None),
        status.garbage_leases as i64,
    )?;
    out.gauge(
        About("leases_refused", "Leases that are not used, since they claim what cannot be theirs", None),
        status.refused_leases as i64,
    )?;
    out.gauge(
        About("lease_conflicts", "Nodes that share what only one may have", None),
        status.conflicts.len() as i64,
    )?;
    let offloads = status.offloads.iter().map(|(name, on)| ([("offload", name.as_str())], i64::from(*on)));
    out.gauges(About("offload_enabled", "What the kernel does for the data plane", None), offloads)
}

fn traffic(out: &mut Writer<'_>, egress: &Totals, ingress: &Totals) -> fmt::Result {
    let both = [("egress", egress), ("ingress", ingress)];
    let direction = |name: &'static str| [("direction", name)];
    out.counters(
        About("forwarded_packets", "Inner packets forwarded, as many as the wire sees", None),
        both.map(|(name, totals)| (direction(name), totals.packets)),
    )?;
    out.counters(
        About("forwarded", "Their bytes, without encapsulation", Some(Unit::Bytes)),
        both.map(|(name, totals)| (direction(name), totals.bytes)),
    )?;
    let reasons =
        [("egress", egress, &DropReason::EGRESS[..]), ("ingress", ingress, &DropReason::INGRESS[..])];
    let drops = reasons.into_iter().flat_map(|(name, totals, reasons)| {
        reasons
            .iter()
            .map(move |reason| ([("direction", name), ("reason", reason.label())], totals.drops(*reason)))
    });
    out.counters(About("dropped_packets", "Packets dropped, by reason", None), drops)?;
    out.counters(
        About("icmp_errors_sent", "ICMP errors sent to inner senders", None),
        both.map(|(name, totals)| (direction(name), totals.icmp_sent)),
    )?;
    out.histograms(
        About("batch_packets", "Packets forwarded in one round of a worker", None),
        both.map(|(name, totals)| (direction(name), distribution(&totals.batch_sizes))),
    )?;
    out.histograms(
        About(
            "super_packet_segments",
            "Packets on the wire that each packet of the overlay device was, so 1 without offload",
            None,
        ),
        both.map(|(name, totals)| (direction(name), distribution(&totals.super_packet_sizes))),
    )
}

fn distribution(sizes: &Sizes) -> Distribution {
    let bounds = Sizes::bounds().map(|bound| bound as f64).chain([f64::INFINITY]);
    Distribution { sum: sizes.sum as f64, buckets: bounds.zip(sizes.counts).collect() }
}
