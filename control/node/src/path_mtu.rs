//! Learns how large packets to each peer may be, where the path is narrower than our interface.
//!
//! A peer that packets go to is asked at once, and then once a minute, for an echo of full size that must not be
//! cut. If it does not come, a router on the way has told the kernel what fits, or else has dropped it without a
//! word; then shorter echoes find out. A peer that answers none at all, as one that does not run overlayd, is left
//! alone: what is too large for the path is cut on the way. The kernel forgets what it was told after
//! `net.ipv4.route.mtu_expires` seconds, and then so do we.
//!
//! Answers also say which addresses a node has ([`holders`]). One that sends with a source that may be such an address is
//! asked for that alone.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use overlay::echo::{self, Answer};
use overlay::path_mtu::Prober;
use overlay::peer_state::PeerFlag;
use overlay::table::{Hop, Peer, PeerTable, Route, SharedTable};
use overlay_wire::ip::Version;
use overlay_wire::{Addresses, Subnets};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::ping::Pings;

mod holders;

use holders::{Holders, Said};

/// Watches the paths to all peers of a tunnel, until it is dropped.
#[derive(Debug)]
pub struct PathMtus(tokio::task::JoinHandle<()>);

impl PathMtus {
    /// Begins to watch.
    #[must_use]
    pub fn watch(prober: Prober, table: SharedTable, pings: Arc<Pings>) -> Self {
        let watcher = Watcher { prober, table, pings, holders: Mutex::default() };
        Self(tokio::spawn(watcher.run()))
    }
}

impl Drop for PathMtus {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Watcher {
    prober: Prober,
    table: SharedTable,
    pings: Arc<Pings>,
    holders: Mutex<Holders>,
}

/// Which path: to the node of these subnets, at these addresses.
type Key = (Subnets, Addresses);

/// What is remembered of a path that was asked about.
#[derive(Debug, Clone, Copy)]
enum Path {
    /// It is being asked about.
    Asking,
    /// It was, and whether it was the kernel that knew how narrow it is.
    Asked { at: Instant, told: bool },
}

/// What asking has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Packets of full size pass, or there is nobody to say that they do not.
    Wide,
    /// No more than so many bytes pass. `told` if the kernel was told so.
    Narrow { mtu: u32, told: bool },
}

impl Watcher {
    async fn run(self) {
        let mut paths = HashMap::new();
        let mut asking = FuturesUnordered::new();
        let (mut explained, mut explaining) = (HashMap::new(), FuturesUnordered::new());
        let (mut looks, mut reviews) = (interval(LOOK), interval(REVIEW));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reviews.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            let due = tokio::select! {
                now = looks.tick() => {
                    for key in self.unexplained(&mut explained, AT_ONCE.saturating_sub(explaining.len())) {
                        explaining.push(self.ask_for_addresses(key));
                    }
                    self.tell_of_explained();
                    self.used_since(std::mem::replace(&mut last, now), &paths)
                }
                Some(()) = explaining.next() => continue,
                _ = reviews.tick() => self.forgotten(&mut paths),
                Some((key, found)) = asking.next() => {
                    let told = matches!(found, Found::Narrow { told: true, .. });
                    paths.insert(key, Path::Asked { at: Instant::now(), told });
                    note(&self.table.current(), key, found);
                    continue;
                }
            };
            for key in due.into_iter().take(AT_ONCE.saturating_sub(asking.len())) {
                paths.insert(key, Path::Asking);
                asking.push(self.ask(key));
            }
        }
    }

    /// The peers that packets have gone to since `last`, and that were not asked of late.
    fn used_since(&self, last: Instant, paths: &HashMap<Key, Path>) -> Vec<Key> {
        let (now, table) = (Instant::now(), self.table.current());
        let used = |(_, hop): &(_, &Hop)| hop.state.unused_for().is_some_and(|time| time <= now - last);
        let mut used = table.peers().iter().zip(table.hops()).filter(used).peekable();
        // Mostly there are none, and this is done often.
        if used.peek().is_none() {
            return Vec::new();
        }
        let again = ASK_AGAIN.min(expiry());
        let is_due = |key: &Key| match paths.get(key) {
            Some(Path::Asking) => false,
            Some(Path::Asked { at, .. }) => now - *at >= again,
            None => true,
        };
        used.map(|(peer, _)| key(peer)).filter(is_due).collect()
    }

    /// The peers that packets come from with sources that may be their own addresses, up to `most` of those that were not
    /// asked of late.
    fn unexplained(&self, asked: &mut HashMap<Key, Instant>, most: usize) -> Vec<Key> {
        let (now, table) = (Instant::now(), self.table.current());
        asked.retain(|_, at| now - *at < ASK_FOR_ADDRESSES_AGAIN);
        let peers = table.peers().iter().zip(table.hops());
        let unexplained = peers.filter(|(_, hop)| hop.state.has(PeerFlag::Unexplained));
        let keys = unexplained.map(|(peer, _)| key(peer));
        let due: Vec<Key> = keys.filter(|key| !asked.contains_key(key)).take(most).collect();
        asked.extend(due.iter().map(|key| (*key, now)));
        due
    }

    /// Asks a node which addresses it has. If one is another's, that is asked whether it still has it.
    async fn ask_for_addresses(&self, (subnets, public): Key) {
        let table = self.table.current();
        let Some((hop, overlay_address)) = find(&table, (subnets, public)) else { return };
        let node = hop.address;
        let inner = echo::len_with_addresses(Version::of(overlay_address));
        let len = u32::try_from(inner).unwrap_or(u32::MAX) + overhead(&table, hop);
        let Some(answer) = self.answer(&table, overlay_address, len).await else { return };
        for (address, holder) in self.hear(&table, &answer).others {
            if let Some(hop) = table.at(holder) {
                hop.state.set(PeerFlag::Unexplained, true);
            }
            if self.holders().is_to_be_told(address, node) {
                info!(%address, %node, %holder, "a node says that it has an address that another has said before: only from that one packets with this source pass");
            }
        }
    }

    /// Notes which addresses a node has by its answer.
    fn hear(&self, table: &PeerTable, answer: &Answer) -> Said {
        let (Some(addresses), Route::Peer(hop)) = (&answer.addresses, table.route(answer.from)) else {
            return Said::default();
        };
        let said = self.holders().say(hop.address, addresses, Instant::now());
        hop.state.announce(said.own.clone());
        said
    }

    /// Tells of addresses that nodes have begun to send from.
    fn tell_of_explained(&self) {
        let table = self.table.current();
        for hop in table.hops() {
            let node = hop.address;
            for address in hop.state.explained() {
                if address != node && self.holders().is_to_be_told(address, node) {
                    info!(%address, %node, "packets come from a node with another address of its own as their source, and pass: it has said so");
                }
            }
        }
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock()
    }

    /// Those whose narrow path the kernel has forgotten. What is known of nodes that are gone is forgotten here.
    fn forgotten(&self, paths: &mut HashMap<Key, Path>) -> Vec<Key> {
        let table = self.table.current();
        self.holders().forget(Instant::now());
        paths.retain(|(subnets, public), path| {
            matches!(path, Path::Asking) || table.state(*subnets, *public).is_some()
        });
        let told = paths.iter().filter(|(_, path)| matches!(path, Path::Asked { told: true, .. }));
        told.map(|(key, _)| *key).filter(|key| self.is_forgotten(&table, *key)).collect()
    }

    async fn ask(&self, key: Key) -> (Key, Found) {
        (key, self.explore(&self.table.current(), key).await)
    }

    /// Whether the kernel takes the path for as wide as the interface again.
    fn is_forgotten(&self, table: &PeerTable, (subnets, public): Key) -> bool {
        let Some(hop) = table.find(subnets, public) else { return false };
        hop.state.path_mtu().is_some_and(|mtu| self.prober.known(hop.to()).is_ok_and(|now| now > mtu))
    }

    /// Finds out about the path to a peer, and whether it answers at all.
    async fn explore(&self, table: &PeerTable, key: Key) -> Found {
        let Some((hop, overlay_address)) = find(table, key) else { return Found::Wide };
        let full = table.local().mtu + overhead(table, hop);
        let told = || self.prober.known(hop.to()).ok().filter(|mtu| *mtu < full);
        let answers = AtomicBool::new(false);
        let answers = &answers;
        let passes = async |len| {
            let answer = self.answer(table, overlay_address, len).await;
            let passed = answer.is_some();
            if let Some(answer) = answer {
                self.hear(table, &answer);
            }
            answers.fetch_or(passed, Relaxed);
            passed
        };
        let found = explore(full, told, passes).await;
        hop.state.set(PeerFlag::Answers, answers.load(Relaxed));
        found
    }

    /// The answer to an echo in a packet of `len` bytes, if one comes: to one of several, since any may be lost.
    async fn answer(&self, table: &PeerTable, overlay_address: IpAddr, len: u32) -> Option<Answer> {
        for _ in 0..TRIES {
            let ask = |token| self.prober.ask(overlay_address, token, len, table);
            match self.pings.ask_by(ask, overlay_address) {
                Ok(ping) => {
                    if let Some(answer) = ping.words(PATIENCE).await {
                        return Some(answer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Longer than the interface takes, or no way at all: asking again changes nothing.
                Err(_) => return None,
            }
        }
        None
    }
}

/// Finds out how large packets of up to `full` bytes may be: `told` is what the kernel was told of the path, if
/// anything, and `passes` tries one of a length.
async fn explore<F: Future<Output = bool>>(
    full: u32,
    told: impl Fn() -> Option<u32>,
    passes: impl Fn(u32) -> F,
) -> Found {
    let by_router = |mtu| Found::Narrow { mtu, told: true };
    if passes(full).await {
        // The kernel may have been told earlier; until it has forgotten, it cuts what is longer.
        return told().map_or(Found::Wide, by_router);
    }
    let told = told();
    if let Some(mtu) = told
        && passes(mtu).await
    {
        return by_router(mtu);
    }
    if !passes(SMALLEST).await {
        // Nobody answers, be it for lack of an overlayd, and what the kernel was told is all there is.
        return told.map_or(Found::Wide, by_router);
    }
    let most = told.unwrap_or(full);
    let mut passed = SMALLEST;
    for _ in 0..SEARCHES {
        let mut lost = most;
        while passed + 1 < lost {
            let middle = passed.midpoint(lost);
            if passes(middle).await {
                passed = middle;
            } else {
                lost = middle;
            }
        }
        // Echoes are lost, too, where somebody is too busy to answer: what is too large is so the second time.
        if passed >= most || !passes(lost).await {
            break;
        }
        passed = lost;
    }
    match passed {
        _ if passed >= full => Found::Wide,
        _ if told == Some(passed) => by_router(passed),
        _ => Found::Narrow { mtu: passed, told: false },
    }
}

fn key(peer: &Peer) -> Key {
    (peer.subnets, peer.public)
}

/// The way to a node, and the address of its overlay device.
fn find(table: &PeerTable, (subnets, public): Key) -> Option<(&Hop, IpAddr)> {
    Some((table.find(subnets, public)?, table.overlay_address(subnets)?))
}

/// Bytes of a packet on the way that are not the inner one's.
fn overhead(table: &PeerTable, hop: &Hop) -> u32 {
    table.local().format.overhead(Version::of(hop.address))
}

fn note(table: &PeerTable, (subnet, public_ip): Key, found: Found) {
    let Some(state) = table.state(subnet, public_ip) else { return };
    let mtu = match found {
        Found::Wide => None,
        Found::Narrow { mtu, .. } => Some(mtu),
    };
    if state.path_mtu() != mtu {
        match (mtu, found) {
            (Some(mtu), Found::Narrow { told: true, .. }) => {
                info!(%subnet, %public_ip, mtu, "the path to a node is narrower than our interface: senders are told");
            }
            (Some(mtu), _) => {
                info!(%subnet, %public_ip, mtu, "the path to a node is narrower than our interface, and no router says so: senders are told");
            }
            (None, _) => info!(%subnet, %public_ip, "the path to a node is as wide as our interface again"),
        }
        state.set_path_mtu(mtu);
    } else {
        debug!(%subnet, %public_ip, ?found, "path asked");
    }
}

/// How long the kernel believes what a router has told it.
fn expiry() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/route/mtu_expires").unwrap_or_default();
    text.trim().parse().map_or(ASK_AGAIN, |seconds: u64| Duration::from_secs(seconds.max(1)))
}

/// Between two looks at whom packets go to: until then, super-packets to a new one are cut.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks at what the kernel has forgotten.
const REVIEW: Duration = Duration::from_secs(1);
/// A path that is in use is asked about as often.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// A node that has not said that a source is its own may have it by then; one that does not run overlayd is asked in vain.
const ASK_FOR_ADDRESSES_AGAIN: Duration = Duration::from_secs(10);
/// The smallest packet that every host takes in one piece (RFC 791): what is narrower is not worth telling.
const SMALLEST: u32 = 576;
/// An echo that has not come after so long is lost; one path in a thousand is slower.
const PATIENCE: Duration = Duration::from_millis(500);
/// Echoes of one length, before it counts as too large.
const TRIES: usize = 3;
/// How often it is searched on where a length that was lost has passed after all.
const SEARCHES: usize = 3;
/// Peers that are asked at the same time.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;

    /// What is found on a path of `mtu`, of which the kernel was `told`, if the tries with these numbers are lost
    /// whatever their length; and how many tries it took.
    async fn found(mtu: u32, told: Option<u32>, lost: &[usize]) -> (Found, usize) {
        let tries = Cell::new(0);
        let passes = |len| {
            tries.set(tries.get() + 1);
            ready(len <= mtu && !lost.contains(&tries.get()))
        };
        let found = explore(1500, || told, passes).await;
        (found, tries.get())
    }

    fn narrow(mtu: u32, told: bool) -> Found {
        Found::Narrow { mtu, told }
    }

    #[tokio::test]
    async fn a_wide_path_takes_one_try_and_one_that_a_router_tells_two() {
        assert_eq!(found(1500, None, &[]).await, (Found::Wide, 1));
        assert_eq!(found(1400, Some(1400), &[]).await, (narrow(1400, true), 2));
        assert_eq!(found(1500, Some(1400), &[]).await, (narrow(1400, true), 1), "the kernel cuts by it");
    }

    #[tokio::test]
    async fn what_no_router_tells_is_found_to_the_byte() {
        for mtu in [576, 577, 1000, 1399, 1400, 1498, 1499] {
            let (found, tries) = found(mtu, None, &[]).await;
            assert_eq!(found, narrow(mtu, false));
            assert!(tries < 15, "{tries} for {mtu}");
        }
        assert_eq!(found(1000, Some(1400), &[]).await.0, narrow(1000, false), "narrower still");
    }

    #[tokio::test]
    async fn who_answers_nothing_is_left_alone() {
        assert_eq!(found(0, None, &[]).await.0, Found::Wide);
        assert_eq!(found(0, Some(1400), &[]).await.0, narrow(1400, true));
        // Less than the smallest that is tried.
        assert_eq!(found(1500, Some(552), &[1, 2]).await.0, narrow(576, false));
    }

    #[tokio::test]
    async fn a_try_that_is_lost_for_another_reason_narrows_nothing() {
        assert_eq!(found(1500, None, &[1]).await.0, Found::Wide);
        assert_eq!(found(1400, Some(1400), &[2]).await.0, narrow(1400, true));
        let all = found(1400, None, &[]).await.1;
        for lost in 3..=all {
            assert_eq!(found(1400, None, &[lost]).await.0, narrow(1400, false), "without try {lost}");
        }
        // The first, and one of the search that it leads to.
        for lost in 3..8 {
            assert_eq!(found(1500, None, &[1, lost]).await.0, Found::Wide, "without try {lost}");
        }
    }
}
