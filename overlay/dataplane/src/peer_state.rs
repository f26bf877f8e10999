//! What is known of a peer beside its lease: what was exchanged with it and learned of it.
//!
//! A [`PeerState`] is shared by all workers and by the control plane, and outlives the table that it is found
//! in: [`SharedTable::publish`](crate::table::SharedTable::publish) carries it over. Workers do not write to it
//! packet by packet: each gathers in a [`PeerCounters`] of its own what a batch brings, and adds it once.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use overlay_wire::MacAddr;

use crate::announced::Announced;

/// What changes about one peer while it is one. What the two directions write lies on cache lines of their own.
#[derive(Debug, Default)]
pub struct PeerState {
    egress: Line<Egress>,
    ingress: Line<Ingress>,
}

/// A cache line of its own, for tens of thousands of them: [`crossbeam::utils::CachePadded`] takes two.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line<T>(T);

/// Written by workers to the wire; what they read beside it is seldom written.
#[derive(Debug, Default)]
struct Egress {
    counters: Counters,
    /// 0: none known.
    path_mtu: AtomicU32,
    flags: AtomicU32,
    /// The address, and above it whether there is one.
    next_hop: AtomicU64,
    /// When a super-packet was last sent whole to see whether it arrives so, by [`now`].
    tried: AtomicU64,
    /// When the peer last told that they do, by [`now`].
    told: AtomicU64,
}

/// Written by workers from the wire.
#[derive(Debug, Default)]
struct Ingress {
    counters: Counters,
    /// By how many the packets that arrived unfinished are ahead of finished ones, from 0 to [`CERTAIN`].
    unfinished: AtomicU32,
    /// When the peer was last told that its super-packets arrive whole, by [`now`].
    telling: AtomicU64,
    /// What the peer has last said of itself.
    announced: ArcSwapOption<Announced>,
}

#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: AtomicU64,
    /// When packets were last counted, in milliseconds since [`EPOCH`], plus one; 0 for never.
    last: AtomicU64,
}

/// What has been found out about a peer at run time: a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PeerFlag {
    /// It sends packets whose checksums and segmentation are left to us: a kernel's VXLAN device, or overlayd,
    /// with nothing but virtual wires in between. The same way back carries super-packets whole to who cannot
    /// tell.
    Unfinished = 1,
    /// It has answered an echo, or asked for one: it runs overlayd, and silence means something.
    Answers = 2,
    /// Packets come from it with a source that may be an address of its own: it is to be asked which it has.
    Unexplained = 4,
    /// Packets have come from it with an address that it has said to be its own, of which nobody was told yet.
    Explained = 8,
}

/// A moment's look at a [`PeerState`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// To the peer.
    pub egress: Exchanged,
    /// From the peer.
    pub ingress: Exchanged,
    /// How long ago something valid came from it.
    pub last_seen: Option<Duration>,
    /// The largest outer packet that reaches it, in bytes, if that is known.
    pub path_mtu: Option<u32>,
    /// Whether it is known to run overlayd.
    pub answers: bool,
}

/// What was exchanged in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Inner packets: handed to the wire, or accepted from it.
    pub packets: u64,
    /// Their bytes, without encapsulation.
    pub bytes: u64,
    /// Inner packets that were dropped on the way to the peer, or came from its address and were refused.
    pub drops: u64,
}

impl PeerState {
    /// What was exchanged with the peer so far, and what is known of it.
    #[must_use]
    pub fn totals(&self) -> PeerTotals {
        let Egress { counters, path_mtu, .. } = &self.egress.0;
        let mtu = path_mtu.load(Relaxed);
        PeerTotals {
            egress: counters.exchanged(),
            ingress: self.ingress.0.counters.exchanged(),
            last_seen: self.ingress.0.counters.age(),
            path_mtu: (mtu > 0).then_some(mtu),
            answers: self.has(PeerFlag::Answers),
        }
    }

    /// How long no packet has gone to the peer, in steps of a millisecond; `None` if none has yet.
    #[must_use]
    pub fn unused_for(&self) -> Option<Duration> {
        self.egress.0.counters.age()
    }

    /// The largest outer packet that reaches the peer, in bytes; `None` while the underlay's MTU is all
    /// that is known.
    #[must_use]
    pub fn path_mtu(&self) -> Option<u32> {
        let mtu = self.egress.0.path_mtu.load(Relaxed);
        (mtu > 0).then_some(mtu)
    }

    /// Notes the path's MTU, or that it is not known any more.
    pub fn set_path_mtu(&self, mtu: Option<u32>) {
        self.egress.0.path_mtu.store(mtu.unwrap_or(0), Relaxed);
    }

    /// What frames to the peer are addressed to on the underlay's interface; `None` while it is not known that
    /// they leave by this one, or to whom.
    #[must_use]
    pub fn next_hop(&self) -> Option<MacAddr> {
        let [known, _, mac @ ..] = self.egress.0.next_hop.load(Relaxed).to_be_bytes();
        (known != 0).then_some(MacAddr(mac))
    }

    /// Notes the next hop, or that there is none known any more.
    pub fn set_next_hop(&self, mac: Option<MacAddr>) {
        let word = mac.map_or(0, |MacAddr([a, b, c, d, e, f])| u64::from_be_bytes([1, 0, a, b, c, d, e, f]));
        if self.egress.0.next_hop.load(Relaxed) != word {
            self.egress.0.next_hop.store(word, Relaxed);
        }
    }

    /// Whether `flag` is set.
    #[must_use]
    pub fn has(&self, flag: PeerFlag) -> bool {
        self.egress.0.flags.load(Relaxed) & flag as u32 != 0
    }

    /// Sets `flag`, or takes it off. Costs a load if there is nothing to change.
    pub fn set(&self, flag: PeerFlag, on: bool) {
        if self.has(flag) != on {
            let flags = &self.egress.0.flags;
            let _ = if on {
                flags.fetch_or(flag as u32, Relaxed)
            } else {
                flags.fetch_and(!(flag as u32), Relaxed)
            };
        }
    }

    /// The peer has said which addresses it has.
    pub fn announce(&self, addresses: Vec<IpAddr>) {
        let at = Duration::from_millis(now());
        self.ingress.0.announced.store(Some(Arc::new(Announced::new(addresses, at))));
        self.set(PeerFlag::Unexplained, false);
    }

    /// Whether the peer has said of late that `address` is its own.
    #[must_use]
    pub fn has_announced(&self, address: IpAddr) -> bool {
        let announced = self.ingress.0.announced.load();
        announced.as_deref().is_some_and(|announced| announced.has(address, Duration::from_millis(now())))
    }

    /// As [`has_announced`](Self::has_announced), for a packet that has come with this source, which is noted. If it has
    /// not said so, or if that was a while ago, it is to be asked.
    #[must_use]
    pub fn sends_from(&self, address: IpAddr) -> bool {
        let (announced, now) = (self.ingress.0.announced.load(), Duration::from_millis(now()));
        let announced = announced.as_deref();
        let own = announced.is_some_and(|announced| announced.has(address, now));
        if !own || announced.is_some_and(|announced| announced.is_old(now)) {
            self.set(PeerFlag::Unexplained, true);
        }
        if own && announced.is_some_and(|announced| announced.uses(address)) {
            self.set(PeerFlag::Explained, true);
        }
        own
    }

    /// The addresses of its own that packets have come from since it has said them, if there is a new one among them
    /// since this was asked last.
    pub fn explained(&self) -> Vec<IpAddr> {
        if !self.has(PeerFlag::Explained) {
            return Vec::new();
        }
        self.set(PeerFlag::Explained, false);
        let announced = self.ingress.0.announced.load();
        announced.iter().flat_map(|announced| announced.used()).collect()
    }

    /// Claims that a TCP super-packet to the peer leaves whole. It does if the way carries it as it is, or if it is time
    /// to try whether it does, with a peer that can tell; the claim is that try then, and the next one has to wait.
    #[must_use]
    pub fn claim_passthrough(&self) -> bool {
        let Egress { flags, tried, told, .. } = &self.egress.0;
        let flags = flags.load(Relaxed);
        if flags & PeerFlag::Answers as u32 == 0 {
            return flags & PeerFlag::Unfinished as u32 != 0;
        }
        let now = now();
        let told = told.load(Relaxed);
        (told > 0 && now.saturating_sub(told) < BELIEVED) || claim_turn(tried, now)
    }

    /// The peer has told that super-packets arrive whole.
    pub fn told_of_whole(&self) {
        self.egress.0.told.store(now(), Relaxed);
    }

    /// Claims the right to tell the peer that a super-packet of it has arrived whole; who has it must tell, and the next
    /// claim has to wait.
    #[must_use]
    pub fn claim_telling(&self) -> bool {
        self.has(PeerFlag::Answers) && claim_turn(&self.ingress.0.telling, now())
    }

    fn counters(&self, direction: Direction) -> &Counters {
        match direction {
            Direction::Egress => &self.egress.0.counters,
            Direction::Ingress => &self.ingress.0.counters,
        }
    }

    /// Learns from `unfinished` and `finished` packets of a batch what the peer is. One of 65,536 finished
    /// ones looks unfinished by chance, and a kernel also passes finished ones on: so the many count.
    fn learn(&self, unfinished: u32, finished: u32) {
        let ahead = self.ingress.0.unfinished.load(Relaxed);
        let now = ahead.saturating_add(unfinished).saturating_sub(finished).min(CERTAIN);
        if now != ahead {
            // Should two workers do this at once, one batch goes uncounted.
            self.ingress.0.unfinished.store(now, Relaxed);
        }
        if now == 0 {
            self.set(PeerFlag::Unfinished, false);
        } else if now == CERTAIN {
            self.set(PeerFlag::Unfinished, true);
        }
    }
}

impl Counters {
    /// How long ago packets were last counted.
    fn age(&self) -> Option<Duration> {
        let last = self.last.load(Relaxed);
        (last > 0).then(|| Duration::from_millis(now().saturating_sub(last)))
    }

    fn exchanged(&self) -> Exchanged {
        Exchanged {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            drops: self.drops.load(Relaxed),
        }
    }
}

/// Which way a worker forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the overlay device to the wire.
    Egress,
    /// From the wire to the overlay device.
    Ingress,
}

/// What a worker's batch brings to each peer, until it is settled. In a steady stream from and to the same
/// few peers, nothing shared is written in between, not even a reference count.
#[derive(Debug)]
pub struct PeerCounters {
    direction: Direction,
    /// Those beyond `used` are kept for their peer, which the next batch is likely to meet again.
    entries: Vec<Entry>,
    used: usize,
}

#[derive(Debug)]
struct Entry {
    peer: Arc<PeerState>,
    packets: u64,
    bytes: u64,
    drops: u64,
    unfinished: u32,
    finished: u32,
}

impl PeerCounters {
    /// An empty one, of a worker of that direction.
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        Self { direction, entries: Vec::with_capacity(ENTRIES), used: 0 }
    }

    /// Counts `packets` inner packets of `bytes` bytes together, forwarded to or from `peer`.
    pub fn forwarded(&mut self, peer: &Arc<PeerState>, packets: usize, bytes: usize) {
        let entry = self.entry(peer);
        entry.packets = entry.packets.wrapping_add(packets as u64);
        entry.bytes = entry.bytes.wrapping_add(bytes as u64);
    }

    /// Takes back what is counted as forwarded in the same batch, be it before or after this, and counts it
    /// as dropped.
    pub fn lost(&mut self, peer: &Arc<PeerState>, packets: usize, bytes: usize) {
        let entry = self.entry(peer);
        entry.packets = entry.packets.wrapping_sub(packets as u64);
        entry.bytes = entry.bytes.wrapping_sub(bytes as u64);
        entry.drops += packets as u64;
    }

    /// Counts a packet to or from `peer` that was dropped.
    pub fn dropped(&mut self, peer: &Arc<PeerState>) {
        self.entry(peer).drops += 1;
    }

    /// Notes whether a packet from `peer` had a checksum that is left to us to fill.
    pub fn judged(&mut self, peer: &Arc<PeerState>, unfinished: bool) {
        let entry = self.entry(peer);
        entry.unfinished += u32::from(unfinished);
        entry.finished += u32::from(!unfinished);
    }

    /// Adds what was gathered to the peers: at the end of each batch.
    pub fn settle(&mut self) {
        if self.used == 0 {
            return;
        }
        let now = now();
        for Entry { peer, packets, bytes, drops, unfinished, finished } in &mut self.entries[..self.used] {
            let counters = peer.counters(self.direction);
            // Another worker may be at it, so additions are atomic: a few for each peer and batch.
            if *packets > 0 {
                counters.packets.fetch_add(*packets, Relaxed);
                counters.bytes.fetch_add(*bytes, Relaxed);
                counters.last.store(now, Relaxed);
            }
            if *drops > 0 {
                counters.drops.fetch_add(*drops, Relaxed);
            }
            if *unfinished > 0 || *finished > 0 {
                peer.learn(*unfinished, *finished);
            }
            (*packets, *bytes, *drops) = (0, 0, 0);
            (*unfinished, *finished) = (0, 0);
        }
        self.used = 0;
    }

    fn entry(&mut self, peer: &Arc<PeerState>) -> &mut Entry {
        let recent = self.used.saturating_sub(RECENT);
        let found = self.entries[recent..self.used].iter().rposition(|entry| Arc::ptr_eq(&entry.peer, peer));
        if let Some(found) = found {
            return &mut self.entries[recent + found];
        }
        if self.used == ENTRIES {
            self.settle();
        }
        let index = self.used;
        match self.entries.get_mut(index) {
            Some(entry) if Arc::ptr_eq(&entry.peer, peer) => {}
            Some(entry) => entry.peer = Arc::clone(peer),
            None => self.entries.push(Entry::new(peer)),
        }
        self.used += 1;
        &mut self.entries[index]
    }
}

impl Entry {
    fn new(peer: &Arc<PeerState>) -> Self {
        Self { peer: Arc::clone(peer), packets: 0, bytes: 0, drops: 0, unfinished: 0, finished: 0 }
    }
}

/// Claims to do `now` what was last done at `last`, if that is long enough ago; of several who claim it, one gets it.
fn claim_turn(last: &AtomicU64, now: u64) -> bool {
    let before = last.load(Relaxed);
    (before == 0 || now.saturating_sub(before) >= AGAIN)
        && last.compare_exchange(before, now, Relaxed, Relaxed).is_ok()
}

/// Milliseconds since [`EPOCH`], plus one.
fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// When this process first asked for the time.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// So many unfinished packets more than finished ones make a peer [`PeerFlag::Unfinished`]; when they have been
/// made up for, it is that no more.
const CERTAIN: u32 = 16;

/// Milliseconds between two tries, and between two words about what arrives: small beside what flows then.
const AGAIN: u64 = 1000;
/// For so many milliseconds a peer's word holds: some of them may be lost.
const BELIEVED: u64 = 4 * AGAIN;

/// A batch is 64 packets to the wire, and mostly of fewer senders from it; with more peers it is settled twice.
const ENTRIES: usize = 64;
/// How many peers packets may take turns between without counting apart.
const RECENT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn peers<const N: usize>() -> [Arc<PeerState>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    #[test]
    fn a_batch_is_added_when_it_is_settled() {
        let [one, two] = peers();
        let mut counters = PeerCounters::new(Direction::Ingress);
        for _ in 0..3 {
            counters.forwarded(&one, 2, 100);
            counters.forwarded(&two, 1, 7);
        }
        counters.dropped(&two);
        assert_eq!(one.totals(), PeerTotals::default(), "not before");
        counters.settle();
        counters.settle();
        let exchanged = |packets, bytes, drops| Exchanged { packets, bytes, drops };
        assert_eq!(one.totals().ingress, exchanged(6, 300, 0));
        assert_eq!(two.totals().ingress, exchanged(3, 21, 1));
        assert_eq!(one.totals().egress, Exchanged::default());
        assert!(one.totals().last_seen.is_some_and(|ago| ago < Duration::from_secs(60)));
    }

    #[test]
    fn a_peer_has_the_addresses_that_it_has_said_last_and_is_asked_for_others() {
        let state = PeerState::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from([172, 16, 5, last]));
        assert!(!state.has_announced(one), "a question");
        assert!(!state.has(PeerFlag::Unexplained) && !state.sends_from(one));
        assert!(state.has(PeerFlag::Unexplained));
        state.announce(vec![one]);
        assert!(state.sends_from(one) && !state.has(PeerFlag::Unexplained));
        assert!(!state.sends_from(other) && state.has(PeerFlag::Unexplained));
        state.announce(vec![other]);
        assert!(state.sends_from(other) && !state.sends_from(one));
    }

    #[test]
    fn an_address_that_a_peer_begins_to_use_is_told_once() {
        let state = PeerState::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from([172, 16, 5, last]));
        state.announce(vec![one, other]);
        assert_eq!(state.explained(), [] as [IpAddr; 0]);
        for (used, expected) in [(one, vec![one]), (one, vec![]), (other, vec![one, other])] {
            assert!(state.has_announced(used) && state.explained().is_empty(), "a question");
            assert!(state.sends_from(used));
            assert_eq!(state.explained(), expected);
        }
    }

    #[test]
    fn only_what_was_valid_and_came_from_it_is_a_sign_of_life() {
        let [sent_to, refused] = peers();
        let (mut egress, mut ingress) =
            (PeerCounters::new(Direction::Egress), PeerCounters::new(Direction::Ingress));
        egress.forwarded(&sent_to, 1, 1);
        ingress.dropped(&refused);
        egress.settle();
        ingress.settle();
        assert_eq!((sent_to.totals().last_seen, refused.totals().last_seen), (None, None));
    }

    #[test]
    fn what_was_lost_is_not_forwarded_whichever_is_told_first() {
        let [peer] = peers();
        let mut counters = PeerCounters::new(Direction::Egress);
        counters.lost(&peer, 3, 30);
        counters.forwarded(&peer, 10, 100);
        counters.settle();
        assert_eq!(peer.totals().egress, Exchanged { packets: 7, bytes: 70, drops: 3 });
    }

    #[test]
    fn more_peers_than_it_has_room_for_lose_nothing() {
        let many: Vec<Arc<PeerState>> = (0..3 * ENTRIES).map(|_| Arc::default()).collect();
        let mut counters = PeerCounters::new(Direction::Egress);
        for round in 0..2 {
            for peer in &many {
                counters.forwarded(peer, 1, 10);
            }
            counters.settle();
            assert!(many.iter().all(|peer| peer.totals().egress.packets == round + 1));
        }
        assert!(counters.entries.len() == ENTRIES);
    }

    #[test]
    fn what_is_learned_of_a_peer_can_be_unlearned() {
        let [peer] = peers();
        assert_eq!((peer.path_mtu(), peer.has(PeerFlag::Unfinished)), (None, false));
        peer.set_path_mtu(Some(1400));
        peer.set(PeerFlag::Unfinished, true);
        assert_eq!((peer.totals().path_mtu, peer.has(PeerFlag::Unfinished)), (Some(1400), true));
        peer.set_path_mtu(None);
        peer.set(PeerFlag::Unfinished, false);
        assert_eq!((peer.path_mtu(), peer.has(PeerFlag::Unfinished)), (None, false));
    }

    #[test]
    fn of_a_peer_that_can_tell_only_its_word_counts() {
        let [peer] = peers();
        assert!(!peer.claim_passthrough());
        peer.set(PeerFlag::Unfinished, true);
        assert!(peer.claim_passthrough() && peer.claim_passthrough());
        peer.set(PeerFlag::Answers, true);
        assert!(peer.claim_passthrough(), "a try");
        assert!(!peer.claim_passthrough());
        peer.told_of_whole();
        peer.set(PeerFlag::Unfinished, false);
        assert!(peer.claim_passthrough() && peer.claim_passthrough());
    }

    #[test]
    fn what_a_peer_sends_unfinished_is_learned_from_many_packets_and_unlearned() {
        let [peer] = peers();
        let mut counters = PeerCounters::new(Direction::Ingress);
        let mut batch = |unfinished: u32, finished: u32| {
            (0..unfinished).for_each(|_| counters.judged(&peer, true));
            (0..finished).for_each(|_| counters.judged(&peer, false));
            counters.settle();
            peer.has(PeerFlag::Unfinished)
        };
        assert!((0..1000).all(|_| !batch(1, 2)), "by chance");
        assert!(!batch(CERTAIN - 1, 0));
        assert!(batch(1, 0));
        assert!(batch(100, 0));
        assert!((0..1000).all(|_| batch(2, 2)), "a kernel that forwards finished packets, too");
        assert!(batch(0, CERTAIN - 1));
        assert!(!batch(0, 1));
        assert!(!batch(CERTAIN - 1, 0));
    }

    #[test]
    fn the_next_hop_is_known_or_not() {
        let [peer] = peers();
        assert_eq!(peer.next_hop(), None);
        for mac in [MacAddr([0; 6]), MacAddr([2, 3, 4, 5, 6, 255])] {
            peer.set_next_hop(Some(mac));
            assert_eq!(peer.next_hop(), Some(mac));
        }
        peer.set_next_hop(None);
        assert_eq!(peer.next_hop(), None);
    }

    #[test]
    fn ten_thousand_peers_are_two_mebibytes() {
        assert_eq!(std::mem::size_of::<PeerState>(), 128);
    }
}
