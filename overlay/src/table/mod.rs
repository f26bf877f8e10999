//! Who owns which subnet: published whole by one writer, read by the workers without lock or wait.

mod routes;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use ipnet::Ipv4Net;

use crate::MacAddr;
use crate::peer_state::PeerState;
use crate::wire::{Format, vxlan};
use routes::Routes;

/// This node, as the forwarding loops must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// The subnet this node has leased.
    pub subnet: Ipv4Net,
    /// The overlay device's address: ICMP errors come from it.
    pub overlay_address: Ipv4Addr,
    /// Every address of this host. None is a valid source of a packet from the wire.
    pub addresses: Vec<Ipv4Addr>,
    /// The largest inner packet in bytes.
    pub mtu: u32,
    /// How inner packets stand on the wire.
    pub format: Format,
    /// The UDP port that every node listens on.
    pub port: u16,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The subnet it has leased.
    pub subnet: Ipv4Net,
    /// Its address on the underlay. Several peers can share one, behind a NAT.
    pub public_ip: Ipv4Addr,
    /// What frames to it are addressed to; `None` where the format has no frames.
    pub vtep_mac: Option<MacAddr>,
}

/// Where a packet to a peer goes and what stands in front of it.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The peer's end of the tunnel.
    pub to: SocketAddrV4,
    /// What is known of the peer beside its lease.
    pub state: Arc<PeerState>,
    header: [u8; vxlan::HEADER_LEN],
    header_len: usize,
}

impl Hop {
    /// The encapsulation that goes between the outer UDP header and the inner packet.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
    }
}

/// What the table says about a destination.
#[derive(Debug)]
pub enum Route<'a> {
    /// A peer has it.
    Peer(&'a Hop),
    /// It is in this node's own subnet.
    Own,
    /// Nobody has it.
    None,
}

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
    /// Sorted: a host with services by IPVS has thousands.
    own_addresses: Box<[Ipv4Addr]>,
    peers: Vec<Peer>,
    hops: Vec<Hop>,
    routes: Routes,
    /// Sorted, each once, with the first peer that has it.
    public_ips: Box<[(Ipv4Addr, u32)]>,
}

impl PeerTable {
    /// The table in which `peers` are reached from `local`. Of two peers with the same subnet,
    /// the later one counts; subnets may contain one another.
    #[must_use]
    pub fn new(local: Local, peers: Vec<Peer>) -> Self {
        Self::with_states(local, peers, |_| Arc::default())
    }

    /// The table that follows this one. Peers that were there under the same subnet and public address keep
    /// their state.
    #[must_use]
    pub fn next(&self, local: Local, peers: Vec<Peer>) -> Self {
        Self::with_states(local, peers, |peer| {
            self.state(peer.subnet, peer.public_ip).map_or_else(Arc::default, Arc::clone)
        })
    }

    fn with_states(local: Local, peers: Vec<Peer>, state: impl Fn(&Peer) -> Arc<PeerState>) -> Self {
        let hops = peers.iter().map(|peer| hop(&local, peer, state(peer))).collect();
        let mut public_ips: Vec<_> = (0..).zip(&peers).map(|(i, peer)| (peer.public_ip, i)).collect();
        public_ips.sort_unstable();
        public_ips.dedup_by_key(|(address, _)| *address);
        let routes = Routes::new(local.subnet, peers.iter().map(|peer| peer.subnet));
        let mut own_addresses = local.addresses.clone();
        own_addresses.sort_unstable();
        let own_addresses = own_addresses.into();
        Self { local, own_addresses, peers, hops, routes, public_ips: public_ips.into() }
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

    /// Which way `dst` goes.
    #[must_use]
    pub fn route(&self, dst: Ipv4Addr) -> Route<'_> {
        match self.routes.lookup(dst) {
            routes::Target::None => Route::None,
            routes::Target::Own => Route::Own,
            routes::Target::Peer(index) => Route::Peer(&self.hops[index]),
        }
    }

    /// Whose a packet is that arrives from `outer` with the source `inner`.
    #[must_use]
    pub fn origin(&self, outer: Ipv4Addr, inner: Ipv4Addr) -> Origin<'_> {
        match self.routes.lookup(inner) {
            routes::Target::Peer(index) if *self.hops[index].to.ip() == outer => {
                Origin::Owner(&self.hops[index])
            }
            _ => match self.at(outer) {
                Some(hop) if inner == outer => Origin::Owner(hop),
                Some(hop) => Origin::Peer(hop),
                None => Origin::Unknown,
            },
        }
    }

    /// Which way the packets of each peer go, in the order of [`peers`](Self::peers).
    pub fn hops(&self) -> impl ExactSizeIterator<Item = &Hop> {
        self.hops.iter()
    }

    /// The peer with the public address `outer`; the first one, if several share it.
    #[must_use]
    pub fn at(&self, outer: Ipv4Addr) -> Option<&Hop> {
        let found = self.public_ips.binary_search_by_key(&outer, |(address, _)| *address).ok()?;
        Some(&self.hops[self.public_ips[found].1 as usize])
    }

    /// What is known of the peer with this subnet and public address, beside its lease.
    #[must_use]
    pub fn state(&self, subnet: Ipv4Net, public_ip: Ipv4Addr) -> Option<&Arc<PeerState>> {
        let hop = &self.hops[self.routes.exact(subnet)?];
        (*hop.to.ip() == public_ip).then_some(&hop.state)
    }

    /// Whether `address` is this host's own or in its own subnet.
    #[must_use]
    pub fn is_own(&self, address: Ipv4Addr) -> bool {
        matches!(self.routes.lookup(address), routes::Target::Own)
            || self.own_addresses.binary_search(&address).is_ok()
    }
}

fn hop(local: &Local, peer: &Peer, state: Arc<PeerState>) -> Hop {
    let to = SocketAddrV4::new(peer.public_ip, local.port);
    match (local.format, peer.vtep_mac) {
        (Format::Vxlan { vni, vtep_mac }, Some(dst)) => {
            Hop { to, state, header: vxlan::header(vni, vtep_mac, dst), header_len: vxlan::HEADER_LEN }
        }
        _ => Hop { to, state, header: [0; vxlan::HEADER_LEN], header_len: 0 },
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
    use super::*;

    pub(crate) fn local(format: Format) -> Local {
        Local {
            network: "10.1.0.0/16".parse().unwrap(),
            subnet: "10.1.9.0/24".parse().unwrap(),
            overlay_address: Ipv4Addr::new(10, 1, 9, 0),
            addresses: vec![Ipv4Addr::new(192, 168, 1, 12), Ipv4Addr::new(10, 1, 9, 0)],
            mtu: 1450,
            format,
            port: 8472,
        }
    }

    pub(crate) fn peer(subnet: &str, public_ip: &str) -> Peer {
        Peer {
            subnet: subnet.parse().unwrap(),
            public_ip: public_ip.parse().unwrap(),
            vtep_mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
        }
    }

    fn table(peers: Vec<Peer>) -> PeerTable {
        PeerTable::new(local(Format::FlannelUdp), peers)
    }

    fn address(text: &str) -> Ipv4Addr {
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
    }

    #[test]
    fn sources_belong_to_peers_by_subnet_or_public_address() {
        let nat = "192.168.199.1";
        let table = table(vec![
            peer("10.1.63.0/24", nat),
            peer("10.1.64.0/24", nat),
            peer("10.1.7.0/24", "192.168.199.7"),
        ]);
        let owns = |outer, inner| matches!(table.origin(address(outer), address(inner)), Origin::Owner(_));
        assert!(owns(nat, "10.1.63.2"));
        assert!(owns(nat, "10.1.64.2"), "two peers can share an address");
        assert!(owns(nat, nat));
        assert!(!owns(nat, "10.1.7.2"));
        assert!(!owns(nat, "192.168.199.7"));
        assert!(!owns("192.168.199.8", "192.168.199.8"), "not a peer");
        assert!(!owns(nat, "10.1.9.3"), "our own");
        let origin = |outer, inner| table.origin(address(outer), address(inner));
        assert!(matches!(origin(nat, "10.1.7.2"), Origin::Peer(hop) if hop.to.ip().to_string() == nat));
        assert!(matches!(origin("192.168.199.8", "10.1.7.2"), Origin::Unknown));
        // Who it is among several is told by the subnet, and else the first.
        let state = |subnet: &str| table.state(subnet.parse().unwrap(), address(nat)).unwrap();
        for (inner, subnet) in [("10.1.64.2", "10.1.64.0/24"), (nat, "10.1.63.0/24")] {
            let Origin::Owner(hop) = origin(nat, inner) else { panic!("{inner}") };
            assert!(Arc::ptr_eq(&hop.state, state(subnet)), "{inner}");
        }
    }

    #[test]
    fn own_addresses_are_recognised() {
        let table = table(vec![peer("10.1.63.0/24", "192.168.199.238")]);
        assert!(table.is_own(address("10.1.9.77")));
        assert!(table.is_own(address("192.168.1.12")));
        assert!(!table.is_own(address("10.1.63.1")));
    }

    #[test]
    fn a_vxlan_hop_carries_the_frames_headers() {
        let ours = MacAddr([2, 0, 0, 0, 0, 1]);
        let format = Format::Vxlan { vni: 7, vtep_mac: ours };
        let peer = peer("10.1.63.0/24", "192.168.199.238");
        let theirs = peer.vtep_mac.unwrap();
        let table = PeerTable::new(local(format), vec![peer]);
        let Route::Peer(hop) = table.route(address("10.1.63.2")) else { panic!("no route") };
        assert_eq!(hop.header(), vxlan::header(7, ours, theirs));
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
            let mtu = |public_ip| {
                let table = shared.current();
                table.state("10.1.63.0/24".parse().unwrap(), address(public_ip)).and_then(|s| s.path_mtu())
            };
            shared.current().at(address("192.168.199.238")).unwrap().state.set_path_mtu(Some(1400));
            let publish = |peers| shared.publish(local(Format::FlannelUdp), peers);
            publish(peers("192.168.199.238").into_iter().rev().collect());
            assert_eq!(mtu("192.168.199.238"), Some(1400), "beside {other}");
            publish(peers("192.168.199.239"));
            assert_eq!((mtu("192.168.199.238"), mtu("192.168.199.239")), (None, None), "another node");
        }
    }
}
