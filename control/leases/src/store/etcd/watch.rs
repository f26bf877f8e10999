//! Following the changes of a cluster, from a revision on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use etcd_client::{Client, Error, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::sleep;

use super::cluster::{Cluster, is_too_long};
use super::config::Config;
use super::keys::{Prefix, entry, name_of, revision_of};
use crate::store::entry::{Event, Revision};
use crate::store::lease_store::StoreError;
use crate::store::limits::config_text;

/// One watch and what of its last message is yet to be told.
pub(super) struct Watch {
    stream: WatchStream,
    /// Keeps the stream's connection when the cluster makes new ones.
    _client: Client,
    checks: BoxStream<'static, Result<Checked, StoreError>>,
    cluster: Arc<Cluster>,
    /// Where the stream comes from.
    endpoint: usize,
    action: String,
    config_key: String,
    /// The configuration's revision when the watch began; 0 without a configuration.
    pub(super) config_revision: Revision,
    /// The revision of the configuration last told of, if the stream does not tell of it.
    pub(super) unwatched_config: Option<Revision>,
    subnets_prefix: String,
    /// The store's latest revision that we know of.
    seen: Arc<AtomicI64>,
    queue: VecDeque<Result<(Revision, Event), StoreError>>,
    ended: bool,
}

/// The answer to a check, and the latest revision that was known before it.
struct Checked {
    before: Revision,
    config: Config,
}

impl Watch {
    /// A watch of the keys of the network `prefix` that begin with `watched`.
    pub(super) async fn open(
        cluster: &Arc<Cluster>,
        prefix: &Prefix,
        from: Revision,
        watched: &str,
    ) -> Result<Self, StoreError> {
        let action = format!("watch {watched}");
        let config_key = prefix.config_key();
        let request = |mut client: Client, _| {
            let options = WatchOptions::new().with_prefix().with_fragment().with_start_revision(from + 1);
            let config_key = config_key.as_str();
            async move {
                // Asked of the same server first: it has now seen all that any has, and our token is good.
                let newest = client.get(config_key, Some(GetOptions::new().with_keys_only())).await?;
                let mut stream = client.watch(watched, Some(options)).await?;
                // A watch that is refused is told by a message, and is no watch that came to an end.
                let first =
                    stream.message().await?.ok_or(Error::WatchError("the connection ended".into()))?;
                if first.canceled() && first.compact_revision() == 0 {
                    return Err(Error::WatchError(first.cancel_reason().to_owned()));
                }
                Ok((client, stream, first, newest))
            }
        };
        let (client, stream, first, newest) = cluster.call(&action, request).await?;
        let seen = Arc::new(AtomicI64::new(from));
        let mut watch = Self {
            stream,
            _client: client,
            checks: checks(Arc::clone(cluster), config_key.clone(), Arc::clone(&seen)),
            endpoint: cluster.current(),
            cluster: Arc::clone(cluster),
            action,
            config_key,
            config_revision: newest.kvs().first().map_or(0, KeyValue::mod_revision),
            unwatched_config: None,
            subnets_prefix: prefix.subnets(),
            seen,
            queue: VecDeque::new(),
            ended: false,
        };
        if revision_of(newest.header()) < from {
            watch.relist();
        } else {
            watch.take(&first);
        }
        Ok(watch)
    }

    pub(super) async fn next(&mut self) -> Option<Result<(Revision, Event), StoreError>> {
        while self.queue.is_empty() && !self.ended {
            tokio::select! {
                message = self.stream.message() => match message {
                    Ok(Some(message)) => self.take(&message),
                    Ok(None) => self.fail("the connection ended"),
                    // One change is too long to be told. A listing leaves out what is too long.
                    Err(error) if is_too_long(&error) => self.relist(),
                    Err(error) => self.fail(self.cluster.explain(self.endpoint, &error)),
                },
                Some(checked) = self.checks.next() => self.heed(checked),
            }
        }
        self.queue.pop_front()
    }

    /// What a check says of a watch that has nothing to say itself.
    fn heed(&mut self, checked: Result<Checked, StoreError>) {
        let Checked { before, config } = match checked {
            Ok(checked) => checked,
            Err(error) => {
                self.queue.push_back(Err(error));
                self.ended = true;
                return;
            }
        };
        if config.now < before {
            self.relist();
        } else if self.cluster.current() != self.endpoint {
            self.fail(format!("{} answers no more, another does", self.cluster.url(self.endpoint)));
        } else if let Some(told) = &mut self.unwatched_config
            && *told != config.revision
        {
            *told = config.revision;
            let seen = self.seen.load(Ordering::Relaxed);
            self.queue.push_back(Ok((seen, Event::Config(config.text))));
        }
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
        if revision < self.seen.load(Ordering::Relaxed) {
            self.relist();
            return;
        }
        self.seen.store(revision, Ordering::Relaxed);
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            if let Some(told) = self.meaning(event.event_type(), kv) {
                self.queue.push_back(Ok((kv.mod_revision(), told)));
            }
        }
    }

    fn meaning(&self, kind: EventType, kv: &KeyValue) -> Option<Event> {
        if kv.key() == self.config_key.as_bytes() {
            return Some(Event::Config((kind == EventType::Put).then(|| config_text(kv.value()))));
        }
        let (key, subnet) = name_of(kv, &self.subnets_prefix)?;
        Some(match kind {
            EventType::Put => Event::Put(entry((key, subnet), kv)),
            EventType::Delete => Event::Delete(key),
        })
    }

    fn relist(&mut self) {
        self.queue.push_back(Ok((self.seen.load(Ordering::Relaxed), Event::Relist)));
        self.ended = true;
    }

    fn fail(&mut self, reason: impl std::fmt::Display) {
        self.queue.push_back(Err(StoreError::new(self.action.as_str(), reason)));
        self.ended = true;
    }
}

/// Asks every few seconds whether the store is there, how far its history goes, and for the configuration.
fn checks(
    cluster: Arc<Cluster>,
    key: String,
    seen: Arc<AtomicI64>,
) -> BoxStream<'static, Result<Checked, StoreError>> {
    stream::unfold((), move |()| {
        let (cluster, key, seen) = (Arc::clone(&cluster), key.clone(), Arc::clone(&seen));
        async move {
            sleep(CHECK_INTERVAL).await;
            let before = seen.load(Ordering::Relaxed);
            let config = Config::get(&cluster, "check that etcd answers", &key).await;
            Some((config.map(|config| Checked { before, config }), ()))
        }
    })
    .boxed()
}

/// How long a watch may stay silent before the store is asked whether it is still there and still the
/// same. With thousands of nodes this is a thousand reads of one key a second.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
