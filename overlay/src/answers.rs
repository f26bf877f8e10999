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
    echoes: Option<Echoes>,
}

impl Answers {
    /// Answers through `out`, at most [`RATE`] times a second and [`BURST`] at once.
    #[must_use]
    pub fn new(out: Box<dyn IcmpOut>) -> Self {
        Self { out, limit: Bucket::full(Instant::now()), echoes: None }
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
        if !icmp::may_answer(error, packet) || !self.limit.take(Instant::now()) {
            return;
        }
        let from = local.overlay_address(packet.version());
        let answer = from.and_then(|from| icmp::build(error, from, packet));
        if answer.is_some_and(|answer| self.out.send(packet.src(), &answer).is_ok()) {
            stats.icmp_sent();
        }
    }
}

/// Sustained ICMP errors a second and worker: what Linux allows itself (`icmp_msgs_per_sec`).
const RATE: u32 = 1000;
/// ICMP errors at once: Linux' own `icmp_msgs_burst`.
const BURST: u32 = 50;

/// A token bucket: [`RATE`] a second, [`BURST`] at once.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    /// One that grants a whole burst.
    pub(crate) fn full(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    /// Whether one more is granted.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let per_token = Duration::from_secs(1) / RATE;
        let due = (now - self.filled).as_nanos() / per_token.as_nanos();
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(due).min(BURST);
            self.filled = if self.tokens == BURST { now } else { self.filled + per_token * due };
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
