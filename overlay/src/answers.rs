//! What a worker says by itself: ICMP errors, rate-limited, and sent as the host's own packets; and its part
//! in echoes between daemons ([`crate::echo`]).
//!
//! ICMP errors leave by a raw socket, not by the overlay device: a packet written to a TUN with one of
//! the host's own addresses as its source is a martian and dropped, while one sent from the host
//! is routed to a local container and, through the overlay, to a remote one alike, and passes the
//! same connection tracking as the kernel's own errors.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::echo::Echoes;
use crate::error::SetupError;
use crate::stats::WorkerStats;
use crate::table::{Local, PeerTable};
use crate::wire::icmp::{self, IcmpError};
use crate::wire::ip::Packet;

/// Where finished ICMP errors go.
pub trait IcmpOut: Send {
    /// Sends `packet`, a whole IP packet, to `to`.
    ///
    /// # Errors
    /// What the kernel said; the packet is lost.
    fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()>;
}

/// A raw socket for each version of IP, shared by all workers.
#[derive(Debug, Clone)]
pub struct RawSockets {
    v4: Arc<Socket>,
    /// Missing where the host has no IPv6.
    v6: Option<Arc<Socket>>,
}

impl RawSockets {
    /// Opens them.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub fn open() -> Result<Self, SetupError> {
        // This protocol means that packets are given whole, header and all.
        let open = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
            socket.set_nonblocking(true)?;
            Ok(Arc::new(socket))
        };
        let v4 = open(Domain::IPV4).map_err(|source| SetupError {
            call: "open a raw socket",
            object: "for ICMP errors".to_owned(),
            remedy: "run with CAP_NET_RAW, for instance as root",
            source,
        })?;
        Ok(Self { v4, v6: open(Domain::IPV6).ok() })
    }
}

impl IcmpOut for RawSockets {
    fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
        let socket = match to {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        socket.send_to(packet, &SocketAddr::new(to, 0).into()).map(drop)
    }
}

/// One worker's answers.
pub struct Answers {
    out: Box<dyn IcmpOut>,
    limit: Bucket,
    receivers: Receivers,
    echoes: Option<Echoes>,
}

impl Answers {
    /// Answers through `out`, at most [`RATE`] times a second and [`BURST`] at once, and as often as
    /// [`Receivers`] says to one host.
    #[must_use]
    pub fn new(out: Box<dyn IcmpOut>) -> Self {
        let now = Instant::now();
        Self { out, limit: Bucket::full(now), receivers: Receivers::new(now), echoes: None }
    }

    /// One of `count` workers that answer: together they say no more than one would.
    #[must_use]
    pub fn shared_by(self, count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let limit = Bucket::new((RATE / count).max(1), (BURST / count).max(1), Instant::now());
        Self { limit, ..self }
    }

    /// Takes part in echoes, too.
    #[must_use]
    pub fn with_echoes(self, echoes: Echoes) -> Self {
        Self { echoes: Some(echoes), ..self }
    }

    /// Takes `packet`, which is for this node's overlay device and has passed every check, if it is an echo.
    pub fn echo(&mut self, packet: &Packet<'_>, table: &PeerTable, stats: &WorkerStats) -> bool {
        let taken = self.echoes.as_mut().is_some_and(|echoes| echoes.take(packet, table));
        if taken {
            stats.echo();
        }
        taken
    }

    /// Tells the sender of `packet` that it failed with `error`, if it may be told and is not
    /// told too often. Failing to do so is no matter: ICMP promises nothing.
    pub fn tell(&mut self, error: IcmpError, local: &Local, packet: &Packet<'_>, stats: &WorkerStats) {
        if !icmp::may_answer(error, packet) {
            return;
        }
        let now = Instant::now();
        // As with Linux, path MTU discovery is not held up: each such answer changes what is sent next.
        let always = matches!(error, IcmpError::FragmentationNeeded { .. });
        if !(always || self.receivers.take(packet.src(), now)) || !self.limit.take(now) {
            return;
        }
        let from = local.overlay_address(packet.version());
        let answer = from.and_then(|from| icmp::build(error, from, packet));
        if answer.is_some_and(|answer| self.out.send(packet.src(), &answer).is_ok()) {
            stats.icmp_sent();
        }
    }
}

/// How often each host may be told something: a flood of packets with its address, which need not be its own, must
/// not become a flood to it. Hosts share the buckets, by their addresses, so that there is no list to grow.
struct Receivers(Box<[Bucket]>);

impl Receivers {
    fn new(now: Instant) -> Self {
        Self((0..RECEIVERS).map(|_| Bucket::new(RECEIVER_RATE, RECEIVER_BURST, now)).collect())
    }

    fn take(&mut self, receiver: IpAddr, now: Instant) -> bool {
        let bits = match receiver {
            IpAddr::V4(address) => u64::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address) as u64 ^ (u128::from(address) >> 64) as u64,
        };
        let index = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - RECEIVERS.trailing_zeros());
        self.0[index as usize].take(now)
    }
}

/// Sustained ICMP errors a second, of all workers: what Linux allows itself (`icmp_msgs_per_sec`).
const RATE: u32 = 1000;
/// ICMP errors at once: Linux' own `icmp_msgs_burst`.
const BURST: u32 = 50;
/// Buckets for receivers, a power of two: more than a host has pods.
const RECEIVERS: usize = 256;
/// To one receiver, a second: traceroute and mtr see every hop, and 576 bytes each are no flood.
const RECEIVER_RATE: u32 = 10;
/// To one receiver, at once. (Linux has 6, and one a second.)
const RECEIVER_BURST: u32 = 20;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_token: Duration,
    burst: u32,
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    /// One that grants [`RATE`] a second, and [`BURST`] at once.
    pub(crate) fn full(now: Instant) -> Self {
        Self::new(RATE, BURST, now)
    }

    fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self { per_token: Duration::from_secs(1) / rate, burst, tokens: burst, filled: now }
    }

    /// Whether one more is granted.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let due = (now - self.filled).as_nanos() / self.per_token.as_nanos();
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(due).min(self.burst);
            self.filled = if self.tokens == self.burst { now } else { self.filled + self.per_token * due };
        }
        let granted = self.tokens > 0;
        self.tokens -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::table::tests::local;
    use crate::wire::Format;
    use crate::wire::ip::tests::udp_packet;

    /// Receivers and packets, in order.
    type Log = Vec<(IpAddr, Vec<u8>)>;

    /// Collects what is sent.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Sent(pub(crate) Arc<Mutex<Log>>);

    impl IcmpOut for Sent {
        fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().push((to, packet.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_expired_packets_is_answered_now_and_then() {
        let sent = Sent::default();
        let mut answers = Answers::new(Box::new(sent.clone()));
        let stats = WorkerStats::default();
        let local = local(Format::FlannelUdp);
        let mut flood = |from: &dyn Fn(usize) -> String, error| {
            let before = sent.0.lock().unwrap().len();
            for i in 0..20_000 {
                let mut bytes = udp_packet(&from(i), "10.1.63.2", 1, &[7; 1400]);
                answers.tell(error, &local, &Packet::parse(&mut bytes).unwrap(), &stats);
            }
            sent.0.lock().unwrap().len() - before
        };
        let start = Instant::now();
        let victim = flood(&|_| "10.1.9.3".to_owned(), IcmpError::TimeExceeded);
        // So much, and what is due for the time that it took.
        let due = start.elapsed().as_millis() as usize;
        assert!((20..=20 + due / 100 + 1).contains(&victim), "{victim} answers to one host");
        let start = Instant::now();
        let many = flood(&|i| format!("10.1.9.{}", i % 250 + 1), IcmpError::TimeExceeded);
        let due = start.elapsed().as_millis() as usize;
        assert!((1..=50 + due + 1).contains(&many), "{many} answers to many hosts");
        assert!(sent.0.lock().unwrap().iter().all(|(_, answer)| answer.len() <= 576));
        assert_eq!(stats.totals().icmp_sent as usize, victim + many);
    }

    #[test]
    fn workers_share_what_may_be_said() {
        let bucket = |count| Answers::new(Box::new(Sent::default())).shared_by(count).limit;
        let now = Instant::now();
        for (count, burst) in [(1, 50), (4, 12), (200, 1)] {
            let mut bucket = bucket(count);
            assert_eq!((0..100).filter(|_| bucket.take(now)).count(), burst, "of {count}");
        }
    }

    #[test]
    fn a_burst_is_granted_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let granted = |bucket: &mut Bucket, at: Duration, tries: usize| {
            (0..tries).filter(|_| bucket.take(start + at)).count()
        };
        assert_eq!(granted(&mut bucket, Duration::ZERO, 100), 50);
        assert_eq!(granted(&mut bucket, Duration::from_micros(900), 100), 0);
        assert_eq!(granted(&mut bucket, Duration::from_micros(10_500), 100), 10);
        assert_eq!(granted(&mut bucket, Duration::from_micros(11_000), 100), 1, "no half token is lost");
        assert_eq!(granted(&mut bucket, Duration::from_secs(9), 100), 50);
    }
}
