//! All leases of the network as the store last showed them. Pure: listings and events go in, what
//! changed comes out. Only for how long a lease that a listing lacks is kept depends on the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::{BackendKind, Conflict, Lease, LeaseAttrs, key_of, parse_key};
use crate::json::{JsonError, shorten};
use crate::store::{Entry, Event, Listing};

/// The leases by key. Subnets that overlap are all kept: which one a packet takes is the table's business.
#[derive(Debug, Clone, Default)]
pub struct LeaseSet {
    known: BTreeMap<Slot, Known>,
    /// Keys whose value is not a lease, with that value, so that each is reported once.
    garbage: BTreeMap<Slot, Entry>,
    /// Those of `known` that the last listing lacked, and since when.
    missing: BTreeMap<Slot, Instant>,
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
    /// Makes the set what `listing` says, but keeps leases that it lacks for [`GRACE`]: a store that
    /// lost its data gets them again from their nodes, and until then the nodes still forward.
    pub fn apply(&mut self, listing: &Listing, now: Instant) -> Changes {
        let listed: BTreeSet<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut changes = Changes::default();
        for slot in self.known.keys().filter(|(_, key)| !listed.contains(key.as_str())) {
            if !self.missing.contains_key(slot) {
                self.missing.insert(slot.clone(), now);
                changes.missing.push(slot.0);
            }
        }
        self.garbage.retain(|(_, key), _| listed.contains(key.as_str()));
        for entry in &listing.entries {
            self.put(entry, &mut changes);
        }
        changes
    }

    /// Takes over what an earlier run knew: leases that the store does not have now are missing from now on.
    pub fn expect(&mut self, leases: Vec<Lease>, now: Instant) {
        for Lease { subnet, attrs } in leases {
            if self.subnets().all(|taken| taken != subnet) {
                let (key, value) = (key_of(subnet), attrs.to_json().into_bytes());
                let slot = (subnet, key.clone());
                let entry = Entry { key, subnet, value, revision: 0, expiry: None };
                self.known.insert(slot.clone(), Known { entry, attrs });
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
            .filter(|(_, since)| now.duration_since(**since) >= GRACE)
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
        self.missing.values().min().map(|since| *since + GRACE)
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

    /// How many keys hold a value that is not a lease.
    #[must_use]
    pub fn garbage(&self) -> usize {
        self.garbage.len()
    }

    /// The leases, other than that of our `own` subnet, whose backend is of the kind `ours`.
    /// With or without expiry makes no difference; nor does the VNI, which is the peer's to choose.
    /// Of two keys that name one subnet, the plain one counts.
    #[must_use]
    pub fn peers(&self, own: Ipv4Net, ours: BackendKind) -> Peers {
        let mut peers = Peers::default();
        for ((subnet, _), known) in self.known.iter().filter(|((subnet, _), _)| *subnet != own) {
            if peers.leases.last().is_some_and(|before| before.subnet == *subnet) {
                continue;
            }
            if known.attrs.backend.kind() == Some(ours) {
                peers.leases.push(Lease { subnet: *subnet, attrs: known.attrs.clone() });
            } else {
                peers.other_backend += 1;
            }
        }
        peers
    }

    /// Keys that name one subnet for different nodes.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        let pairs = self.known.iter().zip(self.known.iter().skip(1));
        pairs.filter_map(|((one, first), (two, second))| {
            let owners = [first.attrs.public_ip, second.attrs.public_ip];
            (one.0 == two.0 && owners[0] != owners[1])
                .then(|| Conflict::OneSubnet { keys: [one.1.clone(), two.1.clone()], public_ips: owners })
        })
    }

    fn put(&mut self, entry: &Entry, changes: &mut Changes) {
        let slot = (entry.subnet, entry.key.clone());
        self.missing.remove(&slot);
        match LeaseAttrs::from_json(&entry.value) {
            Ok(attrs) => {
                self.garbage.remove(&slot);
                let known = Known { entry: entry.clone(), attrs };
                let changed = self.known.get(&slot).is_none_or(|old| old.attrs != known.attrs);
                self.known.insert(slot, known);
                if changed {
                    changes.put.push(entry.subnet);
                }
            }
            Err(error) => {
                if self.known.remove(&slot).is_some() {
                    changes.removed.push(entry.subnet);
                }
                let before = self.garbage.insert(slot, entry.clone());
                if before.is_none_or(|before| before.value != entry.value) {
                    let value = shorten(&String::from_utf8_lossy(&entry.value));
                    changes.garbage.push(Garbage { key: entry.key.clone(), value, error });
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const UDP: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;
    const VXLAN: &str = r#"{"PublicIP":"192.168.1.13","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:00:01"}}"#;
    const DUAL: &str = "10.1.1.0-24&fd00:1::-64";

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn entry(subnet: &str, value: &str, revision: i64) -> Entry {
        Entry { key: key_of(net(subnet)), subnet: net(subnet), value: value.into(), revision, expiry: None }
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
        let peers = |set: &LeaseSet| set.peers(net("10.1.9.0/24"), BackendKind::Udp).leases.len();
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
        let peers = set.peers(net("10.1.9.0/24"), BackendKind::Vxlan);
        assert_eq!(peers.leases, [lease("10.1.2.0/24")]);
        assert_eq!(set.forget_missing(start + GRACE).removed, [net("10.1.2.0/24")]);
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
    fn two_keys_of_one_subnet_are_both_known_and_one_is_the_peer() {
        let mut set = LeaseSet::default();
        set.apply(&listing(&[entry("10.1.1.0/24", UDP, 1), dual(UDP)]), Instant::now());
        assert_eq!(set.iter().count(), 2);
        assert_eq!(set.conflicts().count(), 0, "one node's two keys were taken for a conflict");

        let other = r#"{"PublicIP":"192.168.1.13"}"#;
        set.apply_event(&Event::Put(dual(other)));
        let peers = set.peers(net("10.1.9.0/24"), BackendKind::Udp);
        assert_eq!(peers.leases.len(), 1);
        assert_eq!(peers.leases[0].attrs.public_ip, Ipv4Addr::new(192, 168, 1, 12), "not the plain key's");
        assert!(set.peers(net("10.1.1.0/24"), BackendKind::Udp).leases.is_empty());
        let conflicts: Vec<Conflict> = set.conflicts().collect();
        let keys = ["10.1.1.0-24".to_owned(), DUAL.to_owned()];
        let public_ips = [Ipv4Addr::new(192, 168, 1, 12), Ipv4Addr::new(192, 168, 1, 13)];
        assert_eq!(conflicts, [Conflict::OneSubnet { keys, public_ips }]);

        assert_eq!(set.apply_event(&delete("10.1.1.0-24")).removed, [net("10.1.1.0/24")]);
        assert_eq!(set.peers(net("10.1.9.0/24"), BackendKind::Udp).leases.len(), 1);
        assert_eq!(set.conflicts().count(), 0);
    }

    #[test]
    fn peers_are_the_others_of_our_kind() {
        let host_gw = r#"{"PublicIP":"192.168.1.14","BackendType":"host-gw"}"#;
        let mut set = LeaseSet::default();
        set.apply(
            &listing(&[
                entry("10.1.1.0/24", VXLAN, 1),
                entry("10.1.2.0/24", VXLAN, 2),
                entry("10.1.2.128/25", VXLAN, 3),
                entry("10.1.3.0/24", UDP, 4),
                entry("10.1.4.0/24", host_gw, 5),
            ]),
            Instant::now(),
        );
        let peers = set.peers(net("10.1.1.0/24"), BackendKind::Vxlan);
        let subnets: Vec<Ipv4Net> = peers.leases.iter().map(|lease| lease.subnet).collect();
        assert_eq!(subnets, [net("10.1.2.0/24"), net("10.1.2.128/25")]);
        assert_eq!(peers.other_backend, 2);
    }
}
