//! Leases under adversity: a store that is gone or empty, keys that somebody else writes, nodes in
//! each other's way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use integration::overlayd::await_mesh;
use integration::steady::Steady;
use integration::{Backend, Overlayd, Pair, SOON, Site, Store, await_until, traffic};

#[test]
fn a_store_that_lost_everything_gets_all_leases_again_and_no_packet_is_lost() {
    let (site, worker, master) = Site::two_hosts();
    let third = site.host("third", "192.168.50.7");
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let daemons = [&worker, &master, &third].map(|host| host.overlayd(&store).start());
    let [w, m, t] = &daemons;
    await_mesh(&[w, m, t]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let before = store.leases();
    assert_eq!(before.len(), 3);

    let steady = Steady::start(&a.ns, &b.ns, b.address);
    store.server().kill();
    fs::remove_dir_all(site.directory("etcd").join("data")).unwrap();
    store.server().run();
    store.put_config(&Backend::Vxlan.config());
    await_until(Duration::from_secs(40), "the same leases", || store.leases() == before);
    for daemon in &daemons {
        await_until(SOON, "the lease to be held", || is_held(daemon));
    }
    await_mesh(&[w, m, t]);
    steady.nothing_lost();
}

#[test]
fn our_own_key_turned_to_garbage_is_put_right() {
    for store in [Store::etcd, Store::dir] {
        let (site, worker, _master) = Site::two_hosts();
        let store = store(&site, Backend::Vxlan);
        let w = worker.overlayd(&store).start();
        let (env, before) = (w.env(), store.leases());
        store.put_lease(&env.key(), "{garbage");
        await_until(SOON, "our own words", || store.leases() == before);
        await_until(SOON, "nothing to skip", || w.status().0["garbage_leases"] == 0);
        assert_eq!((w.env(), is_held(&w)), (env, true));
        assert!(w.log().contains("somebody else has written our lease"), "{}", w.log());
    }
}

#[test]
fn a_lease_that_expired_meanwhile_is_taken_again() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).flag("--subnet-lease-ttl=5").start();
    let (env, before) = (w.env(), store.leases());
    w.stop();
    await_until(SOON, "the lease to expire", || store.leases().is_empty());
    let w = worker.overlayd(&store).flag("--subnet-lease-ttl=600").start();
    await_until(SOON, "the same lease", || store.leases() == before);
    assert_eq!(w.env(), env);
    let key = format!("/coreos.com/network/subnets/{}", env.key());
    assert_eq!(store.server().granted_ttl(&key), Some(600));
}

#[test]
fn a_reservation_without_the_backends_data_is_taken_and_stays_one() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    store.put_lease("10.1.163.0-24", r#"{"PublicIP":"192.168.1.12","BackendType":"vxlan"}"#);
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().subnet, "10.1.163.1/24");
    assert!(store.leases()["10.1.163.0-24"].contains("VtepMAC"), "{:?}", store.leases());
    assert_eq!(store.server().granted_ttl("/coreos.com/network/subnets/10.1.163.0-24"), None);
    assert_eq!(store.leases().len(), 1);
}

#[test]
fn a_dual_stack_key_of_ours_is_renewed_under_its_own_name() {
    let key = "10.1.163.0-24&fd00:1:2::-64";
    for store in [Store::etcd, Store::dir] {
        let (site, worker, _master) = Site::two_hosts();
        let store = store(&site, Backend::Udp);
        store.put_lease(key, r#"{"PublicIP":"192.168.1.12"}"#);
        let w = worker.overlayd(&store).start();
        assert_eq!(w.env().subnet, "10.1.163.1/24");
        let ours = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#.to_owned();
        assert_eq!(store.leases(), BTreeMap::from([(key.to_owned(), ours)]));
    }
}

#[test]
fn a_lease_that_no_longer_fits_the_configuration_is_given_up() {
    for store in [Store::etcd, Store::dir] {
        let (site, worker, _master) = Site::two_hosts();
        let store = store(&site, Backend::Udp);
        let w = worker.overlayd(&store).start();
        let before = w.env().key();
        w.stop();
        store.put_config(r#"{"Network":"10.1.0.0/16","SubnetLen":26,"Backend":{"Type":"udp"}}"#);
        let w = worker.overlayd(&store).start();
        // From the saved state at first, which is of the configuration before.
        await_until(SOON, "a subnet that fits", || w.env().key().ends_with("-26"));
        await_until(SOON, "the earlier lease to be given up", || {
            store.leases().into_keys().collect::<Vec<_>>() == [w.env().key()]
        });
        let named = |line: &str| line.contains("cannot be ours are given up") && line.contains(&before);
        assert!(w.log().lines().any(named), "{}", w.log());
    }
}

#[test]
fn a_second_node_with_our_public_address_is_noticed_and_said_once() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    assert_eq!(conflicts(&w), [""; 0]);
    let m = master.overlayd(&store).flag("--public-ip=192.168.1.12").start();
    assert_eq!(m.env(), w.env());
    await_until(SOON, "the conflict to be noticed", || !conflicts(&w).is_empty());
    let told = conflicts(&w);
    for part in ["192.168.1.12", &w.env().key(), "--public-ip"] {
        assert!(told[0].contains(part), "no {part} in {told:?}");
    }
    m.stop();
    let m = master.overlayd(&store).flag("--public-ip=192.168.1.12").start();
    await_until(SOON, "the second start to be seen", || is_held(&m));
    assert_eq!(w.log().matches("another node with our public address").count(), 1, "{}", w.log());
    let text = worker.ns.ok(&format!("{} status", integration::overlayd::program("overlayctl").display()));
    assert!(text.lines().any(|line| line.starts_with("conflict ")), "{text}");
}

#[test]
fn a_full_network_is_said_with_numbers_and_waited_for() {
    let (site, worker, _master) = Site::two_hosts();
    let config = r#"{"Network":"10.1.0.0/28","SubnetLen":30,"Backend":{"Type":"udp"}}"#;
    let store = Store::dir_with(&site, "store", config);
    store.put_lease("10.1.0.4-30", r#"{"PublicIP":"192.168.50.1"}"#);
    store.put_lease("10.1.0.8-30", r#"{"PublicIP":"192.168.50.2"}"#);
    store.put_lease("10.1.0.12-30", "garbage");
    let mut w = worker.overlayd(&store).spawn();
    let said = "all 3 of length /30 from 10.1.0.4 to 10.1.0.12 are taken (leases: 0, keys without expiry: 2, keys that cannot be read: 1)";
    await_until(SOON, "the numbers", || w.log().contains(said));
    store.delete_lease("10.1.0.8-30");
    w.wait_ready(SOON);
    assert_eq!(w.env().subnet, "10.1.0.9/30");
    assert_eq!(w.log().matches(said).count(), 1, "{}", w.log());
}

#[test]
fn full_etcd_is_away_for_a_minute_and_nothing_is_lost() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--subnet-lease-ttl=15"]);
    let before = store.leases();
    let (env, status) = (pair.left.env(), pair.left.status().0["lease"].clone());
    let steady = Steady::start(&pair.a.ns, &pair.b.ns, pair.b.address);
    store.server().kill();
    let away = std::time::Instant::now();
    await_until(Duration::from_secs(70), "a minute without etcd", || away.elapsed().as_secs() >= 60);
    assert_eq!(pair.left.status().0["store"]["connected"], false);

    store.server().run();
    for daemon in [&pair.left, &pair.right] {
        await_until(Duration::from_secs(30), "the store to be followed again", || {
            let status = daemon.status();
            status.0["store"]["connected"] == true && status.0["lease"]["state"] == "held"
        });
    }
    // Longer than the lease: it is renewed as before.
    let back = std::time::Instant::now();
    await_until(Duration::from_secs(30), "more than the lease's time to pass", || {
        assert_eq!(store.leases(), before, "after {:?}", back.elapsed());
        back.elapsed().as_secs() >= 20
    });
    assert!(steady.nothing_lost() > 10_000);
    assert_eq!((pair.left.env(), &pair.left.status().0["lease"]), (env, &status));
}

#[test]
fn full_a_hundred_daemons_that_start_at_once_have_a_hundred_subnets() {
    let site = Site::new();
    let hosts: Vec<_> =
        (10..110).map(|lan| site.host(&format!("h{lan}"), &format!("192.168.{lan}.7"))).collect();
    let store = Store::etcd(&site, Backend::Udp);
    let mut daemons: Vec<_> =
        hosts.iter().map(|host| host.overlayd(&store).flag("--queues=1").spawn()).collect();
    for daemon in &mut daemons {
        daemon.wait_ready(Duration::from_secs(120));
    }
    let subnets: BTreeSet<String> = daemons.iter().map(|daemon| daemon.env().subnet).collect();
    assert_eq!((subnets.len(), store.leases().len()), (100, 100));
    for daemon in [&daemons[0], &daemons[99]] {
        await_until(Duration::from_secs(60), "all the others as peers", || {
            daemon.status().peers().len() == 99
        });
    }
    traffic::ping(&hosts[0].ns, daemons[99].env().base());
}

fn is_held(daemon: &Overlayd<'_>) -> bool {
    daemon.status().0["lease"]["state"] == "held"
}

/// The conflicts that `overlayctl status` shows.
fn conflicts(daemon: &Overlayd<'_>) -> Vec<String> {
    let status = daemon.status();
    let told = status.0["conflicts"].as_array().expect("a list of conflicts");
    told.iter().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}
