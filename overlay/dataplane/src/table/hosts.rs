//! The addresses that hosts have in one version of IP.

/// This host's, and the peers' on the underlay. Addresses are numbers here.
#[derive(Debug)]
pub struct Hosts<A> {
    /// Sorted: a host with services by IPVS has thousands.
    own: Box<[A]>,
    /// Sorted, each once, with the first peer that has it.
    peers: Box<[(A, u32)]>,
}

impl<A: Ord + Copy> Hosts<A> {
    /// This host has the addresses `own`; `peers` have theirs, each with its index.
    pub fn new(own: impl Iterator<Item = A>, peers: impl Iterator<Item = (A, u32)>) -> Self {
        let mut own: Box<[_]> = own.collect();
        own.sort_unstable();
        let mut peers: Vec<_> = peers.collect();
        peers.sort_unstable();
        peers.dedup_by_key(|(address, _)| *address);
        Self { own, peers: peers.into() }
    }

    /// Whether this host has `address`.
    #[inline]
    pub fn has(&self, address: A) -> bool {
        self.own.binary_search(&address).is_ok()
    }

    /// The peer with `address`; the first one, if several share it.
    #[inline]
    pub fn at(&self, address: A) -> Option<usize> {
        let found = self.peers.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        Some(self.peers[found].1 as usize)
    }
}
