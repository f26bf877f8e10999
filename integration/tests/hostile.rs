//! A node that is allowed to write leases, and means no good: it gets nobody's packets, sends as nobody else, and keeps
//! nobody from starting, renewing or joining.

use integration::overlayd::{await_mesh, program};
use integration::packets::{Injector, mac, udp_packet, vxlan_frame};
use integration::steady::Steady;
use integration::{Backend, SOON, Site, Store, await_until, hostile};

#[test]
fn who_writes_hostile_leases_gains_nothing() {
    let (site, worker, master) = Site::two_hosts();
    let evil = site.host("evil", "192.168.66.6");
    let third = site.host("third", "192.168.50.7");
    let config = Backend::Vxlan.config().replacen('{', r#"{"SubnetMax":"10.1.199.0","#, 1);
    let store = Store::etcd(&site, Backend::Vxlan);
    store.put_config(&config);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let peers = w.status().peers().join(" ");
    let nodes = [(&w, &worker), (&m, &master)]
        .map(|(daemon, host)| (daemon.env().base_with_length(), host.public_ip));
    let leases = hostile::leases(evil.public_ip, &nodes);

    let steady = Steady::start(&a.ns, &b.ns, b.address);
    hostile::write(&store, &leases);
    for daemon in [&w, &m] {
        await_until(SOON, "all of them to be looked at", || {
            let status = daemon.status().0;
            let number = |name: &str| status[name].as_u64().unwrap_or(0);
            number("refused_leases") + number("garbage_leases") == leases.len() as u64
        });
    }
    assert_eq!(w.status().peers().join(" "), peers);

    // Frames of its own, from inner addresses that its leases name, and from others'.
    let injector = Injector::new(&evil.ns, worker.public_ip, Backend::Vxlan.port());
    let vtep = mac(w.status().0["backend"]["vtep_mac"].as_str().expect("a VTEP MAC"));
    let own = (u32::from(a.address) | 0x80).into();
    for source in
        ["8.8.8.8".parse().unwrap(), own, b.address, master.public_ip, "10.1.200.9".parse().unwrap()]
    {
        let before = w.status().all_drops("ingress");
        injector.send(&vxlan_frame(1, vtep, &udp_packet(source, a.address, 9, b"false")));
        await_until(SOON, &format!("the packet from {source} to be dropped"), || {
            w.status().all_drops("ingress") == before + 1
        });
    }

    // Who starts meanwhile has a subnet: a newcomer, and a node that comes back.
    let t = third.overlayd(&store).start();
    let (env, manager) = (w.env(), w.stop_for_restart());
    let w = worker.overlayd(&store).by(manager).start();
    assert_eq!(w.env(), env);
    await_mesh(&[&w, &m, &t]);
    steady.nothing_lost();

    let told = String::from_utf8(
        worker
            .ns
            .command(&program("overlayctl").display().to_string())
            .arg("leases")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    for part in ["not used: its subnet is not inside the network 10.1.0.0/16", "cannot be read", "conflict: "]
    {
        assert!(told.contains(part), "no {part} in:\n{told}");
    }
    assert!(m.log().contains("a lease is not used"), "{}", m.log());
    hostile::remove(&store, &leases);
    await_until(SOON, "nothing to refuse", || w.status().0["refused_leases"] == 0);
    assert_eq!(w.status().0["conflicts"].as_array().map(Vec::len), Some(0));
}

#[test]
fn who_writes_leases_with_the_address_of_another_moves_and_holds_up_nobody() {
    let (site, worker, master) = Site::two_hosts();
    let third = site.host("third", "192.168.50.7");
    let config = Backend::Vxlan.config().replacen('{', r#"{"SubnetMax":"10.1.199.0","#, 1);
    let mut store = Store::etcd(&site, Backend::Vxlan);
    store.put_config(&config);
    let (w, m) =
        (worker.overlayd(&store).flag("--subnet-lease-ttl=8").start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let envs = [w.env(), m.env()];
    let peers = w.status().peers().join(" ");
    let steady = Steady::start(&a.ns, &b.ns, b.address);

    // A neighbour's subnet, and addresses in it, by a key of the worker's, of the newcomer's, and by one that cannot be
    // read; with an expiry and without.
    let theirs = envs[1].key();
    let within = theirs.replace(".0-24", ".64-26");
    let path = |key: &str| format!("/coreos.com/network/subnets/{key}");
    for (number, victim) in [worker.public_ip, third.public_ip].into_iter().enumerate() {
        let value = hostile::lease(&victim.to_string());
        let unreadable = format!(r#"{{"PublicIP":"{victim}","BackendType":"vxlan"}}"#);
        store.put_lease(&format!("{theirs}&fd00:{number}::-64"), &value);
        store.put_lease(&format!("{theirs}&fd00:a{number}::-64"), &unreadable);
        store.server().put_for(&path(&format!("{theirs}&fd00:b{number}::-64")), &value, 600);
        store.server().put_for(&path(&format!("{theirs}&fd00:c{number}::-64")), &unreadable, 600);
        store.server().put_for(&path(&format!("{within}&fd00:{number}::-64")), &value, 600);
    }
    // One that somebody who has its address would have.
    store.server().put_for(&path("10.1.150.0-24"), &hostile::lease(&worker.public_ip.to_string()), 600);
    await_until(SOON, "the conflict to be told", || {
        w.status().0["conflicts"].to_string().contains("another node keeps the lease 10.1.150.0-24")
    });
    // A broadcast address of the worker's link, which for the master is somebody's.
    store.put_lease("10.1.210.0-24", &hostile::lease("192.168.1.255"));
    await_until(SOON, "it to be refused", || w.status().0["refused_leases"].as_u64() >= Some(1));
    await_until(SOON, "it to be one for the master", || m.status().peers().contains(&"10.1.210.0/24"));
    assert_eq!(w.status().peers().join(" "), peers);
    store.delete_lease("10.1.210.0-24");

    // Any number of them that cannot be the worker's: what it gives up costs it neither its lease nor its sight.
    let crowd: Vec<String> = (0..MANY).map(|n| format!("10.1.{}.{}-32", 220 + n / 256, n % 256)).collect();
    for some in crowd.chunks(128) {
        let lease = hostile::lease(&worker.public_ip.to_string());
        let puts = some.iter().map(|key| (path(key), Some(lease.clone())));
        store.server().transact(&puts.collect::<Vec<_>>());
    }
    store.server().kill();
    await_until(SOON, "the outage to be noticed", || w.status().0["store"]["connected"] == false);
    store.server().run();
    await_until(SOON, "all of them to be given up", || {
        let leases = store.leases();
        assert!(leases.contains_key(&envs[0].key()), "the worker's own lease has ended");
        !crowd.iter().any(|key| leases.contains_key(key))
    });

    let t = third.overlayd(&store).start();
    let subnets = envs.each_ref().map(|env| env.key());
    assert!(!subnets.contains(&t.env().key()), "the newcomer has {}", t.env().key());
    let manager = w.stop_for_restart();
    let w = worker.overlayd(&store).flag("--subnet-lease-ttl=8").by(manager).start();
    assert_eq!(w.env(), envs[0]);
    let newcomer = t.env().base_with_length();
    for (daemon, peer) in [(&w, &envs[1]), (&m, &envs[0])] {
        let wanted = [peer.base_with_length(), newcomer.clone()];
        await_until(SOON, "the mesh", || {
            let status = daemon.status();
            wanted.iter().all(|subnet| status.peers().contains(&subnet.as_str()))
        });
    }
    steady.nothing_lost();
}

const MANY: usize = 512;
