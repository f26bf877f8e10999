//! `overlayctl cleanup` leaves a host as if the daemon had never been there, and touches nothing else.

use std::path::Path;
use std::process::Output;

use integration::overlayd::program;
use integration::{Backend, Host, Overlayd, SOON, Site, Store, Wire, await_until};

#[test]
fn all_that_is_ours_goes_and_nothing_else() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // iptables' nft variant makes a chain when it is first used, and never removes it.
    worker.ns.ok("iptables -P FORWARD ACCEPT");
    worker.ns.ok("iptables -t nat -P POSTROUTING ACCEPT");
    worker.ns.ok("nft add table ip overlay");
    worker.ns.ok("iptables -N OVERLAYDX-FWD-flannel.1");
    worker.ns.ok("iptables-legacy -P FORWARD DROP");
    worker.ns.ip("route add 10.1.200.0/24 via 192.168.1.1 proto static");
    let before = host_state(&worker);

    let mut w = worker.overlayd(&store).flag("--ip-masq").flag("--ip-blackhole-route").start();
    let subnet_file = w.subnet_file().to_owned();
    let running = cleanup(&worker, &w, &[]);
    assert_eq!(running.status.code(), Some(1));
    assert!(text(&running).contains("overlayd is running on flannel.1"), "{}", text(&running));
    let state = format!("{}.state.json", subnet_file.display());
    await_until(SOON, "the state to be saved", || Path::new(&state).exists());
    // As a crash leaves it, with the socket.
    w.process().kill();
    // A route that outlives the device, as those of a host-gw run do.
    worker.ns.ip("route add 10.1.201.0/24 via 192.168.1.1 proto 222");

    let dirty = host_state(&worker);
    let dry = cleanup(&worker, &w, &["--dry-run"]);
    assert!(dry.status.success(), "{}", text(&dry));
    assert_eq!(host_state(&worker), dirty, "a dry run changes nothing");
    for part in
        ["the firewall rules of flannel.1", "the route 10.1.201.0/24 dev eth0", "flannel.1.sock", &state]
    {
        let told = text(&dry).lines().any(|line| line.starts_with("would remove") && line.contains(part));
        assert!(told, "{part}: {}", text(&dry));
    }

    let done = cleanup(&worker, &w, &[]);
    assert!(done.status.success() && text(&done).contains("removed the firewall rules"), "{}", text(&done));
    assert_eq!(host_state(&worker), before);
    assert!(!Path::new(&state).exists());
    assert!(subnet_file.exists(), "docker and flanneld read it");

    let again = cleanup(&worker, &w, &[]);
    assert_eq!(
        (again.status.code(), text(&again).as_str()),
        (Some(0), "nothing of overlayd's is left here\n")
    );
    assert_eq!(store.leases().len(), 1, "the lease is not given back unless asked for");
}

#[test]
fn tables_that_were_made_for_our_rules_go_with_the_last_daemons() {
    for firewall in ["nftables", "iptables"] {
        let (site, worker, _master) = Site::two_hosts();
        let rules = || worker.ns.ok("nft -s list ruleset");
        assert_eq!(rules(), "", "a host that has never had a rule");
        let daemon = |name, network, kind| {
            let config = format!(r#"{{"Network":"{network}","Backend":{{"Type":"{kind}"}}}}"#);
            let store = Store::dir_with(&site, name, &config);
            let firewall = format!("--firewall={firewall}");
            let daemon = worker.overlayd(&store).named(name).flag(&firewall).flag("--ip-masq").start();
            let file = daemon.subnet_file().to_owned();
            (daemon, file)
        };
        let (one, first) = daemon("one", "10.1.0.0/16", "vxlan");
        let (two, second) = daemon("two", "10.2.0.0/16", "udp");
        let accepted = |network: &str| {
            let accepts = format!("ip daddr {network}");
            await_until(SOON, &format!("{network} to be forwarded"), || {
                text(&worker.ns.run("nft list table ip filter")).contains(&accepts)
            });
        };
        accepted("10.1.0.0/16");
        accepted("10.2.0.0/16");
        let clean = |file: &Path, device: &str| {
            let done = cleanup_by(&worker, file, &format!("--device={device}"));
            assert!(done.status.success(), "{firewall}: {}", text(&done));
        };
        one.stop();
        clean(&first, "flannel.1");
        assert!(rules().contains("table ip filter") && !rules().contains("10.1.0.0"), "{}", rules());
        two.stop();
        // What somebody has put into such a table keeps it.
        worker.ns.ok("iptables -A FORWARD -s 192.0.2.1/32 -j DROP");
        clean(&second, "flannel0");
        let left = rules();
        assert!(left.contains("192.0.2.1") && left.matches("table ").count() == 1, "{firewall}: {left}");
        assert!(!left.to_lowercase().contains("overlayd"), "{firewall}: {left}");

        worker.ns.ok("nft flush ruleset");
        let (one, first) = daemon("one", "10.1.0.0/16", "vxlan");
        accepted("10.1.0.0/16");
        one.stop();
        clean(&first, "flannel.1");
        assert_eq!(rules(), "", "{firewall}");
    }
}

#[test]
fn one_of_two_networks_is_cleaned_up_while_the_other_runs() {
    let around = r#""10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.10.0.0","SubnetMax":"10.11.0.0""#;
    for network in [r#""10.1.0.0/16""#, around] {
        let (site, worker, _master) = Site::two_hosts();
        let one = format!(r#"{{"Network":{network},"Backend":{{"Type":"vxlan"}}}}"#);
        let one = Store::dir_with(&site, "one", &one);
        let two = Store::dir_with(&site, "two", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"udp"}}"#);
        let mut w1 = worker.overlayd(&one).named("one").start();
        let w2 = worker.overlayd(&two).named("two").start();
        w1.process().kill();
        let all = cleanup(&worker, &w1, &[]);
        assert!(!all.status.success() && text(&all).contains("running on flannel0"), "{}", text(&all));
        let before = worker.ns.ok("nft -s list table ip overlayd_flannel0");
        let done = cleanup(&worker, &w1, &["--device=flannel.1"]);
        assert!(done.status.success() && !text(&done).contains("flannel0"), "{}", text(&done));
        assert!(!worker.ns.ok("nft list tables").contains("overlayd_flannel.1"));
        assert_eq!(worker.ns.ok("nft -s list table ip overlayd_flannel0"), before);
        assert_eq!(w2.status().0["device"]["name"], "flannel0");
    }
}

#[test]
fn cleanup_finds_a_device_that_has_lost_rules_and_routes() {
    let (site, worker, _master) = Site::two_hosts();
    let w = worker.overlayd(&Store::dir(&site, Backend::Vxlan)).flag("--firewall=none").start();
    let file = w.subnet_file().to_owned();
    w.stop();
    // The rest goes with the device's state.
    worker.ns.ip("link set flannel.1 down\nroute flush proto 222");
    assert_eq!(worker.ns.ok("ip route show proto 222"), "");
    let done = text(&cleanup_by(&worker, &file, ""));
    assert!(done.contains("removed the device flannel.1"), "{done}");
    assert!(!worker.ns.ok("ip -o link").contains("flannel.1"));
}

#[test]
fn what_stands_behind_a_route_goes_with_it_although_nothing_tells_whose_it_is() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut w = worker.overlayd(&store).start();
    let behind = || worker.ns.ok("ip route show type unreachable proto 222");
    await_until(SOON, "the route behind the device", || behind().contains("10.1.0.0/16"));
    w.process().kill();
    // Without the saved state, which lies beside another subnet file.
    let done =
        text(&cleanup_by(&worker, &site.directory("another").join("subnet.env"), "--device=flannel.1"));
    assert_eq!(behind(), "", "{done}");
}

#[test]
fn cleanup_of_one_network_leaves_the_state_of_the_other() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let one = Store::dir_with(&site, "one", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let two = Store::dir_with(&site, "two", r#"{"Network":"10.2.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let w1 = worker.overlayd(&one).named("one").start();
    let (w2, m2) = (worker.overlayd(&two).named("two").start(), master.overlayd(&two).named("two").start());
    let peer = format!("{} via 192.168.1.13", m2.env().base_with_length());
    await_until(SOON, "the peer's route", || worker.ns.ok("ip route").contains(&peer));
    let files = [&w1, &w2].map(|daemon| daemon.subnet_file().to_owned());
    let states = files.clone().map(|file| format!("{}.state.json", file.display()));
    let saved = |state: &String| Path::new(state).exists();
    await_until(SOON, "the states to be saved", || states.iter().all(saved));
    w2.stop();

    // The subnet file that is named, or meant by default, is the other's, which runs.
    let of_two = |file, rest: &str| cleanup_by(&worker, file, &format!("--device=10.2.0.0 {rest}"));
    assert!(of_two(&files[0], "").status.success());
    assert!(saved(&states[0]), "the state of flannel.1");
    let refused = of_two(&files[0], "--release-lease");
    assert!(text(&refused).contains("the saved state is of flannel.1"), "{}", text(&refused));
    // With its own, a network without a device is known by its routes.
    let done = of_two(&files[1], "");
    assert!(done.status.success() && text(&done).contains("removed the route 10.2."), "{}", text(&done));
    let routes = worker.ns.ok("ip route show proto 222");
    assert!(routes.contains("10.1.0.0/16 dev flannel.1") && !routes.contains("10.2."), "{routes}");
    assert!(saved(&states[0]) && !saved(&states[1]));
}

#[test]
fn the_lease_is_given_back_when_asked_for() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    let (subnet, file) = (w.env().base_with_length(), w.subnet_file().to_owned());
    let peer = r#"{"PublicIP":"192.168.1.99","PublicIPv6":null}"#;
    store.put_lease("10.1.177.0-24", peer);
    w.stop();
    let give_back = |flags: &str| {
        let overlayctl = program("overlayctl");
        let file = file.display();
        worker
            .ns
            .run(&format!("{} cleanup --release-lease -- -subnet-file={file} {flags}", overlayctl.display()))
    };

    // Without the store's address the lease is not where the tool looks: nothing is done, and it can be tried again.
    // (The kernel says a while after its daemon's end that the device has no carrier.)
    let state = || host_state(&worker).replace("linkdown", "");
    let before = state();
    let wrong = give_back("");
    assert_eq!(wrong.status.code(), Some(1));
    let said = text(&wrong);
    assert!(
        said.contains("give overlayd's flags for its store") && said.contains("nothing has been removed"),
        "{said}"
    );
    assert_eq!(state(), before);
    assert_eq!(store.leases().len(), 2);

    // The same store, by another list of its members.
    let endpoint = store.flags()[0].replace("--etcd-endpoints=", "");
    let done = give_back(&format!("--etcd-endpoints=http://192.168.1.1:2389,{endpoint}/"));
    assert!(done.status.success(), "{}", text(&done));
    assert!(text(&done).contains(&format!("removed the lease of {subnet}")), "{}", text(&done));
    assert_eq!(store.leases().into_keys().collect::<Vec<_>>(), ["10.1.177.0-24"]);
}

#[test]
fn a_reservation_stays_one() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Udp);
    store.put_lease("10.1.177.0-24", r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#);
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().base_with_length(), "10.1.177.0/24");
    let (file, flags) = (w.subnet_file().to_owned(), store.flags().join(" "));
    w.stop();
    let (overlayctl, file) = (program("overlayctl"), file.display());
    worker.ns.ok(&format!("{} cleanup --release-lease -- -subnet-file={file} {flags}", overlayctl.display()));
    assert_eq!(store.leases().len(), 1);
}

#[track_caller]
fn cleanup(host: &Host, daemon: &Overlayd<'_>, options: &[&str]) -> Output {
    cleanup_by(host, daemon.subnet_file(), &options.join(" "))
}

#[track_caller]
fn cleanup_by(host: &Host, file: &Path, options: &str) -> Output {
    let overlayctl = program("overlayctl");
    host.ns.run(&format!("{} cleanup {options} -- -subnet-file={}", overlayctl.display(), file.display()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Links, addresses, routes, rules and sockets.
#[track_caller]
fn host_state(host: &Host) -> String {
    let looks = [
        "ip -o -4 address show",
        "ip -4 route show table all",
        "iptables -S",
        "iptables -t nat -S",
        "iptables-legacy -S",
        "nft -s list ruleset",
    ];
    let sockets = std::fs::read_dir(format!("/run/overlayd/netns-{}", host.ns.inode()));
    let sockets = sockets.into_iter().flatten().flatten().map(|entry| entry.path().display().to_string());
    // The kernel says so some time after the daemon has ended.
    let text = looks.map(|line| host.ns.ok(line)).concat().replace(" linkdown", "");
    text + &sockets.collect::<Vec<_>>().join("\n")
}
