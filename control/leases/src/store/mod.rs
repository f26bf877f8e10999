//! Where leases live: a trait, and its implementations for etcd v3 and for a directory of files.
//!
//! A store knows keys and bytes; what they mean is `lease`'s business. It never retries by itself
//! for ever: an error says what failed, and the caller decides when to try again.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;

mod addresses;
mod dir;
mod endpoint;
mod etcd;
mod identity;
mod key;

pub use addresses::StoreAddresses;
pub use dir::DirStore;
pub use endpoint::Endpoint;
pub use etcd::{Access, EtcdStore, IdentityFiles, Password, User};
pub use identity::is_same_store;
pub use key::{KeyError, key_of, parse_key};

/// A point in the store's history, to hand back to the store it came from; nothing else can be told
/// from the number. etcd counts its writes, a directory's is a fingerprint of what is in it.
pub type Revision = i64;

/// One lease key as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key as it stands in the store, without what goes before it there: `10.1.86.0-24`, or a
    /// dual-stack node's, whose IPv6 half must be kept.
    pub key: String,
    /// The subnet that the key names.
    pub subnet: Ipv4Net,
    /// The JSON value, as stored; of one that is longer than [`MAX_VALUE`] the beginning, one byte more than that.
    pub value: Vec<u8>,
    /// Changes with every change of the key: what a conditional write compares with.
    pub revision: Revision,
    /// Tells which of two keys was there first; 0 in a store that does not know.
    pub created: Revision,
    /// Identifies the store's own expiry for this key; `None` for a key that never expires
    /// (a reservation, or any key of a store without expiry).
    pub expiry: Option<i64>,
}

/// All lease keys at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The keys that name a subnet. Others are left out and counted in `skipped`.
    pub entries: Vec<Entry>,
    /// Keys under `subnets/` whose name is not a subnet's.
    pub skipped: usize,
    /// Keys beyond what one store may hold ([`Room`]), which are not in `entries`.
    pub beyond: usize,
    /// The moment, from which `watch` goes on.
    pub revision: Revision,
}

/// How much of a store's leases is kept in memory: who writes there may be broken or hostile.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    keys: usize,
    bytes: usize,
}

impl Room {
    /// What is left for one store.
    pub const ALL: Self = Self { keys: MAX_KEYS, bytes: MAX_BYTES };

    /// Takes the place of a key and its value, if there is room for it.
    pub(crate) fn take(&mut self, key: impl AsRef<[u8]>, value: &[u8]) -> bool {
        let keys = self.keys.checked_sub(1);
        let bytes = self.bytes.checked_sub(key.as_ref().len() + value.len());
        let Some((keys, bytes)) = keys.zip(bytes) else { return false };
        *self = Self { keys, bytes };
        true
    }
}

/// A change that a watch reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A lease key was written.
    Put(Entry),
    /// The lease key of this name was removed or has expired.
    Delete(String),
    /// The network configuration was written (its text), or removed (`None`).
    Config(Option<String>),
    /// Changes may have been missed (compaction, wiped data, lost events, a directory replaced).
    /// Always the stream's last: read the configuration, list, and watch from there.
    Relist,
}

/// The outcome of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Done; the key now looks like this.
    Done(Entry),
    /// Somebody else's change came first; nothing was written.
    Conflict,
}

/// A store failed: what was tried, where, and why it did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct StoreError {
    /// The operation and its object, as in `list /coreos.com/network/subnets/`.
    pub action: String,
    /// What the store or the network said, and at which endpoint.
    pub reason: String,
}

impl StoreError {
    pub(crate) fn new(action: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { action: action.into(), reason: reason.to_string() }
    }
}

/// A place that keeps the network configuration and the leases of all nodes.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// What and where it is, for people: `etcd http://127.0.0.1:2379 /coreos.com/network`, `dir /var/lib/overlay`.
    fn describe(&self) -> String;

    /// What an operator does to put a network configuration there, as a command.
    fn how_to_configure(&self, config: &str) -> String;

    /// The network configuration's text; `None` while nobody has put one.
    async fn config(&self) -> Result<Option<String>, StoreError>;

    /// All leases.
    async fn list(&self) -> Result<Listing, StoreError>;

    /// Creates the key of `subnet` if there is none, to expire after `ttl` unless renewed
    /// (in a store that knows expiry).
    async fn create(&self, subnet: Ipv4Net, value: &[u8], ttl: Duration) -> Result<Written, StoreError>;

    /// Renews `held`: writes `value` and starts its time anew, only if the key has not changed since.
    /// A key without expiry keeps having none.
    async fn renew(&self, held: &Entry, value: &[u8], ttl: Duration) -> Result<Written, StoreError>;

    /// Removes `held`, and the store's expiry that went with it, only if the key has not changed
    /// since; otherwise nothing is removed, and the answer is `false`.
    async fn release(&self, held: &Entry) -> Result<bool, StoreError>;

    /// How long `held` has until it ends by itself, unless it is renewed; `None` if it does not.
    async fn expires_in(&self, _held: &Entry) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Whether leases end here by themselves, so that one without an end is a reservation.
    fn knows_expiry(&self) -> bool {
        false
    }

    /// Follows all changes after `from`, the revision of a listing or of an event. The stream ends
    /// with `Relist` or with an error, never silently. After an error, watching again from the last
    /// revision seen loses nothing; what cannot be made up for is told as `Relist`.
    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError>;
}

/// The most lease keys of a store that are used: ten times the nodes of the largest network that is tested.
pub const MAX_KEYS: usize = 1_000_000;
/// The most that they and their values may have, in bytes: 500 a key.
const MAX_BYTES: usize = 500 * MAX_KEYS;

/// The longest value that can be a lease's, in bytes. Nodes write 150.
pub const MAX_VALUE: usize = 4096;

/// The longest network configuration, in bytes.
const MAX_CONFIG: usize = 16 * 1024;

/// A network configuration as text; of one that is too long, words that are none. Go replaces what is not
/// UTF-8 inside a JSON text, too.
fn config_text(bytes: &[u8]) -> String {
    if bytes.len() > MAX_CONFIG {
        return format!("(longer than {MAX_CONFIG} bytes)");
    }
    String::from_utf8_lossy(bytes).into_owned()
}

/// `value`, cut so that its reader sees that it is too long.
fn bounded(value: &[u8], most: usize) -> Vec<u8> {
    value[..value.len().min(most + 1)].to_vec()
}

/// The changes after a revision, in order; each with the revision that it leads to.
pub type EventStream = futures::stream::BoxStream<'static, Result<(Revision, Event), StoreError>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_keys_and_for_so_many_bytes() {
        let mut few = Room { keys: 2, bytes: 100 };
        assert_eq!([few.take("a", b"1"), few.take("b", b"2"), few.take("c", b"3")], [true, true, false]);
        let mut short = Room { keys: 100, bytes: 10 };
        assert_eq!(
            [
                short.take("key", b"1234"),
                short.take("key", b"1"),
                short.take("k", b"12"),
                short.take("", b"1")
            ],
            [true, false, true, false]
        );
    }
}
