//! The lookup that every packet from the overlay device needs: which node owns its destination.

use std::hint::black_box;

use bench::lookup::{DESTINATIONS, destinations, table};
use divan::Bencher;
use divan::counter::ItemsCount;
use overlay::table::{PeerTable, SharedTable};

fn main() {
    divan::main();
}

/// Leases of one length: the array.
#[divan::bench(args = [2, 1_000, 10_000])]
fn uniform(bencher: Bencher<'_, '_>, leases: u32) {
    lookups(bencher, &table(leases, |_| 24));
}

/// Leases of two lengths: the trie.
#[divan::bench(args = [2, 1_000, 10_000])]
fn mixed(bencher: Bencher<'_, '_>, leases: u32) {
    lookups(bencher, &table(leases, |i| if i % 2 == 0 { 24 } else { 25 }));
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
