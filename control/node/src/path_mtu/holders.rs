//! Which node an address is of that nodes say to be theirs: of the first that says so, for as long as it does. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use overlay::announced::HOLDS;
use tokio::time::Instant;

/// Nodes go by their public addresses.
#[derive(Debug, Default)]
pub struct Holders {
    by_address: HashMap<IpAddr, IpAddr>,
    by_node: HashMap<IpAddr, (Instant, Vec<IpAddr>)>,
    told: HashSet<(IpAddr, IpAddr)>,
}

/// What becomes of the addresses that a node says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// They are its own.
    pub own: Vec<IpAddr>,
    /// They are another's, with the node that has said so before.
    pub others: Vec<(IpAddr, IpAddr)>,
}

impl Holders {
    /// `node` says that it has these addresses, and no others.
    pub fn say(&mut self, node: IpAddr, addresses: &[IpAddr], now: Instant) -> Said {
        self.let_go(node);
        let mut said = Said::default();
        for address in addresses {
            let holder = self.by_address.get(address).filter(|holder| {
                self.by_node.get(*holder).is_some_and(|(at, _)| now.duration_since(*at) < HOLDS)
            });
            match holder {
                Some(holder) if *holder != node => said.others.push((*address, *holder)),
                _ => {
                    self.by_address.insert(*address, node);
                    said.own.push(*address);
                }
            }
        }
        self.by_node.insert(node, (now, said.own.clone()));
        said
    }

    /// Forgets what nodes have said too long ago.
    pub fn forget(&mut self, now: Instant) {
        let over = self.by_node.iter().filter(|(_, (at, _))| now.duration_since(*at) >= HOLDS);
        let over: Vec<IpAddr> = over.map(|(node, _)| *node).collect();
        over.into_iter().for_each(|node| self.let_go(node));
    }

    /// Whether it is to be told of an address and a node: once, and not of more than there is room for in a log.
    pub fn is_to_be_told(&mut self, address: IpAddr, node: IpAddr) -> bool {
        self.told.len() < MOST_TOLD && self.told.insert((address, node))
    }

    fn let_go(&mut self, node: IpAddr) {
        for address in self.by_node.remove(&node).map(|(_, addresses)| addresses).unwrap_or_default() {
            if self.by_address.get(&address) == Some(&node) {
                self.by_address.remove(&address);
            }
        }
    }
}

/// A node could say ever others.
const MOST_TOLD: usize = 256;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 12));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 13));
    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 5, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 5, 2));

    fn said(own: &[IpAddr], others: &[(IpAddr, IpAddr)]) -> Said {
        Said { own: own.to_vec(), others: others.to_vec() }
    }

    #[test]
    fn an_address_is_the_first_nodes_until_it_says_so_no_more() {
        let (mut holders, now) = (Holders::default(), Instant::now());
        assert_eq!(holders.say(ONE, &[A], now), said(&[A], &[]));
        assert_eq!(holders.say(TWO, &[A, B], now), said(&[B], &[(A, ONE)]));
        assert_eq!(holders.say(ONE, &[A, B], now), said(&[A], &[(B, TWO)]), "and each keeps its own");
        // It moves.
        assert_eq!(holders.say(ONE, &[], now), said(&[], &[]));
        assert_eq!(holders.say(TWO, &[A, B], now), said(&[A, B], &[]));
    }

    #[test]
    fn a_node_that_says_nothing_any_more_holds_nothing() {
        for forgets in [false, true] {
            let (mut holders, now) = (Holders::default(), Instant::now());
            holders.say(ONE, &[A], now);
            let later = now + HOLDS;
            if forgets {
                holders.forget(later);
                assert!(holders.by_address.is_empty() && holders.by_node.is_empty());
            }
            assert_eq!(holders.say(TWO, &[A], later), said(&[A], &[]));
            holders.forget(later);
            assert_eq!(holders.by_address, HashMap::from([(A, TWO)]));
        }
    }

    #[test]
    fn each_is_told_once_and_not_without_end() {
        let mut holders = Holders::default();
        assert!(holders.is_to_be_told(A, ONE) && holders.is_to_be_told(A, TWO));
        assert!(!holders.is_to_be_told(A, ONE));
        let told =
            (0..10_000_u32).filter(|n| holders.is_to_be_told(IpAddr::from(n.to_be_bytes()), ONE)).count();
        assert_eq!(told, MOST_TOLD - 2);
    }
}
