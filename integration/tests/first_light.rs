//! Two hosts, one overlay over real etcd, in both wire formats: everything a pod sends arrives unchanged.

use integration::capture::{Capture, LinkType, decode};
use integration::overlayd::await_mesh;
use integration::traffic::{self, Server};
use integration::{Backend, Site, Store};

#[test]
fn pods_on_two_hosts_exchange_traffic_over_udp() {
    pods_on_two_hosts_exchange_traffic(Backend::Udp);
}

#[test]
fn pods_on_two_hosts_exchange_traffic_over_vxlan() {
    pods_on_two_hosts_exchange_traffic(Backend::Vxlan);
}

fn pods_on_two_hosts_exchange_traffic(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, backend);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let directory = worker.directory();

    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);

    let to_b = traffic::iperf3(&a.ns, &b.ns, b.address, "-t 1", directory);
    let to_a = traffic::iperf3(&b.ns, &a.ns, a.address, "-t 1", directory);
    let datagrams = traffic::iperf3(&a.ns, &b.ns, b.address, "-u -b 20M -t 1", directory);
    println!("{backend:?}: {to_b:?} {to_a:?} {datagrams:?}");
    // On a busy machine the receiving iperf3 itself loses some: what must not happen is that all is lost.
    assert!(datagrams.lost_percent < 50.0, "{datagrams:?}");

    traffic::transfer(&a.ns, &b.ns, b.address, 100);

    // Fragmented by the pod and put together by the other one.
    let _echo = Server::udp_echo(&b.ns, 7);
    traffic::echo(&a.ns, b.address, 7, 9000);

    let status = w.status();
    assert_eq!(status.all_drops("ingress"), 0, "{}", status.0);
    w.stop();
    m.stop();
}

#[test]
fn the_wire_carries_bare_packets_on_port_8285() {
    let text = one_ping_on_the_wire(Backend::Udp, |frame, directory| {
        decode(LinkType::Raw, &[&frame[OUTER..]], directory)
    });
    assert!(!text.contains("VXLAN"), "{text}");
}

#[test]
fn the_wire_carries_vxlan_frames_on_port_8472() {
    let text = one_ping_on_the_wire(Backend::Vxlan, |frame, directory| {
        decode(LinkType::Ethernet, &[frame], directory)
    });
    assert!(text.contains("VXLAN, flags [I] (0x08), vni 1"), "{text}");
}

/// Captures a ping between pods under way between the hosts and returns what tcpdump says of it,
/// which must include the inner packet.
#[track_caller]
fn one_ping_on_the_wire(backend: Backend, decode: impl Fn(&[u8], &std::path::Path) -> String) -> String {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, backend);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let ports = format!("udp dst port {} and src host {}", backend.port(), worker.public_ip);
    let wire = Capture::start(&site.router, &Site::lan_device(worker.public_ip), &ports, worker.directory());
    let overlay_only =
        Capture::start(&site.router, &Site::lan_device(master.public_ip), "icmp", master.directory());
    traffic::ping(&a.ns, b.address);
    let text = decode(&wire.frames(1)[0], worker.directory());
    let inner = format!("{} > {}: ICMP echo request", a.address, b.address);
    assert!(text.contains(&inner), "no `{inner}` in {text}");
    assert_eq!(overlay_only.stop(), Vec::<Vec<u8>>::new(), "pings outside the overlay");
    text
}

/// Ethernet, IPv4 without options, UDP: what stands before the payload on the underlay.
const OUTER: usize = 14 + 20 + 8;
