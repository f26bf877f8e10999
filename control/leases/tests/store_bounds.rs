//! Stores in which there is too much: too many keys, too long values, files that are none. One of them costs
//! itself only.

#[allow(dead_code, reason = "shared with the contract of all stores, which uses the rest")]
mod stores;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::Duration;

use etcd_client::TxnOp;
use ipnet::Ipv4Net;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use overlay_leases::store::{DirStore, Entry, EtcdStore, Event, LeaseStore, Listing, MAX_VALUE, Written};
use stores::{DirSite, Etcd, EtcdSite, PREFIX, Site, next, put_of};

const TTL: Duration = Duration::from_secs(3600);
/// One moment for each would be more than a request may take.
const LINKS: u16 = 1_000;
const VALUE: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;

#[tokio::test]
async fn etcd_a_value_of_any_size_costs_itself_only() {
    let etcd = Etcd::start().await;
    a_value_of_any_size_costs_itself_only(&EtcdSite { etcd }, 1_400_000).await;
}

#[tokio::test]
async fn etcd_a_value_longer_than_an_answer_may_be_costs_itself_only() {
    let etcd = Etcd::start_with(&["--max-request-bytes=20000000"]).await;
    a_value_of_any_size_costs_itself_only(&EtcdSite { etcd }, 5_000_000).await;
}

#[tokio::test]
async fn dir_a_value_of_any_size_costs_itself_only() {
    a_value_of_any_size_costs_itself_only(&DirSite::new(), 1_400_000).await;
}

async fn a_value_of_any_size_costs_itself_only(site: &dyn Site, size: usize) {
    let store = site.open().await;
    let long = "x".repeat(size);
    for third in 1..=9 {
        let value = if third % 2 == 0 { long.as_str() } else { VALUE };
        site.put(&format!("subnets/10.1.{third}.0-24"), value).await;
    }
    let listing = store.list().await.unwrap();
    let mut listed: Vec<(Ipv4Net, usize)> =
        listing.entries.iter().map(|entry| (entry.subnet, entry.value.len())).collect();
    listed.sort_unstable();
    let expected: Vec<_> =
        (1..=9).map(|third| (net(third), if third % 2 == 0 { MAX_VALUE + 1 } else { VALUE.len() })).collect();
    assert_eq!(listed, expected);

    // Who follows learns of a change beside it, if need be from a listing.
    let mut events = store.watch(listing.revision).await.unwrap();
    site.put("subnets/10.1.10.0-24", &long).await;
    site.put("subnets/10.1.11.0-24", VALUE).await;
    let mut told = Vec::new();
    while told.last() != Some(&net(11)) {
        match next(&mut events).await.1 {
            Event::Relist => {
                told.extend(subnets(&store.list().await.unwrap()));
                told.sort_unstable();
            }
            event => {
                let put = put_of(event);
                assert!(put.value.len() <= MAX_VALUE + 1);
                told.push(put.subnet);
            }
        }
    }
    assert!(told.contains(&net(10)));

    site.put("config", &long).await;
    assert!(store.config().await.unwrap().unwrap().starts_with("(longer than"));
}

#[tokio::test]
async fn etcd_more_leases_than_an_answer_holds_are_listed() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let filling = "x".repeat(400);
    let value = format!(r#"{{"PublicIP":"192.168.1.12","New":"{filling}"}}"#);
    let keys: Vec<String> =
        (0..11_000).map(|n| format!("{PREFIX}/subnets/10.{}.{}.0-24", n / 256, n % 256)).collect();
    for keys in keys.chunks(128) {
        let puts: Vec<_> = keys.iter().map(|key| TxnOp::put(key.as_str(), value.as_str(), None)).collect();
        client.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
    }
    let store = EtcdStore::connect(vec![etcd.url()], PREFIX.to_owned()).await.unwrap();
    let mut listed = subnets(&store.list().await.unwrap());
    listed.sort_unstable();
    listed.dedup();
    assert_eq!(listed.len(), 11_000);
}

#[tokio::test]
async fn etcd_a_full_server_keeps_leases_alive_and_a_new_one_names_the_remedy() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=3000000"]).await;
    let store = EtcdStore::connect(vec![etcd.url()], PREFIX.to_owned()).await.unwrap();
    let held = done(store.create(net(1), VALUE.as_bytes(), TTL).await.unwrap());
    let mut client = etcd.client().await;
    let filling = "x".repeat(500_000);
    while client.put("filling", filling.as_str(), None).await.is_ok() {}

    assert_eq!(store.renew(&held, VALUE.as_bytes(), TTL).await.unwrap(), Written::Done(held.clone()));
    let error = store.create(net(2), VALUE.as_bytes(), TTL).await.unwrap_err();
    for part in ["database space exceeded", "compact", "defrag", "alarm disarm"] {
        assert!(error.reason.contains(part), "no {part} in: {error}");
    }
    assert!(store.renew(&held, b"another", TTL).await.is_err(), "what has to be written is not written");
    client.delete(format!("{PREFIX}/subnets/10.1.1.0-24"), None).await.unwrap();
    assert_eq!(store.renew(&held, VALUE.as_bytes(), TTL).await.unwrap(), Written::Conflict);
}

#[tokio::test]
async fn etcd_a_time_that_the_server_does_not_grant_is_asked_for_once() {
    let etcd = Etcd::start_with(&["--election-timeout=3000"]).await;
    let ttl = Duration::from_secs(2);
    let store = EtcdStore::connect(vec![etcd.url()], PREFIX.to_owned()).await.unwrap();
    let mut held = done(store.create(net(1), VALUE.as_bytes(), ttl).await.unwrap());
    for _ in 0..3 {
        held = done(store.renew(&held, VALUE.as_bytes(), ttl).await.unwrap());
    }
    assert_eq!(etcd.client().await.leases().await.unwrap().leases().len(), 1);
}

#[tokio::test]
async fn dir_what_is_no_file_of_its_own_is_passed_over_by_name() {
    let site = DirSite::new();
    let store = site.open().await;
    let file = |name: &str| site.dir.path().join(name);
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), VALUE).unwrap();
    let fifo = |name: &str| mknodat(CWD, file(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fifo("subnets/10.1.7.0-24");
    symlink(secret.path(), file("subnets/10.1.8.0-24")).unwrap();
    site.put("subnets/10.1.9.0-24", VALUE).await;
    let listing = store.list().await.unwrap();
    assert_eq!((subnets(&listing), listing.skipped), (vec![net(9)], 2));

    let mut events = store.watch(listing.revision).await.unwrap();
    fifo("subnets/10.1.10.0-24");
    site.put("subnets/10.1.11.0-24", VALUE).await;
    assert_eq!(put_of(next(&mut events).await.1).subnet, net(11));

    for make in [&(|| fifo("config")) as &dyn Fn(), &|| symlink(secret.path(), file("config")).unwrap()] {
        make();
        let error = store.config().await.unwrap_err();
        assert!(error.reason.contains("config: it is "), "{error}");
        fs::remove_file(file("config")).unwrap();
    }
}

/// A file in the making may have two names for a moment. Of many that keep them, only one such moment is lost.
#[tokio::test]
async fn dir_any_number_of_hard_links_is_passed_over() {
    let site = DirSite::new();
    let store = site.open().await;
    let secret = tempfile::NamedTempFile::new_in(site.dir.path()).unwrap();
    fs::write(secret.path(), VALUE).unwrap();
    let link = |number: u16| {
        let [high, low] = number.to_be_bytes();
        fs::hard_link(secret.path(), site.dir.path().join(format!("subnets/10.{}.{low}.0-24", 2 + high)))
    };
    (0..LINKS).for_each(|number| link(number).unwrap());
    site.put("subnets/10.1.9.0-24", VALUE).await;
    let listing = store.list().await.unwrap();
    assert_eq!((subnets(&listing), listing.skipped), (vec![net(9)], usize::from(LINKS)));

    let mut events = store.watch(listing.revision).await.unwrap();
    (LINKS..2 * LINKS).for_each(|number| link(number).unwrap());
    site.put("subnets/10.1.11.0-24", VALUE).await;
    assert_eq!(put_of(next(&mut events).await.1).subnet, net(11));
    assert_eq!(store.list().await.unwrap().skipped, 2 * usize::from(LINKS));
}

#[tokio::test]
async fn dir_a_lock_that_is_held_is_not_waited_for_without_end() {
    let site = DirSite::new();
    let store = DirStore::open(site.dir.path()).unwrap();
    let held = done(store.create(net(1), VALUE.as_bytes(), TTL).await.unwrap());
    let lock = File::open(site.dir.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let error = store.release(&held).await.unwrap_err();
    assert!(error.reason.contains(".lock") && error.reason.contains("fuser"), "{error}");
    drop(lock);
    assert!(store.release(&held).await.unwrap());

    fs::remove_file(site.dir.path().join(".lock")).unwrap();
    mknodat(CWD, site.dir.path().join(".lock"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(store.create(net(1), VALUE.as_bytes(), TTL).await.is_err());
}

fn net(third: u8) -> Ipv4Net {
    Ipv4Net::new_assert([10, 1, third, 0].into(), 24)
}

fn subnets(listing: &Listing) -> Vec<Ipv4Net> {
    listing.entries.iter().map(|entry| entry.subnet).collect()
}

fn done(written: Written) -> Entry {
    match written {
        Written::Done(entry) => entry,
        Written::Conflict => panic!("somebody else's change came first"),
    }
}
