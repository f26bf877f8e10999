//! What the daemon is told by flags, environment and configuration, and how it refuses what it cannot take.

use std::io::Read;
use std::process::Stdio;

use integration::overlayd::program;
use integration::{Backend, SOON, Site, Store, await_until, traffic};

#[test]
fn an_unknown_flag_is_named() {
    let (_site, worker, _master) = Site::two_hosts();
    let log = worker.bare_overlayd().flag("-ifaces=eth0").refused();
    assert!(log.contains("ifaces"), "{log}");
}

#[test]
fn a_bad_value_is_named_with_its_flag_and_what_is_allowed() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    for (flag, parts) in [
        ("--source-check=sometimes", &["source-check", "sometimes", "strict", "loose", "off"][..]),
        ("-subnet-lease-renew-margin=2000", &["subnet-lease-renew-margin", "2000", "1439"]),
        ("--ip-masq=perhaps", &["ip-masq", "perhaps", "true", "false"]),
        ("--public-ip=192.168.1", &["public-ip", "192.168.1"]),
        ("--queues=none", &["queues", "none"]),
        ("--store=ftp:/srv", &["store", "ftp:/srv", "dir:"]),
    ] {
        let launch = match flag.starts_with("--store") {
            true => worker.bare_overlayd(),
            false => worker.overlayd(&store),
        };
        let log = launch.flag(flag).refused();
        assert!(parts.iter().all(|part| log.contains(part)), "{flag}: not all of {parts:?} in {log}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let log = worker.bare_overlayd().flag(&store.flags()[0]).flag("-iface=eth7").refused();
    assert!(log.contains("eth7"), "{log}");
}

#[test]
fn a_bad_configuration_is_refused_at_the_start() {
    let (site, worker, _master) = Site::two_hosts();
    for (number, (config, parts)) in [
        (r#"{"Network":"10.1.0.0/16","SubnetLen":99}"#, &["SubnetLen", "99", "30"][..]),
        (r#"{"Network":"10.1.0.0"}"#, &["Network", "10.1.0.0"]),
        (r#"{"Network":"10.1.0.0/29"}"#, &["Network", "10.1.0.0/29", "28"]),
        (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"pigeon"}}"#, &["Type", "pigeon", "udp", "vxlan"]),
        (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":70000}}"#, &["Port", "70000"]),
        (r#"{"Network":"10.1.0.0/16","EnableIPv4":false}"#, &["EnableIPv4", "true"]),
        (r#"{"Network":"10.1.0.0/16","EnableIPv6":true}"#, &["EnableIPv6", "not supported"]),
        (r#"{"Network""#, &["config"]),
    ]
    .into_iter()
    .enumerate()
    {
        let store = Store::dir_with(&site, &format!("store{number}"), config);
        let log = worker.overlayd(&store).refused();
        assert!(parts.iter().all(|part| log.contains(part)), "{config}: not all of {parts:?} in {log}");
    }
}

#[test]
fn a_configuration_that_turns_bad_changes_nothing() {
    let (site, worker, master) = Site::two_hosts();
    for store in [Store::etcd(&site, Backend::Udp), Store::dir(&site, Backend::Udp)] {
        let (mut w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
        w.await_peers(&[&m.env().base_with_length()]);
        store.put_config(r#"{"Network":"10.1.0.0/16","SubnetLen":99}"#);
        await_until(SOON, "a word about it", || w.log().contains("SubnetLen") && w.log().contains("99"));
        traffic::ping(&worker.ns, m.env().base());
        assert!(w.process().exited().is_none());
        w.stop();
        m.stop();
    }
}

#[test]
fn a_configuration_that_is_not_there_yet_is_awaited() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir_with(&site, "late", "{}");
    let Store::Dir(path) = &store else { unreachable!("made as a directory") };
    std::fs::remove_file(path.join("config")).unwrap();
    let mut w = worker.overlayd(&store).spawn();
    await_until(SOON, "a word about it", || w.log().contains("config"));
    assert!(w.process().exited().is_none());
    store.put_config(&Backend::Udp.config());
    w.wait_ready(SOON);
}

#[test]
fn the_environment_counts_and_the_command_line_wins() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let (name, value) = store.flags()[0].split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap();
    assert_eq!(name, "--store");
    let w = worker
        .bare_overlayd()
        .env("FLANNELD_STORE", &value)
        .env("FLANNELD_IP_MASQ", "true")
        .env("FLANNELD_SOURCE_CHECK", "loose")
        .env("FLANNELD_IFACE", "eth7")
        .flag("-iface")
        .flag("eth0")
        .start();
    assert!(w.env().ip_masq);
    assert_eq!(w.status().0["source_check"], "loose");
}

#[test]
fn flags_are_taken_with_one_dash_or_two_and_with_or_without_an_equals_sign() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let launch = worker.bare_overlayd().flag(&store.flags()[0]);
    let launch = launch.flag("-iface=192.168.1.12").flag("--public-ip").flag("192.168.1.99");
    let w = launch.flag("-ip-masq").flag("-v").flag("2").start();
    assert!(w.env().ip_masq);
    assert_eq!(w.status().0["lease"]["public_ip"], "192.168.1.99");
}

#[test]
fn flags_of_flannels_log_change_nothing_and_those_of_kubernetes_are_refused() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let launch = worker.overlayd(&store).flag("-v=1").flag("-logtostderr").flag("-vmodule").flag("udp=9");
    let launch = launch.flag("-kube-subnet-mgr=false").env("FLANNELD_LOG_DIR", "/var/log");
    let w = launch.start();
    let told: Vec<_> = w.log().lines().filter(|line| line.contains("no effect")).map(str::to_owned).collect();
    let [line] = told.as_slice() else { panic!("told once: {told:?}") };
    assert!(line.contains("DEBUG") && line.contains("logtostderr, vmodule, log_dir"), "{line}");
    w.stop();

    let log = worker.overlayd(&store).flag("-kube-subnet-mgr").refused();
    assert!(log.contains("--kube-subnet-mgr is not supported"), "{log}");
    let log = worker.overlayd(&store).env("FLANNELD_PUBLIC_IPV6", "fd00::1").refused();
    assert!(log.contains("FLANNELD_PUBLIC_IPV6") && log.contains("IPv4 only"), "{log}");
}

#[test]
fn the_first_interface_with_a_default_route_is_the_default() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let w = worker.bare_overlayd().flag(&store.flags()[0]).start();
    assert_eq!(w.status().0["lease"]["public_ip"], "192.168.1.12");
}

#[test]
fn nobody_reading_is_no_reason_to_end() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let mut command = worker.ns.command(&program("overlayd").display().to_string());
    command.arg(format!("--subnet-file={}", worker.directory().join("subnet.env").display()));
    let mut daemon = command.args(store.flags()).stderr(Stdio::piped()).spawn().unwrap();
    // The first word is read, then the reader goes.
    let mut reader = daemon.stderr.take().unwrap();
    reader.read_exact(&mut [0]).unwrap();
    drop(reader);
    await_until(SOON, "the lease", || store.leases().len() == 1);
    store.put_config("a change that is worth a word");
    store.put_lease("10.1.177.0-24", r#"{"PublicIP":"192.168.50.8"}"#);
    await_until(SOON, "the peer", || {
        assert_eq!(daemon.try_wait().unwrap(), None, "the daemon ended");
        let overlayctl = program("overlayctl");
        let status = worker.ns.run(&format!("{} status", overlayctl.display())).stdout;
        String::from_utf8_lossy(&status).contains("10.1.177.0/24")
    });
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let mut help = std::process::Command::new(program("overlayd"));
    let mut help = help.arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(help.stdout.take());
    let output = help.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
