//! What is the host's stays the host's wherever the overlay's network is: its LAN, its gateway, the store, the other
//! nodes and its routes are reached as before, pods reach each other, and `cleanup` leaves what was found.
//!
//! ```text
//!  worker 10.200.1.12 ── 10.200.1.1 router 10.200.2.1 ── 10.200.2.238 master
//!                                   10.250.0.1
//! ```

use std::process::Output;

use integration::overlayd::{await_mesh, program};
use integration::{Host, SOON, Site, Store, await_until, traffic};

/// Where the overlay's network meets what is the host's.
struct Meeting {
    name: &'static str,
    hosts: [&'static str; 2],
    /// What both hosts have besides, as `ip` commands; `GW` stands for the gateway.
    routes: &'static str,
    config: &'static str,
    /// What `overlayctl check` says of it.
    said: &'static str,
    /// An address that nobody has leased, and whether it is rejected; if not, it goes by the host's own routes.
    unleased: (&'static str, bool),
}

const LAN: [&str; 2] = ["192.168.1.12", "192.168.199.238"];
const SITE: [&str; 2] = ["10.200.1.12", "10.200.2.238"];

#[test]
fn vxlan_takes_nothing_from_the_host() {
    for meeting in [
        Meeting {
            name: "the network is the worker's LAN, and where the master finds the worker",
            hosts: LAN,
            routes: "",
            config: r#"{"Network":"192.168.1.0/24","SubnetLen":27,"SubnetMin":"192.168.1.64","Backend":{"Type":"vxlan"}}"#,
            said: "the route 192.168.1.0/24 dev eth0",
            unleased: ("192.168.1.40", false),
        },
        Meeting {
            name: "the network holds both LANs, pods have a range of their own",
            hosts: LAN,
            routes: "",
            config: r#"{"Network":"192.168.0.0/16","SubnetMin":"192.168.48.0","SubnetMax":"192.168.63.0","Backend":{"Type":"vxlan"}}"#,
            said: "192.168.1.12, this host's own address on eth0",
            unleased: ("192.168.47.1", false),
        },
        Meeting {
            name: "hosts, store and all else behind the gateway",
            hosts: SITE,
            routes: "",
            config: r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"vxlan"}}"#,
            said: "10.200.1.12, this host's own address on eth0",
            unleased: ("10.99.15.250", true),
        },
        Meeting {
            name: "a static route to all of the network",
            hosts: LAN,
            routes: "route add 10.1.0.0/16 via GW",
            config: r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#,
            said: "the route 10.1.0.0/16 via 192.168.1.1 dev eth0",
            unleased: ("10.1.0.1", false),
        },
        Meeting {
            name: "a wider static route, and one with a metric inside",
            hosts: LAN,
            routes: "route add 10.0.0.0/8 via GW metric 50\nroute add 10.1.0.0/24 via GW metric 60 proto static",
            config: r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
            said: "the route 10.0.0.0/8 via 192.168.1.1 dev eth0 metric 50",
            unleased: ("10.1.0.1", false),
        },
        Meeting {
            name: "a static route inside the network",
            hosts: LAN,
            routes: "route add 10.1.0.0/24 via GW\nroute add 169.254.0.0/16 dev eth0 metric 1000",
            config: r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#,
            said: "the route 10.1.0.0/24 via 192.168.1.1 dev eth0",
            unleased: ("10.1.255.250", true),
        },
    ] {
        meet(&meeting);
    }
}

#[test]
fn udp_takes_nothing_from_the_host() {
    for meeting in [
        Meeting {
            name: "the network is the worker's LAN",
            hosts: LAN,
            routes: "",
            config: r#"{"Network":"192.168.1.0/24","SubnetLen":27,"SubnetMin":"192.168.1.64"}"#,
            said: "the route 192.168.1.0/24 dev eth0",
            unleased: ("192.168.1.40", false),
        },
        Meeting {
            name: "hosts among the pods' addresses, behind the gateway",
            hosts: SITE,
            routes: "",
            config: r#"{"Network":"10.0.0.0/8"}"#,
            said: "10.200.1.12, this host's own address on eth0",
            unleased: ("10.250.0.2", false),
        },
    ] {
        meet(&meeting);
    }
}

fn meet(meeting: &Meeting) {
    println!("{}", meeting.name);
    let site = Site::new();
    let hosts = [("worker", meeting.hosts[0]), ("master", meeting.hosts[1])];
    let [worker, master] = hosts.map(|(name, address)| site.host(name, address));
    site.router.ip("address add 10.250.0.1/32 dev lo");
    for host in [&worker, &master] {
        host.ns.ip(&meeting.routes.replace("GW", &gateway(host)));
    }
    let before = [&worker, &master].map(tables);
    let store = Store::dir_with(&site, "store", meeting.config);
    let preflight = check(&worker, &store.flags().join(" "));
    assert!(preflight.contains(meeting.said), "{}", preflight);

    let daemons = [worker.overlayd(&store).start(), master.overlayd(&store).start()];
    await_mesh(&[&daemons[0], &daemons[1]]);
    let pods = [worker.bridge_and_pod(&daemons[0].env()), master.bridge_and_pod(&daemons[1].env())];
    traffic::ping(&pods[0].ns, pods[1].address);
    traffic::ping(&pods[1].ns, pods[0].address);
    let reaches = |host: &Host, other: &Host| {
        for address in [gateway(host).parse().unwrap(), other.public_ip, [10, 250, 0, 1].into()] {
            assert!(
                traffic::answers(&host.ns, address),
                "{}: {} does not reach {address}",
                meeting.name,
                host.name
            );
        }
    };
    reaches(&worker, &master);
    reaches(&master, &worker);
    let (unleased, rejected) = meeting.unleased;
    let way = |from: &str| worker.ns.run(&format!("ip route get {unleased} {from}"));
    let from_pod = format!("from {} iif docker0", pods[0].address);
    for way in [way(""), way(&from_pod)] {
        assert_eq!(!way.status.success(), rejected, "{}: {}", meeting.name, text(&way));
        assert!(rejected || text(&way).contains("dev eth0"), "{}: {}", meeting.name, text(&way));
    }
    let said = check(&worker, "");
    assert!(said.contains(meeting.said), "{said}");
    let status = daemons[0].status();
    assert_eq!((status.0["icmp_sent"].as_u64(), status.all_drops("egress")), (Some(0), 0), "{}", status.0);

    let files = daemons.map(|daemon| {
        let file = daemon.subnet_file().to_owned();
        daemon.stop();
        file
    });
    reaches(&worker, &master);
    for (host, (file, before)) in [&worker, &master].into_iter().zip(files.iter().zip(&before)) {
        host.ns.ip("link del docker0");
        let overlayctl = program("overlayctl");
        host.ns.ok(&format!("{} cleanup -- -subnet-file={}", overlayctl.display(), file.display()));
        assert_eq!(tables(host), *before, "{}: {}", meeting.name, host.name);
    }
}

#[test]
fn what_comes_into_the_network_later_is_the_hosts_too() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir_with(&site, "store", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let before = tables(&worker);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let pods = [worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env())];
    let whole = |wanted: bool| {
        await_until(SOON, "the routes to follow", || w.status().0["routed"]["whole"] == wanted)
    };
    whole(true);
    let ours = || worker.ns.ok("ip route show proto 222");
    for change in [
        "route add 10.1.0.0/16 via 192.168.1.1 metric 100",
        "route replace 10.1.0.0/16 via 192.168.1.1",
        "route add 10.0.0.0/8 via 192.168.1.1",
        "address add 10.1.0.77/32 dev eth0",
    ] {
        worker.ns.ip(change);
        whole(false);
        assert!(ours().contains(&format!("{} dev flannel.1", m.env().base_with_length())), "{}", ours());
        traffic::ping(&pods[0].ns, pods[1].address);
        worker.ns.ip(&change.replace(" add ", " del ").replace(" replace ", " del "));
        whole(true);
        // With the one that ends here behind it.
        assert_eq!(ours().lines().count(), 2, "{}", ours());
        traffic::ping(&pods[0].ns, pods[1].address);
    }
    // A node whose address is among the pods'.
    store.put_lease("10.1.250.0-24", &lease("10.1.251.7"));
    whole(false);
    store.delete_lease("10.1.250.0-24");
    whole(true);
    let file = w.subnet_file().to_owned();
    w.stop();
    worker.ns.ip("link del docker0");
    worker.ns.ok(&format!("{} cleanup -- -subnet-file={}", program("overlayctl").display(), file.display()));
    assert_eq!(tables(&worker), before);
}

#[test]
fn a_subnet_that_the_host_comes_to_be_in_is_given_up_for_another() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir_with(&site, "store", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let before = w.env();
    worker.ns.ip(&format!("address add {}/32 dev eth0", before.bridge_address()));
    await_until(SOON, "another subnet", || w.env().key() != before.key());
    await_until(SOON, "the earlier lease to be given up", || !store.leases().contains_key(&before.key()));
    await_mesh(&[&w, &m]);
    let pods = [worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env())];
    traffic::ping(&pods[0].ns, pods[1].address);
    traffic::ping(&pods[1].ns, pods[0].address);
    // Nor does a node that starts anew come back to it.
    let env = w.env();
    w.stop();
    assert_eq!(worker.overlayd(&store).start().env(), env);
}

#[test]
fn a_lease_cannot_have_what_is_the_hosts() {
    let (site, worker, master) = Site::two_hosts();
    let config = r#"{"Network":"192.168.0.0/16","SubnetMin":"192.168.48.0","SubnetMax":"192.168.63.0","Backend":{"Type":"vxlan"}}"#;
    let store = Store::dir_with(&site, "store", config);
    worker.ns.ip("route add 192.168.77.0/24 via 192.168.1.1");
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let pods = [worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env())];
    for (key, wrong) in
        [("192.168.1.0-29", "192.168.1.1 from this host"), ("192.168.77.0-24", "a route of its own")]
    {
        store.put_lease(key, &lease("192.168.5.66"));
        let problem = || {
            let status = w.status().0;
            status["peers"].as_array().unwrap().iter().any(|peer| {
                peer["problem"].as_str().is_some_and(|problem| problem.contains(wrong))
                    && peer["way"] == "none"
            }) || status["refused_leases"].to_string().contains(wrong)
        };
        await_until(SOON, &format!("{key} to be told"), problem);
        assert!(!worker.ns.ok("ip route show proto 222").contains(&key.replace('-', "/")));
    }
    assert!(traffic::answers(&worker.ns, [192, 168, 1, 1].into()));
    traffic::ping(&pods[0].ns, pods[1].address);
}

#[test]
fn a_subnet_with_the_host_in_it_is_refused_before_anything_is_touched() {
    let (site, worker, _master) = Site::two_hosts();
    let config = r#"{"Network":"192.168.0.0/16","SubnetMin":"192.168.1.0","SubnetMax":"192.168.1.0","Backend":{"Type":"vxlan"}}"#;
    let store = Store::dir_with(&site, "store", config);
    let before = tables(&worker) + &worker.ns.ok("nft list ruleset");
    let mut w = worker.overlayd(&store).spawn();
    let told = || w.log().contains("192.168.1.") && w.log().contains("this host");
    await_until(SOON, "the refusal", told);
    assert_eq!(tables(&worker) + &worker.ns.ok("nft list ruleset"), before);
    assert!(store.leases().is_empty(), "{:?}", store.leases());
    assert!(!w.subnet_file().exists());
    w.process().kill();
}

#[test]
fn a_subnet_with_a_gateway_behind_another_interface_is_not_taken() {
    let (site, worker, _master) = Site::two_hosts();
    let config = r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.0","SubnetMax":"10.1.2.0","Backend":{"Type":"vxlan"}}"#;
    let store = Store::dir_with(&site, "store", config);
    worker.ns.ip("link add other type bridge\n\
                  link set other up\n\
                  addr add 172.20.0.2/24 dev other\n\
                  route add 172.21.0.0/16 via 10.1.1.1 dev other onlink");
    // What is reserved for this host is no better.
    store.put_lease("10.1.1.0-24", &lease(&worker.public_ip.to_string()));
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().base_with_length(), "10.1.2.0/24", "{}", w.log());
}

fn lease(public_ip: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}}}"#
    )
}

fn gateway(host: &Host) -> String {
    let [a, b, c, _] = host.public_ip.octets();
    format!("{a}.{b}.{c}.1")
}

/// What `overlayctl check` says, with these flags for the daemon to be.
fn check(host: &Host, flags: &str) -> String {
    text(&host.ns.run(&format!("{} check -- --iface=eth0 {flags}", program("overlayctl").display())))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Routes, rules and addresses, however they are listed.
fn tables(host: &Host) -> String {
    let listing =
        ["ip -4 route show table all", "ip -4 rule", "ip -o -4 address show"].map(|line| host.ns.ok(line));
    let mut lines: Vec<String> = listing.concat().lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines.join("\n")
}
