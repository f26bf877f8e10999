//! What the kernel is asked: which way a packet would take, who is at the next hop, and its settings.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};

use overlay_host::HostError;
use overlay_host::netlink::{Link, Netlink, refused};

/// The kernel of this network namespace, as it was when it was opened.
pub(super) struct Kernel {
    netlink: Netlink,
    pub(super) links: Vec<Link>,
    neighbours: Vec<NeighbourMessage>,
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
        let neighbours = netlink.handle.neighbours().get().execute().try_collect().await;
        let neighbours = neighbours.map_err(|error| refused("list the neighbours", &error))?;
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
        let mut query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(dst, 32);
        if let Some((src, device)) = from {
            let index = self.link(device).ok_or_else(|| format!("there is no device {device}"))?.index;
            query = query.source_prefix(src, 32).input_interface(index);
        }
        let answer = self.netlink.handle.route().get(query.build()).execute().try_next().await;
        match answer {
            Ok(Some(message)) => self.decision(&message).ok_or_else(|| "no answer".to_owned()),
            Ok(None) => Err("no answer".to_owned()),
            Err(error) => Err(match refused("", &error) {
                HostError::Netlink { reason, .. } => reason,
                other => other.to_string(),
            }),
        }
    }

    fn decision(&self, message: &RouteMessage) -> Option<Decision> {
        let local = message.header.kind == RouteType::Local;
        let (mut device, mut gateway, mut source, mut mtu) = (None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(self.name(*index)),
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(Decision { device: device?, gateway, source, mtu, local })
    }

    /// The device that `address` is reached through, as that of a container is by its bridge.
    pub(super) async fn device_of(&self, address: Ipv4Addr) -> Option<String> {
        self.decide(address, None).await.ok().map(|way| way.device)
    }

    /// What is known of the neighbour `address` on `device`.
    pub(super) fn neighbour(&self, device: &str, address: Ipv4Addr) -> Neighbour {
        let index = self.link(device).map(|link| link.index);
        let found = self.neighbours.iter().find(|message| {
            Some(message.header.ifindex) == index && destination(message) == Some(IpAddr::V4(address))
        });
        let Some(message) = found else { return Neighbour::Unknown };
        match message.header.state {
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

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        _ => None,
    })
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
