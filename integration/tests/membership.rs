//! Hosts come, go and come back; what the store holds, the tables follow.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use integration::overlayd::{await_mesh, program};
use integration::traffic;
use integration::{Backend, SOON, Site, Store, await_until};
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn a_third_host_is_reachable_within_a_second_of_its_lease_in_etcd() {
    a_third_host_is_reachable_within_a_second_of_its_lease(Store::etcd);
}

#[test]
fn a_third_host_is_reachable_within_a_second_of_its_lease_in_a_directory() {
    a_third_host_is_reachable_within_a_second_of_its_lease(Store::dir);
}

fn a_third_host_is_reachable_within_a_second_of_its_lease(store: fn(&Site, Backend) -> Store) {
    let (site, worker, _master) = Site::two_hosts();
    let store = store(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    let a = worker.bridge_and_pod(&w.env());

    // What a machine is busy with at one moment may be over with the next host.
    let hosts = ["third", "fourth", "fifth"].into_iter().zip([50, 51, 52]);
    let hosts: Vec<_> = hosts.map(|(name, lan)| site.host(name, &format!("192.168.{lan}.7"))).collect();
    let mut took = Vec::new();
    for host in &hosts {
        let known: Vec<_> = store.leases().into_keys().collect();
        let _daemon = host.overlayd(&store).spawn();
        let mut key = None;
        await_until(SOON, "the host's lease", || {
            key = store.leases().into_keys().find(|key| !known.contains(key));
            key.is_some()
        });
        let base: Ipv4Addr = key.unwrap().split('-').next().unwrap().parse().unwrap();
        took.push(await_until(SOON, "the host to answer", || traffic::answers(&a.ns, base)));
        if took.last() < Some(&Duration::from_secs(1)) {
            return;
        }
    }
    panic!("{took:?} after their leases");
}

#[test]
fn a_host_whose_lease_is_deleted_from_etcd_is_gone_from_the_table() {
    a_host_whose_lease_is_deleted_is_gone_from_the_table(Store::etcd);
}

#[test]
fn a_host_whose_lease_is_deleted_from_a_directory_is_gone_from_the_table() {
    a_host_whose_lease_is_deleted_is_gone_from_the_table(Store::dir);
}

fn a_host_whose_lease_is_deleted_is_gone_from_the_table(store: fn(&Site, Backend) -> Store) {
    let (site, worker, master) = Site::two_hosts();
    let store = store(&site, Backend::Udp);
    let (w, mut m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let a = worker.bridge_and_pod(&w.env());
    traffic::ping(&a.ns, m.env().base());

    // A daemon that lives would take its lease again.
    m.process().kill();
    store.delete_lease(&m.env().key());
    w.await_peers(&[]);
    let text = String::from_utf8(a.ns.run(&format!("ping -n -c 1 -W 10 {}", m.env().base())).stdout).unwrap();
    assert!(text.contains("Destination Net Unreachable"), "{text}");
}

#[test]
fn a_daemon_that_lives_takes_its_deleted_lease_again() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let key = w.env().key();
    store.delete_lease(&key);
    await_until(SOON, "the lease to be back", || store.leases().contains_key(&key));
    assert_eq!(w.status().0["lease"]["state"], "held");
}

#[test]
fn the_lease_in_etcd_is_flannels() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    let m = master.overlayd(&store).flag("--public-ip=192.168.199.200").start();
    let mac = w.status().0["backend"]["vtep_mac"].clone();
    let lease = |key: &str| -> Value { serde_json::from_str(&store.leases()[key]).unwrap() };
    assert_eq!(
        lease(&w.env().key()),
        json!({"PublicIP": "192.168.1.12", "PublicIPv6": null, "BackendType": "vxlan",
               "BackendData": {"VNI": 1, "VtepMAC": mac}})
    );
    assert_eq!(lease(&m.env().key())["PublicIP"], "192.168.199.200");
    let key = format!("/coreos.com/network/subnets/{}", w.env().key());
    assert_eq!(store.server().granted_ttl(&key), Some(86_400));
}

#[test]
fn the_udp_lease_has_no_backend() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let text = &store.leases()[&w.env().key()];
    assert_eq!(text, r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#);
}

#[test]
fn the_subnet_file_and_the_device_are_flannels() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let (site, worker, _master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let w = worker.overlayd(&store).start();
        let env = w.env();
        assert_eq!(
            (env.network.as_str(), env.mtu, env.ip_masq),
            ("10.1.0.0/16", 1500 - backend.overhead(), false)
        );
        assert!(env.subnet.starts_with("10.1.") && env.subnet.ends_with(".1/24"), "{env:?}");
        let device = backend.device();
        let address = worker.ns.ok(&format!("ip -o -4 address show {device}"));
        assert!(address.contains(&format!("inet {}/32 ", env.base())), "{address}");
        assert_eq!(worker.ns.ok(&format!("ip -o -6 address show {device}")), "", "it would send IPv6");
        let link = worker.ns.ok(&format!("ip -o link show {device}"));
        assert!(link.contains(&format!("mtu {} ", env.mtu)) && link.contains(",UP"), "{link}");
        let route = worker.ns.ok(&format!("ip route show 10.1.0.0/16 dev {device}"));
        assert_eq!(route.lines().count(), 1, "{route}");
    }
}

#[test]
fn a_daemon_restarted_takes_the_same_subnet_and_mac() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (env, mac) = (w.env(), w.status().0["backend"]["vtep_mac"].clone());
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&m.env()));
    w.stop();

    let w = worker.overlayd(&store).start();
    assert_eq!((w.env(), &w.status().0["backend"]["vtep_mac"]), (env.clone(), &mac));
    w.await_peers(&[&m.env().base_with_length()]);
    traffic::ping(&a.ns, b.address);
    w.crash();

    let w = worker.overlayd(&store).start();
    assert_eq!((w.env(), &w.status().0["backend"]["vtep_mac"]), (env.clone(), &mac));
    w.await_peers(&[&m.env().base_with_length()]);
    traffic::ping(&a.ns, b.address);
    std::fs::remove_file(w.subnet_file()).unwrap();
    w.stop();

    // Without the subnet file, the lease's PublicIP says whose it is.
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env(), env);
    assert_eq!(store.leases().len(), 2);
}

#[test]
fn a_subnet_is_asked_for_again_when_the_store_has_forgotten_it() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let env = w.env();
    w.stop();
    store.delete_lease(&env.key());
    assert_eq!(worker.overlayd(&store).start().env(), env);
}

#[test]
fn a_reservation_is_taken_and_stays_one() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Udp);
    store.put_lease("10.1.42.0-24", r#"{"PublicIP":"192.168.1.12"}"#);
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().subnet, "10.1.42.1/24");
    assert_eq!(store.server().granted_ttl("/coreos.com/network/subnets/10.1.42.0-24"), None);
}

#[test]
fn a_lease_is_renewed_before_it_ends() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).flag("--subnet-lease-ttl=5").start();
    let (key, start) = (w.env().key(), Instant::now());
    await_until(SOON, "more than the lease's time to pass", || {
        assert!(store.leases().contains_key(&key), "the lease ended after {:?}", start.elapsed());
        start.elapsed() > Duration::from_secs(8)
    });
}

#[test]
fn a_lease_taken_over_lasts_as_long_as_asked_for_now() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).flag("--subnet-lease-ttl=600").start();
    let key = format!("/coreos.com/network/subnets/{}", w.env().key());
    assert_eq!(store.server().granted_ttl(&key), Some(600));
    w.stop();
    let _w = worker.overlayd(&store).start();
    await_until(SOON, "the new time", || store.server().granted_ttl(&key) == Some(86_400));
}

#[test]
fn a_lease_key_without_expiry_is_a_peer() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    store.put_lease("10.1.163.0-24", r#"{"PublicIP":"192.168.199.238","PublicIPv6":null}"#);
    w.await_peers(&["10.1.163.0/24"]);
    assert_eq!(w.status().0["peers"][0]["public_ip"], "192.168.199.238");
}

#[test]
fn garbage_among_the_leases_is_skipped_and_counted() {
    for store in [Store::etcd, Store::dir] {
        let (site, worker, _master) = Site::two_hosts();
        let store = store(&site, Backend::Udp);
        store.put_lease("10.1.177.0-24", "{not json");
        let w = worker.overlayd(&store).start();
        store.put_lease("10.1.178.0-24", r#"{"PublicIP":"not an address"}"#);
        store.put_lease("10.1.179.0-24", r#"{"PublicIP":"192.168.50.7","BackendType":"host-gw"}"#);
        store.put_lease("10.1.163.0-24", r#"{"PublicIP":"192.168.199.238"}"#);
        w.await_peers(&["10.1.163.0/24"]);
        let status = w.status();
        assert_eq!(status.0["garbage_leases"], 2, "{}", status.0);
        assert_eq!(status.0["ignored_leases"], 1, "{}", status.0);
        store.put_lease("10.1.177.0-24", r#"{"PublicIP":"192.168.50.8"}"#);
        w.await_peers(&["10.1.163.0/24", "10.1.177.0/24"]);
        assert_eq!(w.status().0["garbage_leases"], 1);
    }
}

#[test]
fn without_etcd_a_daemon_forwards_from_the_table_it_saved() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let (site, worker, master) = Site::two_hosts();
        let mut store = Store::etcd(&site, backend);
        let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
        await_mesh(&[&w, &m]);
        let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
        store.server().kill();
        traffic::ping(&a.ns, b.address);
        w.stop();

        let w = worker.overlayd(&store).spawn();
        await_until(SOON, "the pods to reach each other again", || traffic::answers(&a.ns, b.address));
        let status = w.status();
        assert_eq!(status.0["lease"]["state"], "saved", "{}", status.0);
        assert_eq!(status.0["store"]["connected"], false, "{}", status.0);

        store.server().run();
        await_until(SOON, "the lease to be confirmed", || {
            let status = w.status();
            status.0["lease"]["state"] == "held" && status.0["store"]["connected"] == true
        });
        traffic::ping(&a.ns, b.address);
        assert_eq!(store.leases().len(), 2);
    }
}

#[test]
fn a_device_that_was_set_down_gets_its_route_back() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).flag("--iptables-resync=1").start();
    let m = master.overlayd(&store).start();
    await_mesh(&[&w, &m]);
    // The kernel takes the route away with it, and does not bring it back.
    worker.ns.ip("link set flannel.1 down\naddress flush dev flannel.1");
    await_until(SOON, "the other host to answer again", || traffic::answers(&worker.ns, m.env().base()));
}

#[test]
fn a_reload_applies_the_network_configuration_and_a_bad_one_changes_nothing() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let (mut w, mut m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let env = w.env();
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&m.env()));

    store.put_config("{");
    w.process().signal(Signal::HUP);
    await_until(SOON, "a word about it", || w.log().contains("cannot be used"));
    traffic::ping(&a.ns, b.address);

    store.put_config(&Backend::Udp.config());
    for (daemon, host) in [(&mut w, &worker), (&mut m, &master)] {
        daemon.process().signal(Signal::HUP);
        // While it is built again, it does not answer.
        let tool = program("overlayctl").display().to_string();
        await_until(SOON, "the other backend", || {
            let output = host.ns.run(&format!("{tool} status --device flannel0"));
            output.status.success()
        });
    }
    await_mesh(&[&w, &m]);
    assert_eq!(w.env().subnet, env.subnet);
    assert!(!worker.ns.run("ip link show flannel.1").status.success(), "the earlier device is gone");
    traffic::ping(&a.ns, b.address);
}
