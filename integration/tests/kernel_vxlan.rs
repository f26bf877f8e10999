//! A host with the kernel's VXLAN device, set up from the leases in etcd as flanneld does it, and
//! a host with the daemon understand each other. Across veth the kernel's frames come whole (up to
//! 64 KiB) and without their inner checksum, so this is more than a matter of headers.

use integration::kernel_vxlan::KernelVxlan;
use integration::traffic::{self, Server};
use integration::{Backend, Host, Overlayd, Pod, Site, Store};

#[test]
fn tcp_and_udp_pass_in_both_directions() {
    let (site, worker, master) = Site::two_hosts();
    let (a, b, _running) = one_of_each(&site, &worker, &master);
    let directory = worker.directory();

    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);

    let from_kernel = traffic::iperf3(&b.ns, &a.ns, a.address, "-t 1", directory);
    let to_kernel = traffic::iperf3(&a.ns, &b.ns, b.address, "-t 1", directory);
    let udp_from_kernel = traffic::iperf3(&b.ns, &a.ns, a.address, "-u -b 20M -t 1", directory);
    let udp_to_kernel = traffic::iperf3(&a.ns, &b.ns, b.address, "-u -b 20M -t 1", directory);
    println!("TCP from {from_kernel:?} to {to_kernel:?}, UDP from {udp_from_kernel:?} to {udp_to_kernel:?}");
    // On a busy machine the receiving iperf3 itself loses some: what must not happen is that all is lost.
    assert!(udp_from_kernel.lost_percent < 50.0 && udp_to_kernel.lost_percent < 50.0);

    for (client, server, address) in [(&a, &b, b.address), (&b, &a, a.address)] {
        let _echo = Server::udp_echo(&server.ns, 7);
        traffic::echo(&client.ns, address, 7, 9000);
    }
}

#[test]
fn transfers_arrive_unchanged_in_both_directions() {
    let (site, worker, master) = Site::two_hosts();
    let (a, b, _running) = one_of_each(&site, &worker, &master);
    traffic::transfer(&b.ns, &a.ns, a.address, 50);
    traffic::transfer(&a.ns, &b.ns, b.address, 50);
}

/// The daemon on the worker, the kernel on the master, and a pod on each.
#[track_caller]
fn one_of_each<'h>(site: &Site, worker: &'h Host, master: &Host) -> (Pod, Pod, (Overlayd<'h>, Store)) {
    let store = Store::etcd(site, Backend::Vxlan);
    let daemon = worker.overlayd(&store).start();
    // None of the first hundred, among which the daemon has chosen.
    let kernel = KernelVxlan::start(master, &store, "10.1.163");
    daemon.await_peers(&["10.1.163.0/24"]);
    (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()), (daemon, store))
}
