//! A GiB from pod to pod arrives unchanged, byte for byte: in both wire formats, behind a router and on
//! one link, on a virtual and on a plain wire, with all that the kernel can do for the data plane and
//! with nothing of it.

use integration::{Backend, Host, Pair, Site, Store, Wire, traffic};

#[test]
fn full_a_gib_over_vxlan_on_a_virtual_wire() {
    a_gib(Backend::Vxlan, Site::two_hosts_on(Wire::Virtual));
}

#[test]
fn full_a_gib_over_vxlan_on_a_plain_wire() {
    a_gib(Backend::Vxlan, Site::two_hosts_on(Wire::Plain));
}

#[test]
fn full_a_gib_over_udp_on_a_virtual_wire() {
    a_gib(Backend::Udp, Site::two_hosts_on(Wire::Virtual));
}

#[test]
fn full_a_gib_over_udp_on_a_plain_wire() {
    a_gib(Backend::Udp, Site::two_hosts_on(Wire::Plain));
}

#[test]
fn full_a_gib_over_vxlan_on_one_virtual_link() {
    a_gib(Backend::Vxlan, Site::two_hosts_on_one_link(Wire::Virtual));
}

#[test]
fn full_a_gib_over_vxlan_on_one_plain_link() {
    a_gib(Backend::Vxlan, Site::two_hosts_on_one_link(Wire::Plain));
}

fn a_gib(backend: Backend, (site, worker, master): (Site, Host, Host)) {
    let (hosts, store) = ([&worker, &master], Store::dir(&site, backend));
    let pair = Pair::start(hosts, &store, &["--offload=auto"]);
    // (Whether super-packets may leave whole is for the wire and the kernel to say.)
    let status = pair.left.status();
    let on: Vec<_> = status.offloads().into_iter().filter(|name| *name != "tunnel-gso").collect();
    assert_eq!(on, ["gro", "gso", "tso", "uso"]);
    transfer(&pair);
    let pair = pair.restart(hosts, &store, &["--offload=off"]);
    assert!(pair.left.status().offloads().is_empty());
    transfer(&pair);
}

/// Transfers a GiB, after which no packet may have been refused by either daemon.
#[track_caller]
fn transfer(pair: &Pair<'_>) {
    let start = std::time::Instant::now();
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 1024);
    println!("offloads {:?}: {:?}", pair.left.status().offloads(), start.elapsed());
    pair.assert_nothing_dropped();
}
