//! Who owns which subnet: published whole by one writer, read by the workers without lock or wait.

mod family;
mod hop;
mod hosts;
mod node;
mod routes;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use family::Family;
pub use hop::{Hop, Route};
use hosts::Hosts;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use node::{Local, Peer};
use overlay_wire::ip::Version;
use overlay_wire::{Addresses, Subnets};

use crate::peer_state::PeerState;

/// What the table says about where a packet comes from.
#[derive(Debug)]
pub enum Origin<'a> {
    /// A peer that may send it: the inner source is in its subnet, or is its public address.
    Owner(&'a Hop),
    /// A peer that the inner source does not belong to.
    Peer(&'a Hop),
    /// No peer.
    Unknown,
}

/// Where the way to a peer is, by its index there.
#[derive(Debug, Clone, Copy)]
enum Place {
    V4(u32),
    V6(u32),
    Stranger(u32),
}

/// One complete state of the network. Immutable: a change is a new table.
#[derive(Debug)]
pub struct PeerTable {
    local: Local,
    peers: Vec<Peer>,
    /// Where one way to each of the peers is, in their order.
    places: Box<[Place]>,
    /// Ways to peers that have subnets only of families that this node has none of.
    strangers: Vec<Hop>,
    v4: Option<Family<Ipv4Net>>,
    v6: Option<Family<Ipv6Net>>,
    hosts_v4: Hosts<u32>,
    hosts_v6: Hosts<u128>,
    no_nodes: Arc<ArcSwap<BTreeSet<IpAddr>>>,
}

impl PeerTable {
    /// The table in which `peers` are reached from `local`. Of two peers with the same subnet,
    /// the later one counts; subnets may contain one another.
    #[must_use]
    pub fn new(local: Local, peers: Vec<Peer>) -> Self {
        Self::with_states(local, peers, Arc::default(), |_| Arc::default())
    }

    /// The table that follows this one. Peers that were there under one of their subnets and public addresses keep
    /// their state.
    #[must_use]
    pub fn next(&self, local: Local, peers: Vec<Peer>) -> Self {
        Self::with_states(local, peers, Arc::clone(&self.no_nodes), |peer| {
            self.state(peer.subnets, peer.public).map_or_else(Arc::default, Arc::clone)
        })
    }

    fn with_states(
        local: Local,
        peers: Vec<Peer>,
        no_nodes: Arc<ArcSwap<BTreeSet<IpAddr>>>,
        state: impl Fn(&Peer) -> Arc<PeerState>,
    ) -> Self {
        let states: Vec<Arc<PeerState>> = peers.iter().map(state).collect();
        let each = || (0..).zip(peers.iter().zip(&states));
        let hop = |(index, (peer, state)): (u32, (&Peer, &Arc<PeerState>)), version| {
            Hop::new(&local, peer, index, version, Arc::clone(state))
        };
        let mut v4 = local.subnets.v4().map(|own| {
            Family::new(own, each().filter_map(|each| Some((each.1.0.subnets.v4()?, hop(each, Version::V4)))))
        });
        let mut v6 = local.subnets.v6().map(|own| {
            Family::new(own, each().filter_map(|each| Some((each.1.0.subnets.v6()?, hop(each, Version::V6)))))
        });
        for end in peers.iter().flat_map(|peer| peer.public.iter()) {
            let holder = match end {
                IpAddr::V4(end) => v4.as_mut().and_then(|v4| v4.route_mut(end.into())),
                IpAddr::V6(end) => v6.as_mut().and_then(|v6| v6.route_mut(end.into())),
            };
            if let Some(holder) = holder {
                holder.holds_tunnel_end = true;
            }
        }
        let mut of_v4 = (0..v4.as_ref().map_or(0, |v4| v4.hops().len())).map(|at| Place::V4(at as u32));
        let mut of_v6 = (0..v6.as_ref().map_or(0, |v6| v6.hops().len())).map(|at| Place::V6(at as u32));
        let mut strangers = Vec::new();
        let hops = each().map(|each| {
            let subnets = each.1.0.subnets;
            let v4 = subnets.v4().and_then(|_| of_v4.next());
            let v6 = subnets.v6().and_then(|_| of_v6.next());
            v4.or(v6).unwrap_or_else(|| {
                // It has subnets of no family that this node has: it is known all the same.
                strangers.push(hop(each, Version::V4));
                Place::Stranger(strangers.len() as u32 - 1)
            })
        });
        let places = hops.collect();
        let own = |address: &IpAddr| Addresses::from(*address);
        let hosts_v4 = Hosts::new(
            local.addresses.iter().filter_map(|address| own(address).v4()).map(u32::from),
            each().filter_map(|(index, (peer, _))| Some((peer.public.v4()?.into(), index))),
        );
        let hosts_v6 = Hosts::new(
            local.addresses.iter().filter_map(|address| own(address).v6()).map(u128::from),
            each().filter_map(|(index, (peer, _))| Some((peer.public.v6()?.into(), index))),
        );
        Self { local, peers, places, strangers, v4, v6, hosts_v4, hosts_v6, no_nodes }
    }

    /// This node.
    #[must_use]
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// The other nodes.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Whether the network has packets of that version at all.
    #[inline]
    #[must_use]
    pub fn carries(&self, version: Version) -> bool {
        self.local.subnets.has(version)
    }

    /// Which way `dst` goes.
    #[inline]
    #[must_use]
    pub fn route(&self, dst: IpAddr) -> Route<'_> {
        match dst {
            IpAddr::V4(dst) => self.v4.as_ref().map_or(Route::None, |v4| v4.route(dst.into())),
            IpAddr::V6(dst) => self.v6.as_ref().map_or(Route::None, |v6| v6.route(dst.into())),
        }
    }

    /// Whose a packet is that arrives from `outer` with the source `inner`.
    #[inline]
    #[must_use]
    pub fn origin(&self, outer: IpAddr, inner: IpAddr) -> Origin<'_> {
        match self.route(inner) {
            Route::Peer(hop) if hop.address == outer => Origin::Owner(hop),
            Route::Peer(hop) => self.rarer_origin(Some(hop), outer, inner),
            Route::Own | Route::None => self.rarer_origin(None, outer, inner),
        }
    }

    /// The same, where `outer` is not the address by which `holder` of `inner`, if there is one, is reached. Apart, since
    /// nearly every packet comes from there.
    #[inline(never)]
    fn rarer_origin<'a>(&'a self, holder: Option<&'a Hop>, outer: IpAddr, inner: IpAddr) -> Origin<'a> {
        match holder {
            Some(hop) if self.peer(hop).public.contains(outer) => Origin::Owner(hop),
            _ => match self.at(outer) {
                Some(hop) if inner == outer => Origin::Owner(hop),
                Some(hop) => Origin::Peer(hop),
                None => Origin::Unknown,
            },
        }
    }

    /// Which way the packets of each peer go, in the order of [`peers`](Self::peers): those of IPv4, if it has a subnet of
    /// that.
    pub fn hops(&self) -> impl ExactSizeIterator<Item = &Hop> {
        self.places.iter().map(move |place| self.hop(*place))
    }

    /// The peer with the public address `outer`; the first one, if several share it.
    #[must_use]
    pub fn at(&self, outer: IpAddr) -> Option<&Hop> {
        let index = match outer {
            IpAddr::V4(outer) => self.hosts_v4.at(outer.into()),
            IpAddr::V6(outer) => self.hosts_v6.at(outer.into()),
        };
        Some(self.hop(self.places[index?]))
    }

    /// The way to the peer with one of just these subnets and one of these public addresses.
    #[must_use]
    pub fn find(&self, subnets: Subnets, public: Addresses) -> Option<&Hop> {
        let exact = |subnet| match subnet {
            IpNet::V4(subnet) => self.v4.as_ref()?.exact(subnet),
            IpNet::V6(subnet) => self.v6.as_ref()?.exact(subnet),
        };
        subnets.iter().filter_map(exact).find(|hop| self.peer(hop).public.share(&public))
    }

    /// What is known of the [same](Self::find) peer beside its lease.
    #[must_use]
    pub fn state(&self, subnets: Subnets, public: Addresses) -> Option<&Arc<PeerState>> {
        self.find(subnets, public).map(|hop| &hop.state)
    }

    /// The address of the overlay device of the node that has `subnets`, by which its daemon is spoken to: the base of
    /// one of them. None if packets of neither family pass here.
    #[must_use]
    pub fn overlay_address(&self, subnets: Subnets) -> Option<IpAddr> {
        subnets.iter().map(|subnet| subnet.network()).find(|base| self.carries(Version::of(*base)))
    }

    fn hop(&self, place: Place) -> &Hop {
        match place {
            Place::V4(at) => &self.v4.as_ref().map(Family::hops).unwrap_or_default()[at as usize],
            Place::V6(at) => &self.v6.as_ref().map(Family::hops).unwrap_or_default()[at as usize],
            Place::Stranger(at) => &self.strangers[at as usize],
        }
    }

    fn peer(&self, hop: &Hop) -> &Peer {
        &self.peers[hop.peer as usize]
    }

    /// Whether `address` is [no node's](SharedTable::set_no_nodes).
    #[must_use]
    pub fn is_no_nodes(&self, address: IpAddr) -> bool {
        self.no_nodes.load().contains(&address)
    }

    /// Whether a UDP packet with these addresses is the tunnel's own, from this host to a peer.
    #[must_use]
    pub fn is_tunnel(&self, src: IpAddr, dst: IpAddr) -> bool {
        self.at(dst).is_some() && self.local.addresses.contains(&src)
    }

    /// Whether `address` is an end of a tunnel: a peer's public address, or any of this host's.
    #[must_use]
    pub fn is_tunnel_end(&self, address: IpAddr) -> bool {
        self.at(address).is_some() || self.is_this_hosts(address)
    }

    /// Whether `address` is this host's own or in its own subnet.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        let is_pods = match address {
            IpAddr::V4(address) => self.v4.as_ref().is_some_and(|v4| v4.is_own(address.into())),
            IpAddr::V6(address) => self.v6.as_ref().is_some_and(|v6| v6.is_own(address.into())),
        };
        is_pods || self.is_this_hosts(address)
    }

    #[inline]
    fn is_this_hosts(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.hosts_v4.has(address.into()),
            IpAddr::V6(address) => self.hosts_v6.has(address.into()),
        }
    }
}

/// The current table, shared by the one writer and all workers.
#[derive(Debug, Clone)]
pub struct SharedTable(Arc<ArcSwap<PeerTable>>);

impl SharedTable {
    /// Shares `first` until another is published.
    #[must_use]
    pub fn new(first: PeerTable) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(first)))
    }

    /// Replaces the table by the [`next`](PeerTable::next). Workers see it from their next batch on.
    pub fn publish(&self, local: Local, peers: Vec<Peer>) {
        let next = self.0.load().next(local, peers);
        self.0.store(Arc::new(next));
    }

    /// Sets the addresses that no node may send from, unless its lease says that it has them: whoever is there is asked
    /// for trust by this host. They hold for later tables, too.
    pub fn set_no_nodes(&self, addresses: BTreeSet<IpAddr>) {
        let table = self.0.load();
        if **table.no_nodes.load() != addresses {
            table.no_nodes.store(Arc::new(addresses));
        }
    }

    /// The table as it stands, for those who look once.
    #[must_use]
    pub fn current(&self) -> Arc<PeerTable> {
        self.0.load_full()
    }

    /// A worker's view: as long as nothing new is published, looking costs one comparison of
    /// pointers and touches no shared count.
    #[must_use]
    pub fn reader(&self) -> TableReader {
        TableReader(Cache::new(Arc::clone(&self.0)))
    }
}

/// A worker's view of the current table.
#[derive(Debug)]
pub struct TableReader(Cache<Arc<ArcSwap<PeerTable>>, Arc<PeerTable>>);

impl TableReader {
    /// The table to use for the batch at hand.
    pub fn load(&mut self) -> &PeerTable {
        self.0.load()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use overlay_wire::ecn::Ecn;
    use overlay_wire::{Families, Format, MacAddr, vxlan};

    use super::*;
    use crate::peer_state::PeerFlag;

    pub(crate) fn local(format: Format) -> Local {
        Local {
            network: subnets("10.1.0.0/16", "fd00::/48"),
            subnets: subnets("10.1.9.0/24", "fd00:0:0:9::/64"),
            overlay_addresses: addresses("10.1.9.0", "fd00:0:0:9::"),
            public: addresses("192.168.1.12", ""),
            addresses: ["192.168.1.12", "10.1.9.0", "2001:db8::12", "fd00:0:0:9::"].map(address).into(),
            mtu: 1450,
            format,
            port: 8472,
        }
    }

    /// A peer. The third number of its IPv4 subnet stands in its IPv6 subnet, too.
    pub(crate) fn peer(subnet: &str, public_ip: &str) -> Peer {
        let third = subnet.parse::<Ipv4Net>().unwrap().network().octets()[2];
        Peer {
            subnets: subnets(subnet, &format!("fd00:0:0:{third}::/64")),
            public: address(public_ip).into(),
            vtep_macs: Some(Families::V4(MacAddr([2, 0, 0, 0, 0, 9]))),
        }
    }

    /// Of each family what is no address is none.
    pub(crate) fn addresses(v4: &str, v6: &str) -> Addresses {
        Addresses::of(v4.parse().ok(), v6.parse().ok()).unwrap()
    }

    /// The same.
    pub(crate) fn subnets(v4: &str, v6: &str) -> Subnets {
        Subnets::of(v4.parse().ok(), v6.parse().ok()).unwrap()
    }

    fn table(peers: Vec<Peer>) -> PeerTable {
        PeerTable::new(local(Format::FlannelUdp), peers)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_destination_goes_to_the_owner_of_its_subnet() {
        let table =
            table(vec![peer("10.1.63.0/24", "192.168.199.238"), peer("10.1.7.0/24", "192.168.199.7")]);
        let via = |dst: &str| match table.route(address(dst)) {
            Route::Peer(hop) => hop.to().to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(via("10.1.63.2"), "192.168.199.238:8472");
        assert_eq!(via("10.1.7.255"), "192.168.199.7:8472");
        assert_eq!(via("10.1.9.3"), "Own");
        assert_eq!(via("10.1.8.3"), "None");
        assert_eq!(via("8.8.8.8"), "None");
        assert_eq!(via("255.255.255.255"), "None");
        assert_eq!(via("fd00:0:0:63::2"), "192.168.199.238:8472");
        assert_eq!(via("fd00:0:0:7:ffff::"), "192.168.199.7:8472");
        assert_eq!(via("fd00:0:0:9::3"), "Own");
        assert_eq!(via("fd00:0:0:8::3"), "None");
        assert_eq!(via("ff02::1"), "None");
    }

    #[test]
    fn sources_belong_to_peers_by_subnet_or_public_address() {
        let nat = "192.168.199.1";
        let table = table(vec![
            peer("10.1.63.0/24", nat),
            peer("10.1.64.0/24", nat),
            peer("10.1.7.0/24", "192.168.199.7"),
        ]);
        let owns = |outer: &str, inner| {
            matches!(table.origin(outer.parse().unwrap(), address(inner)), Origin::Owner(_))
        };
        assert!(owns(nat, "10.1.63.2"));
        assert!(owns(nat, "10.1.64.2"), "two peers can share an address");
        assert!(owns(nat, nat));
        assert!(!owns(nat, "10.1.7.2"));
        assert!(!owns(nat, "192.168.199.7"));
        assert!(!owns("192.168.199.8", "192.168.199.8"), "not a peer");
        assert!(!owns(nat, "10.1.9.3"), "our own");
        let origin = |outer: &str, inner| table.origin(outer.parse().unwrap(), address(inner));
        assert!(matches!(origin(nat, "10.1.7.2"), Origin::Peer(hop) if hop.address.to_string() == nat));
        assert!(matches!(origin("192.168.199.8", "10.1.7.2"), Origin::Unknown));
        // Who it is among several is told by the subnet, and else the first.
        let state = |subnet: &str| table.state(subnets(subnet, ""), address(nat).into()).unwrap();
        for (inner, subnet) in
            [("10.1.64.2", "10.1.64.0/24"), ("fd00:0:0:64::2", "10.1.64.0/24"), (nat, "10.1.63.0/24")]
        {
            let Origin::Owner(hop) = origin(nat, inner) else { panic!("{inner}") };
            assert!(Arc::ptr_eq(&hop.state, state(subnet)), "{inner}");
        }
        assert!(owns(nat, "fd00:0:0:64::2"));
        assert!(!owns(nat, "fd00:0:0:7::2"));
        assert!(!owns(nat, "::ffff:10.1.63.2"), "an address of another version is another address");
    }

    #[test]
    fn own_addresses_are_recognised() {
        let table = table(vec![peer("10.1.63.0/24", "192.168.199.238")]);
        assert!(table.is_own(address("10.1.9.77")));
        assert!(table.is_own(address("192.168.1.12")));
        assert!(!table.is_own(address("10.1.63.1")));
        assert!(table.is_own(address("fd00:0:0:9::77")));
        assert!(table.is_own(address("2001:db8::12")));
        assert!(!table.is_own(address("fd00:0:0:63::1")));
    }

    #[test]
    fn a_lease_of_a_part_of_our_subnet_makes_no_address_of_ours_foreign() {
        let thief = Peer {
            subnets: subnets("10.1.9.128/25", "fd00:0:0:9:8000::/65"),
            ..peer("10.1.9.128/25", "192.168.199.66")
        };
        let table = table(vec![peer("10.1.63.0/24", "192.168.199.238"), thief]);
        for own in ["10.1.9.200", "fd00:0:0:9:8000::7"] {
            assert!(table.is_own(address(own)), "{own}");
            assert!(matches!(table.route(address(own)), Route::Own), "{own}");
            let origin = table.origin("192.168.199.66".parse().unwrap(), address(own));
            assert!(matches!(origin, Origin::Peer(_)), "{own} is not the thief's");
        }
    }

    #[test]
    fn a_network_without_ipv6_has_none() {
        let local = Local {
            network: subnets("10.1.0.0/16", ""),
            subnets: subnets("10.1.9.0/24", ""),
            ..local(Format::FlannelUdp)
        };
        let table = PeerTable::new(local, vec![peer("10.1.63.0/24", "192.168.199.238")]);
        assert!(table.carries(Version::V4) && !table.carries(Version::V6));
        assert!(matches!(table.route(address("fd00:0:0:63::2")), Route::None));
        let origin = table.origin("192.168.199.238".parse().unwrap(), address("fd00:0:0:63::2"));
        assert!(matches!(origin, Origin::Peer(_)), "known, and yet not its own");
    }

    #[test]
    fn a_vxlan_hop_carries_the_frames_headers() {
        let ours = MacAddr([2, 0, 0, 0, 0, 1]);
        let format = Format::Vxlan { vni: 7, vtep_mac: ours };
        let peer = peer("10.1.63.0/24", "192.168.199.238");
        let theirs = peer.vtep_macs.unwrap().prefer(Version::V4);
        let table = PeerTable::new(local(format), vec![peer]);
        let Route::Peer(hop) = table.route(address("10.1.63.2")) else { panic!("no route") };
        assert_eq!(hop.header(), vxlan::header(Version::V4, 7, ours, theirs));
        let Route::Peer(hop) = table.route(address("fd00:0:0:63::2")) else { panic!("no route") };
        assert_eq!(hop.header(), vxlan::header(Version::V6, 7, ours, theirs));
    }

    #[test]
    fn marks_are_asked_for_only_of_who_passes_them_on() {
        let marked = [0x45, 2];
        for (format, expected) in [
            (Format::FlannelUdp, Ecn::NotEct),
            (Format::Vxlan { vni: 1, vtep_mac: MacAddr([2; 6]) }, Ecn::Ect0),
        ] {
            let table = PeerTable::new(local(format), vec![peer("10.1.63.0/24", "192.168.199.238")]);
            let hop = table.hops().next().unwrap();
            assert_eq!(hop.outer_ecn(&marked), expected, "{format:?}");
            hop.state.set(PeerFlag::Answers, true);
            assert_eq!(hop.outer_ecn(&marked), Ecn::Ect0, "{format:?}");
        }
    }

    #[test]
    fn readers_see_what_was_published_last() {
        let shared = SharedTable::new(table(vec![]));
        let mut reader = shared.reader();
        assert_eq!(reader.load().peers().len(), 0);
        shared.publish(local(Format::FlannelUdp), vec![peer("10.1.63.0/24", "192.168.199.238")]);
        assert_eq!(reader.load().peers().len(), 1);
        assert_eq!(shared.current().peers().len(), 1);
    }

    #[test]
    fn peers_that_stay_keep_their_state() {
        for other in ["10.1.7.0/24", "10.1.63.0/26"] {
            let peers = |public_ip| vec![peer(other, "192.168.199.7"), peer("10.1.63.0/24", public_ip)];
            let shared = SharedTable::new(table(peers("192.168.199.238")));
            let mtu = |public_ip: &str| {
                let table = shared.current();
                table.state(subnets("10.1.63.0/24", ""), address(public_ip).into()).and_then(|s| s.path_mtu())
            };
            shared.current().at("192.168.199.238".parse().unwrap()).unwrap().state.set_path_mtu(Some(1400));
            let publish = |peers| shared.publish(local(Format::FlannelUdp), peers);
            publish(peers("192.168.199.238").into_iter().rev().collect());
            assert_eq!(mtu("192.168.199.238"), Some(1400), "beside {other}");
            publish(peers("192.168.199.239"));
            assert_eq!((mtu("192.168.199.238"), mtu("192.168.199.239")), (None, None), "another node");
        }
    }

    /// Where packets of each version to a peer go, from a node and to a peer with these public addresses.
    fn ways(ours: [&str; 2], theirs: [&str; 2]) -> [String; 2] {
        let local = Local { public: addresses(ours[0], ours[1]), ..local(Format::FlannelUdp) };
        let peer =
            Peer { public: addresses(theirs[0], theirs[1]), ..peer("10.1.63.0/24", "192.168.199.238") };
        let table = PeerTable::new(local, vec![peer]);
        ["10.1.63.2", "fd00:0:0:63::2"].map(|dst| match table.route(address(dst)) {
            Route::Peer(hop) => hop.to().to_string(),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn each_version_is_carried_by_its_like_where_both_nodes_have_it() {
        const V4: [&str; 2] = ["192.168.199.238", ""];
        const V6: [&str; 2] = ["", "2001:db8::238"];
        const BOTH: [&str; 2] = ["192.168.199.238", "2001:db8::238"];
        let (v4, v6) = ("192.168.199.238:8472", "[2001:db8::238]:8472");
        for (ours, theirs, expected) in [
            (V4, V4, [v4, v4]),
            (V4, BOTH, [v4, v4]),
            (BOTH, V4, [v4, v4]),
            (BOTH, BOTH, [v4, v6]),
            (BOTH, V6, [v6, v6]),
            (V6, BOTH, [v6, v6]),
            (V6, V6, [v6, v6]),
        ] {
            assert_eq!(ways(ours, theirs), expected, "{ours:?} to {theirs:?}");
        }
    }

    #[test]
    fn frames_go_to_the_device_of_the_family_that_carries_them() {
        let macs = [MacAddr([2, 0, 0, 0, 0, 4]), MacAddr([2, 0, 0, 0, 0, 6])];
        let ours = MacAddr([2, 0, 0, 0, 0, 1]);
        let public = addresses("192.168.199.238", "2001:db8::238");
        for (own, expected) in [
            (addresses("192.168.1.12", "2001:db8::12"), macs),
            (addresses("192.168.1.12", ""), [macs[0]; 2]),
            (addresses("", "2001:db8::12"), [macs[1]; 2]),
        ] {
            let local = Local { public: own, ..local(Format::Vxlan { vni: 7, vtep_mac: ours }) };
            let vtep_macs = Some(Families::Both(macs[0], macs[1]));
            let peer = Peer { public, vtep_macs, ..peer("10.1.63.0/24", "192.168.199.238") };
            let table = PeerTable::new(local, vec![peer]);
            for (dst, version, mac) in
                [("10.1.63.2", Version::V4, expected[0]), ("fd00:0:0:63::2", Version::V6, expected[1])]
            {
                let Route::Peer(hop) = table.route(address(dst)) else { panic!("no route") };
                assert_eq!(hop.header(), vxlan::header(version, 7, ours, mac), "{dst} from {own}");
            }
        }
    }

    #[test]
    fn a_peer_is_known_by_each_of_its_addresses() {
        let local = Local { public: addresses("192.168.1.12", "2001:db8::12"), ..local(Format::FlannelUdp) };
        let both = Peer {
            public: addresses("192.168.199.7", "2001:db8::7"),
            ..peer("10.1.7.0/24", "192.168.199.7")
        };
        let table = PeerTable::new(local, vec![peer("10.1.63.0/24", "192.168.199.238"), both]);
        for outer in ["192.168.199.7", "2001:db8::7"].map(address) {
            for inner in ["10.1.7.2", "fd00:0:0:7::2"].map(address).into_iter().chain([outer]) {
                assert!(matches!(table.origin(outer, inner), Origin::Owner(_)), "{inner} from {outer}");
            }
            assert!(matches!(table.origin(outer, address("10.1.63.2")), Origin::Peer(_)), "{outer}");
            assert!(table.is_tunnel_end(outer) && table.is_tunnel(address("2001:db8::12"), outer));
            let found = table.find(subnets("10.1.7.0/24", ""), outer.into()).unwrap();
            assert!(Arc::ptr_eq(&found.state, &table.at(outer).unwrap().state));
        }
        assert!(table.find(subnets("10.1.7.0/24", ""), address("2001:db8::8").into()).is_none());
    }

    #[test]
    fn a_network_of_ipv6_alone_has_no_ipv4() {
        let v6 = |subnet: &str, public: &str| Peer {
            subnets: subnets("", subnet),
            public: address(public).into(),
            vtep_macs: None,
        };
        let local = Local {
            network: subnets("", "fd00::/48"),
            subnets: subnets("", "fd00:0:0:9::/64"),
            overlay_addresses: addresses("", "fd00:0:0:9::"),
            public: addresses("", "2001:db8::12"),
            ..local(Format::FlannelUdp)
        };
        let peers = vec![
            peer("10.1.64.0/24", "192.168.199.64"),
            v6("fd00:0:0:7::/64", "2001:db8::7"),
            Peer { subnets: subnets("10.1.8.0/24", ""), ..v6("fd00:0:0:8::/64", "2001:db8::8") },
        ];
        let table = PeerTable::new(local, peers);
        assert!(!table.carries(Version::V4) && table.carries(Version::V6));
        assert!(matches!(table.route(address("10.1.64.2")), Route::None));
        assert!(matches!(table.route(address("fd00:0:0:9::2")), Route::Own));
        let Route::Peer(hop) = table.route(address("fd00:0:0:7::2")) else { panic!("no route") };
        assert_eq!(hop.to().to_string(), "[2001:db8::7]:8472");
        assert!(matches!(table.origin(address("2001:db8::7"), address("fd00:0:0:7::2")), Origin::Owner(_)));
        assert!(table.is_own(address("fd00:0:0:9::2")) && !table.is_own(address("10.1.9.2")));
        assert!(table.is_own(address("192.168.1.12")), "the host has it all the same");
        let ends: Vec<_> = table.hops().map(|hop| hop.address.to_string()).collect();
        assert_eq!(ends, ["192.168.199.64", "2001:db8::7", "2001:db8::8"], "in the order of the peers");
    }

    #[test]
    fn a_peer_that_gains_a_family_is_the_same() {
        let v4 = Peer { subnets: subnets("10.1.63.0/24", ""), ..peer("10.1.63.0/24", "192.168.199.238") };
        let both = Peer {
            public: addresses("192.168.199.238", "2001:db8::238"),
            ..peer("10.1.63.0/24", "192.168.199.238")
        };
        for (before, after) in [(&v4, &both), (&both, &v4)] {
            let first = table(vec![before.clone()]);
            let second = first.next(local(Format::FlannelUdp), vec![after.clone()]);
            let state = |table: &PeerTable| Arc::clone(&table.hops().next().unwrap().state);
            assert!(Arc::ptr_eq(&state(&first), &state(&second)), "{after:?}");
        }
    }
}
