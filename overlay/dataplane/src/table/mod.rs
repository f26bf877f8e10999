//! Who owns which subnet: published whole by one writer, read by the workers without lock or wait.

mod family;
mod hop;
mod node;
mod routes;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use family::Family;
pub use hop::{Hop, Route};
use ipnet::{Ipv4Net, Ipv6Net};
pub use node::{Local, LocalV6, Peer};
use overlay_wire::ip::Version;

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

/// One complete state of the network. Immutable: a change is a new table.
#[derive(Debug)]
pub struct PeerTable {
    local: Local,
    peers: Vec<Peer>,
    v4: Family<Ipv4Net>,
    v6: Option<Family<Ipv6Net>>,
    /// Sorted, each once, with the first peer that has it.
    public_ips: Box<[(Ipv4Addr, u32)]>,
    no_nodes: Arc<ArcSwap<BTreeSet<IpAddr>>>,
}

impl PeerTable {
    /// The table in which `peers` are reached from `local`. Of two peers with the same subnet,
    /// the later one counts; subnets may contain one another.
    #[must_use]
    pub fn new(local: Local, peers: Vec<Peer>) -> Self {
        Self::with_states(local, peers, Arc::default(), |_| Arc::default())
    }

    /// The table that follows this one. Peers that were there under the same subnet and public address keep
    /// their state.
    #[must_use]
    pub fn next(&self, local: Local, peers: Vec<Peer>) -> Self {
        Self::with_states(local, peers, Arc::clone(&self.no_nodes), |peer| {
            self.state(peer.subnet, peer.public_ip).map_or_else(Arc::default, Arc::clone)
        })
    }

    fn with_states(
        local: Local,
        peers: Vec<Peer>,
        no_nodes: Arc<ArcSwap<BTreeSet<IpAddr>>>,
        state: impl Fn(&Peer) -> Arc<PeerState>,
    ) -> Self {
        let subnets =
            peers.iter().map(|peer| (peer.subnet, Hop::new(&local, peer, Version::V4, state(peer))));
        let addresses = local.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(u32::from(*address)),
            IpAddr::V6(_) => None,
        });
        let mut v4 = Family::new(local.subnet, addresses, subnets);
        for peer in &peers {
            if let Some(hop) = v4.route_mut(peer.public_ip.into()) {
                hop.holds_tunnel_end = true;
            }
        }
        let v6 = local.v6.map(|v6| {
            let subnets = peers.iter().zip(v4.hops()).filter_map(|(peer, v4)| {
                Some((peer.subnet_v6?, Hop::new(&local, peer, Version::V6, Arc::clone(&v4.state))))
            });
            let addresses = local.addresses.iter().filter_map(|address| match address {
                IpAddr::V6(address) => Some(u128::from(*address)),
                IpAddr::V4(_) => None,
            });
            Family::new(v6.subnet, addresses, subnets)
        });
        let mut public_ips: Vec<_> = (0..).zip(&peers).map(|(i, peer)| (peer.public_ip, i)).collect();
        public_ips.sort_unstable();
        public_ips.dedup_by_key(|(address, _)| *address);
        Self { local, peers, v4, v6, public_ips: public_ips.into(), no_nodes }
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
    #[must_use]
    pub fn carries(&self, version: Version) -> bool {
        version == Version::V4 || self.v6.is_some()
    }

    /// Which way `dst` goes.
    #[inline]
    #[must_use]
    pub fn route(&self, dst: IpAddr) -> Route<'_> {
        match (dst, &self.v6) {
            (IpAddr::V4(dst), _) => self.v4.route(dst.into()),
            (IpAddr::V6(dst), Some(v6)) => v6.route(dst.into()),
            (IpAddr::V6(_), None) => Route::None,
        }
    }

    /// Whose a packet is that arrives from `outer` with the source `inner`.
    #[must_use]
    pub fn origin(&self, outer: IpAddr, inner: IpAddr) -> Origin<'_> {
        match self.route(inner) {
            Route::Peer(hop) if hop.to.ip() == outer => Origin::Owner(hop),
            _ => match self.at(outer) {
                Some(hop) if inner == outer => Origin::Owner(hop),
                Some(hop) => Origin::Peer(hop),
                None => Origin::Unknown,
            },
        }
    }

    /// Which way the packets of each peer go, in the order of [`peers`](Self::peers).
    pub fn hops(&self) -> impl ExactSizeIterator<Item = &Hop> {
        self.v4.hops().iter()
    }

    /// The peer with the public address `outer`; the first one, if several share it.
    #[must_use]
    pub fn at(&self, outer: IpAddr) -> Option<&Hop> {
        let IpAddr::V4(outer) = outer else { return None };
        let found = self.public_ips.binary_search_by_key(&outer, |(address, _)| *address).ok()?;
        Some(&self.v4.hops()[self.public_ips[found].1 as usize])
    }

    /// What is known of the peer with this subnet and public address, beside its lease.
    #[must_use]
    pub fn state(&self, subnet: Ipv4Net, public_ip: Ipv4Addr) -> Option<&Arc<PeerState>> {
        let hop = self.v4.exact(subnet)?;
        (hop.to.ip() == public_ip).then_some(&hop.state)
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
        match (address, &self.v6) {
            (IpAddr::V4(v4), _) => self.at(address).is_some() || self.v4.has_address(v4.into()),
            (IpAddr::V6(address), Some(v6)) => v6.has_address(address.into()),
            (IpAddr::V6(_), None) => false,
        }
    }

    /// Whether `address` is this host's own or in its own subnet.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        match (address, &self.v6) {
            (IpAddr::V4(address), _) => self.v4.is_own(address.into()),
            (IpAddr::V6(address), Some(v6)) => v6.is_own(address.into()),
            (IpAddr::V6(_), None) => false,
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
    use overlay_wire::{Format, MacAddr, vxlan};

    use super::*;
    use crate::peer_state::PeerFlag;

    pub(crate) fn local(format: Format) -> Local {
        Local {
            network: "10.1.0.0/16".parse().unwrap(),
            subnet: "10.1.9.0/24".parse().unwrap(),
            overlay_address: Ipv4Addr::new(10, 1, 9, 0),
            v6: Some(LocalV6 {
                subnet: "fd00:0:0:9::/64".parse().unwrap(),
                overlay_address: "fd00:0:0:9::".parse().unwrap(),
            }),
            addresses: ["192.168.1.12", "10.1.9.0", "2001:db8::12", "fd00:0:0:9::"].map(address).into(),
            mtu: 1450,
            format,
            port: 8472,
        }
    }

    /// A peer. The third number of its IPv4 subnet stands in its IPv6 subnet, too.
    pub(crate) fn peer(subnet: &str, public_ip: &str) -> Peer {
        let subnet: Ipv4Net = subnet.parse().unwrap();
        let third = subnet.network().octets()[2];
        Peer {
            subnet,
            subnet_v6: Some(format!("fd00:0:0:{third}::/64").parse().unwrap()),
            public_ip: public_ip.parse().unwrap(),
            vtep_mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
        }
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
            Route::Peer(hop) => hop.to.to_string(),
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
        assert!(matches!(origin(nat, "10.1.7.2"), Origin::Peer(hop) if hop.to.ip().to_string() == nat));
        assert!(matches!(origin("192.168.199.8", "10.1.7.2"), Origin::Unknown));
        // Who it is among several is told by the subnet, and else the first.
        let state = |subnet: &str| table.state(subnet.parse().unwrap(), nat.parse().unwrap()).unwrap();
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
        let mut thief = peer("10.1.9.128/25", "192.168.199.66");
        thief.subnet_v6 = Some("fd00:0:0:9:8000::/65".parse().unwrap());
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
        let local = Local { v6: None, ..local(Format::FlannelUdp) };
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
        let theirs = peer.vtep_mac.unwrap();
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
                table
                    .state("10.1.63.0/24".parse().unwrap(), public_ip.parse().unwrap())
                    .and_then(|s| s.path_mtu())
            };
            shared.current().at("192.168.199.238".parse().unwrap()).unwrap().state.set_path_mtu(Some(1400));
            let publish = |peers| shared.publish(local(Format::FlannelUdp), peers);
            publish(peers("192.168.199.238").into_iter().rev().collect());
            assert_eq!(mtu("192.168.199.238"), Some(1400), "beside {other}");
            publish(peers("192.168.199.239"));
            assert_eq!((mtu("192.168.199.238"), mtu("192.168.199.239")), (None, None), "another node");
        }
    }
}
