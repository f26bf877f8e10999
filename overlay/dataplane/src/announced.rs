//! The addresses that a node has beside its public one. It says them where the answer to an echo has room, and what comes
//! from it with one of these as its source is not forged. Who has not seen the question does not know its token, so no
//! pod can say so in a node's name.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use overlay_wire::{Subnets, martian};

/// How many addresses a node says at most.
pub const MOST: usize = 16;
/// The room that these take.
pub(crate) const LEN: usize = 2 + 4 * MOST;
/// How long a node has the addresses that it has said: one may move to another node.
pub const HOLDS: Duration = Duration::from_secs(180);
/// After so long it is asked again, while packets come from them.
pub(crate) const RENEWED: Duration = Duration::from_secs(60);
/// What addresses begin with, before their number.
const MARK: u8 = b'a';

/// What a node that has these `addresses` says of them: those by which others may know it, so none in the overlay's
/// `network`, and not all that it may have. Only of IPv4 there is a way to say them.
pub(crate) fn to_say(addresses: &[IpAddr], network: &Subnets) -> Vec<u8> {
    let own = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(v4) if !network.contains(*address) && !martian::is_martian(*address) => Some(*v4),
        _ => None,
    });
    let own: Vec<Ipv4Addr> = own.take(MOST).collect();
    let mut bytes = vec![MARK, own.len() as u8];
    bytes.extend(own.iter().flat_map(Ipv4Addr::octets));
    bytes
}

/// The addresses that `bytes` say, which may go on behind them.
pub(crate) fn said(bytes: &[u8]) -> Option<Vec<IpAddr>> {
    let [MARK, count, rest @ ..] = bytes else { return None };
    let count = usize::from(*count);
    let octets = rest.get(..4 * count).filter(|_| count <= MOST)?;
    Some(octets.as_chunks::<4>().0.iter().map(|octets| IpAddr::from(*octets)).collect())
}

/// What a node has said of its addresses, and which of them are in use.
#[derive(Debug)]
pub(crate) struct Announced {
    at: Duration,
    addresses: Vec<(IpAddr, AtomicBool)>,
}

impl Announced {
    /// It has said these, at that time.
    pub(crate) fn new(addresses: Vec<IpAddr>, at: Duration) -> Self {
        Self {
            at,
            addresses: addresses.into_iter().map(|address| (address, AtomicBool::new(false))).collect(),
        }
    }

    /// Whether it has `address` by what it has said.
    pub(crate) fn has(&self, address: IpAddr, now: Duration) -> bool {
        now.saturating_sub(self.at) < HOLDS && self.addresses.iter().any(|(own, _)| *own == address)
    }

    /// Whether it is to be asked again.
    pub(crate) fn is_old(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) >= RENEWED
    }

    /// Notes that a packet has come from `address`; returns whether it is the first one.
    pub(crate) fn uses(&self, address: IpAddr) -> bool {
        let of = self.addresses.iter().find(|(own, _)| *own == address);
        // Mostly it is not, and nothing is written.
        of.is_some_and(|(_, is_used)| !is_used.load(Relaxed) && !is_used.swap(true, Relaxed))
    }

    /// Those that packets have come from.
    pub(crate) fn used(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(|(_, is_used)| is_used.load(Relaxed)).map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_others_may_know_the_node_by() {
        let network = Subnets::V4("10.1.0.0/16".parse().unwrap());
        let addresses: [IpAddr; 5] = ["192.168.1.12", "127.0.0.1", "10.1.9.0", "2001:db8::12", "172.16.5.1"]
            .map(|address| address.parse().unwrap());
        let expected = ["192.168.1.12", "172.16.5.1"].map(|address| address.parse().unwrap());
        assert_eq!(said(&to_say(&addresses, &network)), Some(expected.to_vec()));
        let addresses: Vec<_> = (0..40).map(|last| IpAddr::from([172, 16, 5, last])).collect();
        let most = to_say(&addresses, &network);
        assert_eq!((most.len(), said(&most).unwrap().len()), (LEN, MOST));
        assert_eq!(said(&to_say(&[], &network)), Some(Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let long = |count: u8| [&[MARK, count][..], &[1; 100]].concat();
        assert_eq!(said(&long(16)).unwrap().len(), 16);
        for odd in [&[][..], &[MARK], &[MARK, 2, 1, 2, 3, 4, 5, 6, 7], &[0; 80], &long(17), &long(255)] {
            assert_eq!(said(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn an_address_is_a_nodes_for_a_while_and_its_first_use_is_told_once() {
        let [own, other] = [1, 2].map(|last| IpAddr::from([172, 16, 5, last]));
        let announced = Announced::new(vec![own], Duration::from_secs(1000));
        let after = |age| Duration::from_secs(1000) + age;
        for (age, has, is_old) in [(Duration::ZERO, true, false), (RENEWED, true, true), (HOLDS, false, true)]
        {
            assert_eq!(
                (announced.has(own, after(age)), announced.is_old(after(age))),
                (has, is_old),
                "{age:?}"
            );
            assert!(!announced.has(other, after(age)));
        }
        assert_eq!(announced.used().count(), 0);
        assert_eq!([own, own, other].map(|address| announced.uses(address)), [true, false, false]);
        assert_eq!(announced.used().collect::<Vec<_>>(), [own]);
    }
}
