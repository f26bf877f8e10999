//! What a node is made from, and what follows from that.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use overlay_wire::Format;
use overlay_wire::MacAddr;
use overlay_wire::ip::Version;

use overlay_host::holdings::{self, Viewpoint};
use overlay_host::iface::Underlay;
use overlay_host::{Desired, FirewallKind, HostError, Masquerade};
use overlay_leases::netconf::{Backend, NetworkConfig};
use overlay_leases::store::StoreAddresses;
use overlay_support::overlap::Obstacle;

/// The smallest MTU that IPv4 allows a link to have (RFC 791): with less there is no overlay.
const MIN_MTU: u32 = 68;

/// A plan that cannot be carried out here.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
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
    /// The kernel cannot be asked.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl PlanError {
    /// What tells it from others, however it is put.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Host(error) => error.kind(),
            other => other.to_string(),
        }
    }
}

/// What the operator chose about the host.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Which sources are rewritten.
    pub masquerade: Masquerade,
    /// Whether the host's firewall is told to accept forwarding.
    pub forward_rules: bool,
    /// What the rules are made with, if not as the network configuration says.
    pub firewall: Option<FirewallKind>,
    /// Whether what is sent to this node's subnet and to none of its pods ends here.
    pub blackhole: bool,
}

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
    /// ([`NetworkConfig::device`](overlay_leases::netconf::NetworkConfig::device)).
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

    /// Where the tunnel's packets arrive, if there is a tunnel.
    #[must_use]
    pub fn listen(&self) -> Option<SocketAddr> {
        self.wire().map(|(_, port)| SocketAddr::new(self.underlay.address.into(), port))
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
        underlay.saturating_sub(self.wire().map_or(0, |(format, _)| format.overhead(Version::V4)))
    }

    /// The overlay device's address: the base of the subnet, which no container gets.
    #[must_use]
    pub fn overlay_address(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// Whether it makes sense on any host.
    ///
    /// # Errors
    /// [`PlanError::Mtu`] or [`PlanError::Nat`].
    pub fn check(&self) -> Result<(), PlanError> {
        if self.mtu() < MIN_MTU {
            return Err(PlanError::Mtu(self.underlay.mtu));
        }
        let Underlay { public_ip, address, .. } = self.underlay;
        if self.config.backend == Backend::HostGw && public_ip != address {
            return Err(PlanError::Nat { public_ip, address });
        }
        Ok(())
    }

    /// Whether its subnet can be this node's, and is not where the host itself is.
    ///
    /// # Errors
    /// It is; or the kernel cannot be asked.
    pub async fn check_subnet(&self, stores: &StoreAddresses) -> Result<(), PlanError> {
        let holdings = holdings::look(self.viewpoint(&stores.now())).await?;
        holdings.refusal(self.subnet).map_or(Ok(()), |obstacle| Err(PlanError::Subnet(obstacle)))
    }

    /// From where it looks at what there is of the host's.
    pub fn viewpoint<'a>(&'a self, stores: &'a BTreeSet<Ipv4Addr>) -> Viewpoint<'a> {
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
    pub fn desired(&self, options: &HostOptions) -> Desired {
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

/// The network configuration says that the underlay has a larger MTU than this host's interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtuProblem {
    configured: u32,
    interface: String,
    most: u32,
}

impl MtuProblem {
    /// That of `config` on a host with this `underlay`.
    #[must_use]
    pub fn of(config: &NetworkConfig, underlay: &Underlay) -> Option<Self> {
        let Backend::Vxlan { mtu: Some(configured), .. } = config.backend else { return None };
        let Underlay { name, mtu, .. } = underlay;
        (configured > *mtu).then(|| Self { configured, interface: name.clone(), most: *mtu })
    }

    /// What is wrong.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { configured, interface, most } = self;
        format!(
            "the network configuration has the MTU {configured}, {interface} has {most}: long packets are sent in fragments, or lost"
        )
    }

    /// What to do.
    #[must_use]
    pub fn remedy(&self) -> String {
        let Self { configured, interface, most } = self;
        format!(
            "leave MTU out of the network configuration, or make it {most} at most; or, if the whole way to the other nodes carries it: ip link set {interface} mtu {configured}"
        )
    }
}

/// The flag counts; without it, flannel's key in the network configuration.
fn firewall_kind(flag: Option<FirewallKind>, config: &NetworkConfig) -> FirewallKind {
    let configured = if config.enable_nftables { FirewallKind::Nftables } else { FirewallKind::Auto };
    flag.unwrap_or(configured)
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
    fn an_mtu_that_the_interface_does_not_have_is_told_with_a_remedy() {
        for (backend, is_told) in [
            (r#"{"Type":"vxlan"}"#, false),
            (r#"{"Type":"vxlan","MTU":1400}"#, false),
            (r#"{"Type":"vxlan","MTU":1500}"#, false),
            (r#"{"Type":"vxlan","MTU":1501}"#, true),
            (r#"{"Type":"vxlan","MTU":9000}"#, true),
            (r#"{"Type":"udp"}"#, false),
            (r#"{"Type":"host-gw"}"#, false),
        ] {
            let Plan { config, underlay, .. } = plan(backend);
            assert_eq!(MtuProblem::of(&config, &underlay).is_some(), is_told, "{backend}");
        }
        let Plan { config, underlay, .. } = plan(r#"{"Type":"vxlan","MTU":9000}"#);
        let problem = MtuProblem::of(&config, &underlay).unwrap();
        assert!(problem.text().contains("the MTU 9000, eth0 has 1500"), "{}", problem.text());
        assert!(problem.remedy().ends_with("ip link set eth0 mtu 9000"), "{}", problem.remedy());
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
}
