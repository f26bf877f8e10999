//! Copies of packets for who asks for them: filtered by the workers, bounded, and never in their way.
//!
//! A [`Tap`] is what the workers look at, one relaxed load a batch. [`Tap::open`] begins a capture, of which there
//! are a few at a time at most; what one cannot take fast enough is counted, not waited for.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, bounded};
use ipnet::IpNet;
use overlay_wire::drops::DropReason;
use overlay_wire::glance::Glance;

use crate::peer_state::Direction;

/// Which packets are wanted: those that fit everything that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Inner packets as pods see them, or outer ones as the wire does.
    pub layer: Layer,
    /// Only those dropped.
    pub drops_only: bool,
    /// One direction only.
    pub direction: Option<Direction>,
    /// The inner source or destination lies in one of these.
    pub hosts: Vec<IpNet>,
    /// The other end on the underlay.
    pub peer: Option<IpAddr>,
    /// The inner packet's protocol number.
    pub protocol: Option<u8>,
    /// The inner packet's source or destination port.
    pub port: Option<u16>,
    /// Bytes of each packet that are kept.
    pub snaplen: usize,
}

/// Which packets are seen. A dropped packet is seen in the other layer if it has none in this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layer {
    /// Of the overlay. As the device hands them over and takes them, so a super-packet is one.
    #[default]
    Inner,
    /// Of the underlay. IP and UDP header are made up from the addresses and ports, since the kernel keeps them.
    Outer,
}

/// A packet that fitted the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// When it was seen.
    pub when: SystemTime,
    /// Which way it went.
    pub direction: Direction,
    /// Why it was dropped, if it was.
    pub reason: Option<DropReason>,
    /// For an outer packet, its source and destination; `bytes` are its UDP payload then, else an IP packet.
    pub outer: Option<(SocketAddr, SocketAddr)>,
    /// As much of it as was wanted.
    pub bytes: Vec<u8>,
    /// How long it was.
    pub len: usize,
}

/// Where captures are asked for.
#[derive(Debug, Default)]
pub struct Tap {
    /// How many captures there are.
    open: AtomicUsize,
    captures: ArcSwap<Vec<Arc<Capture>>>,
}

/// A capture that goes on until this is dropped.
#[derive(Debug)]
pub struct Capturing {
    /// It goes with the workers.
    tap: Weak<Tap>,
    capture: Arc<Capture>,
    /// What was captured.
    pub packets: Receiver<Captured>,
}

/// What the workers hand packets to.
#[derive(Debug)]
pub struct Capture {
    filter: Filter,
    out: Sender<Captured>,
    missed: AtomicU64,
}

/// Where a worker sees a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Read from the overlay device.
    Read,
    /// Handed to the wire.
    Sent,
    /// Received from the wire.
    Arrived,
    /// Refused by the overlay device, after it had gone on as far as anybody could tell.
    Unwritten,
}

/// A packet as a worker sees it.
pub(crate) struct Seen<'a> {
    pub stage: Stage,
    /// From where to where on the underlay, if it goes there.
    pub outer: Option<(SocketAddr, SocketAddr)>,
    /// The inner packet; behind its encapsulation, unless it was just read.
    pub payload: &'a [u8],
    pub header_len: usize,
    pub reason: Option<DropReason>,
}

impl Tap {
    /// Begins a capture of what fits `filter`; `None` while there are [`MOST`] of them.
    #[must_use]
    pub fn open(tap: &Arc<Self>, filter: Filter) -> Option<Capturing> {
        let begin = |count| (count < MOST).then_some(count + 1);
        tap.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, begin).ok()?;
        let (out, packets) = bounded(WAITING);
        let capture = Arc::new(Capture { filter, out, missed: AtomicU64::new(0) });
        tap.captures.rcu(|captures| [&captures[..], &[Arc::clone(&capture)]].concat());
        Some(Capturing { tap: Arc::downgrade(tap), capture, packets })
    }

    /// The captures that packets are wanted for, if there are any.
    pub(crate) fn current(&self) -> Option<Arc<Vec<Arc<Capture>>>> {
        // One that opens this moment is seen at the next batch.
        (self.open.load(Ordering::Relaxed) > 0).then(|| self.captures.load_full())
    }
}

impl Capturing {
    /// Whether the workers have ended: then no more will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tap.strong_count() == 0
    }

    /// Packets that fitted and were lost, since the queue was full.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.capture.missed.load(Ordering::Relaxed)
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let Some(tap) = self.tap.upgrade() else { return };
        let others = |captures: &Arc<Vec<Arc<Capture>>>| {
            let others = captures.iter().filter(|capture| !Arc::ptr_eq(capture, &self.capture));
            others.cloned().collect::<Vec<_>>()
        };
        tap.captures.rcu(others);
        tap.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Capture {
    /// Takes a copy of a packet if it is wanted.
    #[expect(clippy::disallowed_methods, reason = "a captured packet has a date")]
    pub(crate) fn take(&self, direction: Direction, seen: &Seen<'_>) {
        let filter = &self.filter;
        let Some(layer) = filter.layer_of(seen) else { return };
        if filter.drops_only && seen.reason.is_none()
            || filter.direction.is_some_and(|wanted| wanted != direction)
        {
            return;
        }
        let inner = seen.payload.get(seen.header_len..).unwrap_or_default();
        let glance = Glance::of(inner);
        if !filter.fits(direction, seen, glance.as_ref()) {
            return;
        }
        let (outer, bytes) = match layer {
            Layer::Inner if glance.is_some() || seen.outer.is_none() => (None, inner),
            _ => (seen.outer, seen.payload),
        };
        let captured = Captured {
            when: SystemTime::now(),
            direction,
            reason: seen.reason,
            outer,
            bytes: bytes[..bytes.len().min(filter.snaplen)].to_vec(),
            len: bytes.len(),
        };
        if self.out.try_send(captured).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Filter {
    /// In which layer what was seen is to be shown, if at all: each packet once, and a dropped one always.
    fn layer_of(&self, seen: &Seen<'_>) -> Option<Layer> {
        match (self.layer, seen.stage, seen.reason) {
            (layer, Stage::Arrived, _) => Some(layer),
            (Layer::Inner, Stage::Read, _) | (_, Stage::Read, Some(_)) => Some(Layer::Inner),
            // It was shown when it arrived; that it was refused after all is news.
            (_, Stage::Unwritten, _) => Some(Layer::Inner),
            (Layer::Outer, Stage::Sent, _) => Some(Layer::Outer),
            // The same on the way out.
            (Layer::Inner, Stage::Sent, reason) => reason.map(|_| Layer::Inner),
            (Layer::Outer, Stage::Read, None) => None,
        }
    }

    fn fits(&self, direction: Direction, seen: &Seen<'_>, glance: Option<&Glance>) -> bool {
        let peer = seen.outer.map(|(from, to)| match direction {
            Direction::Egress => to.ip(),
            Direction::Ingress => from.ip(),
        });
        if self.peer.is_some() && peer != self.peer {
            return false;
        }
        let Some(glance) = glance else {
            return self.hosts.is_empty() && self.protocol.is_none() && self.port.is_none();
        };
        let is_host = |address: IpAddr| self.hosts.iter().any(|host| host.contains(&address));
        (self.hosts.is_empty() || is_host(glance.src) || is_host(glance.dst))
            && self.protocol.is_none_or(|protocol| protocol == glance.protocol)
            && self.port.is_none_or(|port| glance.ports.is_some_and(|(src, dst)| src == port || dst == port))
    }
}

/// Captures at a time: each packet is held against the filter of each.
pub const MOST: usize = 4;
/// Packets that wait to be written down; of the longest, 64 MiB.
const WAITING: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use overlay_wire::samples::udp_packet;

    use super::*;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 199, 238)), 8472);
    const OWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 1, 12)), 8472);

    /// What is captured, by its first byte, with this filter, of an egress packet that is read, sent and then
    /// refused, one that is refused at once, an ingress one that arrives and cannot be read, and one that the device
    /// does not take.
    fn captured(filter: Filter) -> Vec<(u8, Option<DropReason>)> {
        let tap = Arc::<Tap>::default();
        let capturing = Tap::open(&tap, Filter { snaplen: 100, ..filter }).unwrap();
        let captures = tap.current().unwrap();
        let inner = udp_packet("10.1.9.3", "10.1.63.2", 64, b"x");
        let framed = [&[8; 22][..], &inner].concat();
        let take = |direction, stage, payload: &[u8], header_len, reason| {
            let outer = match stage {
                Stage::Read if reason == Some(DropReason::NoRoute) => None,
                Stage::Read | Stage::Sent => Some((OWN, PEER)),
                Stage::Arrived => Some((PEER, OWN)),
                Stage::Unwritten => None,
            };
            captures[0].take(direction, &Seen { stage, outer, payload, header_len, reason });
        };
        take(Direction::Egress, Stage::Read, &inner, 0, None);
        take(Direction::Egress, Stage::Sent, &framed, 22, None);
        take(Direction::Egress, Stage::Sent, &framed, 22, Some(DropReason::SendFailed));
        take(Direction::Egress, Stage::Read, &inner, 0, Some(DropReason::NoRoute));
        take(Direction::Ingress, Stage::Arrived, &[9; 30], 22, Some(DropReason::WrongVni));
        take(Direction::Ingress, Stage::Unwritten, &[0x46; 30], 0, Some(DropReason::WriteFailed));
        capturing.packets.try_iter().map(|packet| (packet.bytes[0], packet.reason)).collect()
    }

    #[test]
    fn each_layer_shows_a_packet_once_and_every_drop() {
        use DropReason::{NoRoute, SendFailed, WriteFailed, WrongVni};
        let last = [(9, Some(WrongVni)), (0x46, Some(WriteFailed))];
        let drops = [&[(0x45, Some(SendFailed)), (0x45, Some(NoRoute))], &last[..]].concat();
        assert_eq!(captured(Filter::default()), [&[(0x45, None)], &drops[..]].concat());
        assert_eq!(captured(Filter { drops_only: true, ..Filter::default() }), drops);
        let outer = [&[(8, None), (8, Some(SendFailed)), (0x45, Some(NoRoute))], &last[..]].concat();
        assert_eq!(captured(Filter { layer: Layer::Outer, ..Filter::default() }), outer);
    }

    #[test]
    fn a_filter_asks_for_all_that_it_says() {
        let count = |filter: Filter| captured(filter).len();
        let host = |host: &str| Filter { hosts: vec![host.parse().unwrap()], ..Filter::default() };
        assert_eq!(count(host("10.1.63.0/24")), 3, "what cannot be read is nobody's");
        assert_eq!(count(host("10.1.64.0/24")), 0);
        let peer = |peer: IpAddr| Filter { peer: Some(peer), ..Filter::default() };
        assert_eq!(count(peer(PEER.ip())), 3, "without a route there is no peer");
        assert_eq!(count(peer(OWN.ip())), 0);
        assert_eq!(count(Filter { protocol: Some(17), ..Filter::default() }), 3);
        assert_eq!(count(Filter { protocol: Some(6), ..Filter::default() }), 0);
        let ports = Glance::of(&udp_packet("10.1.9.3", "10.1.63.2", 64, b"x")).unwrap().ports.unwrap();
        assert_eq!(count(Filter { port: Some(ports.1), ..Filter::default() }), 3);
        assert_eq!(count(Filter { port: Some(9), ..Filter::default() }), 0);
        assert_eq!(count(Filter { direction: Some(Direction::Ingress), ..Filter::default() }), 2);
    }

    const SEEN: Seen<'_> =
        Seen { stage: Stage::Read, outer: None, payload: &[0x45; 40], header_len: 0, reason: None };

    #[test]
    fn what_is_not_taken_is_counted() {
        let tap = Arc::<Tap>::default();
        let capturing = Tap::open(&tap, Filter { snaplen: 10, ..Filter::default() }).unwrap();
        for _ in 0..WAITING + 3 {
            tap.current().unwrap()[0].take(Direction::Egress, &SEEN);
        }
        assert_eq!(capturing.missed(), 3);
        let first = capturing.packets.recv().unwrap();
        assert_eq!((first.bytes.len(), first.len), (10, 40));
    }

    #[test]
    fn a_few_captures_go_on_side_by_side_until_they_are_dropped_or_the_workers_end() {
        let tap = Arc::<Tap>::default();
        let open = |snaplen| Tap::open(&tap, Filter { snaplen, ..Filter::default() });
        assert!(tap.current().is_none());
        let mut all: Vec<Capturing> = (1..=MOST).map(|snaplen| open(snaplen).unwrap()).collect();
        assert!(open(9).is_none(), "not more");
        let see = || {
            tap.current().iter().flat_map(|c| c.iter()).for_each(|c| c.take(Direction::Egress, &SEEN));
        };
        see();
        let lens = |all: &[Capturing]| -> Vec<usize> {
            all.iter()
                .flat_map(|capturing| capturing.packets.try_iter())
                .map(|seen| seen.bytes.len())
                .collect()
        };
        assert_eq!(lens(&all), (1..=MOST).collect::<Vec<_>>());
        all.remove(1);
        all.push(open(9).unwrap());
        see();
        assert_eq!(lens(&all).last(), Some(&9));
        all.truncate(1);
        assert!(!all[0].is_over());
        assert_eq!(tap.current().map(|captures| captures.len()), Some(1));
        drop(tap);
        assert!(all[0].is_over());
    }
}
