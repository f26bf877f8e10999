//! What the kernel is asked: which way a packet would take, who is at the next hop, and its settings.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;

use rtnetlink::packet_route::neighbour::NeighbourState;

use overlay_host::HostError;
use overlay_host::netlink::{self, Link, Netlink, Way};

/// The kernel of this network namespace, as it was when it was opened.
pub(super) struct Kernel {
    netlink: Netlink,
    pub(super) links: Vec<Link>,
    neighbours: Vec<netlink::Neighbour>,
}

/// Which way the kernel sends a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    /// The device it leaves through.
    pub(super) device: String,
    pub(super) gateway: Option<Ipv4Addr>,
    /// The source that a packet without one gets.
    pub(super) source: Option<Ipv4Addr>,
    /// What the kernel has learned of the path, in bytes.
    pub(super) mtu: Option<u32>,
    /// It is for this host itself.
    pub(super) local: bool,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.local {
            return f.write_str("this host itself");
        }
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        write!(f, "dev {}", self.device)
    }
}

impl Kernel {
    pub(super) async fn open() -> Result<Self, HostError> {
        let netlink = Netlink::open()?;
        let links = netlink.links().await?;
        let neighbours = netlink.neighbours().await?;
        Ok(Self { netlink, links, neighbours })
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("device {index}"), |link| link.name.clone())
    }

    /// Each IPv4 address, with its device.
    pub(super) async fn addresses(&self) -> Result<Vec<(String, Ipv4Addr)>, HostError> {
        let addresses = self.netlink.addresses().await?;
        Ok(addresses.into_iter().map(|a| (self.name(a.index), a.address)).collect())
    }

    /// Which way a packet to `dst` goes; one that this host sends itself, or, as `from` says, one with another's
    /// source that comes in by a device. The kernel's word if it goes nowhere.
    pub(super) async fn decide(
        &self,
        dst: Ipv4Addr,
        from: Option<(Ipv4Addr, &str)>,
    ) -> Result<Decision, String> {
        let from = match from {
            Some((src, device)) => {
                Some((src, self.link(device).ok_or_else(|| format!("there is no device {device}"))?.index))
            }
            None => None,
        };
        let Way { device, gateway, source, mtu, local, .. } = self.netlink.decide(dst, from).await?;
        Ok(Decision { device: self.name(device), gateway, source, mtu, local })
    }

    /// The device that `address` is reached through, as that of a container is by its bridge.
    pub(super) async fn device_of(&self, address: Ipv4Addr) -> Option<String> {
        self.decide(address, None).await.ok().map(|way| way.device)
    }

    /// What is known of the neighbour `address` on `device`.
    pub(super) fn neighbour(&self, device: &str, address: Ipv4Addr) -> Neighbour {
        let index = self.link(device).map(|link| link.index);
        let found =
            self.neighbours.iter().find(|known| Some(known.device) == index && known.address == address);
        let Some(known) = found else { return Neighbour::Unknown };
        match known.state {
            NeighbourState::Failed => Neighbour::Silent,
            NeighbourState::Incomplete => Neighbour::Asked,
            _ => Neighbour::Known,
        }
    }
}

/// What is known of a neighbour's MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// It is there.
    Known,
    /// Nobody has asked for it lately.
    Unknown,
    /// It has been asked for, and no answer has come yet.
    Asked,
    /// It does not answer.
    Silent,
}

/// The value of a setting below /proc/sys; `None` if it cannot be read.
pub(super) fn sysctl(key: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/{key}")).ok()?.trim().to_owned())
}

/// How `device` filters by reverse path: 0 not at all, 1 strictly, 2 loosely. The stricter of its own setting
/// and that of all counts (`IN_DEV_RPFILTER`, `linux/inetdevice.h`).
pub(super) fn rp_filter(device: &str) -> u8 {
    let of = |name: &str| sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))?.parse().ok();
    of("all").unwrap_or(0).max(of(device).unwrap_or(0))
}
