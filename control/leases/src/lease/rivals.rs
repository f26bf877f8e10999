//! How it shows in the store that a second node takes itself for this one. Pure.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::attrs::{LeaseAttrs, LeaseBackend};
use super::conflict::{Conflict, MOST_CONFLICTS};
use super::set::LeaseSet;
use crate::store::{Entry, Revision};

/// What others write that only this node should: nodes that live write their leases again and again,
/// whereas what a dead one left, or what an operator put there, stands still.
#[derive(Debug, Default)]
pub struct Rivals {
    /// Our own latest writes.
    own: VecDeque<Revision>,
    /// A value of ours of which we never heard whether it was written.
    unsure: Option<Vec<u8>>,
    /// Other keys that somebody has written with our PublicIP; the first of them, if there are many.
    keys: BTreeSet<String>,
    /// Who writes our own key.
    other: Option<Other>,
}

#[derive(Debug)]
struct Other {
    backend: Option<LeaseBackend>,
    /// Writes within one lease's time of another.
    writes: u32,
    /// Whether one of them was a lease with an expiry, as nodes' are and operators' are not.
    is_node: bool,
    last: Instant,
}

impl Rivals {
    /// A write of ours of `value` begins. Unless [`wrote`](Self::wrote) or
    /// [`refused`](Self::refused) follows, it may have been done.
    pub fn writing(&mut self, value: &[u8]) {
        self.unsure = Some(value.to_vec());
    }

    /// A write of ours led to `revision`.
    pub fn wrote(&mut self, revision: Revision) {
        self.unsure = None;
        self.own.push_front(revision);
        self.own.truncate(REMEMBERED);
    }

    /// A write of ours was not done.
    pub fn refused(&mut self) {
        self.unsure = None;
    }

    /// Somebody, perhaps we, wrote `entry`, which says `attrs`, while we hold the lease `key` saying `ours`.
    pub fn saw(
        &mut self,
        entry: &Entry,
        attrs: Option<&LeaseAttrs>,
        (key, ours): (&str, &LeaseAttrs),
        ttl: Duration,
        now: Instant,
    ) {
        if self.own.contains(&entry.revision) {
            return;
        }
        if self.unsure.as_ref() == Some(&entry.value) {
            self.wrote(entry.revision);
            return;
        }
        if attrs.is_some_and(|attrs| attrs.public_ip != ours.public_ip) {
            self.keys.remove(&entry.key);
            return;
        }
        let with_expiry = entry.expiry.is_some();
        if entry.key != key {
            // Without expiry it is a reservation, which an operator may make for us at any time.
            if attrs.is_some() && with_expiry && self.keys.len() < MOST_CONFLICTS {
                self.keys.insert(entry.key.clone());
            }
            return;
        }
        if attrs == Some(ours) && !with_expiry {
            // An operator has made a reservation of our lease.
            return;
        }
        let before = self.other.take().filter(|other| now.duration_since(other.last) <= ttl);
        let (writes, is_node) = before.map_or((0, false), |other| (other.writes, other.is_node));
        self.other = Some(Other {
            backend: attrs.map(|attrs| attrs.backend.clone()),
            writes: writes + 1,
            is_node: is_node || (with_expiry && attrs.is_some()),
            last: now,
        });
    }

    /// Our lease is another one now.
    pub fn moved(&mut self) {
        self.other = None;
    }

    /// How long to wait before our own words are put back: longer each time, so that two nodes that
    /// both do so come to no harm but their own.
    #[must_use]
    pub fn pause(&self) -> Duration {
        let before = self.other.as_ref().map_or(0, |other| other.writes.saturating_sub(1));
        (FIRST_PAUSE * 2u32.pow(before.min(PAUSE_DOUBLINGS))).min(LONGEST_PAUSE)
    }

    /// Whether our lease has been written by others more than once lately.
    #[must_use]
    pub fn go_on(&self) -> bool {
        self.other.as_ref().is_some_and(|other| other.writes > 1)
    }

    /// What there is to tell now, while we hold the lease `key` saying `ours`. A node counts for as
    /// long as its key is there, or for the time within which it must write ours again.
    #[must_use]
    pub fn conflicts(
        &mut self,
        leases: &LeaseSet,
        (key, ours): (&str, &LeaseAttrs),
        ttl: Duration,
        now: Instant,
    ) -> Vec<Conflict> {
        let public_ip = ours.public_ip;
        self.keys.retain(|theirs| {
            theirs != key && leases.get(theirs).is_some_and(|known| known.attrs.public_ip == public_ip)
        });
        let address = self.keys.iter().map(|theirs| Conflict::OurAddress {
            ours: key.to_owned(),
            theirs: theirs.clone(),
            public_ip,
        });
        let lease = self
            .other
            .as_ref()
            .filter(|other| other.is_node || other.writes >= NO_ACCIDENT)
            .filter(|other| now.duration_since(other.last) <= ttl)
            .map(|other| Conflict::OurLease {
                key: key.to_owned(),
                public_ip,
                ours: ours.backend.clone(),
                theirs: other.backend.clone(),
            });
        address.chain(lease).collect()
    }
}

/// Own writes to remember: more than can be on their way back to us at one time.
const REMEMBERED: usize = 8;
/// Writes by somebody who sets no expiry that are more than one mistake and its correction.
const NO_ACCIDENT: u32 = 3;
/// Long enough that who writes twice in a row is answered once.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Nodes that go on at each other come to rest at a write a minute each.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// 2 s × 2⁵ is more than the longest.
const PAUSE_DOUBLINGS: u32 = 5;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnet::Ipv4Net;

    use super::*;
    use crate::store::{Event, Listing};

    const OURS: &str = "10.1.9.0-24";
    const TTL: Duration = Duration::from_secs(600);

    fn attrs(last: u8) -> LeaseAttrs {
        let vtep_mac = overlay_wire::MacAddr([2, 0, 0, 0, 0, last]);
        LeaseAttrs {
            public_ip: Ipv4Addr::new(192, 168, 1, 12),
            backend: LeaseBackend::Vxlan { vni: 1, vtep_mac },
        }
    }

    fn entry(key: &str, attrs: &LeaseAttrs, revision: i64, expiry: Option<i64>) -> Entry {
        let subnet = crate::store::parse_key(key).unwrap();
        Entry { key: key.to_owned(), subnet, value: attrs.to_json().into(), revision, created: 1, expiry }
    }

    struct Case {
        rivals: Rivals,
        leases: LeaseSet,
        start: Instant,
    }

    impl Case {
        fn new() -> Self {
            let held = entry(OURS, &attrs(1), 5, Some(7));
            let mut case =
                Self { rivals: Rivals::default(), leases: LeaseSet::default(), start: Instant::now() };
            case.rivals.wrote(5);
            let listing = Listing { entries: vec![held], ..Listing::default() };
            case.leases.apply(&listing, case.start);
            case
        }

        fn saw(&mut self, entry: Entry, second: u64) {
            let attrs_of = LeaseAttrs::from_json(&entry.value).ok();
            let now = self.start + Duration::from_secs(second);
            self.rivals.saw(&entry, attrs_of.as_ref(), (OURS, &attrs(1)), TTL, now);
            self.leases.apply_event(&Event::Put(entry));
        }

        fn conflicts(&mut self, second: u64) -> Vec<Conflict> {
            let now = self.start + Duration::from_secs(second);
            self.rivals.conflicts(&self.leases, (OURS, &attrs(1)), TTL, now)
        }
    }

    #[test]
    fn our_own_writes_are_nobody_elses() {
        let mut case = Case::new();
        case.saw(entry(OURS, &attrs(1), 5, Some(7)), 0);
        case.rivals.writing(attrs(1).to_json().as_bytes());
        // The answer was lost; the event says that it was done.
        case.saw(entry(OURS, &attrs(1), 6, Some(7)), 1);
        case.saw(entry(OURS, &attrs(1), 6, Some(7)), 2);
        assert_eq!(case.conflicts(3), []);
    }

    #[test]
    fn a_node_that_writes_our_lease_counts_at_once_and_for_one_leases_time() {
        let mut case = Case::new();
        case.saw(entry(OURS, &attrs(2), 6, Some(8)), 0);
        let conflicts = case.conflicts(TTL.as_secs());
        let text = conflicts[0].to_string();
        for part in ["192.168.1.12", OURS, "02:00:00:00:00:01", "02:00:00:00:00:02", "--public-ip"] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
        assert_eq!(case.conflicts(TTL.as_secs() + 1), []);

        // One of ours, set up alike, writes the very same words.
        let mut case = Case::new();
        case.saw(entry(OURS, &attrs(1), 6, Some(7)), 0);
        assert_eq!(case.conflicts(1).len(), 1);
    }

    #[test]
    fn an_operator_is_no_node_unless_he_goes_on() {
        let mut case = Case::new();
        case.saw(entry(OURS, &attrs(1), 6, None), 0);
        case.saw(entry("10.1.163.0-24", &attrs(1), 7, None), 1);
        case.saw(entry(OURS, &attrs(2), 8, None), 2);
        case.saw(entry(OURS, &attrs(2), 9, None), 3);
        assert_eq!(case.conflicts(3), []);
        case.saw(entry(OURS, &attrs(2), 10, None), 4);
        assert_eq!(case.conflicts(4).len(), 1);
    }

    #[test]
    fn another_lease_of_our_address_counts_once_it_is_written_and_while_it_is_there() {
        let mut case = Case::new();
        let theirs = entry("10.1.163.0-24", &attrs(2), 4, Some(8));
        case.leases.apply_event(&Event::Put(theirs.clone()));
        assert_eq!(case.conflicts(0), [], "what an earlier life left was taken for a node");
        case.saw(Entry { revision: 9, ..theirs }, 1);
        let expected = Conflict::OurAddress {
            ours: OURS.to_owned(),
            theirs: "10.1.163.0-24".to_owned(),
            public_ip: attrs(1).public_ip,
        };
        assert_eq!(case.conflicts(2), [expected]);
        case.leases.apply_event(&Event::Delete("10.1.163.0-24".to_owned()));
        assert_eq!(case.conflicts(3), []);
    }

    #[test]
    fn however_many_keys_have_our_address_some_are_told_and_those_that_are_gone_are_forgotten() {
        let mut case = Case::new();
        let key = |number: u32| crate::store::key_of(Ipv4Net::new_assert((0x0a02_0000 | number).into(), 32));
        for number in 0..20_000 {
            case.saw(entry(&key(number), &attrs(2), 10 + i64::from(number), Some(8)), 0);
        }
        assert_eq!((case.conflicts(1).len(), case.rivals.keys.len()), (MOST_CONFLICTS, MOST_CONFLICTS));
        for number in 0..20_000 {
            case.leases.apply_event(&Event::Delete(key(number)));
        }
        assert_eq!((case.conflicts(2).len(), case.rivals.keys.len()), (0, 0));
        // There is room for the next ones, also where an owner has put its own address right.
        case.saw(entry("10.1.163.0-24", &attrs(2), 30_000, Some(8)), 3);
        assert_eq!(case.conflicts(3).len(), 1);
        let elsewhere = LeaseAttrs { public_ip: Ipv4Addr::new(192, 168, 1, 13), ..attrs(2) };
        case.saw(entry("10.1.163.0-24", &elsewhere, 30_001, Some(8)), 4);
        assert_eq!((case.rivals.keys.len(), case.conflicts(4).len()), (0, 0));
    }

    #[test]
    fn pauses_grow_while_it_goes_on() {
        let mut case = Case::new();
        let mut pauses = Vec::new();
        for second in 0..7 {
            case.saw(entry(OURS, &attrs(2), 10 + second, Some(8)), second.cast_unsigned());
            pauses.push(case.rivals.pause().as_secs());
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60]);
        case.saw(entry(OURS, &attrs(2), 99, Some(8)), 10 + TTL.as_secs());
        assert_eq!(case.rivals.pause().as_secs(), 2);
    }
}
