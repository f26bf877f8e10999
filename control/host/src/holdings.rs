//! Looks at what there is of the host's: its routes and addresses, and whom it has to reach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use rtnetlink::packet_route::route::{RouteProtocol, RouteType};

use super::HostError;
use super::netlink::{Link, Netlink, Route};
use super::routes::{is_ours, of_others};
use overlay_support::files;
use overlay_support::overlap::{Holdings, HostRoute, Need, overlap};
use overlay_support::patient::Patient;

/// Whose holdings it is looked at for.
#[derive(Debug, Clone)]
pub struct Viewpoint<'a> {
    /// The overlay's network.
    pub network: Ipv4Net,
    /// This node's own subnet.
    pub own: Option<Ipv4Net>,
    /// The overlay's device, if there is a tunnel.
    pub device: Option<String>,
    /// The device to the other nodes.
    pub underlay: &'a str,
    /// Where the leases are.
    pub stores: &'a BTreeSet<Ipv4Addr>,
}

/// Looks again and again, but seldom at a table with all the routes of the Internet: listing these takes as long as
/// the control plane has no time for at each change.
#[derive(Debug, Default)]
pub struct Surveyor {
    last: Mutex<Option<Survey>>,
    resolvers: Resolvers,
}

#[derive(Debug)]
struct Survey {
    holdings: Holdings,
    at: Instant,
    routes: usize,
}

impl Surveyor {
    /// What there is now; of a large table, what there was a few seconds ago.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if the kernel cannot be asked.
    pub async fn look(&self, from: Viewpoint<'_>) -> Result<Holdings, HostError> {
        let lock = || self.last.lock();
        if let Some(last) = lock().as_ref().filter(|last| last.routes > MANY && last.at.elapsed() < SELDOM) {
            return Ok(last.holdings.clone());
        }
        let (holdings, routes) = survey(from, self.resolvers.look().await).await?;
        *lock() = Some(Survey { holdings: holdings.clone(), at: Instant::now(), routes });
        Ok(holdings)
    }
}

/// What there is of the host's, as far as it concerns a network; the other nodes are not in it.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn look(from: Viewpoint<'_>) -> Result<Holdings, HostError> {
    survey(from, Resolvers::default().look().await).await.map(|(holdings, _)| holdings)
}

/// What no pod's address may be: the addresses of the device to the other nodes, and what is reached through it of the
/// gateways, the `stores` and the resolvers. (What is reached through a bridge may be a pod.)
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn kept(underlay: &str, stores: &BTreeSet<Ipv4Addr>) -> Result<BTreeSet<Ipv4Addr>, HostError> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let Some(device) = links.iter().find(|link| link.name == underlay).map(|link| link.index) else {
        return Ok(BTreeSet::new());
    };
    let addresses = netlink.addresses().await?.into_iter().filter(|address| address.index == device);
    let mut kept: BTreeSet<Ipv4Addr> = addresses.map(|address| address.address).collect();
    let routes = netlink.routes().await?.into_iter().filter(|route| route.device == Some(device));
    kept.extend(routes.flat_map(|route| route.gateways));
    for address in stores.iter().copied().chain(Resolvers::default().look().await) {
        if netlink.way_to(address).await?.is_some_and(|way| way.device == device && !way.local) {
            kept.insert(address);
        }
    }
    Ok(kept)
}

async fn survey(from: Viewpoint<'_>, resolvers: BTreeSet<Ipv4Addr>) -> Result<(Holdings, usize), HostError> {
    let netlink = Netlink::open()?;
    let links: HashMap<u32, Link> =
        netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
    let name = |index: u32| links.get(&index).map_or_else(|| format!("device {index}"), |l| l.name.clone());
    let is_overlays = |index: Option<u32>| index.is_some_and(|index| from.device == Some(name(index)));

    let mut holdings = Holdings::default();
    let mut bridges = BTreeSet::new();
    for address in netlink.addresses().await? {
        if from.own.is_some_and(|own| own.contains(&address.address)) {
            bridges.insert(address.index);
        }
        if !is_overlays(Some(address.index)) {
            let device = name(address.index);
            let underlay = device == from.underlay;
            holdings.need(address.address, if underlay { Need::Underlay(device) } else { Need::Own(device) });
        }
    }
    let routes = netlink.routes().await?;
    let count = routes.len();
    let others = of_others(&routes, links.values());
    let mut metrics: BTreeMap<Ipv4Net, u32> = BTreeMap::new();
    for route in routes.into_iter().filter(|route| !is_overlays(route.device)) {
        let to = route.destination.trunc();
        // A pod that is a router is no gateway of the host's.
        if route.device.is_none_or(|device| !bridges.contains(&device)) {
            route.gateways.iter().for_each(|gateway| holdings.need(*gateway, Need::Gateway));
        }
        // What another daemon routes into its own device in a network inside of ours is none of ours. What ends
        // here comes after every other route, so that it takes nothing from anybody.
        let ours = route.device.is_none_or(|device| from.network.contains(&to) && !others.contains(&device));
        // A VPN's two halves are a default route, too.
        if is_ours(&route) && ours || to.prefix_len() <= 1 || !overlap(to, from.network) {
            continue;
        }
        if metrics.get(&to).is_none_or(|least| route.metric < *least) {
            metrics.insert(to, route.metric);
            holdings.routes.insert(to, host_route(&route, name));
        }
    }
    from.stores.iter().for_each(|store| holdings.need(*store, Need::Store));
    resolvers.into_iter().for_each(|resolver| holdings.need(resolver, Need::Resolver));
    Ok((holdings, count))
}

fn host_route(route: &Route, name: impl Fn(u32) -> String) -> HostRoute {
    let mut words = Vec::new();
    match route.message.header.kind {
        RouteType::Unicast => {}
        RouteType::BlackHole => words.push("blackhole".to_owned()),
        RouteType::Unreachable => words.push("unreachable".to_owned()),
        RouteType::Prohibit => words.push("prohibit".to_owned()),
        other => words.push(format!("{other:?}").to_ascii_lowercase()),
    }
    words.extend(route.gateways.iter().map(|gateway| format!("via {gateway}")));
    words.extend(route.device.map(|device| format!("dev {}", name(device))));
    if route.metric > 0 {
        words.push(format!("metric {}", route.metric));
    }
    HostRoute {
        gateway: route.gateway,
        device: route.device,
        text: words.join(" "),
        as_flannels: route.protocol == RouteProtocol::Boot && route.metric == 0,
    }
}

/// Those of `/etc/resolv.conf`, and whom systemd-resolved asks where that names itself.
#[derive(Debug, Default)]
struct Resolvers {
    /// What the files said when they were last read.
    known: Mutex<BTreeSet<Ipv4Addr>>,
    files: Patient<BTreeSet<Ipv4Addr>>,
}

impl Resolvers {
    /// What the files say; as long as they cannot be read, what they said before.
    async fn look(&self) -> BTreeSet<Ipv4Addr> {
        let read = self.files.read(|| in_files(&RESOLVERS)).await;
        let mut known = self.known.lock();
        if let Some(read) = read {
            *known = read;
        }
        known.clone()
    }
}

fn in_files(paths: &[impl AsRef<Path>]) -> BTreeSet<Ipv4Addr> {
    let texts = paths.iter().filter_map(|path| files::read(path.as_ref(), files::LONGEST_TEXT).ok());
    texts.flat_map(|text| nameservers(&String::from_utf8_lossy(&text))).collect()
}

fn nameservers(text: &str) -> Vec<Ipv4Addr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(address).collect()
}

const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// So many routes take some 10 ms to list.
const MANY: usize = 10_000;
const SELDOM: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn resolvers_are_asked_of_files_only() {
        let directory = tempfile::tempdir().unwrap();
        let [file, fifo, long] = ["file", "fifo", "long"].map(|name| directory.path().join(name));
        std::fs::write(&file, "nameserver 10.1.0.53\n").unwrap();
        std::fs::write(&long, "nameserver 10.1.0.54\n".repeat(files::LONGEST_TEXT / 20)).unwrap();
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let known = in_files(&[fifo, long, file, directory.path().join("none")]);
        assert_eq!(known, BTreeSet::from([Ipv4Addr::new(10, 1, 0, 53)]));
    }

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 10.0.0.1\nnameserver 10.1.0.53\n  nameserver\t10.1.0.54 # second\n\
                    nameserver fd00::53\nsearch nameserver\nnameserver\nnameserver 10.1\n";
        assert_eq!(
            nameservers(text),
            ["10.1.0.53", "10.1.0.54"].map(|text| text.parse::<Ipv4Addr>().unwrap())
        );
    }
}
