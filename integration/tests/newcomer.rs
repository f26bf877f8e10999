//! What a new user meets: each mistake is told with its cause and what to do about it. And what the log looks
//! like to people, to programs and to the journal.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use integration::netns::output;
use integration::overlayd::program;
use integration::process::Process;
use integration::{Backend, Host, SOON, Site, Store, await_until};

#[track_caller]
fn says(log: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| log.contains(part)), "not all of {parts:?} in\n{log}");
}

#[test]
fn no_etcd_is_told_with_where_it_was_looked_for() {
    let (_site, worker, _master) = Site::two_hosts();
    let w = worker.bare_overlayd().flag("--iface=eth0").spawn();
    await_until(SOON, "a word about it", || w.log().contains("does not serve us"));
    says(
        &w.log(),
        &["http://127.0.0.1:2379", "refused", "is etcd running", "--etcd-endpoints", "nothing is forwarded"],
    );
}

#[test]
fn no_configuration_is_told_with_the_command_that_makes_one() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let endpoint = store.flags()[0].split_once('=').unwrap().1.to_owned();
    let w = worker.overlayd(&store).flag("--etcd-prefix=/nobody").spawn();
    await_until(SOON, "a word about it", || w.log().contains("waiting for the network configuration"));
    let command = format!(
        r#"etcdctl --endpoints={endpoint} put /nobody/config '{{"Network":"10.1.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#
    );
    says(&w.log(), &[&command]);

    // The command given for a directory does what it says.
    let directory = site.directory("empty");
    let flag = format!("--store=dir:{}", directory.display());
    let mut d = worker.bare_overlayd().named("dir").flag("--iface=eth0").flag(&flag).spawn();
    await_until(SOON, "a word about it", || d.log().contains("waiting for the network configuration"));
    let log = d.log();
    let command = log.lines().find_map(|line| line.split_once("remedy=")).expect("a remedy").1;
    let command = command.rsplit_once(" store=").map_or(command, |(command, _)| command);
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    d.wait_ready(SOON);
}

#[test]
fn a_wrong_interface_is_told_with_those_there_are() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let log = worker.bare_overlayd().flag(&store.flags()[0]).flag("-iface=eth7").refused();
    says(&log, &["eth7", "eth0 (192.168.1.12)", "--iface"]);
    worker.ns.ip("route del default");
    says(&worker.bare_overlayd().flag(&store.flags()[0]).refused(), &["no IPv4 default route", "--iface"]);
}

#[test]
fn a_user_who_may_not_is_told_so() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    // Where everybody can run it, with a store that everybody can write.
    let directory =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o777)).tempdir().unwrap();
    let overlayd = directory.path().join("overlayd");
    fs::copy(program("overlayd"), &overlayd).unwrap();
    let open = directory.path().join("store");
    fs::create_dir_all(open.join("subnets")).unwrap();
    fs::write(open.join("config"), Backend::Vxlan.config()).unwrap();
    for path in [&open, &open.join("subnets")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut command = worker.ns.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&overlayd);
    command.arg(format!("--store=dir:{}", open.display()));
    let ended = output(command.arg(format!("--subnet-file={}", directory.path().join("env").display())));
    assert_eq!(ended.status.code(), Some(1));
    says(&String::from_utf8_lossy(&ended.stderr), &["flannel.1", "ermission", "CAP_NET_ADMIN", "root"]);
    drop(store);
}

#[test]
fn a_port_that_is_taken_is_told_with_how_to_find_its_owner() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let _taken = worker.ns.within(|| UdpSocket::bind(("0.0.0.0", 8472))).unwrap();
    says(&worker.overlayd(&store).refused(), &["192.168.1.12:8472", "in use", "ss -ulnp"]);
    let log = worker.overlayd(&store).flag("--http=192.168.9.9:8080").refused();
    says(&log, &["status page", "192.168.9.9:8080", "no interface", "--http"]);
}

#[test]
fn a_missing_tun_device_is_told_with_what_brings_it() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let empty = site.directory("empty");
    let start = |worker: &Host| {
        let script = format!(
            "mount --bind {} /dev/net && exec {} --iface=eth0 {} --subnet-file={}",
            empty.display(),
            program("overlayd").display(),
            store.flags()[0],
            worker.directory().join("env").display()
        );
        let mut command = worker.ns.command("unshare");
        let ended = output(command.args(["-m", "sh", "-c", &script]));
        assert_eq!(ended.status.code(), Some(1));
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    says(&start(&worker), &["/dev/net/tun is missing", "kernel module 'tun'"]);
    fs::write(empty.join("tun"), "").unwrap();
    says(&start(&worker), &["flannel.1", "/dev/net/tun", "kernel module 'tun'"]);
}

#[test]
fn a_store_that_is_no_directory_is_told() {
    let (site, worker, _master) = Site::two_hosts();
    let file = site.directory("file").join("config");
    fs::write(&file, "{}").unwrap();
    let log =
        worker.bare_overlayd().flag("-iface=eth0").flag(&format!("--store=dir:{}", file.display())).refused();
    says(&log, &[&file.display().to_string(), "directory", "--store=dir:PATH"]);
}

#[test]
fn json_is_an_object_a_line_with_the_fields_beside_the_message() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).flag("--log-format=json").start();
    let lines: Vec<serde_json::Value> = w
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let forwarding = lines.iter().find(|line| line["message"] == "forwarding").expect("the event");
    assert_eq!((&forwarding["level"], &forwarding["device"]), (&"INFO".into(), &"flannel0".into()));
    assert!(forwarding["timestamp"].is_string());
}

#[test]
fn the_journal_gets_priorities_and_people_do_not() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    store.put_lease("not-a-subnet", "{}");
    let w = worker.overlayd(&store).flag("--log-format=journald").start();
    let log = w.log();
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    says(&log, &["<6> INFO forwarding"]);
    w.stop();
    let w = worker.overlayd(&store).named("people").start();
    let log = w.log();
    assert!(!log.contains('<') && !log.contains('\u{1b}') && log.contains("Z  INFO forwarding"), "{log}");
    w.stop();

    // What systemd sets, for the stream that it is true of and for one that it is not.
    let file = worker.directory().join("journal");
    let refuse = |stream: &str| {
        let log = fs::File::create(&file).unwrap();
        let mut command = Command::new(program("overlayd"));
        command.arg("-ifaces=eth0").env("JOURNAL_STREAM", stream).stderr(Stdio::from(log));
        assert_eq!(command.status().unwrap().code(), Some(1));
        fs::read_to_string(&file).unwrap()
    };
    fs::write(&file, "").unwrap();
    let meta = fs::metadata(Path::new(&file)).unwrap();
    let own = format!("{}:{}", meta.dev(), meta.ino());
    assert_eq!(
        refuse(&own),
        "<3>overlayd: there is no flag --ifaces (is --iface meant?): see overlayd --help\n"
    );
    assert_eq!(
        refuse("8:1"),
        "overlayd: there is no flag --ifaces (is --iface meant?): see overlayd --help\n"
    );
}

#[test]
fn overlayctl_tells_the_last_events() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let overlayctl = program("overlayctl");
    let events = |flags: &str| worker.ns.ok(&format!("{} events {flags}", overlayctl.display()));
    assert!(
        events("").lines().any(|line| line.contains("INFO forwarding") && line.contains("device=flannel0"))
    );
    // None of the first hundred, among which the daemon has chosen.
    store.put_lease("10.1.177.0-24", "\u{1b}[2J<b>garbage</b>");
    await_until(SOON, "the event", || events("").contains("WARN a lease key cannot be read"));
    assert!(!events("").contains('\u{1b}'));
    let list: serde_json::Value = serde_json::from_str(&events("--json")).unwrap();
    let mut all = list["events"].as_array().unwrap().iter();
    let event = all.find(|event| event["fields"]["key"] == "10.1.177.0-24").expect("the event");
    assert_eq!(event["level"], "warn");
    w.stop();
}

#[test]
fn events_are_followed_from_one_daemon_to_the_next() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let mut command = worker.ns.command(&program("overlayctl").display().to_string());
    command.args(["events", "--follow"]);
    let follower = Process::spawn("events", command, worker.directory());
    let forwarding = || follower.log().matches("INFO forwarding backend=").count();
    await_until(SOON, "the events so far", || forwarding() == 1);
    w.stop();
    let w = worker.overlayd(&store).start();
    await_until(SOON, "those of the next daemon", || forwarding() == 2);
    w.stop();
}
