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
