//! A host that lacks what it should have, for a while: room on its disk, descriptors, memory, a wire that takes
//! packets, time. What was forwarded is forwarded, what is wrong is said, and it is over when it is over.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use integration::limits::{MemoryLimit, SmallDisk, limit_descriptors};
use integration::overlayd::await_mesh;
use integration::soak::Held;
use integration::steady::{Paced, Steady};
use integration::{Backend, Pair, SOON, Site, Store, await_until, traffic};
use rustix::process::Signal;

#[test]
fn a_full_disk_stops_no_daemon_that_runs_or_ran() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let disk = SmallDisk::mount(&worker.directory().join("run"), 64);
    let file = worker.directory().join("run/subnet.env");
    let left = worker.overlayd(&store).subnet_file_at(file.clone()).start();
    let right = master.overlayd(&store).start();
    await_mesh(&[&left, &right]);
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    let state = worker.directory().join("run/subnet.env.state.json");
    let knows = |subnet: &str| fs::read_to_string(&state).is_ok_and(|text| text.contains(subnet));
    await_until(SOON, "the state to be saved", || knows(&right.env().base_with_length()));
    disk.fill();
    let steady = Steady::start(&a.ns, &b.ns, b.address);
    // A change that it wants to remember.
    store.put_lease("10.1.200.0-24", FOREIGN);
    await_until(SOON, "a word about the disk", || left.log().contains("the state cannot be saved"));
    await_until(SOON, "the new peer all the same", || left.status().peers().contains(&"10.1.200.0/24"));
    let manager = left.stop_for_restart();
    let left = worker.overlayd(&store).by(manager).subnet_file_at(file).start();
    steady.nothing_lost();
    assert!(left.log().contains("the subnet file stays as it was"), "{}", left.log());

    // A node that is built anew, and wants another line in the file. It is built once, and tries the file ever later.
    let built = left.log().matches("forwarding device").count();
    worker.ns.ip("link set eth0 mtu 1400");
    await_until(SOON, "the new node", || left.log().contains("mtu=1350"));
    traffic::ping(&a.ns, b.address);
    await_until(SOON, "a word about the file", || {
        left.status().0["host"]["problems"].to_string().contains("subnet.env")
    });
    assert_eq!(left.log().matches("forwarding device").count(), built + 1, "{}", left.log());

    // With nothing else to remember.
    disk.free();
    await_until(SOON, "the state to be saved after all", || knows("10.1.200.0/24"));
    let file = worker.directory().join("run/subnet.env");
    await_until(SOON, "the MTU in the file", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("FLANNEL_MTU=1350"))
    });
}

#[test]
fn a_first_start_on_a_full_disk_forwards_and_writes_its_files_once_there_is_room() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let path = worker.directory().join("run");
    let disk = SmallDisk::mount(&path, 64);
    disk.fill();
    let file = path.join("subnet.env");
    let left = worker.overlayd(&store).subnet_file_at(file.clone()).start();
    let right = master.overlayd(&store).start();
    let own = store.leases().into_keys().find(|key| *key != right.env().key()).expect("a lease");
    right.await_peers(&[&own.replace('-', "/")]);
    let told = left.status().0["host"]["problems"].to_string();
    for part in [&*file.display().to_string(), "No space left on device"] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    assert!(left.log().contains("--subnet-file"), "{}", left.log());
    disk.free();
    await_until(SOON, "the files", || left.status().0["host"]["problems"] == serde_json::json!([]));
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    traffic::ping(&a.ns, b.address);
}

#[test]
fn a_full_disk_of_the_lease_directory_is_waited_for() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let disk = SmallDisk::mount(&site.directory("store/subnets"), 64);
    disk.fill();
    let mut daemon = worker.overlayd(&store).spawn();
    await_until(SOON, "a word about the disk", || daemon.log().contains("No space left on device"));
    assert!(daemon.process().exited().is_none(), "{}", daemon.log());
    disk.free();
    daemon.wait_ready(SOON);
    assert_eq!(store.leases().len(), 1);
}

#[test]
fn without_descriptors_forwarding_goes_on() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let steady = Steady::start(&pair.a.ns, &pair.b.ns, pair.b.address);
    let pid = pair.left.id();
    limit_descriptors(pid, Held::by(pid).descriptors);
    // It needs one to reach its store again, one to look at the rules, and one for whoever asks it.
    store.server().kill();
    store.server().run();
    worker.ns.ok("nft flush ruleset");
    await_until(SOON, "a word about it", || pair.left.log().contains("Too many open files"));
    limit_descriptors(pid, 1024);
    await_until(SOON, "the store to be followed again", || {
        let status = pair.left.status();
        status.0["store"]["connected"] == true && status.0["host"]["problems"] == serde_json::json!([])
    });
    steady.nothing_lost();
    traffic::ping(&pair.b.ns, pair.a.address);
}

#[test]
fn too_few_descriptors_for_a_start_are_named() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // For one queue it would do.
    let mut daemon = worker.overlayd(&store).flag("--queues=64").descriptors(60).spawn();
    let status = daemon.process().wait(SOON);
    let said = daemon.log();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("Too many open files"), "{said}");
}

#[test]
fn a_wire_that_takes_nothing_holds_up_nobody_for_ever() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    // The kernel keeps what it is given, and gives out next to nothing of it.
    worker.ns.ok("tc qdisc add dev eth0 root tbf rate 8kbit burst 1600 limit 1000000000");
    let socket = pair.a.ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
    await_until(SOON, "what is not taken to be dropped", || {
        for _ in 0..500 {
            // A full queue in the pod is one more that takes nothing.
            let _ = socket.send_to(&[0; 1400], (pair.b.address, 9));
        }
        pair.left.status().drops("egress", "send_failed") > 0
    });
    worker.ns.ok("tc qdisc del dev eth0 root");
    await_until(SOON, "the pods to reach each other", || traffic::answers(&pair.a.ns, pair.b.address));
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 8);
}

#[test]
fn a_receive_buffer_that_overflows_costs_what_it_cannot_hold() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut pair = Pair::start([&worker, &master], &store, &[]);
    pair.right.process().signal(Signal::STOP);
    let socket = pair.a.ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
    await_until(SOON, "the buffer to be full", || {
        for _ in 0..2000 {
            let _ = socket.send_to(&[0; 1400], (pair.b.address, 9));
        }
        master.ns.counter("UdpRcvbufErrors") > 0
    });
    pair.right.process().signal(Signal::CONT);
    await_until(SOON, "the pods to reach each other", || traffic::answers(&pair.a.ns, pair.b.address));
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 8);
    let status = pair.right.status();
    assert_eq!(status.all_drops("ingress"), 0, "what was held is good: {}", status.0["drops"]);
}

#[test]
fn full_a_daemon_that_stood_still_for_half_a_minute_goes_on() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    // Its lease does not last for so long.
    let mut pair = Pair::start([&worker, &master], &store, &["--subnet-lease-ttl=15"]);
    let before = store.leases();
    // Little enough that what the kernel holds outlasts it.
    let streams = [
        Paced::start(&pair.a.ns, &pair.b.ns, pair.b.address, 100),
        Paced::start(&pair.b.ns, &pair.a.ns, pair.a.address, 100),
    ];
    streams.iter().for_each(|stream| stream.await_more(50));
    pair.left.process().signal(Signal::STOP);
    let stopped = Instant::now();
    await_until(Duration::from_secs(40), "half a minute", || stopped.elapsed().as_secs() >= 30);
    assert_eq!(store.leases().len(), 1, "the lease has run out meanwhile");
    pair.left.process().signal(Signal::CONT);
    await_until(SOON, "the same leases", || store.leases() == before);
    streams.iter().for_each(|stream| stream.await_more(50));
    for order in streams.map(Paced::stop) {
        println!("{order:?}");
        assert_eq!(order.overtaken, 0);
    }
    await_mesh(&[&pair.left, &pair.right]);
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 8);
}

#[test]
fn full_ten_thousand_leases_fit_a_small_memory() {
    let (site, worker, master) = Site::two_hosts();
    let config =
        r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#;
    let store = Store::dir_with(&site, "store", config);
    for number in 0..10_000 {
        let key = format!("10.{}.{}.0-24", number / 256, number % 256);
        fs::write(site.directory("store/subnets").join(key), FOREIGN).expect("write a lease");
    }
    let limit = MemoryLimit::new(96);
    let mut left = worker.overlayd(&store).spawn();
    limit.enter(left.id());
    left.wait_ready(Duration::from_secs(60));
    let mut right = master.overlayd(&store).spawn();
    right.wait_ready(Duration::from_secs(60));
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    await_until(SOON, "all peers", || left.status().peers().len() == 10_001);
    traffic::transfer(&a.ns, &b.ns, b.address, 64);
    for number in 0..200 {
        store.put_lease(&format!("10.100.{number}.0-24"), FOREIGN);
    }
    await_until(SOON, "more peers", || left.status().peers().len() == 10_201);
    traffic::transfer(&b.ns, &a.ns, a.address, 64);
    println!("{:?}", Held::by(left.id()));
    left.stop();
}

/// A lease of a node that is not there.
const FOREIGN: &str = r#"{"PublicIP":"172.16.0.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:09"}}"#;
