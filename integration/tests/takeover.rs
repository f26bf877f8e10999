//! A host on which flanneld has been stopped goes on under the daemon, and back again. flanneld itself is
//! not here: the kernel device, the lease, the subnet file and the rules that it leaves are made by hand.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use integration::kernel_vxlan::KernelVxlan;
use integration::leak::Leak;
use integration::overlayd::{await_mesh, program};
use integration::process::Process;
use integration::traffic;
use integration::{Backend, Host, Pod, SOON, Site, Store, Wire, await_until};

#[test]
fn a_node_keeps_subnet_address_and_connections_when_it_is_taken_over_and_when_it_goes_back() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let mut left = KernelVxlan::start(&worker, &store, "10.1.163");
    let right = KernelVxlan::start(&master, &store, "10.1.177");
    left.follow(&store);
    left.put_rules();
    let (env, mac) = (left.env().clone(), left.mac());
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(right.env()));
    let lease = store.leases().remove(&env.key()).unwrap();
    let mut talk = Conversation::between(&a, &b);
    talk.go_on();

    // As flanneld wrote it; the daemon's subnet file is elsewhere in each test.
    let file = worker.directory().join("overlayd.env");
    std::fs::write(&file, format!("FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\n", env.network, env.subnet))
        .unwrap();
    let mut w = worker.overlayd(&store).flag("--ip-masq").start();
    talk.go_on();
    assert_eq!(w.env().subnet, env.subnet);
    assert_eq!(w.status().0["backend"]["vtep_mac"], mac);
    assert_eq!(store.leases().remove(&env.key()).unwrap(), lease);
    await_until(SOON, "flanneld's rules to go", || !worker.ns.ok("iptables-save").contains("FLANNEL"));
    let kind = worker.ns.ok("ip -d link show flannel.1");
    assert!(kind.contains("tun") && !kind.contains("vxlan"), "{kind}");
    traffic::ping(&b.ns, a.address);
    assert!(w.log().contains("taking over from flanneld") && !w.log().contains("WARN"), "{}", w.log());
    assert!(w.process().exited().is_none());

    w.stop();
    clean_up(&worker, &file);
    let mut left = KernelVxlan::start(&worker, &store, "10.1.163");
    left.follow(&store);
    talk.go_on();
    traffic::ping(&b.ns, a.address);
    assert_eq!(store.leases().remove(&env.key()).unwrap(), lease);
}

#[test]
fn nothing_leaves_in_the_clear_while_flannelds_device_is_replaced() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut left = KernelVxlan::start(&worker, &store, "10.1.163");
    let right = KernelVxlan::start(&master, &store, "10.1.177");
    left.follow(&store);
    let (a, b) = (worker.bridge_and_pod(left.env()), master.bridge_and_pod(right.env()));
    let leak = Leak::watched(&worker, &a, &b);
    let daemon = worker.overlayd(&store).start();
    traffic::ping(&a.ns, b.address);
    assert_eq!(leak.count(&worker.ns), 0, "{}", daemon.log());
    let routes = worker.ns.ok("ip route show 10.1.177.0/24");
    assert_eq!(routes, "", "the whole network is routed:\n{}", daemon.log());
}

#[test]
fn a_running_flanneld_is_not_robbed() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let _kernel = KernelVxlan::start(&worker, &store, "10.1.163");
    let mut flanneld = running_flanneld(&worker);
    let before = worker.ns.ok("ip -d link show flannel.1") + &worker.ns.ok("ip route");
    let log = worker.overlayd(&store).refused();
    assert!(log.contains("running") && log.contains(&flanneld.id().to_string()), "{log}");
    assert_eq!(worker.ns.ok("ip -d link show flannel.1") + &worker.ns.ok("ip route"), before);
    assert!(!worker.ns.ok("nft list tables").contains("overlayd"));

    flanneld.kill();
    let w = worker.overlayd(&store).start();
    assert_eq!(w.env().base_with_length(), "10.1.163.0/24");
}

#[test]
fn a_running_flanneld_without_a_device_is_not_written_against() {
    let (site, worker, _master) = Site::two_hosts();
    let rules = |network: &str| {
        format!(
            "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s {network} -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n"
        )
    };
    let mut flanneld = running_flanneld(&worker);
    worker.ns.feed("iptables-restore", &rules("10.1.0.0/16"));
    for backend in ["host-gw", "alloc"] {
        let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
        let store = Store::dir_with(&site, backend, &config);
        let log = worker.overlayd(&store).named(backend).refused();
        assert!(log.contains("serves 10.1.0.0/16") && log.contains(&flanneld.id().to_string()), "{log}");
        assert!(!worker.ns.ok("nft list tables").contains("overlayd"));
        assert!(store.leases().is_empty(), "{backend}: no subnet is taken by who cannot run");
    }

    // Another network's is no reason.
    worker.ns.feed("iptables-restore", &rules("10.5.0.0/16"));
    let store = Store::dir_with(&site, "beside", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}"#);
    let beside = worker.overlayd(&store).named("beside").start();
    beside.stop();
    worker.ns.feed("iptables-restore", &rules("10.1.0.0/16"));
    flanneld.kill();
    worker.overlayd(&store).named("beside").start().stop();
}

/// What it does is of no matter, only its name.
fn running_flanneld(host: &Host) -> Process {
    let flanneld = host.directory().join("flanneld");
    std::fs::copy("/bin/sleep", &flanneld).unwrap();
    let mut command = host.ns.command(flanneld.to_str().unwrap());
    command.arg("600");
    let flanneld = Process::spawn("flanneld", command, host.directory());
    await_until(SOON, "flanneld", || {
        std::fs::read_to_string(format!("/proc/{}/comm", flanneld.id()))
            .is_ok_and(|comm| comm == "flanneld\n")
    });
    flanneld
}

#[test]
fn only_a_device_of_our_name_and_network_identifier_is_removed() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    for (make, part) in [
        ("link add flannel.1 up type vxlan id 9 dstport 8472 dev eth0", "8472"),
        ("link add flannel.1 type bridge", "flannel.1"),
        ("link add other up type vxlan id 1 dstport 8472 dev eth0", "8472"),
    ] {
        worker.ns.ip(make);
        let device = if make.contains("other") { "other" } else { "flannel.1" };
        let before = worker.ns.ok(&format!("ip -d link show {device}"));
        let log = worker.overlayd(&store).refused();
        assert!(log.contains(part), "{make}: {log}");
        assert_eq!(worker.ns.ok(&format!("ip -d link show {device}")), before);
        worker.ns.ip(&format!("link del {device}"));
    }

    // Ours, but another has the same port: removing ours alone would help nobody.
    worker.ns.ip("link add flannel.1 up type vxlan id 1 dstport 8472 dev eth0\n\
         link add flannel.42 up type vxlan id 42 dstport 8472 dev eth0");
    let log = worker.overlayd(&store).refused();
    assert!(log.contains("flannel.42") && log.contains("8472"), "{log}");
    worker.ns.ok("ip link show flannel.1");
    worker.ns.ip("link del flannel.42");
    worker.overlayd(&store).start().stop();
}

#[test]
fn a_node_that_has_no_use_for_the_device_removes_it_all_the_same() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    let store = Store::dir(&site, Backend::Vxlan);
    let mut kernel = KernelVxlan::start(&worker, &store, "10.1.163");
    let other = master.overlayd(&store).start();
    kernel.follow(&store);
    let (a, b) = (worker.bridge_and_pod(kernel.env()), master.bridge_and_pod(&other.env()));
    traffic::ping(&a.ns, b.address);
    other.stop();
    // One that looks alike, but is of another network.
    worker.ns.ip("link add flannel.42 type vxlan id 42 dstport 4789 dev eth0");

    store.put_config(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let pair = [&worker, &master].map(|host| host.overlayd(&store).start());
    await_mesh(&pair.each_ref());
    assert!(!worker.ns.run("ip link show flannel.1").status.success());
    worker.ns.ok("ip link show flannel.42");
    assert_eq!(pair[0].env().base_with_length(), "10.1.163.0/24");
    // Containers have to get the larger MTU from docker; with theirs they go on.
    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);
}

#[test]
fn a_device_with_another_address_than_the_lease_is_told() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let kernel = KernelVxlan::start(&worker, &store, "10.1.163");
    let mac = kernel.mac();
    worker.ns.ip("link set flannel.1 address 02:00:00:00:00:77");
    let w = worker.overlayd(&store).start();
    assert_eq!(w.status().0["backend"]["vtep_mac"], mac, "the lease counts");
    let log = w.log();
    let warned =
        |line: &str| line.contains("WARN") && line.contains("02:00:00:00:00:77") && line.contains(&mac);
    assert!(log.lines().any(warned), "{log}");
}

#[track_caller]
fn clean_up(host: &Host, subnet_file: &std::path::Path) {
    let overlayctl = program("overlayctl");
    host.ns.ok(&format!("{} cleanup -- --subnet-file={}", overlayctl.display(), subnet_file.display()));
}

/// A TCP connection between two pods that is used now and then.
struct Conversation {
    ends: [TcpStream; 2],
    said: u64,
}

impl Conversation {
    #[track_caller]
    fn between(a: &Pod, b: &Pod) -> Self {
        let listener = b.ns.within(|| TcpListener::bind((b.address, 0))).unwrap();
        let target = listener.local_addr().unwrap();
        let near = a.ns.within(|| TcpStream::connect_timeout(&target, SOON)).unwrap();
        let (far, _) = listener.accept().unwrap();
        for end in [&near, &far] {
            end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        }
        Self { ends: [near, far], said: 0 }
    }

    /// Each end says something that the other hears.
    #[track_caller]
    fn go_on(&mut self) {
        for from in [0, 1] {
            self.said += 1;
            self.ends[from].write_all(&self.said.to_le_bytes()).unwrap();
            let mut heard = [0; 8];
            self.ends[1 - from].read_exact(&mut heard).unwrap();
            assert_eq!(u64::from_le_bytes(heard), self.said);
        }
    }
}
