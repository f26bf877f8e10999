//! From an address to the owner of its subnet.
//!
//! Nearly always all leases of a network have one length; then the owner stands in an array, at
//! the position that the subnet has among its neighbours. Any other mix of lengths is looked up
//! in a trie by longest prefix.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;

/// Where an address belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To nobody.
    None,
    /// To this node.
    Own,
    /// To the peer of that index.
    Peer(usize),
}

impl Target {
    fn peer(self) -> Option<usize> {
        match self {
            Self::Peer(index) => Some(index),
            Self::Own | Self::None => None,
        }
    }
}

/// Owners by subnet.
#[derive(Debug)]
pub enum Routes {
    /// All subnets have one length.
    Uniform {
        /// How far an address is shifted right to become the number of its subnet.
        shift: u32,
        /// The number of the first subnet in `slots`.
        first: u32,
        /// What each subnet number from `first` on belongs to.
        slots: Box<[Slot]>,
    },
    /// Anything else.
    Mixed(Box<PrefixMap<Ipv4Net, Slot>>),
}

/// A [`Target`] in four bytes, to keep the array small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    const NONE: Self = Self(u32::MAX);
    const OWN: Self = Self(u32::MAX - 1);

    fn target(self) -> Target {
        match self {
            Self::NONE => Target::None,
            Self::OWN => Target::Own,
            Self(index) => Target::Peer(index as usize),
        }
    }
}

impl Routes {
    /// The routes to `own`, and to `peers` by their index. Of two equal subnets the later counts,
    /// and `own` above all.
    pub fn new(own: Ipv4Net, peers: impl Iterator<Item = Ipv4Net>) -> Self {
        let entries: Vec<(Ipv4Net, Slot)> = peers
            .enumerate()
            .map(|(index, subnet)| (subnet.trunc(), Slot(index as u32)))
            .chain([(own.trunc(), Slot::OWN)])
            .collect();
        Self::uniform(own.prefix_len(), &entries)
            .unwrap_or_else(|| Self::Mixed(Box::new(entries.into_iter().collect())))
    }

    fn uniform(prefix_len: u8, entries: &[(Ipv4Net, Slot)]) -> Option<Self> {
        if prefix_len == 0 || entries.iter().any(|(subnet, _)| subnet.prefix_len() != prefix_len) {
            return None;
        }
        let shift = 32 - u32::from(prefix_len);
        let number = |subnet: &Ipv4Net| u32::from(subnet.network()) >> shift;
        let first = entries.iter().map(|(subnet, _)| number(subnet)).min()?;
        let last = entries.iter().map(|(subnet, _)| number(subnet)).max()?;
        let len = (last - first) as usize + 1;
        if len > MAX_SLOTS {
            return None;
        }
        let mut slots = vec![Slot::NONE; len].into_boxed_slice();
        for (subnet, slot) in entries {
            slots[(number(subnet) - first) as usize] = *slot;
        }
        Some(Self::Uniform { shift, first, slots })
    }

    /// The peer that has just `subnet`.
    pub fn exact(&self, subnet: Ipv4Net) -> Option<usize> {
        let slot = match self {
            Self::Uniform { shift, .. } if u32::from(subnet.prefix_len()) != 32 - shift => None,
            Self::Uniform { .. } => return self.lookup(subnet.network()).peer(),
            Self::Mixed(trie) => trie.get(&subnet.trunc()).copied(),
        };
        slot?.target().peer()
    }

    /// Whose `address` is.
    #[inline]
    pub fn lookup(&self, address: Ipv4Addr) -> Target {
        let slot = match self {
            Self::Uniform { shift, first, slots } => {
                let index = (u32::from(address) >> shift).wrapping_sub(*first);
                slots.get(index as usize).copied()
            }
            Self::Mixed(trie) => trie.get_lpm(&Ipv4Net::from(address)).map(|(_, slot)| *slot),
        };
        slot.unwrap_or(Slot::NONE).target()
    }
}

/// At most 4 MiB of array, enough for every /24 of a /4 or every /30 of a /10.
const MAX_SLOTS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn routes(own: &str, peers: &[&str]) -> Routes {
        Routes::new(net(own), peers.iter().map(|peer| net(peer)))
    }

    fn lookup(routes: &Routes, address: &str) -> Target {
        routes.lookup(address.parse().unwrap())
    }

    #[test]
    fn one_length_is_an_array() {
        let routes = routes("10.1.9.0/24", &["10.1.63.0/24", "10.1.7.0/24"]);
        assert!(matches!(&routes, Routes::Uniform { slots, .. } if slots.len() == 57));
        assert_eq!(lookup(&routes, "10.1.63.255"), Target::Peer(0));
        assert_eq!(lookup(&routes, "10.1.7.0"), Target::Peer(1));
        assert_eq!(lookup(&routes, "10.1.9.1"), Target::Own);
        assert_eq!(lookup(&routes, "10.1.6.255"), Target::None);
        assert_eq!(lookup(&routes, "10.1.64.0"), Target::None);
        assert_eq!(lookup(&routes, "0.0.0.0"), Target::None);
        assert_eq!(lookup(&routes, "255.255.255.255"), Target::None);
    }

    #[test]
    fn mixed_lengths_go_by_the_longest_prefix() {
        let routes = routes("10.1.9.0/24", &["10.1.0.0/16", "10.1.63.0/26", "10.1.63.0/24"]);
        assert!(matches!(routes, Routes::Mixed(_)));
        assert_eq!(lookup(&routes, "10.1.63.1"), Target::Peer(1));
        assert_eq!(lookup(&routes, "10.1.63.64"), Target::Peer(2));
        assert_eq!(lookup(&routes, "10.1.9.1"), Target::Own);
        assert_eq!(lookup(&routes, "10.1.8.1"), Target::Peer(0));
        assert_eq!(lookup(&routes, "10.2.0.1"), Target::None);
    }

    #[test]
    fn a_subnet_is_found_only_as_it_is() {
        for peers in [&["10.1.63.0/24", "10.1.7.0/24"][..], &["10.1.63.0/24", "10.1.63.0/26"]] {
            let routes = routes("10.1.9.0/24", peers);
            assert_eq!(routes.exact(net("10.1.63.0/24")), Some(0));
            assert_eq!(routes.exact(net(peers[1])), Some(1));
            for none in ["10.1.9.0/24", "10.1.63.0/25", "10.1.8.0/24", "10.1.62.0/23", "0.0.0.0/0"] {
                assert_eq!(routes.exact(net(none)), None, "{none}");
            }
        }
    }

    #[test]
    fn far_apart_subnets_do_not_make_a_huge_array() {
        let routes = routes("10.0.0.0/30", &["203.0.113.0/30"]);
        assert!(matches!(routes, Routes::Mixed(_)));
        assert_eq!(lookup(&routes, "203.0.113.3"), Target::Peer(0));
    }

    #[test]
    fn the_own_subnet_wins_over_a_peer_with_the_same() {
        let routes = routes("10.1.9.0/24", &["10.1.9.0/24"]);
        assert_eq!(lookup(&routes, "10.1.9.1"), Target::Own);
    }

    proptest! {
        /// Both forms agree with a search through the list.
        #[test]
        fn lookup_equals_a_linear_search(
            peers in prop::collection::vec((any::<u16>(), prop_oneof![Just(24u8), 14u8..=30]), 0..40),
            uniform in any::<bool>(),
            addresses in prop::collection::vec(any::<u16>(), 50),
        ) {
            let subnet = |low: u16, len: u8| {
                let address = Ipv4Addr::from(0x0a01_0000 | u32::from(low));
                Ipv4Net::new(address, if uniform { 24 } else { len }).unwrap().trunc()
            };
            let own = net("10.1.9.0/24");
            let peers: Vec<_> = peers.iter().map(|(low, len)| subnet(*low, *len)).collect();
            let routes = Routes::new(own, peers.iter().copied());
            for low in addresses {
                let address = Ipv4Addr::from(0x0a01_0000 | u32::from(low));
                let expected = peers
                    .iter()
                    .enumerate()
                    .map(|(index, subnet)| (*subnet, Target::Peer(index)))
                    .chain([(own, Target::Own)])
                    .filter(|(subnet, _)| subnet.contains(&address))
                    .max_by_key(|(subnet, _)| subnet.prefix_len())
                    .map_or(Target::None, |(_, target)| target);
                prop_assert_eq!(routes.lookup(address), expected);
            }
        }
    }
}
