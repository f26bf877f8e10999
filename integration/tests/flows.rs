//! What holds for each flow: its packets stay in order, and leave by one source port.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::Duration;

use integration::capture::Capture;
use integration::datagrams;
use integration::traffic::Server;
use integration::{Backend, Pair, SOON, Site, Store, await_until};

#[test]
fn packets_of_a_flow_do_not_overtake_each_other_over_vxlan() {
    packets_of_a_flow_do_not_overtake_each_other(Backend::Vxlan);
}

#[test]
fn packets_of_a_flow_do_not_overtake_each_other_over_udp() {
    packets_of_a_flow_do_not_overtake_each_other(Backend::Udp);
}

fn packets_of_a_flow_do_not_overtake_each_other(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, backend);
    let Pair { left, a, b, .. } = &Pair::start([&worker, &master], &store, &["--queues=4"]);
    assert_eq!(left.status().0["device"]["queues"], 4);
    let order = datagrams::numbered(&a.ns, &b.ns, b.address, Duration::from_secs(2));
    println!("{backend:?}: {order:?}");
    assert!(order.streams > 20 && order.received > order.sent / 10, "too little to tell: {order:?}");
    assert_eq!(order.overtaken, 0, "{order:?}");
}

#[test]
fn flows_leave_by_several_ports_each_by_one_over_vxlan() {
    flows_leave_by_several_ports_each_by_one(Backend::Vxlan);
}

#[test]
fn flows_leave_by_several_ports_each_by_one_over_udp() {
    flows_leave_by_several_ports_each_by_one(Backend::Udp);
}

fn flows_leave_by_several_ports_each_by_one(backend: Backend) {
    // One worker has to spread by itself; of two, none may take over a flow of the other.
    for queues in ["--queues=1", "--queues=2"] {
        let ports = outer_ports_by_flow(backend, &[queues, "--source-port-spread=on"]);
        assert!(ports.values().all(|ports| ports.len() == 1), "{queues}: a flow changes its port: {ports:?}");
        let all: BTreeSet<_> = ports.values().flatten().collect();
        assert!(all.len() > 1, "{queues}: one port for {FLOWS} flows: {ports:?}");
        assert!(!all.contains(&backend.port()), "{queues}: {ports:?}");
    }
}

#[test]
fn without_spreading_all_flows_leave_by_the_vxlan_port() {
    all_flows_leave_by_the_backends_port(Backend::Vxlan);
}

#[test]
fn without_spreading_all_flows_leave_by_the_udp_port() {
    all_flows_leave_by_the_backends_port(Backend::Udp);
}

fn all_flows_leave_by_the_backends_port(backend: Backend) {
    // flannel's udp has one port, and firewalls know it.
    let spread = if backend == Backend::Udp { "-v=0" } else { "--source-port-spread=off" };
    let ports = outer_ports_by_flow(backend, &["--queues=2", spread]);
    assert!(ports.values().flatten().all(|port| *port == backend.port()), "{ports:?}");
}

#[test]
fn pinned_workers_of_a_queue_share_one_processor() {
    let (site, worker, _master) = Site::two_hosts();
    let daemon = worker.overlayd(&Store::dir(&site, Backend::Vxlan)).flag("--pin").flag("--queues=2").start();
    // Each by its first act.
    await_until(SOON, "both workers of a queue to be on one processor, and each queue on its own", || {
        let allowed = allowed_processors(daemon.id());
        let of = |queue: usize| ["egress", "ingress"].map(|name| &allowed[&format!("{name}-{queue}")]);
        let (first, second) = (of(0), of(1));
        let tied = [first, second].iter().all(|[a, b]| a == b && a.parse::<u32>().is_ok());
        tied && (first != second || std::thread::available_parallelism().unwrap().get() == 1)
    });
}

/// The processors that each thread of a process may run on, by the threads' names.
fn allowed_processors(process: u32) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| task.unwrap().path());
    let allowed = |task: PathBuf| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let of = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        (of("Name:"), of("Cpus_allowed_list:"))
    };
    tasks.map(allowed).collect()
}

/// Sends several datagrams of several flows between pods and returns, for each flow's inner source
/// port, by which ports it left its host.
#[track_caller]
fn outer_ports_by_flow(backend: Backend, flags: &[&str]) -> BTreeMap<u16, BTreeSet<u16>> {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, backend);
    let Pair { a, b, .. } = &Pair::start([&worker, &master], &store, flags);
    let filter = format!("udp dst port {} and src host {}", backend.port(), worker.public_ip);
    let wire = Capture::start(&site.router, &Site::lan_device(worker.public_ip), &filter, worker.directory());

    let _echo = Server::udp_echo(&b.ns, 7);
    // All open at once, so that each has a port of its own.
    let socket = |_| a.ns.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let sockets: Vec<_> = (0..FLOWS).map(socket).collect();
    for socket in &sockets {
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect((b.address, 7)).unwrap();
        for number in 0..DATAGRAMS {
            // One at a time: what leaves together would be one frame on this wire.
            socket.send(&[number; 100]).unwrap();
            socket.recv(&mut [0; 100]).unwrap_or_else(|e| panic!("the answer to datagram {number}: {e}"));
        }
    }

    let inner = OUTER + usize::try_from(backend.overhead()).unwrap() - OUTER_IP_AND_UDP;
    let mut ports = BTreeMap::<_, BTreeSet<_>>::new();
    for frame in wire.frames(FLOWS * usize::from(DATAGRAMS)) {
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        if frame[inner + IP_PROTOCOL] == UDP {
            ports.entry(port(inner + 20)).or_default().insert(port(OUTER - 8));
        }
    }
    assert_eq!(ports.len(), FLOWS, "{ports:?}");
    ports
}

const FLOWS: usize = 24;
const DATAGRAMS: u8 = 10;
/// Ethernet, IPv4 without options, UDP: what stands before the payload on the underlay.
const OUTER: usize = 14 + OUTER_IP_AND_UDP;
const OUTER_IP_AND_UDP: usize = 20 + 8;
/// Where an IPv4 header says what is in the packet, and what it says for UDP.
const IP_PROTOCOL: usize = 9;
const UDP: u8 = 17;
