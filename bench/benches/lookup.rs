//! The lookup that every packet from the overlay device needs: which node owns its destination.

use std::hint::black_box;
use std::net::Ipv4Addr;

use divan::Bencher;
use divan::counter::ItemsCount;
use ipnet::Ipv4Net;
use overlay::MacAddr;
use overlay::table::{Local, Peer, PeerTable, SharedTable};
use overlay::wire::Format;

fn main() {
    divan::main();
}

/// Destinations looked up in one round, spread over all subnets.
const DESTINATIONS: usize = 1024;

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
    let peers = table.peers();
    let step = (peers.len() / DESTINATIONS).max(1);
    let destinations: Vec<Ipv4Addr> = (0..DESTINATIONS)
        .map(|i| Ipv4Addr::from(u32::from(peers[i * step * 7919 % peers.len()].subnet.network()) + 2))
        .collect();
    bencher.counter(ItemsCount::new(DESTINATIONS)).bench_local(|| {
        for destination in &destinations {
            black_box(table.route(black_box(*destination)));
        }
    });
}

fn table(leases: u32, len: impl Fn(u32) -> u8) -> PeerTable {
    let subnet = |i: u32| {
        Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (i << 8)), len(i)).expect("at most 32 bits").trunc()
    };
    let peers = (1..=leases).map(|i| Peer {
        subnet: subnet(i),
        public_ip: Ipv4Addr::from(0xc0a8_0000 + i),
        vtep_mac: Some(MacAddr([2, 0, 0, 0, (i >> 8) as u8, i as u8])),
    });
    let local = Local {
        network: Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("at most 32 bits"),
        subnet: subnet(0),
        overlay_address: Ipv4Addr::new(10, 0, 0, 0),
        addresses: Vec::new(),
        mtu: 1450,
        format: Format::Vxlan { vni: 1, vtep_mac: MacAddr([2, 0, 0, 0, 0, 0]) },
        port: 8472,
    };
    PeerTable::new(local, peers.collect())
}
