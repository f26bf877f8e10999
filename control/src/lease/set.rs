//! All leases of the network as the store last showed them. Pure: listings and events go in, what
//! changed comes out. The result depends only on what the store holds, not on how it was learned.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::{BackendKind, Lease, LeaseAttrs};
use crate::json::{JsonError, shorten};
use crate::store::{Entry, Event, Listing};

/// The leases by subnet. Subnets that overlap are all kept: which one a packet takes is the table's business.
#[derive(Debug, Clone, Default)]
pub struct LeaseSet {
    known: BTreeMap<Ipv4Net, Known>,
    /// Keys whose value is not a lease, with that value, so that each is reported once.
    garbage: BTreeMap<Ipv4Net, Vec<u8>>,
}

/// A lease together with its place in the store, which a renewal needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The key as stored.
    pub entry: Entry,
    /// Its value, understood.
    pub attrs: LeaseAttrs,
}

/// What a listing or an event changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Leases that are new or say something else than before. A renewal alone is no change.
    pub put: Vec<Ipv4Net>,
    /// Leases that are gone, or whose value has become garbage.
    pub removed: Vec<Ipv4Net>,
    /// Values that are not leases and were not reported before.
    pub garbage: Vec<Garbage>,
}

/// A key whose value is not a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// The subnet that the key names. It counts as taken.
    pub subnet: Ipv4Net,
    /// The value, shortened for a message.
    pub value: String,
    /// Why it is no lease.
    pub error: JsonError,
}

/// The nodes to exchange packets with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// One lease for each, by subnet.
    pub leases: Vec<Lease>,
    /// How many leases were left out because their backend is of another kind.
    pub other_backend: usize,
}

impl Changes {
    /// Whether the leases are as they were. New garbage on a key that held no lease changes none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.removed.is_empty()
    }
}

impl LeaseSet {
    /// Makes the set what `listing` says.
    pub fn apply(&mut self, listing: &Listing) -> Changes {
        let listed: BTreeSet<Ipv4Net> = listing.entries.iter().map(|entry| entry.subnet).collect();
        let mut changes = Changes::default();
        let gone: Vec<Ipv4Net> = self.subnets().filter(|subnet| !listed.contains(subnet)).collect();
        for subnet in gone {
            self.delete(subnet, &mut changes);
        }
        for entry in &listing.entries {
            self.put(entry, &mut changes);
        }
        changes
    }

    /// Follows one change. `Config` and `Relist` are not about leases and change nothing here.
    pub fn apply_event(&mut self, event: &Event) -> Changes {
        let mut changes = Changes::default();
        match event {
            Event::Put(entry) => self.put(entry, &mut changes),
            Event::Delete(subnet) => self.delete(*subnet, &mut changes),
            Event::Config(_) | Event::Relist => {}
        }
        changes
    }

    /// The lease of exactly this subnet.
    #[must_use]
    pub fn get(&self, subnet: Ipv4Net) -> Option<&Known> {
        self.known.get(&subnet)
    }

    /// All leases, by subnet.
    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// All subnets that are taken, in no particular order: those of the leases, and those whose value is garbage.
    pub fn subnets(&self) -> impl Iterator<Item = Ipv4Net> {
        self.known.keys().chain(self.garbage.keys()).copied()
    }

    /// How many keys hold a value that is not a lease.
    #[must_use]
    pub fn garbage(&self) -> usize {
        self.garbage.len()
    }

    /// The leases, other than that of our `own` subnet, whose backend is of the kind `ours`.
    /// With or without expiry makes no difference; nor does the VNI, which is the peer's to choose.
    #[must_use]
    pub fn peers(&self, own: Ipv4Net, ours: BackendKind) -> Peers {
        let mut peers = Peers::default();
        for (&subnet, known) in self.known.iter().filter(|(subnet, _)| **subnet != own) {
            if known.attrs.backend.kind() == Some(ours) {
                peers.leases.push(Lease { subnet, attrs: known.attrs.clone() });
            } else {
                peers.other_backend += 1;
            }
        }
        peers
    }

    fn put(&mut self, entry: &Entry, changes: &mut Changes) {
        match LeaseAttrs::from_json(&entry.value) {
            Ok(attrs) => {
                self.garbage.remove(&entry.subnet);
                let known = Known { entry: entry.clone(), attrs };
                let changed = self.known.get(&entry.subnet).is_none_or(|old| old.attrs != known.attrs);
                self.known.insert(entry.subnet, known);
                if changed {
                    changes.put.push(entry.subnet);
                }
            }
            Err(error) => {
                if self.known.remove(&entry.subnet).is_some() {
                    changes.removed.push(entry.subnet);
                }
                let before = self.garbage.insert(entry.subnet, entry.value.clone());
                if before.as_ref() != Some(&entry.value) {
                    let value = shorten(&String::from_utf8_lossy(&entry.value));
                    changes.garbage.push(Garbage { subnet: entry.subnet, value, error });
                }
            }
        }
    }

    fn delete(&mut self, subnet: Ipv4Net, changes: &mut Changes) {
        self.garbage.remove(&subnet);
        if self.known.remove(&subnet).is_some() {
            changes.removed.push(subnet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;
    const VXLAN: &str = r#"{"PublicIP":"192.168.1.13","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:00:01"}}"#;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn entry(subnet: &str, value: &str, revision: i64) -> Entry {
        Entry { subnet: net(subnet), value: value.into(), revision, expiry: None }
    }

    fn listing(entries: &[Entry]) -> Listing {
        Listing { entries: entries.to_vec(), ..Listing::default() }
    }

    #[test]
    fn a_listing_replaces_what_was_known() {
        let mut set = LeaseSet::default();
        let first = set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1), entry("10.1.2.0/24", UDP, 2)]));
        assert_eq!(first.put, [net("10.1.1.0/24"), net("10.1.2.0/24")]);

        let second = set.apply(&listing(&[entry("10.1.2.0/24", VXLAN, 3), entry("10.1.3.0/24", UDP, 4)]));
        assert_eq!(second.put, [net("10.1.2.0/24"), net("10.1.3.0/24")]);
        assert_eq!(second.removed, [net("10.1.1.0/24")]);
        assert_eq!(set.iter().count(), 2);
    }

    #[test]
    fn a_renewal_moves_the_revision_and_changes_nothing_else() {
        let mut set = LeaseSet::default();
        set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1)]));
        assert!(set.apply_event(&Event::Put(entry("10.1.1.0/24", UDP, 9))).is_empty());
        assert_eq!(set.get(net("10.1.1.0/24")).unwrap().entry.revision, 9);
    }

    #[test]
    fn events_put_and_delete() {
        let mut set = LeaseSet::default();
        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", UDP, 1))).put, [net("10.1.1.0/24")]);
        assert_eq!(set.apply_event(&Event::Delete(net("10.1.1.0/24"))).removed, [net("10.1.1.0/24")]);
        assert_eq!(set.apply_event(&Event::Delete(net("10.1.1.0/24"))), Changes::default());
        assert_eq!(set.apply_event(&Event::Relist), Changes::default());
    }

    #[test]
    fn garbage_is_skipped_counted_and_reported_once() {
        let mut set = LeaseSet::default();
        let bad = listing(&[entry("10.1.1.0/24", "{}", 1), entry("10.1.2.0/24", UDP, 2)]);
        let changes = set.apply(&bad);
        assert_eq!(changes.put, [net("10.1.2.0/24")]);
        assert_eq!(changes.garbage.len(), 1);
        assert!(changes.garbage[0].error.to_string().starts_with("PublicIP is missing"));
        assert_eq!(set.garbage(), 1);

        assert_eq!(set.apply(&bad), Changes::default(), "the same garbage was reported again");
        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", "[]", 3))).garbage.len(), 1);

        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", UDP, 4))).put, [net("10.1.1.0/24")]);
        assert_eq!(set.garbage(), 0);
        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", "x", 5))).removed, [net("10.1.1.0/24")]);
    }

    #[test]
    fn peers_are_the_others_of_our_kind() {
        let host_gw = r#"{"PublicIP":"192.168.1.14","BackendType":"host-gw"}"#;
        let mut set = LeaseSet::default();
        set.apply(&listing(&[
            entry("10.1.1.0/24", VXLAN, 1),
            entry("10.1.2.0/24", VXLAN, 2),
            entry("10.1.2.128/25", VXLAN, 3),
            entry("10.1.3.0/24", UDP, 4),
            entry("10.1.4.0/24", host_gw, 5),
        ]));
        let peers = set.peers(net("10.1.1.0/24"), BackendKind::Vxlan);
        let subnets: Vec<Ipv4Net> = peers.leases.iter().map(|lease| lease.subnet).collect();
        assert_eq!(subnets, [net("10.1.2.0/24"), net("10.1.2.128/25")]);
        assert_eq!(peers.other_backend, 2);
    }
}
