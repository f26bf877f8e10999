//! What a node is made from, and what follows from that.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use overlay::MacAddr;
use overlay::wire::Format;

use super::{NodeError, NodeOptions};
use crate::host::holdings::{self, Viewpoint};
use crate::host::{Desired, FirewallKind, Masquerade};
use crate::iface::Underlay;
use crate::netconf::{Backend, NetworkConfig};
use crate::store::StoreAddresses;

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

    /// Where the tunnel's packets arrive, if there is a tunnel.
    #[must_use]
    pub fn listen(&self) -> Option<SocketAddrV4> {
        self.wire().map(|(_, port)| SocketAddrV4::new(self.underlay.address, port))
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
    pub(super) fn check(&self) -> Result<(), NodeError> {
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
    pub(super) fn viewpoint<'a>(&'a self, stores: &'a BTreeSet<Ipv4Addr>) -> Viewpoint<'a> {
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
