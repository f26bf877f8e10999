//! What a worker shows of the packets it handles: the last one dropped for each reason, always, and copies of
//! those that somebody asked for ([`crate::capture`]).
//!
//! While nobody asks, a batch costs one relaxed load, and a dropped packet the test of a bit: of each reason one
//! packet is looked at, and the next a tenth of a second later, however many there are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;
use overlay_wire::drops::DropReason;
use overlay_wire::glance::Glance;

use crate::capture::{Capture, Seen, Stage, Tap};
use crate::peer_state::Direction;

/// A packet that was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// When that was.
    pub when: SystemTime,
    /// The other end on the underlay: where it came from, or was to go; `None` if it had nowhere to go.
    pub outer: Option<SocketAddr>,
    /// Whose packet it was, if its header can be read.
    pub inner: Option<Glance>,
    /// Its length in bytes: of the inner packet if there is one, else of what came.
    pub len: usize,
}

/// What all workers have seen, shared with whoever wants to know.
#[derive(Debug, Default)]
pub struct Watched {
    offenders: DashMap<(Direction, DropReason), Offender>,
    /// Where captures are asked for.
    pub tap: Arc<Tap>,
}

impl Watched {
    /// The last packet looked at that was dropped for `reason`.
    #[must_use]
    pub fn offender(&self, direction: Direction, reason: DropReason) -> Option<Offender> {
        self.offenders.get(&(direction, reason)).map(|offender| offender.clone())
    }
}

/// One worker's part in it.
#[derive(Debug)]
pub struct Witness {
    direction: Direction,
    watched: Arc<Watched>,
    tap: Arc<Tap>,
    /// Our addresses on the underlay: the lanes' that are sent from, or the one received at.
    own: Vec<SocketAddr>,
    /// A bit for each reason of which a packet was looked at since `since`.
    looked_at: u32,
    since: Instant,
    captures: Option<Arc<Vec<Arc<Capture>>>>,
}

const _: () = assert!(DropReason::ALL.len() <= u32::BITS as usize);

impl Witness {
    /// That of a worker which sends from `own` by lane, or receives at the only one.
    #[must_use]
    pub fn new(direction: Direction, watched: Arc<Watched>, own: Vec<SocketAddr>) -> Self {
        let tap = Arc::clone(&watched.tap);
        Self { direction, watched, tap, own, looked_at: 0, since: Instant::now(), captures: None }
    }

    /// A batch begins: looks whether anything is to be captured of it.
    pub fn begin(&mut self) {
        self.captures = self.tap.current();
        if self.looked_at != 0 && self.since.elapsed() >= PAUSE {
            self.looked_at = 0;
        }
    }

    /// Whether somebody captures.
    #[inline]
    #[must_use]
    pub fn captures(&self) -> bool {
        self.captures.is_some()
    }

    /// Whether a packet dropped for `reason` is worth gathering its bytes.
    #[must_use]
    pub fn wants(&self, reason: DropReason) -> bool {
        self.captures() || self.looked_at & (1 << reason as u32) == 0
    }

    /// Whether there is nothing to do about a packet: it goes on, and nobody captures.
    #[inline]
    fn is_idle(&self, reason: Option<DropReason>) -> bool {
        reason.is_none() && !self.captures()
    }

    /// A packet from the overlay device goes on to `to`, or is dropped for `reason`.
    pub fn read(&mut self, to: Option<SocketAddr>, inner: &[u8], reason: Option<DropReason>) {
        let outer = to.zip(self.own.first().copied()).map(|(to, own)| (own, to));
        self.see(to, &Seen { stage: Stage::Read, outer, payload: inner, header_len: 0, reason });
    }

    /// A datagram of an inner packet behind `header_len` bytes was sent to `to` by a lane, or not for `reason`.
    pub fn sent(
        &mut self,
        lane: usize,
        to: SocketAddr,
        payload: &[u8],
        header_len: usize,
        reason: Option<DropReason>,
    ) {
        if self.is_idle(reason) {
            return;
        }
        let outer = self.own.get(lane).map(|own| (*own, to));
        self.see(Some(to), &Seen { stage: Stage::Sent, outer, payload, header_len, reason });
    }

    /// A datagram came from `from`; the packet in it, behind `header_len` bytes, goes on or is dropped.
    #[inline]
    pub fn arrived(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        header_len: usize,
        reason: Option<DropReason>,
    ) {
        if self.is_idle(reason) {
            return;
        }
        let outer = self.own.first().map(|own| (from, *own));
        self.see(Some(from), &Seen { stage: Stage::Arrived, outer, payload, header_len, reason });
    }

    /// The device does not take `inner`, which had arrived and been admitted.
    pub fn unwritten(&mut self, inner: &[u8], reason: DropReason) {
        let seen = Seen {
            stage: Stage::Unwritten,
            outer: None,
            payload: inner,
            header_len: 0,
            reason: Some(reason),
        };
        self.see(None, &seen);
    }

    #[inline]
    fn see(&mut self, other_end: Option<SocketAddr>, seen: &Seen<'_>) {
        if let Some(reason) = seen.reason {
            self.look(reason, other_end, seen);
        }
        for capture in self.captures.iter().flat_map(|captures| captures.iter()) {
            capture.take(self.direction, seen);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a packet that is shown has a date")]
    fn look(&mut self, reason: DropReason, other_end: Option<SocketAddr>, seen: &Seen<'_>) {
        let bit = 1 << reason as u32;
        if self.looked_at & bit != 0 {
            return;
        }
        if self.looked_at == 0 {
            self.since = Instant::now();
        }
        self.looked_at |= bit;
        let inner = seen.payload.get(seen.header_len..).and_then(Glance::of);
        let len = seen.payload.len() - if inner.is_some() { seen.header_len } else { 0 };
        let offender = Offender { when: SystemTime::now(), outer: other_end, inner, len };
        self.watched.offenders.insert((self.direction, reason), offender);
    }
}

/// Between two packets of one reason that are looked at.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use overlay_wire::samples::udp_packet;

    use super::*;

    #[test]
    fn of_each_reason_one_packet_is_looked_at_and_later_another() {
        let watched = Arc::<Watched>::default();
        let mut witness = Witness::new(Direction::Ingress, Arc::clone(&watched), Vec::new());
        let from = |last| SocketAddr::from(([192, 168, 199, last], 4000));
        let inner = |src: &str| [vec![8; 22], udp_packet(src, "10.1.9.3", 64, b"x")].concat();
        let seen = |reason| watched.offender(Direction::Ingress, reason);
        witness.begin();
        witness.arrived(from(1), &inner("10.1.63.2"), 22, None);
        assert_eq!(seen(DropReason::WrongSource), None);
        witness.arrived(from(2), &inner("10.1.63.2"), 22, Some(DropReason::WrongSource));
        witness.arrived(from(3), &inner("10.1.63.3"), 22, Some(DropReason::WrongSource));
        witness.arrived(from(4), &[1; 7], 22, Some(DropReason::Truncated));
        let offender = seen(DropReason::WrongSource).unwrap();
        assert_eq!((offender.outer, offender.len), (Some(from(2)), 29));
        assert_eq!(offender.inner.unwrap().src.to_string(), "10.1.63.2");
        let truncated = seen(DropReason::Truncated).unwrap();
        assert_eq!((truncated.outer, truncated.inner, truncated.len), (Some(from(4)), None, 7));
        assert_eq!(watched.offender(Direction::Egress, DropReason::WrongSource), None);

        witness.since = Instant::now().checked_sub(PAUSE).unwrap();
        witness.begin();
        witness.arrived(from(5), &inner("10.1.63.2"), 22, Some(DropReason::WrongSource));
        assert_eq!(seen(DropReason::WrongSource).unwrap().outer, Some(from(5)));
    }
}
