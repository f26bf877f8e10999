//! Transfers stay correct on a wire that loses, duplicates and reorders packets. The LANs are plain,
//! so that what the wire let through out of order is joined by GRO as far as that is allowed.

use integration::faults::{Faults, FaultyWire};
use integration::{Backend, Pair, Site, Store, Wire, traffic};

#[test]
fn tcp_over_vxlan_gets_through_a_faulty_wire() {
    tcp_gets_through_a_faulty_wire(Backend::Vxlan, "--offload=auto");
}

#[test]
fn tcp_over_udp_gets_through_a_faulty_wire() {
    tcp_gets_through_a_faulty_wire(Backend::Udp, "--offload=auto");
}

#[test]
fn tcp_over_vxlan_without_offloads_gets_through_a_faulty_wire() {
    tcp_gets_through_a_faulty_wire(Backend::Vxlan, "--offload=off");
}

#[test]
fn tcp_over_udp_without_offloads_gets_through_a_faulty_wire() {
    tcp_gets_through_a_faulty_wire(Backend::Udp, "--offload=off");
}

fn tcp_gets_through_a_faulty_wire(backend: Backend, offload: &str) {
    let (site, worker, master) = Site::two_hosts_on(Wire::Plain);
    let store = Store::dir(&site, backend);
    let pair = Pair::start([&worker, &master], &store, &[offload]);
    let faults = Faults { lost: 10, duplicated: 10, delayed: 50, seed: 20 };
    let wire = FaultyWire::between(&site, [&worker, &master], faults);

    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, MEBIBYTES);

    let done = wire.done();
    println!("{backend:?} {offload}: {done:?}");
    assert!(done.entered > MEBIBYTES as u64 * PACKETS_PER_MEBIBYTE, "{done:?}");
    assert_eq!(done.refused, 0, "{done:?}");
    for (count, plan) in [(done.lost, 10), (done.duplicated, 10), (done.delayed, 50)] {
        assert!(count > done.entered * plan / 2000, "fewer faults than planned: {done:?}");
    }
}

const MEBIBYTES: usize = 100;
/// That many at least, if all of them crossed the wire one by one.
const PACKETS_PER_MEBIBYTE: u64 = (1 << 20) / 1500;
