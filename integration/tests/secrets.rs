//! What the daemon knows of etcd's secrets it tells nobody: however much is logged, and whoever asks.

use std::fs;
use std::time::{Duration, Instant};

use integration::certificates::Authority;
use integration::etcd::{Ask, Etcd, write_certificates};
use integration::overlayd::program;
use integration::{Backend, Site, Store, await_until};

/// The password, in parts that no other word has.
const PASSWORD: &str = "Quizzical-Zebra-73";
const PREFIX: &str = "/coreos.com/network";

#[test]
fn no_secret_is_told_however_much_is_logged() {
    let (site, worker, master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    let mut etcd = Etcd::start_secured(&site, &files, Ask::Nothing);
    etcd.enable_auth(PREFIX, PASSWORD);
    let store = Store::of(etcd, Backend::Vxlan);
    let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", files.join(name).display());
    let [daemon, less] = [(&worker, "--v=3"), (&master, "--v=2")].map(|(host, level)| {
        let launch = host.overlayd(&store);
        launch
            .flag(level)
            .flag("--subnet-lease-ttl=6")
            .flag("--etcd-username=flannel")
            .flag(&file("cafile", "ca.pem"))
            .flag(&file("certfile", "client.pem"))
            .flag(&file("keyfile", "client-key.pem"))
            .env("FLANNELD_ETCD_PASSWORD", PASSWORD)
            .start()
    });
    // Time for requests of each kind, renewals among them.
    let start = Instant::now();
    await_until(Duration::from_secs(20), "the lease to be renewed", || {
        start.elapsed() > Duration::from_secs(7)
    });

    let report = worker.directory().join("report.tar.gz");
    let overlayctl = program("overlayctl");
    let ask = |line: &str| {
        let output = worker.ns.run(&format!("{} {line}", overlayctl.display()));
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
    };
    let mut told = vec![("log", daemon.log()), ("log with --v=2", less.log())];
    for line in ["status", "status --json", "events", "config", "config --json", "leases --json", "stats"] {
        told.push((line, ask(line)));
    }
    ask(&format!("bugreport {}", report.display()));
    told.push(("bugreport", worker.ns.ok(&format!("tar -xzOf {}", report.display()))));
    let subnet_file = daemon.subnet_file();
    let mut state = subnet_file.as_os_str().to_owned();
    state.push(".state.json");
    told.push(("saved state", fs::read_to_string(state).expect("a saved state")));

    let key = fs::read_to_string(files.join("client-key.pem")).expect("a key");
    let key = key.lines().filter(|line| line.len() > 20 && !line.starts_with('-'));
    let hidden: Vec<&str> = key.chain([PASSWORD]).collect();
    for (what, text) in &told {
        assert!(!text.trim().is_empty(), "{what} says nothing at all");
        for secret in &hidden {
            assert!(!text.contains(secret), "{what} tells `{secret}`");
            // As `Debug` shows a buffer.
            let bytes = secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
            assert!(!text.contains(&bytes), "{what} tells the bytes of `{secret}`");
        }
        assert_eq!(tokens(text), Vec::<&str>::new(), "{what} tells a token");
    }
    for (what, log) in &told[..2] {
        assert!(log.contains("DEBUG"), "not much is in the {what}: {log}");
    }
}

/// etcd's simple tokens in a text: sixteen letters, a dot and a number.
fn tokens(text: &str) -> Vec<&str> {
    let is_token = |word: &&str| {
        word.split_once('.').is_some_and(|(name, number)| {
            name.len() == 16
                && name.bytes().all(|octet| octet.is_ascii_alphabetic())
                && !number.is_empty()
                && number.bytes().all(|octet| octet.is_ascii_digit())
        })
    };
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).filter(is_token).collect()
}

#[test]
fn a_token_is_known_by_its_form() {
    assert_eq!(tokens("token: \"aBcdEfghIjklmnOp.42\", v0.21.1"), ["aBcdEfghIjklmnOp.42"]);
}
