//! The lookup that every packet from the overlay device needs: which node owns its destination.

use std::hint::black_box;

use bench::lookup::{DESTINATIONS, destinations, table, table_v6};
use divan::Bencher;
use divan::counter::ItemsCount;
use overlay::peer_state::{Direction, PeerCounters};
use overlay::table::{PeerTable, Route, SharedTable};

fn main() {
    divan::main();
}

/// Leases of one length: the array.
#[divan::bench(args = [2, 1_000, 10_000])]
fn uniform(bencher: Bencher<'_, '_>, leases: u32) {
    lookups(bencher, &table(leases, |_| 24));
}

/// IPv6 leases of one length.
#[divan::bench(args = [2, 1_000, 10_000])]
fn uniform_v6(bencher: Bencher<'_, '_>, leases: u32) {
    lookups(bencher, &table_v6(leases));
}

/// Leases of two lengths: the trie.
#[divan::bench(args = [2, 1_000, 10_000])]
fn mixed(bencher: Bencher<'_, '_>, leases: u32) {
    lookups(bencher, &table(leases, |i| if i % 2 == 0 { 24 } else { 25 }));
}

/// Whose a packet from the wire is: its outer source, and the inner one in that node's subnet.
#[divan::bench(args = [2, 1_000, 10_000])]
fn origin(bencher: Bencher<'_, '_>, leases: u32) {
    let table = table(leases, |_| 24);
    let sources: Vec<_> = destinations(&table)
        .into_iter()
        .map(|inner| match table.route(inner) {
            Route::Peer(hop) => (hop.address, inner),
            other => panic!("{other:?} for {inner}"),
        })
        .collect();
    bencher.counter(ItemsCount::new(DESTINATIONS)).bench_local(|| {
        for (outer, inner) in &sources {
            black_box(table.origin(black_box(*outer), black_box(*inner)));
        }
    });
}

/// What counting for each peer costs a worker and batch of 64 packets, all of so many peers.
#[divan::bench(args = [1, 4, 64])]
fn counters(bencher: Bencher<'_, '_>, peers: usize) {
    let table = table(100, |_| 24);
    let states: Vec<_> = table.hops().take(peers).map(|hop| &hop.state).collect();
    let mut counters = PeerCounters::new(Direction::Ingress);
    bencher.counter(ItemsCount::new(64_usize)).bench_local(|| {
        for i in 0..64 {
            counters.forwarded(states[i % peers], 1, black_box(1400));
        }
        counters.settle();
    });
}

/// What a worker pays for each batch to see whether a new table has been published.
#[divan::bench]
fn refresh(bencher: Bencher<'_, '_>) {
    let mut reader = SharedTable::new(table(1_000, |_| 24)).reader();
    bencher.bench_local(|| black_box(reader.load()).peers().len());
}

fn lookups(bencher: Bencher<'_, '_>, table: &PeerTable) {
    let destinations = destinations(table);
    bencher.counter(ItemsCount::new(DESTINATIONS)).bench_local(|| {
        for destination in &destinations {
            black_box(table.route(black_box(*destination)));
        }
    });
}
