//! Which peers have series of their own.
//!
//! There may be thousands of peers, and each costs Prometheus a dozen series. The first ones that are seen with
//! traffic, up to a limit, have series of their own, as long as they are peers; the others are summed up as
//! `other`. A peer does not change between the two while it is one, so no counter ever goes back: one that
//! is of the others stays so, and what it had counted stays in the sum when it is gone.
//!
//! A tunnel that is built anew counts from zero. What was counted before stays counted: Prometheus would take
//! a sum of which a part goes back for one that began anew, and count the other part twice.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use ipnet::Ipv4Net;
use overlay::peer_state::{Exchanged, PeerTotals};
use prometheus_client::registry::Unit;

use super::process::unix;
use super::writer::{About, Writer};

/// A peer with what is known of it.
#[derive(Debug, Clone)]
pub struct PeerSample {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// What was exchanged with it.
    pub totals: PeerTotals,
}

type Key = (Ipv4Net, Ipv4Addr);

/// Who has series of its own, and what the others have counted.
#[derive(Debug)]
pub(super) struct Slots {
    limit: usize,
    named: HashMap<Key, Lasting>,
    others: HashMap<Key, Lasting>,
    /// Of those of the others that are no peers any more.
    gone: Both,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Both {
    egress: Exchanged,
    ingress: Exchanged,
}

/// What was counted of a peer by one tunnel after the other.
#[derive(Debug, Clone, Copy, Default)]
struct Lasting {
    /// By those before the last.
    before: Both,
    /// By the last, when it was last looked at.
    last: Both,
}

/// One scrape's series, sorted by subnet.
#[derive(Debug, Default)]
pub(super) struct Shown {
    named: Vec<(PeerSample, Both)>,
    others: Both,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, named: HashMap::new(), others: HashMap::new(), gone: Both::default() }
    }

    /// What is shown of `peers`.
    pub(super) fn show(&mut self, peers: Vec<PeerSample>) -> Shown {
        let there: HashSet<Key> = peers.iter().map(key).collect();
        self.named.retain(|key, _| there.contains(key));
        self.others.retain(|key, counted| {
            let stays = there.contains(key);
            if !stays {
                self.gone.add(&counted.sum());
            }
            stays
        });
        let mut shown = Shown::default();
        for peer in peers {
            let (key, counted) = (key(&peer), Both::of(&peer));
            if let Some(lasting) = self.others.get_mut(&key) {
                lasting.look(counted);
            } else if let Some(lasting) = self.named.get_mut(&key) {
                lasting.look(counted);
                shown.named.push((peer, lasting.sum()));
            } else if counted != Both::default() {
                let lasting = Lasting { before: Both::default(), last: counted };
                if self.named.len() < self.limit {
                    self.named.insert(key, lasting);
                    shown.named.push((peer, counted));
                } else {
                    self.others.insert(key, lasting);
                }
            }
        }
        shown.named.sort_by_key(|(peer, _)| key(peer));
        shown.others = self.gone;
        self.others.values().for_each(|counted| shown.others.add(&counted.sum()));
        shown
    }
}

impl Lasting {
    /// Takes what is counted now; if it is less than before, another tunnel counts.
    fn look(&mut self, now: Both) {
        if now.is_behind(&self.last) {
            self.before.add(&self.last);
        }
        self.last = now;
    }

    fn sum(&self) -> Both {
        let mut sum = self.before;
        sum.add(&self.last);
        sum
    }
}

impl Shown {
    #[expect(clippy::disallowed_methods, reason = "metrics have dates")]
    pub(super) fn encode(&self, out: &mut Writer<'_>) -> fmt::Result {
        let named = &self.named;
        let packets = About("peer_forwarded_packets", "Inner packets to and from each peer", None);
        out.counters(packets, self.counters(|counted| counted.packets))?;
        let bytes = About("peer_forwarded", "Their bytes, without encapsulation", Some(Unit::Bytes));
        out.counters(bytes, self.counters(|counted| counted.bytes))?;
        let about = "Packets on the way to each peer that were dropped, or from its address and refused";
        out.counters(About("peer_dropped_packets", about, None), self.counters(|counted| counted.drops))?;
        let now = SystemTime::now();
        let seen =
            named.iter().filter_map(|(peer, _)| Some((labels(peer), unix(now - peer.totals.last_seen?))));
        let about = "When something valid came from the peer, to the second";
        out.gauges(
            About("peer_last_seen_timestamp", about, Some(Unit::Seconds)),
            seen.map(|(labels, moment)| (labels, moment.round())),
        )?;
        let mtus =
            named.iter().filter_map(|(peer, _)| Some((labels(peer), i64::from(peer.totals.path_mtu?))));
        let about =
            "The largest outer packet that reaches the peer, where it is less than the underlay's MTU";
        out.gauges(About("peer_path_mtu", about, Some(Unit::Bytes)), mtus)
    }

    fn counters(
        &self,
        count: impl Fn(&Exchanged) -> u64,
    ) -> impl Iterator<Item = ([(&'static str, String); 3], u64)> {
        let named = self.named.iter().map(|(peer, counted)| (labels(peer), *counted));
        let others = [("subnet", OTHER.to_owned()), ("public_ip", OTHER.to_owned())];
        named.chain([(others, self.others)]).flat_map(move |([subnet, public_ip], both)| {
            [("egress", both.egress), ("ingress", both.ingress)].map(|(direction, counted)| {
                let direction = ("direction", direction.to_owned());
                ([direction, subnet.clone(), public_ip.clone()], count(&counted))
            })
        })
    }
}

impl Both {
    fn of(peer: &PeerSample) -> Self {
        Self { egress: peer.totals.egress, ingress: peer.totals.ingress }
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in [(&mut self.egress, other.egress), (&mut self.ingress, other.ingress)] {
            sum.packets += more.packets;
            sum.bytes += more.bytes;
            sum.drops += more.drops;
        }
    }

    fn is_behind(&self, other: &Self) -> bool {
        [(self.egress, other.egress), (self.ingress, other.ingress)].into_iter().any(|(ours, theirs)| {
            ours.packets < theirs.packets || ours.bytes < theirs.bytes || ours.drops < theirs.drops
        })
    }
}

fn key(peer: &PeerSample) -> Key {
    (peer.subnet, peer.public_ip)
}

fn labels(peer: &PeerSample) -> [(&'static str, String); 2] {
    [("subnet", peer.subnet.to_string()), ("public_ip", peer.public_ip.to_string())]
}

/// What stands for a subnet and an address where there are many.
const OTHER: &str = "other";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(number: u8, packets: u64) -> PeerSample {
        let exchanged = |packets| Exchanged { packets, bytes: 100 * packets, drops: 0 };
        PeerSample {
            subnet: Ipv4Net::new([10, 1, number, 0].into(), 24).unwrap(),
            public_ip: [192, 168, 9, number].into(),
            totals: PeerTotals {
                egress: exchanged(packets),
                last_seen: Some(Duration::ZERO),
                ..PeerTotals::default()
            },
        }
    }

    fn named(shown: &Shown) -> Vec<u8> {
        shown.named.iter().map(|(peer, _)| peer.public_ip.octets()[3]).collect()
    }

    #[test]
    fn the_first_with_traffic_have_series_of_their_own() {
        let mut slots = Slots::new(2);
        let shown = slots.show(vec![peer(1, 0), peer(2, 5), peer(3, 0)]);
        assert_eq!((named(&shown), shown.others.egress.packets), (vec![2], 0));
        let shown = slots.show(vec![peer(1, 7), peer(2, 5), peer(3, 9)]);
        assert_eq!((named(&shown), shown.others.egress.packets), (vec![1, 2], 9));
        assert_eq!(shown.others.egress.bytes, 900);
    }

    #[test]
    fn no_sum_ever_goes_back() {
        let mut slots = Slots::new(1);
        slots.show(vec![peer(1, 1), peer(2, 10), peer(3, 100)]);
        // A place is free: nobody of the others takes it, since the sum would lose what they have counted.
        let shown = slots.show(vec![peer(2, 20), peer(3, 200)]);
        assert_eq!((named(&shown), shown.others.egress.packets), (vec![], 220));
        let shown = slots.show(vec![peer(3, 200), peer(4, 1)]);
        assert_eq!(
            (named(&shown), shown.others.egress.packets),
            (vec![4], 220),
            "what is gone stays counted"
        );
        let shown = slots.show(vec![peer(2, 3), peer(3, 200), peer(4, 1)]);
        assert_eq!(
            (named(&shown), shown.others.egress.packets),
            (vec![4], 223),
            "one that comes back begins anew"
        );
    }

    #[test]
    fn a_tunnel_that_is_built_anew_goes_on_counting() {
        for limit in [0, 1, 3] {
            let mut slots = Slots::new(limit);
            let mut count = |peers: &[(u8, u64)]| {
                let shown =
                    slots.show(peers.iter().map(|(number, packets)| peer(*number, *packets)).collect());
                let named = shown.named.iter().map(|(peer, counted)| {
                    (peer.public_ip.octets()[3], counted.egress.packets, counted.egress.bytes)
                });
                let others = shown.others.egress;
                named.chain([(0, others.packets, others.bytes)]).collect::<Vec<_>>()
            };
            count(&[(1, 100), (2, 50)]);
            count(&[(1, 101)]);
            // The first has counted from zero twice, and is where it would be had it gone on.
            for peers in [[(1, 10)], [(1, 4)]] {
                count(&peers);
            }
            let sums = count(&[(1, 9)]);
            let expected = match limit {
                0 => vec![(0, 170, 17_000)],
                1 => vec![(1, 120, 12_000), (0, 50, 5000)],
                _ => vec![(1, 120, 12_000), (0, 0, 0)],
            };
            assert_eq!(sums, expected, "with {limit} of their own");
        }
    }
}
