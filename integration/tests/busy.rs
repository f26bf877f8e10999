//! A host whose processors others want, too: the data plane's threads come before those while they do, and show it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use integration::overlayd::program;
use integration::pair::Pair;
use integration::{Backend, Overlayd, Site, Store, await_until, traffic};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
/// `SCHED_RR` (`sched(7)`).
const REAL_TIME: &str = "2";

#[test]
fn workers_have_real_time_while_the_processors_are_crowded() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let (left, right) = (&pair.left, &pair.right);
    assert_eq!(priority(left)["real_time"], true, "{} (this test needs root)", priority(left));
    assert_eq!(priority(left)["nice"], -5);
    let shown = worker.ns.ok(&format!("{} status", program("overlayctl").display()));
    assert!(shown.contains("real time while the processors are crowded"), "{shown}");

    let beside_hogs = |goes_on: &dyn Fn() -> bool| {
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..2 * std::thread::available_parallelism().map_or(1, usize::from) {
                threads.spawn(|| {
                    while !done.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // What is not awaited in here ends the hogs, too.
            let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                await_until(LIMIT, "real time", goes_on);
            }));
            done.store(true, Relaxed);
            finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    };
    let has_real_time = || {
        traffic::answers(&pair.a.ns, pair.b.address);
        [left, right].iter().all(|daemon| priority(daemon)["crowded"] == true)
            && [left, right].iter().all(|daemon| policies(daemon).iter().all(|policy| policy == REAL_TIME))
    };
    beside_hogs(&has_real_time);

    // The same in the next data plane.
    worker.ns.ip("link delete flannel.1");
    await_until(LIMIT, "the device to be made anew", || traffic::answers(&pair.a.ns, pair.b.address));
    beside_hogs(&has_real_time);
}

#[test]
fn who_wants_none_has_none() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    for (flag, nice, real_time) in [("none", Value::Null, false), ("nice", json!(-5), false)] {
        let daemon = worker.overlayd(&store).flag(&format!("--priority={flag}")).start();
        let told = priority(&daemon);
        assert_eq!((&told["nice"], &told["real_time"]), (&nice, &json!(real_time)), "{flag}");
        assert_eq!(told["refused"], json!([]), "{flag}");
        let seen = nices(&daemon);
        let expected = nice.as_i64().unwrap_or(0).to_string();
        assert!(seen.iter().all(|nice| *nice == expected), "{flag}: {seen:?}");
    }
}

fn priority(daemon: &Overlayd<'_>) -> Value {
    daemon.status().0["priority"].clone()
}

/// The scheduling policy of each worker.
fn policies(daemon: &Overlayd<'_>) -> Vec<String> {
    of_workers(daemon, 41)
}

/// The nice value of each worker.
fn nices(daemon: &Overlayd<'_>) -> Vec<String> {
    of_workers(daemon, 19)
}

/// A field of each worker's `stat` (`proc_pid_stat(5)`).
fn of_workers(daemon: &Overlayd<'_>, number: usize) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("the process is there");
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let field = |stat: String| {
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        name.contains("gress-").then(|| rest.split_whitespace().nth(number - 3).map(str::to_owned))?
    };
    let fields: Vec<String> = stats.filter_map(field).collect();
    // None while one data plane takes the other's place.
    if fields.is_empty() { vec![String::new()] } else { fields }
}
