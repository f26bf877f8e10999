//! The daemon keeps of root's capabilities what it needs, in every thread, and no way to get more.

use std::collections::BTreeSet;
use std::fs;

use integration::pair::Pair;
use integration::{Backend, Site, Store, traffic};

/// NET_BIND_SERVICE, NET_ADMIN, NET_RAW, IPC_LOCK and BPF (`linux/capability.h`).
const KEPT: u64 = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39;

#[test]
fn a_daemon_that_root_starts_gives_up_what_it_does_not_need() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    for (name, values) in of_all_threads(pair.left.id()) {
        let expected = match name.as_str() {
            "CapInh" | "CapAmb" => 0,
            "NoNewPrivs" => 1,
            _ => KEPT,
        };
        assert_eq!(values, BTreeSet::from([expected]), "{name}");
    }
    traffic::ping(&pair.a.ns, pair.b.address);
}

#[test]
fn a_switch_keeps_them() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let daemon = worker.overlayd(&store).flag("--drop-privileges=false").start();
    let status = of_all_threads(daemon.id());
    let (_, permitted) = status.iter().find(|(name, _)| name == "CapPrm").expect("capabilities");
    assert!(permitted.iter().all(|set| set & !KEPT != 0), "{permitted:?}");
}

/// The capabilities of a process, as `/proc` has them, with the values of all threads.
fn of_all_threads(id: u32) -> Vec<(String, BTreeSet<u64>)> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("the process is there");
    let texts: Vec<String> = tasks
        .map(|task| fs::read_to_string(task.expect("a thread").path().join("status")).expect("its status"))
        .collect();
    assert!(texts.len() > 2, "there are workers");
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"]
        .map(|name| {
            let value = |text: &String| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
                u64::from_str_radix(line.expect("a line of it"), 16).expect("a number")
            };
            (name.to_owned(), texts.iter().map(value).collect())
        })
        .into()
}
