//! What is in the directory of a store at one moment.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use ipnet::Ipv4Net;

use crate::store::entry::{Entry, Listing, Revision};
use crate::store::key::parse_key;

/// What is in the directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub(super) config: Option<Vec<u8>>,
    /// By key; all of them name a subnet.
    pub(super) leases: BTreeMap<String, Vec<u8>>,
    pub(super) skipped: usize,
    /// Files of leases for which there is no room.
    pub(super) beyond: usize,
}

impl Snapshot {
    /// The sum over the files, so that it does not depend on their order.
    pub(super) fn revision(&self) -> Revision {
        let config = self.config.as_ref().map_or(0, |text| fingerprint("config", text));
        self.leases.iter().fold(config, |sum, (key, value)| sum.wrapping_add(fingerprint(key, value)))
    }

    pub(super) fn listing(self) -> Listing {
        Listing {
            revision: self.revision(),
            skipped: self.skipped,
            beyond: self.beyond,
            entries: self
                .leases
                .into_iter()
                .filter_map(|(key, value)| Some(entry(key.clone(), parse_key(&key).ok()?, value)))
                .collect(),
        }
    }
}

pub(super) fn entry(key: String, subnet: Ipv4Net, value: Vec<u8>) -> Entry {
    Entry { revision: fingerprint(&key, &value), created: 0, key, subnet, value, expiry: None }
}

/// Stands for a name and a content; the same in all processes of one build.
pub(super) fn fingerprint(name: impl Hash, content: &[u8]) -> Revision {
    let mut hasher = DefaultHasher::new();
    (name, content).hash(&mut hasher);
    hasher.finish().cast_signed()
}
