//! The part of a node that encapsulates: a device and its workers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ipnet::Ipv4Net;
use overlay::admit::SourceCheck;
use overlay::forwarder::{self, Forwarder, OnFailure};
use overlay::handover::Inherited;
use overlay::offload::{Offload, Offloads};
use overlay::path_mtu::Prober;
use overlay::peer_state::{PeerState, PeerTotals};
use overlay::stats::Totals;
use overlay::table::{Hop, Local, Peer, PeerTable, SharedTable};
use overlay::tun::{self, TunQueue};
use overlay::underlay::whole::{self, TapQueue};
use overlay::underlay::{port, udp};
use overlay_wire::{Format, MacAddrs};
use tracing::{debug, warn};

use crate::error::NodeError;
use crate::io::{self, Without};
use crate::options::NodeOptions;
use crate::path_mtu::PathMtus;
use crate::ping::{Ping, Pings};
use crate::plan::Plan;
use overlay_host::iface::Underlay;
use overlay_host::nexthop::{By, NextHops};
use overlay_host::{Desired, HostError, Steps, link};
use overlay_leases::lease::{Admitted, Lease, LeaseBackend};

/// The part of a node that encapsulates: a device and its workers.
pub struct Tunnel {
    /// Of the device: another one of the same name has another.
    pub(super) index: u32,
    /// Queues of the device.
    pub queues: usize,
    /// What is asked of sources.
    pub source_check: SourceCheck,
    /// What the kernel does for the data plane.
    pub offloads: Arc<Offloads>,
    pub(super) table: SharedTable,
    pub(super) forwarder: Forwarder,
    /// Whether super-packets leave whole by a TAP, or have done.
    pub(super) has_tap: bool,
    next_hops: Option<NextHops>,
    /// Why there are no rings, if there were to be.
    pub without_rings: Option<Without>,
    pings: Arc<Pings>,
    /// By which the paths to the peers are asked for their MTU.
    probes: Probes,
    path_mtus: OnceLock<PathMtus>,
}

/// Where packets leave that ask for a path's MTU.
#[derive(Debug, Clone, Copy)]
enum Probes {
    /// By any port of this address.
    AnyPort(IpAddr),
    /// By the one port that all packets leave by.
    OnePort(SocketAddr),
}

impl Tunnel {
    /// The workers.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Peers whose next hop by the interface is known.
    #[must_use]
    pub fn next_hops(&self) -> usize {
        self.table.current().hops().filter(|hop| hop.state.next_hop().is_some()).count()
    }

    /// Whether the rings are no longer those of the interface, which has another number of queues now.
    #[must_use]
    pub fn has_outdated_rings(&self) -> bool {
        let interface = self.forwarder.port().map(|port| &port.interface);
        interface.is_some_and(|interface| port::receive_queues(&interface.name) != interface.queues)
    }

    /// Asks the daemon of the node whose overlay device has the address `peer` for an echo of `len` bytes.
    ///
    /// # Errors
    /// As [`Pings::ask`].
    pub fn ping(&self, peer: IpAddr, len: usize) -> std::io::Result<Ping> {
        self.pings.ask(&self.forwarder, &self.table.current(), peer, len)
    }

    /// What is known of the node of `lease` beside it.
    #[must_use]
    pub fn state(&self, lease: &Lease) -> Option<Arc<PeerState>> {
        self.table.current().state(lease.subnet.into(), lease.attrs.public_ip.into()).cloned()
    }

    /// What the workers know of the network at this moment.
    #[must_use]
    pub fn table(&self) -> Arc<PeerTable> {
        self.table.current()
    }

    /// What was exchanged with each peer, by subnet and public address.
    #[must_use]
    pub fn exchanged(&self) -> Vec<(Ipv4Net, Ipv4Addr, PeerTotals)> {
        let table = self.table.current();
        // Leases are of IPv4.
        let exchanged =
            |(peer, hop): (&Peer, &Hop)| Some((peer.subnets.v4()?, peer.public.v4()?, hop.state.totals()));
        table.peers().iter().zip(table.hops()).filter_map(exchanged).collect()
    }

    /// The counters of all workers: egress, ingress.
    #[must_use]
    pub fn totals(&self) -> (Totals, Totals) {
        (self.forwarder.egress().into_iter().sum(), self.forwarder.ingress().into_iter().sum())
    }

    /// Makes `peers` the ones that it reaches, and `addresses` those that this host has.
    pub(super) fn publish(&self, plan: &Plan, peers: &Admitted, addresses: Vec<Ipv4Addr>) {
        let Some(wire) = plan.wire() else { return };
        let (local, peers) = network(plan, wire, peers, addresses);
        let (begun, count) = (Instant::now(), peers.len());
        self.table.publish(local, peers);
        debug!(peers = count, built_in_us = begun.elapsed().as_micros(), "table published");
        if let Some(next_hops) = &self.next_hops {
            next_hops.peers_changed();
        }
    }

    /// Has the paths to the peers asked for their MTU, if they are not yet.
    ///
    /// # Errors
    /// No socket is to be had. Packets flow without: where a path is narrower than the interface, cut.
    pub(super) fn watch_paths(&self) -> Result<(), HostError> {
        if self.path_mtus.get().is_none() {
            let prober = match self.probes {
                Probes::AnyPort(from) => Prober::by_any_port(from)?,
                Probes::OnePort(from) => Prober::by(from)?,
            };
            let watch = || PathMtus::watch(prober, self.table.clone(), Arc::clone(&self.pings));
            self.path_mtus.get_or_init(watch);
        }
        Ok(())
    }

    /// Opens the device and starts its workers. What is lacking besides is told beside the tunnel.
    pub(super) async fn start(
        plan: &Plan,
        wire: (Format, u16),
        options: &NodeOptions,
        leases: &Admitted,
        desired: &Desired,
        on_failure: &OnFailure,
        inherited: &mut Inherited,
    ) -> Result<(Self, Vec<HostError>), NodeError> {
        // The port before all else: where another daemon or a kernel device has it, the overlay device,
        // its address and the rules are theirs, too, and not to be touched.
        let listen = SocketAddr::new(plan.underlay.address.into(), wire.1);
        let sockets = inherited.sockets(listen);
        if sockets.is_empty() {
            udp::probe(listen)?;
        }
        let offloads = Arc::new(Offloads::new(&options.offloads));
        let queues = inherited.queues(&desired.device);
        // Then address and route are there, and what has arrived meanwhile is not to wait for a look at them.
        let goes_on = !queues.is_empty();
        let queues = open_device(&desired.device, options.queues, &offloads, queues).await?;
        let mut lacking = Vec::new();
        if !goes_on {
            lacking.extend(configure(desired).await.err());
        }
        let index = link::index_of(&desired.device).await?;
        let addresses: Vec<Ipv4Addr> = link::addresses().await?.into_iter().collect();
        let peers = leases.beyond(&addresses);
        let (local, peers) = network(plan, wire, &peers, addresses);
        let table = SharedTable::new(PeerTable::new(local, peers));
        let taps = open_taps(plan, options.queues, &offloads, inherited);
        let spread_source_ports =
            options.spread_source_ports.unwrap_or(matches!(wire.0, Format::Vxlan { .. }));
        let has_tap = !taps.is_empty();
        let pings = Arc::<Pings>::default();
        let (port, without_rings) = io::open(options.io, &plan.underlay, listen, inherited).await;
        let next_hops = port.is_some().then(|| NextHops::follow(by(&plan.underlay), table.clone()));
        let forwarder = Forwarder::start(
            forwarder::Config {
                queues,
                listen,
                inherited: sockets,
                port,
                source_check: options.source_check,
                table: table.clone(),
                offloads: Arc::clone(&offloads),
                spread_source_ports,
                taps,
                stay_awake: options.stay_awake,
                pin: options.pin,
                confinement: options.confinement.clone(),
                priority: options.priority.clone(),
                on_answer: pings.on_answer(),
            },
            on_failure,
        )?;
        if goes_on {
            lacking.extend(configure(desired).await.err());
        }
        let probes = if spread_source_ports { Probes::AnyPort(listen.ip()) } else { Probes::OnePort(listen) };
        let (queues, source_check) = (options.queues, options.source_check);
        let tunnel = Self {
            index,
            queues,
            source_check,
            offloads,
            table,
            forwarder,
            has_tap,
            next_hops,
            without_rings,
            pings,
            probes,
            path_mtus: OnceLock::new(),
        };
        lacking.extend(tunnel.watch_paths().err());
        Ok((tunnel, lacking))
    }
}

/// Opens the device with as many queues, or goes on with those that an earlier node had open.
async fn open_device(
    device: &str,
    count: usize,
    offloads: &Offloads,
    earlier: Vec<TunQueue>,
) -> Result<Vec<TunQueue>, NodeError> {
    if earlier.is_empty() && link::is_open(device).await? {
        return Err(NodeError::DeviceTaken(device.to_owned()));
    }
    let queues = tun::open(device, count, offloads, earlier)?;
    if let Err(error) = tun::steer_by_flow(&queues) {
        warn!(device, %error, "flows cannot be tied to queues: one may be reordered when it begins");
    }
    Ok(queues)
}

/// Opens the TAP by which super-packets leave whole; none where it cannot be had, or the backend has no use for one.
fn open_taps(plan: &Plan, count: usize, offloads: &Offloads, inherited: &mut Inherited) -> Vec<TapQueue> {
    let taps = match plan.tap() {
        Some(name) => {
            let earlier = inherited.tap(&name);
            let underlay = (plan.underlay.name.as_str(), plan.underlay.index);
            whole::open(&name, count, underlay, offloads, earlier)
        }
        None => Vec::new(),
    };
    if taps.is_empty() {
        offloads.switch_off(Offload::TunnelGso);
    }
    // Until it is known that no rule of the host would see what goes past it.
    offloads.hold(Offload::TunnelGso);
    taps
}

fn by(underlay: &Underlay) -> By {
    By { interface: underlay.index, mtu: underlay.mtu, source: underlay.address }
}

/// Brings the tunnel's device, its address and the host's settings for it to the wanted state. Returns what was
/// not so, for people.
pub(super) async fn configure(desired: &Desired) -> Result<Vec<String>, HostError> {
    let applied = link::apply(desired).await;
    if let Err(HostError::NoDevice(_)) = applied {
        return applied;
    }
    let mut steps = Steps::default();
    steps.took(applied);
    if desired.direct.is_some() {
        // A node that we reach directly may still send through the tunnel, as long as it knows no better.
        steps.took(link::loosen_reverse_path(&desired.device));
    }
    steps.outcome()
}

/// What the tunnel's table is made of, by which it reaches `peers`.
fn network(
    plan: &Plan,
    wire: (Format, u16),
    peers: &Admitted,
    addresses: Vec<Ipv4Addr>,
) -> (Local, Vec<Peer>) {
    let peer = |lease: &Lease| Peer {
        subnets: lease.subnet.into(),
        public: lease.attrs.public_ip.into(),
        vtep_macs: match lease.attrs.backend {
            LeaseBackend::Vxlan { vtep_mac, .. } => Some(MacAddrs::V4(vtep_mac)),
            _ => None,
        },
    };
    let (format, port) = wire;
    let local = Local {
        network: plan.config.network.into(),
        subnets: plan.subnet.into(),
        overlay_addresses: plan.overlay_address().into(),
        public: plan.underlay.address.into(),
        addresses: addresses.into_iter().map(IpAddr::from).collect(),
        mtu: plan.mtu(),
        format,
        port,
    };
    (local, peers.iter().map(peer).collect())
}
