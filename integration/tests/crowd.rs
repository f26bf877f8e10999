//! A network with very many nodes, or with somebody who writes as many leases: all are listed, whoever starts has them,
//! and the lease is renewed all the while.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use integration::overlayd::Launch;
use integration::steady::Steady;
use integration::{Etcd, Host, Site, Store, await_until, http};

#[test]
fn full_a_hundred_thousand_leases_outlive_etcds_restart_and_the_daemons() {
    let (site, worker, master) = Site::two_hosts();
    let limits = [format!("--max-txn-ops={AT_ONCE}"), "--max-request-bytes=10000000".to_owned()];
    let etcd = Etcd::start_with(&site, &limits.each_ref().map(String::as_str));
    etcd.put(
        &format!("{PREFIX}/config"),
        r#"{"Network":"100.64.0.0/10","SubnetLen":28,"SubnetMin":"100.120.0.0","Backend":{"Type":"vxlan"}}"#,
    );
    let numbers: Vec<u32> = (0..LEASES).collect();
    for some in numbers.chunks(AT_ONCE) {
        etcd.transact(&some.iter().map(|number| (key(*number), Some(lease(*number)))).collect::<Vec<_>>());
    }
    let mut store = Store::Etcd(etcd);
    let begun = Instant::now();
    let (mut w, mut m) = (launch(&worker, &store).spawn(), launch(&master, &store).spawn());
    [&mut w, &mut m].into_iter().for_each(|daemon| daemon.wait_ready(PATIENCE));
    let whole = f64::from(LEASES + 1);
    let all_there = || [&worker, &master].iter().all(|host| value(host, PEERS) == whole);
    await_until(PATIENCE, "all peers", all_there);
    println!("{LEASES} leases: all are peers after {:?}", begun.elapsed());
    let env = w.env();
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&m.env()));
    let steady = Steady::start(&a.ns, &b.ns, b.address);

    let is_renewed = |what: &str| {
        let before = value(&worker, RENEWALS);
        await_until(PATIENCE, &format!("renewals {what}"), || {
            assert_eq!(value(&worker, HELD), 1.0);
            value(&worker, RENEWALS) >= before + 3.0
        });
    };
    is_renewed("beside all the others");
    store.server().kill();
    await_until(PATIENCE, "the outage to be noticed", || value(&worker, CONNECTED) == 0.0);
    store.server().run();
    let back = await_until(PATIENCE, "the store", || value(&worker, CONNECTED) == 1.0);
    is_renewed("after etcd's restart");
    assert!(all_there());

    // From what it has saved, in which they all are.
    let cpu = w.process().cpu_time();
    let manager = w.stop_for_restart();
    let begun = Instant::now();
    let w = launch(&worker, &store).by(manager).start();
    let ready = begun.elapsed();
    await_until(PATIENCE, "all peers", all_there);
    assert_eq!(w.env(), env);
    assert!(w.log().contains(&format!("peers={whole}")), "{}", w.log());
    println!("connected again after {back:?}; started anew in {ready:?}; {cpu:?} of a processor until then");
    steady.nothing_lost();
}

fn launch<'h>(host: &'h Host, store: &Store) -> Launch<'h> {
    host.overlayd(store).flag("--subnet-lease-ttl=15").flag("--metrics-port=9100")
}

/// What a daemon tells its operator's Prometheus; -1 while it does not answer.
fn value(host: &Host, series: &str) -> f64 {
    let page = http::get(&host.ns, 9100, "/metrics");
    page.and_then(|page| http::series(&page.body).get(series).copied()).unwrap_or(-1.0)
}

fn key(number: u32) -> String {
    let base = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + (number << 4));
    format!("{PREFIX}/subnets/{base}-28")
}

fn lease(number: u32) -> String {
    let [_, top, high, low] = number.to_be_bytes();
    format!(
        r#"{{"PublicIP":"172.{}.{high}.{low}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:{top:02x}:{high:02x}:{low:02x}"}}}}"#,
        16 + top
    )
}

const PREFIX: &str = "/coreos.com/network";
const LEASES: u32 = 100_000;
/// Of one transaction.
const AT_ONCE: usize = 500;
const PEERS: &str = r#"overlayd_peers{way="tunnel"}"#;
const RENEWALS: &str = "overlayd_lease_renewals_total";
const HELD: &str = r#"overlayd_lease_state{state="held"}"#;
const CONNECTED: &str = "overlayd_store_connected";
/// For a build without optimizations.
const PATIENCE: Duration = Duration::from_secs(90);
