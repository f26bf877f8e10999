//! `/healthz` and `/readyz`, as a watchdog asks them.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use integration::overlayd::await_mesh;
use integration::{Backend, Host, Pair, SOON, Site, Store, await_until, http, traffic};

const PORT: u16 = 8081;

#[test]
fn a_node_is_healthy_from_the_start_and_ready_when_it_forwards() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir_with(&site, "late", "{}");
    let Store::Dir(path) = &store else { unreachable!("made as a directory") };
    std::fs::remove_file(path.join("config")).unwrap();
    let mut w = worker.overlayd(&store).flag("-healthz-ip=127.0.0.1").flag("-healthz-port=8081").spawn();
    await_until(SOON, "healthz", || get(&worker, "/healthz").is_some());
    assert_eq!(get(&worker, "/healthz"), Some((200, "flanneld is running".into())));
    await_until(SOON, "readyz to say what is waited for", || {
        get(&worker, "/readyz").is_some_and(|(code, text)| code == 503 && text.contains("put one, as by"))
    });
    assert_eq!(get(&worker, "/elsewhere").map(|(code, _)| code), Some(404));
    let outside = SocketAddr::from((worker.public_ip, PORT));
    assert_eq!(http::get_with(&worker.ns, outside, "/healthz", ""), None, "it is not at the address given");

    store.put_config(&Backend::Vxlan.config());
    w.wait_ready(SOON);
    await_until(SOON, "readyz", || get(&worker, "/readyz") == Some((200, "flanneld is ready".into())));
    assert!(w.subnet_file().exists());
    w.stop();
    assert_eq!(get(&worker, "/healthz"), None);
}

#[test]
fn a_node_that_cannot_be_put_right_is_not_ready() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--healthz-port=8081"]);
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    worker
        .ns
        .ip("link set flannel.1 down\nlink set flannel.1 name elsewhere\nlink add flannel.1 type bridge");
    await_until(SOON, "readyz to tell", || {
        let told = get(&worker, "/readyz");
        told.is_some_and(|(code, text)| {
            code == 503 && text.starts_with("flanneld is not ready yet: ") && text.contains("flannel.1")
        })
    });
    assert_eq!(get(&worker, "/healthz").map(|(code, _)| code), Some(200));
    worker.ns.ip("link del flannel.1");
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    traffic::ping(&pair.a.ns, pair.b.address);
}

#[test]
fn a_node_without_its_interface_is_not_ready() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--healthz-port=8081"]);
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    worker.ns.ip("address del 192.168.1.12/24 dev eth0");
    await_until(SOON, "readyz to tell", || code(&worker) == Some(503));
    assert!(get(&worker, "/readyz").is_some_and(|(_, text)| text.contains("eth0")));
    worker.ns.ip("address add 192.168.1.12/24 dev eth0\nroute add default via 192.168.1.1");
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    traffic::ping(&pair.a.ns, pair.b.address);
}

#[test]
fn a_node_whose_lease_has_run_out_is_not_ready_and_forwards_all_the_same() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let flags = ["--healthz-port=8081", "--subnet-lease-ttl=5", "--iptables-resync=1"];
    let pair = Pair::start([&worker, &master], &store, &flags);
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    store.server().kill();
    await_until(SOON, "readyz to tell", || code(&worker) == Some(503));
    assert!(get(&worker, "/readyz").is_some_and(|(_, text)| text.contains("lease")));
    traffic::ping(&pair.a.ns, pair.b.address);
    store.server().run();
    await_until(Duration::from_secs(30), "readyz", || code(&worker) == Some(200));
}

#[test]
fn a_node_whose_lease_is_taken_by_another_is_not_ready() {
    let (site, worker, _master) = Site::two_hosts();
    let config = r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.5.0","SubnetMax":"10.1.5.0","Backend":{"Type":"vxlan"}}"#;
    let store = Store::dir_with(&site, "one", config);
    let w = worker.overlayd(&store).flag("--healthz-port=8081").start();
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    // There is no other subnet to go to.
    let another = r#"{"PublicIP":"192.168.1.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    store.put_lease(&w.env().key(), another);
    await_until(SOON, "readyz to tell", || code(&worker) == Some(503));
    assert!(get(&worker, "/readyz").is_some_and(|(_, text)| text.contains("lease")));
    store.delete_lease(&w.env().key());
    await_until(Duration::from_secs(30), "readyz", || code(&worker) == Some(200));
}

#[test]
fn a_port_that_is_taken_is_told_and_served_once_it_is_free() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let taken = worker.ns.within(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap();
    let left = worker.overlayd(&store).flag("--healthz-port=8081").start();
    let right = master.overlayd(&store).start();
    await_mesh(&[&left, &right]);
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    traffic::ping(&a.ns, b.address);
    let told = left.status().0["host"]["problems"].to_string();
    assert!(told.contains("0.0.0.0:8081") && told.contains("--healthz-port"), "{told}");
    drop(taken);
    await_until(SOON, "readyz", || code(&worker) == Some(200));
    assert_eq!(left.log().matches("Address already in use").count(), 1, "said once:\n{}", left.log());
}

fn code(host: &Host) -> Option<u16> {
    get(host, "/readyz").map(|(code, _)| code)
}

/// Code and text; `None` while nobody answers.
fn get(host: &Host, path: &str) -> Option<(u16, String)> {
    http::get(&host.ns, PORT, path).map(|answer| (answer.code, answer.body))
}
