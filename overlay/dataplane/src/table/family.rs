//! The destinations of one version of IP: whose they are.

use std::fmt::Debug;

use prefix_trie::Prefix;

use super::hop::{Hop, Route};
use super::routes::{Routes, Target};

/// The owners of addresses, which are numbers here, and the way to them.
#[derive(Debug)]
pub struct Family<N: Prefix<R: Debug>> {
    routes: Routes<N>,
    hops: Vec<Hop>,
}

impl<N: Prefix<R: Debug> + Copy> Family<N> {
    /// The family in which this node's pods have `own_subnet`, and others what `peers` says.
    pub fn new(own_subnet: N, peers: impl Iterator<Item = (N, Hop)>) -> Self {
        let (subnets, hops): (Vec<_>, Vec<_>) = peers.unzip();
        Self { routes: Routes::new(own_subnet, subnets.into_iter()), hops }
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

    /// Whether `address` is in this host's own subnet.
    #[inline]
    pub fn is_own(&self, address: N::R) -> bool {
        self.routes.lookup(address) == Target::Own
    }
}
