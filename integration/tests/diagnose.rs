//! `overlayctl ping`, `trace` and `check`: what they say of a healthy pair of hosts, and of typical trouble.

use integration::kernel_vxlan::KernelVxlan;
use integration::netns::{Namespace, output};
use integration::overlayd::{await_mesh, program};
use integration::process::await_until;
use integration::{Backend, Site, Store};
use std::time::Duration;

/// What overlayctl, run in a namespace, prints, and whether it exits with 0.
#[track_caller]
fn overlayctl(ns: &Namespace, arguments: &str) -> (bool, String) {
    let mut command = ns.command(&program("overlayctl").display().to_string());
    let output = output(command.args(arguments.split_whitespace()));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs overlayctl and has it succeed or fail, as `good` says, with a text that has all of `parts`.
#[track_caller]
fn says(ns: &Namespace, arguments: &str, good: bool, parts: &[&str]) {
    let (success, text) = overlayctl(ns, arguments);
    println!("$ overlayctl {arguments}\n{text}");
    assert_eq!(success, good, "{arguments}:\n{text}");
    for part in parts {
        assert!(text.contains(part), "{arguments}: no '{part}' in:\n{text}");
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
        let largest = format!("ping {} -c 1 -s 9999", m.env().base());
        says(here, &largest, true, &[&format!("{} bytes: overlay 0.", m.env().mtu)]);
        assert_eq!(w.status().all_drops("ingress") + m.status().all_drops("ingress"), 0);

        let way = format!("trace {} {} tcp/80", a.address, b.address);
        let out =
            ["flannel", "nothing refuses it", "the lease of 192.168.199.238", "via 192.168.1.1 dev eth0"];
        says(here, &way, true, &out);
        says(&master.ns, &way, true, &["the lease of 192.168.1.12", "dev docker0"]);
        says(here, &format!("trace {} 10.1.200.1", a.address), false, &["DROPPED (no_route)"]);
        says(here, &format!("ping {}", "10.1.200.1"), false, &["no node has 10.1.200.1"]);

        m.stop();
        says(here, &format!("ping {} -c 1 -W 0.2", master.public_ip), false, &["its overlay does not"]);
        w.stop();
    }
}

#[test]
fn a_kernel_peer_ignores_an_echo() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).start();
    let mut kernel = KernelVxlan::start(&master, &store, "10.1.63");
    kernel.follow(&store);
    w.await_peers(&["10.1.63.0/24"]);
    says(&worker.ns, "ping 10.1.63.0 -c 2 -i 0.01 -W 0.3", false, &["0 of 2 answered", "the host answers"]);
    await_until(Duration::from_secs(5), "the echoes at the peer", || {
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
