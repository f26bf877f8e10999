//! Several daemons side by side, on one host and in namespaces that share one filesystem.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use integration::capture::Capture;
use integration::overlayd::await_mesh;
use integration::process::Process;
use integration::{Backend, Host, Namespace, SOON, Site, Status, Store, Wire, await_until, traffic};

#[test]
fn two_networks_live_on_the_same_hosts() {
    let (site, worker, master) = Site::two_hosts();
    let one = Store::dir_with(&site, "one", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let two = Store::dir_with(&site, "two", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"udp"}}"#);
    let w1 = worker.overlayd(&one).named("one").start();
    let w2 = worker.overlayd(&two).named("two").start();
    let m1 = master.overlayd(&one).named("one").start();
    let m2 = master.overlayd(&two).named("two").start();

    let of = |device| Status::of(&worker.ns, &["--device", device]);
    for (device, network, peer) in [("flannel.1", "10.1.0.0/16", &m1), ("flannel0", "10.2.0.0/16", &m2)] {
        await_until(SOON, "the peer", || of(device).peers() == [peer.env().base_with_length()]);
        assert_eq!(of(device).0["network"], network);
        assert_eq!(of(device).0["device"]["name"], device);
        traffic::ping(&worker.ns, peer.env().base());
    }

    // One of them stops; the other carries on, and is now the only one that the tool finds.
    w2.stop();
    assert_eq!(w1.status().0["device"]["name"], "flannel.1");
    traffic::ping(&worker.ns, m1.env().base());
}

#[test]
fn a_tunnel_and_plain_routes_live_side_by_side() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let one = Store::dir_with(&site, "one", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let two = Store::dir_with(&site, "two", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let start =
        |host| [(&one, "one"), (&two, "two")].map(|(s, name)| Host::overlayd(host, s).named(name).start());
    let ([w1, w2], [m1, m2]) = (start(&worker), start(&master));
    let of = |device| Status::of(&worker.ns, &["--device", device]);
    for (device, peer) in [("flannel.1", &m1), ("10.2.0.0", &m2)] {
        await_until(SOON, "the peer", || of(device).peers() == [peer.env().base_with_length()]);
    }
    let (a, b) = (worker.bridge_and_pod(&w2.env()), master.bridge_and_pod(&m2.env()));
    let seen = |from: &Namespace, to: Ipv4Addr| {
        // (The echoes by which the daemons ask for the path's MTU are longer.)
        let captures = [("flannel.1", "icmp"), ("eth0", "icmp"), ("eth0", "udp port 8472 and less 400")];
        let captures =
            captures.map(|(device, filter)| Capture::start(&worker.ns, device, filter, worker.directory()));
        traffic::ping(from, to);
        captures.map(|capture| capture.stop().len())
    };
    assert_eq!(seen(&worker.ns, m1.env().base()), [6, 0, 6], "through the tunnel");
    assert_eq!(seen(&a.ns, b.address), [0, 6, 0], "as they are");

    // Each looks after its own routes only, also when it starts and when it ends.
    let routes = || worker.ns.ok("ip route show proto 222");
    let before = routes();
    assert_eq!(before.lines().count(), 3, "{before}");
    w1.stop();
    let plain = routes();
    assert!(plain.contains("via 192.168.1.13 dev eth0"), "{plain}");
    let _w1 = worker.overlayd(&one).named("one").start();
    assert_eq!(routes(), before);
    w2.stop();
    let _w2 = worker.overlayd(&two).named("two").start();
    await_until(SOON, "the routes to be as they were", || routes() == before);
    traffic::ping(&worker.ns, m1.env().base());
    traffic::ping(&b.ns, a.address);
}

/// As 10.0.0.0/8 of one site and a part of it, used for itself. Each puts back what somebody takes from it, and takes
/// nothing from the other, nor what that rejects in its own network.
#[test]
fn networks_of_which_one_lies_in_the_other_leave_each_other_alone() {
    let (site, worker, master) = Site::two_hosts();
    let wide = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.2.255.0","Backend":{"Type":"vxlan"}}"#;
    let narrow = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":8473}}"#;
    let (one, two) = (Store::dir_with(&site, "one", wide), Store::dir_with(&site, "two", narrow));
    // Something of the host's own, on account of which what is not leased is rejected.
    worker.ns.ip("route add 10.5.0.0/24 via 192.168.1.1");
    let start =
        |host| [(&one, "one"), (&two, "two")].map(|(s, name)| Host::overlayd(host, s).named(name).start());
    let ([w1, w2], [m1, m2]) = (start(&worker), start(&master));
    let of = |device| Status::of(&worker.ns, &["--device", device]);
    for (device, peer) in [("flannel.1", &m1), ("flannel.2", &m2)] {
        await_until(SOON, "the peer", || of(device).peers() == [peer.env().base_with_length()]);
    }
    let routes = || {
        let routes = worker.ns.ok("ip route show proto 222");
        let mut lines: Vec<String> = routes.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.sort();
        lines
    };
    let [theirs, narrower] = [&m1, &m2].map(|peer| peer.env().base_with_length());
    let settled = || {
        let routes = routes();
        let has = |begins: &str, part: &str| {
            routes.iter().any(|line| line.starts_with(begins) && line.contains(part))
        };
        has(&theirs, "dev flannel.1")
            && has(&narrower, "dev flannel.2")
            && has("unreachable 10.1.", "metric")
            && has("unreachable 10.5.", "metric")
    };
    await_until(SOON, "the routes of both", settled);
    let before = routes();
    let reach = || [&m1, &m2].iter().for_each(|peer| traffic::ping(&worker.ns, peer.env().base()));
    reach();

    let mut command = worker.ns.command("ip");
    command.args(["monitor", "route"]);
    let mut monitor = Process::spawn("monitor", command, worker.directory());
    let tells = |monitor: &Process, of: &str| {
        worker.ns.ip(&format!("route add {of} via 192.168.1.1\nroute del {of} via 192.168.1.1"));
        monitor.log().contains(of)
    };
    await_until(SOON, "the monitor to listen", || tells(&monitor, "172.31.0.0/24"));
    for (route, device) in [(&theirs, "flannel.1"), (&narrower, "flannel.2"), (&theirs, "flannel.1")] {
        worker.ns.ip(&format!("route del {route} dev {device}"));
        await_until(SOON, "the route to be back", || routes() == before);
        reach();
    }
    await_until(SOON, "the last event", || tells(&monitor, "172.30.0.0/24"));
    let log = monitor.log();
    let deleted: Vec<&str> =
        log.lines().filter(|line| line.contains("Deleted") && line.contains("proto 222")).collect();
    assert_eq!(deleted.len(), 3, "none but by us:\n{log}");
    monitor.kill();

    // One that starts finds the other's.
    w1.stop();
    let w1 = worker.overlayd(&one).named("one").start();
    await_until(SOON, "the routes of both", || routes() == before);
    reach();
    w2.stop();
    let _w2 = worker.overlayd(&two).named("two").start();
    await_until(SOON, "the routes of both", || routes() == before);
    reach();
    drop(w1);
}

#[test]
fn a_daemon_whose_port_is_taken_leaves_the_others_device_alone() {
    let taken = ["192.168.1.12:8472", "the port is taken", "it is overlayd's (process ", "another Port"];
    a_second_daemon_is_refused(r#"{"Type":"vxlan","VNI":2}"#, &taken);
}

#[test]
fn a_daemon_of_the_same_device_on_another_port_is_refused() {
    for backend in [r#"{"Type":"vxlan","Port":8473}"#, r#"{"Type":"vxlan"}"#] {
        let claimed = ["another overlayd (process ", "of flannel.1 on this host: stop it", "VNI"];
        a_second_daemon_is_refused(backend, &claimed);
    }
}

/// A daemon of another network is refused beside one of vxlan, with these words and the other's process, and nothing
/// is changed.
fn a_second_daemon_is_refused(backend: &str, said: &[&str]) {
    let (site, worker, master) = Site::two_hosts();
    let one = Store::dir(&site, Backend::Vxlan);
    let config = format!(r#"{{"Network":"10.2.0.0/16","Backend":{backend}}}"#);
    let two = Store::dir_with(&site, "two", &config);
    let (w, m) = (worker.overlayd(&one).start(), master.overlayd(&one).start());
    await_mesh(&[&w, &m]);
    let before = state(&worker.ns);
    // Each of them asks, and nobody answers: the third is told as much as the first.
    for _ in 0..3 {
        let log = worker.overlayd(&two).named("two").refused();
        assert!(said.iter().all(|part| log.contains(part)), "not all of {said:?} in {log}");
        assert!(log.contains(&format!("(process {})", w.id())), "{log}");
        assert_eq!(state(&worker.ns), before);
    }
    traffic::ping(&worker.ns, m.env().base());
}

#[test]
fn a_second_daemon_of_a_network_without_a_tunnel_is_refused_and_a_successor_is_not() {
    for backend in ["host-gw", "alloc"] {
        let (site, worker, _master) = Site::two_hosts();
        let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
        let store = Store::dir_with(&site, "store", &config);
        let other = Store::dir_with(&site, "other", &config.replace("10.1.0.0/16", "10.2.0.0/16"));
        let first = worker.overlayd(&store).start();
        let before = worker.ns.ok("nft list ruleset");
        let log = worker.overlayd(&store).named("second").refused();
        assert!(log.contains("another overlayd") && log.contains("10.1.0.0"), "{log}");
        assert!(log.contains(&format!("process {}", first.id())), "{log}");
        assert_eq!(worker.ns.ok("nft list ruleset"), before);
        let beside = worker.overlayd(&other).named("beside").start();

        // Whoever was killed has nothing any more.
        let mut first = first;
        first.process().kill();
        let next = worker.overlayd(&store).start();
        beside.stop();
        assert_eq!(next.status().0["lease"]["state"], "held");
    }
}

#[test]
fn a_start_that_is_refused_leaves_all_as_it_was_and_takes_no_lease() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let take = || worker.ns.within(|| std::net::UdpSocket::bind("192.168.1.12:8472")).expect("bind the port");
    let refused = || {
        let taken = take();
        let log = worker.overlayd(&store).refused();
        assert!(log.contains("192.168.1.12:8472") && log.contains("the port is taken"), "{log}");
        drop(taken);
    };
    let host = || {
        let looks = ["ip -o -4 address show", "ip route", "nft list ruleset", "iptables -S"];
        // Whether a device is open shows a moment later.
        looks.map(|look| worker.ns.ok(look).replace(" linkdown", ""))
    };
    let before = host();
    refused();
    assert_eq!(host(), before);
    assert!(store.leases().is_empty(), "a lease for a host that cannot run: {:?}", store.leases());

    worker.overlayd(&store).start().stop();
    await_until(SOON, "the kernel to see the device closed", || {
        worker.ns.ok("ip -o link show type tun").contains("NO-CARRIER")
    });
    let before = host();
    assert!(before.concat().contains("flannel.1"), "{before:?}");
    refused();
    assert_eq!(host(), before, "connections of an earlier run go on when it starts again");
}

#[test]
fn the_control_socket_is_found_from_its_own_namespace_only() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let socket = control_socket(&worker, "flannel0");
    assert!(socket.exists(), "{}", socket.display());
    assert_eq!(w.status().0["device"]["address"], w.env().base().to_string());
    let overlayctl = integration::overlayd::program("overlayctl");
    let elsewhere = master.ns.run(&format!("{} status", overlayctl.display()));
    assert!(!elsewhere.status.success());
    let table = worker.ns.ok(&format!("{} status", overlayctl.display()));
    assert!(table.contains(&w.env().base_with_length()) && table.contains("flannel0"), "{table}");
    w.stop();
    assert!(!socket.exists(), "{} is left", socket.display());
}

#[test]
fn a_user_is_told_that_the_socket_is_not_for_everybody() {
    let (site, worker, _master) = Site::two_hosts();
    let _w = worker.overlayd(&Store::dir(&site, Backend::Udp)).start();
    // A copy that everybody may run, wherever this is built.
    let overlayctl = site.directory("bin").join("overlayctl");
    std::fs::copy(integration::overlayd::program("overlayctl"), &overlayctl).unwrap();
    for directory in overlayctl.ancestors().skip(1).take(2) {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let output = worker.ns.run(&format!("{user} {} status", overlayctl.display()));
    let text = String::from_utf8_lossy(&output.stderr);
    let socket = control_socket(&worker, "flannel0");
    assert!(!output.status.success() && text.contains("Permission denied"), "{text}");
    assert!(text.contains(socket.to_str().unwrap()), "{text}");
}

#[test]
fn a_control_socket_that_is_taken_is_a_warning() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let socket = control_socket(&worker, "flannel.1");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let taken = UnixListener::bind(&socket).unwrap();
    let w = worker.overlayd(&store).start();
    let m = master.overlayd(&store).start();
    m.await_peers(&[&w.env().base_with_length()]);
    await_until(SOON, "it to forward all the same", || traffic::answers(&master.ns, w.env().base()));
    let log = w.log();
    let warned = log.lines().any(|line| line.contains("WARN") && line.contains(socket.to_str().unwrap()));
    assert!(warned, "{log}");
    w.stop();
    assert!(socket.exists(), "it was not the daemon's to remove");
    drop(taken);
}

#[test]
fn a_control_socket_left_by_a_crash_is_replaced() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    worker.overlayd(&store).start().process().kill();
    assert!(control_socket(&worker, "flannel.1").exists());
    let w = worker.overlayd(&store).start();
    assert_eq!(w.status().0["lease"]["state"], "held");
}

#[test]
fn a_control_socket_left_by_a_crash_of_another_device_does_not_confuse() {
    let (site, worker, _master) = Site::two_hosts();
    worker.overlayd(&Store::dir(&site, Backend::Vxlan)).named("before").start().process().kill();
    assert!(control_socket(&worker, "flannel.1").exists());
    let w = worker.overlayd(&Store::dir(&site, Backend::Udp)).start();
    assert_eq!(w.status().0["device"]["name"], "flannel0");
}

fn control_socket(host: &integration::Host, device: &str) -> PathBuf {
    PathBuf::from(format!("/run/overlayd/netns-{}/{device}.sock", host.ns.inode()))
}

/// What the first daemon has put into the kernel.
#[track_caller]
fn state(ns: &Namespace) -> String {
    ["ip -4 address show dev flannel.1", "ip route show", "nft list ruleset"]
        .map(|line| ns.ok(line))
        .join("\n")
}
