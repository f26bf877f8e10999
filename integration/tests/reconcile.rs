//! What somebody else removes or changes is put back at once. The resync period is a minute here: only
//! events, or the look of each second, can have done it.

use integration::{Backend, Host, Pair, SOON, Site, Store, await_until, traffic};

/// A look at everything by the clock comes too late for any of these tests.
const NO_RESYNC: &str = "--iptables-resync=60";

#[test]
fn what_is_taken_from_the_device_is_put_back() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[NO_RESYNC]);
    let whole = state(&worker);
    assert!(whole.contains("dev flannel.1 proto 222"), "{whole}");
    for (number, change) in [
        "ip route del 10.1.0.0/16",
        "ip address flush dev flannel.1",
        "ip link set flannel.1 down",
        "ip link set flannel.1 mtu 1300",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.conf.flannel/1.forwarding=0",
        "sysctl -qw net.ipv4.conf.docker0.forwarding=0",
        "ip link set flannel.1 name elsewhere",
    ]
    .into_iter()
    .enumerate()
    {
        worker.ns.ok(change);
        let took = await_until(SOON, &format!("the end of '{change}'"), || state(&worker) == whole);
        println!("{change}: put back after {took:?}");
        traffic::ping(&pair.a.ns, pair.b.address);
        await_until(SOON, "it to be counted", || restored(&pair.left) > number as u64);
    }
    let log = pair.left.log();
    for what in [
        "the route 10.1.0.0/16",
        "the address 10.1.",
        "flannel.1: up",
        "the MTU 1450 (was 1300)",
        "ip_forward",
        "net.ipv4.conf.flannel.1.forwarding=1",
        "net.ipv4.conf.docker0.forwarding=1",
        "the name flannel.1 (was elsewhere)",
    ] {
        let told = log.lines().filter(|line| line.contains("put back") && line.contains(what)).count();
        assert!(told >= 1, "nothing about {what} in:\n{log}");
    }
}

#[test]
fn firewall_rules_that_are_flushed_are_put_back() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // docker's policy: without our rules nothing is forwarded.
    worker.ns.ok("iptables -P FORWARD DROP");
    let pair = Pair::start([&worker, &master], &store, &[NO_RESYNC, "--ip-masq"]);
    traffic::ping(&pair.a.ns, pair.b.address);
    let whole = rules(&worker);
    for change in ["iptables -F", "iptables -t nat -F", "nft flush ruleset"] {
        worker.ns.ok(change);
        worker.ns.ok("iptables -P FORWARD DROP");
        let took = await_until(SOON, &format!("the end of '{change}'"), || rules(&worker) == whole);
        println!("{change}: put back after {took:?}");
        traffic::ping(&pair.a.ns, pair.b.address);
    }
    assert!(restored(&pair.left) >= 2);
}

#[test]
fn rules_of_the_legacy_iptables_are_put_back_without_an_event() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    worker.ns.ok("iptables-legacy -P FORWARD DROP");
    let pair = Pair::start([&worker, &master], &store, &[NO_RESYNC]);
    traffic::ping(&pair.a.ns, pair.b.address);
    let whole = worker.ns.ok("iptables-legacy -S");
    worker.ns.ok("iptables-legacy -F");
    assert_ne!(worker.ns.ok("iptables-legacy -S"), whole);
    await_until(SOON, "the rules", || worker.ns.ok("iptables-legacy -S") == whole);
    traffic::ping(&pair.a.ns, pair.b.address);
}

#[test]
fn a_deleted_vxlan_device_comes_back_while_a_transfer_goes_on() {
    a_deleted_device_comes_back_while_a_transfer_goes_on(Backend::Vxlan);
}

#[test]
fn a_deleted_udp_device_comes_back_while_a_transfer_goes_on() {
    a_deleted_device_comes_back_while_a_transfer_goes_on(Backend::Udp);
}

fn a_deleted_device_comes_back_while_a_transfer_goes_on(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, backend);
    let mut pair = Pair::start([&worker, &master], &store, &[NO_RESYNC]);
    let whole = state(&worker);
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 400));
        for deleted in 1..=3 {
            worker.ns.ok(&format!("ip link del {}", backend.device()));
            await_until(SOON, "a word about it", || {
                pair.left.log().matches("the device flannel").count() >= deleted
            });
            assert_eq!(state(&worker), whole);
            assert!(restored(&pair.left) >= deleted as u64);
            traffic::ping(&pair.b.ns, pair.a.address);
        }
        transfer.join().unwrap();
    });
    let log = pair.left.log();
    assert!(pair.left.process().exited().is_none() && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_device_whose_name_is_taken_is_made_once_the_name_is_free() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut pair = Pair::start([&worker, &master], &store, &[NO_RESYNC]);
    worker
        .ns
        .ip("link set flannel.1 down\nlink set flannel.1 name elsewhere\nlink add flannel.1 type bridge");
    await_until(SOON, "a word about it", || pair.left.log().contains("the node cannot be built"));
    let bridge = worker.ns.ok("ip -d link show flannel.1");
    assert!(bridge.contains("bridge") && bridge.contains("state DOWN"), "it is not ours: {bridge}");
    worker.ns.ip("link del flannel.1");
    await_until(SOON, "the device", || traffic::answers(&pair.a.ns, pair.b.address));
    assert!(pair.left.process().exited().is_none());
    assert_eq!(
        pair.left.log().matches("the node cannot be built: trying again").count(),
        1,
        "said once:\n{}",
        pair.left.log()
    );
}

#[test]
fn what_an_earlier_run_left_goes_and_what_resembles_it_stays() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    for table in ["ip overlayd_flannel.9", "ip overlay", "ip my_overlayd_flannel.9", "ip6 overlayd_flannel.9"]
    {
        worker.ns.ok(&format!("nft add table {table}"));
    }
    for chain in ["OVERLAYD-FWD-flannel.8", "OVERLAYDX-FWD-flannel.8"] {
        worker.ns.ok(&format!("iptables -N {chain}"));
    }
    worker.ns.ip("route add 10.1.200.0/24 via 192.168.1.1 proto static\n\
                  route add 10.99.0.0/16 via 192.168.1.1 proto 222");
    let pair = Pair::start([&worker, &master], &store, &[NO_RESYNC]);

    await_until(SOON, "what is stale to go", || {
        let (tables, chains) = (worker.ns.ok("nft list tables"), worker.ns.ok("iptables -S"));
        !tables.contains("table ip overlayd_flannel.9\n") && !chains.contains("-N OVERLAYD-FWD-flannel.8")
    });
    worker.ns.ip("route add 10.1.201.0/24 dev flannel.1 proto 222\nroute add 10.1.202.0/24 dev flannel.1");
    await_until(SOON, "the stale route to go", || !worker.ns.ok("ip route").contains("10.1.201.0/24"));

    let (tables, chains, routes) =
        (worker.ns.ok("nft list tables"), worker.ns.ok("iptables -S"), worker.ns.ok("ip route"));
    for table in
        ["ip overlay\n", "ip my_overlayd_flannel.9\n", "ip6 overlayd_flannel.9\n", "ip overlayd_flannel.1\n"]
    {
        assert!(tables.contains(&format!("table {table}")), "no {table} in:\n{tables}");
    }
    assert!(chains.contains("-N OVERLAYDX-FWD-flannel.8"), "{chains}");
    for route in ["10.1.200.0/24 via", "10.99.0.0/16 via", "10.1.202.0/24 dev flannel.1"] {
        assert!(routes.contains(route), "no {route} in:\n{routes}");
    }
    traffic::ping(&pair.a.ns, pair.b.address);
}

#[test]
fn rules_of_another_daemon_on_the_host_are_not_stale() {
    let (site, worker, _master) = Site::two_hosts();
    let one = Store::dir_with(&site, "one", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let two = Store::dir_with(&site, "two", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"udp"}}"#);
    let _w1 = worker.overlayd(&one).named("one").flag(NO_RESYNC).start();
    let before = worker.ns.ok("nft -s list table ip overlayd_flannel.1");
    let w2 = worker.overlayd(&two).named("two").flag(NO_RESYNC).start();
    w2.stop();
    assert_eq!(worker.ns.ok("nft -s list table ip overlayd_flannel.1"), before);
}

/// How often something was put back.
fn restored(daemon: &integration::Overlayd<'_>) -> u64 {
    daemon.status().0["host"]["restored"].as_u64().expect("a number")
}

/// The device, its address and its route, and forwarding. What is another with each device of the name,
/// its number and its place in the lists, is left out; and so is the TAP of whole super-packets, which is each
/// forwarder's own.
fn state(host: &Host) -> String {
    let looks = [
        "ip -o -4 address show",
        "ip -o link show type tun",
        "ip -4 route show",
        "sysctl net.ipv4.ip_forward net.ipv4.conf.flannel/1.forwarding",
        "sysctl net.ipv4.conf.docker0.forwarding",
    ];
    // A device that is away for a moment has no settings.
    let text = looks.map(|line| String::from_utf8_lossy(&host.ns.run(line).stdout).into_owned()).concat();
    let lines = text.lines().filter(|line| !line.contains("overlay."));
    sorted(lines.map(|line| match line.split_once(": ") {
        Some((number, rest)) if number.parse::<u32>().is_ok() => rest,
        _ => line,
    }))
}

/// All firewall rules, in an order that does not depend on which table is older.
fn rules(host: &Host) -> String {
    let looks = ["iptables -S", "iptables -t nat -S", "nft -s list ruleset"];
    let text = looks.map(|line| host.ns.ok(line)).concat();
    sorted(text.lines().map(str::trim).filter(|line| !line.is_empty()))
}

fn sorted<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines.join("\n")
}
