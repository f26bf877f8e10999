//! The clusters that the product was made for: a service address that iptables rewrites to a pod on
//! the other host, docker's own rules on both, and hosts that filter by reverse path.
//!
//! ```text
//!  worker 192.168.1.12 ──(10.0.0.103:80 → pod on the master, by DNAT in OUTPUT)
//!    └ flannel: src 192.168.1.12 → pod.   The pod's reply to 192.168.1.12 would leave by the
//!      master's eth0, and the reverse path filter would drop what has come on the overlay: the request
//!      hangs. Masqueraded to the overlay's address, the request and its reply both stay on the overlay.
//! ```

use std::io::ErrorKind;
use std::time::Duration;

use integration::dockerd::Dockerd;
use integration::overlayd::await_mesh;
use integration::service::{self, SERVICE};
use integration::traffic::{self, Server};
use integration::{Backend, Host, SOON, Site, Store, SubnetEnv, await_until};

const NFTABLES: &str = "--firewall=nftables";
const IPTABLES: &str = "--firewall=iptables";

/// Long enough for a first retransmission: a request that got no answer by then hangs.
const HANGING: Duration = Duration::from_secs(3);

#[test]
fn the_worker_reaches_a_service_on_the_master_over_udp() {
    a_host_reaches_a_service_on_the_other(
        Backend::Udp,
        Direction::WorkerToMaster,
        Site::two_hosts(),
        NFTABLES,
    );
}

#[test]
fn the_worker_reaches_a_service_on_the_master_with_iptables() {
    let (backend, direction) = (Backend::Udp, Direction::WorkerToMaster);
    a_host_reaches_a_service_on_the_other(backend, direction, Site::two_hosts(), IPTABLES);
}

#[test]
fn the_master_reaches_a_service_on_the_worker_with_iptables() {
    let (backend, direction) = (Backend::Vxlan, Direction::MasterToWorker);
    a_host_reaches_a_service_on_the_other(backend, direction, Site::two_hosts(), IPTABLES);
}

#[test]
fn the_worker_reaches_a_service_on_the_master_over_vxlan() {
    a_host_reaches_a_service_on_the_other(
        Backend::Vxlan,
        Direction::WorkerToMaster,
        Site::two_hosts(),
        NFTABLES,
    );
}

#[test]
fn the_master_reaches_a_service_on_the_worker_over_udp() {
    a_host_reaches_a_service_on_the_other(
        Backend::Udp,
        Direction::MasterToWorker,
        Site::two_hosts(),
        NFTABLES,
    );
}

#[test]
fn the_master_reaches_a_service_on_the_worker_over_vxlan() {
    a_host_reaches_a_service_on_the_other(
        Backend::Vxlan,
        Direction::MasterToWorker,
        Site::two_hosts(),
        NFTABLES,
    );
}

#[test]
fn a_service_is_reached_by_a_gateway_that_is_not_the_default() {
    let site = Site::two_hosts_by_side_gateway();
    a_host_reaches_a_service_on_the_other(Backend::Udp, Direction::WorkerToMaster, site, NFTABLES);
}

enum Direction {
    WorkerToMaster,
    MasterToWorker,
}

/// With the fix the request is answered; without it, it hangs; and with it again, it is answered again.
fn a_host_reaches_a_service_on_the_other(
    backend: Backend,
    direction: Direction,
    hosts: (Site, Host, Host),
    firewall: &str,
) {
    let (site, worker, master) = hosts;
    let (client, server) = match direction {
        Direction::WorkerToMaster => (worker, master),
        Direction::MasterToWorker => (master, worker),
    };
    let store = Store::etcd(&site, backend);
    let (c, s) =
        (client.overlayd(&store).flag(firewall).start(), server.overlayd(&store).flag(firewall).start());
    await_mesh(&[&c, &s]);
    let pod = server.bridge_and_pod(&s.env());
    client.bridge(&c.env());
    let _web = Server::http(&pod.ns, 8080);
    service::install(&client, &pod);

    let answered_from = Ok(c.env().base().to_string());
    assert_eq!(traffic::fetch(&client.ns, SERVICE, 80, SOON), answered_from);

    c.stop();
    let c = client.overlayd(&store).flag(firewall).flag("--return-path-masq=false").start();
    await_mesh(&[&c, &s]);
    traffic::ping(&client.ns, pod.address);
    assert_eq!(traffic::fetch(&client.ns, SERVICE, 80, HANGING), Err(ErrorKind::TimedOut));

    c.stop();
    let c = client.overlayd(&store).flag(firewall).flag("--return-path-masq=true").start();
    await_mesh(&[&c, &s]);
    assert_eq!(traffic::fetch(&client.ns, SERVICE, 80, SOON), answered_from);
}

#[test]
fn pods_keep_their_addresses_with_a_real_dockers_rules_over_udp() {
    pods_keep_their_addresses_with_a_real_dockers_rules(Backend::Udp, NFTABLES);
}

#[test]
fn pods_keep_their_addresses_with_a_real_dockers_rules_over_vxlan() {
    pods_keep_their_addresses_with_a_real_dockers_rules(Backend::Vxlan, NFTABLES);
}

#[test]
fn pods_keep_their_addresses_with_a_real_dockers_rules_with_iptables() {
    pods_keep_their_addresses_with_a_real_dockers_rules(Backend::Vxlan, IPTABLES);
}

fn pods_keep_their_addresses_with_a_real_dockers_rules(backend: Backend, firewall: &str) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, backend);
    // Docker is there first, so that it is docker that turns forwarding on: only then does it forbid
    // to others what it does not itself allow. The subnets are agreed beforehand.
    let hosts = [(&worker, "10.1.9"), (&master, "10.1.63")];
    let dockers = hosts.map(|(host, subnet)| {
        let env = SubnetEnv::of(subnet, 1500 - backend.overhead());
        store.put_lease(&env.key(), &format!(r#"{{"PublicIP":"{}"}}"#, host.public_ip));
        let docker = Dockerd::start(host, &env);
        let nat = host.ns.ok("iptables -t nat -S POSTROUTING");
        assert!(nat.contains(&format!("-s {} ! -o docker0 -j MASQUERADE", env.base_with_length())), "{nat}");
        assert!(host.ns.ok("iptables -S FORWARD").contains("-P FORWARD DROP"));
        docker
    });
    let start = |host| Host::overlayd(host, &store).flag(firewall).flag("--iptables-resync=1").start();
    let (w, m) = (start(&worker), start(&master));
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.pod(&w.env(), 0), master.pod(&m.env(), 0));
    let _servers = [Server::http(&a.ns, 8080), Server::http(&b.ns, 8080), Server::dns(&b.ns, SERVICE)];
    let _outside = Server::http(&site.router, 8081);
    service::install(&worker, &b);

    let check = || {
        let own = Ok(a.address.to_string());
        assert_eq!(traffic::fetch(&a.ns, b.address, 8080, SOON), own);
        assert_eq!(traffic::fetch(&b.ns, a.address, 8080, SOON), Ok(b.address.to_string()));
        assert_eq!(traffic::resolve(&a.ns, b.address, "web.default.svc"), Some(SERVICE));
        // The service, from a pod by its own address and from the host by the overlay's.
        assert_eq!(traffic::fetch(&a.ns, SERVICE, 80, SOON), own);
        assert_eq!(traffic::fetch(&worker.ns, SERVICE, 80, SOON), Ok(w.env().base().to_string()));
        // What leaves the overlay is docker's business, and docker masquerades it.
        let outside = traffic::fetch(&a.ns, site.router_address(), 8081, SOON);
        assert_eq!(outside, Ok(worker.public_ip.to_string()));
    };
    check();

    // Docker started again puts its rules in front; ours are back in their place at the next check.
    dockers.into_iter().for_each(Dockerd::stop);
    let _dockers = [Dockerd::start(&worker, &w.env()), Dockerd::start(&master, &m.env())];
    await_until(SOON, "the pods to reach each other under their own addresses", || {
        traffic::fetch(&a.ns, b.address, 8080, Duration::from_secs(1)) == Ok(a.address.to_string())
            && traffic::fetch(&b.ns, a.address, 8080, Duration::from_secs(1)) == Ok(b.address.to_string())
    });
    check();
}

#[test]
fn with_ip_masq_pods_reach_the_world_and_keep_their_addresses_inside() {
    with_ip_masq_pods_reach_the_world(NFTABLES);
}

#[test]
fn with_ip_masq_pods_reach_the_world_with_iptables() {
    with_ip_masq_pods_reach_the_world(IPTABLES);
}

fn with_ip_masq_pods_reach_the_world(firewall: &str) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let w = worker.overlayd(&store).flag(firewall).flag("--ip-masq").start();
    let m = master.overlayd(&store).flag(firewall).flag("--ip-masq").start();
    await_mesh(&[&w, &m]);
    assert!(w.env().ip_masq);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let _web = Server::http(&b.ns, 8080);
    assert_eq!(traffic::fetch(&a.ns, b.address, 8080, SOON), Ok(a.address.to_string()));
    let _outside = Server::http(&site.router, 8081);
    assert_eq!(traffic::fetch(&a.ns, site.router_address(), 8081, SOON), Ok(worker.public_ip.to_string()));
    service::install(&worker, &b);
    assert_eq!(traffic::fetch(&worker.ns, SERVICE, 80, SOON), Ok(w.env().base().to_string()));
}

#[test]
fn dns_over_udp_reaches_a_pod_from_a_host_and_from_a_pod() {
    let (site, worker, master) = Site::two_hosts_by_side_gateway();
    let store = Store::etcd(&site, Backend::Udp);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let _dns = Server::dns(&b.ns, SERVICE);
    assert_eq!(traffic::resolve(&a.ns, b.address, "web.default.svc"), Some(SERVICE));
    assert_eq!(traffic::resolve(&worker.ns, b.address, "web.default.svc"), Some(SERVICE));
}
