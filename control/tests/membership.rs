//! A node's membership, over a real directory of lease files.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use control::membership::{Membership, Terms, View};
use control::store::{DirStore, Entry, EventStream, LeaseStore, Listing, Revision, StoreError, Written};
use ipnet::Ipv4Net;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// A directory store that counts what is asked of it.
struct Counting {
    inner: DirStore,
    configs: AtomicUsize,
    creates: AtomicUsize,
}

#[async_trait]
impl LeaseStore for Counting {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn config(&self) -> Result<Option<String>, StoreError> {
        self.configs.fetch_add(1, Relaxed);
        self.inner.config().await
    }
    async fn list(&self) -> Result<Listing, StoreError> {
        self.inner.list().await
    }
    async fn create(&self, subnet: Ipv4Net, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        self.creates.fetch_add(1, Relaxed);
        self.inner.create(subnet, value, ttl).await
    }
    async fn renew(&self, held: &Entry, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        self.inner.renew(held, value, ttl).await
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
fn join(store: &Arc<Counting>, previous: Option<&str>) -> watch::Receiver<Option<View>> {
    let terms = Terms {
        public_ip: Ipv4Addr::new(192, 168, 1, 12),
        previous: previous.map(|subnet| subnet.parse().unwrap()),
        vtep_mac: None,
        ttl: Duration::from_secs(60),
        renew_margin: Duration::from_secs(10),
    };
    let (out, views) = watch::channel(None);
    tokio::spawn(Membership::new(Arc::clone(store) as Arc<dyn LeaseStore>, terms, None, out).run());
    views
}

async fn connected(views: &mut watch::Receiver<Option<View>>) -> View {
    let view = views.wait_for(|view| view.as_ref().is_some_and(|view| view.connected));
    timeout(Duration::from_secs(5), view).await.unwrap().unwrap().clone().unwrap()
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
    directory.join("subnets").join(control::lease::key_of(view.lease.subnet))
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
