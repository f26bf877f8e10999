//! This host's part of the overlay: device, routes, rules and workers, built from a plan and taken
//! down again when it is dropped.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay::forwarder::{self, Forwarder, OnFailure};
use overlay::ingress::SourceCheck;
use overlay::offload::{Offload, Offloads};
use overlay::stats::Totals;
use overlay::table::{Local, Peer, PeerTable, SharedTable};
use overlay::underlay::udp;
use overlay::wire::Format;
use overlay::{MacAddr, SetupError};
use tracing::warn;

use crate::host::firewall::Firewall;
use crate::host::{Desired, FirewallKind, HostError, Masquerade, blackhole, link};
use crate::iface::Underlay;
use crate::lease::{Lease, LeaseBackend};
use crate::netconf::{Backend, NetworkConfig};

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
    /// The overlay device's name, as flannel has it.
    #[must_use]
    pub fn device(&self) -> String {
        match self.config.backend {
            Backend::Udp { .. } => "flannel0".to_owned(),
            Backend::Vxlan { vni, .. } => format!("flannel.{vni}"),
        }
    }

    /// How packets stand on the wire.
    #[must_use]
    pub fn format(&self) -> Format {
        match self.config.backend {
            Backend::Udp { .. } => Format::FlannelUdp,
            Backend::Vxlan { vni, .. } => Format::Vxlan { vni, vtep_mac: self.vtep_mac },
        }
    }

    /// The UDP port of every node.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self.config.backend {
            Backend::Udp { port } => port,
            Backend::Vxlan { port, .. } => port,
        }
    }

    /// The overlay's MTU: what the underlay's leaves beside the encapsulation. vxlan's `MTU` option
    /// stands for the underlay's.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        let underlay = match self.config.backend {
            Backend::Vxlan { mtu: Some(mtu), .. } => mtu,
            _ => self.underlay.mtu,
        };
        underlay.saturating_sub(self.format().overhead())
    }

    /// The overlay device's address: the base of the subnet, which no container gets.
    #[must_use]
    pub fn overlay_address(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// What the lease says of this node.
    #[must_use]
    pub fn backend(&self) -> LeaseBackend {
        match self.config.backend {
            Backend::Udp { .. } => LeaseBackend::Udp,
            Backend::Vxlan { vni, .. } => LeaseBackend::Vxlan { vni, vtep_mac: self.vtep_mac },
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
    /// Whether flows leave by different source ports.
    pub spread_source_ports: bool,
    /// How long a worker looks for more before it sleeps.
    pub stay_awake: Duration,
    /// Whether the workers of a queue are tied to one processor.
    pub pin: bool,
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
    /// Nothing is left of the MTU.
    #[error("the underlay's MTU of {0} leaves no room for the overlay: choose another --iface or MTU")]
    Mtu(u32),
}

/// A running node.
pub struct Node {
    plan: Plan,
    /// Of its device.
    index: u32,
    queues: usize,
    source_check: SourceCheck,
    desired: Desired,
    offloads: Arc<Offloads>,
    table: SharedTable,
    forwarder: Forwarder,
}

impl Node {
    /// Opens the device, configures the host and starts forwarding to `leases`. `on_failure` is
    /// told when a worker has to give up later. The firewall is to be synced from time to time.
    ///
    /// # Errors
    /// What could not be had; whatever of the device was made is gone again then.
    pub async fn start(
        plan: Plan,
        options: &NodeOptions,
        leases: &[Lease],
        on_failure: &OnFailure,
    ) -> Result<(Self, Firewall), NodeError> {
        if plan.mtu() < MIN_MTU {
            return Err(NodeError::Mtu(plan.underlay.mtu));
        }
        // The port before all else: where another daemon or a kernel device has it, the overlay device,
        // its address and the rules are theirs, too, and not to be touched.
        let listen = SocketAddrV4::new(plan.underlay.address, plan.port());
        udp::probe(listen)?;
        let offloads = Arc::new(Offloads::new(&options.offloads));
        let queues = overlay::tun::open(&plan.device(), options.queues, &offloads)?;
        if let Err(error) = overlay::tun::steer_by_flow(&queues) {
            warn!(device = plan.device(), %error, "flows cannot be tied to queues: one may be reordered when it begins");
        }
        let desired = Desired {
            device: plan.device(),
            mtu: plan.mtu(),
            address: plan.overlay_address(),
            network: plan.config.network,
            pod_subnet: plan.subnet,
            masquerade: options.masquerade,
            forward_rules: options.forward_rules,
            firewall: firewall_kind(options.firewall, &plan.config),
            blackhole: options.blackhole,
        };
        // Rules before the route: no packet takes the new way with a source that is to be rewritten.
        let mut firewall = Firewall::new(desired.clone());
        firewall.sync().await?;
        link::apply(&desired).await?;
        let index = link::index_of(&desired.device).await?;
        blackhole::remove(desired.network, Some(desired.pod_subnet)).await?;
        blackhole::apply(&desired).await?;
        let addresses = link::addresses().await?;
        let table = SharedTable::new(table(&plan, leases, addresses.into_iter().collect()));
        let forwarder = Forwarder::start(
            forwarder::Config {
                queues,
                listen,
                source_check: options.source_check,
                table: table.clone(),
                offloads: Arc::clone(&offloads),
                spread_source_ports: options.spread_source_ports,
                stay_awake: options.stay_awake,
                pin: options.pin,
            },
            on_failure,
        )?;
        let (queues, source_check) = (options.queues, options.source_check);
        Ok((Self { plan, index, queues, source_check, desired, offloads, table, forwarder }, firewall))
    }

    /// What it was made from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Queues of its device.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// What it asks of sources.
    #[must_use]
    pub fn source_check(&self) -> SourceCheck {
        self.source_check
    }

    /// What the kernel does for its data plane.
    #[must_use]
    pub fn offloads(&self) -> &Offloads {
        &self.offloads
    }

    /// The other nodes, as the workers see them.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.table.current().peers().to_vec()
    }

    /// The counters of all workers: egress, ingress.
    #[must_use]
    pub fn totals(&self) -> (Totals, Totals) {
        (self.forwarder.egress().into_iter().sum(), self.forwarder.ingress().into_iter().sum())
    }

    /// Puts back what the device has lost of its MTU, address or route, as by being set down once.
    /// Returns what that was, for people.
    ///
    /// # Errors
    /// The step that the kernel refused; [`HostError::NoDevice`] if the device is gone: then only a new
    /// node helps.
    pub async fn sync_link(&self) -> Result<Vec<String>, HostError> {
        if link::index_of(&self.desired.device).await? != self.index {
            return Err(HostError::NoDevice(self.desired.device.clone()));
        }
        let put = link::apply(&self.desired).await?;
        blackhole::apply(&self.desired).await?;
        Ok(put)
    }

    /// Makes `leases` the peers. The host's own addresses are read anew.
    ///
    /// # Errors
    /// The addresses cannot be read; the earlier table stays.
    pub async fn publish(&self, leases: &[Lease]) -> Result<(), HostError> {
        let addresses = link::addresses().await?;
        self.table.publish(table(&self.plan, leases, addresses.into_iter().collect()));
        Ok(())
    }
}

/// The flag counts; without it, flannel's key in the network configuration.
fn firewall_kind(flag: Option<FirewallKind>, config: &NetworkConfig) -> FirewallKind {
    let configured = if config.enable_nftables { FirewallKind::Nftables } else { FirewallKind::Auto };
    flag.unwrap_or(configured)
}

/// The table that reaches the owners of `leases`. A lease that carries our public address (which
/// the host itself need not have, behind a NAT) or one of this host's own addresses is one that it had earlier: a packet sent there would come back to this host for ever.
fn table(plan: &Plan, leases: &[Lease], addresses: Vec<Ipv4Addr>) -> PeerTable {
    let peers = leases
        .iter()
        .filter(|lease| {
            let public_ip = lease.attrs.public_ip;
            public_ip != plan.underlay.public_ip && !addresses.contains(&public_ip)
        })
        .map(|lease| Peer {
            subnet: lease.subnet,
            public_ip: lease.attrs.public_ip,
            vtep_mac: match lease.attrs.backend {
                LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
                _ => None,
            },
        })
        .collect();
    let local = Local {
        network: plan.config.network,
        subnet: plan.subnet,
        overlay_address: plan.overlay_address(),
        addresses,
        mtu: plan.mtu(),
        format: plan.format(),
        port: plan.port(),
    };
    PeerTable::new(local, peers)
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
    use crate::lease::LeaseAttrs;

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
                address,
                public_ip: address,
                reason: String::new(),
            },
        }
    }

    #[test]
    fn names_ports_and_mtus_are_flannels() {
        let udp = plan(r#"{"Type":"udp"}"#);
        assert_eq!((udp.device().as_str(), udp.port(), udp.mtu()), ("flannel0", 8285, 1472));
        let vxlan = plan(r#"{"Type":"vxlan"}"#);
        assert_eq!((vxlan.device().as_str(), vxlan.port(), vxlan.mtu()), ("flannel.1", 8472, 1450));
        let other = plan(r#"{"Type":"vxlan","VNI":42,"Port":4789,"MTU":1400}"#);
        assert_eq!((other.device().as_str(), other.port(), other.mtu()), ("flannel.42", 4789, 1350));
    }

    #[test]
    fn a_lease_with_an_address_of_this_host_is_no_peer() {
        let lease = |subnet: &str, public_ip: &str| Lease {
            subnet: subnet.parse().unwrap(),
            attrs: LeaseAttrs { public_ip: public_ip.parse().unwrap(), backend: LeaseBackend::Udp },
        };
        let leases = [lease("10.1.8.0/24", "192.168.1.12"), lease("10.1.63.0/24", "192.168.199.238")];
        let table = table(&plan(r#"{"Type":"udp"}"#), &leases, vec![Ipv4Addr::new(192, 168, 1, 12)]);
        assert_eq!(table.peers().len(), 1);
        assert_eq!(table.peers()[0].subnet, leases[1].subnet);

        let mut behind_nat = plan(r#"{"Type":"udp"}"#);
        behind_nat.underlay.public_ip = Ipv4Addr::new(203, 0, 113, 12);
        let leases = [lease("10.1.8.0/24", "203.0.113.12")];
        assert!(super::table(&behind_nat, &leases, vec![behind_nat.underlay.address]).peers().is_empty());
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
