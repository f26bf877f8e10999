//! The addresses of one version of IP: whose they are.

use prefix_trie::Prefix;

use super::hop::{Hop, Route};
use super::routes::{Routes, Target};

/// The owners of addresses, which are numbers here, and the way to them.
#[derive(Debug)]
pub struct Family<N: Prefix> {
    routes: Routes<N>,
    hops: Vec<Hop>,
    /// Sorted: a host with services by IPVS has thousands.
    own_addresses: Box<[N::R]>,
}

impl<N: Prefix + Copy> Family<N> {
    /// The family in which this node has `own_addresses`, its pods `own_subnet`, and others what
    /// `peers` says.
    pub fn new(
        own_subnet: N,
        own_addresses: impl Iterator<Item = N::R>,
        peers: impl Iterator<Item = (N, Hop)>,
    ) -> Self {
        let mut own_addresses: Box<[_]> = own_addresses.collect();
        own_addresses.sort_unstable();
        let (subnets, hops): (Vec<_>, Vec<_>) = peers.unzip();
        Self { routes: Routes::new(own_subnet, subnets.into_iter()), hops, own_addresses }
    }

    /// Which way `dst` goes.
    #[inline]
    pub fn route(&self, dst: N::R) -> Route<'_> {
        match self.routes.lookup(dst) {
            Target::None => Route::None,
            Target::Own => Route::Own,
            Target::Peer(index) => Route::Peer(&self.hops[index]),
        }
    }

    /// The way to the peer that has `dst`.
    pub fn route_mut(&mut self, dst: N::R) -> Option<&mut Hop> {
        match self.routes.lookup(dst) {
            Target::Peer(index) => self.hops.get_mut(index),
            Target::Own | Target::None => None,
        }
    }

    /// The way to each of the peers, in their order.
    pub fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// The way to the peer with just this `subnet`.
    pub fn exact(&self, subnet: N) -> Option<&Hop> {
        self.routes.exact(subnet).map(|index| &self.hops[index])
    }

    /// Whether `address` is this host's own or in its own subnet.
    #[inline]
    pub fn is_own(&self, address: N::R) -> bool {
        self.routes.lookup(address) == Target::Own || self.has_address(address)
    }

    /// Whether this host has `address`.
    #[inline]
    pub fn has_address(&self, address: N::R) -> bool {
        self.own_addresses.binary_search(&address).is_ok()
    }
}
