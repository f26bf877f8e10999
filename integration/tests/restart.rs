//! A new process takes over from the one before it: what the service manager kept open in between has kept
//! what arrived, and connections do not notice.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use integration::datagrams::Order;
use integration::overlayd::{Launch, Overlayd, await_mesh};
use integration::service_manager::ServiceManager;
use integration::steady::Paced;
use integration::{Backend, Etcd, Host, Pair, SOON, Site, Store, await_until, traffic};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tun_tap::{Iface, Mode};

#[test]
fn a_restart_loses_nothing() {
    nothing_is_lost(Backend::Vxlan, |daemon| daemon.stop_for_restart());
}

#[test]
fn a_crash_loses_nothing() {
    nothing_is_lost(Backend::Udp, |daemon| daemon.crash());
}

/// Datagrams flow in both directions through a daemon that ends and comes back.
fn nothing_is_lost(backend: Backend, end: fn(Overlayd<'_>) -> ServiceManager) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, backend);
    let Pair { left, right, a, b } = Pair::start([&worker, &master], &store, &[]);
    // Slow enough that what the kernel holds lasts for longer than any machine takes to start a process.
    let streams = [
        Paced::start(&a.ns, &b.ns, b.address, PER_SECOND),
        Paced::start(&b.ns, &a.ns, a.address, PER_SECOND),
    ];
    streams.iter().for_each(|stream| stream.await_more(SOME));
    let left = worker.overlayd(&store).by(end(left)).start();
    streams.iter().for_each(|stream| stream.await_more(SOME));
    for Order { sent, received, overtaken, .. } in streams.map(Paced::stop) {
        assert_eq!((received, overtaken), (sent, 0));
    }
    let status = left.status();
    assert_eq!(status.all_drops("ingress"), 0, "{}", status.0["drops"]);
    drop(right);
}

#[test]
fn connections_outlive_a_restart_without_anyone_to_keep_the_descriptors() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let device = || worker.ns.ok("ip -o link show flannel.1");
    let index = |line: &str| line.split(':').next().map(str::to_owned);
    let before = index(&device());
    let (a, b) = (&pair.a, &pair.b);
    let left = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| traffic::transfer(&a.ns, &b.ns, b.address, 400));
        pair.left.stop();
        let route = worker.ns.ok("ip route get 10.1.200.1");
        assert!(route.contains("dev flannel.1"), "without its daemon the overlay leaks: {route}");
        let left = worker.overlayd(&store).start();
        transfer.join().expect("the transfer");
        left
    });
    assert_eq!(index(&device()), before, "it is the same device");
    left.stop();
}

#[test]
fn after_a_reboot_without_etcd_the_node_comes_up_as_it_was() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let lasting = site.directory("var-lib");
    let place = lasting.display().to_string();
    let left = worker.overlayd(&store).env("STATE_DIRECTORY", &place).start();
    let right = master.overlayd(&store).start();
    await_mesh(&[&left, &right]);
    let env = left.env();
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&right.env()));
    let subnet_file = left.subnet_file().to_owned();
    left.stop();

    // What a reboot does: nothing is left in /run and in the kernel.
    let in_run = std::fs::read_dir(worker.directory()).expect("list the host's files").flatten();
    for file in in_run.filter(|file| file.file_name().to_string_lossy().starts_with("overlayd.env")) {
        std::fs::remove_file(file.path()).expect("remove a file of /run");
    }
    assert!(!subnet_file.exists());
    worker.ns.ok("ip link del flannel.1");
    worker.ns.ok("nft flush ruleset");
    store.server().kill();

    let left = worker.overlayd(&store).env("STATE_DIRECTORY", &place).start();
    assert_eq!(left.env(), env, "the subnet file is made from it");
    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);
    assert_eq!(left.status().0["lease"]["state"], "saved");
    store.server().run();
    await_until(Duration::from_secs(30), "the lease to be held again", || {
        left.status().0["lease"]["state"] == "held"
    });
    assert_eq!(left.env(), env);
}

#[test]
fn a_node_goes_on_from_what_it_has_saved_however_its_etcd_is_named() {
    let (site, worker, master) = Site::two_hosts();
    let mut cluster = Etcd::start_cluster(&site);
    cluster[0].put("/coreos.com/network/config", &Backend::Vxlan.config());
    let [first, second, third] = [0, 1, 2].map(|member| cluster[member].endpoint.clone());
    let all = format!("{first},{second},{third}");
    let mut left = by_endpoints(&worker, &all).start();
    let right = by_endpoints(&master, &all).start();
    await_mesh(&[&left, &right]);
    let env = left.env();
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&right.env()));
    cluster.iter_mut().for_each(Etcd::kill);
    let in_capitals = first.replace("http", "HTTP");
    for endpoints in [
        format!("{third},{first},{second}"),
        format!("{first}/,{second}/,{third}"),
        format!("{in_capitals},,{second},{third},"),
        format!("{second},{third}"),
        format!("{third},http://192.168.1.1:2999"),
    ] {
        left.stop();
        left = by_endpoints(&worker, &endpoints).start();
        assert_eq!((left.env(), left.status().0["lease"]["state"].as_str()), (env.clone(), Some("saved")));
        traffic::ping(&a.ns, b.address);
    }
    left.stop();
    let stranger = by_endpoints(&worker, "http://192.168.1.1:2999").spawn();
    await_until(SOON, "another's state to be left alone", || {
        stranger.log().contains("the saved state is of another network")
    });
}

fn by_endpoints<'h>(host: &'h Host, endpoints: &str) -> Launch<'h> {
    host.bare_overlayd().flag("--iface=eth0").flag(&format!("--etcd-endpoints={endpoints}"))
}

#[test]
fn descriptors_that_are_not_the_daemons_are_refused() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut manager = ServiceManager::new(&worker.directory().join("overlayd.notify"));
    let udp = worker.ns.within(|| std::net::UdpSocket::bind("192.168.1.12:9999")).expect("bind a port");
    let file = File::open("/dev/null").expect("open a file");
    manager.keep("kept", [OwnedFd::from(udp.try_clone().expect("a second handle")), OwnedFd::from(file)]);
    drop(udp);
    let left = worker.overlayd(&store).by(manager).start();
    assert!(left.log().contains("refused=2"), "{}", left.log());
    let right = master.overlayd(&store).start();
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    left.await_peers(&[&right.env().base_with_length()]);
    traffic::ping(&a.ns, b.address);
    assert!(left.manager().stored() > 2, "its own are stored");
}

#[test]
fn a_queue_of_an_older_kind_is_refused_and_does_not_hold_the_device() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // One queue, and no header for super-packets: such a device takes no further queues.
    let older =
        worker.ns.within(|| Iface::without_packet_info("flannel.1", Mode::Tun)).expect("open a TUN device");
    let mut manager = ServiceManager::new(&worker.directory().join("overlayd.notify"));
    manager.keep("tun", [second_handle(&older)]);
    drop(older);
    let left = worker.overlayd(&store).by(manager).start();
    assert!(left.log().contains("refused=1"), "{}", left.log());
    let right = master.overlayd(&store).start();
    let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
    left.await_peers(&[&right.env().base_with_length()]);
    traffic::transfer(&a.ns, &b.ns, b.address, 5);
}

#[test]
fn the_next_process_may_have_more_queues_or_fewer() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let Pair { mut left, right, a, b } = Pair::start([&worker, &master], &store, &["--queues=2"]);
    for queues in [4, 1, 3] {
        let manager = left.stop_for_restart();
        left = worker.overlayd(&store).flag(&format!("--queues={queues}")).by(manager).start();
        assert_eq!(left.status().0["device"]["queues"], queues);
        left.await_stored(queues);
        traffic::transfer(&a.ns, &b.ns, b.address, 5);
        traffic::transfer(&b.ns, &a.ns, a.address, 5);
    }
    assert_eq!(left.status().all_drops("ingress"), 0);
    drop(right);
}

#[test]
fn sockets_of_another_port_or_address_are_closed() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let Pair { left, right, a, b } = Pair::start([&worker, &master], &store, &[]);
    let bound = |what: &str| worker.ns.ok("ss -Huln").contains(what);
    assert!(bound("192.168.1.12:8472"));

    let managers = [left.stop_for_restart(), right.stop_for_restart()];
    store.put_config(r#"{"Network":"10.1.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","Port":4789}}"#);
    let [left, right] = start_both([&worker, &master], &store, managers);
    assert!(bound("192.168.1.12:4789") && !bound(":8472"));
    traffic::ping(&a.ns, b.address);

    let manager = left.stop_for_restart();
    worker.ns.ip("address del 192.168.1.12/24 dev eth0\naddress add 192.168.1.77/24 dev eth0\n\
         route add default via 192.168.1.1");
    let left = worker.overlayd(&store).by(manager).start();
    assert!(bound("192.168.1.77:4789") && !bound("192.168.1.12"));
    assert!(left.log().contains("going on with the device"), "{}", left.log());
    drop(right);
}

/// The crate gives no more than the number of its descriptor.
fn second_handle(device: &Iface) -> OwnedFd {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("a descriptor of this process");
    pidfd_getfd(own, device.as_raw_fd(), PidfdGetfdFlags::empty()).expect("a second handle")
}

#[track_caller]
fn start_both<'h>(hosts: [&'h Host; 2], store: &Store, managers: [ServiceManager; 2]) -> [Overlayd<'h>; 2] {
    let [left, right] = managers;
    let daemons =
        [(hosts[0], left), (hosts[1], right)].map(|(host, manager)| host.overlayd(store).by(manager).start());
    await_mesh(&daemons.each_ref());
    daemons
}

/// Datagrams a second of each stream.
const PER_SECOND: u32 = 500;
const SOME: u64 = 300;
