//! What of this host's lies where the overlay's network is, and what may be routed there all the same. Pure.
//!
//! Where nothing of the host's is, one route leads all of the network into the overlay's device, and what nobody has
//! leased ends there. Anywhere else only the subnets that other nodes have leased are routed, as flannel's vxlan does:
//! whatever else lies in the network goes by the host's own routes. Of this, what may be a pod's (SubnetMin to
//! SubnetMax) but is nobody's yet would leave by the default route, in the clear. It is rejected, unless the host lives
//! in that range, or needs something there: then the default route leads to others of its kind, too, which only
//! SubnetMin and SubnetMax can tell from pods. Around another node in that range, one block stays open.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv4Subnets};

/// What there is of the host's, beside what is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its routes but the default ones; of several to one destination the one that counts.
    pub routes: BTreeMap<Ipv4Net, HostRoute>,
    /// What it is, and what it has to reach.
    pub needs: BTreeMap<Ipv4Addr, Need>,
}

/// Where a route of the host's leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// By which gateway, if it is one only.
    pub gateway: Option<Ipv4Addr>,
    /// Through which device.
    pub device: Option<u32>,
    /// As `ip route` has it, behind the destination.
    pub text: String,
    /// Whether it stands as flanneld puts its own.
    pub as_flannels: bool,
}

/// Why the host's packets must find an address, the first being the weightiest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The other nodes reach this host by it.
    Underlay(String),
    /// It is this host's own, on this device.
    Own(String),
    /// A route of the host's leads by it.
    Gateway,
    /// The leases are there.
    Store,
    /// Names are resolved by it.
    Resolver,
    /// It is another node's public address.
    Peer,
}

/// The part of the address space that an overlay claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// All of it.
    pub network: Ipv4Net,
    /// The first and the last address that may be a pod's.
    pub pods: (Ipv4Addr, Ipv4Addr),
    /// This node's own subnet, if it has one yet.
    pub own: Option<Ipv4Net>,
}

/// Something of the host's in the overlay's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overlap<'a> {
    /// A route.
    Route(Ipv4Net, &'a str),
    /// An address.
    Address(Ipv4Addr, &'a Need),
}

/// Why no route of ours may lead to a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle(String);

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Underlay(device) => write!(f, "this host's own address on {device}"),
            Self::Own(device) => write!(f, "this host's address on {device}"),
            Self::Gateway => f.write_str("a gateway of this host's"),
            Self::Store => f.write_str("where the leases are"),
            Self::Resolver => f.write_str("a resolver of this host's (/etc/resolv.conf)"),
            Self::Peer => f.write_str("another node's public address"),
        }
    }
}

impl fmt::Display for Overlap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(to, way) => write!(f, "the route {to} {way}"),
            Self::Address(address, need) => write!(f, "{address}, {need}"),
        }
    }
}

impl Holdings {
    /// Adds an address, for the weightiest of its reasons.
    pub fn need(&mut self, address: Ipv4Addr, why: Need) {
        let known = self.needs.entry(address).or_insert_with(|| why.clone());
        if why < *known {
            *known = why;
        }
    }

    /// Whom this host trusts by their addresses, and who are no nodes of the overlay.
    #[must_use]
    pub fn trusted(&self) -> BTreeSet<Ipv4Addr> {
        let is_trusted = |need: &Need| matches!(need, Need::Gateway | Need::Store | Need::Resolver);
        self.needs.iter().filter(|(_, need)| is_trusted(need)).map(|(address, _)| *address).collect()
    }

    /// What of this is in the network, outside of the node's own subnet: while there is any, the network's route is
    /// not put. (What lies in the own subnet is a bridge with its pods.)
    pub fn overlaps(&self, claim: &Claim) -> Vec<Overlap<'_>> {
        let elsewhere = |to: &Ipv4Net| claim.own.is_none_or(|own| !own.contains(to));
        let routes = self.routes.iter().filter(|(to, _)| overlap(**to, claim.network) && elsewhere(to));
        let routes = routes.map(|(to, route)| Overlap::Route(*to, &route.text));
        let needs = self.needs_in(claim.network).filter(|(address, _)| elsewhere(&Ipv4Net::from(**address)));
        routes.chain(needs.map(|(address, need)| Overlap::Address(*address, need))).collect()
    }

    /// Why this node cannot have its subnet: it would take from the host what it has itself.
    pub fn refusal(&self, own: Ipv4Net) -> Option<Obstacle> {
        let needs = self.needs_in(own);
        let mut vital = needs.filter(|(_, need)| matches!(need, Need::Underlay(_) | Need::Gateway));
        vital.next().map(|(address, need)| {
            Obstacle(format!(
                "the subnet {own} cannot be this node's pods': {address} in it is {need} (give the network configuration another Network, or SubnetMin and SubnetMax without it)"
            ))
        })
    }

    /// What of the range of pods is to end here if nobody has leased it: it would leave by the default route.
    pub fn rejected(&self, claim: &Claim) -> Vec<Ipv4Net> {
        let (first, last) = claim.pods;
        // What has a way of its own does not need the default route; but who lives there has neighbours there.
        let by_default = |(address, need): (&Ipv4Addr, &Need)| match need {
            Need::Underlay(_) => true,
            Need::Own(_) | Need::Peer => false,
            _ => !self.is_routed(*address),
        };
        if self.needs.range(first..=last).any(by_default) {
            return Vec::new();
        }
        // A narrower route of the host's comes first by itself, a wider one would be shadowed.
        let free = |part: &Ipv4Net| !self.routes.keys().any(|to| to.contains(part));
        let parts = beside(first, last, self.blocks_of_peers(claim));
        parts.into_iter().flat_map(|(first, last)| Ipv4Subnets::new(first, last, 0)).filter(free).collect()
    }

    /// Where among the pods' addresses other nodes are that the default route leads to: blocks as large as a subnet.
    /// That a lease names such an address opens no more than its block, whoever has written it.
    fn blocks_of_peers(&self, claim: &Claim) -> BTreeSet<Ipv4Net> {
        let (first, last) = claim.pods;
        let length = claim.own.map_or(32, |own| own.prefix_len());
        let block = |address: Ipv4Addr| Ipv4Net::new_assert(address, length).trunc();
        let peers = self.needs.range(first..=last).filter(|(_, need)| **need == Need::Peer);
        peers.map(|(address, _)| *address).filter(|address| !self.is_routed(*address)).map(block).collect()
    }

    /// Why what another node has leased must not be routed; `None` if it may be.
    pub fn obstacle(&self, claim: &Claim, leased: Ipv4Net) -> Option<Obstacle> {
        if let Some(route) = self.routes.get(&leased) {
            let way = &route.text;
            return Some(Obstacle(format!(
                "this host has a route of its own to {leased}, {way}, which ours must not stand beside: remove it ('ip route delete {leased} {way}'), or the node's lease"
            )));
        }
        // Of two nodes of which one has leased where the other is, the leases' gate has left one.
        let counts = |(address, need): &(&Ipv4Addr, &Need)| {
            **need != Need::Peer && claim.own.is_none_or(|own| !own.contains(*address))
        };
        self.needs_in(leased).find(counts).map(|(address, need)| {
            Obstacle(format!(
                "its subnet {leased} would take {address} from this host, {need}: the lease must go"
            ))
        })
    }

    /// Whether a route of the host's, other than the default one, leads to `address`.
    fn is_routed(&self, address: Ipv4Addr) -> bool {
        covering(address).any(|net| self.routes.contains_key(&net))
    }

    fn needs_in(&self, net: Ipv4Net) -> impl Iterator<Item = (&Ipv4Addr, &Need)> {
        self.needs.range(net.network()..=net.broadcast())
    }
}

/// Whether the two have an address in common.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// What of `first` to `last` lies outside of `blocks`: the first and the last address of each part.
fn beside(first: Ipv4Addr, last: Ipv4Addr, blocks: BTreeSet<Ipv4Net>) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let (mut parts, mut from, end) = (Vec::new(), u64::from(first.to_bits()), u64::from(last.to_bits()));
    let address = |bits: u64| Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX));
    for block in blocks {
        let [begins, ends] = [block.network(), block.broadcast()].map(|end| u64::from(end.to_bits()));
        if begins > from {
            parts.push((address(from), address(begins - 1)));
        }
        from = from.max(ends + 1);
    }
    if from <= end {
        parts.push((address(from), last));
    }
    parts
}

/// All networks with this address, from the longest prefix on, but for the default route.
fn covering(address: Ipv4Addr) -> impl Iterator<Item = Ipv4Net> {
    (1..=32).rev().map(move |length| Ipv4Net::new_assert(address, length).trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address, and why.
    type Needed<'a> = (&'a str, Need);

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn holdings(routes: &[&str], needs: &[(&str, Need)]) -> Holdings {
        let mut holdings = Holdings::default();
        let route = HostRoute {
            gateway: Some(address("192.168.1.1")),
            device: Some(2),
            text: "via 192.168.1.1 dev eth0".to_owned(),
            as_flannels: false,
        };
        holdings.routes.extend(routes.iter().map(|to| (net(to), route.clone())));
        needs.iter().for_each(|(at, need)| holdings.need(address(at), need.clone()));
        holdings
    }

    /// All of `network` but its first /24 for pods, of which this node has `own`.
    fn claim(network: &str, own: &str) -> Claim {
        let network = net(network);
        let first = Ipv4Addr::from(network.network().to_bits() + 256);
        Claim { network, pods: (first, network.broadcast()), own: Some(net(own)) }
    }

    /// The documented example: hosts in 10/8, pods from 10.10 to 10.99.
    fn example() -> Claim {
        Claim {
            network: net("10.0.0.0/8"),
            pods: (address("10.10.0.0"), address("10.99.255.255")),
            own: Some(net("10.12.112.0/20")),
        }
    }

    fn underlay(at: &str) -> (&str, Need) {
        (at, Need::Underlay("eth0".to_owned()))
    }

    #[test]
    fn the_network_is_routed_whole_only_where_nothing_of_the_hosts_is() {
        let usual = claim("10.1.0.0/16", "10.1.9.0/24");
        let lan = underlay("192.168.1.12");
        let free: [(&[&str], &[Needed<'_>]); 3] = [
            (&["192.168.1.0/24", "169.254.0.0/16"], &[lan.clone(), ("192.168.1.1", Need::Gateway)]),
            // The bridge of this node's pods, and routes to some of them.
            (&["10.1.9.0/24", "10.1.9.7/32"], &[lan.clone(), ("10.1.9.1", Need::Own("docker0".to_owned()))]),
            (&["10.2.0.0/16"], &[("192.168.1.53", Need::Resolver), ("10.2.0.5", Need::Peer)]),
        ];
        for (routes, needs) in free {
            assert_eq!(holdings(routes, needs).overlaps(&usual), [], "{routes:?} {needs:?}");
        }
        let taken: [(&[&str], &[Needed<'_>], &str); 9] = [
            (&["10.1.0.0/16"], &[], "the route 10.1.0.0/16 via 192.168.1.1 dev eth0"),
            (&["10.0.0.0/8"], &[], "the route 10.0.0.0/8 via 192.168.1.1 dev eth0"),
            (&["10.1.200.0/24"], &[], "the route 10.1.200.0/24 via 192.168.1.1 dev eth0"),
            (&["10.1.8.0/23"], &[], "the route 10.1.8.0/23 via 192.168.1.1 dev eth0"),
            (&[], &[underlay("10.1.3.4")], "10.1.3.4, this host's own address on eth0"),
            (&[], &[("10.1.0.1", Need::Gateway)], "10.1.0.1, a gateway of this host's"),
            (&[], &[("10.1.3.5", Need::Store)], "10.1.3.5, where the leases are"),
            (&[], &[("10.1.3.5", Need::Resolver)], "10.1.3.5, a resolver of this host's (/etc/resolv.conf)"),
            (&[], &[("10.1.3.5", Need::Peer)], "10.1.3.5, another node's public address"),
        ];
        for (routes, needs, said) in taken {
            let holdings = holdings(routes, needs);
            let overlaps: Vec<String> = holdings.overlaps(&usual).iter().map(ToString::to_string).collect();
            assert_eq!(overlaps, [said]);
        }
    }

    #[test]
    fn unleased_pods_are_rejected_unless_the_host_lives_or_needs_something_there() {
        let rejected = |claim: &Claim, routes: &[&str], needs: &[(&str, Need)]| {
            let parts = holdings(routes, needs).rejected(claim);
            parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        // The LAN, etcd and the other nodes are in 10/8, but not where pods are.
        let site = [underlay("10.200.1.12"), ("10.200.3.5", Need::Store), ("10.200.2.238", Need::Peer)];
        let all = "10.10.0.0/15 10.12.0.0/14 10.16.0.0/12 10.32.0.0/11 10.64.0.0/11 10.96.0.0/14";
        assert_eq!(rejected(&example(), &["10.200.1.0/24"], &site), all);
        // A route of the host's inside comes first by itself; one around must not be shadowed.
        assert_eq!(rejected(&example(), &["10.20.0.0/16"], &site), all);
        assert_eq!(rejected(&example(), &["10.0.0.0/8"], &site), "");
        assert_eq!(rejected(&example(), &["10.64.0.0/10"], &site), &all[..all.len() - 26]);
        // What is needed there, and reached by the default route only.
        let around = "10.10.0.0/15 10.12.0.0/14 10.16.0.0/14 10.20.16.0/20 10.20.32.0/19 10.20.64.0/18 10.20.128.0/17 \
            10.21.0.0/16 10.22.0.0/15 10.24.0.0/13 10.32.0.0/11 10.64.0.0/11 10.96.0.0/14";
        for (need, rest) in
            [(Need::Store, ""), (Need::Resolver, ""), (Need::Gateway, ""), (Need::Peer, around)]
        {
            let needs = [("10.20.3.5", need)];
            assert_eq!(rejected(&example(), &[], &needs), rest, "{needs:?}");
            assert_eq!(rejected(&example(), &["10.20.3.0/24"], &needs), all, "{needs:?}");
        }
        // Other nodes at both ends of the range, and two in one block.
        let needs = ["10.1.1.0", "10.1.1.9", "10.1.3.255"].map(|node| (node, Need::Peer));
        assert_eq!(rejected(&claim("10.1.0.0/22", "10.1.2.0/24"), &[], &needs), "10.1.2.0/24");
        // A host among the pods' addresses has others of its kind behind its gateway.
        let everywhere = claim("10.0.0.0/8", "10.12.112.0/24");
        assert_eq!(rejected(&everywhere, &["10.200.1.0/24"], &site), "");
        // An earlier bridge does not make it one.
        assert_eq!(
            rejected(
                &claim("10.1.0.0/22", "10.1.3.0/24"),
                &["10.1.2.0/24"],
                &[("10.1.2.1", Need::Own("docker0".to_owned()))]
            ),
            "10.1.1.0/24 10.1.2.0/23"
        );
    }

    #[test]
    fn what_is_leased_is_routed_unless_that_would_take_something_from_the_host() {
        let lan = claim("172.16.0.0/16", "172.16.9.0/24");
        let site = holdings(
            &["172.16.0.0/16", "172.16.77.0/24"],
            &[
                underlay("172.16.1.12"),
                ("172.16.0.1", Need::Gateway),
                ("172.16.2.5", Need::Store),
                ("172.16.3.53", Need::Resolver),
                ("172.16.4.13", Need::Peer),
                ("172.16.9.1", Need::Own("docker0".to_owned())),
            ],
        );
        for (leased, word) in [
            ("172.16.1.0/24", "172.16.1.12 from this host, this host's own address on eth0"),
            ("172.16.0.0/24", "a gateway"),
            ("172.16.2.0/24", "where the leases are"),
            ("172.16.3.0/24", "a resolver"),
            ("172.16.0.0/17", "a gateway"),
            ("172.16.77.0/24", "a route of its own to 172.16.77.0/24, via 192.168.1.1 dev eth0"),
            ("172.16.0.0/16", "a route of its own"),
        ] {
            let said = site.obstacle(&lan, net(leased)).expect(leased).to_string();
            assert!(said.contains(word), "{leased}: {said}");
        }
        // Where another node is, the gate has its say. Inside of a route of the host's, as flannel's are; around one,
        // which is narrower; around our own.
        for leased in ["172.16.4.0/24", "172.16.5.0/24", "172.16.76.0/23", "172.16.8.0/23"] {
            assert_eq!(site.obstacle(&lan, net(leased)), None, "{leased}");
        }
    }

    #[test]
    fn a_subnet_with_the_host_or_its_gateway_in_it_is_no_pods() {
        let site = holdings(&[], &[underlay("192.168.1.12"), ("192.168.1.1", Need::Gateway)]);
        let said = site.refusal(net("192.168.1.0/24")).unwrap().to_string();
        assert!(said.contains("192.168.1.1 in it is a gateway of this host's"), "{said}");
        assert!(site.refusal(net("192.168.1.8/29")).unwrap().to_string().contains("own address on eth0"));
        assert_eq!(site.refusal(net("192.168.2.0/24")), None);
    }

    #[test]
    fn gateways_stores_and_resolvers_are_trusted_and_no_nodes() {
        let needs = [
            ("192.168.1.1", Need::Gateway),
            ("192.168.1.2", Need::Store),
            ("10.0.0.53", Need::Resolver),
            ("192.168.1.13", Need::Peer),
            ("192.168.1.12", Need::Underlay("eth0".to_owned())),
            ("172.17.0.1", Need::Own("docker0".to_owned())),
        ];
        let trusted = ["192.168.1.1", "192.168.1.2", "10.0.0.53"].map(address);
        assert_eq!(holdings(&[], &needs).trusted(), trusted.into());
    }

    #[test]
    fn an_address_counts_for_its_weightiest_reason() {
        let mut site = holdings(&[], &[("10.1.0.1", Need::Resolver)]);
        site.need(address("10.1.0.1"), Need::Gateway);
        site.need(address("10.1.0.1"), Need::Peer);
        assert_eq!(site.needs[&address("10.1.0.1")], Need::Gateway);
    }
}
