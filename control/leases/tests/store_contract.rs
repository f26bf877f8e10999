//! What every store promises, checked alike on etcd and on a directory, and what only one of them can show.

#[allow(dead_code, reason = "shared with other tests of the stores, which use the rest")]
mod stores;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{CompactionOptions, PutOptions};
use futures::StreamExt;
use ipnet::Ipv4Net;
use tokio::sync::watch;

use overlay_leases::membership::{Membership, Terms, View};
use overlay_leases::store::{DirStore, Entry, EtcdStore, Event, LeaseStore, Written};
use stores::{DirSite, Etcd, EtcdSite, PATIENCE, PREFIX, Site, deaf_after, next, put_of};

const TTL: Duration = Duration::from_secs(3600);
const ONE: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;
const TWO: &str = r#"{"PublicIP":"192.168.1.13","PublicIPv6":null}"#;

/// Runs each named check on a fresh site of either kind.
macro_rules! both_stores {
    ($($check:ident),+ $(,)?) => {
        mod etcd {
            $(#[tokio::test]
            async fn $check() {
                super::$check(&super::EtcdSite { etcd: super::Etcd::start().await }).await;
            })+
        }
        mod dir {
            $(#[tokio::test]
            async fn $check() {
                super::$check(&super::DirSite::new()).await;
            })+
        }
    };
}

both_stores! {
    the_configuration_is_there_once_somebody_puts_it,
    a_key_is_created_once,
    of_two_racing_creators_one_wins,
    of_two_racing_renewals_one_wins,
    a_renewal_writes_and_can_be_repeated,
    a_renewal_after_a_foreign_change_conflicts,
    a_renewal_of_a_deleted_key_conflicts,
    a_listing_skips_what_is_no_subnet,
    a_key_without_expiry_stays_without,
    a_dual_stack_key_is_renewed_under_its_own_name,
    what_is_released_is_gone,
    what_has_changed_is_not_released,
    a_watch_tells_put_delete_and_config_in_order,
    a_watch_goes_on_from_the_last_event,
    nothing_is_lost_between_listing_and_watching,
}

async fn the_configuration_is_there_once_somebody_puts_it(site: &dyn Site) {
    let store = site.open().await;
    assert_eq!(store.config().await.unwrap(), None);
    site.put("config", r#"{"Network":"10.1.0.0/16"}"#).await;
    assert_eq!(store.config().await.unwrap().unwrap(), r#"{"Network":"10.1.0.0/16"}"#);
}

async fn a_key_is_created_once(site: &dyn Site) {
    let (store, other) = (site.open().await, site.open().await);
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    assert_eq!((created.subnet, created.value.as_slice()), (net(86), ONE.as_bytes()));
    assert_eq!(other.create(net(86), TWO.as_bytes(), TTL).await.unwrap(), Written::Conflict);
    assert_eq!(other.list().await.unwrap().entries, [created]);
}

async fn of_two_racing_creators_one_wins(site: &dyn Site) {
    let (one, two) = (site.open().await, site.open().await);
    for third in 1..=20 {
        let (a, b) = tokio::join!(
            one.create(net(third), ONE.as_bytes(), TTL),
            two.create(net(third), TWO.as_bytes(), TTL)
        );
        let outcomes = [a.unwrap(), b.unwrap()];
        let losers = outcomes.iter().filter(|outcome| **outcome == Written::Conflict).count();
        assert_eq!(losers, 1, "{outcomes:?}");
    }
}

async fn of_two_racing_renewals_one_wins(site: &dyn Site) {
    let (one, two) = (site.open().await, site.open().await);
    for third in 1..=20 {
        let held = done(one.create(net(third), b"{}", TTL).await.unwrap());
        let (a, b) =
            tokio::join!(one.renew(&held, ONE.as_bytes(), TTL), two.renew(&held, TWO.as_bytes(), TTL));
        let outcomes = [a.unwrap(), b.unwrap()];
        let losers = outcomes.iter().filter(|outcome| **outcome == Written::Conflict).count();
        assert_eq!(losers, 1, "{outcomes:?}");
    }
}

async fn a_renewal_writes_and_can_be_repeated(site: &dyn Site) {
    let store = site.open().await;
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    let renewed = done(store.renew(&created, TWO.as_bytes(), TTL).await.unwrap());
    assert_eq!((renewed.value.as_slice(), renewed.expiry), (TWO.as_bytes(), created.expiry));
    let again = done(store.renew(&renewed, TWO.as_bytes(), TTL).await.unwrap());
    assert_eq!(store.list().await.unwrap().entries, [again]);
}

async fn a_renewal_after_a_foreign_change_conflicts(site: &dyn Site) {
    let store = site.open().await;
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    site.put("subnets/10.1.86.0-24", TWO).await;
    assert_eq!(store.renew(&created, ONE.as_bytes(), TTL).await.unwrap(), Written::Conflict);
    assert_eq!(store.list().await.unwrap().entries[0].value, TWO.as_bytes());
}

async fn a_renewal_of_a_deleted_key_conflicts(site: &dyn Site) {
    let store = site.open().await;
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    site.delete("subnets/10.1.86.0-24").await;
    assert_eq!(store.renew(&created, ONE.as_bytes(), TTL).await.unwrap(), Written::Conflict);
    assert!(store.list().await.unwrap().entries.is_empty());
}

async fn a_listing_skips_what_is_no_subnet(site: &dyn Site) {
    let store = site.open().await;
    for key in ["10.1.86.0-24", "10.1.86.1-24", "10.1.15.0-24&fd00:12:13::-56", "README"] {
        site.put(&format!("subnets/{key}"), ONE).await;
    }
    let listing = store.list().await.unwrap();
    let mut subnets: Vec<Ipv4Net> = listing.entries.iter().map(|entry| entry.subnet).collect();
    subnets.sort_unstable();
    assert_eq!(subnets, [net(15), net(86)]);
    assert_eq!(listing.skipped, 2);
}

async fn a_key_without_expiry_stays_without(site: &dyn Site) {
    let store = site.open().await;
    site.put("subnets/10.1.86.0-24", ONE).await;
    let reserved = store.list().await.unwrap().entries.remove(0);
    assert_eq!(reserved.expiry, None);
    assert_eq!(done(store.renew(&reserved, TWO.as_bytes(), TTL).await.unwrap()).expiry, None);
    assert_eq!(store.list().await.unwrap().entries[0].expiry, None);
}

async fn a_dual_stack_key_is_renewed_under_its_own_name(site: &dyn Site) {
    let store = site.open().await;
    let key = "10.1.86.0-24&fd00:12:13::-56";
    site.put(&format!("subnets/{key}"), ONE).await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    let found = store.list().await.unwrap().entries.remove(0);
    assert_eq!((found.key.as_str(), found.subnet), (key, net(86)));
    let renewed = done(store.renew(&found, TWO.as_bytes(), TTL).await.unwrap());
    assert_eq!(store.list().await.unwrap().entries, std::slice::from_ref(&renewed));
    assert_eq!(next(&mut events).await.1, Event::Put(renewed.clone()));

    // The plain key beside it is another one.
    let plain = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    assert_eq!(next(&mut events).await.1, Event::Put(plain.clone()));
    assert!(store.release(&renewed).await.unwrap());
    assert_eq!(next(&mut events).await.1, Event::Delete(key.to_owned()));
    assert_eq!(store.list().await.unwrap().entries, [plain]);
}

async fn what_is_released_is_gone(site: &dyn Site) {
    let (store, other) = (site.open().await, site.open().await);
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    assert!(other.release(&created).await.unwrap());
    assert_eq!(next(&mut events).await.1, Event::Delete("10.1.86.0-24".to_owned()));
    assert!(store.list().await.unwrap().entries.is_empty());
    assert!(!store.release(&created).await.unwrap(), "released twice");
    done(store.create(net(86), TWO.as_bytes(), TTL).await.unwrap());
}

async fn what_has_changed_is_not_released(site: &dyn Site) {
    let store = site.open().await;
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    let renewed = done(store.renew(&created, TWO.as_bytes(), TTL).await.unwrap());
    assert!(!store.release(&created).await.unwrap());
    assert_eq!(store.list().await.unwrap().entries, [renewed]);
}

async fn a_watch_tells_put_delete_and_config_in_order(site: &dyn Site) {
    let store = site.open().await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();

    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    assert_eq!(next(&mut events).await.1, Event::Put(created.clone()));
    let renewed = done(store.renew(&created, TWO.as_bytes(), TTL).await.unwrap());
    assert_eq!(next(&mut events).await.1, Event::Put(renewed));

    site.put("subnets/README", ONE).await;
    site.put("config", "{}").await;
    site.put("subnets/10.1.15.0-24", ONE).await;
    assert_eq!(next(&mut events).await.1, Event::Config(Some("{}".to_owned())));
    let foreign = put_of(next(&mut events).await.1);
    assert_eq!((foreign.subnet, foreign.value.as_slice()), (net(15), ONE.as_bytes()));

    site.delete("subnets/10.1.86.0-24").await;
    site.delete("config").await;
    assert_eq!(next(&mut events).await.1, Event::Delete("10.1.86.0-24".to_owned()));
    assert_eq!(next(&mut events).await.1, Event::Config(None));
}

async fn a_watch_goes_on_from_the_last_event(site: &dyn Site) {
    let store = site.open().await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    site.put("config", "{}").await;
    next(&mut events).await;
    let (last, _) = next(&mut events).await;

    drop(events);
    let mut events = store.watch(last).await.unwrap();
    site.put("subnets/10.1.15.0-24", ONE).await;
    assert_eq!(put_of(next(&mut events).await.1).subnet, net(15), "what was told before came again");
}

async fn nothing_is_lost_between_listing_and_watching(site: &dyn Site) {
    let store = site.open().await;
    let listing = store.list().await.unwrap();
    site.put("subnets/10.1.86.0-24", ONE).await;
    let mut events = store.watch(listing.revision).await.unwrap();
    match next(&mut events).await.1 {
        Event::Put(entry) => assert_eq!(entry.subnet, net(86)),
        Event::Relist => {
            assert!(events.next().await.is_none(), "Relist was not the last");
            let listing = store.list().await.unwrap();
            assert_eq!(listing.entries[0].subnet, net(86));
            let mut events = store.watch(listing.revision).await.unwrap();
            site.delete("subnets/10.1.86.0-24").await;
            assert_eq!(
                next(&mut events).await.1,
                Event::Delete("10.1.86.0-24".to_owned()),
                "Relist again without a change"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn etcd_expiry_deletes_the_key() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    let created = done(store.create(net(86), ONE.as_bytes(), Duration::from_secs(1)).await.unwrap());
    assert!(created.expiry.is_some());
    assert_eq!(next(&mut events).await.1, Event::Put(created.clone()));
    assert_eq!(next(&mut events).await.1, Event::Delete("10.1.86.0-24".to_owned()));
    assert_eq!(store.renew(&created, ONE.as_bytes(), TTL).await.unwrap(), Written::Conflict);
    assert_eq!(leases(&site.etcd).await, 0, "the lease granted for a lost renewal was left behind");
}

#[tokio::test]
async fn etcd_renewal_starts_the_time_anew() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    let ttl = Duration::from_secs(100);
    let created = done(store.create(net(86), ONE.as_bytes(), ttl).await.unwrap());
    let lease = created.expiry.unwrap();
    let mut client = site.etcd.client().await;
    let mut left = async || client.lease_time_to_live(lease, None).await.unwrap().ttl();
    let aged = async {
        while left().await > 96 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, aged).await.unwrap();
    done(store.renew(&created, ONE.as_bytes(), ttl).await.unwrap());
    assert!(left().await > 97);
}

#[tokio::test]
async fn etcd_a_lost_creation_leaves_no_lease_behind() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    assert_eq!(store.create(net(86), TWO.as_bytes(), TTL).await.unwrap(), Written::Conflict);
    assert_eq!(leases(&site.etcd).await, 1);
}

#[tokio::test]
async fn etcd_a_release_leaves_no_lease_behind_and_takes_no_other_key_along() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    assert!(store.release(&created).await.unwrap());
    assert_eq!(leases(&site.etcd).await, 0);

    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    let shared = PutOptions::new().with_lease(created.expiry.unwrap());
    site.etcd.client().await.put("elsewhere", "kept", Some(shared)).await.unwrap();
    assert!(store.release(&created).await.unwrap());
    assert_eq!(site.etcd.client().await.get("elsewhere", None).await.unwrap().kvs().len(), 1);
}

#[tokio::test]
async fn etcd_a_release_whose_answer_was_lost_is_recognised() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let created = done(site.open().await.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    let deaf = deaf_after(&site.etcd, "subnets/10.1.86.0-24").await;
    let store = EtcdStore::connect(vec![deaf, site.etcd.url()], PREFIX.to_owned()).await.unwrap();
    assert!(store.release(&created).await.unwrap());
}

#[tokio::test]
async fn etcd_compaction_means_listing_again() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    let from = store.list().await.unwrap().revision;
    for value in ["1", "2", "3"] {
        site.put("config", value).await;
    }
    let revision = store.list().await.unwrap().revision;
    site.etcd.client().await.compact(revision, None::<CompactionOptions>).await.unwrap();

    let mut events = store.watch(from).await.unwrap();
    assert_eq!(next(&mut events).await.1, Event::Relist);
    assert!(events.next().await.is_none());
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    site.put("config", "4").await;
    assert_eq!(next(&mut events).await.1, Event::Config(Some("4".to_owned())));
}

#[tokio::test]
async fn etcd_wiped_means_listing_again() {
    let mut site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    for third in 1..=5 {
        site.put(&format!("subnets/10.1.{third}.0-24"), ONE).await;
    }
    let from = store.list().await.unwrap().revision;
    let mut events = store.watch(from).await.unwrap();
    site.etcd.kill();
    let end = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert!(end.is_err(), "{end:?}");
    assert!(events.next().await.is_none());

    site.etcd.restart(true).await;
    let mut events = store.watch(from).await.unwrap();
    assert_eq!(next(&mut events).await.1, Event::Relist);
    assert!(store.list().await.unwrap().revision < from);
}

#[tokio::test]
async fn etcd_restarted_goes_on_without_loss() {
    let mut site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    let held = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    site.etcd.kill();
    let error = store.list().await.unwrap_err();
    assert!(error.action.contains("/test/network/subnets/"), "{error}");
    assert!(error.reason.contains(&site.etcd.url()) && error.reason.contains("refused"), "{error}");

    site.etcd.restart(false).await;
    site.put("config", "{}").await;
    let mut events = store.watch(held.revision).await.unwrap();
    assert_eq!(next(&mut events).await.1, Event::Config(Some("{}".to_owned())));
    done(store.renew(&held, ONE.as_bytes(), TTL).await.unwrap());
}

#[tokio::test]
async fn etcd_a_dead_endpoint_among_two_costs_no_call() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let mut dead = Etcd::start().await;
    dead.kill();
    let store = EtcdStore::connect(vec![dead.url(), site.etcd.url()], PREFIX.to_owned()).await.unwrap();
    assert_eq!(store.id().to_string(), format!("etcd {},{} {PREFIX}", dead.url(), site.etcd.url()));
    for third in 1..=20 {
        let held = done(store.create(net(third), ONE.as_bytes(), TTL).await.unwrap());
        done(store.renew(&held, ONE.as_bytes(), TTL).await.unwrap());
    }
    assert_eq!(store.list().await.unwrap().entries.len(), 20);
}

#[tokio::test]
async fn etcd_a_foreign_write_of_the_same_value_is_still_foreign() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    site.put("subnets/10.1.86.0-24", ONE).await;
    assert_eq!(store.renew(&created, ONE.as_bytes(), TTL).await.unwrap(), Written::Conflict);
}

#[tokio::test]
async fn etcd_a_write_whose_answer_was_lost_is_recognised() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let deaf = deaf_after(&site.etcd, "subnets/10.1.86.0-24").await;
    let store = EtcdStore::connect(vec![deaf, site.etcd.url()], PREFIX.to_owned()).await.unwrap();
    let created = done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    assert_eq!(site.open().await.list().await.unwrap().entries, std::slice::from_ref(&created));
    assert_eq!(leases(&site.etcd).await, 1);

    let deaf = deaf_after(&site.etcd, "subnets/10.1.86.0-24").await;
    let store = EtcdStore::connect(vec![deaf, site.etcd.url()], PREFIX.to_owned()).await.unwrap();
    let renewed = done(store.renew(&created, TWO.as_bytes(), TTL).await.unwrap());
    assert_eq!(site.open().await.list().await.unwrap().entries, [renewed]);
}

#[tokio::test]
async fn etcd_need_not_be_there_to_connect() {
    let mut dead = Etcd::start().await;
    dead.kill();
    let store = EtcdStore::connect(vec![dead.url()], PREFIX.to_owned()).await.unwrap();
    assert!(store.config().await.is_err());
    assert!(store.watch(1).await.is_err());
    dead.restart(false).await;
    assert_eq!(store.config().await.unwrap(), None);

    assert!(EtcdStore::connect(vec![], PREFIX.to_owned()).await.is_err());
    assert!(EtcdStore::connect(vec!["http://a b".to_owned()], PREFIX.to_owned()).await.is_err());
}

#[tokio::test]
async fn etcd_keys_and_values_are_flannels() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let store = site.open().await;
    done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());
    let response = site.etcd.client().await.get("/test/network/subnets/10.1.86.0-24", None).await.unwrap();
    assert_eq!(response.kvs()[0].value(), ONE.as_bytes());
    let granted = site.etcd.client().await.lease_time_to_live(response.kvs()[0].lease(), None).await.unwrap();
    assert_eq!(granted.granted_ttl(), 3600);
}

#[tokio::test]
async fn etcd_takes_a_key_over_with_its_lease() {
    let site = EtcdSite { etcd: Etcd::start().await };
    let mut client = site.etcd.client().await;
    let lease = client.lease_grant(3600, None).await.unwrap().id();
    let options = PutOptions::new().with_lease(lease);
    client.put(format!("{PREFIX}/subnets/10.1.86.0-24"), ONE, Some(options)).await.unwrap();
    let store = site.open().await;
    let found = store.list().await.unwrap().entries.remove(0);
    assert_eq!(done(store.renew(&found, TWO.as_bytes(), TTL).await.unwrap()).expiry, Some(lease));
}

#[tokio::test]
async fn etcd_a_hundred_nodes_that_join_at_once_have_a_hundred_subnets() {
    let site = EtcdSite { etcd: Etcd::start().await };
    site.put("config", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#).await;
    let join = async |number: u8| {
        let store = EtcdStore::connect(vec![site.etcd.url()], PREFIX.to_owned()).await.unwrap();
        let terms = Terms {
            public_ip: Ipv4Addr::new(192, 168, 7, number),
            previous: None,
            vtep_mac: None,
            ttl: TTL,
            renew_margin: Duration::from_secs(60),
        };
        let (out, views) = watch::channel(None);
        tokio::spawn(Membership::new(Arc::new(store), terms, None, out).run());
        views
    };
    let joined = futures::future::join_all((1..=100).map(join)).await;
    let mut subnets = BTreeSet::new();
    for mut views in joined {
        // Complete once it knows all the others.
        let complete = views.wait_for(|view: &Option<View>| {
            view.as_ref().is_some_and(|view| view.connected && view.peers.len() == 99)
        });
        let view = tokio::time::timeout(3 * PATIENCE, complete).await.expect("all nodes are known").unwrap();
        let view = view.as_ref().unwrap();
        assert_eq!(view.conflicts, []);
        subnets.insert(view.lease.subnet);
    }
    assert_eq!(subnets.len(), 100);
    assert_eq!(leases(&site.etcd).await, 100, "grants of lost races were left behind");
}

#[tokio::test]
async fn dir_replaced_or_cleared_means_listing_again() {
    let site = DirSite::new();
    let path = site.dir.path().join("store");
    let store = DirStore::open(&path).unwrap();
    done(store.create(net(86), ONE.as_bytes(), TTL).await.unwrap());

    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    fs::rename(path.join("subnets"), path.join("old")).unwrap();
    assert_eq!(next(&mut events).await.1, Event::Relist);
    assert!(events.next().await.is_none());
    assert!(store.list().await.unwrap().entries.is_empty());

    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    done(store.create(net(15), ONE.as_bytes(), TTL).await.unwrap());
    assert_eq!(next(&mut events).await.1, Event::Relist);
    assert_eq!(store.list().await.unwrap().entries[0].subnet, net(15));

    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    fs::rename(&path, site.dir.path().join("away")).unwrap();
    assert_eq!(next(&mut events).await.1, Event::Relist);
    assert!(store.list().await.is_err(), "a store that is gone was taken for an empty one");
    assert!(store.config().await.is_err());
    assert!(store.create(net(1), ONE.as_bytes(), TTL).await.is_err());
    assert!(store.watch(0).await.is_err());

    fs::rename(site.dir.path().join("away"), &path).unwrap();
    assert_eq!(store.list().await.unwrap().entries[0].subnet, net(15));
}

#[tokio::test]
async fn dir_what_happened_since_the_listing_is_told_one_by_one() {
    let site = DirSite::new();
    let store = site.open().await;
    for third in [15, 86] {
        site.put(&format!("subnets/10.1.{third}.0-24"), ONE).await;
    }
    let listed = store.list().await.unwrap().revision;
    site.delete("subnets/10.1.86.0-24").await;
    site.put("subnets/10.1.15.0-24", TWO).await;
    site.put("config", "{}").await;
    let mut events = store.watch(listed).await.unwrap();
    assert_eq!(next(&mut events).await.1, Event::Config(Some("{}".to_owned())));
    assert_eq!(next(&mut events).await.1, Event::Delete("10.1.86.0-24".to_owned()));
    let (last, put) = next(&mut events).await;
    assert_eq!(put_of(put).value, TWO.as_bytes());

    // Where nothing is known of that time, there is nothing to compare with.
    site.delete("subnets/10.1.15.0-24").await;
    assert_eq!(next(&mut store.watch(last).await.unwrap()).await.1, Event::Relist);
}

#[tokio::test]
async fn dir_waits_for_a_file_to_be_complete_and_ignores_dot_files() {
    let site = DirSite::new();
    let store = site.open().await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    let subnets = site.dir.path().join("subnets");
    fs::write(subnets.join(".10.1.7.0-24.new"), ONE).unwrap();
    let mut file = fs::File::create(subnets.join("10.1.86.0-24")).unwrap();
    fs::write(subnets.join("10.1.15.0-24"), TWO).unwrap();
    assert_eq!(put_of(next(&mut events).await.1).subnet, net(15));
    std::io::Write::write_all(&mut file, ONE.as_bytes()).unwrap();
    drop(file);
    assert_eq!(put_of(next(&mut events).await.1).value, ONE.as_bytes());
    assert_eq!(store.list().await.unwrap().skipped, 0);
}

#[tokio::test]
async fn dir_a_change_of_the_content_alone_is_noticed_and_a_repetition_is_not_told() {
    let site = DirSite::new();
    let store = site.open().await;
    site.put("subnets/10.1.86.0-24", ONE).await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    site.put("subnets/10.1.86.0-24", ONE).await;
    site.put("subnets/10.1.86.0-24", TWO).await;
    assert_eq!(put_of(next(&mut events).await.1).value, TWO.as_bytes());
}

#[tokio::test]
async fn dir_many_daemons_share_it() {
    let site = DirSite::new();
    let stores: Vec<DirStore> = (0..8).map(|_| DirStore::open(site.dir.path()).unwrap()).collect();
    done(stores[0].create(net(86), b"0", TTL).await.unwrap());

    // Each adds one to the number 25 times; a write that overtook another would lose a count.
    let adders = stores.into_iter().map(|store| async move {
        for _ in 0..25 {
            loop {
                let held = store.list().await.unwrap().entries.remove(0);
                let count: u32 = std::str::from_utf8(&held.value).unwrap().parse().unwrap();
                let next = (count + 1).to_string();
                if let Written::Done(_) = store.renew(&held, next.as_bytes(), TTL).await.unwrap() {
                    break;
                }
            }
        }
    });
    let tasks: Vec<_> = adders.map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let store = site.open().await;
    assert_eq!(store.list().await.unwrap().entries[0].value, b"200");
    let left = fs::read_dir(site.dir.path().join("subnets")).unwrap().count();
    assert_eq!(left, 1, "temporary files were left behind");
}

fn net(third: u8) -> Ipv4Net {
    Ipv4Net::new_assert([10, 1, third, 0].into(), 24)
}

fn done(written: Written) -> Entry {
    match written {
        Written::Done(entry) => entry,
        Written::Conflict => panic!("somebody else's change came first"),
    }
}

async fn leases(etcd: &Etcd) -> usize {
    etcd.client().await.leases().await.unwrap().leases().len()
}
