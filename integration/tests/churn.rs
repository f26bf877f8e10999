//! A cluster in which nodes come and go all the time: those that stay do not notice.

use std::time::{Duration, Instant};

use integration::steady::Steady;
use integration::{Backend, Etcd, SOON, Site, Store, await_until};

#[test]
fn full_a_thousand_changes_a_second_among_five_thousand_leases_lose_no_packet() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::of(Etcd::start(&site), Backend::Vxlan);
    store.put_config(
        r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}"#,
    );
    let Store::Etcd(etcd) = &store else { unreachable!("it is an etcd") };
    let numbers: Vec<u32> = (0..LEASES).collect();
    for some in numbers.chunks(AT_ONCE) {
        etcd.transact(&some.iter().map(|number| (key(*number), Some(lease(*number)))).collect::<Vec<_>>());
    }
    let [mut w, mut m] = [&worker, &master].map(|host| host.overlayd(&store).flag("-v=1").spawn());
    for daemon in [&mut w, &mut m] {
        daemon.wait_ready(Duration::from_secs(30));
    }
    let whole = LEASES as usize + 1;
    for daemon in [&w, &m] {
        await_until(Duration::from_secs(30), "all peers", || daemon.status().peers().len() == whole);
    }
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));

    let streams = [Steady::start(&a.ns, &b.ns, b.address), Steady::start(&b.ns, &a.ns, a.address)];
    let (begun, before) = (Instant::now(), w.process().cpu_time());
    let mut there = vec![true; LEASES as usize];
    for round in 0..SECONDS * PER_SECOND / AT_ONCE as u32 {
        // Each of a part of them in turn, which is gone and back again.
        let changes = (0..AT_ONCE as u32).map(|index| {
            let number = (round * AT_ONCE as u32 + index) % CHANGING;
            let there = &mut there[number as usize];
            *there = !*there;
            (key(number), there.then(|| lease(number)))
        });
        etcd.transact(&changes.collect::<Vec<_>>());
        let due = Duration::from_secs(1) * (round + 1) * AT_ONCE as u32 / PER_SECOND;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    let took = begun.elapsed();
    let cpu = w.process().cpu_time() - before;
    let sent: u64 = streams.into_iter().map(Steady::nothing_lost).sum();
    let left = there.iter().filter(|there| **there).count() + 1;
    for daemon in [&w, &m] {
        await_until(SOON, "what the store has", || daemon.status().peers().len() == left);
    }
    let log = w.log();
    let tables =
        log.lines().filter_map(|line| line.split_once("table published")?.1.split("built_in_us=").nth(1));
    let mut built: Vec<u64> = tables.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    built.sort_unstable();
    println!(
        "{} changes in {took:?}, {sent} datagrams, none lost; {} tables, built in {:?} µs at the median, {:?} at most; {:.1} % of a processor",
        SECONDS * PER_SECOND,
        built.len(),
        built.get(built.len() / 2),
        built.last(),
        100.0 * cpu.as_secs_f64() / took.as_secs_f64()
    );
    assert!(!built.is_empty(), "no word about tables in:\n{log}");
    // If etcd does not keep up, it was another test than its name says.
    assert!(took < Duration::from_secs(90), "{took:?} for what should take {SECONDS} s");
}

fn key(number: u32) -> String {
    format!("/coreos.com/network/subnets/10.{}.{}.0-24", number / 256, number % 256)
}

fn lease(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!(
        r#"{{"PublicIP":"172.16.{high}.{low}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:01:{high:02x}:{low:02x}"}}}}"#
    )
}

const LEASES: u32 = 5000;
/// Those of them that come and go.
const CHANGING: u32 = 2000;
const SECONDS: u32 = 60;
const PER_SECOND: u32 = 1000;
/// Changes of one transaction: etcd takes 128.
const AT_ONCE: usize = 125;
