//! The backends without a tunnel, and the one that uses its tunnel only where it must; and changing
//! from one to another, as the seed does it.
//!
//! ```text
//!  worker    192.168.1.12 ──┐
//!                           ├── router ── master 192.168.199.238
//!  neighbour 192.168.1.13 ──┘
//! ```

use integration::capture::Capture;
use integration::overlayd::{await_mesh, program};
use integration::{Host, Overlayd, Pod, SOON, Site, Store, Wire, await_until, traffic};

const HOST_GW: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#;
const VXLAN: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DIRECT: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

#[test]
fn host_gw_routes_pods_between_hosts_on_one_link() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let store = Store::dir_with(&site, "store", HOST_GW);
    // Routes that are not ours, routes of ours for another network, and one that an earlier run has left.
    worker.ns.ip("route add 10.1.250.0/24 via 192.168.1.13 proto static\n\
                  route add 10.9.1.0/24 via 192.168.1.13 proto 222\n\
                  route add 10.1.251.0/24 via 192.168.1.13 proto 222");
    let (w, mut m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    assert_eq!(
        store.leases()[&w.env().key()],
        r#"{"PublicIP":"192.168.1.12","PublicIPv6":null,"BackendType":"host-gw"}"#
    );
    assert_eq!((w.env().mtu, m.env().mtu), (1500, 1500));
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let theirs = m.env().base_with_length();
    let ours = format!("{theirs} via 192.168.1.13 dev eth0 proto 222");
    let others = [
        "10.1.250.0/24 via 192.168.1.13 dev eth0 proto static",
        "10.9.1.0/24 via 192.168.1.13 dev eth0 proto 222",
    ];
    let expected = || sorted(others.iter().copied().chain([ours.as_str()]));
    assert_eq!(routes_by(&worker, "192.168.1.13"), expected());
    assert_eq!(tunnels(&worker), "");
    let status = w.status().0;
    assert_eq!((&status["backend"]["type"], &status["device"]), (&"host-gw".into(), &().into()), "{status}");
    assert_eq!(status["peers"][0]["way"], "direct", "{status}");

    let wire = Capture::start(&worker.ns, "eth0", "net 10.1.0.0/16 or udp", worker.directory());
    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);
    assert!(wire.stop().len() >= 12, "pings and their answers as they are");
    traffic::transfer(&a.ns, &b.ns, b.address, 4);
    traffic::transfer(&b.ns, &a.ns, a.address, 4);

    for (host, [from, to], way) in [
        (&worker, [&a, &b], "via 192.168.1.13 dev eth0"),
        (&master, [&a, &b], "the lease of 192.168.1.12"),
        (&worker, [&b, &a], "the lease of 192.168.1.13"),
    ] {
        is_traced(host, from, to, way);
    }

    // Deleted by hand, it is back; so is one that somebody else has bent.
    worker.ns.ip(&format!("route del {theirs}"));
    await_until(SOON, "the route to be back", || routes_by(&worker, "192.168.1.13") == expected());
    worker.ns.ip(&format!("route change {theirs} via 192.168.9.1 proto 222"));
    await_until(SOON, "the route to be as it was", || routes_by(&worker, "192.168.1.13") == expected());
    traffic::ping(&a.ns, b.address);

    m.process().kill();
    store.delete_lease(&m.env().key());
    await_until(SOON, "the route to be gone", || routes_by(&worker, "192.168.1.13") == sorted(others));
}

#[test]
fn host_gw_says_once_which_nodes_are_not_on_the_link() {
    let (site, hosts) = Site::three_hosts();
    let store = Store::dir_with(&site, "store", HOST_GW);
    let [w, n, m] = start(&hosts, &store, &["--iptables-resync=1"]);
    let status = w.status().0;
    let way = |daemon: &Overlayd<'_>| way(&w, daemon);
    assert_eq!((way(&n).as_str(), way(&m).as_str()), ("direct", "none"), "{status}");
    assert_eq!(routes_by(&hosts[0], "192.168.199.238"), [""; 0]);
    let subnet = m.env().base_with_length();
    let (a, b) = (hosts[0].bridge_and_pod(&w.env()), hosts[1].bridge_and_pod(&n.env()));
    // Several checks later.
    hosts[0].ns.ip(&format!("route del {}", n.env().base_with_length()));
    await_until(SOON, "the neighbour's route to be back", || traffic::answers(&a.ns, b.address));
    let log = w.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("not on the link")).collect();
    assert!(said.len() == 1 && said[0].contains(&subnet) && said[0].contains("ERROR"), "{log}");
}

#[test]
fn host_gw_is_refused_behind_a_nat() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir_with(&site, "store", HOST_GW);
    let log = worker.overlayd(&store).flag("--public-ip=203.0.113.9").refused();
    assert!(log.contains("203.0.113.9") && log.contains("192.168.1.12") && log.contains("NAT"), "{log}");
}

#[test]
fn direct_routing_uses_the_tunnel_only_beyond_a_router() {
    let (site, hosts) = Site::three_hosts();
    site.router.sysctl("net/ipv4/conf/all/send_redirects", "0");
    site.router.sysctl("net/ipv4/conf/lan1/send_redirects", "0");
    let store = Store::dir_with(&site, "store", DIRECT);
    let daemons = start(&hosts, &store, &[]);
    let [w, n, m] = &daemons;
    let pods: Vec<Pod> =
        hosts.iter().zip(&daemons).map(|(host, daemon)| host.bridge_and_pod(&daemon.env())).collect();
    let [a, b, c] = &pods[..] else { unreachable!() };
    assert_eq!(w.env().mtu, 1450);
    assert_eq!((way(w, n).as_str(), way(w, m).as_str()), ("direct", "tunnel"));
    assert_eq!((way(m, n).as_str(), way(m, w).as_str()), ("tunnel", "tunnel"));

    let [worker, neighbour, _] = &hosts;
    let tunnelled = |pod: &Pod, other: &Pod| {
        let device = Capture::start(&worker.ns, "flannel.1", "icmp", worker.directory());
        let wire = Capture::start(&worker.ns, "eth0", "icmp and net 10.1.0.0/16", worker.directory());
        traffic::ping(&pod.ns, other.address);
        (device.stop().len(), wire.stop().len())
    };
    assert_eq!(tunnelled(a, b), (0, 6), "to the neighbour as they are");
    assert_eq!(tunnelled(a, c), (6, 0), "to the master through the tunnel");
    is_traced(worker, a, b, "via 192.168.1.13 dev eth0");
    is_traced(worker, a, c, "encapsulate  VXLAN");
    for (from, to) in [(a, b), (b, a), (a, c), (c, a), (c, b)] {
        traffic::transfer(&from.ns, &to.ns, to.address, 2);
    }

    // The worker gets to know a gateway on its way to the neighbour, who still takes the direct way, with
    // strict filtering by reverse path: what comes through the tunnel is accepted all the same.
    worker.ns.ip("route add 192.168.1.13/32 via 192.168.1.1");
    await_until(SOON, "the worker to use the tunnel", || way(w, n) == "tunnel");
    assert_eq!(way(n, w), "direct");
    let arrived = Capture::start(&b.ns, "eth0", "icmp[icmptype] == icmp-echo", neighbour.directory());
    traffic::answers(&a.ns, b.address);
    arrived.frames(1);
    neighbour.ns.ip("route add 192.168.1.12/32 via 192.168.1.1");
    await_until(SOON, "the neighbour to use the tunnel", || way(n, w) == "tunnel");
    assert_eq!(tunnelled(a, b), (6, 0));
    worker.ns.ip("route del 192.168.1.13/32");
    neighbour.ns.ip("route del 192.168.1.12/32");
    await_until(SOON, "both to need it no more", || way(w, n) == "direct" && way(n, w) == "direct");
    assert_eq!(tunnelled(a, b), (0, 6));
    for daemon in [w, n, m] {
        assert_eq!(daemon.status().all_drops("ingress"), 0, "{}", daemon.status().0["drops"]);
    }
}

#[test]
fn pods_keep_their_addresses_over_host_gw_whatever_docker_masquerades() {
    pods_keep_their_addresses_whatever_docker_masquerades(HOST_GW);
}

#[test]
fn pods_keep_their_addresses_over_direct_routing_whatever_docker_masquerades() {
    pods_keep_their_addresses_whatever_docker_masquerades(DIRECT);
}

fn pods_keep_their_addresses_whatever_docker_masquerades(config: &str) {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let store = Store::dir_with(&site, "store", config);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let dockers = format!("-s {} ! -o docker0 -j MASQUERADE", w.env().base_with_length());
    worker.ns.ok(&format!("iptables -t nat -A POSTROUTING {dockers}"));
    let _servers = [traffic::Server::http(&b.ns, 8080), traffic::Server::http(&site.router, 8081)];
    assert_eq!(traffic::fetch(&a.ns, b.address, 8080, SOON), Ok(a.address.to_string()));
    let outside = traffic::fetch(&a.ns, site.router_address(), 8081, SOON);
    assert_eq!(outside, Ok("192.168.9.12".to_owned()), "what leaves the network is docker's");
}

#[test]
fn alloc_takes_a_lease_and_leaves_the_way_to_others() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir_with(&site, "store", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}"#);
    let before = worker.ns.ok("ip route") + &worker.ns.ok("ip -o link");
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    assert_eq!(store.leases()[&w.env().key()], r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#);
    assert_eq!(w.env().mtu, 1500);
    assert_eq!(worker.ns.ok("ip route") + &worker.ns.ok("ip -o link"), before);
    assert_eq!(way(&w, &m), "none");
    assert_eq!(w.status().0["backend"]["type"], "alloc");
}

#[test]
fn changing_the_backend_and_back_leaves_nothing_behind() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let store = Store::dir_with(&site, "store", HOST_GW);
    let (mut w, mut m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let (ours, theirs) = (w.env(), m.env());
    let direct = format!("{} via 192.168.1.13 dev eth0 ", theirs.base_with_length());
    let state = || {
        let routes = worker.ns.ok("ip route show proto 222");
        let tables = sorted(worker.ns.ok("nft list tables").lines()).join("\n");
        (routes, tunnels(&worker), tables, worker.ns.ok("iptables -S"))
    };
    let without_tunnel = state();
    assert_eq!((without_tunnel.0.trim_end(), without_tunnel.1.as_str()), (direct.trim_end(), ""));
    traffic::ping(&a.ns, b.address);

    for crash in [false, true] {
        for config in [VXLAN, HOST_GW] {
            store.put_config(config);
            let end = |daemon: Overlayd<'_>| if crash { daemon.crash() } else { daemon.stop_for_restart() };
            let managers = (end(w), end(m));
            (w, m) = (
                worker.overlayd(&store).by(managers.0).start(),
                master.overlayd(&store).by(managers.1).start(),
            );
            // They start as they were, from their saved state, and are then rebuilt.
            let wanted = if config == VXLAN { "vxlan" } else { "host-gw" };
            await_until(SOON, "the backend of the configuration", || {
                [&worker, &master].iter().all(|host| backend(host).as_deref() == Some(wanted))
            });
            await_mesh(&[&w, &m]);
            assert_eq!((ours.subnet.clone(), theirs.subnet.clone()), (w.env().subnet, m.env().subnet));
            await_until(SOON, "the pods to reach each other", || traffic::answers(&a.ns, b.address));
            traffic::ping(&b.ns, a.address);
            if config == HOST_GW {
                await_until(SOON, "the host to be as it was", || state() == without_tunnel);
            } else {
                let (routes, device, tables, chains) = state();
                // With the one that ends here behind it.
                assert_eq!(routes.lines().count(), 2, "{routes}");
                assert!(routes.starts_with("10.1.0.0/16 dev flannel.1 "), "{routes}");
                assert!(device.contains("flannel.1"), "{device}");
                assert_eq!(tables.matches("overlayd").count(), 1, "{tables}");
                assert!(!chains.contains("10.1.0.0 "), "a chain of the other backend: {chains}");
                assert_eq!(w.env().mtu, 1450);
            }
        }
    }
}

#[test]
fn whoever_waits_for_a_restarted_daemon_reads_what_the_store_says_now() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir_with(&site, "store", HOST_GW);
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().mtu, 1500);
    w.stop();
    store.put_config(VXLAN);
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().mtu, 1450, "docker's options are made once, when the daemon is ready");
}

#[test]
fn another_network_of_host_gw_leaves_no_route_of_the_earlier_one() {
    another_network_leaves_no_route_of_the_earlier_one(r#"{"Type":"host-gw"}"#);
}

#[test]
fn another_network_of_vxlan_leaves_no_route_of_the_earlier_one() {
    another_network_leaves_no_route_of_the_earlier_one(r#"{"Type":"vxlan","DirectRouting":true}"#);
}

fn another_network_leaves_no_route_of_the_earlier_one(backend: &str) {
    let config = |network: &str| format!(r#"{{"Network":"{network}","Backend":{backend}}}"#);
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let store = Store::dir_with(&site, "store", &config("10.1.0.0/16"));
    let hosts = [&worker, &master];
    let start = || hosts.map(|host| host.overlayd(&store).flag("--ip-blackhole-route").start());
    let [w, m] = start();
    await_mesh(&[&w, &m]);
    let ours = || worker.ns.ok("ip route show proto 222");
    let before = ours();
    assert!(before.contains("blackhole 10.1.") && before.contains("via 192.168.1.13"), "{before}");

    store.put_config(&config("10.5.0.0/16"));
    for daemon in [w, m] {
        daemon.stop();
    }
    // They start as they were, from their saved state, and are then rebuilt.
    let [w, m] = start();
    await_until(SOON, "the other network", || [&w, &m].iter().all(|d| d.env().network == "10.5.0.0/16"));
    await_until(SOON, "the earlier network's routes to be gone", || !ours().contains("10.1."));
    await_mesh(&[&w, &m]);
    let after = ours();
    assert!(after.contains("blackhole 10.5.") && after.contains("via 192.168.1.13"), "{after}");
}

/// The daemons of three hosts, who all know each other.
fn start<'h>(hosts: &'h [Host; 3], store: &Store, flags: &[&str]) -> [Overlayd<'h>; 3] {
    let daemons = hosts
        .each_ref()
        .map(|host| flags.iter().fold(host.overlayd(store), |launch, flag| launch.flag(flag)).start());
    await_mesh(&daemons.each_ref());
    daemons
}

/// A packet from pod to pod passes `host` by `way`, as `overlayctl trace` says there.
#[track_caller]
fn is_traced(host: &Host, from: &Pod, to: &Pod, way: &str) {
    let trace = format!("{} trace {} {}", program("overlayctl").display(), from.address, to.address);
    let text = host.ns.ok(&trace);
    assert!(text.contains(way), "{text}");
}

/// How `from` says that it reaches `to`.
fn way(from: &Overlayd<'_>, to: &Overlayd<'_>) -> String {
    let (status, subnet) = (from.status().0, to.env().base_with_length());
    let peers = status["peers"].as_array().expect("a list of peers");
    let peer = peers.iter().find(|peer| peer["subnet"] == subnet.as_str());
    peer.and_then(|peer| peer["way"].as_str()).unwrap_or_else(|| panic!("{subnet} in {status}")).to_owned()
}

/// The backend of the daemon that runs on a host, if one answers.
fn backend(host: &Host) -> Option<String> {
    let output = host.ns.run(&format!("{} status --json", program("overlayctl").display()));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(status["backend"]["type"].as_str()?.to_owned())
}

/// The routes by this gateway, sorted.
fn routes_by(host: &Host, gateway: &str) -> Vec<String> {
    sorted(host.ns.ok("ip route").lines().filter(|line| line.contains(&format!("via {gateway} "))))
}

fn sorted<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

/// The overlay devices of a host.
fn tunnels(host: &Host) -> String {
    host.ns.ok("ip -o link").lines().filter(|line| line.contains("flannel")).collect()
}
