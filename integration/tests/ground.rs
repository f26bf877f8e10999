//! The ground the other tests stand on, proved without the daemon: what fails here is not its fault.

use std::io::ErrorKind;
use std::time::Duration;

use integration::capture::{Capture, LinkType, decode};
use integration::dockerd::Dockerd;
use integration::kernel_vxlan::KernelVxlan;
use integration::packets::{Injector, mac, udp_packet, vxlan_frame};
use integration::service::{self, SERVICE};
use integration::traffic::{self, Server};
use integration::{Backend, Namespace, SOON, Site, Store, SubnetEnv};

#[test]
fn hosts_reach_each_other_only_through_their_router() {
    let (_site, worker, master) = Site::two_hosts();
    traffic::ping(&worker.ns, master.public_ip);
    let way = worker.ns.ok("ip route get 192.168.199.238");
    assert!(way.contains("via 192.168.1.1 "), "{way}");
}

#[test]
fn the_side_gateway_is_the_only_way_to_the_other_host() {
    let (_site, worker, master) = Site::two_hosts_by_side_gateway();
    traffic::ping(&worker.ns, master.public_ip);
    traffic::ping(&master.ns, worker.public_ip);
    worker.ns.ip("route del 192.168.199.0/24");
    assert!(!traffic::answers(&worker.ns, master.public_ip));
}

#[test]
fn etcd_keeps_keys_over_a_crash() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Udp);
    store.put_lease("10.1.9.0-24", "{}");
    let request = || traffic::fetch(&worker.ns, site.router_address(), 2379, SOON);
    request().expect("etcd to answer on the worker");
    store.server().kill();
    assert_eq!(request(), Err(ErrorKind::ConnectionRefused));
    store.server().run();
    assert_eq!(store.leases().into_iter().collect::<Vec<_>>(), [("10.1.9.0-24".into(), "{}".into())]);
    store.delete_lease("10.1.9.0-24");
    assert!(store.leases().is_empty());
}

#[test]
fn two_kernel_vxlan_hosts_carry_everything_the_tests_send() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let mut left = KernelVxlan::start(&worker, &store, "10.1.9");
    let right = KernelVxlan::start(&master, &store, "10.1.63");
    left.follow(&store);
    let (a, b) = (worker.bridge_and_pod(left.env()), master.bridge_and_pod(right.env()));
    traffic::ping(&a.ns, b.address);

    let wire = Capture::start(&site.router, "lan1", "udp port 8472", worker.directory());
    let _echo = Server::udp_echo(&b.ns, 7);
    traffic::echo(&a.ns, b.address, 7, 8000);
    let frames = wire.frames(2);
    let text = decode(LinkType::Ethernet, &[&frames[0]], worker.directory());
    assert!(text.contains("VXLAN, flags [I] (0x08), vni 1"), "{text}");
    assert!(text.contains(&format!("> {}.7: ", b.address)), "{text}");
    let inner = decode(LinkType::Raw, &[&frames[0][64..]], worker.directory());
    assert!(inner.contains(&format!("> {}.7: ", b.address)), "{inner}");

    traffic::transfer(&b.ns, &a.ns, a.address, 4);
    let frames = wire.stop();
    let largest = frames.iter().max_by_key(|frame| frame.len()).unwrap();
    let text = decode(LinkType::Ethernet, &[largest], worker.directory());
    assert!(largest.len() > 1514 && text.contains("(incorrect"), "no super-packet without checksum: {text}");
    let tcp = traffic::iperf3(&a.ns, &b.ns, b.address, "-t 1", worker.directory());
    let udp = traffic::iperf3(&b.ns, &a.ns, a.address, "-u -b 20M -t 1", worker.directory());
    assert!(tcp.bits_per_second > 1e6 && udp.bits_per_second > 1e6, "{tcp:?} {udp:?}");

    let _dns = Server::dns(&b.ns, "10.0.0.103".parse().unwrap());
    assert_eq!(traffic::resolve(&a.ns, b.address, "web.default"), "10.0.0.103".parse().ok());
    let _web = Server::http(&b.ns, 8080);
    assert_eq!(traffic::fetch(&a.ns, b.address, 8080, SOON), Ok(a.address.to_string()));
}

#[test]
fn the_seeds_request_hangs_on_kernel_vxlan_hosts_until_it_is_masqueraded() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut left = KernelVxlan::start(&worker, &store, "10.1.9");
    let right = KernelVxlan::start(&master, &store, "10.1.63");
    left.follow(&store);
    let pod = master.bridge_and_pod(right.env());
    let _web = Server::http(&pod.ns, 8080);
    service::install(&worker, &pod);
    let fetch = || traffic::fetch(&worker.ns, SERVICE, 80, Duration::from_secs(3));
    assert_eq!(fetch(), Err(ErrorKind::TimedOut));
    worker.ns.ok("iptables -t nat -A POSTROUTING -o flannel.1 ! -s 10.1.0.0/16 -j MASQUERADE");
    assert_eq!(fetch(), Ok("10.1.9.0".into()));
}

#[test]
fn an_injected_frame_reaches_a_pod_behind_a_kernel_that_does_not_ask_who_sent_it() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let vxlan = KernelVxlan::start(&worker, &store, "10.1.9");
    let pod = worker.bridge_and_pod(vxlan.env());
    worker.ns.ip("route add 10.1.0.0/16 dev flannel.1");
    let link = worker.ns.ok("cat /sys/class/net/flannel.1/address");
    let pod_side = Capture::start(&pod.ns, "eth0", "udp port 7", worker.directory());
    let packet = udp_packet("10.1.63.2".parse().unwrap(), pod.address, 7, b"hello");
    Injector::new(&master.ns, worker.public_ip, 8472).send(&vxlan_frame(1, mac(link.trim()), &packet));
    let frame = &pod_side.frames(1)[0];
    assert!(frame.ends_with(b"hello"));
}

#[test]
fn a_real_docker_daemon_makes_its_bridge_and_rules() {
    let (_site, worker, _master) = Site::two_hosts();
    let env = SubnetEnv::of("10.1.9", 1450);
    let docker = Dockerd::start(&worker, &env);
    let pod = worker.pod(&env, 0);
    traffic::ping(&pod.ns, env.bridge_address());
    let nat = worker.ns.ok("iptables -t nat -S POSTROUTING");
    assert!(nat.contains("-s 10.1.9.0/24 ! -o docker0 -j MASQUERADE"), "{nat}");
    let filter = worker.ns.ok("iptables -S FORWARD");
    assert!(filter.contains("-P FORWARD DROP"), "{filter}");
    docker.stop();
}

#[test]
fn a_namespace_takes_its_processes_along() {
    let namespace = Namespace::new("short");
    let mut sleeper = namespace.command("sleep").arg("600").spawn().unwrap();
    integration::await_until(SOON, "the process to be inside", || {
        !integration::netns::succeed(std::process::Command::new("ip").args([
            "netns",
            "pids",
            namespace.name(),
        ]))
        .is_empty()
    });
    let path = namespace.path();
    drop(namespace);
    assert!(!sleeper.wait().unwrap().success());
    assert!(!path.exists());
}
