//! What runs goes on: whatever new configuration cannot be had, whatever stands beside the data plane and fails,
//! whatever hangs while the daemon is to rebuild or to end.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::leak::Leak;
use integration::overlayd::{Overlayd, await_mesh, program};
use integration::{Backend, Host, Pair, SOON, Site, Store, Wire, await_until, traffic};
use rustix::process::Signal;

#[test]
fn a_network_without_a_free_subnet_changes_nothing_until_there_is_one() {
    let config = r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.250.0","SubnetMax":"10.1.250.0","Backend":{"Type":"vxlan"}}"#;
    cannot_be_had(config, "no subnet is free", |_, store| {
        store.put_lease("10.1.250.0-24", FOREIGN);
        Box::new(|store: &Store| store.delete_lease("10.1.250.0-24"))
    });
}

#[test]
fn a_taken_port_changes_nothing_until_it_is_free() {
    let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":5,"Port":9999}}"#;
    cannot_be_had(config, "192.168.1.12:9999", |worker, _| {
        let taken = worker.ns.within(|| UdpSocket::bind("192.168.1.12:9999")).expect("bind the port");
        Box::new(move |_: &Store| drop(taken))
    });
}

#[test]
fn a_taken_device_changes_nothing_until_it_is_free() {
    let config = r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
    cannot_be_had(config, "flannel.7", |worker, _| {
        worker.ns.ip("link add flannel.7 type bridge");
        let ns = worker.ns.name().to_owned();
        Box::new(move |_: &Store| {
            let removed =
                std::process::Command::new("ip").args(["-n", &ns, "link", "del", "flannel.7"]).status();
            assert!(removed.expect("run ip").success());
        })
    });
}

/// Undoes what keeps a configuration from being had.
type Heal = Box<dyn FnOnce(&Store)>;

/// A daemon that is to apply `config`, which it cannot because of what `hinder` does, says so by `named` and goes on as
/// before, also after a crash; and applies it once that is over.
fn cannot_be_had(config: &str, named: &str, hinder: impl FnOnce(&Host, &Store) -> Heal) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir_with_free_subnets(&site, "store", Backend::Vxlan);
    let Pair { mut left, right, a, b } = Pair::start([&worker, &master], &store, &[]);
    let (key, lease) = (left.env().key(), store.leases()[&left.env().key()].clone());
    let routes = worker.ns.ok("ip route show proto 222");
    let heal = hinder(&worker, &store);
    store.put_config(config);
    left.process().signal(Signal::HUP);
    await_until(SOON, "the problem to be told", || tells(&worker, named));
    let unchanged = |left: &Overlayd<'_>| {
        traffic::ping(&a.ns, b.address);
        traffic::ping(&b.ns, a.address);
        assert_eq!(store.leases().get(&key), Some(&lease), "the lease is as it was");
        assert_eq!(worker.ns.ok("ip route show proto 222"), routes);
        assert_eq!(left.status().0["lease"]["state"], "held");
    };
    unchanged(&left);
    // Others' changes still arrive.
    store.put_lease("10.1.210.0-24", ANOTHER);
    await_until(SOON, "the new peer", || left.status().peers().contains(&"10.1.210.0/24"));
    assert_eq!(left.log().matches("cannot be applied").count(), 1, "said once:\n{}", left.log());

    let left = worker.overlayd(&store).by(left.crash()).start();
    await_until(SOON, "the problem to be told", || tells(&worker, named));
    unchanged(&left);

    heal(&store);
    await_until(SOON, "the configuration to be applied", || {
        left.log().contains("the network configuration is applied") && !tells(&worker, "is not applied")
    });
    await_until(SOON, "the earlier lease to be given up", || store.leases().get(&key) != Some(&lease));
    drop(right);
}

/// What only building it shows: the tunnel's source ports. (The earlier network's tunnel has one port.)
#[test]
fn a_network_that_cannot_be_built_leaves_the_earlier_one_with_its_lease() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir_with_free_subnets(&site, "store", Backend::Udp);
    let Pair { mut left, right, a, b } = Pair::start([&worker, &master], &store, &[]);
    let (key, lease) = (left.env().key(), store.leases()[&left.env().key()].clone());
    worker.ns.sysctl("net/ipv4/ip_local_port_range", "41000 41003");
    // Enough are left to find out that there can be a device.
    let taken: Vec<UdpSocket> = (41000..=41001)
        .map(|port| worker.ns.within(|| UdpSocket::bind(("0.0.0.0", port))).expect("bind the port"))
        .collect();
    store.put_config(r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#);
    left.process().signal(Signal::HUP);
    await_until(SOON, "the problem to be told", || tells(&worker, "the earlier one runs on"));
    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);
    assert_eq!(store.leases().get(&key), Some(&lease), "the lease is as it was");
    // The host's changes still reach it.
    worker.ns.ip("link add other type bridge");
    worker.ns.ip("addr add 172.20.0.1/24 dev other");
    traffic::ping(&a.ns, b.address);

    drop(taken);
    worker.ns.sysctl("net/ipv4/ip_local_port_range", "32768 60999");
    await_until(SOON, "the new network", || left.log().contains("forwarding device=\"flannel.7\""));
    await_until(SOON, "the earlier lease to be given up", || !store.leases().contains_key(&key));
    await_until(SOON, "the problem to be over", || !tells(&worker, "the earlier one runs on"));
    drop(right);
}

/// What somebody does to a host, a store and the nodes.
type Deed = dyn Fn(&Host, &Store, &mut [Overlayd<'_>]);

/// With another VNI both ends have another device; with another MTU, one has.
#[test]
fn nothing_leaves_in_the_clear_while_a_node_is_replaced() {
    let vni = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":5}}"#;
    let replaced: [(&str, &Deed, &str); 3] = [
        (
            "another VNI",
            &|_, store, nodes| {
                store.put_config(vni);
                nodes.iter_mut().for_each(|node| node.process().signal(Signal::HUP));
            },
            "forwarding device=\"flannel.5\"",
        ),
        ("another MTU", &|host, _, _| host.ns.ip("link set eth0 mtu 1400"), "mtu=1350"),
        ("a deleted device", &|host, _, _| host.ns.ip("link del flannel.1"), "making it anew"),
    ];
    for (what, replace, said) in replaced {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, Backend::Vxlan);
        let Pair { left, right, a, b } = Pair::start([&worker, &master], &store, &[]);
        let mut nodes = [left, right];
        let leak = Leak::watched(&worker, &a, &b);
        replace(&worker, &store, &mut nodes);
        await_until(SOON, what, || nodes[0].log().contains(said));
        await_until(SOON, "packets to flow again", || traffic::answers(&a.ns, b.address));
        assert_eq!(leak.count(&worker.ns), 0, "{what}:\n{}", nodes[0].log());
    }
}

/// Of a host that is not as it should be: what somebody has there, and what takes that away again.
#[test]
fn what_packets_can_do_without_is_told_and_tried_again() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let store = Store::dir_with(&site, "store", config);
    let launch = || worker.overlayd(&store).named("left").flag("--ip-blackhole-route");
    let left = launch().start();
    let right = master.overlayd(&store).start();
    await_mesh(&[&left, &right]);
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    traffic::ping(&a.ns, b.address);
    let state = format!("{}.state.json", left.subnet_file().display());
    await_until(SOON, "the state to be saved", || PathBuf::from(&state).exists());
    let subnet = left.env().base_with_length();
    left.stop();

    let theirs = format!("unreachable {subnet} metric 4294967295");
    worker.ns.ip(&format!("route del blackhole {subnet} metric 4294967295"));
    worker.ns.ip(&format!("route add {theirs}"));
    // With the state of the run before, and without: whether something ran before makes no difference.
    for saved in [true, false] {
        if !saved {
            fs::remove_file(&state).expect("remove the state");
        }
        let left = launch().start();
        await_until(SOON, "the problem to be told", || tells(&worker, "which ends here (blackhole)"));
        await_mesh(&[&left, &right]);
        traffic::ping(&a.ns, b.address);
        assert!(worker.ns.ok("ip route").contains(&theirs), "{}", worker.ns.ok("ip route"));
        left.stop();
    }
    let left = launch().flag("--iptables-resync=1").start();
    await_until(SOON, "the problem to be told", || tells(&worker, "which ends here (blackhole)"));
    worker.ns.ip(&format!("route del {theirs}"));
    await_until(SOON, "the problem to be over", || tells(&worker, r#""problems":[]"#));
    drop((left, right));
}

#[test]
fn packets_flow_while_the_firewalls_programs_are_missing() {
    packets_flow_beside(None);
}

#[test]
fn packets_flow_while_the_firewalls_programs_fail() {
    packets_flow_beside(Some("exit 1"));
}

#[test]
fn packets_flow_and_the_watchdog_is_fed_while_the_firewalls_programs_hang() {
    packets_flow_beside(Some("exec sleep 60"));
}

/// Starts a daemon whose nft and iptables do as `script` says, has it build its node again, and stops it.
fn packets_flow_beside(script: Option<&str>) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let bin = site.directory("bin");
    let path = match script {
        None => {
            let ip = worker.ns.ok("which ip");
            std::os::unix::fs::symlink(ip.trim_end(), bin.join("ip")).expect("link to ip");
            bin.display().to_string()
        }
        Some(script) => {
            PROGRAMS.iter().for_each(|name| write_program(&bin.join(name), script));
            format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH"))
        }
    };
    let mut left = worker
        .overlayd(&store)
        .env("PATH", &path)
        .env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
        .start();
    let right = master.overlayd(&store).start();
    await_mesh(&[&left, &right]);
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    traffic::ping(&a.ns, b.address);
    await_until(SOON, "the problem to be told", || !tells(&worker, r#""problems":[]"#));
    is_fed(&left);
    worker.ns.ip("link set eth0 mtu 1400");
    await_until(SOON, "the new MTU", || worker.ns.ok("ip link show flannel.1").contains("mtu 1350"));
    traffic::ping(&b.ns, a.address);
    is_fed(&left);
    ends_in_time(&mut left);
}

/// To look for what is left of earlier devices takes `nft list tables`, which nothing else does under this flag.
#[test]
fn rules_that_are_wanted_do_not_wait_for_the_removal_of_others() {
    let (site, worker, _master) = Site::two_hosts();
    let config = |vni: u8| format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"vxlan","VNI":{vni}}}}}"#);
    let store = Store::dir_with(&site, "store", &config(1));
    let bin = site.directory("bin");
    let (hangs, hung) = (bin.join("hangs"), bin.join("hung"));
    let nft = worker.ns.ok("which nft");
    let script = format!(
        "if [ \"$1 $2\" = 'list tables' ] && [ -e {} ]; then touch {}; exec sleep 60; fi\nexec {} \"$@\"",
        hangs.display(),
        hung.display(),
        nft.trim_end()
    );
    write_program(&bin.join("nft"), &script);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH"));
    let mut daemon = worker.overlayd(&store).env("PATH", &path).flag("--firewall=nftables").start();
    fs::write(&hangs, "").expect("have it hang");
    let mut change = |vni: u8| {
        store.put_config(&config(vni));
        daemon.process().signal(Signal::HUP);
        let table = format!("nft list table ip overlayd_flannel.{vni}");
        await_until(SOON, "the rules of the next device", || worker.ns.run(&table).status.success());
    };
    change(2);
    await_until(SOON, "the removal to hang", || hung.exists());
    change(3);
    let log = daemon.log();
    assert!(!log.contains("has not ended"), "it was waited for:\n{log}");
    fs::remove_file(&hangs).expect("have it go on");
    await_until(SOON * 2, "the removal after all", || {
        !worker.ns.run("nft list table ip overlayd_flannel.1").status.success()
    });
}

#[test]
fn a_wire_that_takes_nothing_holds_up_neither_a_rebuild_nor_the_end() {
    nothing_is_taken(&[]);
}

#[test]
fn nor_does_one_behind_a_single_port() {
    nothing_is_taken(&["--source-port-spread=off"]);
}

#[test]
fn nor_does_one_that_keeps_the_frames_of_a_ring() {
    nothing_is_taken(&["--io=xdp"]);
}

fn nothing_is_taken(flags: &[&str]) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let right = master.overlayd(&store).start();
    let watchdog = WATCHDOG.as_micros().to_string();
    let launch = worker.overlayd(&store).env("WATCHDOG_USEC", &watchdog);
    let mut left = flags.iter().fold(launch, |launch, flag| launch.flag(flag)).start();
    await_mesh(&[&left, &right]);
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    let slow = "root tbf rate 8bit burst 1600 limit 1000000000";
    worker.ns.ok(&format!("tc qdisc add dev eth0 {slow}"));
    // What goes by a ring passes that queue, so the other end of the link keeps it, too.
    let (router, lan) = (&site.router, Site::lan_device(worker.public_ip));
    router.ip("link add slow type ifb\nlink set slow up");
    router.ok(&format!("tc qdisc add dev slow {slow}"));
    router.ok(&format!("tc qdisc add dev {lan} ingress"));
    let udp = "u32 match ip protocol 17 0xff";
    router.ok(&format!(
        "tc filter add dev {lan} ingress protocol ip {udp} action mirred egress redirect dev slow"
    ));
    // Of ever other lengths: each packet is a run of its own.
    let sockets: Vec<UdpSocket> =
        (0..100).map(|_| a.ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket")).collect();
    let mut sent = 0;
    let mut flood = || {
        for socket in &sockets {
            sent += 1;
            // A full queue in the pod is one more that takes nothing.
            let _ = socket.send_to(&vec![0; 600 + sent % 700], (b.address, 9));
        }
    };
    await_until(SOON, "what is not taken to be dropped", || {
        flood();
        left.status().drops("egress", "send_failed") > 0
    });
    let begun = Instant::now();
    let built = left.log().matches("forwarding device").count();
    worker.ns.ip("link set eth0 mtu 1400");
    await_until(SOON, "the new node", || {
        flood();
        left.log().matches("forwarding device").count() > built
    });
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    assert!(!left.log().contains("workers do not stop in time"), "{}", left.log());
    is_fed(&left);
    flood();
    ends_in_time(&mut left);
}

#[test]
fn a_start_waits_for_who_is_about_to_end() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // Nobody keeps its sockets: that would be somebody who does not end.
    let launch = |name: &str| {
        let launch = worker.overlayd(&store).named(name).env("NOTIFY_SOCKET", "/nowhere");
        launch.flag("--metrics-port=8082").subnet_file_at(worker.directory().join("subnet.env")).spawn()
    };
    let tool = program("overlayctl").display().to_string();
    let mut before: Option<Overlayd<'_>> = None;
    for number in 0..4 {
        if let Some(before) = &mut before {
            before.process().signal(Signal::KILL);
        }
        let mut daemon = launch(&format!("number-{number}"));
        await_until(SOON, "the daemon to be well", || {
            assert!(daemon.process().exited().is_none(), "{}", daemon.log());
            let output = worker.ns.run(&format!("{tool} status --json"));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success() && text.contains(r#""state":"held""#) && text.contains(r#""problems":[]"#)
        });
        before = Some(daemon);
    }
}

#[test]
fn a_daemon_that_waits_says_for_what() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir_with(&site, "late", "{}");
    let Store::Dir(path) = &store else { unreachable!("made as a directory") };
    fs::remove_file(path.join("config")).expect("remove the configuration");
    let mut daemon = worker.overlayd(&store).spawn();
    let tool = program("overlayctl").display().to_string();
    let says = |command: &str, code: i32, what: &str| {
        await_until(SOON, &format!("{command} to say '{what}'"), || {
            let output = worker.ns.run(&format!("{tool} {command}"));
            let text = [output.stdout, output.stderr].concat();
            output.status.code() == Some(code) && String::from_utf8_lossy(&text).contains(what)
        });
    };
    says("status", 1, "waits for its network configuration");
    says("check", 2, "put one, as by");
    says("events", 0, "waiting for the network configuration");

    store.put_lease("10.1.250.0-24", FOREIGN);
    store.put_config(
        r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.250.0","SubnetMax":"10.1.250.0","Backend":{"Type":"vxlan"}}"#,
    );
    says("status", 1, "waits for a lease: no subnet is free");
    says("check", 2, "waits for a lease");
    store.delete_lease("10.1.250.0-24");
    daemon.wait_ready(SOON);
    says("status", 0, "10.1.250.0/24");
}

/// The watchdog is fed meanwhile.
#[track_caller]
fn is_fed(daemon: &Overlayd<'_>) {
    while daemon.manager().next(Duration::ZERO).is_some() {}
    await_until(WATCHDOG * 2 / 3, "the watchdog to be fed", || {
        let lines = daemon.manager().next(Duration::from_millis(10)).unwrap_or_default();
        lines.iter().any(|line| line == "WATCHDOG=1")
    });
    assert!(!daemon.log().contains("stuck"), "{}", daemon.log());
}

/// What the daemon says of itself has this in it; not while it builds its node.
fn tells(host: &Host, what: &str) -> bool {
    let output = host.ns.run(&format!("{} status --json", program("overlayctl").display()));
    output.status.success() && String::from_utf8_lossy(&output.stdout).contains(what)
}

#[track_caller]
fn ends_in_time(daemon: &mut Overlayd<'_>) {
    let status = daemon.process().terminate(LONG);
    assert_eq!(status.code(), Some(0), "{status}:\n{}", daemon.log());
}

fn write_program(path: &PathBuf, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("write a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it one");
}

const PROGRAMS: [&str; 10] = [
    "nft",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "iptables-nft",
    "iptables-nft-save",
    "iptables-nft-restore",
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-legacy-restore",
];
/// A third of it is longer than workers sleep.
const WATCHDOG: Duration = Duration::from_millis(7500);
/// What rebuilding and stopping may take, and as much again for a busy machine.
const LONG: Duration = Duration::from_secs(4);
/// Leases of nodes that are not there.
const FOREIGN: &str = r#"{"PublicIP":"172.16.0.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:09"}}"#;
const ANOTHER: &str = r#"{"PublicIP":"172.16.0.10","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:10"}}"#;
