//! What the overlay tells a sender whose packet it cannot carry, as the sender's own ping reports it.

use integration::capture::Capture;
use integration::overlayd::await_mesh;
use integration::{Backend, Namespace, SOON, Site, Store, await_until, traffic};

#[test]
fn flannels_udp_is_a_hop_at_each_end() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));

    // The hops: the worker's kernel, its daemon, the master's daemon, the master's kernel, the pod.
    for (ttl, from) in [(2, w.env().base()), (3, m.env().base())] {
        let text = one_ping(&a.ns, &format!("-t {ttl} {}", b.address));
        assert!(text.contains(&format!("From {from} icmp_seq=1 Time to live exceeded")), "TTL {ttl}: {text}");
    }
    let text = one_ping(&a.ns, &format!("-t 5 {}", b.address));
    assert!(text.contains(" 0% packet loss"), "{text}");
    assert_eq!(w.status().drops("egress", "ttl_expired"), 1);
    assert_eq!(m.status().drops("ingress", "ttl_expired"), 1);
    assert!(w.status().0["icmp_sent"].as_u64() >= Some(1));
}

#[test]
fn vxlan_is_no_hop() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let text = one_ping(&a.ns, &format!("-t 3 {}", b.address));
    assert!(text.contains(" 0% packet loss"), "{text}");
    let text = one_ping(&a.ns, &format!("-t 2 {}", b.address));
    assert!(text.contains("Time to live exceeded"), "{text}");
    assert_eq!(w.status().drops("egress", "ttl_expired") + m.status().drops("ingress", "ttl_expired"), 0);
}

#[test]
fn a_subnet_nobody_has_is_unreachable() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let (site, worker, _master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let w = worker.overlayd(&store).start();
        let a = worker.bridge_and_pod(&w.env());
        let text = one_ping(&a.ns, "10.1.254.2");
        let wanted = format!("From {} icmp_seq=1 Destination Net Unreachable", w.env().base());
        assert!(text.contains(&wanted), "no `{wanted}` in {text}");
        assert_eq!(w.status().drops("egress", "no_route"), 1);

        // The host itself is told as well.
        let text = one_ping(&worker.ns, "10.1.254.2");
        assert!(text.contains("Destination Net Unreachable"), "{text}");
    }
}

#[test]
fn multicast_is_not_answered() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    worker.ns.ip("route add 239.1.1.1 dev flannel0");
    let before = w.status();
    worker.ns.run("ping -n -c 1 -W 0.1 -t 8 239.1.1.1");
    await_until(SOON, "the packet to be dropped", || {
        w.status().all_drops("egress") > before.all_drops("egress")
    });
    assert_eq!(w.status().0["icmp_sent"], before.0["icmp_sent"]);
}

#[test]
fn a_packet_larger_than_the_overlay_is_told_the_right_size() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let w = worker.overlayd(&store).start();
        let m = master.overlayd(&store).start();
        await_mesh(&[&w, &m]);
        let mut env = w.env();
        let mtu = env.mtu;
        // With a bridge and a route that let it through to the daemon.
        env.mtu = 1600;
        worker.ns.ip(&format!("route add {} dev {} mtu 1600", m.env().base_with_length(), backend.device()));
        let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&m.env()));
        let text = one_ping(&a.ns, &format!("-M do -s 1550 {}", b.address));
        let wanted = format!("Frag needed and DF set (mtu = {mtu})");
        assert!(text.contains(&wanted), "no `{wanted}` in {text}");
        assert_eq!(w.status().drops("egress", "too_big"), 1);
        // What fits goes on passing.
        let text = one_ping(&a.ns, &format!("-M do -s {} {}", mtu - 28, b.address));
        assert!(text.contains(" 0% packet loss"), "{text}");
    }
}

#[test]
fn a_packet_for_the_own_subnet_is_dropped_and_never_looped() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
        await_mesh(&[&w, &m]);
        let filter = format!("udp port {}", backend.port());
        let wire =
            Capture::start(&site.router, &Site::lan_device(worker.public_ip), &filter, worker.directory());
        // There is no docker0 yet, so the host's route leads into the overlay.
        let own_pod = std::net::Ipv4Addr::from(u32::from(w.env().base()) + 2);
        worker.ns.run(&format!("ping -n -c 1 -W 0.1 {own_pod}"));
        await_until(SOON, "the packet to be dropped", || w.status().drops("egress", "own_subnet") == 1);
        assert_eq!(wire.stop(), Vec::<Vec<u8>>::new());
        traffic::ping(&worker.ns, m.env().base());
        assert_eq!(w.status().drops("egress", "own_subnet"), 1);
    }
}

/// What ping prints about one packet, whether or not it is answered.
fn one_ping(ns: &Namespace, arguments: &str) -> String {
    String::from_utf8_lossy(&ns.run(&format!("ping -n -c 1 -W 10 {arguments}")).stdout).into_owned()
}
