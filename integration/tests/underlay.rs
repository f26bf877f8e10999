//! The interface to the other nodes: behind a NAT, and changing while the daemon runs.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use integration::capture::Capture;
use integration::overlayd::await_mesh;
use integration::{Backend, Pair, Pod, SOON, Site, Store, SubnetEnv, await_until, traffic};

#[test]
fn a_node_behind_a_nat_is_reached_by_its_public_address() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    site.router.ip("address add 192.168.199.77/32 dev lan199");
    for rule in [
        "PREROUTING -d 192.168.199.77 -p udp --dport 8472 -j DNAT --to-destination 192.168.1.12",
        "POSTROUTING -o lan199 -s 192.168.1.12 -p udp -j SNAT --to-source 192.168.199.77",
    ] {
        site.router.ok(&format!("iptables -t nat -A {rule}"));
    }
    let w = worker.overlayd(&store).flag("--public-ip=192.168.199.77").start();
    let m = master.overlayd(&store).start();
    await_mesh(&[&w, &m]);
    assert_eq!(m.status().0["peers"][0]["public_ip"], "192.168.199.77");
    assert!(worker.ns.ok("ss -Hlun").contains("192.168.1.12:8472"), "bound to the interface's own address");
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let inside = Capture::start(&master.ns, "eth0", "host 192.168.1.12", master.directory());
    // The master's first packet opens the way in, the worker's the way out.
    for (from, to) in [(&b, &a), (&a, &b)] {
        traffic::ping(&from.ns, to.address);
        traffic::transfer(&from.ns, &to.ns, to.address, 4);
    }
    assert_eq!(inside.stop().len(), 0, "the worker's own address is not seen outside");
}

#[test]
fn a_public_address_that_the_host_has_besides_works_both_ways() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        for (address, device) in [("192.168.199.50", "eth0"), ("172.20.0.5", "vip0")] {
            let (site, worker, master) = Site::two_hosts();
            let store = Store::dir(&site, backend);
            master.ns.ip(&format!(
                "link add vip0 type bridge\nlink set vip0 up\naddress add {address}/32 dev {device}"
            ));
            site.router.ip(&format!("route add {address} via {}", master.public_ip));
            let w = worker.overlayd(&store).start();
            let m =
                master.overlayd(&store).flag("--iface=eth0").flag(&format!("--public-ip={address}")).start();
            await_mesh(&[&w, &m]);
            assert_eq!(w.status().0["peers"][0]["public_ip"], address);
            let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
            for (from, to) in [(&b, &a), (&a, &b)] {
                traffic::ping(&from.ns, to.address);
            }
            assert_eq!(w.status().drops("ingress", "unknown_address"), 0);
        }
    }
}

#[test]
fn a_virtual_address_that_was_taken_meanwhile_does_not_move_the_node_at_its_next_start() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    worker.ns.ip("address change 192.168.1.12/24 dev eth0 valid_lft 3600 preferred_lft 3600");
    let w = worker.overlayd(&store).start();
    let subnet = w.env().subnet;
    w.stop();
    worker.ns.ip("address add 192.168.1.100/24 dev eth0");
    let w = worker.overlayd(&store).start();
    assert_eq!(w.status().0["lease"]["public_ip"], "192.168.1.12");
    assert_eq!(w.env().subnet, subnet);
    assert_eq!(store.leases().len(), 1);
}

#[test]
fn replies_from_another_address_of_a_node_pass_once_it_has_said_that_it_has_it() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    master.ns.ip("link add vip0 type bridge\nlink set vip0 up\naddress add 172.16.5.1/32 dev vip0");
    site.router.ip(&format!("route add 172.16.5.1 via {}", master.public_ip));
    let pair = Pair::start([&worker, &master], &store, &[]);
    // What goes there by the underlay comes back by the overlay.
    for host in [&worker, &master] {
        for device in ["all", "eth0", "flannel.1"] {
            host.ns.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
        }
    }
    let vip = Ipv4Addr::new(172, 16, 5, 1);
    await_until(SOON, "the reply", || traffic::answers(&pair.a.ns, vip));
    let refused = pair.left.status().drops("ingress", "wrong_source");
    assert!(refused > 0, "until it has said so");
    traffic::ping(&pair.a.ns, vip);
    assert_eq!(pair.left.status().drops("ingress", "wrong_source"), refused);
}

#[test]
fn a_node_behind_a_nat_that_does_not_say_so_is_counted_apart_and_told_what_to_do() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    site.router.ip("address add 192.168.199.77/32 dev lan199");
    site.router.ok(
        "iptables -t nat -A POSTROUTING -o lan199 -s 192.168.1.12 -p udp -j SNAT --to-source 192.168.199.77",
    );
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    for _ in 0..3 {
        assert!(!traffic::answers(&a.ns, b.address));
    }
    await_until(SOON, "it to be counted", || m.status().drops("ingress", "unknown_address") >= 3);
    assert_eq!(m.status().drops("ingress", "unknown_peer"), 0);
    await_until(SOON, "a word about it", || m.log().contains("unknown_address"));
    assert!(!traffic::answers(&a.ns, b.address));
    let log = m.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("unknown_address")).collect();
    assert!(told.len() == 1 && told[0].contains("--public-ip"), "{told:?}");
    let text = master.ns.ok(&format!("{} status", integration::overlayd::program("overlayctl").display()));
    assert!(
        text.lines().any(|line| line.starts_with("unknown_address: ") && line.contains("--public-ip")),
        "{text}"
    );
}

#[test]
fn the_reason_for_the_interface_is_logged() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let log = |flag: &str| {
        let launch = store.flags().iter().fold(worker.bare_overlayd(), |launch, flag| launch.flag(flag));
        let daemon = launch.flag(flag).start();
        let log = daemon.log();
        daemon.stop();
        // All of them write to one file.
        let line = log.lines().rfind(|line| line.contains("interface chosen"));
        line.unwrap_or_else(|| panic!("{log}")).to_owned()
    };
    for flag in ["--iface=eth0", "--iface-regex=^192\\.168\\.1\\.", "-iface-can-reach=192.168.199.238"] {
        let line = log(flag);
        let value = flag.split_once('=').unwrap().1.replace('\\', "");
        let said = line.replace('\\', "");
        assert!(said.contains(&value) && said.contains("192.168.1.12") && said.contains("eth0"), "{line}");
    }
    assert!(log("--public-ip=192.168.1.12").contains("--public-ip"));
    assert!(log("-v=0").contains("default route"));
    let refusal = worker.bare_overlayd().flag("--store=dir:/tmp").flag("--iface-regex=^wlan").refused();
    assert!(refusal.contains("^wlan") && refusal.contains("eth0 (192.168.1.12)"), "{refusal}");
}

#[test]
fn connections_survive_another_address_of_the_host_over_udp() {
    connections_survive_another_address_of_the_host(Backend::Udp);
}

#[test]
fn connections_survive_another_address_of_the_host_over_vxlan() {
    connections_survive_another_address_of_the_host(Backend::Vxlan);
}

fn connections_survive_another_address_of_the_host(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, backend);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let (env, mac) = (pair.left.env(), pair.left.status().0["backend"]["vtep_mac"].clone());
    let mut connection = Connection::open(&pair.a, &pair.b);
    connection.check();
    let index = worker.ns.ok(&format!("cat /sys/class/net/{}/ifindex", backend.device()));

    worker.ns.ip("address del 192.168.1.12/24 dev eth0\naddress add 192.168.1.50/24 dev eth0\n\
         route add default via 192.168.1.1");
    connection.check();
    await_until(SOON, "the lease to say so", || store.leases()[&env.key()].contains("192.168.1.50"));
    assert_eq!(store.leases().len(), 2);
    await_until(SOON, "the master to follow", || {
        pair.right.status().0["peers"][0]["public_ip"] == "192.168.1.50"
    });
    assert_eq!(pair.left.env(), env);
    let status = pair.left.status().0;
    assert_eq!(
        (&status["lease"]["public_ip"], &status["backend"]["vtep_mac"]),
        (&"192.168.1.50".into(), &mac)
    );
    let after = worker.ns.ok(&format!("cat /sys/class/net/{}/ifindex", backend.device()));
    assert_eq!(after, index, "the device itself has stayed");
    traffic::ping(&pair.b.ns, pair.a.address);
    connection.check();

    // Restarted, it is known by the new address.
    let Pair { left, right: _right, a, b } = pair;
    left.stop();
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env(), env);
    await_until(SOON, "the pods to reach each other", || traffic::answers(&a.ns, b.address));
}

#[test]
fn connections_survive_a_link_that_goes_down_and_up() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let mut connection = Connection::open(&pair.a, &pair.b);
    for _ in 0..3 {
        // The cable, which leaves routes alone, then the interface, which does not.
        site.router.ip("link set lan1 down");
        assert!(!traffic::answers(&pair.a.ns, pair.b.address));
        site.router.ip("link set lan1 up");
        connection.check();
        worker.ns.ip("link set eth0 down");
        assert!(!traffic::answers(&pair.a.ns, pair.b.address));
        worker.ns.ip("link set eth0 up\nroute add default via 192.168.1.1");
        connection.check();
    }
    await_until(SOON, "no problem to be left", || {
        pair.left.status().0["host"]["problems"] == serde_json::json!([])
    });
    assert!(!pair.left.log().contains("the node is rebuilt"), "{}", pair.left.log());
}

#[test]
fn connections_survive_another_gateway() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let mut connection = Connection::open(&pair.a, &pair.b);
    site.router.ip("address add 192.168.1.9/24 dev lan1");
    worker.ns.ip("route replace default via 192.168.1.9");
    // The first gateway is no more.
    site.router.ip("address del 192.168.1.1/24 dev lan1");
    site.router.ip("address replace 192.168.1.9/24 dev lan1");
    connection.check();
    traffic::ping(&pair.a.ns, pair.b.address);
    assert!(!pair.left.log().contains("the node is rebuilt"), "{}", pair.left.log());
}

#[test]
fn another_mtu_of_the_interface_is_passed_on() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let mut connection = Connection::open(&pair.a, &pair.b);
    let before = pair.left.env();
    worker.ns.ip("link set eth0 mtu 1400");
    let expected = SubnetEnv { mtu: 1350, ..before };
    await_until(SOON, "the subnet file to say so", || pair.left.env() == expected);
    await_until(SOON, "the device to have it", || {
        worker.ns.ok("ip -o link show flannel.1").contains("mtu 1350 ")
    });
    connection.check();
    traffic::ping(&pair.b.ns, pair.a.address);
}

#[test]
fn an_interface_that_was_deleted_is_used_again_when_it_is_back() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let mut connection = Connection::open(&pair.a, &pair.b);
    worker.ns.ip("link del eth0");
    await_until(SOON, "the daemon to say so", || pair.left.log().contains("not as it was"));
    site.router.ip(&format!(
        "link add lan1 type veth peer name eth0 netns {}\naddress add 192.168.1.1/24 dev lan1\nlink set lan1 up",
        worker.ns.name()
    ));
    worker.ns.ip("address add 192.168.1.12/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.1.1");
    connection.check();
    traffic::ping(&pair.a.ns, pair.b.address);
    // Each problem once: that it is not there, and perhaps that it is there without its address.
    let log = pair.left.log();
    let said: Vec<_> =
        log.lines().filter_map(|line| line.split_once("not as it was")).map(|(_, rest)| rest).collect();
    assert_eq!(BTreeSet::from_iter(&said).len(), said.len(), "{said:?}");
}

#[test]
fn routes_by_an_interface_that_was_deleted_are_back_when_it_is() {
    let (site, [worker, neighbour, _]) = Site::three_hosts();
    let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let store = Store::dir_with(&site, "store", config);
    // Once an hour: it is the events that count.
    let pair = Pair::start([&worker, &neighbour], &store, &["--iptables-resync=3600"]);
    let mut connection = Connection::open(&pair.a, &pair.b);
    worker.ns.ip("link del eth0");
    await_until(SOON, "the daemon to say so", || pair.left.log().contains("not as it was"));
    site.router.ip(&format!(
        "link add port1-12 type veth peer name eth0 netns {}\nlink set port1-12 master lan1 up",
        worker.ns.name()
    ));
    worker.ns.ip("address add 192.168.1.12/24 dev eth0\nlink set eth0 up");
    connection.check();
    let route = worker.ns.ok(&format!("ip route show {}", pair.right.env().base_with_length()));
    assert!(route.contains("via 192.168.1.13 dev eth0 proto 222"), "{route}");
}

/// A TCP connection between two pods.
struct Connection {
    near: TcpStream,
    far: TcpStream,
}

impl Connection {
    fn open(from: &Pod, to: &Pod) -> Self {
        let listener = to.ns.within(|| TcpListener::bind((to.address, 0))).expect("bind a TCP listener");
        let target = listener.local_addr().expect("a bound address");
        let near = from.ns.within(|| TcpStream::connect_timeout(&target, SOON)).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        for end in [&near, &far] {
            // Retransmissions are further apart the longer a way is closed.
            end.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
        }
        Self { near, far }
    }

    /// Sends a word there and another back.
    #[track_caller]
    fn check(&mut self) {
        let mut word = [0; 4];
        self.near.write_all(b"ping").expect("send");
        self.far.read_exact(&mut word).expect("the connection to go on");
        assert_eq!(&word, b"ping");
        self.far.write_all(b"pong").expect("answer");
        self.near.read_exact(&mut word).expect("the connection to go on, back");
        assert_eq!(&word, b"pong");
    }
}
