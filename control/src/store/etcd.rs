//! etcd v3 as the store: `<prefix>/config` and `<prefix>/subnets/<key>`, the way flannel uses them.
//!
//! There is one client for each endpoint rather than one over all: a call stays with the endpoint
//! that answered last and goes to the next when that one fails, so that a dead endpoint costs one
//! attempt and not a share of all calls. The two conditional writes can be repeated safely: what an
//! attempt did whose answer was lost is recognised by its etcd lease and value.

use std::collections::VecDeque;
use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, KeyValue,
    LeaseTimeToLiveOptions, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchResponse, WatchStream,
};
use futures::StreamExt;
use futures::stream;
use ipnet::Ipv4Net;

use super::{Entry, Event, EventStream, LeaseStore, Listing, Revision, StoreError, Written};
use crate::lease::{key_of, parse_key};

/// A store in an etcd cluster.
pub struct EtcdStore {
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    current: AtomicUsize,
    /// With a leading slash and without a trailing one.
    prefix: String,
}

struct Endpoint {
    url: String,
    client: Client,
}

impl EtcdStore {
    /// A store on the cluster that is reached by any of `endpoints` (`http://host:port`), under the
    /// keys that begin with `prefix`. Nothing is sent yet: a cluster that is down is no error here,
    /// only a URL that is none, or no endpoint at all.
    pub async fn connect(endpoints: Vec<String>, prefix: String) -> Result<Self, StoreError> {
        let mut connected = Vec::with_capacity(endpoints.len());
        for url in endpoints {
            let client = Client::connect([&url], Some(connect_options()))
                .await
                .map_err(|error| StoreError::new(format!("use etcd endpoint {url:?}"), reason(&error)))?;
            connected.push(Endpoint { url, client });
        }
        if connected.is_empty() {
            return Err(StoreError::new("use etcd", "no endpoint is given"));
        }
        Ok(Self { endpoints: connected, current: AtomicUsize::new(0), prefix: normalized(&prefix) })
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.subnets_prefix())
    }

    fn subnets_prefix(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// Makes one request: at the endpoint that answered last, then at each other, and at a lone one
    /// twice, since a connection may have died unnoticed. The request is told whether it is repeated.
    async fn call<T, F>(&self, action: &str, request: impl Fn(Client, bool) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut reasons: Vec<String> = Vec::new();
        let first = self.current.load(Ordering::Relaxed);
        for attempt in 0..self.endpoints.len().max(2) {
            let index = (first + attempt) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let reason =
                match tokio::time::timeout(TIMEOUT, request(endpoint.client.clone(), attempt > 0)).await {
                    Ok(Ok(answer)) => {
                        self.current.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Ok(Err(error)) => format!("{}: {}", endpoint.url, reason(&error)),
                    Err(_) => format!("{}: no answer within {} s", endpoint.url, TIMEOUT.as_secs()),
                };
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        Err(StoreError::new(action, reasons.join("; ")))
    }

    /// An etcd lease of `ttl`. If nothing comes to be attached to it, it ends by itself.
    async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let grant = |mut client: Client, _| async move { client.lease_grant(seconds, None).await };
        Ok(self.call(&format!("grant a lease of {seconds} s"), grant).await?.id())
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
                    Ok(u64::try_from(granted) == Ok(ttl.as_secs().max(1)))
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

    /// Writes `value` at `key`, which names `subnet`, attached to the etcd lease `expiry`, if `condition` holds.
    async fn write(
        &self,
        action: &str,
        (key, subnet): (String, Ipv4Net),
        value: &[u8],
        expiry: Option<i64>,
        condition: Compare,
    ) -> Result<Written, StoreError> {
        let path = self.path_of(&key);
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
            Some(revision) => Written::Done(Entry { key, subnet, value: value.to_vec(), revision, expiry }),
            None => Written::Conflict,
        })
    }
}

#[async_trait]
impl LeaseStore for EtcdStore {
    fn describe(&self) -> String {
        let urls: Vec<&str> = self.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
        format!("etcd {} {}", urls.join(","), self.prefix)
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        let key = self.config_key();
        let get = |mut client: Client, _| {
            let key = key.as_str();
            async move { client.get(key, None).await }
        };
        let response = self.call(&format!("get {key}"), get).await?;
        Ok(response.kvs().first().map(as_text))
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let prefix = self.subnets_prefix();
        let get = |mut client: Client, _| {
            let prefix = prefix.as_str();
            async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }
        };
        let response = self.call(&format!("list {prefix}"), get).await?;
        let mut listing = Listing { revision: revision_of(response.header()), ..Listing::default() };
        for kv in response.kvs() {
            match name_of(kv, &prefix) {
                Some(name) => listing.entries.push(entry(name, kv)),
                None => listing.skipped += 1,
            }
        }
        Ok(listing)
    }

    async fn create(&self, subnet: Ipv4Net, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        let key = key_of(subnet);
        let path = self.path_of(&key);
        let lease = self.grant(ttl).await?;
        let absent = Compare::version(path.as_str(), CompareOp::Equal, 0);
        let written =
            self.write(&format!("create {path}"), (key, subnet), value, Some(lease), absent).await?;
        if written == Written::Conflict {
            self.revoke(lease).await;
        }
        Ok(written)
    }

    async fn renew(&self, held: &Entry, value: &[u8], ttl: Duration) -> Result<Written, StoreError> {
        let path = self.path_of(&held.key);
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
        let name = (held.key.clone(), held.subnet);
        let written = self.write(&format!("renew {path}"), name, value, expiry, unchanged).await?;
        if let (Written::Conflict, Some(lease)) = (&written, granted) {
            self.revoke(lease).await;
        }
        Ok(written)
    }

    async fn release(&self, held: &Entry) -> Result<bool, StoreError> {
        let path = self.path_of(&held.key);
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
        let prefix = format!("{}/", self.prefix);
        let action = format!("watch {prefix}");
        let request = |mut client: Client, _| {
            let options = WatchOptions::new().with_prefix().with_start_revision(from + 1);
            let prefix = prefix.as_str();
            async move { client.watch(prefix, Some(options)).await }
        };
        let stream = self.call(&action, request).await?;
        let watch = Watch {
            stream,
            action,
            config_key: self.config_key(),
            subnets_prefix: self.subnets_prefix(),
            seen: from,
            queue: VecDeque::new(),
            ended: false,
        };
        Ok(stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }).boxed())
    }
}

/// One watch and what of its last message is yet to be told.
struct Watch {
    stream: WatchStream,
    action: String,
    config_key: String,
    subnets_prefix: String,
    /// The store's latest revision that we know of.
    seen: Revision,
    queue: VecDeque<Result<(Revision, Event), StoreError>>,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<(Revision, Event), StoreError>> {
        while self.queue.is_empty() && !self.ended {
            match self.stream.message().await {
                Ok(Some(message)) => self.take(&message),
                Ok(None) => self.fail("the connection ended"),
                Err(error) => self.fail(reason(&error)),
            }
        }
        self.queue.pop_front()
    }

    fn take(&mut self, message: &WatchResponse) {
        // History that is compacted cannot be told any more.
        if message.compact_revision() > 0 {
            self.relist();
            return;
        }
        if message.canceled() {
            self.fail(message.cancel_reason());
            return;
        }
        // A store that knows less than it did has lost its data: it would stay silent until it has
        // caught up with us.
        let revision = revision_of(message.header());
        if revision < self.seen {
            self.relist();
            return;
        }
        self.seen = revision;
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            if let Some(told) = self.meaning(event.event_type(), kv) {
                self.queue.push_back(Ok((kv.mod_revision(), told)));
            }
        }
    }

    fn meaning(&self, kind: EventType, kv: &KeyValue) -> Option<Event> {
        if kv.key() == self.config_key.as_bytes() {
            return Some(Event::Config((kind == EventType::Put).then(|| as_text(kv))));
        }
        let (key, subnet) = name_of(kv, &self.subnets_prefix)?;
        Some(match kind {
            EventType::Put => Event::Put(entry((key, subnet), kv)),
            EventType::Delete => Event::Delete(key),
        })
    }

    fn relist(&mut self) {
        self.queue.push_back(Ok((self.seen, Event::Relist)));
        self.ended = true;
    }

    fn fail(&mut self, reason: impl std::fmt::Display) {
        self.queue.push_back(Err(StoreError::new(self.action.as_str(), reason)));
        self.ended = true;
    }
}

fn connect_options() -> ConnectOptions {
    ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // etcd hangs up on a client that pings without a request open.
        .with_keep_alive_while_idle(false)
        // A member cut off from its cluster must say so rather than let a watch wait for ever.
        .with_require_leader(true)
}

/// `prefix` with a leading slash and without a trailing one; empty for the root.
fn normalized(prefix: &str) -> String {
    match prefix.trim_matches('/') {
        "" => String::new(),
        inner => format!("/{inner}"),
    }
}

/// The key without its prefix, and the subnet that it names.
fn name_of(kv: &KeyValue, subnets_prefix: &str) -> Option<(String, Ipv4Net)> {
    let name = std::str::from_utf8(kv.key().strip_prefix(subnets_prefix.as_bytes())?).ok()?;
    Some((name.to_owned(), parse_key(name).ok()?))
}

fn entry((key, subnet): (String, Ipv4Net), kv: &KeyValue) -> Entry {
    Entry {
        key,
        subnet,
        value: kv.value().to_vec(),
        revision: kv.mod_revision(),
        expiry: Some(kv.lease()).filter(|lease| *lease != NO_LEASE),
    }
}

fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, ResponseHeader::revision)
}

/// Go replaces what is not UTF-8 inside a JSON text, too.
fn as_text(kv: &KeyValue) -> String {
    String::from_utf8_lossy(kv.value()).into_owned()
}

/// The error in one line, down to the cause that a person can act on.
fn reason(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        other => (other.to_string(), other.source()),
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// etcd's word for a key that never expires.
const NO_LEASE: i64 = 0;
/// For one attempt at one request. A healthy cluster answers in milliseconds, one that elects a leader in one or two seconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Leaves time, within `TIMEOUT`, for nothing but an attempt that was going to fail anyway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// etcd refuses pings that come more often than every 5 s (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A server that does not answer a ping for this long is dead to a watch.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_a_leading_slash_and_no_trailing_one() {
        for prefix in
            ["/coreos.com/network", "coreos.com/network", "/coreos.com/network/", "//coreos.com/network//"]
        {
            assert_eq!(normalized(prefix), "/coreos.com/network", "{prefix}");
        }
        assert_eq!(normalized("/"), "");
    }
}
