//! `overlayctl ping`, `trace` and `check`: what they say of a healthy pair of hosts, and of typical trouble.

use std::fs;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Instant;

use integration::kernel_vxlan::KernelVxlan;
use integration::netns::{Namespace, output};
use integration::overlayd::{Overlayd, await_mesh, program};
use integration::packets::{Injector, mac, udp_packet, vxlan_frame};
use integration::{Backend, Host, Pair, Pod, SOON, Site, Store, await_until, traffic};

/// What overlayctl, run in a namespace, prints, and whether it exits with 0.
#[track_caller]
fn overlayctl(ns: &Namespace, arguments: &str) -> (bool, String) {
    let mut command = ns.command(&program("overlayctl").display().to_string());
    let output = output(command.args(arguments.split_whitespace()));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs overlayctl and has it succeed or fail, as `good` says, with a text that has all of `parts`: again, if it
/// says another thing at first, since on a busy machine echoes are late, and the daemon has to notice what changes.
#[track_caller]
fn says(ns: &Namespace, arguments: &str, good: bool, parts: &[&str]) {
    let start = Instant::now();
    loop {
        let (success, text) = overlayctl(ns, arguments);
        if success == good && parts.iter().all(|part| text.contains(part)) {
            return println!("$ overlayctl {arguments}\n{text}");
        }
        assert!(
            start.elapsed() < SOON,
            "overlayctl {arguments}: not what was awaited, success {good} and {parts:?}, but success {success} and\n{text}"
        );
    }
}

#[test]
fn a_firewall_that_wants_flannels_port_passes_udp_and_an_answer_means_that_packets_pass() {
    for (flag, passes) in [("-v=0", true), ("--source-port-spread=on", false)] {
        let (site, worker, master) = Site::two_hosts();
        for host in [&worker, &master] {
            host.ns.ok("iptables -A INPUT -p udp --sport 8285 --dport 8285 -j ACCEPT");
            host.ns.ok("iptables -A INPUT -p udp --dport 8285 -j DROP");
        }
        let store = Store::dir(&site, Backend::Udp);
        let Pair { left, right, a, b, .. } = &Pair::start([&worker, &master], &store, &[flag]);
        let ping = format!("ping {} -c 1", right.env().base());
        if passes {
            traffic::ping(&a.ns, b.address);
            says(&worker.ns, &ping, true, &["1 of 1 answered"]);
            await_until(SOON, "check to say so", || overlayctl(&worker.ns, "check").1.contains("answers in"));
            // Also what asks for the path's MTU goes by that port.
            await_until(SOON, "the peer to be known to answer", || {
                traffic::ping(&a.ns, b.address);
                let (_, peers) = overlayctl(&worker.ns, "peers --json");
                let peers: serde_json::Value = serde_json::from_str(&peers).expect("JSON");
                peers["peers"][0]["answers"] == true
            });
        } else {
            assert!(!traffic::answers(&a.ns, b.address));
            says(&worker.ns, &ping, false, &["0 of 1 answered"]);
            await_until(SOON, "check to say so", || {
                overlayctl(&worker.ns, "check").1.contains("does not answer")
            });
        }
        assert_eq!(left.status().all_drops("ingress"), 0);
    }
}

#[test]
fn a_peer_answers_in_both_formats_and_a_packet_is_followed() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
        await_mesh(&[&w, &m]);
        let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));

        let here = &worker.ns;
        says(here, &format!("ping {} -c 2 -i 0.01", master.public_ip), true, &["2 of 2 answered, 0 % lost"]);
        let (largest, mtu) = (format!("ping {} -c 1 -s 9999", m.env().base()), m.env().mtu);
        let said = [format!("shortened to {mtu} bytes"), format!("{mtu} bytes: overlay ")];
        says(here, &largest, true, &[&said[0], &said[1], "1 of 1 answered"]);
        assert_eq!(w.status().all_drops("ingress") + m.status().all_drops("ingress"), 0);

        let way = format!("trace {} {} tcp/80", a.address, b.address);
        let out =
            ["flannel", "nothing refuses it", "the lease of 192.168.199.238", "via 192.168.1.1 dev eth0"];
        says(here, &way, true, &out);
        says(&master.ns, &way, true, &["the lease of 192.168.1.12", "dev docker0"]);
        let from_host = format!("trace {} {}", worker.public_ip, b.address);
        says(here, &from_host, true, &["source       192.168.1.12 becomes", "the source is this host's own"]);
        says(here, &format!("trace {} 10.1.200.1", a.address), false, &["DROPPED (no_route)"]);
        let large = format!("trace {} {} -s {}", a.address, b.address, mtu + 1);
        says(
            here,
            &large,
            false,
            &["encapsulate  DROPPED (too_big)", "Larger than the overlay's MTU", "remedy: "],
        );
        let strange = format!("trace {} {} --from 192.168.1.99", a.address, b.address);
        says(&master.ns, &strange, false, &["from         DROPPED (unknown_address)", "remedy: "]);
        let forged = format!("trace 10.1.200.1 {}", b.address);
        says(here, &forged, false, &["far end      DROPPED (stale_source)", "10.1.200.1 is its source"]);
        says(here, &format!("ping {}", "10.1.200.1"), false, &["no node has 10.1.200.1"]);
        for own in [worker.public_ip, a.address] {
            says(here, &format!("ping {own}"), false, &[&format!("{own} is this node itself")]);
        }

        m.stop();
        says(here, &format!("ping {} -c 1 -W 0.5", master.public_ip), false, &["its overlay does not"]);
        w.stop();
    }
}

#[test]
fn a_kernel_peer_ignores_an_echo() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    // None of the first hundred, among which the daemon has chosen.
    let mut kernel = KernelVxlan::start(&master, &store, "10.1.163");
    kernel.follow(&store);
    w.await_peers(&["10.1.163.0/24"]);
    says(&worker.ns, "ping 10.1.163.0 -c 2 -i 0.01 -W 0.5", false, &["0 of 2 answered", "the host answers"]);
    await_until(SOON, "the echoes at the peer", || {
        let counters = master.ns.ok("ip -s -j link show flannel.1");
        let counters: serde_json::Value = serde_json::from_str(&counters).expect("ip's JSON");
        counters[0]["stats64"]["rx"]["packets"].as_u64() >= Some(2)
    });
    // It neither answers nor complains: nothing comes back.
    let status = w.status();
    assert_eq!(
        (status.all_drops("ingress"), status.0["counters"]["ingress"]["packets"].as_u64()),
        (0, Some(0))
    );
    w.stop();
}

/// Two nodes that are well, with a pod each.
fn two_well_nodes<'h>(
    worker: &'h Host,
    master: &'h Host,
    store: &Store,
) -> (Overlayd<'h>, Overlayd<'h>, Pod, Pod) {
    let (w, m) = (worker.overlayd(store).start(), master.overlayd(store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    await_until(SOON, "a check without an error", || {
        let (_, text) = overlayctl(&worker.ns, "check");
        !text.contains("ERROR") && text.contains(&format!("{} bytes too", w.env().mtu))
    });
    (w, m, a, b)
}

#[test]
fn what_is_wrong_with_a_host_is_named() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let (w, m, a, b) = two_well_nodes(&worker, &master, &store);
    let here = &worker.ns;
    let way = format!("trace {} {}", a.address, b.address);

    // The bridge's MTU is that of a plain link.
    here.ip("link set docker0 mtu 1500");
    says(here, "check", false, &["ERROR    bridge", "MTU 1500, more than the overlay's 1450"]);
    here.ip("link set docker0 mtu 1450");

    // The bridge is down.
    here.ip("link set docker0 down");
    says(here, "check", false, &["ERROR    bridge", "docker0 is down", "ip link set docker0 up"]);
    here.ip("link set docker0 up");

    // docker0 is that of an earlier lease.
    here.ip(&format!("address add 10.1.250.1/24 dev docker0\naddress del {} dev docker0", w.env().subnet));
    says(here, "check", false, &["docker0 has 10.1.250.1/24, which is not in this node's lease", "--bip"]);
    here.ip(&format!("address del 10.1.250.1/24 dev docker0\naddress add {} dev docker0", w.env().subnet));

    // Forwarding is off for one device, and somebody, quicker than the daemon, keeps it so.
    let back = format!("trace {} {}", b.address, a.address);
    for (device, way) in [("docker0", &way), ("flannel.1", &back)] {
        let off = format!("net.ipv4.conf.{device}.forwarding is 0");
        switched_off(here, device, || {
            says(here, "check", false, &["ERROR    forwarding", &off, "sysctl", "IPForward=no"]);
            says(here, way, false, &["forward      DROPPED", &off, "sysctl", "IPForward=no"]);
        });
    }
    // Not the daemon's to switch on, since no pods' packets come in by it as they are.
    let underlay = "net/ipv4/conf/eth0/forwarding";
    here.sysctl(underlay, "0");
    says(here, "check", false, &["warning  forwarding", "net.ipv4.conf.eth0.forwarding is 0"]);
    here.sysctl(underlay, "1");

    // What pods send goes by another table than what this host sends.
    here.ip("route add default via 192.168.1.1 table 100\nrule add prio 100 iif docker0 lookup 100");
    says(
        here,
        "check",
        false,
        &["ERROR    way", "from pods to", "via 192.168.1.1 dev eth0, not by flannel.1"],
    );
    here.ip("rule del prio 100\nroute flush table 100");

    // Another route is more specific than the overlay's, or the underlay has none.
    here.ip(&format!("route add {} via 192.168.1.1", m.env().base_with_length()));
    says(here, &way, false, &["route        DROPPED", "via 192.168.1.1 dev eth0, not by flannel.1"]);
    says(
        here,
        "check",
        false,
        &["ERROR    way", "a route of its own", "via 192.168.1.1 dev eth0", "ip route delete"],
    );
    here.ip(&format!("route del {} via 192.168.1.1\nroute del default", m.env().base_with_length()));
    says(here, &way, false, &["underlay     DROPPED", "no way to 192.168.199.238", "unreachable"]);
    here.ip("route add default via 192.168.1.1");
}

#[test]
fn what_a_firewall_refuses_is_named() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let (_w, _m, a, b) = two_well_nodes(&worker, &master, &store);
    let here = &worker.ns;
    let way = format!("trace {} {}", a.address, b.address);

    // A firewall of the host's own refuses what is forwarded.
    here.feed(
        "nft -f -",
        "add table inet fw\nadd chain inet fw forward { type filter hook forward priority 0; policy drop; }\n",
    );
    says(
        here,
        "check",
        false,
        &["ERROR    forwarding", "chain inet fw forward", "nft insert rule inet fw forward"],
    );
    says(here, &way, false, &["forward      DROPPED", "chain inet fw forward"]);
    here.ok("nft delete table inet fw");
    // (In filter, what overlayd accepts is put before it again.)
    here.ok("iptables -t mangle -I FORWARD -i docker0 -j DROP");
    says(here, &way, false, &["forward      DROPPED", "-A FORWARD -i docker0 -j DROP"]);
    here.ok("iptables -t mangle -D FORWARD -i docker0 -j DROP");

    // One rule refuses some of it, and the policy all; only one pod is meant, as docker 29 does for each; or a rule
    // stands at a pod's own port.
    here.feed(
        "nft -f -",
        "add table inet fw\nadd chain inet fw forward { type filter hook forward priority 0; policy drop; }\nadd rule inet fw forward tcp dport 25 drop\n",
    );
    says(here, "check", false, &["ERROR    forwarding", "chain inet fw forward", "its policy is drop"]);
    says(here, &way, false, &["forward      DROPPED", "chain inet fw forward", "its policy is drop"]);
    here.ok("nft delete table inet fw");
    here.feed(
        "nft -f -",
        &format!(
            "add table ip docker-bridges\nadd chain ip docker-bridges raw-PREROUTING {{ type filter hook prerouting priority raw; }}\nadd rule ip docker-bridges raw-PREROUTING ip daddr {} iifname != docker0 counter drop\n",
            a.address
        ),
    );
    let cut_off = format!("what goes to {} is dropped by nftables, chain ip docker-bridges", a.address);
    says(here, "check", false, &["warning  forwarding", &cut_off, "\"firewall-backend\": \"iptables\""]);
    here.ok("nft delete table ip docker-bridges");
    here.feed(
        "nft -f -",
        "add table netdev fw\nadd chain netdev fw in { type filter hook ingress device pod0 priority 0; }\nadd rule netdev fw in ip daddr 10.1.0.0/16 drop\n",
    );
    says(
        here,
        "check",
        false,
        &["warning  forwarding", "may act on it", "chain netdev fw in (hook ingress)"],
    );
    here.ok("nft delete table netdev fw");
    // Or nobody finds anybody.
    here.feed(
        "nft -f -",
        "add table arp fw\nadd chain arp fw in { type filter hook input priority 0; policy drop; }\n",
    );
    says(here, "check", false, &["warning  arp", "chain arp fw in (hook input)"]);
    here.ok("nft delete table arp fw");
}

#[test]
fn what_is_wrong_with_others_is_named() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let (w, m, a, _b) = two_well_nodes(&worker, &master, &store);
    let here = &worker.ns;

    // The port is blocked on the way; then the path carries less than its links say, and does not tell.
    site.router.feed(
        "nft -f -",
        "add table inet fw\nadd chain inet fw forward { type filter hook forward priority 0; }\nadd rule inet fw forward udp dport 8472 drop\n",
    );
    says(
        here,
        "check",
        false,
        &["the host is there, but its overlay does not answer", "UDP port 8472 open both ways"],
    );
    site.router.feed(
        "nft -f -",
        "flush chain inet fw forward\nadd rule inet fw forward udp dport 8472 meta length > 1400 drop\n",
    );
    says(here, "check", false, &["answers short packets, but none of 1450 bytes", "lower the MTU"]);
    site.router.ok("nft delete table inet fw");

    // Somebody pretends to be a pod of the peer's.
    let sender = Injector::new(&master.ns, worker.public_ip, 8472);
    let own_mac = w.status().0["backend"]["vtep_mac"].as_str().map(mac).expect("a VTEP MAC");
    let forged = udp_packet([10, 1, 251, 9].into(), a.address, 9, b"forged");
    sender.send(&vxlan_frame(1, own_mac, &forged));
    says(here, "status", true, &["stale_source"]);
    says(
        here,
        &format!("trace 10.1.251.9 {}", a.address),
        false,
        &["DROPPED (stale_source)", "no node has a lease for"],
    );

    // The peer is dead.
    master.ns.ip("link set eth0 down");
    says(here, "check", false, &["ERROR    peer", "neither the host nor its overlay answers"]);
    master.ns.ip("link set eth0 up\nroute add default via 192.168.199.1");

    // The other node says that it has our address.
    m.stop();
    let twin = master.overlayd(&store).named("twin").flag("--public-ip=192.168.1.12").start();
    says(here, "check", false, &["ERROR    conflict", "give each node an address of its own"]);

    // etcd is away.
    store.server().kill();
    says(here, "check", false, &["ERROR    store", "not connected: forwarding goes on"]);
    drop((w, twin));
}

/// Has `looks` look while somebody switches off, again and again, what comes in by a device.
fn switched_off(ns: &Namespace, device: &str, looks: impl FnOnce()) {
    let key = format!("net/ipv4/conf/{device}/forwarding");
    std::thread::scope(|scope| {
        // Ends when the other end of the channel is dropped, also by a panic.
        let (looking, looked) = mpsc::channel::<()>();
        let key = &key;
        scope.spawn(move || {
            while looked.try_recv() == Err(TryRecvError::Empty) {
                ns.sysctl(key, "0");
            }
        });
        looks();
        drop(looking);
    });
    await_until(SOON, "the daemon to switch it on", || ns.ok(&format!("cat /proc/sys/{key}")).trim() == "1");
}

#[test]
fn replies_by_another_way_are_foretold_and_a_host_is_checked_before_its_first_start() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let here = &worker.ns;
    let flags = store.flags().join(" ");
    let fit =
        ["no overlayd runs", "/dev/net/tun is there", "eth0, 192.168.1.12", "device flannel.1", "UDP 8472"];
    says(here, &format!("check -- --iface=eth0 {flags}"), false, &fit);
    says(here, &format!("check -- --iface=eth7 {flags}"), false, &["ERROR    interface", "eth0"]);
    says(
        here,
        "check -- --iface=eth0 --etcd-endpoints=http://192.168.1.1:2379",
        false,
        &["ERROR    store", "etcd"],
    );

    let w = worker.overlayd(&store).flag("--return-path-masq=false").start();
    says(here, "check", false, &["warning  rp_filter", "strict on", "--return-path-masq is off"]);
    says(here, "check --json", false, &[r#""check":"rp_filter","level":"warning""#]);
    let beside = ["warning  flags", "are not looked at", "overlayd 0", "answers"];
    says(here, "check -- --iface=eth7", false, &beside);
    let file = w.subnet_file().display().to_string();
    w.stop();
    let of_saved = ["that of the saved state", "dir /", " answers, 1 lease\n"];
    says(here, &format!("check -- --iface=eth0 --subnet-file={file}"), false, &of_saved);
}

#[test]
fn what_is_odd_about_a_network_configuration_is_told() {
    let (site, worker, _master) = Site::two_hosts();
    let config = r#"{"Network":"10.1.0.0/16","Bakcend":{},"Backend":{"Type":"vxlan","MTU":9000,"Vin":2}}"#;
    let store = Store::dir_with(&site, "odd", config);
    let flags = store.flags().join(" ");
    let keys = "Bakcend (is Backend meant?), Backend.Vin (is VNI meant?)";
    let mtu = "the MTU 9000, eth0 has 1500";
    says(&worker.ns, &format!("check -- --iface=eth0 {flags}"), false, &["warning  config", keys, mtu]);
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().mtu, 8950, "as with flannel");
    assert_eq!(w.log().matches(keys).count(), 1, "{}", w.log());
    assert!(w.log().contains(mtu), "{}", w.log());
    says(&worker.ns, "check", false, &["host", mtu, "ip link set eth0 mtu 9000"]);

    // Nor is one in force that cannot be used.
    store.put_config("\u{feff}{}");
    let problem = "byte order mark (BOM)";
    await_until(SOON, "a problem", || w.status().0["host"]["problems"].to_string().contains(problem));
    says(&worker.ns, "check", false, &["host", problem]);
    store.put_config(config);
    await_until(SOON, "no problem", || !w.status().0["host"]["problems"].to_string().contains(problem));
}

#[test]
fn the_exit_code_of_a_check_is_a_monitoring_plugins() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let other = Store::dir_with(&site, "other", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"udp"}}"#);
    let here = &worker.ns;
    let flags = |store: &Store| format!("-- --iface=eth0 {}", store.flags().join(" "));
    let exits = |arguments: &str, code: i32, parts: &[&str]| {
        await_until(SOON, &format!("{code} from overlayctl {arguments}"), || {
            let mut command = here.command(&program("overlayctl").display().to_string());
            let output = output(command.args(arguments.split_whitespace()));
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            println!("$ overlayctl {arguments}: {:?}\n{text}", output.status.code());
            output.status.code() == Some(code) && parts.iter().all(|part| text.contains(part))
        });
    };
    // Nobody has been here yet.
    exits(&format!("check {}", flags(&store)), 1, &["warning  daemon", "no overlayd runs"]);

    let mut one = worker.overlayd(&store).named("one").start();
    let two = worker.overlayd(&other).named("two").start();
    exits("check", 3, &["several daemons run here, choose one with --device: flannel.1, flannel0"]);
    exits("check --device=flannel.1", 1, &["ok       daemon", "warning  peers"]);
    two.stop();
    exits("check", 1, &["ok       daemon", "warning  peers"]);

    // A bridge of docker's own is nobody's business beside the one that has the pods, and counts once pods are on it.
    here.ip("link add docker0 type bridge\naddress add 172.17.0.1/16 dev docker0\nlink set docker0 up");
    exits("check", 1, &["warning  bridge       no bridge has an address of", "docker0 has 172.17.0.1/16"]);
    here.ip("link add cni0 mtu 1450 type bridge\nlink set cni0 up");
    here.ip(&format!("address add {} dev cni0", one.env().subnet));
    here.ip("link add pod0 type veth peer name pod1\nlink set pod0 master docker0 up\nlink set pod1 up");
    exits("check", 1, &[&format!("ok       bridge       cni0, {}", one.env().subnet)]);
    assert_eq!(one.status().0["host"]["problems"], serde_json::json!([]));
    here.ip("link del cni0");
    await_until(SOON, "the daemon to see it", || {
        one.status().0["host"]["problems"].as_array().is_some_and(|problems| problems.len() == 1)
    });
    exits("check", 2, &["ERROR    bridge       docker0 has 172.17.0.1/16", "journalctl -u docker"]);
    let text = overlayctl(here, "check").1;
    assert_eq!(text.matches("docker0 has").count(), 1, "told once: {text}");
    here.ip("link del docker0\nlink del pod0");
    exits("check", 1, &["warning  bridge"]);

    // A stopped one does not answer in time; a dead one has left its device.
    one.process().kill();
    exits(
        "check",
        2,
        &["ERROR    daemon", "though one has", "10.1.0.0/16 dev flannel.1", "overlayctl cleanup"],
    );
    exits(&format!("check {}", flags(&store)), 2, &["ERROR    daemon"]);
}

#[test]
fn a_bug_report_has_it_all_and_no_secret() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    worker.ns.feed(
        "nft -f -",
        "add table inet fw\nadd chain inet fw input\nadd rule inet fw input drop comment \"token=hunter2\"\n",
    );
    let file = worker.directory().join("report.tar.gz");
    let line = format!("bugreport {}", file.display());
    says(&worker.ns, &line, true, &["look into it before"]);
    says(&worker.ns, &line, false, &["cannot write", "exists"]);
    worker.ns.ok(&format!("tar -xzf {} -C {}", file.display(), worker.directory().display()));
    let told = |name: &str| {
        let file = worker.directory().join("report").join(name);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    // What a daemon cannot answer is a sentence.
    let nouns = ["status", "peers", "leases", "routes", "drops", "stats", "config", "offloads", "events"];
    for noun in nouns {
        let text = told(&format!("{noun}.json"));
        let json: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{noun}: {e}: {text}"));
        assert!(json.is_object() || json.is_array(), "{noun}: {text}");
    }
    for (name, part) in [
        ("check.txt", "overlayd "),
        ("metrics.txt", "# EOF"),
        ("nftables.txt", "chain input"),
        ("routes.txt", "flannel.1"),
        ("links.txt", "flannel.1"),
    ] {
        assert!(told(name).contains(part), "{name}: {}", told(name));
    }
    let all = worker.ns.ok(&format!("tar -xzOf {}", file.display()));
    assert!(
        all.contains("chain input") && all.contains("token=[removed]") && !all.contains("hunter2"),
        "{all}"
    );
    assert!(all.contains(&w.env().base_with_length()), "{all}");
    w.stop();
}
