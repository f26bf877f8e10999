//! From an address to the owner of its subnet.
//!
//! Nearly always all leases of a network have one length; then the owner stands in an array, at
//! the position that the subnet has among its neighbours. Any other mix of lengths is looked up
//! in a trie by longest prefix.

use num_traits::{CheckedSub, ToPrimitive};
use prefix_trie::{Prefix, PrefixMap};

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
pub enum Routes<N: Prefix> {
    /// All subnets have one length.
    Uniform {
        /// How far an address is shifted right to become the number of its subnet.
        shift: usize,
        /// The number of the first subnet in `slots`.
        first: N::R,
        /// What each subnet number from `first` on belongs to.
        slots: Box<[Slot]>,
    },
    /// Anything else.
    Mixed(Box<PrefixMap<N, Slot>>),
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

impl<N: Prefix + Copy> Routes<N> {
    /// The routes to `own`, and to `peers` by their index. Of two equal subnets the later counts. What lies
    /// in `own` is this node's, whatever the peers say: a lease of a part of it is a mistake, or an attack.
    pub fn new(own: N, peers: impl Iterator<Item = N>) -> Self {
        let entries: Vec<(N, Slot)> = peers
            .enumerate()
            .map(|(index, subnet)| (trunc(subnet), Slot(index as u32)))
            .filter(|(subnet, _)| !trunc(own).contains(subnet))
            .chain([(trunc(own), Slot::OWN)])
            .collect();
        Self::uniform(own.prefix_len(), &entries)
            .unwrap_or_else(|| Self::Mixed(Box::new(entries.into_iter().collect())))
    }

    fn uniform(prefix_len: u8, entries: &[(N, Slot)]) -> Option<Self> {
        if prefix_len == 0 || entries.iter().any(|(subnet, _)| subnet.prefix_len() != prefix_len) {
            return None;
        }
        let shift = num_bits::<N>() - usize::from(prefix_len);
        let number = |subnet: &N| subnet.repr() >> shift;
        let first = entries.iter().map(|(subnet, _)| number(subnet)).min()?;
        let last = entries.iter().map(|(subnet, _)| number(subnet)).max()?;
        let len = (last - first).to_usize().filter(|last| *last < MAX_SLOTS)? + 1;
        let mut slots = vec![Slot::NONE; len].into_boxed_slice();
        for (subnet, slot) in entries {
            slots[(number(subnet) - first).to_usize()?] = *slot;
        }
        Some(Self::Uniform { shift, first, slots })
    }

    /// The peer that has just `subnet`.
    pub fn exact(&self, subnet: N) -> Option<usize> {
        let slot = match self {
            Self::Uniform { shift, .. } if usize::from(subnet.prefix_len()) + shift != num_bits::<N>() => {
                None
            }
            Self::Uniform { .. } => return self.lookup(subnet.mask()).peer(),
            Self::Mixed(trie) => trie.get(&trunc(subnet)).copied(),
        };
        slot?.target().peer()
    }

    /// Whose `address` is.
    #[inline]
    pub fn lookup(&self, address: N::R) -> Target {
        let slot = match self {
            Self::Uniform { shift, first, slots } => {
                let index = (address >> *shift).checked_sub(first).and_then(|index| index.to_usize());
                index.and_then(|index| slots.get(index)).copied()
            }
            Self::Mixed(trie) => {
                let host = N::from_repr_len(address, num_bits::<N>() as u8);
                trie.get_lpm(&host).map(|(_, slot)| *slot)
            }
        };
        slot.unwrap_or(Slot::NONE).target()
    }
}

/// Bits of an address.
fn num_bits<N: Prefix>() -> usize {
    N::num_bits() as usize
}

/// `subnet` without host bits.
fn trunc<N: Prefix>(subnet: N) -> N {
    N::from_repr_len(subnet.mask(), subnet.prefix_len())
}

/// At most 4 MiB of array, enough for every /24 of a /4, every /30 of a /10 or every /64 of a /44.
const MAX_SLOTS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn routes(own: &str, peers: &[&str]) -> Routes<Ipv4Net> {
        Routes::new(net(own), peers.iter().map(|peer| net(peer)))
    }

    fn lookup(routes: &Routes<Ipv4Net>, address: &str) -> Target {
        routes.lookup(address.parse::<Ipv4Addr>().unwrap().into())
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
    fn ipv6_is_looked_up_alike() {
        let net = |text: &str| text.parse::<Ipv6Net>().unwrap();
        let of = |routes: &Routes<Ipv6Net>, address: &str| {
            routes.lookup(address.parse::<Ipv6Addr>().unwrap().into())
        };
        let peers = |last| [net("fd00:0:0:63::/64"), net("fd00:0:0:7::1/64"), net(last)].into_iter();
        let uniform = Routes::new(net("fd00:0:0:9::/64"), peers("fd00:0:0:8::/64"));
        assert!(matches!(&uniform, Routes::Uniform { slots, .. } if slots.len() == 0x63 - 7 + 1));
        let mixed = Routes::new(net("fd00:0:0:9::/64"), peers("fd00:0:0:8::/80"));
        let far = Routes::new(net("fd00:0:0:9::/64"), peers("2001:db8::/64"));
        assert!(matches!((&mixed, &far), (Routes::Mixed(_), Routes::Mixed(_))));
        for routes in [uniform, mixed, far] {
            assert_eq!(of(&routes, "fd00:0:0:63:ffff:ffff:ffff:ffff"), Target::Peer(0));
            assert_eq!(of(&routes, "fd00:0:0:7::"), Target::Peer(1));
            assert_eq!(of(&routes, "fd00:0:0:9::3"), Target::Own);
            assert_eq!(of(&routes, "fd00:0:0:6:ffff::"), Target::None);
            assert_eq!(of(&routes, "fd00:0:0:64::"), Target::None);
            assert_eq!(of(&routes, "::"), Target::None);
            assert_eq!(of(&routes, "ffff::"), Target::None);
        }
    }

    #[test]
    fn the_own_subnet_is_nobody_elses_in_whole_or_in_part() {
        for peers in [&["10.1.9.0/24"][..], &["10.1.9.128/25"], &["10.1.9.1/32", "10.1.0.0/16"]] {
            let routes = routes("10.1.9.0/24", peers);
            for address in ["10.1.9.0", "10.1.9.1", "10.1.9.200", "10.1.9.255"] {
                assert_eq!(lookup(&routes, address), Target::Own, "{address} beside {peers:?}");
            }
        }
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
                    .filter(|(_, subnet)| subnet.contains(&address))
                    .max_by_key(|(_, subnet)| subnet.prefix_len())
                    .map_or(Target::None, |(index, _)| Target::Peer(index));
                let expected = if own.contains(&address) { Target::Own } else { expected };
                prop_assert_eq!(routes.lookup(address.into()), expected);
            }
        }
    }
}
