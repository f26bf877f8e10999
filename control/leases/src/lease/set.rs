//! All leases of the network as the store last showed them. Pure: listings and events go in, what
//! changed comes out. Only for how long a lease that a listing lacks is kept depends on the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::attrs::{Lease, LeaseAttrs};
use super::judgement::Judgement;
use crate::store::{Entry, Event, Listing, MAX_KEYS, Revision, key_of, parse_key};
use overlay_support::json::{JsonError, shorten};

/// The leases by key, whatever they say: what of them is used is the gate's business ([`Ground`](super::Ground)).
#[derive(Debug, Clone, Default)]
pub struct LeaseSet {
    known: BTreeMap<Slot, Known>,
    /// Keys whose value is not a lease, with that value, so that each is reported once.
    garbage: BTreeMap<Slot, Entry>,
    /// Those of `known` that the last listing lacked, and since when.
    missing: BTreeMap<Slot, Instant>,
    /// Keys of the store for which there is no room.
    beyond: usize,
}

/// A key, in the order of the subnets. A dual-stack key is another than the plain one of the same
/// subnet, and comes after it.
type Slot = (Ipv4Net, String);

/// A lease together with its place in the store, which a renewal needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The key as stored.
    pub entry: Entry,
    /// Its value, understood.
    pub attrs: LeaseAttrs,
    /// Whether it has passed the gate, and its owner has kept it since.
    pub(super) in_use: bool,
}

/// What a listing or an event changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Leases that are new or say something else than before. A renewal alone is no change.
    pub put: Vec<Ipv4Net>,
    /// Leases that are gone, or whose value has become garbage.
    pub removed: Vec<Ipv4Net>,
    /// Leases that a listing lacks for the first time; they are peers for some time yet.
    pub missing: Vec<Ipv4Net>,
    /// Values that are not leases and were not reported before.
    pub garbage: Vec<Garbage>,
}

/// A key whose value is not a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// The key. The subnet that it names counts as taken.
    pub key: String,
    /// The value, shortened for a message.
    pub value: String,
    /// Why it is no lease.
    pub error: JsonError,
}

impl Changes {
    /// Whether the leases are as they were. New garbage on a key that held no lease changes none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.removed.is_empty()
    }
}

impl LeaseSet {
    /// Makes the set what `listing` says, but keeps leases that it lacks for [`GRACE`]: a store that
    /// lost its data gets them again from their nodes, and until then the nodes still forward.
    pub fn apply(&mut self, listing: &Listing, now: Instant) -> Changes {
        let listed: BTreeSet<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut changes = Changes::default();
        self.beyond = listing.beyond;
        if self.beyond > 0 {
            // Their time begins once it can be told again what the store lacks.
            self.missing.values_mut().for_each(|since| *since = now);
        }
        // What else there is, nobody can tell from a listing that has no room for all.
        let lacks = |key: &str| listing.beyond == 0 && !listed.contains(key);
        for slot in self.known.keys().filter(|(_, key)| lacks(key)) {
            if !self.missing.contains_key(slot) {
                self.missing.insert(slot.clone(), now);
                changes.missing.push(slot.0);
            }
        }
        self.garbage.retain(|(_, key), _| !lacks(key));
        for entry in &listing.entries {
            self.put(entry, &mut changes);
        }
        changes
    }

    /// Takes over what an earlier run knew: leases that the store does not have now are missing from now on, the
    /// others were in use.
    pub fn expect(&mut self, leases: Vec<Lease>, now: Instant) {
        self.note_peers(&leases);
        for Lease { subnet, attrs } in leases {
            if !self.names(subnet) {
                let (key, value) = (key_of(subnet), attrs.to_json().into_bytes());
                let slot = (subnet, key.clone());
                // Later than all that the store has.
                let entry = Entry { key, subnet, value, revision: 0, created: Revision::MAX, expiry: None };
                self.known.insert(slot.clone(), Known { entry, attrs, in_use: false });
                self.missing.insert(slot, now);
            }
        }
    }

    /// Follows one change. `Config` and `Relist` are not about leases and change nothing here.
    pub fn apply_event(&mut self, event: &Event) -> Changes {
        let mut changes = Changes::default();
        match event {
            Event::Put(entry) => self.put(entry, &mut changes),
            Event::Delete(key) => {
                if let Some(slot) = slot(key) {
                    self.delete(&slot, &mut changes);
                }
            }
            Event::Config(_) | Event::Relist => {}
        }
        changes
    }

    /// Removes the leases that have been missing for [`GRACE`].
    pub fn forget_missing(&mut self, now: Instant) -> Changes {
        let mut changes = Changes::default();
        let over: Vec<Slot> = self
            .missing
            .iter()
            .filter(|(_, since)| self.beyond == 0 && now.duration_since(**since) >= GRACE)
            .map(|(slot, _)| slot.clone())
            .collect();
        for slot in over {
            self.delete(&slot, &mut changes);
        }
        changes
    }

    /// When `forget_missing` has something to do; `None` while nothing is missing.
    #[must_use]
    pub fn forgets_at(&self) -> Option<Instant> {
        self.missing.values().min().filter(|_| self.beyond == 0).map(|since| *since + GRACE)
    }

    /// The lease under exactly this key, if the store has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Known> {
        let slot = slot(key)?;
        self.known.get(&slot).filter(|_| !self.missing.contains_key(&slot))
    }

    /// The entry under exactly this key, if its value is garbage.
    #[must_use]
    pub fn get_garbage(&self, key: &str) -> Option<&Entry> {
        self.garbage.get(&slot(key)?)
    }

    /// All leases that the store has, by subnet.
    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(|(slot, _)| !self.missing.contains_key(*slot)).map(|(_, known)| known)
    }

    /// All entries whose value is garbage, by subnet.
    pub fn iter_garbage(&self) -> impl Iterator<Item = &Entry> {
        self.garbage.values()
    }

    /// All subnets that are taken, in no particular order: those of the leases, missing ones too, and those
    /// whose value is garbage.
    pub fn subnets(&self) -> impl Iterator<Item = Ipv4Net> {
        self.known.keys().chain(self.garbage.keys()).map(|(subnet, _)| *subnet)
    }

    /// Whether a key names exactly this subnet.
    #[must_use]
    pub fn names(&self, subnet: Ipv4Net) -> bool {
        let first = (subnet, String::new());
        let is_it = |slot: Option<&Slot>| slot.is_some_and(|(named, _)| *named == subnet);
        is_it(self.known.range(&first..).next().map(|(slot, _)| slot))
            || is_it(self.garbage.range(&first..).next().map(|(slot, _)| slot))
    }

    /// How many keys hold a value that is not a lease.
    #[must_use]
    pub fn garbage(&self) -> usize {
        self.garbage.len()
    }

    /// How many keys of the store are not here, as there is no room for them: as the last listing has counted, and one
    /// more for each change of such a key since.
    #[must_use]
    pub fn beyond(&self) -> usize {
        self.beyond
    }

    /// All leases, missing ones too, by subnet.
    pub(super) fn all(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// Notes which leases are in use now: they keep their addresses against others that come later.
    pub fn note_use(&mut self, judgement: &Judgement) {
        self.known.values_mut().for_each(|known| known.in_use = true);
        for refused in &judgement.refused {
            if let Some(known) = self.known.get_mut(&(refused.subnet, refused.key.clone())) {
                known.in_use = false;
            }
        }
    }

    /// Notes that these are in use.
    pub fn note_peers(&mut self, peers: &[Lease]) {
        for Lease { subnet, attrs } in peers {
            let keys = self.known.range_mut((*subnet, String::new())..);
            for (_, known) in keys.take_while(|((named, _), _)| named == subnet) {
                known.in_use = known.attrs.public_ip == attrs.public_ip;
            }
        }
    }

    /// Takes in what concerns this node itself, for which there is always room.
    pub fn put_own(&mut self, entry: &Entry) -> Changes {
        let mut changes = Changes::default();
        self.take_in(entry, &mut changes);
        changes
    }

    fn put(&mut self, entry: &Entry, changes: &mut Changes) {
        let slot = (entry.subnet, entry.key.clone());
        let is_known = self.known.contains_key(&slot) || self.garbage.contains_key(&slot);
        if !is_known && self.known.len() + self.garbage.len() >= MAX_KEYS {
            self.beyond += 1;
            return;
        }
        self.take_in(entry, changes);
    }

    fn take_in(&mut self, entry: &Entry, changes: &mut Changes) {
        let subnet = entry.subnet;
        let slot = (subnet, entry.key.clone());
        self.missing.remove(&slot);
        match LeaseAttrs::from_json(&entry.value) {
            Ok(attrs) => {
                self.garbage.remove(&slot);
                let before = self.known.get(&slot);
                let changed = before.is_none_or(|before| before.attrs != attrs);
                let in_use =
                    before.is_some_and(|before| before.in_use && before.attrs.public_ip == attrs.public_ip);
                let mut entry = entry.clone();
                if entry.value.len() > KEPT {
                    // It says no more than this.
                    entry.value = attrs.to_json().into();
                }
                self.known.insert(slot, Known { entry, attrs, in_use });
                if changed {
                    changes.put.push(subnet);
                }
            }
            Err(error) => {
                if self.known.remove(&slot).is_some() {
                    changes.removed.push(subnet);
                }
                let mut entry = entry.clone();
                entry.value.truncate(KEPT);
                let value = shorten(String::from_utf8_lossy(&entry.value).trim());
                let key = entry.key.clone();
                let is_new = self.garbage.get(&slot).is_none_or(|before| before.value != entry.value);
                self.garbage.insert(slot, entry);
                if is_new {
                    changes.garbage.push(Garbage { key, value, error });
                }
            }
        }
    }

    fn delete(&mut self, slot: &Slot, changes: &mut Changes) {
        self.missing.remove(slot);
        self.garbage.remove(slot);
        if self.known.remove(slot).is_some() {
            changes.removed.push(slot.0);
        }
    }
}

fn slot(key: &str) -> Option<Slot> {
    Some((parse_key(key).ok()?, key.to_owned()))
}

/// How long a lease that a listing lacks is still a peer: nodes notice a store that has lost its data
/// within seconds and register again.
pub const GRACE: Duration = Duration::from_secs(60);
/// How much of a value is kept. What nodes write is shorter; of what is longer there may be any number.
const KEPT: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;
    const VXLAN: &str = r#"{"PublicIP":"192.168.1.13","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:00:01"}}"#;
    const DUAL: &str = "10.1.1.0-24&fd00:1::-64";

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn entry(subnet: &str, value: &str, revision: i64) -> Entry {
        Entry {
            key: key_of(net(subnet)),
            subnet: net(subnet),
            value: value.into(),
            revision,
            created: revision,
            expiry: None,
        }
    }

    fn dual(value: &str) -> Entry {
        Entry { key: DUAL.to_owned(), ..entry("10.1.1.0/24", value, 1) }
    }

    fn listing(entries: &[Entry]) -> Listing {
        Listing { entries: entries.to_vec(), ..Listing::default() }
    }

    fn delete(key: &str) -> Event {
        Event::Delete(key.to_owned())
    }

    #[test]
    fn a_listing_is_what_is_known_from_then_on() {
        let mut set = LeaseSet::default();
        let start = Instant::now();
        let first = set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1), entry("10.1.2.0/24", UDP, 2)]), start);
        assert_eq!(first.put, [net("10.1.1.0/24"), net("10.1.2.0/24")]);

        let second = [entry("10.1.2.0/24", VXLAN, 3), entry("10.1.3.0/24", UDP, 4)];
        let changes = set.apply(&listing(&second), start);
        assert_eq!(changes.put, [net("10.1.2.0/24"), net("10.1.3.0/24")]);
        assert_eq!(changes.missing, [net("10.1.1.0/24")]);
        assert_eq!(set.iter().count(), 2);
        assert_eq!(set.get("10.1.1.0-24"), None);
    }

    #[test]
    fn what_a_listing_lacks_is_a_peer_for_a_minute_and_no_longer() {
        let mut set = LeaseSet::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let peers = |set: &LeaseSet| set.all().count();
        set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1), entry("10.1.2.0/24", UDP, 2)]), start);

        set.apply(&listing(&[]), at(5));
        let again = set.apply(&listing(&[]), at(30));
        assert_eq!(again, Changes::default(), "the same was told twice");
        assert_eq!((peers(&set), set.subnets().count()), (2, 2), "its subnet is still taken");
        assert_eq!(set.forgets_at(), Some(at(65)), "another listing started its time anew");

        assert!(set.apply_event(&Event::Put(entry("10.1.2.0/24", UDP, 9))).is_empty());
        assert_eq!(set.forget_missing(at(64)), Changes::default());
        assert_eq!(set.forget_missing(at(65)).removed, [net("10.1.1.0/24")]);
        assert_eq!((peers(&set), set.forgets_at()), (1, None));
    }

    #[test]
    fn what_an_earlier_run_knew_counts_as_missing_unless_the_store_has_it() {
        let mut set = LeaseSet::default();
        let start = Instant::now();
        set.apply(&listing(&[dual(UDP)]), start);
        let lease = |subnet: &str| Lease {
            subnet: net(subnet),
            attrs: LeaseAttrs::from_json(VXLAN.as_bytes()).unwrap(),
        };
        set.expect(vec![lease("10.1.1.0/24"), lease("10.1.2.0/24")], start);
        assert_eq!(set.iter().count(), 1);
        let expected: Vec<Ipv4Net> = set.all().map(|known| known.entry.subnet).collect();
        assert_eq!(expected, [net("10.1.1.0/24"), net("10.1.2.0/24")]);
        assert_eq!(set.forget_missing(start + GRACE).removed, [net("10.1.2.0/24")]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_and_nothing_counts_as_missing_meanwhile() {
        let mut set = LeaseSet::default();
        let now = Instant::now();
        set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1), entry("10.1.2.0/24", "{}", 2)]), now);
        let full = Listing { beyond: 7, ..listing(&[entry("10.1.3.0/24", UDP, 3)]) };
        let changes = set.apply(&full, now);
        assert_eq!((changes.put, changes.missing), (vec![net("10.1.3.0/24")], Vec::new()));
        assert_eq!((set.iter().count(), set.garbage(), set.beyond()), (2, 1, 7));
        let changes = set.apply(&listing(&[entry("10.1.3.0/24", UDP, 3)]), now);
        assert_eq!((changes.missing, set.garbage(), set.beyond()), (vec![net("10.1.1.0/24")], 0, 0));
    }

    #[test]
    fn what_is_deleted_is_gone_at_once_also_while_it_is_missing() {
        let mut set = LeaseSet::default();
        let start = Instant::now();
        set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1)]), start);
        set.apply(&listing(&[]), start);
        assert_eq!(set.apply_event(&delete("10.1.1.0-24")).removed, [net("10.1.1.0/24")]);
        assert_eq!((set.subnets().count(), set.forgets_at()), (0, None));
    }

    #[test]
    fn a_renewal_moves_the_revision_and_changes_nothing_else() {
        let mut set = LeaseSet::default();
        set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1)]), Instant::now());
        assert!(set.apply_event(&Event::Put(entry("10.1.1.0/24", UDP, 9))).is_empty());
        assert_eq!(set.get("10.1.1.0-24").unwrap().entry.revision, 9);
    }

    #[test]
    fn events_put_and_delete() {
        let mut set = LeaseSet::default();
        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", UDP, 1))).put, [net("10.1.1.0/24")]);
        assert_eq!(set.apply_event(&delete("10.1.1.0-24")).removed, [net("10.1.1.0/24")]);
        assert_eq!(set.apply_event(&delete("10.1.1.0-24")), Changes::default());
        assert_eq!(set.apply_event(&Event::Relist), Changes::default());
    }

    #[test]
    fn garbage_is_skipped_counted_and_reported_once() {
        let mut set = LeaseSet::default();
        let now = Instant::now();
        let bad = listing(&[entry("10.1.1.0/24", "{}", 1), entry("10.1.2.0/24", UDP, 2)]);
        let changes = set.apply(&bad, now);
        assert_eq!(changes.put, [net("10.1.2.0/24")]);
        assert_eq!(changes.garbage.len(), 1);
        assert!(changes.garbage[0].error.to_string().starts_with("PublicIP is missing"));
        assert_eq!(set.garbage(), 1);

        assert_eq!(set.apply(&bad, now), Changes::default(), "the same garbage was reported again");
        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", "[]", 3))).garbage.len(), 1);
        assert_eq!(set.get_garbage("10.1.1.0-24").unwrap().revision, 3);

        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", UDP, 4))).put, [net("10.1.1.0/24")]);
        assert_eq!(set.garbage(), 0);
        assert_eq!(set.apply_event(&Event::Put(entry("10.1.1.0/24", "x", 5))).removed, [net("10.1.1.0/24")]);
        set.apply(&listing(&[]), now);
        assert_eq!(set.garbage(), 0);
    }

    #[test]
    fn a_value_costs_no_more_than_a_lease_does() {
        let mut set = LeaseSet::default();
        let long =
            |filling: usize| format!(r#"{{"PublicIP":"192.168.1.12","New":"{}"}}"#, "x".repeat(filling));
        set.apply_event(&Event::Put(entry("10.1.1.0/24", &long(3_000), 1)));
        let known = &set.get("10.1.1.0-24").unwrap().entry;
        assert_eq!(known.value, UDP.as_bytes());

        let changes = set.apply_event(&Event::Put(entry("10.1.2.0/24", &long(5_000), 2)));
        assert!(changes.garbage[0].error.to_string().contains("longer than 4096 bytes"));
        assert_eq!(set.get_garbage("10.1.2.0-24").unwrap().value.len(), KEPT);
        assert!(set.names(net("10.1.1.0/24")) && set.names(net("10.1.2.0/24")));
        assert!(!set.names(net("10.1.0.0/16")) && !set.names(net("10.1.2.0/25")));
    }
}
