//! A node's membership: over a real directory of lease files, and over a store in memory, which can
//! do what a directory cannot, in no time.

mod memory;
mod reload;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use memory::Memory;
use overlay_leases::lease::HostFacts;
use overlay_leases::membership::{Membership, Standing, Terms, View};
use overlay_leases::store::{
    DirStore, Entry, EventStream, LeaseStore, Listing, Revision, StoreError, StoreId, Written,
};

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
const TTL: Duration = Duration::from_secs(3600);
const KEY: &str = "10.1.9.0-24";

/// A directory store that counts what is asked of it.
struct Counting {
    inner: DirStore,
    configs: AtomicUsize,
    creates: AtomicUsize,
}

#[async_trait]
impl LeaseStore for Counting {
    fn how_to_configure(&self, config: &str) -> String {
        self.inner.how_to_configure(config)
    }
    fn id(&self) -> StoreId {
        self.inner.id()
    }
    async fn config(&self) -> Result<Option<String>, StoreError> {
        self.configs.fetch_add(1, Relaxed);
        self.inner.config().await
    }
    async fn list(&self) -> Result<Listing, StoreError> {
        self.inner.list().await
    }
    async fn entry_of(&self, subnet: Ipv4Net) -> Result<Option<Entry>, StoreError> {
        self.inner.entry_of(subnet).await
    }
    async fn create(&self, subnet: Ipv4Net, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        self.creates.fetch_add(1, Relaxed);
        self.inner.create(subnet, value, ttl).await
    }
    async fn renew(&self, held: &Entry, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        self.inner.renew(held, value, ttl).await
    }
    async fn release(&self, held: &Entry) -> Result<bool, StoreError> {
        self.inner.release(held).await
    }
    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError> {
        self.inner.watch(from).await
    }
}

fn store() -> (TempDir, Arc<Counting>) {
    let directory = tempfile::tempdir().unwrap();
    let inner = DirStore::open(directory.path()).unwrap();
    fs::write(directory.path().join("config"), CONFIG).unwrap();
    (directory, Arc::new(Counting { inner, configs: AtomicUsize::new(0), creates: AtomicUsize::new(0) }))
}

/// Starts taking part, having had `previous` before.
fn join<S: LeaseStore + 'static>(store: &Arc<S>, previous: Option<&str>) -> watch::Receiver<Option<View>> {
    join_again(store, previous, None)
}

/// Starts taking part, after an `earlier` run that had seen that.
fn join_again<S: LeaseStore + 'static>(
    store: &Arc<S>,
    previous: Option<&str>,
    earlier: Option<View>,
) -> watch::Receiver<Option<View>> {
    let (out, views) = watch::channel(None);
    let store = Arc::clone(store) as Arc<dyn LeaseStore>;
    tokio::spawn(Membership::new(store, terms(previous), earlier, out).run());
    views
}

fn terms(previous: Option<&str>) -> Terms {
    Terms {
        public_ip: Ipv4Addr::new(192, 168, 1, 12),
        previous: previous.map(|subnet| subnet.parse().unwrap()),
        vtep_mac: None,
        ttl: TTL,
        renew_margin: Duration::from_secs(10),
    }
}

async fn connected(views: &mut watch::Receiver<Option<View>>) -> View {
    let view = views.wait_for(|view| view.as_ref().is_some_and(|view| view.connected));
    timeout(Duration::from_secs(30), view).await.unwrap().unwrap().clone().unwrap()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}

fn lease_file(directory: &Path, view: &View) -> std::path::PathBuf {
    directory.join("subnets").join(overlay_leases::store::key_of(view.lease.subnet))
}

#[tokio::test]
async fn a_key_refused_again_and_again_is_not_asked_for_without_pause() {
    let (directory, store) = store();
    let in_the_way = directory.path().join("subnets/10.1.9.0-24");
    fs::create_dir(&in_the_way).unwrap();
    let mut views = join(&store, Some("10.1.9.0/24"));
    sleep(Duration::from_secs(1)).await;
    let asked = store.creates.load(Relaxed);
    assert!((2..10).contains(&asked), "asked {asked} times in a second");
    fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(connected(&mut views).await.lease.subnet, "10.1.9.0/24".parse().unwrap());
}

#[tokio::test]
async fn our_lease_written_by_somebody_else_is_put_right() {
    let (directory, store) = store();
    let view = connected(&mut join(&store, None)).await;
    let file = lease_file(directory.path(), &view);
    let ours = fs::read_to_string(&file).unwrap();
    let draft = directory.path().join("draft");
    fs::write(&draft, r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#).unwrap();
    fs::rename(&draft, &file).unwrap();
    eventually("our own words", || fs::read_to_string(&file).unwrap() == ours).await;
}

#[tokio::test]
async fn after_a_gap_the_configuration_is_read_again() {
    let (directory, store) = store();
    connected(&mut join(&store, None)).await;
    let before = store.configs.load(Relaxed);
    fs::rename(directory.path().join("subnets"), directory.path().join("away")).unwrap();
    eventually("another look", || store.configs.load(Relaxed) > before).await;
}

/// A member of a network in memory that holds 10.1.9.0/24, and a peer's lease beside it.
async fn member() -> (Arc<Memory>, watch::Receiver<Option<View>>) {
    let store = Arc::new(Memory::new(CONFIG));
    store.put(PEER_KEY, &vxlan("192.168.1.13", 3), Some(3));
    let mut views = join(&store, Some("10.1.9.0/24"));
    let view = connected(&mut views).await;
    assert_eq!((view.lease.subnet.to_string().as_str(), view.peers.len()), ("10.1.9.0/24", 1));
    (store, views)
}

const PEER_KEY: &str = "10.1.163.0-24";

fn vxlan(public_ip: &str, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}}}"#
    )
}

/// Waits for a view that is as wanted, and tells how long it took by the paused clock.
async fn view_that(
    views: &mut watch::Receiver<Option<View>>,
    wanted: impl Fn(&View) -> bool,
) -> (View, Duration) {
    let start = Instant::now();
    let view = views.wait_for(|view| view.as_ref().is_some_and(&wanted));
    let view = timeout(2 * TTL, view).await.expect("such a view").unwrap().clone().unwrap();
    (view, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn peers_missing_after_an_outage_stay_for_a_minute() {
    let (store, mut views) = member().await;
    store.set_down(true);
    view_that(&mut views, |view| !view.connected).await;
    store.delete(PEER_KEY);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(views.borrow().as_ref().unwrap().peers.len(), 1, "an outage alone has cost a peer");

    store.set_down(false);
    let (view, _) = view_that(&mut views, |view| view.connected).await;
    assert_eq!(view.peers.len(), 1);
    let (_, took) = view_that(&mut views, |view| view.peers.is_empty()).await;
    assert!((55..=60).contains(&took.as_secs()), "gone after {took:?}");
}

#[tokio::test(start_paused = true)]
async fn peers_of_an_earlier_run_that_the_store_lost_stay_for_a_minute() {
    let (_, views) = member().await;
    let earlier = views.borrow().clone();
    let store = Arc::new(Memory::new(CONFIG));
    store.set_down(true);
    let mut views = join_again(&store, Some("10.1.9.0/24"), earlier);
    // However long the store takes to answer.
    sleep(Duration::from_secs(600)).await;
    store.set_down(false);
    let (view, _) = view_that(&mut views, |view| view.connected).await;
    assert_eq!(view.peers.len(), 1);
    let (_, took) = view_that(&mut views, |view| view.peers.is_empty()).await;
    assert!((55..=60).contains(&took.as_secs()), "gone after {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_lease_is_deleted_is_gone_at_once() {
    let (store, mut views) = member().await;
    store.delete(PEER_KEY);
    let (_, took) = view_that(&mut views, |view| view.peers.is_empty()).await;
    assert_eq!(took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_everything_gets_our_lease_again_with_the_same_mac() {
    let store = Arc::new(Memory::new(CONFIG));
    // flanneld's lease: its MAC does not follow from the address.
    store.put(KEY, &vxlan("192.168.1.12", 0x77), Some(1));
    store.put(PEER_KEY, &vxlan("192.168.1.13", 3), Some(3));
    let mut views = join(&store, None);
    let before = connected(&mut views).await;

    store.wipe();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.value(KEY), Some(vxlan("192.168.1.12", 0x77)));
    let after = views.borrow_and_update().clone().unwrap();
    assert_eq!((&after.lease, &after.peers, after.held), (&before.lease, &before.peers, true));

    store.put(PEER_KEY, &vxlan("192.168.1.13", 3), Some(4));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(views.borrow().as_ref().unwrap().peers, before.peers);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_took_meanwhile_is_not_fought_for() {
    let (store, mut views) = member().await;
    store.put(KEY, &vxlan("192.168.1.99", 9), Some(9));
    let (view, _) = view_that(&mut views, |view| view.lease.subnet.to_string() != "10.1.9.0/24").await;
    assert!(view.held && view.conflicts.is_empty());
    assert_eq!(view.peers.len(), 2);
    sleep(2 * TTL).await;
    assert_eq!(store.value(KEY), Some(vxlan("192.168.1.99", 9)));
}

#[tokio::test(start_paused = true)]
async fn our_own_key_turned_to_garbage_is_put_right() {
    let (store, mut views) = member().await;
    let ours = store.value(KEY);
    store.put(KEY, "{", Some(7));
    let (view, _) = view_that(&mut views, |view| view.garbage == 1).await;
    assert!(view.held);
    let (view, took) = view_that(&mut views, |view| view.garbage == 0).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!((view.lease.subnet.to_string().as_str(), store.value(KEY)), ("10.1.9.0/24", ours));
}

#[tokio::test(start_paused = true)]
async fn a_dual_stack_key_of_ours_is_kept() {
    let store = Arc::new(Memory::new(CONFIG));
    let key = "10.1.9.0-24&fd00:1:2::-64";
    store.put(key, &vxlan("192.168.1.12", 1), Some(1));
    let mut views = join(&store, None);
    assert_eq!(connected(&mut views).await.lease.subnet, "10.1.9.0/24".parse().unwrap());
    sleep(10 * TTL).await;
    assert!(store.asked(key) >= 10, "renewed {} times", store.asked(key));
    assert_eq!((store.get(KEY), views.borrow().as_ref().unwrap().held), (None, true));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_ours_whatever_it_lacks_and_stays_one() {
    for value in [r#"{"PublicIP":"192.168.1.12"}"#, r#"{"PublicIP":"192.168.1.12","BackendType":"vxlan"}"#] {
        let store = Arc::new(Memory::new(CONFIG));
        store.put(PEER_KEY, value, None);
        let view = connected(&mut join(&store, None)).await;
        assert_eq!(view.lease.subnet, "10.1.163.0/24".parse().unwrap(), "{value}");
        sleep(3 * TTL).await;
        assert_eq!(store.get(PEER_KEY).unwrap().expiry, None);
        assert!(store.value(PEER_KEY).unwrap().contains("VtepMAC"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_no_longer_fits_is_given_up() {
    let store = Arc::new(Memory::new(CONFIG));
    store.put("10.1.9.0-25", &vxlan("192.168.1.12", 1), Some(1));
    store.put("10.1.163.0-25", &vxlan("192.168.1.13", 1), Some(1));
    let view = connected(&mut join(&store, Some("10.1.9.0/25"))).await;
    assert_eq!(view.lease.subnet.prefix_len(), 24);
    eventually("the misfit to be given up", || store.get("10.1.9.0-25").is_none()).await;
    assert!(store.get("10.1.163.0-25").is_some(), "another node's was given up");
}

/// Somebody names our address in any number of leases that cannot be ours.
#[tokio::test(start_paused = true)]
async fn nothing_waits_for_leases_of_ours_to_be_given_up() {
    let (store, mut views) = member().await;
    let key = |number: u16| format!("10.1.{}.{}-32", 200 + number / 256, number % 256);
    (0..MANY).for_each(|number| store.put(&key(number), &vxlan("192.168.1.12", 9), Some(9)));
    view_that(&mut views, |view| !view.conflicts.is_empty()).await;
    let conflicts = views.borrow().as_ref().unwrap().conflicts.len();
    assert!(conflicts <= 200, "{conflicts} conflicts are told");

    // It gives them up when it has listed the leases anew.
    store.release_slowly(Duration::from_secs(60));
    store.set_down(true);
    view_that(&mut views, |view| !view.connected).await;
    store.set_down(false);
    let (_, took) = view_that(&mut views, |view| view.connected).await;
    assert!(took < Duration::from_secs(60), "{took:?}");
    let before = store.asked(KEY);
    store.put("10.1.164.0-24", &vxlan("192.168.1.14", 4), Some(4));
    view_that(&mut views, |view| view.peers.len() == 2).await;
    let renewals = async {
        while store.asked(KEY) < before + 3 {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(4 * TTL, renewals).await.expect("renewals");
    assert!(store.count() > 3, "all are given up already");
    let gone = async {
        while store.count() > 3 {
            sleep(TTL).await;
        }
    };
    timeout(Duration::from_secs(100) * MANY.into(), gone).await.expect("all to be given up");
    assert!(store.get(KEY).is_some() && views.borrow().as_ref().unwrap().held);
}

const MANY: u16 = 2_000;

#[tokio::test(start_paused = true)]
async fn keys_for_which_there_is_no_room_are_told_and_cost_nobody_a_lease() {
    let store = Arc::new(Memory::new(CONFIG));
    store.put(PEER_KEY, &vxlan("192.168.1.13", 3), Some(3));
    let ((out, mut views), (stand, mut standing)) =
        (watch::channel(None), watch::channel(Standing::default()));
    let shared = Arc::clone(&store) as Arc<dyn LeaseStore>;
    tokio::spawn(Membership::new(shared, terms(Some("10.1.9.0/24")), None, out).telling(stand).run());
    let before = connected(&mut views).await;
    for beyond in [2, 1, 0] {
        store.have_beyond(beyond);
        let told = standing.wait_for(|standing| standing.beyond == beyond);
        timeout(TTL, told).await.expect("how many there are").unwrap();
        // Longer than what is missing is waited for.
        sleep(2 * TTL).await;
        let view = views.borrow().clone().unwrap();
        assert_eq!((view.held, &view.lease, &view.peers), (true, &before.lease, &before.peers), "{beyond}");
    }
    assert_eq!(store.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_key_a_listing_has_no_room_for_gets_its_lease_back_and_keeps_its_saved_peers() {
    let store = Arc::new(Memory::new(CONFIG));
    store.put("10.1.2.0-24", &vxlan("192.168.1.13", 3), Some(3));
    let mut views = join(&store, Some("10.1.9.0/24"));
    let before = connected(&mut views).await;
    drop(views);
    // Both keys: the other's, and the last one, ours.
    store.have_beyond(2);
    let mut views = join_again(&store, Some("10.1.9.0/24"), Some(before.clone()));
    connected(&mut views).await;
    // Longer than what is missing is waited for, and than a lease lasts.
    sleep(2 * TTL).await;
    let view = views.borrow().clone().unwrap();
    assert_eq!((view.held, &view.lease, &view.peers), (true, &before.lease, &before.peers));
    assert_eq!(store.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_this_host_comes_to_be_in_is_given_up_for_another() {
    for (config, moves) in [(CONFIG, true), (ONLY_OURS, false)] {
        let store = Arc::new(Memory::new(config));
        let (host, told) = watch::channel(HostFacts::default());
        let (out, mut views) = watch::channel(None);
        let shared = Arc::clone(&store) as Arc<dyn LeaseStore>;
        tokio::spawn(Membership::new(shared, terms(Some("10.1.9.0/24")), None, out).minding(told).run());
        connected(&mut views).await;
        let facts = |kept: [u8; 4], vital: [u8; 4]| {
            let [kept, vital] = [kept, vital].map(|address| [Ipv4Addr::from(address)].into());
            host.send_replace(HostFacts { kept, vital, ..HostFacts::default() });
        };
        // Somewhere else, and what the host can do without.
        for kept in [[192, 168, 1, 1], [10, 1, 9, 53]] {
            facts(kept, [10, 1, 10, 1]);
            sleep(2 * TTL).await;
            assert_eq!(views.borrow().as_ref().unwrap().lease.subnet.to_string(), "10.1.9.0/24");
        }

        facts([10, 1, 9, 77], [10, 1, 9, 77]);
        if moves {
            let (view, _) =
                view_that(&mut views, |view| view.lease.subnet.to_string() != "10.1.9.0/24").await;
            assert!(view.held);
            let others = async {
                while store.get(KEY).is_some() {
                    sleep(Duration::from_secs(1)).await;
                }
            };
            timeout(TTL, others).await.expect("the earlier lease to be given up");
            assert_eq!(store.count(), 1);
        } else {
            // There is no other: it stays, and is renewed, until there is.
            let before = store.asked(KEY);
            sleep(2 * TTL).await;
            assert!(store.get(KEY).is_some() && store.asked(KEY) > before);
            assert!(views.borrow().as_ref().unwrap().held);
        }
    }
}

const ONLY_OURS: &str =
    r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.9.0","Backend":{"Type":"vxlan"}}"#;

#[tokio::test(start_paused = true)]
async fn two_nodes_with_one_address_are_told_and_do_not_write_without_end() {
    let (store, mut views) = member().await;
    let before = store.asked(KEY);
    // The other one puts its own words back as soon as it sees ours.
    let other = Arc::clone(&store);
    let fight = tokio::spawn(async move {
        loop {
            other.put(KEY, &vxlan("192.168.1.12", 0x99), Some(99));
            sleep(Duration::from_secs(1)).await;
        }
    });
    let (view, took) = view_that(&mut views, |view| !view.conflicts.is_empty()).await;
    assert_eq!(took, Duration::ZERO);
    let text = view.conflicts[0].to_string();
    assert!(text.contains("192.168.1.12") && text.contains("02:00:00:00:00:99"), "{text}");
    sleep(Duration::from_secs(600)).await;
    fight.abort();
    let writes = store.asked(KEY) - before;
    assert!((5..=20).contains(&writes), "{writes} writes in ten minutes");

    sleep(Duration::from_secs(61)).await;
    assert!(!store.value(KEY).unwrap().contains(":99"), "the last word is not ours");
    let (_, took) = view_that(&mut views, |view| view.conflicts.is_empty()).await;
    assert!(took <= TTL, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_network_is_waited_for() {
    let store = Arc::new(Memory::new(r#"{"Network":"10.1.0.0/28","SubnetLen":30}"#));
    for (third, key) in ["10.1.0.4-30", "10.1.0.8-30", "10.1.0.12-30"].into_iter().enumerate() {
        store.put(key, &format!(r#"{{"PublicIP":"192.168.2.{}"}}"#, third + 1), Some(1));
    }
    let mut views = join(&store, None);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(*views.borrow(), None);
    store.delete("10.1.0.8-30");
    let (view, took) = view_that(&mut views, |view| view.connected).await;
    assert_eq!(view.lease.subnet, "10.1.0.8/30".parse().unwrap());
    assert!(took <= Duration::from_secs(8), "{took:?}");
}
