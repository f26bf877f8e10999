//! Our routes beside those of others, in a namespace with a real TUN.

mod namespace;

use std::collections::{BTreeSet, HashSet};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use namespace::Namespace;
use overlay_host::holdings::{self, Viewpoint};
use overlay_host::routes::{self, Leads, OwnRoute, Synced};

/// `br0` stands for the host's interface, 192.168.7.1/24, with the nodes 192.168.7.2 and .3 on its link.
fn host() -> Namespace {
    let host = Namespace::new();
    host.sh("ip tuntap add mode tun name flannel.1
         ip link set flannel.1 up
         ip link add br0 type bridge
         ip addr add 192.168.7.1/24 dev br0
         ip link set br0 up");
    host
}

fn index(host: &Namespace, device: &str) -> u32 {
    host.json(&format!("ip -j link show {device}"))[0]["ifindex"].as_u64().unwrap() as u32
}

/// As a daemon does at its start.
fn sync(host: &Namespace, wanted: &[(&str, Leads)]) -> Synced {
    bring(host, wanted, None)
}

/// As one does that has wanted these `before`.
fn sync_again(host: &Namespace, wanted: &[(&str, Leads)], before: &[(&str, Leads)]) -> Synced {
    bring(host, wanted, Some(before))
}

fn bring(host: &Namespace, wanted: &[(&str, Leads)], before: Option<&[(&str, Leads)]>) -> Synced {
    let route = |(to, leads): &(&str, Leads)| OwnRoute { to: to.parse().unwrap(), leads: *leads };
    let wanted: Vec<OwnRoute> = wanted.iter().map(route).collect();
    let before: Option<HashSet<OwnRoute>> = before.map(|before| before.iter().map(route).collect());
    let network = "10.1.0.0/16".parse().unwrap();
    let sync = move || async move { routes::sync(network, &wanted, before.as_ref()).await };
    host.block_on(sync).unwrap()
}

/// The routes of `ip route`'s selection, by line, without what the kernel says of the link.
fn shown(host: &Namespace, selection: &str) -> Vec<String> {
    let lines = host.sh(&format!("ip route show {selection}"));
    lines
        .lines()
        .map(|line| line.replace("linkdown", "").split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn all_kinds_are_put_once_in_order_and_the_rest_goes() {
    let host = host();
    let (tun, br0) = (index(&host, "flannel.1"), index(&host, "br0"));
    let node = Leads::Via { gateway: [192, 168, 7, 2].into(), device: br0 };
    let wanted = [
        ("10.1.0.0/16", Leads::Unreachable),
        ("10.1.9.0/24", Leads::Blackhole),
        ("10.1.8.0/24", Leads::Into(tun)),
        ("10.1.7.0/24", node),
    ];
    host.sh("ip route add 10.1.6.0/24 via 192.168.7.3 proto 222
         ip route add blackhole 10.1.5.0/24 proto 222 metric 4294967295
         ip route add blackhole 10.1.4.0/24 proto 222
         ip route add 10.9.6.0/24 via 192.168.7.3 proto 222
         ip route add blackhole 10.1.3.0/24");
    assert_eq!(sync(&host, &wanted).put.len(), 4);
    let ours = [
        "unreachable 10.1.0.0/16 proto 222 metric 4294967295",
        "10.1.7.0/24 via 192.168.7.2 dev br0 proto 222",
        "10.1.8.0/24 dev flannel.1 proto 222 scope link",
        "blackhole 10.1.9.0/24 proto 222 metric 4294967295",
        "10.9.6.0/24 via 192.168.7.3 dev br0 proto 222",
    ];
    let all = shown(&host, "table main");
    for route in ours {
        assert!(all.iter().any(|line| line == route), "no {route} in {all:?}");
    }
    assert_eq!(all.iter().filter(|line| line.contains("proto 222")).count(), ours.len(), "{all:?}");
    assert!(all.contains(&"blackhole 10.1.3.0/24".to_owned()), "{all:?}");

    assert_eq!(sync(&host, &wanted).put, [], "a second time there is nothing to do");
    assert_eq!(shown(&host, "table main"), all);
    sync(&host, &[]);
    let left = shown(&host, "table main");
    assert_eq!(left.iter().filter(|line| line.contains("proto 222")).count(), 1, "{left:?}");
}

#[test]
fn a_bent_route_is_put_right() {
    let host = host();
    let (tun, br0) = (index(&host, "flannel.1"), index(&host, "br0"));
    host.sh("ip route add 10.1.8.0/24 via 192.168.7.3 proto 222");
    let into = sync(&host, &[("10.1.8.0/24", Leads::Into(tun))]);
    assert_eq!(into.put[0].describe(), "10.1.8.0/24 into the overlay");
    assert_eq!(shown(&host, "10.1.8.0/24"), ["10.1.8.0/24 dev flannel.1 proto 222 scope link"]);
    let node = Leads::Via { gateway: [192, 168, 7, 2].into(), device: br0 };
    sync(&host, &[("10.1.8.0/24", node)]);
    assert_eq!(shown(&host, "10.1.8.0/24"), ["10.1.8.0/24 via 192.168.7.2 dev br0 proto 222"]);
}

#[test]
fn what_is_not_ours_stays_whatever_is_wanted() {
    let host = host();
    let (tun, br0) = (index(&host, "flannel.1"), index(&host, "br0"));
    let node = Leads::Via { gateway: [192, 168, 7, 2].into(), device: br0 };
    host.sh("ip route add 10.1.0.0/16 via 192.168.7.3
         ip route add 10.1.1.0/24 via 192.168.7.3
         ip route add 10.1.2.0/24 via 192.168.7.2 proto static
         ip route add unreachable 10.1.3.0/24 metric 4294967295
         ip addr add 10.1.4.1/24 dev br0");
    let before = shown(&host, "table main");
    let wanted = [
        ("10.1.0.0/16", Leads::Into(tun)),
        ("10.1.1.0/24", node),
        ("10.1.2.0/24", node),
        ("10.1.3.0/24", Leads::Blackhole),
        ("10.1.4.0/24", Leads::Into(tun)),
    ];
    let synced = sync(&host, &wanted);
    assert_eq!((synced.put.len(), synced.failed.len()), (0, wanted.len()));
    for error in synced.failed.values() {
        assert!(error.to_string().contains("a route that is not ours is in the way"), "{error}");
    }
    assert_eq!(shown(&host, "table main"), before);
    // One that leads into our device goes with it.
    host.sh("ip route del 10.1.0.0/16 via 192.168.7.3; ip route add 10.1.0.0/16 dev flannel.1");
    let synced = sync(&host, &wanted[..1]);
    assert!(synced.put.is_empty() && synced.failed.is_empty(), "{synced:?}");
}

#[test]
fn a_route_as_flanneld_leaves_it_becomes_ours() {
    let host = host();
    let node = Leads::Via { gateway: [192, 168, 7, 2].into(), device: index(&host, "br0") };
    host.sh("ip route add 10.1.1.0/24 via 192.168.7.2");
    assert_eq!(sync(&host, &[("10.1.1.0/24", node)]).put.len(), 1);
    assert_eq!(shown(&host, "10.1.1.0/24"), ["10.1.1.0/24 via 192.168.7.2 dev br0 proto 222"]);
}

#[test]
fn a_bridge_made_before_or_after_comes_before_a_blackhole() {
    let host = Namespace::new();
    let bridge = "ip link add docker0 type bridge
                  ip link set docker0 up
                  ip addr add 10.1.9.1/24 dev docker0";
    let way = || host.json("ip -j route get 10.1.9.7")[0]["dev"].as_str().map(str::to_owned);
    let ends = [("10.1.9.0/24", Leads::Blackhole)];
    sync(&host, &ends);
    host.sh("if ip route get 10.1.9.7; then exit 1; fi");
    host.sh(bridge);
    assert_eq!(way().as_deref(), Some("docker0"));
    host.sh("ip route del blackhole 10.1.9.0/24 metric 4294967295");
    assert_eq!(sync(&host, &ends).put.len(), 1);
    assert_eq!(way().as_deref(), Some("docker0"));
}

/// More than fit one request to the kernel. Each has an answer of its own.
#[test]
fn any_number_is_put_at_once_and_one_that_cannot_be_put_is_told_by_its_name() {
    let host = host();
    let (tun, br0) = (index(&host, "flannel.1"), index(&host, "br0"));
    host.sh("ip route add 10.1.7.0/30 via 192.168.7.3
         ip route add 10.1.9.0/30 via 192.168.7.3 proto 222");
    let subnets: Vec<String> =
        (0..1u16 << 14).map(|n| (4 * n).to_be_bytes()).map(|[a, b]| format!("10.1.{a}.{b}/30")).collect();
    let wanted: Vec<(&str, Leads)> = subnets.iter().map(|to| (to.as_str(), Leads::Into(tun))).collect();
    let synced = sync(&host, &wanted);
    assert_eq!((synced.put.len(), synced.failed.len()), (wanted.len() - 1, 1), "{:?}", synced.failed);
    let (route, error) = synced.failed.iter().next().unwrap();
    assert_eq!(route.to.to_string(), "10.1.7.0/30");
    assert!(error.to_string().contains("a route that is not ours is in the way"), "{error}");
    assert_eq!(shown(&host, "proto 222 dev flannel.1").len(), wanted.len() - 1);
    assert_eq!(shown(&host, "proto 222 dev br0"), [""; 0]);
    let (put, node) =
        (sync(&host, &wanted).put, Leads::Via { gateway: [192, 168, 7, 2].into(), device: br0 });
    assert_eq!(put, []);
    sync(&host, &[("10.1.9.0/30", node)]);
    assert_eq!(shown(&host, "proto 222"), ["10.1.9.0/30 via 192.168.7.2 dev br0"]);
}

#[test]
fn what_leads_somewhere_stays_until_what_is_to_lead_there_is_put() {
    let host = host();
    let (tun, br0) = (index(&host, "flannel.1"), index(&host, "br0"));
    host.sh("ip route add 10.1.0.0/16 via 192.168.7.3
         ip route add 10.1.8.0/24 dev flannel.1 proto 222
         ip route add 10.1.9.0/24 via 192.168.7.2 proto 222");
    let whole = [("10.1.0.0/16", Leads::Into(tun))];
    let ours = || shown(&host, "proto 222").len();
    assert_eq!(sync(&host, &whole).failed.len(), 1);
    assert_eq!(ours(), 2, "the only ways that there are");
    host.sh("ip route del 10.1.0.0/16 via 192.168.7.3");
    sync(&host, &whole);
    assert_eq!(shown(&host, "proto 222"), ["10.1.0.0/16 dev flannel.1 scope link"]);

    // A narrower one takes the place of nothing.
    let node = ("10.1.9.0/24", Leads::Via { gateway: [192, 168, 7, 2].into(), device: br0 });
    host.sh("ip route add 10.1.9.0/24 via 192.168.7.3");
    assert_eq!(sync_again(&host, &[node], &whole).failed.len(), 1);
    assert_eq!(ours(), 0);
}

#[test]
fn daemons_leave_each_other_their_routes_where_the_network_of_one_lies_in_that_of_another() {
    let host = host();
    host.sh("ip tuntap add mode tun name flannel.2; ip link set flannel.2 up");
    let (tun, br0) = (index(&host, "flannel.1"), index(&host, "br0"));
    // What tells daemons of each other.
    let claim = host.run(|| {
        let name = SocketAddr::from_abstract_name("overlayd/flannel.2").unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
    let theirs = "ip route append unreachable 10.1.4.0/24 proto 222 metric 4294967295
         ip route append 10.1.6.0/24 via 192.168.7.3 proto 222
         ip route append unreachable 10.1.5.0/24 proto 222 metric 4294967295
         ip route append 10.1.5.0/24 dev flannel.2 proto 222";
    host.sh(theirs);
    let through = "10.1.5.0/24 dev flannel.2 proto 222";
    let whole = ("10.1.0.0/16", Leads::Into(tun));
    let node = ("10.1.7.0/24", Leads::Via { gateway: [192, 168, 7, 2].into(), device: br0 });
    let ours = [whole, node];
    assert_eq!(sync(&host, &ours).put.len(), 2);
    let all = || shown(&host, "table main");
    for kept in [through, "unreachable 10.1.5.0/24"] {
        assert!(all().iter().any(|line| line.starts_with(kept)), "{kept}: {:?}", all());
    }

    // What names nobody's device may be an earlier life's; what comes back is somebody's who lives.
    host.sh("ip route flush 10.1.5.0/24; ip route flush 10.1.4.0/24; ip route flush 10.1.6.0/24");
    host.sh(theirs);
    let before = all();
    for _ in 0..2 {
        assert_eq!(sync_again(&host, &ours, &ours).put, []);
        assert_eq!(all(), before);
    }
    sync_again(&host, &[whole], &ours);
    let without_ours: Vec<String> =
        before.iter().filter(|line| !line.starts_with("10.1.7.0/24")).cloned().collect();
    assert_eq!(all(), without_ours);

    // Nor is theirs taken by who wants the same.
    let synced = sync_again(&host, &[whole, ("10.1.5.0/24", Leads::Into(tun))], &[whole]);
    let failed: Vec<String> = synced.failed.values().map(ToString::to_string).collect();
    assert!(failed.len() == 1 && failed[0].contains("of another overlayd of this host"), "{failed:?}");
    assert_eq!(all(), without_ours);
    host.block_on(|| routes::remove("10.1.0.0/16".parse().unwrap(), "10.9.0.0/16".parse().unwrap())).unwrap();
    assert!(all().iter().any(|line| line.starts_with(through)), "{:?}", all());

    // What is left of one that is gone is not.
    drop(claim);
    sync_again(&host, &ours, &ours);
    assert!(!all().iter().any(|line| line.starts_with(through)), "{:?}", all());
}

#[test]
fn what_another_daemon_routes_in_the_network_is_the_hosts_and_what_it_rejects_is_nobodys() {
    let host = host();
    host.sh("ip tuntap add mode tun name flannel.2; ip link set flannel.2 up
         ip route add 10.1.5.0/24 dev flannel.2 proto 222
         ip route add unreachable 10.1.4.0/24 proto 222 metric 4294967295
         ip route add unreachable 10.0.0.0/12 proto 222 metric 4294967295
         ip route add 10.1.0.0/16 dev flannel.1 proto 222");
    let claim = host.run(|| {
        let name = SocketAddr::from_abstract_name("overlayd/flannel.2").unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
    let routes = || {
        let look = || async {
            let stores = BTreeSet::new();
            let viewpoint = Viewpoint {
                network: "10.1.0.0/16".parse().unwrap(),
                own: Some("10.1.9.0/24".parse().unwrap()),
                device: Some("flannel.1".to_owned()),
                underlay: "br0",
                stores: &stores,
            };
            holdings::look(viewpoint).await
        };
        let routes = host.block_on(look).unwrap().routes;
        routes.into_iter().map(|(to, route)| format!("{to} {}", route.text)).collect::<Vec<_>>()
    };
    assert_eq!(routes(), ["10.1.5.0/24 dev flannel.2"]);
    drop(claim);
    assert!(routes().is_empty(), "what is left of one that is gone");
}
