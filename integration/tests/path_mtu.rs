//! A path narrower than the interface: nothing is lost for it, senders are told what fits, and that it has
//! grown again.
//!
//! ```text
//!  worker 1500 ── lan1, route of 1400 ── router ── lan199, route of 1400 ── 1500 master
//! ```

use std::time::Duration;

use integration::kernel_vxlan::KernelVxlan;
use integration::overlayd::program;
use integration::{Backend, Namespace, Pair, Site, Store, Wire, await_until, traffic};

#[test]
fn senders_are_told_what_a_router_said_over_vxlan() {
    senders_are_told(Backend::Vxlan, Icmp::Passes, "--io=udp");
}

#[test]
fn senders_are_told_what_a_router_said_over_udp() {
    senders_are_told(Backend::Udp, Icmp::Passes, "--io=udp");
}

#[test]
fn senders_are_told_what_a_router_said_by_rings() {
    senders_are_told(Backend::Vxlan, Icmp::Passes, "--io=xdp");
}

#[test]
fn senders_are_told_what_no_router_says() {
    senders_are_told(Backend::Vxlan, Icmp::Filtered, "--io=udp");
}

#[test]
fn senders_are_told_what_no_router_says_by_rings() {
    senders_are_told(Backend::Vxlan, Icmp::Filtered, "--io=xdp");
}

/// Whether routers' errors come back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Icmp {
    Passes,
    Filtered,
}

fn senders_are_told(backend: Backend, icmp: Icmp, io: &str) {
    let (site, worker, master) = Site::two_hosts_on(Wire::Plain);
    let store = Store::dir(&site, backend);
    if icmp == Icmp::Filtered {
        site.router.ok("iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP");
    }
    narrow(&site.router, Some(PATH));
    let pair = Pair::start([&worker, &master], &store, &[io]);
    let (a, b) = (&pair.a, &pair.b);
    // Whether or not an echo has told already: until then it passes in fragments.
    traffic::transfer(&a.ns, &b.ns, b.address, 8);

    let inner = PATH - backend.overhead();
    let (from, to) = (&pair.left, &pair.right);
    for daemon in [from, to] {
        await_until(SOON, "the path to be known", || {
            daemon.log().contains(&format!("mtu={PATH}")) && daemon.log().contains("narrower")
        });
    }
    let quiet = pair.left.log().contains("no router says so");
    assert_eq!(quiet, icmp == Icmp::Filtered, "{}", pair.left.log());
    let trace = format!("{} trace {} {}", program("overlayctl").display(), a.address, b.address);
    let text = worker.ns.ok(&trace);
    assert!(text.contains(&format!("inner packets of up to {inner} bytes, as the path")), "{text}");
    let told = format!("mtu={inner}");
    let text = ping(&a.ns, inner + 1, &b.address.to_string());
    assert!(text.contains(&told), "no `{told}` in {text}");
    let text = ping(&a.ns, inner, &b.address.to_string());
    assert!(text.contains(" 0% packet loss"), "{text}");

    // Told, TCP sends what fits: nothing is cut any more.
    let before = fragments(&site.router) + fragments(&worker.ns) + fragments(&master.ns);
    traffic::transfer(&a.ns, &b.ns, b.address, 16);
    let after = fragments(&site.router) + fragments(&worker.ns) + fragments(&master.ns);
    assert_eq!(after - before, 0, "fragments");
}

#[test]
fn a_path_grows_back() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    for host in [&worker, &master] {
        host.ns.sysctl("net/ipv4/route/mtu_expires", "3");
    }
    narrow(&site.router, Some(PATH));
    let pair = Pair::start([&worker, &master], &store, &[]);
    let b = pair.b.address.to_string();
    let inner = PATH - Backend::Vxlan.overhead();
    // Also what the pods' own kernels have been told is forgotten sooner.
    pair.a.ns.sysctl("net/ipv4/route/mtu_expires", "1");
    await_until(SOON, "the sender to be told", || {
        ping(&pair.a.ns, inner + 1, &b).contains(&format!("mtu={inner}"))
    });
    narrow(&site.router, None);
    await_until(SOON, "full packets to pass uncut", || {
        ping(&pair.a.ns, 1500 - Backend::Vxlan.overhead(), &b).contains(" 0% packet loss")
    });
    assert!(pair.left.log().contains("as wide as our interface again"), "{}", pair.left.log());
}

#[test]
fn a_peer_that_answers_no_echo_gets_fragments_by_sockets() {
    a_peer_that_answers_no_echo_gets_fragments("--io=udp");
}

#[test]
fn a_peer_that_answers_no_echo_gets_fragments_by_rings() {
    a_peer_that_answers_no_echo_gets_fragments("--io=xdp");
}

fn a_peer_that_answers_no_echo_gets_fragments(io: &str) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    site.router.ok("iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP");
    narrow(&site.router, Some(PATH));
    let w = worker.overlayd(&store).flag(io).start();
    let a = worker.bridge_and_pod(&w.env());
    let kernel = KernelVxlan::start(&master, &store, "10.1.163");
    w.await_peers(&["10.1.163.0/24"]);
    let pod = master.bridge_and_pod(kernel.env());
    let peer = pod.address.to_string();
    let by_ring = || w.status().0["io"]["rings"]["datagrams"]["egress"].as_u64();
    await_until(SOON, "small packets to pass, by the ring if there is one", || {
        ping(&a.ns, 100, &peer).contains(" 0% packet loss") && by_ring() != Some(0)
    });
    let before = by_ring();
    let full = 1500 - Backend::Vxlan.overhead();
    for _ in 0..3 {
        let text = ping(&a.ns, full, &peer);
        assert!(text.contains(" 0% packet loss"), "{text}");
    }
    assert!(fragments(&site.router) > 0, "the router has cut nothing");
    assert!(by_ring() >= before.map(|before| before + 3), "they went as the small ones");
    assert!(!w.log().contains("narrower"), "{}", w.log());
}

/// Makes both ways through the router so narrow, or as wide as its interfaces.
fn narrow(router: &Namespace, mtu: Option<u32>) {
    let mtu = mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
    for lan in [1, 199] {
        router.ip(&format!(
            "route replace 192.168.{lan}.0/24 dev lan{lan} proto kernel scope link src 192.168.{lan}.1{mtu}"
        ));
    }
}

/// Fragments that a host has made.
fn fragments(ns: &Namespace) -> u64 {
    ns.counter("IpFragCreates")
}

/// What ping prints about one packet of `length` octets that must not be cut; an MTU as `mtu=1350`, whether the
/// pod has just been told or knows it from before.
fn ping(ns: &Namespace, length: u32, address: &str) -> String {
    let output = ns.run(&format!("ping -n -c 1 -W 5 -M do -s {} {address}", length - 28));
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).replace("mtu = ", "mtu=")
}

const PATH: u32 = 1400;
const SOON: Duration = Duration::from_secs(40);
