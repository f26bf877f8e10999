//! Chooses the underlay: the interface and address that tunnel packets leave from.

use std::fmt;
use std::net::Ipv4Addr;

use regex::Regex;

use crate::HostError;
use crate::netlink::{Address, Link, Netlink, Way};
use overlay_wire::MacAddr;

/// What the flags say about the underlay. The first that fits is taken, in the order of the fields; with
/// none of the first three, the interface that has `public_ip`, or else that of the default route.
#[derive(Debug, Clone, Default)]
pub struct IfaceSpec {
    /// `--iface`, each an IPv4 address or an interface's name.
    pub iface: Vec<String>,
    /// `--iface-regex`, each tried on the addresses of all interfaces, then on their names.
    pub regex: Vec<Regex>,
    /// `--iface-can-reach`: the interface and the source address of the kernel's route there.
    pub can_reach: Option<Ipv4Addr>,
    /// `--public-ip`: the address that other nodes reach us by, if it is another (behind 1:1 NAT, for example).
    pub public_ip: Option<Ipv4Addr>,
    /// The address that this node had in an earlier run: of several that an interface has, it stays, so that one that
    /// comes and goes does not move the node.
    pub earlier: Option<Ipv4Addr>,
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
    /// Its link-layer address, if it is an Ethernet's.
    pub mac: Option<MacAddr>,
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
    /// None of `--iface`, `--iface-regex` and `--iface-can-reach` fits this host.
    #[error("{}; this host has {host}: name one of these with --iface", .asked.join(", "))]
    NoMatch {
        /// Each flag as given, with what is wrong with it.
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

/// Chooses as flannel does (0.28, `main.go`, `pkg/ipmatch`, `pkg/ip`). A `--public-ip` that no interface has
/// is one of a NAT here, while flannel refuses to start without `--iface` then. One that this host has, on whichever
/// interface, is where we send from and listen: the others send there, and expect us to come from there.
///
/// # Errors
/// [`IfaceError`], which lists the interfaces there are.
pub async fn choose(spec: &IfaceSpec) -> Result<Underlay, IfaceError> {
    let netlink = Netlink::open()?;
    let host = Host { earlier: spec.earlier, ..Host::ask(&netlink).await? };
    let (link, address, reason) = host.find(spec, &netlink).await?;
    Ok(Underlay {
        name: link.name.clone(),
        index: link.index,
        mtu: link.mtu,
        mac: link.mac,
        address: host.public_address(spec).unwrap_or(address),
        public_ip: spec.public_ip.unwrap_or(address),
        reason,
    })
}

/// What has become of `before`: as it is now, if its interface and its address are still there; chosen anew if not, or
/// if a `--public-ip` has come to this host. So another default route, or one more address, moves nothing that works.
///
/// # Errors
/// As [`choose`].
pub async fn choose_again(spec: &IfaceSpec, before: &Underlay) -> Result<Underlay, IfaceError> {
    let host = Host::ask(&Netlink::open()?).await?;
    let public = host.public_address(spec);
    let stays = match public {
        Some(public) => public == before.address,
        None => true,
    };
    let owns = |link: &&Link| {
        host.owner(before.address).is_some_and(|owner| owner.index == link.index || public.is_some())
    };
    match host.links.iter().find(|link| link.name == before.name).filter(owns).filter(|_| stays) {
        Some(link) => Ok(Underlay { index: link.index, mtu: link.mtu, mac: link.mac, ..before.clone() }),
        None => choose(spec).await,
    }
}

/// What there is to choose from.
struct Host {
    links: Vec<Link>,
    addresses: Vec<Address>,
    /// The address that this node had before.
    earlier: Option<Ipv4Addr>,
}

type Choice<'a> = (&'a Link, Ipv4Addr, String);

impl Host {
    async fn ask(netlink: &Netlink) -> Result<Self, HostError> {
        Ok(Self { links: netlink.links().await?, addresses: netlink.addresses().await?, earlier: None })
    }

    async fn find(&self, spec: &IfaceSpec, netlink: &Netlink) -> Result<Choice<'_>, IfaceError> {
        let mut asked = Vec::new();
        let named = spec.iface.iter().map(|entry| (format!("--iface={entry}"), self.named(entry)));
        let matching =
            spec.regex.iter().map(|regex| (format!("--iface-regex={regex}"), self.matching(regex)));
        for (flag, found) in named.chain(matching) {
            match found {
                Ok((link, address)) => return Ok((link, address, flag)),
                Err(problem) => asked.push(format!("{flag}: {problem}")),
            }
        }
        if let Some(target) = spec.can_reach {
            let flag = format!("--iface-can-reach={target}");
            match self.reaching(netlink.way_to(target).await?) {
                Ok((link, address)) => return Ok((link, address, flag)),
                Err(problem) => asked.push(format!("{flag}: {problem}")),
            }
        }
        if !asked.is_empty() {
            return Err(IfaceError::NoMatch { asked, host: self.interfaces() });
        }
        if let Some(public_ip) = spec.public_ip
            && let Some(link) = self.owner(public_ip)
        {
            return Ok((link, public_ip, format!("--public-ip={public_ip}")));
        }
        self.default_interface(netlink.default_device().await?)
    }

    fn default_interface(&self, index: Option<u32>) -> Result<Choice<'_>, IfaceError> {
        let no_default = |problem| IfaceError::NoDefault { problem, host: self.interfaces() };
        let link = index
            .and_then(|index| self.link(index))
            .ok_or_else(|| no_default("there is no IPv4 default route".to_owned()))?;
        let address = self.preferred_address(link).ok_or_else(|| {
            no_default(format!("{}, of the default route, has no IPv4 address to send from", link.name))
        })?;
        Ok((link, address, "it has the default route".to_owned()))
    }

    fn named(&self, entry: &str) -> Result<(&Link, Ipv4Addr), &'static str> {
        if let Ok(wanted) = entry.parse::<Ipv4Addr>() {
            return self.owner(wanted).map(|link| (link, wanted)).ok_or("no interface has this address");
        }
        let link = self.links.iter().find(|link| link.name == entry).ok_or("there is no such interface")?;
        let address = self.preferred_address(link).ok_or("it has no IPv4 address to send from")?;
        Ok((link, address))
    }

    /// Addresses first, in the kernel's order of interfaces, then names: as flannel does.
    fn matching(&self, regex: &Regex) -> Result<(&Link, Ipv4Addr), &'static str> {
        let by_address = self.links.iter().find_map(|link| {
            let of_link = self.addresses.iter().filter(|a| a.index == link.index && is_unicast(a.address));
            let matching = of_link.filter(|a| regex.is_match(&a.address.to_string()));
            matching.min_by_key(|a| self.rank(a)).map(|a| (link, a.address))
        });
        if let Some(found) = by_address {
            return Ok(found);
        }
        let named: Vec<&Link> = self.links.iter().filter(|link| regex.is_match(&link.name)).collect();
        if named.is_empty() {
            return Err("it matches neither an address nor a name");
        }
        let with_address = named.into_iter().find_map(|link| Some((link, self.preferred_address(link)?)));
        with_address.ok_or("no interface that it matches has an IPv4 address to send from")
    }

    fn reaching(&self, way: Option<Way>) -> Result<(&Link, Ipv4Addr), &'static str> {
        let way = way.ok_or("there is no route to it")?;
        if way.local {
            return Err("it is an address of this host");
        }
        let link = self.link(way.device).ok_or("its route leads nowhere")?;
        let address = way.source.or_else(|| self.preferred_address(link));
        Ok((link, address.ok_or("the interface of its route has no IPv4 address to send from")?))
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface that has `address`.
    fn owner(&self, address: Ipv4Addr) -> Option<&Link> {
        self.addresses.iter().find(|a| a.address == address).and_then(|a| self.link(a.index))
    }

    /// The `--public-ip`, if it is an address of this host.
    fn public_address(&self, spec: &IfaceSpec) -> Option<Ipv4Addr> {
        spec.public_ip.filter(|address| self.owner(*address).is_some())
    }

    /// The best of an interface's addresses; else the kernel's order.
    fn preferred_address(&self, link: &Link) -> Option<Ipv4Addr> {
        self.addresses
            .iter()
            .filter(|a| a.index == link.index && is_unicast(a.address))
            .min_by_key(|a| (self.rank(a), !a.permanent))
            .map(|a| a.address)
    }

    /// The least is the best: the one that the node had, global ones before link-local ones, and those last that are
    /// not to be used for anything new.
    fn rank(&self, address: &Address) -> (bool, bool, bool) {
        let other = self.earlier != Some(address.address);
        (other, address.deprecated, address.address.is_link_local())
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
