//! What a store tells: its lease keys, and what becomes of them.

use ipnet::Ipv4Net;

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
    /// The JSON value, as stored; of one that is longer than [`MAX_VALUE`](super::MAX_VALUE) the beginning, one byte more than that.
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
    /// Keys beyond what one store may hold ([`Room`](super::Room)), which are not in `entries`.
    pub beyond: usize,
    /// The moment, from which `watch` goes on.
    pub revision: Revision,
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
