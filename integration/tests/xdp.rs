//! `--io=xdp`: the overlay's packets past the kernel's stack by `AF_XDP`, and everybody else's as if it were not
//! there. Interfaces here are veth pairs: native XDP, copying.

use std::sync::atomic::{AtomicBool, Ordering};

use integration::datagrams::Line;
use integration::kernel_vxlan::KernelVxlan;
use integration::noise::Noise;
use integration::overlayd::{Status, await_mesh};
use integration::packets::{udp_packet, vxlan_frame};
use integration::site::Wire;
use integration::steady::{Paced, Steady};
use integration::traffic::{self, Server};
use integration::{Backend, Host, Namespace, Overlayd, Pair, Pod, SOON, Site, Store, await_until};
use socket2::{Domain, Socket, Type};

#[test]
fn traffic_passes_by_rings_on_both_sides_over_vxlan() {
    traffic_passes(Backend::Vxlan, ["--io=xdp"; 2], Wire::Virtual);
}

#[test]
fn traffic_passes_by_rings_on_both_sides_over_udp() {
    traffic_passes(Backend::Udp, ["--io=xdp"; 2], Wire::Plain);
}

#[test]
fn traffic_passes_by_rings_on_one_side_over_vxlan() {
    traffic_passes(Backend::Vxlan, ["--io=xdp", "--io=udp"], Wire::Plain);
}

#[test]
fn traffic_passes_by_rings_on_one_side_over_udp() {
    traffic_passes(Backend::Udp, ["--io=udp", "--io=xdp"], Wire::Virtual);
}

#[test]
fn traffic_passes_in_generic_mode_if_asked_for() {
    // A virtual wire would bring runs whole, which are for the sockets, and nobody could say what came first.
    traffic_passes(Backend::Vxlan, ["--io=xdp-generic", "--io=xdp"], Wire::Plain);
}

#[test]
fn traffic_passes_to_a_kernel_vxlan_peer() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let daemon = worker.overlayd(&store).flag("--io=xdp").start();
    let kernel = KernelVxlan::start(&master, &store, "10.1.163");
    daemon.await_peers(&["10.1.163.0/24"]);
    let (a, b) = (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()));
    await_next_hops(&worker, &a, &b);
    carries(&a, &b);
    assert_by_rings(&daemon);
}

fn traffic_passes(backend: Backend, ways: [&str; 2], wire: Wire) {
    let (site, worker, master) = Site::two_hosts_on(wire);
    let store = Store::dir(&site, backend);
    let left = worker.overlayd(&store).flag(ways[0]).start();
    let right = master.overlayd(&store).flag(ways[1]).start();
    await_mesh(&[&left, &right]);
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    for (host, way) in [(&worker, ways[0]), (&master, ways[1])] {
        if way != "--io=udp" {
            await_next_hops(host, &a, &b);
        }
    }
    carries(&a, &b);
    for (daemon, way) in [(&left, ways[0]), (&right, ways[1])] {
        match way {
            "--io=udp" => assert!(daemon.status().0["io"]["rings"].is_null()),
            _ => assert_by_rings(daemon),
        }
        let status = daemon.status();
        assert_eq!(status.all_drops("ingress"), 0, "{}", status.0["drops"]);
    }
}

/// Has packets pass, until the daemon of `host` knows its one peer's next hop.
#[track_caller]
fn await_next_hops(host: &Host, a: &Pod, b: &Pod) {
    await_until(SOON, "a next hop", || {
        traffic::answers(&a.ns, b.address) && look(&host.ns, "/next_hops") == Some(1)
    });
}

/// TCP and UDP, small and large, both ways.
#[track_caller]
fn carries(a: &Pod, b: &Pod) {
    traffic::transfer(&a.ns, &b.ns, b.address, 8);
    traffic::transfer(&b.ns, &a.ns, a.address, 8);
    for (from, to) in [(a, b), (b, a)] {
        let line = Line::new(&from.ns, &to.ns, to.address);
        let noise = Noise::default().octets(20_000);
        // More at once than the 256 places of a veth's queue would not be sure to arrive.
        line.burst(&noise.chunks(64).take(120).map(<[u8]>::to_vec).collect::<Vec<_>>());
        line.burst(&noise.chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>());
        // Of those by which a worker's batch is filled the kernel makes more. These come one by one.
        for datagram in noise.chunks(100) {
            line.burst(&[datagram.to_vec()]);
        }
        let _echo = Server::udp_echo(&to.ns, 7);
        traffic::echo(&from.ns, to.address, 7, 9000);
    }
}

#[track_caller]
fn assert_by_rings(daemon: &Overlayd<'_>) {
    let status = daemon.status();
    let rings = rings(&status);
    let count = |direction: &str| rings["datagrams"][direction].as_u64().unwrap();
    assert!(count("egress") > 120 && count("ingress") > 120, "{rings}");
    assert_eq!(rings["zero_copy"], false, "{rings}");
    // Neither in fragments, nor in runs: all of it is in one order, that of its queue.
    assert_eq!(rings["by_sockets"]["ingress"], 0, "{rings}");
    for reason in ["malformed", "bad_checksum", "no_frame", "ring_full"] {
        assert_eq!(rings["drops"][reason], 0, "{rings}");
    }
}

#[track_caller]
fn rings(status: &Status) -> serde_json::Value {
    let rings = &status.0["io"]["rings"];
    assert!(rings.is_object(), "{}", status.0["io"]);
    rings.clone()
}

/// What the daemon says of its rings; nothing while the node is built anew.
fn look(ns: &Namespace, what: &str) -> Option<u64> {
    let overlayctl = integration::overlayd::program("overlayctl").display().to_string();
    let output = ns.run(&format!("{overlayctl} status --json"));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    status["io"]["rings"].pointer(what)?.as_u64()
}

#[track_caller]
fn pair<'h>(site: &Site, hosts: [&'h Host; 2]) -> (Pair<'h>, Store) {
    let store = Store::dir(site, Backend::Vxlan);
    (Pair::start(hosts, &store, &["--io=xdp"]), store)
}

fn has_program(ns: &Namespace, device: &str) -> bool {
    ns.ok(&format!("ip link show {device}")).contains("prog/xdp")
}

/// Waits until pings between the pods leave by the ring.
#[track_caller]
fn await_by_ring(host: &Host, from: &Pod, to: &Pod) {
    let sent = || look(&host.ns, "/datagrams/egress");
    await_until(SOON, "pings to leave by the ring, and to be answered", || {
        let before = sent();
        before.is_some() && traffic::answers(&from.ns, to.address) && sent() > before
    });
}

#[test]
fn the_interface_works_after_the_daemon_was_killed() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { left, right: _right, a: _a, b: _b }, _store) = pair(&site, [&worker, &master]);
    assert!(has_program(&worker.ns, "eth0"));
    left.crash();
    await_until(SOON, "the program to go with its process", || !has_program(&worker.ns, "eth0"));
    traffic::ping(&worker.ns, master.public_ip);
    traffic::transfer(&worker.ns, &master.ns, master.public_ip, 8);
}

#[test]
fn a_new_process_goes_on_where_the_program_is_and_nothing_of_others_is_lost() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { mut left, right: _right, a, b }, store) = pair(&site, [&worker, &master]);
    await_by_ring(&worker, &a, &b);
    let others = [
        Steady::start(&worker.ns, &master.ns, master.public_ip),
        Steady::start(&master.ns, &worker.ns, worker.public_ip),
    ];
    for end in [Overlayd::stop_for_restart, Overlayd::crash, Overlayd::stop_for_restart] {
        let manager = end(left);
        assert!(has_program(&worker.ns, "eth0"), "the service manager keeps its place");
        traffic::ping(&worker.ns, master.public_ip);
        left = worker.overlayd(&store).flag("--io=xdp").by(manager).start();
        await_by_ring(&worker, &a, &b);
    }
    for stream in others {
        stream.nothing_lost();
    }
    // Who wants it elsewhere, or not at all, is not kept from that by what was there.
    for (way, mode) in
        [("--io=xdp-generic", Some("generic")), ("--io=xdp", Some("native")), ("--io=udp", None)]
    {
        let manager = left.stop_for_restart();
        left = worker.overlayd(&store).flag(way).by(manager).start();
        assert_eq!(left.status().0["io"]["rings"]["mode"].as_str(), mode, "{way}: {}", left.status().0["io"]);
        traffic::ping(&a.ns, b.address);
    }
    await_until(SOON, "the program to be gone", || !has_program(&worker.ns, "eth0"));
}

#[test]
fn a_restart_loses_nothing_of_the_overlays() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { left, right: _right, a, b }, store) = pair(&site, [&worker, &master]);
    await_by_ring(&worker, &a, &b);
    let streams = [Paced::start(&a.ns, &b.ns, b.address, 500), Paced::start(&b.ns, &a.ns, a.address, 500)];
    streams.iter().for_each(|stream| stream.await_more(100));
    let manager = left.stop_for_restart();
    let left = worker.overlayd(&store).flag("--io=xdp").by(manager).start();
    streams.iter().for_each(|stream| stream.await_more(100));
    await_by_ring(&worker, &a, &b);
    for stream in streams {
        let order = stream.stop();
        assert_eq!(order.received, order.sent, "{order:?}");
        // Rings that were looked at before the sockets would let some 40 be overtaken.
        assert!(order.overtaken <= BY_THE_KERNEL, "{order:?}");
    }
    assert_eq!(left.status().all_drops("ingress"), 0);
}

#[test]
fn a_datagram_whose_checksum_is_wrong_is_dropped_and_counted() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { left, right, a, b }, _store) = pair(&site, [&worker, &master]);
    await_by_ring(&worker, &a, &b);
    let mac = left.status().0["backend"]["vtep_mac"].as_str().map(integration::packets::mac);
    let inner = udp_packet(b.address, a.address, 9, b"for nobody");
    let frame = vxlan_frame(1, mac.expect("a VTEP MAC"), &inner);
    let good = udp_packet(master.public_ip, worker.public_ip, 8472, &frame);
    // With this protocol a raw socket takes packets with their IP header (raw(7)).
    let raw = master.ns.within(|| Socket::new(Domain::IPV4, Type::RAW, Some(255.into())));
    let raw = raw.expect("a raw socket");
    let send = |packet: &[u8]| {
        let to = std::net::SocketAddr::from((worker.public_ip, 0));
        raw.send_to(packet, &to.into()).expect("send by a raw socket");
    };
    let received = || left.status().0["counters"]["ingress"]["packets"].as_u64().expect("a count");
    let before = received();
    let (last, checksum) = (good.len() - 1, 26..28);
    let mut damaged = good.clone();
    damaged[last] ^= 0x10;
    (0..5).for_each(|_| send(&damaged));
    // As good as none at all, and so is not asked for.
    let mut without = damaged.clone();
    without[checksum].fill(0);
    send(&without);
    send(&good);
    // (The daemons send some themselves.)
    await_until(SOON, "the good ones to come through", || received() >= before + 2);
    await_until(SOON, "the bad ones to be counted", || look(&worker.ns, "/drops/bad_checksum") >= Some(5));
    assert_eq!(look(&worker.ns, "/drops/bad_checksum"), Some(5));
    drop(right);
}

#[test]
fn other_traffic_is_unharmed_while_the_program_comes_and_goes() {
    other_traffic_is_unharmed(10);
}

#[test]
fn full_other_traffic_is_unharmed_while_the_program_comes_and_goes_a_hundred_times() {
    other_traffic_is_unharmed(100);
}

fn other_traffic_is_unharmed(times: usize) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let done = &AtomicBool::new(false);
    let transfers = std::thread::scope(|threads| {
        let (from, to, address) = (&worker.ns, &master.ns, master.public_ip);
        let traffic = threads.spawn(move || {
            let mut transfers = 0;
            while !done.load(Ordering::Relaxed) {
                traffic::transfer(from, to, address, 2);
                transfers += 1;
            }
            transfers
        });
        // Each start attaches the program, each stop takes it away.
        for _ in 0..times {
            let daemon = worker.overlayd(&store).flag("--io=xdp").start();
            assert!(has_program(&worker.ns, "eth0"));
            daemon.stop();
        }
        done.store(true, Ordering::Relaxed);
        traffic.join().expect("what is sent arrives whole")
    });
    assert!(transfers > 2, "{transfers} transfers");
    await_until(SOON, "the program to be gone", || !has_program(&worker.ns, "eth0"));
}

#[test]
fn a_gateway_with_another_address_is_followed() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { left: _left, right: _right, a, b }, _store) = pair(&site, [&worker, &master]);
    await_by_ring(&worker, &a, &b);
    let lan = Site::lan_device(worker.public_ip);
    site.router.ip(&format!("link set {lan} address 02:00:00:00:00:77"));
    // Its neighbours are gone with its address: its own question tells the worker the new one.
    traffic::ping(&site.router, worker.public_ip);
    await_by_ring(&worker, &a, &b);
    let neighbours = worker.ns.ok("ip neigh show dev eth0");
    assert!(neighbours.contains("02:00:00:00:00:77"), "{neighbours}");
}

#[test]
fn another_gateway_is_followed() {
    let (site, worker, master) = Site::two_hosts_by_side_gateway();
    let (Pair { left: _left, right: _right, a, b }, _store) = pair(&site, [&worker, &master]);
    await_by_ring(&worker, &a, &b);
    // To the bystander that forwards nothing, and back.
    worker.ns.ip("route replace 192.168.199.0/24 via 192.168.1.1");
    // (One answer may be late.)
    await_until(SOON, "nothing to come through", || (0..3).all(|_| !traffic::answers(&a.ns, b.address)));
    worker.ns.ip("route replace 192.168.199.0/24 via 192.168.1.4");
    await_by_ring(&worker, &a, &b);
}

#[test]
fn an_interface_that_goes_down_and_up_is_used_again() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { left: _left, right: _right, a, b }, _store) = pair(&site, [&worker, &master]);
    await_by_ring(&worker, &a, &b);
    worker.ns.ip("link set eth0 down");
    assert!(!traffic::answers(&a.ns, b.address));
    worker.ns.ip(&format!("link set eth0 up\nroute add default via {}", site.router_address()));
    await_by_ring(&worker, &a, &b);
}

#[test]
fn an_interface_with_another_mtu_or_more_queues_gets_new_rings() {
    let (site, worker, master) = Site::two_hosts();
    let (Pair { left, right: _right, a, b }, _store) = pair(&site, [&worker, &master]);
    worker.ns.ok("ethtool -L eth0 rx 2 tx 2");
    await_until(SOON, "rings for two queues", || look(&worker.ns, "/queues") == Some(2));
    await_by_ring(&worker, &a, &b);
    worker.ns.ip("link set eth0 mtu 1400");
    await_until(SOON, "the overlay's smaller MTU", || left.env().mtu == 1350);
    await_by_ring(&worker, &a, &b);
}

#[test]
fn an_interface_with_a_program_of_somebody_elses_is_left_alone() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // That of a daemon of another network is as foreign as any.
    let other = Store::dir_with(
        &site,
        "other",
        r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":8473}}"#,
    );
    let first = worker.overlayd(&other).named("other").flag("--io=xdp").start();
    assert!(has_program(&worker.ns, "eth0"));
    let left = worker.overlayd(&store).flag("--io=xdp").start();
    let right = master.overlayd(&store).flag("--io=xdp").start();
    let status = || Status::of(&worker.ns, &["--device=flannel.1"]);
    await_until(SOON, "the peers", || status().peers().len() == 1 && right.status().peers().len() == 1);
    let status = status();
    let why = status.0["io"]["fallback"].as_str().expect("a reason");
    assert!(why.contains("eth0") && why.contains("XDP") && why.contains("--io=udp"), "{why}");
    assert!(left.log().contains("not by XDP"), "{}", left.log());
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    carries(&a, &b);
    assert!(has_program(&worker.ns, "eth0"), "the other one's");
    first.stop();
    await_until(SOON, "rings of its own, now that the other's are gone", || {
        Status::of(&worker.ns, &["--device=flannel.1"]).0["io"]["rings"].is_object()
    });
    await_by_ring(&worker, &a, &b);
}

#[test]
fn sockets_are_chosen_where_the_driver_would_copy() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let daemon = worker.overlayd(&store).flag("--io=auto").start();
    let status = daemon.status();
    assert!(
        status.0["io"]["rings"].is_null() && status.0["io"]["fallback"].is_string(),
        "{}",
        status.0["io"]
    );
    assert!(!has_program(&worker.ns, "eth0"));
}

#[test]
fn a_user_of_its_own_has_rings_if_it_may_lock_their_memory() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let right = master.overlayd(&store).flag("--io=xdp").start();
    let launch = || worker.overlayd(&store).flag("--io=xdp").as_user(USER);
    let left = launch().start();
    await_mesh(&[&left, &right]);
    let status = left.status();
    let why = status.0["io"]["fallback"].as_str().expect("a reason");
    assert!(why.contains("LimitMEMLOCK="), "{why}");
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    traffic::ping(&a.ns, b.address);
    // A limit can only be raised by who has a right that not every root has; this one stands for it.
    let manager = left.stop_for_restart();
    let left = launch().capability("ipc_lock").by(manager).start();
    await_by_ring(&worker, &a, &b);
    assert_eq!(left.status().0["io"]["rings"]["mode"], "native");
}

/// Nobody's number on any host.
const USER: u32 = 64_244;
/// So many datagrams the kernel itself may let others overtake: those of a sender that is moved to another processor.
const BY_THE_KERNEL: u64 = 10;
