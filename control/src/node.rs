//! This host's part of the overlay: rules and routes, and for backends that have one the tunnel, a device
//! with its workers; built from a plan and taken down again when it is dropped.

use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use overlay::confine::Confinement;
use overlay::forwarder::{self, Forwarder, OnFailure};
use overlay::handover::Inherited;
use overlay::ingress::SourceCheck;
use overlay::offload::{Offload, Offloads};
use overlay::path_mtu::Prober;
use overlay::peer_state::{PeerState, PeerTotals};
use overlay::priority::Priority;
use overlay::stats::Totals;
use overlay::table::{Hop, Local, Peer, PeerTable, SharedTable};
use overlay::underlay::{port, udp, whole};
use overlay::wire::Format;
use overlay::{MacAddr, SetupError};
use tracing::{debug, info, warn};

use crate::claim::Claimed;
use crate::host::firewall::verdict::Overlay;
use crate::host::holdings::{self, Surveyor, Viewpoint};
use crate::host::nexthop::{By, NextHops};
use crate::host::overlap::{Holdings, Obstacle};
use crate::host::routes::OwnRoute;
use crate::host::{Desired, FirewallKind, HostError, Masquerade, forwarding, link, routes};
use crate::iface::Underlay;
use crate::io::{self, Io};
use crate::lease::{Admitted, Lease, LeaseBackend};
use crate::netconf::{Backend, NetworkConfig};
use crate::path_mtu::PathMtus;
use crate::ping::{Ping, Pings};
use crate::rule_watch::{RuleWatch, Watched, Whole};
use crate::store::StoreAddresses;
use crate::takeover::TakeoverError;
use crate::ways::{self, Routed, Terms, Ways};

mod preflight;

pub use crate::ways::{Reached, Way};
pub use preflight::preflight;

/// The smallest MTU that IPv4 allows a link to have (RFC 791): with less there is no overlay.
const MIN_MTU: u32 = 68;

/// What a node is made from. Equal plans make the same node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The network's configuration.
    pub config: NetworkConfig,
    /// The subnet that this node has leased.
    pub subnet: Ipv4Net,
    /// The address that frames to this node carry.
    pub vtep_mac: MacAddr,
    /// The interface to the other nodes.
    pub underlay: Underlay,
}

impl Plan {
    /// The overlay device's name, as flannel has it, or what stands for it
    /// ([`NetworkConfig::device`](crate::netconf::NetworkConfig::device)).
    #[must_use]
    pub fn device(&self) -> String {
        self.config.device()
    }

    /// How the tunnel's packets stand on the wire, and the UDP port of every node; `None` without a tunnel.
    #[must_use]
    pub fn wire(&self) -> Option<(Format, u16)> {
        match self.config.backend {
            Backend::Udp { port } => Some((Format::FlannelUdp, port)),
            Backend::Vxlan { vni, port, .. } => Some((Format::Vxlan { vni, vtep_mac: self.vtep_mac }, port)),
            Backend::HostGw | Backend::Alloc => None,
        }
    }

    /// The name of the TAP by which super-packets leave whole; `None` if the backend's do not.
    #[must_use]
    pub fn tap(&self) -> Option<String> {
        match self.config.backend {
            Backend::Vxlan { vni, .. } => Some(format!("overlay.{vni}")),
            _ => None,
        }
    }

    /// The overlay's MTU: what the underlay's leaves beside the encapsulation. vxlan's `MTU` option
    /// stands for the underlay's (flannel 0.28, `pkg/backend/vxlan`).
    #[must_use]
    pub fn mtu(&self) -> u32 {
        let underlay = match self.config.backend {
            Backend::Vxlan { mtu: Some(mtu), .. } => mtu,
            _ => self.underlay.mtu,
        };
        underlay.saturating_sub(self.wire().map_or(0, |(format, _)| format.overhead()))
    }

    /// The overlay device's address: the base of the subnet, which no container gets.
    #[must_use]
    pub fn overlay_address(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// Whether it makes sense on any host.
    ///
    /// # Errors
    /// [`NodeError::Mtu`] or [`NodeError::Nat`].
    fn check(&self) -> Result<(), NodeError> {
        if self.mtu() < MIN_MTU {
            return Err(NodeError::Mtu(self.underlay.mtu));
        }
        let Underlay { public_ip, address, .. } = self.underlay;
        if self.config.backend == Backend::HostGw && public_ip != address {
            return Err(NodeError::Nat { public_ip, address });
        }
        Ok(())
    }

    /// Whether its subnet can be this node's, and is not where the host itself is.
    ///
    /// # Errors
    /// It is; or the kernel cannot be asked.
    pub async fn check_subnet(&self, stores: &StoreAddresses) -> Result<(), NodeError> {
        let holdings = holdings::look(self.viewpoint(&stores.now())).await?;
        holdings.refusal(self.subnet).map_or(Ok(()), |obstacle| Err(NodeError::Subnet(obstacle)))
    }

    /// From where it looks at what there is of the host's.
    fn viewpoint<'a>(&'a self, stores: &'a BTreeSet<Ipv4Addr>) -> Viewpoint<'a> {
        Viewpoint {
            network: self.config.network,
            own: Some(self.subnet),
            device: self.config.backend.tunnel_device(),
            underlay: &self.underlay.name,
            stores,
        }
    }

    /// What this host's kernel is to be brought to for it.
    #[must_use]
    pub fn desired(&self, options: &NodeOptions) -> Desired {
        let tunnel = self.wire().is_some();
        Desired {
            device: self.device(),
            direct: self.config.backend.routes_directly().then(|| self.underlay.name.clone()),
            mtu: self.mtu(),
            address: self.overlay_address(),
            network: self.config.network,
            pod_subnet: self.subnet,
            masquerade: Masquerade {
                // What goes out by the underlay has the underlay's address anyway.
                return_path: options.masquerade.return_path && tunnel,
                ..options.masquerade
            },
            forward_rules: options.forward_rules,
            firewall: firewall_kind(options.firewall, &self.config),
            underlay: self.underlay.name.clone(),
            tunnel_port: self.wire().map(|(_, port)| port),
            blackhole: options.blackhole,
        }
    }
}

/// What the operator chose about nodes in general.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Which sources are rewritten.
    pub masquerade: Masquerade,
    /// Whether the host's firewall is told to accept forwarding.
    pub forward_rules: bool,
    /// What the rules are made with, if not as the network configuration says.
    pub firewall: Option<FirewallKind>,
    /// Whether what is sent to this node's subnet and to none of its pods ends here.
    pub blackhole: bool,
    /// What is asked of the source of packets from the wire.
    pub source_check: SourceCheck,
    /// Queues of the overlay device.
    pub queues: usize,
    /// What the kernel is asked to do for the data plane.
    pub offloads: Vec<Offload>,
    /// Whether flows leave by different source ports; if not said, as in flannel, whose udp has one.
    pub spread_source_ports: Option<bool>,
    /// How long a worker looks for more before it sleeps.
    pub stay_awake: Duration,
    /// Whether the workers of a queue are tied to one processor.
    pub pin: bool,
    /// Which way packets take to the wire.
    pub io: Io,
    /// What the workers may do besides.
    pub confinement: Confinement,
    /// How they stand among the other threads of the host.
    pub priority: Priority,
    /// Where the leases are, which the overlay must leave in reach.
    pub stores: StoreAddresses,
}

/// A node could not be built.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data plane.
    #[error(transparent)]
    Forwarder(#[from] SetupError),
    /// The host's configuration.
    #[error(transparent)]
    Host(#[from] HostError),
    /// What flanneld has left cannot be taken over.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// A second network with the same VNI, on another port or interface.
    #[error(
        "another process has the device {0} open, perhaps an overlayd of another network: stop it, or give the networks different VNIs"
    )]
    DeviceTaken(String),
    /// A second daemon of the same network.
    #[error(transparent)]
    Claimed(#[from] Claimed),
    /// Nothing is left of the MTU.
    #[error("the underlay's MTU of {0} leaves no room for the overlay: choose another --iface or MTU")]
    Mtu(u32),
    /// A gateway must be at the address that it is told to the others by.
    #[error(
        "host-gw cannot pass a NAT: the --public-ip {public_ip} is not the address {address} of the interface"
    )]
    Nat {
        /// What the lease says.
        public_ip: Ipv4Addr,
        /// What the interface has.
        address: Ipv4Addr,
    },
    /// The lease is for what the host has itself.
    #[error("{0}")]
    Subnet(Obstacle),
}

impl NodeError {
    /// Whether it is something that another process has, which may be about to end.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Forwarder(error) => {
                matches!(error.source.kind(), ErrorKind::AddrInUse | ErrorKind::ResourceBusy)
            }
            Self::DeviceTaken(_) | Self::Claimed(_) => true,
            _ => false,
        }
    }

    /// What tells it from others, however it is put.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Forwarder(error) => format!("{} {} {}", error.call, error.object, error.source.kind()),
            Self::Host(error) => error.kind(),
            other => other.to_string(),
        }
    }
}

/// A running node.
pub struct Node {
    plan: Plan,
    desired: Desired,
    tunnel: Option<Tunnel>,
    rules: RuleWatch,
    stores: StoreAddresses,
    surveyor: Surveyor,
    /// For the control socket, too, which asks at any time.
    peers: Mutex<Vec<Reached>>,
    routed: Mutex<Option<Routed>>,
    /// Its routes: what is missing of them has been taken away.
    wanted: Mutex<HashSet<OwnRoute>>,
}

/// The part of a node that encapsulates: a device and its workers.
pub struct Tunnel {
    /// Of the device: another one of the same name has another.
    index: u32,
    /// Queues of the device.
    pub queues: usize,
    /// What is asked of sources.
    pub source_check: SourceCheck,
    /// What the kernel does for the data plane.
    pub offloads: Arc<Offloads>,
    table: SharedTable,
    forwarder: Forwarder,
    /// Whether super-packets leave whole by a TAP, or have done.
    has_tap: bool,
    next_hops: Option<NextHops>,
    /// Why there are no rings, if there were to be.
    pub without_port: Option<String>,
    pings: Arc<Pings>,
    _path_mtus: PathMtus,
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
    pub fn ping(&self, peer: Ipv4Addr, len: usize) -> std::io::Result<Ping> {
        self.pings.ask(&self.forwarder, &self.table.current(), peer, len)
    }

    /// What is known of the node of `lease` beside it.
    #[must_use]
    pub fn state(&self, lease: &Lease) -> Option<Arc<PeerState>> {
        self.table.current().state(lease.subnet, lease.attrs.public_ip).cloned()
    }

    /// What was exchanged with each peer, by subnet and public address.
    #[must_use]
    pub fn exchanged(&self) -> Vec<(Ipv4Net, Ipv4Addr, PeerTotals)> {
        let table = self.table.current();
        let exchanged = |(peer, hop): (&Peer, &Hop)| (peer.subnet, peer.public_ip, hop.state.totals());
        table.peers().iter().zip(table.hops()).map(exchanged).collect()
    }

    /// The counters of all workers: egress, ingress.
    #[must_use]
    pub fn totals(&self) -> (Totals, Totals) {
        (self.forwarder.egress().into_iter().sum(), self.forwarder.ingress().into_iter().sum())
    }
}

impl Node {
    /// Opens the device, configures the host and starts forwarding to `leases`, with what is `inherited` of
    /// an earlier node or process. `on_failure` is told when a worker has to give up later. The firewall's rules are
    /// somebody else's to put.
    ///
    /// # Errors
    /// What could not be had; a device, and what was put on it, stays.
    pub async fn start(
        plan: Plan,
        options: &NodeOptions,
        leases: &Admitted,
        on_failure: &OnFailure,
        inherited: &mut Inherited,
    ) -> Result<Self, NodeError> {
        plan.check()?;
        let desired = plan.desired(options);
        let tunnel = match plan.wire() {
            Some(wire) => {
                Some(Tunnel::start(&plan, wire, options, leases, &desired, on_failure, inherited).await?)
            }
            None => None,
        };
        if plan.config.backend != Backend::Alloc {
            match forwarding::apply(&desired).await {
                Ok(put) => put.into_iter().for_each(|what| info!(what, "the host is prepared")),
                // Others may be at it. `sync` tries again, and reports.
                Err(error) => warn!(%error, "this host does not forward yet"),
            }
        }
        let rules = RuleWatch::start(watched(&plan, &desired, tunnel.as_ref()));
        let node = Self {
            plan,
            desired,
            tunnel,
            rules,
            stores: options.stores.clone(),
            surveyor: Surveyor::default(),
            peers: Mutex::default(),
            routed: Mutex::default(),
            wanted: Mutex::default(),
        };
        node.publish(leases).await?;
        Ok(node)
    }

    /// Ends forwarding, for up to `patience`; returns the names of workers that have not ended by then. Device, rules
    /// and routes stay.
    pub fn stop(&self, patience: Duration) -> Vec<String> {
        self.tunnel.as_ref().map_or_else(Vec::new, |tunnel| tunnel.forwarder.stop(patience))
    }

    /// What it was made from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether what enters the overlay from outside the network gets this host's address as its source.
    #[must_use]
    pub fn masquerades_return_path(&self) -> bool {
        let Desired { masquerade, firewall, .. } = &self.desired;
        // flannel's own rules do that, too.
        (masquerade.return_path || masquerade.ip_masq) && *firewall != FirewallKind::None
    }

    /// Whether iptables is told to accept what is forwarded between pods.
    #[must_use]
    pub fn accepts_forwarding(&self) -> bool {
        self.desired.forward_rules && self.desired.firewall != FirewallKind::None
    }

    /// Why super-packets do not leave whole, if it is for the host's rules.
    #[must_use]
    pub fn why_not_whole(&self) -> Option<String> {
        let offloads = self.tunnel.as_ref().map(|tunnel| &tunnel.offloads);
        let held = offloads.is_some_and(|offloads| {
            offloads.is_to_be_had(Offload::TunnelGso) && !offloads.is_on(Offload::TunnelGso)
        });
        self.rules.why_not_whole().filter(|_| held)
    }

    /// Its tunnel, if its backend has one.
    #[must_use]
    pub fn tunnel(&self) -> Option<&Tunnel> {
        self.tunnel.as_ref()
    }

    /// The other nodes.
    #[must_use]
    pub fn peers(&self) -> Vec<Reached> {
        lock(&self.peers).clone()
    }

    /// What of the network leads into the tunnel; `None` without one.
    #[must_use]
    pub fn routed(&self) -> Option<Routed> {
        lock(&self.routed).clone()
    }

    /// Puts back all that the kernel has lost of this node: of the device its MTU and address, as by being set down
    /// once; of the routes those that are missing, while those that are left over go. Also, who is on our link, and
    /// what of the host's is in the network, is found out anew. The firewall's rules are the firewall's to sync.
    /// Returns what was put back, for people.
    ///
    /// # Errors
    /// The step that the kernel refused; [`HostError::NoDevice`] if the device, or the TAP beside it, is gone: then
    /// only a new node helps.
    pub async fn sync(&self) -> Result<Vec<String>, HostError> {
        if let Some(Tunnel { offloads, .. }) = &self.tunnel
            && offloads.is_to_be_had(Offload::TunnelGso)
            && !whole::passes(&self.plan.underlay.name)
        {
            info!(
                underlay = self.plan.underlay.name,
                "super-packets leave cut from now on: the interface does not pass them"
            );
            offloads.switch_off(Offload::TunnelGso);
        }
        let mut put = match &self.tunnel {
            Some(tunnel) => self.sync_devices(tunnel).await?,
            None => Vec::new(),
        };
        let leases = self.peers().into_iter().map(|peer| peer.lease).collect();
        put.extend(self.find_ways(leases).await?);
        if self.plan.config.backend != Backend::Alloc {
            put.extend(forwarding::apply(&self.desired).await?);
        }
        Ok(put)
    }

    async fn sync_devices(&self, tunnel: &Tunnel) -> Result<Vec<String>, HostError> {
        let device = &self.desired.device;
        let mut put: Vec<String> = link::rename_back(tunnel.index, device).await?.into_iter().collect();
        if link::index_of(device).await? != tunnel.index {
            return Err(HostError::NoDevice(device.clone()));
        }
        // Workers whose TAP is gone do without it, and say no more.
        if tunnel.has_tap
            && let Some(tap) = self.plan.tap()
        {
            link::index_of(&tap).await?;
        }
        put.extend(configure(&self.desired).await?);
        Ok(put)
    }

    /// Makes `leases` the peers. The host's own addresses are read anew. Returns the routes that have been put back,
    /// for people.
    ///
    /// # Errors
    /// The host's addresses or routes cannot be read; what was known earlier stays.
    pub async fn publish(&self, leases: &Admitted) -> Result<Vec<String>, HostError> {
        let addresses: Vec<Ipv4Addr> = link::addresses().await?.into_iter().collect();
        let peers = leases.beyond(&addresses);
        if let (Some(tunnel), Some(wire)) = (&self.tunnel, self.plan.wire()) {
            let (local, peers) = network(&self.plan, wire, &peers, addresses);
            let (begun, count) = (Instant::now(), peers.len());
            tunnel.table.publish(local, peers);
            debug!(peers = count, built_in_us = begun.elapsed().as_micros(), "table published");
            if let Some(next_hops) = &tunnel.next_hops {
                next_hops.peers_changed();
            }
        }
        self.find_ways(peers.to_vec()).await
    }

    /// Finds out how each of `leases` is reached, and puts the routes that this takes. Returns those that have been
    /// put back.
    async fn find_ways(&self, leases: Vec<Lease>) -> Result<Vec<String>, HostError> {
        let Plan { config, underlay, .. } = &self.plan;
        let holdings = match config.backend {
            Backend::Alloc => Holdings::default(),
            _ => self.surveyor.look(self.plan.viewpoint(&self.stores.now())).await?,
        };
        if let Some(tunnel) = &self.tunnel {
            tunnel.table.set_no_nodes(holdings.trusted());
        }
        let on_link = if config.backend.routes_directly() {
            let nodes: Vec<Ipv4Addr> = leases.iter().map(|lease| lease.attrs.public_ip).collect();
            Some(routes::on_link(&nodes, underlay.index).await?)
        } else {
            None
        };
        let terms = Terms {
            plan: &self.plan,
            device: self.tunnel.as_ref().map(|tunnel| tunnel.index),
            blackhole: self.desired.blackhole,
        };
        let mut ways = Ways::find(terms, holdings, leases, on_link);
        let before = lock(&self.wanted).clone();
        let put = ways.put(config.network, &before).await;
        *lock(&self.wanted) = ways.wanted.drain(..).collect();
        let mut peers = lock(&self.peers);
        ways::tell(&peers, &ways.reached);
        *peers = ways.reached;
        let mut routed = lock(&self.routed);
        ways::tell_routed(routed.as_ref(), ways.routed.as_ref());
        *routed = ways.routed;
        put
    }
}

impl Tunnel {
    async fn start(
        plan: &Plan,
        wire: (Format, u16),
        options: &NodeOptions,
        leases: &Admitted,
        desired: &Desired,
        on_failure: &OnFailure,
        inherited: &mut Inherited,
    ) -> Result<Self, NodeError> {
        // The port before all else: where another daemon or a kernel device has it, the overlay device,
        // its address and the rules are theirs, too, and not to be touched.
        let listen = SocketAddrV4::new(plan.underlay.address, wire.1);
        let sockets = inherited.sockets(listen);
        if sockets.is_empty() {
            udp::probe(listen)?;
        }
        let offloads = Arc::new(Offloads::new(&options.offloads));
        let queues = inherited.queues(&desired.device);
        // Then address and route are there, and what has arrived meanwhile is not to wait for a look at them.
        let goes_on = !queues.is_empty();
        if !goes_on && link::is_open(&desired.device).await? {
            return Err(NodeError::DeviceTaken(desired.device.clone()));
        }
        let queues = overlay::tun::open(&desired.device, options.queues, &offloads, queues)?;
        if let Err(error) = overlay::tun::steer_by_flow(&queues) {
            warn!(device = desired.device, %error, "flows cannot be tied to queues: one may be reordered when it begins");
        }
        if !goes_on {
            configure(desired).await?;
        }
        let index = link::index_of(&desired.device).await?;
        let addresses: Vec<Ipv4Addr> = link::addresses().await?.into_iter().collect();
        let peers = leases.beyond(&addresses);
        let (local, peers) = network(plan, wire, &peers, addresses);
        let table = SharedTable::new(PeerTable::new(local, peers));
        let taps = match plan.tap() {
            Some(name) => {
                let earlier = inherited.tap(&name);
                let underlay = (plan.underlay.name.as_str(), plan.underlay.index);
                whole::open(&name, options.queues, underlay, &offloads, earlier)
            }
            None => Vec::new(),
        };
        if taps.is_empty() {
            // Also where the backend has no use for one.
            offloads.switch_off(Offload::TunnelGso);
        }
        let spread_source_ports =
            options.spread_source_ports.unwrap_or(matches!(wire.0, Format::Vxlan { .. }));
        // Until it is known that no rule of the host would see what goes past it.
        offloads.hold(Offload::TunnelGso);
        let has_tap = !taps.is_empty();
        let pings = Arc::<Pings>::default();
        let (port, without_port) = io::open(options.io, &plan.underlay, listen, inherited).await;
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
            configure(desired).await?;
        }
        let prober = if spread_source_ports { Prober::by_any_port(*listen.ip()) } else { Prober::by(listen) };
        let path_mtus = PathMtus::watch(prober?, table.clone(), Arc::clone(&pings));
        let (queues, source_check) = (options.queues, options.source_check);
        Ok(Self {
            index,
            queues,
            source_check,
            offloads,
            table,
            forwarder,
            has_tap,
            next_hops,
            without_port,
            pings,
            _path_mtus: path_mtus,
        })
    }
}

/// What of the host's rules concerns the node.
fn watched(plan: &Plan, desired: &Desired, tunnel: Option<&Tunnel>) -> Watched {
    let Underlay { name, index, address, .. } = &plan.underlay;
    let whole = tunnel.filter(|tunnel| tunnel.offloads.is_to_be_had(Offload::TunnelGso));
    Watched {
        overlay: Overlay {
            network: desired.network,
            device: desired.device.clone(),
            forward_rules: desired.forward_rules && desired.firewall != FirewallKind::None,
        },
        pods: desired.pod_subnet,
        way_out: if tunnel.is_some() { desired.device.clone() } else { name.clone() },
        whole: whole.zip(plan.wire()).map(|(tunnel, (_, port))| Whole {
            own: *address,
            underlay: name.clone(),
            index: *index,
            port,
            table: tunnel.table.clone(),
            offloads: Arc::clone(&tunnel.offloads),
        }),
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn by(underlay: &Underlay) -> By {
    By { interface: underlay.index, mtu: underlay.mtu, source: underlay.address }
}

/// The flag counts; without it, flannel's key in the network configuration.
fn firewall_kind(flag: Option<FirewallKind>, config: &NetworkConfig) -> FirewallKind {
    let configured = if config.enable_nftables { FirewallKind::Nftables } else { FirewallKind::Auto };
    flag.unwrap_or(configured)
}

/// Brings the tunnel's device, its route and the host's settings for it to the wanted state. Returns what was
/// not so, for people.
async fn configure(desired: &Desired) -> Result<Vec<String>, HostError> {
    let mut put = link::apply(desired).await?;
    if desired.direct.is_some() {
        // A node that we reach directly may still send through the tunnel, as long as it knows no better.
        put.extend(link::loosen_reverse_path(&desired.device)?);
    }
    Ok(put)
}

/// What the tunnel's table is made of, by which it reaches `peers`.
fn network(
    plan: &Plan,
    wire: (Format, u16),
    peers: &Admitted,
    addresses: Vec<Ipv4Addr>,
) -> (Local, Vec<Peer>) {
    let peer = |lease: &Lease| Peer {
        subnet: lease.subnet,
        subnet_v6: None,
        public_ip: lease.attrs.public_ip,
        vtep_mac: match lease.attrs.backend {
            LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
            _ => None,
        },
    };
    let (format, port) = wire;
    let local = Local {
        network: plan.config.network,
        subnet: plan.subnet,
        overlay_address: plan.overlay_address(),
        v6: None,
        addresses: addresses.into_iter().map(IpAddr::from).collect(),
        mtu: plan.mtu(),
        format,
        port,
    };
    (local, peers.iter().map(peer).collect())
}

/// The VTEP MAC of a node that has none yet. It follows from what makes the node, so that it is the
/// same after every restart without being kept anywhere: unicast and locally administered (IEEE
/// 802, bit 1 of the first byte), the rest a hash (FNV-1a) of public address and VNI.
#[must_use]
pub fn derive_vtep_mac(public_ip: Ipv4Addr, vni: u32) -> MacAddr {
    let input = public_ip.octets().into_iter().chain(vni.to_be_bytes());
    let hash = input.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    MacAddr([a & 0xfc | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(backend: &str) -> Plan {
        let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{backend}}}"#);
        let address = Ipv4Addr::new(192, 168, 1, 12);
        Plan {
            config: NetworkConfig::parse(&config).unwrap(),
            subnet: "10.1.9.0/24".parse().unwrap(),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            underlay: Underlay {
                name: "eth0".to_owned(),
                index: 2,
                mtu: 1500,
                mac: None,
                address,
                public_ip: address,
                reason: String::new(),
            },
        }
    }

    #[test]
    fn names_ports_and_mtus_are_flannels() {
        let facts = |backend: &str| {
            let plan = plan(backend);
            (plan.device(), plan.wire().map(|(_, port)| port), plan.mtu())
        };
        assert_eq!(facts(r#"{"Type":"udp"}"#), ("flannel0".to_owned(), Some(8285), 1472));
        assert_eq!(facts(r#"{"Type":"vxlan"}"#), ("flannel.1".to_owned(), Some(8472), 1450));
        assert_eq!(
            facts(r#"{"Type":"vxlan","VNI":42,"Port":4789,"MTU":1400}"#),
            ("flannel.42".to_owned(), Some(4789), 1350)
        );
        for without_tunnel in [r#"{"Type":"host-gw"}"#, r#"{"Type":"alloc"}"#] {
            assert_eq!(facts(without_tunnel), ("10.1.0.0".to_owned(), None, 1500));
        }
    }

    #[test]
    fn the_flag_comes_before_the_configuration_and_that_before_what_the_host_has() {
        let config = |text: &str| NetworkConfig::parse(text).unwrap();
        let plain = config(r#"{"Network":"10.1.0.0/16"}"#);
        let nftables = config(r#"{"Network":"10.1.0.0/16","EnableNFTables":true}"#);
        assert_eq!(firewall_kind(None, &plain), FirewallKind::Auto);
        assert_eq!(firewall_kind(None, &nftables), FirewallKind::Nftables);
        for flag in [FirewallKind::Auto, FirewallKind::Iptables, FirewallKind::None] {
            assert_eq!(firewall_kind(Some(flag), &nftables), flag);
        }
    }

    #[test]
    fn a_derived_mac_is_stable_local_and_differs_by_node_and_network() {
        let mac = |last, vni| derive_vtep_mac(Ipv4Addr::new(192, 168, 1, last), vni);
        // Fixed for ever: a node must not change its address with an upgrade.
        assert_eq!(mac(12, 1).to_string(), "8e:ea:23:ac:43:63");
        assert_ne!(mac(12, 1), mac(13, 1));
        assert_ne!(mac(12, 1), mac(12, 2));
        for last in 0..=255 {
            assert!(mac(last, 1).is_unicast());
            assert_eq!(mac(last, 1).0[0] & 2, 2);
        }
    }
}
