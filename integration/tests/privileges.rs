//! What the daemon may do: the capabilities that it needs, and no way to get more, as root or as a user of its own;
//! its data plane none, and no system call that it has no use for; its control socket, who is meant to.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Output;
use std::time::Duration;

use integration::certificates::Authority;
use integration::datagrams::Order;
use integration::etcd::{Ask, Etcd, write_certificates};
use integration::overlayd::{await_mesh, program, setpriv};
use integration::pair::Pair;
use integration::steady::Paced;
use integration::{Backend, Host, Overlayd, Site, Store, await_until, traffic};

/// NET_BIND_SERVICE, NET_ADMIN, NET_RAW, IPC_LOCK, SYS_NICE and BPF (`linux/capability.h`).
const KEPT: u64 = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14 | SYS_NICE | 1 << 39;
const SYS_NICE: u64 = 1 << 23;
/// DAC_READ_SEARCH.
const IN_RESERVE: u64 = 1 << 2;
const NET_ADMIN_AND_RAW: u64 = 1 << 12 | 1 << 13;
const BPF: u64 = 1 << 39;
const DAC_READ_SEARCH: u64 = 1 << 2;
/// Nobody's number on any host.
const USER: u32 = 64_242;
const GROUP: u32 = 64_343;
const LIMIT: Duration = Duration::from_secs(10);
/// Datagrams a second of each stream.
const PER_SECOND: u32 = 500;
const SOME: u64 = 300;

#[test]
fn a_daemon_that_root_starts_gives_up_what_it_does_not_need() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let (workers, others) = threads(&pair.left);
    for (name, expected) in [("CapPrm", KEPT | IN_RESERVE), ("CapEff", KEPT), ("CapBnd", KEPT | IN_RESERVE)] {
        assert_eq!(values(&others, name, 16), BTreeSet::from([expected]), "{name}");
    }
    for threads in [&workers, &others] {
        assert_eq!(values(threads, "CapInh", 16), BTreeSet::from([0]));
        assert_eq!(values(threads, "CapAmb", 16), BTreeSet::from([0]));
        assert_eq!(values(threads, "NoNewPrivs", 10), BTreeSet::from([1]));
    }
    for name in ["CapPrm", "CapEff"] {
        assert_eq!(values(&workers, name, 16), BTreeSet::from([0]), "{name} of the data plane");
        let warden: Vec<_> = statuses(&pair.left).filter(|text| is_warden(text)).collect();
        assert_eq!(values(&warden, name, 16), BTreeSet::from([SYS_NICE]), "{name} of who gives real time");
    }
    traffic::ping(&pair.a.ns, pair.b.address);
}

#[test]
fn switches_keep_capabilities_and_system_calls() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let daemon = worker.overlayd(&store).flag("--drop-privileges=false").start();
    let (workers, others) = threads(&daemon);
    for set in values(&workers, "CapPrm", 16).union(&values(&others, "CapPrm", 16)) {
        assert_ne!(set & !(KEPT | IN_RESERVE), 0, "all that root has");
    }
    let filters = |threads: &[String]| values(threads, "Seccomp_filters", 10);
    let outside = filters(&others);
    assert_eq!(outside.len(), 1, "{outside:?}");
    let more: BTreeSet<u64> = outside.iter().map(|count| count + 1).collect();
    assert_eq!(filters(&workers), more, "the data plane has a filter of its own");
    daemon.stop();
    let daemon = worker.overlayd(&store).flag("--seccomp=off").start();
    let (workers, others) = threads(&daemon);
    assert_eq!(filters(&workers), filters(&others));
}

#[test]
fn as_a_user_of_its_own_it_does_what_it_does_as_root() {
    for firewall in ["--firewall=nftables", "--firewall=iptables"] {
        let (site, worker, master) = Site::two_hosts();
        // Both of docker's ways to drop what is forwarded, of which the older one is root's to look at.
        for program in ["iptables-nft", "iptables-legacy"] {
            worker.ns.ok(&format!("{program} -P FORWARD DROP"));
        }
        let store = Store::etcd(&site, Backend::Vxlan);
        let left = worker.overlayd(&store).flag(firewall).as_user(USER).start();
        let right = master.overlayd(&store).start();
        await_mesh(&[&left, &right]);
        let (a, b) = (worker.bridge_and_pod(&left.env()), master.bridge_and_pod(&right.env()));
        traffic::ping(&a.ns, b.address);
        traffic::transfer(&b.ns, &a.ns, a.address, 8);

        let (workers, others) = threads(&left);
        for name in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(values(&workers, name, 16), BTreeSet::from([0]), "{name} of the data plane");
        }
        assert_eq!(values(&others, "CapEff", 16), BTreeSet::from([NET_ADMIN_AND_RAW | BPF | SYS_NICE]));
        assert_eq!(
            values(&others, "CapPrm", 16),
            BTreeSet::from([NET_ADMIN_AND_RAW | BPF | DAC_READ_SEARCH | SYS_NICE])
        );
        let uids: BTreeSet<String> =
            workers.iter().chain(&others).map(|text| field(text, "Uid").to_owned()).collect();
        assert_eq!(uids, BTreeSet::from([[USER; 4].map(|uid| uid.to_string()).join("\t")]));

        // What it runs may do what it may, and so may it itself.
        worker.ns.ok("nft flush ruleset");
        worker.ns.ok("iptables-legacy -F FORWARD");
        worker.ns.ok("iptables-nft -P FORWARD DROP");
        worker.ns.sysctl("net/ipv4/ip_forward", "0");
        worker.ns.ip("link del flannel.1");
        await_until(LIMIT, "all of it to be put back", || traffic::answers(&a.ns, b.address));
        left.stop();
    }
}

#[test]
fn a_user_of_its_own_goes_on_where_root_was_and_root_where_that_was() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let Pair { left, right: _right, a, b } = Pair::start([&worker, &master], &store, &[]);
    let before = left.env();
    let as_user = worker.overlayd(&store).as_user(USER).by(left.stop_for_restart()).start();
    let goes_on = |daemon: &Overlayd<'_>| {
        let log = daemon.log();
        assert!(log.contains("going on with the device and the sockets"), "{log}");
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        assert_eq!(daemon.env(), before);
        traffic::ping(&a.ns, b.address);
        traffic::ping(&b.ns, a.address);
    };
    goes_on(&as_user);
    let as_root = worker.overlayd(&store).by(as_user.stop_for_restart()).start();
    goes_on(&as_root);
}

#[test]
fn a_subnet_file_that_is_roots_alone_keeps_what_root_has_written_there() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let directory = site.directory("run");
    let file = directory.join("subnet.env");
    chown(&directory, Some(USER), None).unwrap();
    let dockers = "DOCKER_OPTS=\" --bip=10.1.9.1/24\"\n";
    fs::write(&file, dockers).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let daemon = worker.overlayd(&store).as_user(USER).subnet_file_at(file.clone()).start();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.ends_with(dockers) && text.contains("FLANNEL_SUBNET="), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    daemon.stop();
}

/// Sockets of one user only share a port: the sockets that are there do not let others join them.
#[test]
fn another_user_with_more_queues_loses_nothing() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let Pair { left, right: _right, a, b } = Pair::start([&worker, &master], &store, &["--queues=1"]);
    let streams = [
        Paced::start(&a.ns, &b.ns, b.address, PER_SECOND),
        Paced::start(&b.ns, &a.ns, a.address, PER_SECOND),
    ];
    let flows = || streams.iter().for_each(|stream| stream.await_more(SOME));
    flows();
    let next = |before: Overlayd<'_>, queues: usize, user: u32| {
        let launch = worker.overlayd(&store).as_user(user).by(before.stop_for_restart());
        let daemon = launch.flag(&format!("--queues={queues}")).start();
        daemon.await_stored(queues);
        flows();
        assert_eq!(daemon.status().all_drops("ingress"), 0);
        daemon
    };
    let as_user = next(left, 2, USER);
    let as_root = next(as_user, 4, 0);
    let log = as_root.log();
    assert!(log.contains("going on with the device and the sockets"), "{log}");
    for Order { sent, received, .. } in streams.map(Paced::stop) {
        assert_eq!(received, sent);
    }
}

#[test]
fn a_key_that_is_roots_alone_is_read_for_etcd_and_for_nobody_else() {
    let (site, worker, _master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    fs::set_permissions(files.join("client-key.pem"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&files, Permissions::from_mode(0o700)).unwrap();
    let store = Store::of(Etcd::start_secured(&site, &files, Ask::Certificate), Backend::Vxlan);
    let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", files.join(name).display());
    let launch = worker.overlayd(&store).as_user(USER);
    let launch = launch
        .flag(&file("cafile", "ca.pem"))
        .flag(&file("certfile", "client.pem"))
        .flag(&file("keyfile", "client-key.pem"));
    let daemon = launch.start();
    // What it would open for anybody else, it may not.
    await_effective(&daemon, NET_ADMIN_AND_RAW | BPF | SYS_NICE);
    daemon.stop();
}

#[test]
fn root_reads_a_key_that_is_another_users_alone() {
    let (site, worker, _master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    let key = files.join("client-key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&key, Some(USER), Some(USER)).unwrap();
    let store = Store::of(Etcd::start_secured(&site, &files, Ask::Certificate), Backend::Vxlan);
    let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", files.join(name).display());
    let daemon = worker
        .overlayd(&store)
        .flag(&file("cafile", "ca.pem"))
        .flag(&file("certfile", "client.pem"))
        .flag(&file("keyfile", "client-key.pem"))
        .start();
    await_effective(&daemon, KEPT);
}

#[test]
fn the_control_socket_answers_the_members_of_its_group() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let daemon = worker.overlayd(&store).flag(&format!("--control-socket-group={GROUP}")).start();
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    let member = ask(&worker, GROUP);
    assert!(member.status.success(), "{}", String::from_utf8_lossy(&member.stderr));
    let stranger = ask(&worker, USER);
    let said = String::from_utf8_lossy(&stranger.stderr);
    assert_eq!(stranger.status.code(), Some(1), "{said}");
    assert!(said.contains("members of its group") && said.contains("--control-socket-group"), "{said}");
    daemon.stop();
    // Without the flag it is root's.
    let daemon = worker.overlayd(&store).start();
    assert!(!ask(&worker, GROUP).status.success());
    assert!(ask(&worker, 0).status.success());
    daemon.stop();
}

/// What `overlayctl status` says to a user of this group.
fn ask(host: &Host, group: u32) -> Output {
    // Programs under test may lie where only root looks.
    let words = setpriv(USER, group, "+dac_read_search");
    host.ns.run(&format!("{} {} status", words.join(" "), program("overlayctl").display()))
}

/// The status of each thread of a process, as `/proc` has it: the workers', and the others', but for the warden's, which
/// has less than they have.
fn threads(daemon: &Overlayd<'_>) -> (Vec<String>, Vec<String>) {
    let is_worker = |text: &String| field(text, "Name").contains("gress-");
    let (workers, others): (Vec<_>, Vec<_>) =
        statuses(daemon).filter(|text| !is_warden(text)).partition(is_worker);
    assert!(workers.len() >= 2 && !others.is_empty(), "{workers:?}");
    (workers, others)
}

fn statuses(daemon: &Overlayd<'_>) -> impl Iterator<Item = String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("the process is there");
    tasks.map(|task| {
        let file = task.expect("a thread").path().join("status");
        fs::read_to_string(file).expect("a thread's status")
    })
}

fn is_warden(text: &str) -> bool {
    field(text, "Name") == "warden"
}

/// Waits until no thread but the workers has any other effective capabilities: one that reads a key just then has more.
#[track_caller]
fn await_effective(daemon: &Overlayd<'_>, expected: u64) {
    await_until(LIMIT, "the capabilities to be given up again", || {
        values(&threads(daemon).1, "CapEff", 16) == BTreeSet::from([expected])
    });
}

/// The values that a line of these statuses has, a number to this base.
fn values(threads: &[String], name: &str, base: u32) -> BTreeSet<u64> {
    threads.iter().map(|text| u64::from_str_radix(field(text, name), base).expect("a number")).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
}
