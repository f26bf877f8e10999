//! How the etcd store is connected: users, prefixes, and a watch that stays silent.

#[allow(dead_code, reason = "shared with the contract of all stores, which uses the rest")]
mod stores;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission};
use ipnet::Ipv4Net;

use overlay_leases::meters::StoreMeter;
use overlay_leases::store::{Access, EtcdStore, Event, LeaseStore, Password, User};
use stores::{Etcd, PATIENCE, PREFIX, next, put_of};

const TTL: Duration = Duration::from_secs(3600);
const VALUE: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;

#[tokio::test]
async fn a_user_is_no_hindrance_before_authentication_is_turned_on_nor_after() {
    let etcd = Etcd::start().await;
    let store = open(&etcd, "flannel", "right").await;
    assert_eq!(store.config().await.unwrap(), None);
    enable_auth(&etcd, &format!("{PREFIX}/")).await;
    assert_eq!(store.config().await.unwrap(), None);
    store.create(net(86), VALUE.as_bytes(), TTL).await.unwrap();
    drop(store.watch(0).await.unwrap());
}

#[tokio::test]
async fn rights_to_the_configuration_and_the_leases_are_enough() {
    let etcd = Etcd::start().await;
    etcd.client().await.put(format!("{PREFIX}/config"), "one", None).await.unwrap();
    enable_auth(&etcd, &format!("{PREFIX}/subnets/")).await;
    let store = open(&etcd, "flannel", "right").await;
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    store.create(net(86), VALUE.as_bytes(), TTL).await.unwrap();
    assert_eq!(put_of(next(&mut events).await.1).subnet, net(86));
    let options = ConnectOptions::new().with_user("root", "root");
    let mut root = Client::connect([etcd.url()], Some(options)).await.unwrap();
    root.put(format!("{PREFIX}/config"), "two", None).await.unwrap();
    assert_eq!(next(&mut events).await.1, Event::Config(Some("two".to_owned())));
}

#[tokio::test]
async fn a_watch_that_is_refused_is_an_error_and_not_a_watch_that_ends() {
    let etcd = Etcd::start().await;
    enable_auth(&etcd, "/elsewhere/").await;
    let store = open(&etcd, "flannel", "right").await;
    let error = store.watch(0).await.err().expect("no watch");
    assert!(error.reason.contains("permission denied") && error.reason.contains("'flannel'"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_told_without_showing_it() {
    let etcd = Etcd::start().await;
    enable_auth(&etcd, PREFIX).await;
    let error = open(&etcd, "flannel", "wrong").await.config().await.unwrap_err();
    assert!(error.reason.contains("--etcd-username=flannel and --etcd-password"), "{error}");
    let error =
        EtcdStore::connect(vec![etcd.url()], PREFIX.into()).await.unwrap().config().await.unwrap_err();
    assert!(error.reason.contains("give --etcd-username and --etcd-password"), "{error}");
}

#[tokio::test]
async fn networks_whose_prefixes_begin_alike_do_not_mix() {
    let etcd = Etcd::start().await;
    let store = async |prefix: &str| EtcdStore::connect(vec![etcd.url()], prefix.into()).await.unwrap();
    let (one, slashed, two) = (store("/net").await, store("/net/").await, store("/net2").await);
    let mut events = one.watch(one.list().await.unwrap().revision).await.unwrap();
    two.create(net(2), VALUE.as_bytes(), TTL).await.unwrap();
    slashed.create(net(1), VALUE.as_bytes(), TTL).await.unwrap();
    assert_eq!(put_of(next(&mut events).await.1).subnet, net(1), "the other network's change was told");
    for (store, own) in [(&one, 1), (&slashed, 1), (&two, 2)] {
        let listing = store.list().await.unwrap();
        let subnets: Vec<_> = listing.entries.iter().map(|entry| entry.subnet).collect();
        assert_eq!((subnets, listing.skipped), (vec![net(own)], 0));
    }
}

/// etcd's own proxy keeps a watch open whatever happens to the servers behind it.
#[tokio::test]
async fn a_watch_that_stays_silent_over_wiped_data_means_listing_again() {
    let mut etcd = Etcd::start().await;
    let proxy = Proxy::start(&etcd);
    let store = EtcdStore::connect(vec![proxy.url()], PREFIX.into()).await.unwrap();
    let listed = async {
        while store.list().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listed).await.expect("the proxy answers");
    for third in 1..=10 {
        store.create(net(third), VALUE.as_bytes(), TTL).await.unwrap();
    }
    let mut events = store.watch(store.list().await.unwrap().revision).await.unwrap();
    etcd.kill();
    etcd.restart(true).await;
    assert_eq!(next(&mut events).await.1, Event::Relist);
}

struct Proxy {
    process: Child,
    port: u16,
}

impl Proxy {
    fn start(etcd: &Etcd) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("etcd")
            .args(["grpc-proxy", "start", "--endpoints", &etcd.url()])
            .arg(format!("--listen-addr=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd's proxy can be started");
        Self { process, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn open(etcd: &Etcd, name: &str, password: &str) -> EtcdStore {
    let user = User { name: name.to_owned(), password: Password(password.to_owned()) };
    let access = Access { user: Some(user), ..Access::default() };
    EtcdStore::connect_as(vec![etcd.url()], PREFIX.to_owned(), access, StoreMeter::default())
        .await
        .expect("a store")
}

/// Turns authentication on, for a user `flannel` who may do everything below `prefix`, and read the
/// configuration.
async fn enable_auth(etcd: &Etcd, prefix: &str) {
    let mut client: Client = etcd.client().await;
    client.user_add("root", "root", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("network").await.unwrap();
    client.role_grant_permission("network", Permission::read_write(prefix).with_prefix()).await.unwrap();
    client.role_grant_permission("network", Permission::read(format!("{PREFIX}/config"))).await.unwrap();
    client.user_add("flannel", "right", None).await.unwrap();
    client.user_grant_role("flannel", "network").await.unwrap();
    client.auth_enable().await.unwrap();
    let options = ConnectOptions::new().with_user("root", "root");
    Client::connect([etcd.url()], Some(options)).await.expect("authentication works");
}

fn net(third: u8) -> Ipv4Net {
    Ipv4Net::new_assert([10, 1, third, 0].into(), 24)
}
