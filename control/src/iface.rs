//! Chooses the underlay: the interface and address that tunnel packets leave from.

use std::fmt;
use std::net::Ipv4Addr;

use crate::host::HostError;
use crate::host::netlink::{Address, Link, Netlink};

/// What the flags say about the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IfaceSpec {
    /// `--iface`, each an IPv4 address or an interface's name: the first that fits is taken. None at all means
    /// the interface of the default route.
    pub iface: Vec<String>,
    /// `--public-ip`: the address that other nodes reach us by, if it is another (behind 1:1 NAT, for example).
    pub public_ip: Option<Ipv4Addr>,
}

/// The underlay as chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The interface.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU, in bytes of outer IP packet.
    pub mtu: u32,
    /// Its address that we send from and listen on.
    pub address: Ipv4Addr,
    /// The address that our lease tells the others.
    pub public_ip: Ipv4Addr,
    /// Why this one, for the log.
    pub reason: String,
}

/// No interface could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum IfaceError {
    /// None of the `--iface` entries fits this host.
    #[error("{}; this host has {host}: name one of these with --iface", .asked.join(", "))]
    NoMatch {
        /// Each entry as given, with what is wrong with it.
        asked: Vec<String>,
        /// What there is to choose from.
        host: HostInterfaces,
    },
    /// No `--iface` was given and there is no usable default route.
    #[error("{problem}; this host has {host}: choose one with --iface")]
    NoDefault {
        /// What is missing.
        problem: String,
        /// What there is to choose from.
        host: HostInterfaces,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Interfaces and their addresses, written `eth0 (192.168.1.12), eth1 (no IPv4 address)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterfaces(Vec<(String, Vec<Ipv4Addr>)>);

impl fmt::Display for HostInterfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, addresses)) in self.0.iter().enumerate() {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let addresses =
                if addresses.is_empty() { "no IPv4 address".to_owned() } else { addresses.join(", ") };
            write!(f, "{}{name} ({addresses})", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Chooses as flannel does (0.28, `pkg/ipmatch`, `pkg/ip`).
///
/// # Errors
/// [`IfaceError`], which lists the interfaces there are.
pub async fn choose(spec: &IfaceSpec) -> Result<Underlay, IfaceError> {
    let netlink = Netlink::open()?;
    let host = Host { links: netlink.links().await?, addresses: netlink.addresses().await? };
    let (link, address, reason) = if spec.iface.is_empty() {
        host.default_interface(netlink.default_device().await?)?
    } else {
        host.first_match(&spec.iface)?
    };
    Ok(Underlay {
        name: link.name.clone(),
        index: link.index,
        mtu: link.mtu,
        address,
        public_ip: spec.public_ip.unwrap_or(address),
        reason,
    })
}

/// What there is to choose from.
struct Host {
    links: Vec<Link>,
    addresses: Vec<Address>,
}

type Choice<'a> = (&'a Link, Ipv4Addr, String);

impl Host {
    fn default_interface(&self, index: Option<u32>) -> Result<Choice<'_>, IfaceError> {
        let no_default = |problem| IfaceError::NoDefault { problem, host: self.interfaces() };
        let link = index
            .and_then(|index| self.links.iter().find(|link| link.index == index))
            .ok_or_else(|| no_default("there is no IPv4 default route".to_owned()))?;
        let address = self.preferred_address(link).ok_or_else(|| {
            no_default(format!("{}, of the default route, has no IPv4 address to send from", link.name))
        })?;
        Ok((link, address, "it has the default route".to_owned()))
    }

    fn first_match(&self, entries: &[String]) -> Result<Choice<'_>, IfaceError> {
        let mut asked = Vec::new();
        for entry in entries {
            match self.find(entry) {
                Ok((link, address)) => return Ok((link, address, format!("--iface={entry}"))),
                Err(problem) => asked.push(format!("--iface={entry}: {problem}")),
            }
        }
        Err(IfaceError::NoMatch { asked, host: self.interfaces() })
    }

    fn find(&self, entry: &str) -> Result<(&Link, Ipv4Addr), &'static str> {
        if let Ok(wanted) = entry.parse::<Ipv4Addr>() {
            let found = self.addresses.iter().find(|a| a.address == wanted);
            let link = found.and_then(|a| self.links.iter().find(|link| link.index == a.index));
            return link.map(|link| (link, wanted)).ok_or("no interface has this address");
        }
        let link = self.links.iter().find(|link| link.name == entry).ok_or("there is no such interface")?;
        let address = self.preferred_address(link).ok_or("it has no IPv4 address to send from")?;
        Ok((link, address))
    }

    /// Global addresses before link-local ones, lasting ones before those on a lease; else the kernel's order.
    fn preferred_address(&self, link: &Link) -> Option<Ipv4Addr> {
        self.addresses
            .iter()
            .filter(|a| a.index == link.index && !a.deprecated && is_unicast(a.address))
            .min_by_key(|a| (a.address.is_link_local(), !a.permanent))
            .map(|a| a.address)
    }

    fn interfaces(&self) -> HostInterfaces {
        let addresses_of = |link: &Link| {
            self.addresses.iter().filter(|a| a.index == link.index).map(|a| a.address).collect()
        };
        HostInterfaces(self.links.iter().map(|link| (link.name.clone(), addresses_of(link))).collect())
    }
}

fn is_unicast(address: Ipv4Addr) -> bool {
    !(address.is_loopback() || address.is_multicast() || address.is_broadcast() || address.is_unspecified())
}
