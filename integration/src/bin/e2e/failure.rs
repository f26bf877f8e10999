//! What an operator sees when something is wrong, and that it is put right.

use std::time::Instant;

use integration::machine::Machine;
use integration::steady::Paced;
use integration::{Etcd, Pod, await_until, frozen, traffic};

use crate::{PATIENCE, PREFIX, said};

/// Without anybody to keep its descriptors, connections live on the device that stays.
pub fn without_systemd(machine: &Machine<'_>, a: &Pod, b: &Pod) {
    let stream = Paced::start(&b.ns, &a.ns, a.address, 1000);
    let took = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| traffic::transfer(&a.ns, &b.ns, b.address, 1000));
        stream.await_more(100);
        machine.ok("systemctl stop overlayd");
        let took = ["first", "second"].map(|name| {
            let start = Instant::now();
            let mut process = machine.spawn(name, BY_HAND);
            stream.await_more(1);
            let took = start.elapsed();
            stream.await_more(500);
            machine.ok("kill $(pidof overlayd)");
            process.wait(PATIENCE);
            took
        });
        machine.ok("systemctl start overlayd");
        transfer.join().expect("the TCP connection outlives it");
        took
    });
    stream.stop();
    let [first, second] = took.map(|took| took.as_millis());
    // Whatever else this machine has to do.
    assert!(first.min(second) < 300, "{first} and {second} ms from start to forwarding");
    said(&format!("without systemd it forwards {first} and {second} ms after its start, and TCP lives"));
}

/// A worker that stands still is noticed by the watchdog.
pub fn stuck_worker(machine: &Machine<'_>, a: &Pod, b: &Pod) {
    machine.write("/run/systemd/system/overlayd.service.d/watchdog.conf", "[Service]\nWatchdogSec=3\n");
    machine.ok("systemctl daemon-reload && systemctl restart overlayd");
    let process = machine.property("overlayd", "MainPID");
    let threads = format!("/proc/{process}/task");
    let names = machine.ok(&format!("cd {threads} && grep . */comm"));
    let worker = names.lines().find_map(|line| {
        let (thread, name) = line.split_once("/comm:")?;
        name.starts_with("egress").then(|| thread.to_owned())
    });
    let worker = worker.unwrap_or_else(|| panic!("no worker among the threads:\n{names}"));
    let frozen = frozen::Thread::stop(machine.init(), &worker);
    let start = Instant::now();
    await_until(PATIENCE, "another process in the place of the stuck one", || {
        let now = machine.property("overlayd", "MainPID");
        now != "0" && now != process
    });
    let noticed = start.elapsed();
    drop(frozen);
    machine.await_active("overlayd");
    let log = machine.journal("overlayd");
    assert!(log.contains("workers are stuck") && log.contains("watchdog"), "{log}");
    traffic::ping(&a.ns, b.address);
    machine.ok("rm -r /run/systemd/system/overlayd.service.d && systemctl daemon-reload");
    machine.ok("systemctl restart overlayd");
    said(&format!(
        "a stuck worker is noticed and the daemon replaced within {} s of a watchdog of 3",
        noticed.as_secs()
    ));
}

/// While overlayd cannot start, docker says what it waits for; when it can, docker starts by itself.
pub fn no_subnet(machine: &Machine<'_>) {
    machine.ok("systemctl stop docker docker.socket overlayd && rm -r /run/flannel/*");
    machine.write(
        "/run/systemd/system/overlayd.service.d/wrong.conf",
        "[Service]\nEnvironment=FLANNELD_QUEUES=none\n",
    );
    machine.ok("systemctl daemon-reload");
    let _ = machine.run("systemctl start docker");
    let said_by_docker = || machine.journal("docker").contains("docker has no subnet yet: overlayd has not");
    await_until(PATIENCE, "docker to say what it misses", said_by_docker);
    assert_ne!(machine.state("docker"), "active");
    let log = machine.journal("overlayd");
    assert!(log.contains("FLANNELD_QUEUES"), "overlayd does not say what is wrong: {log}");
    machine.ok("rm -r /run/systemd/system/overlayd.service.d && systemctl daemon-reload");
    await_until(PATIENCE, "docker to come up by itself", || machine.state("docker") == "active");
    machine.ok("systemctl start docker.socket");
    said("while overlayd fails, docker says what it waits for, and starts when there is a subnet");
}

/// Somebody else has the subnet meanwhile: docker is told about, and gets the new one when it is restarted.
pub fn other_subnet(machine: &Machine<'_>, etcd: &Etcd, pod: Pod) -> Pod {
    let before = machine.env();
    machine.ok("systemctl stop overlayd");
    let key = format!("{PREFIX}/subnets/{}", before.key());
    etcd.put(
        &key,
        r#"{"PublicIP":"192.168.9.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:09:09"}}"#,
    );
    machine.ok("systemctl start overlayd");
    await_until(PATIENCE, "another subnet, since this one is another's", || {
        machine.env().subnet != before.subnet
    });
    let now = machine.env();
    let problem = format!(
        "docker0 still has {}, but this node's subnet is {} now",
        before.subnet,
        now.base_with_length()
    );
    await_until(PATIENCE, "the status to tell of docker's bridge", || {
        machine.ok("overlayctl status").contains(&problem)
    });
    drop(pod);
    machine.ok("systemctl restart docker");
    let pod = machine.pod("pod");
    assert!(machine.ok("ip -o address show docker0").contains(&now.subnet), "docker0 is where it was");
    await_until(PATIENCE, "the status to be content", || {
        !machine.ok("overlayctl status").contains("PROBLEM")
    });
    etcd.delete(&key);
    said("when the subnet has changed, the status says so of docker0; a restart of docker is all it takes");
    pod
}

/// How one starts it who has no service manager.
const BY_HAND: &str = "env $(grep -h '^FLANNEL_ETCD' /etc/sysconfig/flanneld | tr -d '\"') /usr/libexec/overlayd/flanneld-start -iface=eth2";
