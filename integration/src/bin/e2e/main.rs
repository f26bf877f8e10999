//! Whole hosts: two booted by systemd, each with docker, behind a router with etcd. They are set up by the very
//! lines that docs/install.md gives for it, one of them from flanneld. Says what was checked, and for each way to
//! replace the daemon how long nothing arrived and what was lost.
//! `overlay-e2e ROOT PACKAGE NEXT-PACKAGE IMAGE`; needs root. Leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use integration::machine::{Machine, Off};
use integration::traffic::{self, Server};
use integration::{Etcd, Host, Pod, Site, await_until, guard, service};

mod confined;
mod docker;
mod failure;
mod flanneld;
mod image;
mod installation;
mod make_install;
mod replace;

use flanneld::Flanneld;
use installation::Installation;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [root, package, next, image] = arguments.as_slice() else {
        eprintln!("usage: overlay-e2e ROOT PACKAGE NEXT-PACKAGE IMAGE");
        return ExitCode::FAILURE;
    };
    if let Err(error) = guard::clean_up_whatever_happens("overlay-e2e") {
        eprintln!("overlay-e2e: cannot watch for signals: {error}");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    make_install::check();
    said("make install and make uninstall agree on every file");
    run(root, package, next, image);
    println!("all is as it should be, in {} s", start.elapsed().as_secs());
    ExitCode::SUCCESS
}

fn run(base: &Path, package: &Path, next: &Path, image: &Path) {
    let installation = Installation::documented();
    let (site, worker, master) = Site::two_hosts();
    prepare(&site, [&worker, &master]);
    let mut etcd = Etcd::start(&site);
    // On the host of etcd.
    site.router.feed("sh -eu", installation.network);

    let deliver = |root: &Path| {
        let name = package.file_name().expect("a package's file");
        std::fs::copy(package, root.join("root").join(name)).expect("copy the package");
    };
    let mut worker = Machine::boot(&worker, base, deliver);
    let mut master = Machine::boot(&master, base, |root| {
        deliver(root);
        flanneld::install(root);
    });
    let flanneld = Flanneld::started(&master, &etcd);
    worker.await_active("docker");
    said(
        "two hosts are booted by systemd: on one flanneld serves docker, on the other docker knows no overlay",
    );

    worker.ok(&format!("cd /root\n{}", installation.install));
    // What there is to see is there.
    let seen = worker.ok(installation.look);
    let env = worker.env();
    assert!(seen.contains(&format!("FLANNEL_SUBNET={}", env.subnet)), "{seen}");
    assert!(seen.contains(&format!("inet {}", env.subnet)), "docker0 is elsewhere: {seen}");
    assert!(seen.contains("1 peer"), "{seen}");
    assert!(entered(&worker, "overlayd") <= entered(&worker, "docker"), "docker was first");
    let a = container(&worker);
    let b = container(&master);
    flanneld.follow(&etcd);
    check_traffic(&a, &b);
    said(
        "the lines of docs/install.md install overlayd before docker; its containers reach those of the flanneld node",
    );
    confined::check(&worker);

    replace::heading();
    replace::flanneld(&master, &a, &b, &format!("cd /root\n{}", installation.replace));
    assert_eq!(master.env().base_with_length(), flanneld::SUBNET, "another subnet than flanneld's");
    check_traffic(&a, &b);
    check_traffic(&b, &a);
    said(
        "the lines of docs/install.md replace flanneld on the other, whose containers and their connections go on",
    );
    let web = Server::http(&b.ns, 8080);
    service::install(worker.host(), &b);
    let host = &worker.host().ns;
    let seen = traffic::fetch(host, service::SERVICE, 80, PATIENCE).expect("the service to answer");
    said(&format!("a service address answers on the host, which is seen as {seen}"));
    drop(web);

    replace::heading();
    replace::all(&worker, &a, &b, next);
    failure::without_systemd(&worker, &a, &b);
    failure::stuck_worker(&worker, &a, &b);
    failure::no_subnet(&worker);
    let next = format!("/root/{}", next.file_name().expect("a package's file").to_string_lossy());
    let a = docker::keeps_what_the_site_says(&worker, &next, a);
    let a = failure::other_subnet(&worker, &etcd, a);
    check_traffic(&a, &b);

    image::run(&worker, image, || {
        check_traffic(&a, &b);
        check_traffic(&b, &a);
    });
    said("a container of the image forwards as the service does");

    let subnets = [worker.env(), master.env()];
    drop((a, b));
    etcd.kill();
    // One of them has nothing to start from.
    worker.reboot(Off::InOrder, |root| {
        std::fs::remove_dir_all(root.join("var/lib/overlayd")).expect("remove what it has saved");
    });
    master.reboot(Off::AtOnce, |_| {});
    master.await_active("docker");
    assert!(entered(&master, "overlayd") <= entered(&master, "docker"), "docker was first");
    assert_eq!(master.env(), subnets[1], "another subnet than it had saved");
    await_until(PATIENCE, "overlayd to wait for etcd", || {
        worker.state("overlayd") == "activating"
            && worker.ok("journalctl -b --no-pager -u overlayd").contains("does not serve us")
    });
    assert_ne!(worker.state("docker"), "active", "docker has started without a subnet");
    said(
        "both hosts boot again without etcd: one, after a loss of power, as it was before; on the other, which has \
         nothing saved, overlayd waits for etcd, and docker for overlayd",
    );
    etcd.run();
    for (machine, subnet) in [&worker, &master].into_iter().zip(&subnets) {
        machine.await_active("docker");
        assert!(entered(machine, "overlayd") <= entered(machine, "docker"), "docker was first");
        assert_eq!(machine.env(), *subnet, "another subnet after booting");
    }
    let (a, b) = (worker.pod("pod"), master.pod("pod"));
    check_traffic(&a, &b);
    check_traffic(&b, &a);
    said(
        "etcd is there again: overlayd first, then docker, both with the subnets of before, and the containers",
    );

    flanneld::unit_runs_overlayd(&worker);
    check_traffic(&a, &b);
    said("the unit of a flannel package runs overlayd as it is");
    master.ok(installation.back);
    flanneld.goes_on(&etcd);
    check_traffic(&a, &b);
    said("the lines of docs/install.md give the node back to flanneld");
    worker
        .ok("systemctl stop flanneld && rm /etc/systemd/system/flanneld.service && systemctl daemon-reload");
    confined::check_exceptions(&worker);
}

/// Gives the site the addresses and the interface that docs/install.md speaks of.
fn prepare(site: &Site, hosts: [&Host; 2]) {
    site.router.ip(&format!("address add {ETCD}/32 dev lo"));
    for host in hosts {
        let [a, b, c, _] = host.public_ip.octets();
        host.ns.ip(&format!(
            "link set eth0 down\nlink set eth0 name {INTERFACE}\nlink set {INTERFACE} up\n\
             route add default via {a}.{b}.{c}.1\n\
             route add {ETCD}/32 via {a}.{b}.{c}.1"
        ));
    }
}

fn container(machine: &Machine<'_>) -> Pod {
    machine.ok("tar -C /var/lib/image -c . | docker import - base");
    machine.container("pod")
}

/// When a unit became active, in microseconds since the start of the machine.
fn entered(machine: &Machine<'_>, unit: &str) -> u64 {
    machine.property(unit, "ActiveEnterTimestampMonotonic").parse().expect("microseconds")
}

/// From one container to another.
fn check_traffic(from: &Pod, to: &Pod) {
    traffic::ping(&from.ns, to.address);
    traffic::transfer(&from.ns, &to.ns, to.address, 20);
    let _echo = Server::udp_echo(&to.ns, 7);
    traffic::echo(&from.ns, to.address, 7, 8000);
    let _dns = Server::dns(&to.ns, service::SERVICE);
    assert_eq!(traffic::resolve(&from.ns, to.address, "web.default"), Some(service::SERVICE));
    let _web = Server::http(&to.ns, 8081);
    assert_eq!(
        traffic::fetch(&from.ns, to.address, 8081, PATIENCE),
        Ok(from.address.to_string()),
        "the server sees the container's own address"
    );
}

fn said(what: &str) {
    println!("ok  {what}");
}

/// Where etcd is, under which prefix, and the interface to the other nodes, as in docs/install.md.
const ETCD: &str = "172.17.8.101";
const PREFIX: &str = "/kube-centos/network";
const INTERFACE: &str = "eth2";
/// More than any of it takes on a machine with two cores.
const PATIENCE: Duration = integration::machine::PATIENCE;
