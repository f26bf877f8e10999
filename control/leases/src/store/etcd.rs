//! etcd v3 as the store: `<prefix>/config` and `<prefix>/subnets/<key>`, the way flannel uses them.
//!
//! Requests go through [`cluster`], which knows endpoints and connections. The two conditional writes
//! can be repeated safely: what an attempt did whose answer was lost is recognised by its etcd lease
//! and value. A watch is checked every few seconds by a question of its own, since a watch alone
//! cannot tell that nothing happens from that nothing arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, Error, GetResponse, KeyValue, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};
use futures::{StreamExt, stream};
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::entry::{Entry, Listing, Revision, Written};
use super::identity::StoreId;
use super::key::key_of;
use super::lease_store::{EventStream, LeaseStore, StoreError};
use crate::meters::StoreMeter;

mod access;
mod cluster;
mod config;
mod keys;
mod listing;
mod p521;
mod tls;
mod v2;
mod watch;

pub use access::{Access, IdentityFiles, Password, User};
use cluster::Cluster;
use config::Config;
use keys::{NO_LEASE, Prefix, entry, revision_of};
use watch::Watch;

/// A store in an etcd cluster.
pub struct EtcdStore {
    cluster: Arc<Cluster>,
    prefix: Prefix,
    v2: V2,
    /// For how many seconds a lease was asked for last, and for how many it was granted.
    least: Mutex<Option<(i64, i64)>>,
}

/// The search for a configuration that is only in the v2 store.
struct V2 {
    next: Mutex<Instant>,
    found: AtomicBool,
}

impl EtcdStore {
    /// A store on the cluster that is reached by any of `endpoints` (`http://host:port`), under the
    /// keys that begin with `prefix`. Nothing is sent yet: a cluster that is down is no error here,
    /// only a URL that is none, or no endpoint at all.
    pub async fn connect(endpoints: Vec<String>, prefix: String) -> Result<Self, StoreError> {
        Self::connect_as(endpoints, prefix, Access::default(), StoreMeter::default()).await
    }

    /// The same with certificates, a user, or both, counting requests on `meter`. Files are read when they
    /// are needed, and again when requests fail: see [`check_files`](Self::check_files).
    pub async fn connect_as(
        endpoints: Vec<String>,
        prefix: String,
        access: Access,
        meter: StoreMeter,
    ) -> Result<Self, StoreError> {
        let cluster = Arc::new(Cluster::new(endpoints, access, meter).await?);
        let v2 = V2 { next: Mutex::new(Instant::now()), found: AtomicBool::new(false) };
        Ok(Self { cluster, prefix: Prefix::of(&prefix), v2, least: Mutex::default() })
    }

    /// Whether the certificates can be used as they are now. A store that cannot use them fails
    /// request by request until they are put right.
    pub async fn check_files(&self) -> Result<(), StoreError> {
        self.cluster.load().await.map_err(|problem| StoreError::new("use etcd", problem))
    }

    async fn call<T, F>(&self, action: &str, request: impl Fn(Client, bool) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.cluster.call(action, request).await
    }

    /// While there is no configuration: says once if there is one that only v2 clients see.
    async fn look_in_v2(&self, key: &str) {
        {
            let mut next = self.v2.next.lock();
            if self.v2.found.load(Ordering::Relaxed) || Instant::now() < *next {
                return;
            }
            *next = Instant::now() + V2_INTERVAL;
        }
        let url = self.cluster.url(self.cluster.current());
        let Some(value) = v2::value(url, key).await else { return };
        self.v2.found.store(true, Ordering::Relaxed);
        let quoted = value.replace('\'', r"'\''");
        tracing::warn!(
            remedy = %format!("ETCDCTL_API=3 etcdctl --endpoints={url} put {key} '{quoted}'"),
            "the network configuration is in etcd's v2 store only, which neither overlayd nor a current \
             flanneld reads: put it into the v3 store"
        );
    }

    /// An etcd lease of `ttl`. If nothing comes to be attached to it, it ends by itself.
    async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = seconds(ttl);
        let grant = |mut client: Client, _| async move { client.lease_grant(seconds, None).await };
        let granted = self.call(&format!("grant a lease of {seconds} s"), grant).await?;
        *self.least.lock() = Some((seconds, granted.ttl()));
        Ok(granted.id())
    }

    /// Whether an etcd lease that was granted for `granted` seconds is what we get when we ask for `ttl`. A
    /// server grants no less than some of its elections take.
    fn is_granted_for(&self, granted: i64, ttl: Duration) -> bool {
        let least = *self.least.lock();
        granted == seconds(ttl) || least == Some((seconds(ttl), granted))
    }

    /// `held`, if that is how the key stands in the store.
    async fn find_unchanged(&self, held: &Entry) -> Result<Written, StoreError> {
        let path = self.prefix.path_of(&held.key);
        let response = get(&self.cluster, &format!("get {path}"), &path).await?;
        let is_unchanged = response.kvs().first().is_some_and(|kv| kv.mod_revision() == held.revision);
        Ok(if is_unchanged { Written::Done(held.clone()) } else { Written::Conflict })
    }

    /// Ends an etcd lease that nothing is attached to. If that fails, its time runs out anyway.
    async fn revoke(&self, lease: i64) {
        let revoke = |mut client: Client, _| async move { client.lease_revoke(lease).await };
        if let Err(error) = self.call(&format!("revoke lease {lease:x}"), revoke).await {
            tracing::debug!(%error, "an etcd lease is left to run out");
        }
    }

    /// Starts the time of an etcd lease anew; `false` if it has ended already, or was granted for
    /// another time than `ttl`, as in an earlier life with other flags.
    async fn keep_alive(&self, lease: i64, ttl: Duration) -> Result<bool, StoreError> {
        let keep_alive = |mut client: Client, _| async move {
            match client.lease_keep_alive(lease).await {
                Ok(_) => {
                    let granted = client.lease_time_to_live(lease, None).await?.granted_ttl();
                    Ok(self.is_granted_for(granted, ttl))
                }
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.call(&format!("keep lease {lease:x} alive"), keep_alive).await
    }

    /// Ends an etcd lease that a key was attached to, unless other keys are, which would go with it.
    async fn revoke_if_unused(&self, lease: i64) {
        let time_to_live = |mut client: Client, _| async move {
            client.lease_time_to_live(lease, Some(LeaseTimeToLiveOptions::new().with_keys())).await
        };
        match self.call(&format!("look at lease {lease:x}"), time_to_live).await {
            Ok(found) if found.keys().is_empty() && found.ttl() > 0 => self.revoke(lease).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "an etcd lease is left to run out"),
        }
    }

    /// Writes `value` at `key`, which names `subnet` and was `created` before unless it is new, attached to the
    /// etcd lease `expiry`, if `condition` holds.
    async fn write(
        &self,
        action: &str,
        (key, subnet, created): (String, Ipv4Net, Option<Revision>),
        value: &[u8],
        expiry: Option<i64>,
        condition: Compare,
    ) -> Result<Written, StoreError> {
        let path = self.prefix.path_of(&key);
        let lease = expiry.unwrap_or(NO_LEASE);
        let request = |mut client: Client, repeated: bool| {
            let put = TxnOp::put(path.as_str(), value, Some(PutOptions::new().with_lease(lease)));
            let get = TxnOp::get(path.as_str(), None);
            let txn = Txn::new().when([condition.clone()]).and_then([put]).or_else([get]);
            async move {
                let response = client.txn(txn).await?;
                if response.succeeded() {
                    return Ok(Some(revision_of(response.header())));
                }
                let found = response.op_responses().into_iter().next();
                let found = match &found {
                    Some(TxnOpResponse::Get(found)) => found.kvs().first(),
                    _ => None,
                };
                let done_before = |kv: &&KeyValue| repeated && kv.lease() == lease && kv.value() == value;
                Ok(found.filter(done_before).map(KeyValue::mod_revision))
            }
        };
        Ok(match self.call(action, request).await? {
            Some(revision) => {
                let created = created.unwrap_or(revision);
                Written::Done(Entry { key, subnet, value: value.to_vec(), revision, created, expiry })
            }
            None => Written::Conflict,
        })
    }
}

#[async_trait]
impl LeaseStore for EtcdStore {
    async fn expires_in(&self, held: &Entry) -> Result<Option<Duration>, StoreError> {
        let Some(lease) = held.expiry else { return Ok(None) };
        let ask = |mut client: Client, _| async move { client.lease_time_to_live(lease, None).await };
        let left = self.call(&format!("look at lease {lease:x}"), ask).await?.ttl();
        // -1 if it has ended meanwhile.
        Ok(Some(Duration::from_secs(u64::try_from(left).unwrap_or(0))))
    }

    fn knows_expiry(&self) -> bool {
        true
    }

    fn id(&self) -> StoreId {
        let endpoints = self.cluster.urls().map(str::to_owned).collect();
        StoreId::Etcd { endpoints, prefix: self.prefix.to_string() }
    }

    fn how_to_configure(&self, config: &str) -> String {
        let urls: Vec<&str> = self.cluster.urls().collect();
        format!("etcdctl --endpoints={} put {} '{config}'", urls.join(","), self.prefix.config_key())
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        let key = self.prefix.config_key();
        let config = Config::get(&self.cluster, &format!("get {key}"), &key).await?;
        if config.text.is_none() {
            self.look_in_v2(&key).await;
        }
        Ok(config.text)
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        listing::list(&self.cluster, &self.prefix.subnets()).await
    }

    async fn create(&self, subnet: Ipv4Net, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        let key = key_of(subnet);
        let path = self.prefix.path_of(&key);
        let lease = self.grant(ttl).await?;
        let absent = Compare::version(path.as_str(), CompareOp::Equal, 0);
        let written =
            self.write(&format!("create {path}"), (key, subnet, None), value, Some(lease), absent).await?;
        if written == Written::Conflict {
            self.revoke(lease).await;
        }
        Ok(written)
    }

    async fn entry_of(&self, subnet: Ipv4Net) -> Result<Option<Entry>, StoreError> {
        let key = key_of(subnet);
        let path = self.prefix.path_of(&key);
        let request = |mut client: Client, _| {
            let path = path.clone();
            async move { client.get(path, None).await }
        };
        let found = self.call(&format!("get {path}"), request).await?;
        Ok(found.kvs().first().map(|kv| entry((key, subnet), kv)))
    }

    async fn renew(&self, held: &Entry, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        let path = self.prefix.path_of(&held.key);
        // The lease first: once the value is written, there must be time for it.
        let (expiry, granted) = match held.expiry {
            None => (None, None),
            Some(lease) if self.keep_alive(lease, ttl).await? => (Some(lease), None),
            Some(_) => {
                let lease = self.grant(ttl).await?;
                (Some(lease), Some(lease))
            }
        };
        let unchanged = Compare::mod_revision(path.as_str(), CompareOp::Equal, held.revision);
        let name = (held.key.clone(), held.subnet, Some(held.created));
        let written = self.write(&format!("renew {path}"), name, value, expiry, unchanged).await;
        let written = match written {
            // Its time has begun anew, and that is all there was to do.
            Err(error) if granted.is_none() && value == held.value && error.reason.contains(NO_SPACE) => {
                self.find_unchanged(held).await?
            }
            written => written?,
        };
        if let (Written::Conflict, Some(lease)) = (&written, granted) {
            self.revoke(lease).await;
        }
        Ok(written)
    }

    async fn release(&self, held: &Entry) -> Result<bool, StoreError> {
        let path = self.prefix.path_of(&held.key);
        let request = |mut client: Client, repeated: bool| {
            let unchanged = Compare::mod_revision(path.as_str(), CompareOp::Equal, held.revision);
            let delete = TxnOp::delete(path.as_str(), None);
            let get = TxnOp::get(path.as_str(), None);
            let txn = Txn::new().when([unchanged]).and_then([delete]).or_else([get]);
            async move {
                let response = client.txn(txn).await?;
                let found = response.op_responses().into_iter().next();
                // Gone at the second attempt: the first one did it, and its answer was lost.
                let gone = matches!(&found, Some(TxnOpResponse::Get(found)) if found.kvs().is_empty());
                Ok(response.succeeded() || (repeated && gone))
            }
        };
        let released = self.call(&format!("remove {path}"), request).await?;
        if let (true, Some(lease)) = (released, held.expiry) {
            self.revoke_if_unused(lease).await;
        }
        Ok(released)
    }

    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError> {
        // A user may have the right to what is needed only, and not to all below the prefix.
        let open = async |watched: &str| Watch::open(&self.cluster, &self.prefix, from, watched).await;
        let watch = match open(&format!("{}/", self.prefix)).await {
            Err(error) if error.reason.contains("permission denied") => {
                let mut watch = open(&self.prefix.subnets()).await?;
                watch.unwatched_config = Some(watch.config_revision.min(from));
                watch
            }
            watch => watch?,
        };
        Ok(stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }).boxed())
    }
}

async fn get(cluster: &Cluster, action: &str, key: &str) -> Result<GetResponse, StoreError> {
    cluster.call(action, |mut client: Client, _| async move { client.get(key, None).await }).await
}

fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX)
}

/// What etcd says to writes once its quota is used up.
const NO_SPACE: &str = "database space exceeded";
/// How often a missing configuration is looked for in the v2 store.
const V2_INTERVAL: Duration = Duration::from_secs(10);
