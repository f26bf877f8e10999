//! The outer header is that of the kernel's VXLAN, whichever way a packet leaves: by sockets, by rings, or whole; and
//! what routers write into it arrives.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use integration::capture::Capture;
use integration::kernel_vxlan::KernelVxlan;
use integration::overlayd::program;
use integration::{
    Backend, Host, Namespace, Overlayd, Pair, Pod, SOON, Site, Store, Wire, await_until, traffic,
};
use socket2::SockRef;

#[test]
fn sockets_and_the_kernels_vxlan_agree() {
    way_and_kernel_agree("--io=udp");
}

#[test]
fn rings_and_the_kernels_vxlan_agree() {
    way_and_kernel_agree("--io=xdp");
}

/// Each has what the other would: in what it sends, and in what it makes of a router's marks.
fn way_and_kernel_agree(io: &str) {
    let (site, worker, master) = Site::two_hosts_on(Wire::Plain);
    let store = Store::dir(&site, Backend::Vxlan);
    for host in [&worker, &master] {
        host.ns.sysctl("net/ipv4/ip_default_ttl", "61");
    }
    let mut kernel = KernelVxlan::start(&master, &store, "10.1.163");
    let daemon = worker.overlayd(&store).flag(io).start();
    daemon.await_peers(&["10.1.163.0/24"]);
    kernel.follow(&store);
    let (a, b) = (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()));
    await_way(&daemon, &a, &b);

    let [ours, theirs] =
        [(&worker, &a, &b), (&master, &b, &a)].map(|(from, near, far)| outside(&site, from, near, far));
    assert_eq!(ours, theirs);
    assert_eq!(ours.iter().map(|header| header.tos).collect::<Vec<_>>(), [0, 1, 2, 2, 0, 1, 2, 2]);
    assert!(ours.iter().all(|header| (header.ttl, header.flags) == (61, 0)), "{ours:?}");

    let dir = worker.directory();
    mark_congestion(&site.router, Backend::Vxlan);
    assert_eq!(inside(&a, &b, dir), inside(&b, &a, dir));
    assert_eq!(inside(&b, &a, dir), [3, 3, 3, 0xbb, 0xbb, 0xbb]);
    await_until(SOON, "what knows no marks to be counted", || {
        daemon.status().drops("ingress", "congestion") >= 4
    });
    let status = daemon.status();
    assert_eq!(status.all_drops("ingress"), status.drops("ingress", "congestion"), "{}", status.0["drops"]);
}

#[test]
fn marks_reach_the_pods_of_overlayd_nodes_over_vxlan() {
    marks_reach_the_pods(Backend::Vxlan);
}

#[test]
fn marks_reach_the_pods_of_overlayd_nodes_over_udp() {
    marks_reach_the_pods(Backend::Udp);
}

fn marks_reach_the_pods(backend: Backend) {
    for io in ["--io=udp", "--io=xdp"] {
        let (site, worker, master) = Site::two_hosts_on(Wire::Plain);
        let store = Store::dir(&site, backend);
        let Pair { left, a, b, .. } = &Pair::start([&worker, &master], &store, &[io]);
        await_way(left, a, b);
        // In flannel's format, a peer has to have told that it runs overlayd.
        await_until(SOON, "the peers to know each other", || {
            let peers = worker.ns.ok(&format!("{} peers --json", program("overlayctl").display()));
            let peers: serde_json::Value = serde_json::from_str(&peers).expect("JSON");
            traffic::answers(&a.ns, b.address) && peers["peers"][0]["answers"] == true
        });
        mark_congestion(&site.router, backend);
        assert_eq!(inside(a, b, worker.directory()), [3, 3, 3, 0xbb, 0xbb, 0xbb], "{io}");
    }
}

#[test]
fn super_packets_that_leave_whole_have_the_same_header() {
    let (site, worker, master) = Site::two_hosts_on(Wire::Virtual);
    let store = Store::dir(&site, Backend::Vxlan);
    worker.ns.sysctl("net/ipv4/ip_default_ttl", "61");
    let mut kernel = KernelVxlan::start(&master, &store, "10.1.163");
    let daemon = worker.overlayd(&store).start();
    daemon.await_peers(&["10.1.163.0/24"]);
    kernel.follow(&store);
    let (a, b) = (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()));
    // Both ends ask for marks, so that all data but what is sent again can be marked.
    for pod in [&a, &b] {
        pod.ns.sysctl("net/ipv4/tcp_ecn", "1");
    }
    // Before the daemon has read the host's rules nothing leaves whole; before Linux 6.17 nothing does.
    await_until(SOON, "the host's rules to be read", || {
        daemon.status().0["offloads_held"].as_object().is_none_or(serde_json::Map::is_empty)
    });
    if !daemon.status().offloads().contains(&"tunnel-gso") {
        return;
    }
    traffic::transfer(&b.ns, &a.ns, a.address, 8);
    await_until(SOON, "super-packets to leave whole, with what they say of congestion", || {
        let filter = format!("udp dst port 8472 and src host {}", worker.public_ip);
        let wire = Capture::start_with_headers(&worker.ns, "eth0", &filter, worker.directory());
        traffic::transfer(&a.ns, &b.ns, b.address, 8);
        // All but the echoes that ask for the path's MTU.
        let frames: Vec<_> =
            wire.stop().into_iter().filter(|frame| frame.get(INNER + 9) == Some(&TCP)).collect();
        let headers: Vec<_> = frames.iter().filter_map(|frame| Header::read(frame, Backend::Vxlan)).collect();
        assert!(headers.iter().all(|header| (header.ttl, header.flags) == (61, 0)), "{headers:?}");
        assert!(headers.iter().all(|header| header.tos == header.inner_tos & 3), "{headers:?}");
        let is_whole = |frame: &[u8]| u16::from_be_bytes([frame[16], frame[17]]) > 1500;
        let whole = frames.iter().filter(|frame| is_whole(frame));
        whole.filter_map(|frame| Header::read(frame, Backend::Vxlan)).any(|header| header.tos == 2)
    });

    // What comes in whole is marked as a whole.
    site.router.ok(&format!("{MARK} --dport 8472 -m tos --tos 0x02/0x03 -j TOS --set-tos 0x03/0x03"));
    let marked = Capture::start_with_headers(&a.ns, "eth0", "tcp and ip[1] & 3 == 3", worker.directory());
    traffic::transfer(&b.ns, &a.ns, a.address, 1);
    assert!(!marked.frames(1).is_empty());
    assert_eq!(daemon.status().all_drops("ingress"), 0, "senders that take marks lose nothing");
}

/// What an outer header says, and what the packet in it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    ttl: u8,
    /// DF, MF, and the offset.
    flags: u16,
    tos: u8,
    inner_tos: u8,
}

impl Header {
    /// Reads an outer frame with an IPv4 packet in it.
    fn read(frame: &[u8], backend: Backend) -> Option<Self> {
        let inner = ETHERNET + usize::try_from(backend.overhead()).ok()?;
        Some(Self {
            ttl: *frame.get(ETHERNET + 8)?,
            flags: u16::from_be_bytes([*frame.get(ETHERNET + 6)?, *frame.get(ETHERNET + 7)?]),
            tos: *frame.get(ETHERNET + 1)?,
            inner_tos: *frame.get(inner + 1)?,
        })
    }
}

/// Sends a datagram of each kind to another pod, and returns with what outer header each left.
#[track_caller]
fn outside(site: &Site, host: &Host, from: &Pod, to: &Pod) -> Vec<Header> {
    let filter = format!("udp dst port 8472 and src host {} and greater 200 and less 300", host.public_ip);
    let wire = Capture::start(&site.router, &Site::lan_device(host.public_ip), &filter, host.directory());
    send(from, to.address);
    let frames = wire.frames(KINDS.len());
    let headers: Vec<_> = frames.iter().filter_map(|frame| Header::read(frame, Backend::Vxlan)).collect();
    assert_eq!(headers.iter().map(|header| header.inner_tos).collect::<Vec<_>>(), KINDS);
    headers
}

/// Sends a datagram of each kind, and returns the types of service with which they arrive at the other pod.
#[track_caller]
fn inside(from: &Pod, to: &Pod, directory: &Path) -> Vec<u8> {
    let arrived = Capture::inbound(&to.ns, "eth0", &format!("udp dst port {PORT}"), directory);
    send(from, to.address);
    let frames = arrived.frames(KINDS.iter().filter(|tos| **tos & 3 != 0).count());
    frames.iter().map(|frame| frame[ETHERNET + 1]).collect()
}

/// From one port, and so in order; each longer than the one before, so that nobody joins them.
#[track_caller]
fn send(from: &Pod, to: Ipv4Addr) {
    let socket = from.ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
    for (tos, len) in KINDS.into_iter().zip(120..) {
        SockRef::from(&socket).set_tos_v4(u32::from(tos)).expect("set the type of service");
        socket.send_to(&vec![tos; len], (to, PORT)).expect("send");
    }
}

/// Has packets pass until they leave as the daemon was asked to.
#[track_caller]
fn await_way(daemon: &Overlayd<'_>, a: &Pod, b: &Pod) {
    await_until(SOON, "packets to pass, by the ring if there is one", || {
        traffic::answers(&a.ns, b.address)
            && daemon.status().0["io"]["rings"]["datagrams"]["egress"].as_u64() != Some(0)
    });
}

/// Has the router mark all of the tunnel's packets, those too whose senders take no marks.
fn mark_congestion(router: &Namespace, backend: Backend) {
    router.ok(&format!("{MARK} --dport {} -j TOS --set-tos 0x03/0x03", backend.port()));
}

/// Types of service: each of what can be said of congestion, without a class and with one.
const KINDS: [u8; 8] = [0, 1, 2, 3, 0xb8, 0xb9, 0xba, 0xbb];
const PORT: u16 = 9;
const MARK: &str = "iptables -t mangle -A POSTROUTING -p udp";
const ETHERNET: usize = 14;
/// Where the inner IPv4 header stands in a VXLAN frame.
const INNER: usize = ETHERNET + 20 + 8 + 8 + 14;
const TCP: u8 = 6;
