//! Whole hosts: two booted by systemd, each with docker and the Debian package of overlayd, behind a
//! router with etcd. Says what was checked, and for each way to replace the daemon how long nothing
//! arrived and what was lost. `overlay-e2e ROOT PACKAGE`; needs root. Leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use integration::datagrams::Order;
use integration::machine::Machine;
use integration::steady::Paced;
use integration::traffic::{self, Server};
use integration::{Backend, Etcd, Pod, Site, SubnetEnv, await_until, guard, service};

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [root, package] = arguments.as_slice() else {
        eprintln!("usage: overlay-e2e ROOT PACKAGE");
        return ExitCode::FAILURE;
    };
    if let Err(error) = guard::clean_up_whatever_happens("overlay-e2e") {
        eprintln!("overlay-e2e: cannot watch for signals: {error}");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    run(root, package);
    println!("all is as it should be, in {} s", start.elapsed().as_secs());
    ExitCode::SUCCESS
}

fn run(base: &Path, package: &Path) {
    let (site, worker, master) = Site::two_hosts();
    let etcd_url = format!("http://{}:2379", site.router_address());
    let machines = [&worker, &master]
        .map(|host| Machine::boot(host, base, |root| install_files(root, package, &etcd_url)));
    said("two hosts are booted by systemd, without etcd");
    for machine in &machines {
        machine.ok("dpkg -i /var/cache/overlayd.deb");
        machine.ok("systemctl --quiet enable docker.socket docker");
        machine.ok("systemctl --no-block start overlayd docker");
        await_until(PATIENCE, "overlayd to wait for etcd", || machine.state("overlayd") == "activating");
        assert_ne!(machine.state("docker"), "active", "docker has started without a subnet");
    }
    said("the package is installed; overlayd waits for etcd, and docker for overlayd");

    let etcd = Etcd::start(&site);
    etcd.put("/kube-centos/network/config", &Backend::Vxlan.config());
    for machine in &machines {
        machine.await_active("docker", PATIENCE);
        let entered = |unit| -> u64 {
            machine.property(unit, "ActiveEnterTimestampMonotonic").parse().expect("microseconds")
        };
        assert!(entered("overlayd") <= entered("docker"), "docker was first");
        let env = subnet_file(machine);
        let bridge = machine.ok("ip -o address show docker0");
        assert!(bridge.contains(&env.subnet), "{bridge}");
        machine.ok("tar -C /var/lib/image -c . | docker import - base");
    }
    said("etcd is there: overlayd first, then docker, with the bridge in the leased subnet");

    let containers = machines.each_ref().map(|machine| container(machine));
    let [a, b] = containers.each_ref();
    check_traffic(a, b);
    check_traffic(b, a);
    said("containers reach each other by TCP, UDP, ping and DNS, with their own addresses");
    let web = Server::http(&b.ns, 8080);
    service::install(&worker, b);
    let seen = traffic::fetch(&worker.ns, service::SERVICE, 80, PATIENCE).expect("the service to answer");
    said(&format!("a service address answers on the host, which is seen as {seen}"));
    drop(web);

    println!("{:<34}{:>12}{:>10}{:>10}", "while datagrams and TCP flow", "longest gap", "sent", "lost");
    let [machine, _] = machines.each_ref();
    replace("systemctl restart", machine, a, b, "systemctl restart overlayd");
    replace("systemctl reload", machine, a, b, "systemctl reload overlayd");
    replace("kill -9", machine, a, b, "kill -9 $(systemctl show --value -p MainPID overlayd)");
    replace("upgrade of the package", machine, a, b, "dpkg -i /var/cache/overlayd.deb");

    let before = subnet_file(machine);
    machine.ok("systemctl disable --now overlayd");
    fs::write(machine.file("/etc/systemd/system/flanneld.service"), FLANNELS_UNIT).expect("write a unit");
    machine.ok("ln -s /usr/libexec/overlayd/flanneld-start /usr/bin/flanneld-start");
    machine.ok("rm /run/flannel/docker");
    machine.ok("systemctl daemon-reload && systemctl start flanneld");
    assert_eq!(subnet_file(machine), before, "another subnet under flannel's unit");
    let options = machine.ok("cat /run/flannel/docker");
    let wanted =
        format!("DOCKER_NETWORK_OPTIONS=\" --bip={} --ip-masq=true --mtu={}\"", before.subnet, before.mtu);
    assert!(options.lines().any(|line| line == wanted), "{options}");
    check_traffic(a, b);
    said("the unit of a flannel package runs overlayd as it is");
}

/// As CentOS 7 packages it.
const FLANNELS_UNIT: &str = "\
[Unit]
Description=Flanneld overlay address etcd agent
After=network.target
After=network-online.target
Wants=network-online.target
After=etcd.service
Before=docker.service

[Service]
Type=notify
EnvironmentFile=/etc/sysconfig/flanneld
EnvironmentFile=-/etc/sysconfig/docker-network
ExecStart=/usr/bin/flanneld-start $FLANNEL_OPTIONS
ExecStartPost=/usr/libexec/flannel/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker
Restart=on-failure

[Install]
WantedBy=multi-user.target
RequiredBy=docker.service
";

/// What an operator with flannel's files has: those of the sysconfig kind.
fn install_files(root: &Path, package: &Path, etcd_url: &str) {
    let write = |path: &str, text: String| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("make a directory");
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    };
    write(
        "etc/sysconfig/flanneld",
        format!(
            "FLANNEL_ETCD_ENDPOINTS=\"{etcd_url}\"\nFLANNEL_ETCD_PREFIX=\"/kube-centos/network\"\nFLANNEL_OPTIONS=\"-iface=eth0\"\n"
        ),
    );
    write("etc/sysconfig/docker-network", "DOCKER_NETWORK_OPTIONS=\n".into());
    fs::copy(package, root.join("var/cache/overlayd.deb")).expect("copy the package");
}

fn container(machine: &Machine<'_>) -> Pod {
    let ns = machine.container("pod");
    let listed = ns.ok("ip -o -4 address show eth0");
    let address = listed.split("inet ").nth(1).and_then(|rest| rest.split('/').next()?.parse().ok());
    Pod { address: address.unwrap_or_else(|| panic!("no address in {listed}")), ns }
}

fn subnet_file(machine: &Machine<'_>) -> SubnetEnv {
    SubnetEnv::read(&machine.file("/run/flannel/subnet.env"))
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

/// Runs `action` on `machine` while numbered datagrams and a TCP transfer flow through it both ways.
fn replace(what: &str, machine: &Machine<'_>, a: &Pod, b: &Pod, action: &str) {
    let restarts = || machine.property("overlayd", "ExecMainPID");
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| traffic::transfer(&a.ns, &b.ns, b.address, 1000));
        let streams =
            [Paced::start(&a.ns, &b.ns, b.address, RATE), Paced::start(&b.ns, &a.ns, a.address, RATE)];
        streams.iter().for_each(|stream| stream.await_more(u64::from(RATE)));
        let before = restarts();
        machine.ok(action);
        if what != "systemctl reload" {
            await_until(PATIENCE, "a new process", || restarts() != before);
        }
        machine.await_active("overlayd", PATIENCE);
        streams.iter().for_each(|stream| stream.await_more(u64::from(RATE)));
        transfer.join().expect("the TCP connection outlives it");
        for (direction, stream) in ["out", "in"].into_iter().zip(streams) {
            let Order { sent, received, overtaken, longest_gap, .. } = stream.stop();
            let lost = sent - received;
            println!(
                "{:<34}{:>9.0} ms{sent:>10}{lost:>10}",
                format!("  {what}, {direction}"),
                longest_gap.as_secs_f64() * 1e3
            );
            assert_eq!(overtaken, 0, "datagrams were reordered");
            assert_eq!(lost, 0, "datagrams were lost");
        }
    });
}

fn said(what: &str) {
    println!("ok  {what}");
}

/// Datagrams a second in each direction.
const RATE: u32 = 10_000;
/// More than any of it takes on a machine with two cores.
const PATIENCE: Duration = Duration::from_secs(60);
