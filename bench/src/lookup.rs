//! What one lookup in the table of peers costs, with the table at rest and while it changes.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use overlay::MacAddr;
use overlay::table::{Local, Peer, PeerTable, SharedTable};
use overlay::wire::{Addresses, Format, MacAddrs, Subnets};

use crate::stats::Spread;

/// Nanoseconds for a lookup.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    /// With nobody changing the table.
    pub at_rest: f64,
    /// While another thread publishes tables.
    pub changing: f64,
    /// How many tables a second it published.
    pub changes_per_second: f64,
}

/// Measures lookups among this many leases, while they change `rate` times a second and while they do not.
#[must_use]
pub fn measure(leases: u32, rate: u32) -> Lookup {
    let shared = SharedTable::new(table(leases, |_| 24));
    let at_rest = nanoseconds(&shared, leases);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| publish(&shared, leases, rate, &stop));
        let changing = nanoseconds(&shared, leases);
        stop.store(true, Ordering::Release);
        let changes_per_second = writer.join().expect("a thread that does not panic");
        Lookup { at_rest, changing, changes_per_second }
    })
}

/// A table of `leases` peers, whose subnets' lengths `len` tells.
#[must_use]
pub fn table(leases: u32, len: impl Fn(u32) -> u8) -> PeerTable {
    let (local, peers) = network(leases, len);
    PeerTable::new(local, peers)
}

/// A table of `leases` peers with an IPv6 subnet each beside the other.
#[must_use]
pub fn table_v6(leases: u32) -> PeerTable {
    let subnet = |i: u32| {
        let address = Ipv6Addr::from(0xfd00 << 112 | u128::from(i) << 64);
        Ipv6Net::new(address, 64).expect("at most 128 bits")
    };
    let both = |v4: Subnets, i| Subnets::of(v4.v4(), Some(subnet(i))).expect("both");
    let (local, mut peers) = network(leases, |_| 24);
    for (i, peer) in (1..).zip(&mut peers) {
        peer.subnets = both(peer.subnets, i);
    }
    let overlay_addresses = Addresses::of(local.overlay_addresses.v4(), Some(subnet(0).network()));
    let local = Local {
        subnets: both(local.subnets, 0),
        overlay_addresses: overlay_addresses.expect("both"),
        ..local
    };
    PeerTable::new(local, peers)
}

fn network(leases: u32, len: impl Fn(u32) -> u8) -> (Local, Vec<Peer>) {
    let subnet = |i: u32| {
        Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (i << 8)), len(i)).expect("at most 32 bits").trunc()
    };
    let peers = (1..=leases).map(|i| Peer {
        subnets: subnet(i).into(),
        public: Ipv4Addr::from(0xc0a8_0000 + i).into(),
        vtep_macs: Some(MacAddrs::V4(MacAddr([2, 0, 0, 0, (i >> 8) as u8, i as u8]))),
    });
    let local = Local {
        network: Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("at most 32 bits").into(),
        subnets: subnet(0).into(),
        overlay_addresses: Ipv4Addr::new(10, 0, 0, 0).into(),
        public: Ipv4Addr::new(192, 168, 0, 0).into(),
        addresses: Vec::new(),
        mtu: 1450,
        format: Format::Vxlan { vni: 1, vtep_mac: MacAddr([2, 0, 0, 0, 0, 0]) },
        port: 8472,
    };
    (local, peers.collect())
}

/// Destinations spread over all subnets, in no order that a processor could foresee: IPv6 where there is
/// some, else IPv4.
#[must_use]
pub fn destinations(table: &PeerTable) -> Vec<IpAddr> {
    let peers = table.peers();
    let step = (peers.len() / DESTINATIONS).max(1);
    let destination = |peer: &Peer| match peer.subnets {
        Subnets::V4(v4) => Ipv4Addr::from(u32::from(v4.network()) + 2).into(),
        Subnets::V6(v6) | Subnets::Both(_, v6) => Ipv6Addr::from(u128::from(v6.network()) + 2).into(),
    };
    (0..DESTINATIONS).map(|i| destination(&peers[i * step * 7919 % peers.len()])).collect()
}

/// The median over many short spells, so that one in which something else ran does not count.
fn nanoseconds(shared: &SharedTable, leases: u32) -> f64 {
    let mut reader = shared.reader();
    let destinations = destinations(&table(leases, |_| 24));
    let spells = (0..SPELLS).map(|_| {
        let begun = Instant::now();
        for _ in 0..ROUNDS {
            for batch in destinations.chunks(BATCH) {
                let table = reader.load();
                for destination in batch {
                    black_box(table.route(black_box(*destination)));
                }
            }
        }
        begun.elapsed().as_nanos() as f64 / (ROUNDS * DESTINATIONS) as f64
    });
    Spread::of(spells).map_or(0.0, |spread| spread.median)
}

/// Publishes whole tables at a steady pace until told to stop. Returns how many a second it managed.
fn publish(shared: &SharedTable, leases: u32, rate: u32, stop: &AtomicBool) -> f64 {
    let pace = Duration::from_secs(1) / rate;
    let begun = Instant::now();
    let mut count = 0;
    while !stop.load(Ordering::Acquire) {
        let (local, peers) = network(leases, |_| 24);
        shared.publish(local, peers);
        count += 1;
        std::thread::sleep((pace * count).saturating_sub(begun.elapsed()));
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// Destinations looked up in one round.
pub const DESTINATIONS: usize = 1024;
/// Rounds of a spell, which so takes some tenths of a millisecond.
const ROUNDS: usize = 100;
const SPELLS: usize = 500;
/// Lookups between two looks for a new table: a worker's batch.
const BATCH: usize = 64;

#[cfg(test)]
mod tests {
    use overlay::table::Route;

    use super::*;

    #[test]
    fn every_destination_has_an_owner() {
        for leases in [2, 1_000, 10_000] {
            let table = table(leases, |_| 24);
            assert_eq!(table.peers().len(), leases as usize);
            assert!(destinations(&table).iter().all(|dst| matches!(table.route(*dst), Route::Peer(_))));
        }
    }

    #[test]
    fn tables_are_published_while_lookups_are_measured() {
        let lookup = measure(100, 1_000);
        assert!(lookup.at_rest > 0.0 && lookup.changing > 0.0 && lookup.changes_per_second > 0.0);
    }
}
