//! `/metrics`, as Prometheus asks for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use integration::packets::{Injector, mac, udp_packet, vxlan_frame};
use integration::{Backend, Host, Overlayd, Pair, SOON, Site, Store, await_until, http, traffic};

const PORT: u16 = 8081;

#[test]
fn metrics_tell_what_is_forwarded_dropped_leased_and_asked_of_the_store() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--healthz-port=8081"]);
    let before = series(&worker);
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 8);
    // A packet with an address of the worker's own pods, from outside.
    let forged = udp_packet(pair.a.address, pair.a.address, 9, b"forged");
    let vtep = mac(pair.left.status().0["backend"]["vtep_mac"].as_str().unwrap());
    Injector::new(&master.ns, worker.public_ip, Backend::Vxlan.port()).send(&vxlan_frame(1, vtep, &forged));
    await_until(SOON, "the drop", || {
        series(&worker)[r#"overlayd_dropped_packets_total{direction="ingress",reason="own_source"}"#] == 1.0
    });

    // Between the two looks something may be dropped that is not ours.
    await_until(SOON, "status and metrics to agree", || agree(&pair.left, &series(&worker)));
    let page = http::get(&worker.ns, PORT, "/metrics").expect("an answer");
    assert!(page.head.contains("application/openmetrics-text"), "{}", page.head);
    assert!(page.body.ends_with("# EOF\n"), "{}", page.body);
    let now = http::series(&page.body);
    let grown = |name: &str| now[name] - before[name];
    let mebibytes = 8.0 * f64::from(1 << 20);
    assert!(grown(r#"overlayd_forwarded_bytes_total{direction="egress"}"#) > mebibytes);
    assert!(grown(r#"overlayd_forwarded_packets_total{direction="egress"}"#) > mebibytes / 1450.0);
    assert!(grown(r#"overlayd_worker_cpu_seconds_total{direction="egress",queue="0"}"#) >= 0.0);
    let workers = now.iter().filter(|(name, _)| name.starts_with("overlayd_worker_cpu_seconds_total"));
    let queues = now["overlayd_device_queues"];
    assert!(queues >= 1.0);
    assert_eq!(workers.clone().count() as f64, 2.0 * queues);
    assert!(workers.map(|(_, seconds)| seconds).sum::<f64>() > 0.0);

    // A transfer comes from the device in super-packets.
    let count =
        |le: &str| format!(r#"overlayd_super_packet_segments_bucket{{le="{le}",direction="egress"}}"#);
    assert!(grown(&count("+Inf")) > grown(&count("8.0")), "{}", page.body);
    assert_eq!(now[&count("+Inf")], now[r#"overlayd_super_packet_segments_count{direction="egress"}"#]);
    assert!(grown(r#"overlayd_batch_packets_sum{direction="egress"}"#) > mebibytes / 1450.0);
    assert_eq!(now[r#"overlayd_offload_wanted{offload="tso"}"#], 1.0);
    assert_eq!(now[r#"overlayd_offload_enabled{offload="tso"}"#], 1.0);

    assert_eq!(now[r#"overlayd_lease_state{state="held"}"#], 1.0);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let left = now["overlayd_lease_expiry_timestamp_seconds"] - unix;
    assert!((86_000.0..=86_400.0).contains(&left), "{left}");
    assert!((0.0..=600.0).contains(&(unix - now["overlayd_lease_taken_timestamp_seconds"])));
    assert_eq!(now["overlayd_store_connected"], 1.0);
    for operation in ["get", "list", "create", "watch"] {
        let of = |name: &str| format!(r#"overlayd_store_{name}{{operation="{operation}"}}"#);
        assert!(now[&of("request_duration_seconds_count")] >= 1.0, "{operation}");
        assert!(now.contains_key(&of("errors_total")), "{operation}");
    }
    assert_eq!(now["overlayd_ready"], 1.0);
    assert_eq!(now[r#"overlayd_peers{way="tunnel"}"#], 1.0);
    assert!(page.body.contains("overlayd_build_info{version="), "{}", page.body);
    assert!(now["process_resident_memory_bytes"] > 1e6 && now["process_cpu_seconds_total"] > 0.0);

    let master_env = pair.right.env().base_with_length();
    let peer = |name: &str, direction: &str| {
        let labels =
            format!(r#"direction="{direction}",subnet="{master_env}",public_ip="{}""#, master.public_ip);
        now[&format!("overlayd_peer_{name}_total{{{labels}}}")]
    };
    assert!(peer("forwarded_bytes", "egress") > mebibytes);
    assert!(peer("forwarded_packets", "ingress") > 0.0);
    assert_eq!(peer("dropped_packets", "ingress"), 1.0);
    let seen = format!(
        r#"overlayd_peer_last_seen_timestamp_seconds{{subnet="{master_env}",public_ip="{}"}}"#,
        master.public_ip
    );
    assert!((unix - now[&seen]).abs() < 30.0);

    // overlayctl's way to the same, and the format that promtool checks.
    let socket = format!("/run/overlayd/netns-{}/flannel.1.sock", worker.ns.inode());
    let curl = worker.ns.ok(&format!("curl -s --unix-socket {socket} http://localhost/v1/metrics"));
    assert!(curl.contains("overlayd_ready 1"), "{curl}");
    let older = http::get_with(
        &worker.ns,
        SocketAddr::from(([127, 0, 0, 1], PORT)),
        "/metrics",
        "Accept: text/plain\r\n",
    )
    .expect("an answer");
    assert!(older.head.contains("text/plain; version=0.0.4"), "{}", older.head);
    worker.ns.feed("promtool check metrics", &older.body);
}

#[test]
fn what_is_put_back_is_counted_and_the_loss_of_the_store_is_told() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--metrics-port=9100", "--healthz-port=8081"]);
    let at = |port| http::get(&worker.ns, port, "/metrics");
    assert_eq!(at(PORT).map(|answer| answer.code), Some(404), "it has a port of its own");
    let value = |name: &str| http::series(&at(9100).expect("an answer").body)[name];
    let repairs = r#"overlayd_host_repairs_total{kind="link"}"#;
    let before = value(repairs);
    worker.ns.ip("route del 10.1.0.0/16 dev flannel.1");
    await_until(SOON, "the repair", || value(repairs) > before);

    let watches = value("overlayd_store_watches_total");
    assert!(watches >= 1.0);
    store.server().kill();
    await_until(SOON, "the loss of the store", || value("overlayd_store_connected") == 0.0);
    await_until(SOON, "an error", || {
        let page = at(9100).expect("an answer").body;
        let errors = http::series(&page).into_iter();
        errors
            .filter(|(name, _)| name.starts_with("overlayd_store_errors_total"))
            .any(|(_, count)| count > 0.0)
    });
    store.server().run();
    await_until(SOON, "the store", || value("overlayd_store_connected") == 1.0);
    assert!(value("overlayd_store_watches_total") > watches);
    drop(pair);
}

#[test]
fn metrics_are_served_where_they_are_asked_for_and_a_taken_port_is_named() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).flag("--healthz-port=8081").flag("--metrics-port=0").start();
    assert_eq!(http::get(&worker.ns, PORT, "/metrics").map(|answer| answer.code), Some(404));
    w.stop();

    let w = worker.overlayd(&store).flag("--metrics-ip=127.0.0.1").flag("--metrics-port=8081").start();
    let now = series(&worker);
    // Files have no expiry.
    assert!(!now.contains_key("overlayd_lease_expiry_timestamp_seconds"));
    assert!(now.contains_key("overlayd_lease_taken_timestamp_seconds"));
    let outside = SocketAddr::from((worker.public_ip, PORT));
    assert_eq!(http::get_with(&worker.ns, outside, "/metrics", ""), None);
    let log = worker.overlayd(&store).named("second").flag("--metrics-port=8081").refused();
    assert!(log.contains("/metrics") && log.contains(":8081") && log.contains("--metrics-port"), "{log}");
    w.stop();
}

fn series(host: &Host) -> BTreeMap<String, f64> {
    http::series(&http::get(&host.ns, PORT, "/metrics").expect("an answer").body)
}

/// Whether counters that both tell are the same.
fn agree(daemon: &Overlayd<'_>, now: &BTreeMap<String, f64>) -> bool {
    let status = daemon.status();
    ["egress", "ingress"].into_iter().all(|direction| {
        let mut drops = status.0["drops"][direction].as_object().expect("drops by reason").iter();
        drops.all(|(reason, count)| {
            let name =
                format!(r#"overlayd_dropped_packets_total{{direction="{direction}",reason="{reason}"}}"#);
            now[&name] == count.as_f64().unwrap()
        })
    })
}
