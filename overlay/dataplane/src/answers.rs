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

use overlay_wire::icmp::{self, IcmpError};
use overlay_wire::ip::Packet;
use socket2::{Domain, Protocol, Socket, Type};

use crate::echo::Echoes;
use crate::error::SetupError;
use crate::limits::Limits;
use crate::stats::WorkerStats;
use crate::table::{Hop, Local, PeerTable};

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
    limits: Arc<Limits>,
    echoes: Option<Echoes>,
}

impl Answers {
    /// Answers through `out`, as often as `limits` allows all that share them.
    #[must_use]
    pub fn new(out: Box<dyn IcmpOut>, limits: Arc<Limits>) -> Self {
        Self { out, limits, echoes: None }
    }

    /// Takes part in echoes, too.
    #[must_use]
    pub fn with_echoes(self, echoes: Echoes) -> Self {
        Self { echoes: Some(echoes), ..self }
    }

    /// Takes `packet`, which is for this node's overlay device and has passed every check, if it is an echo.
    pub fn echo(&mut self, packet: &Packet<'_>, table: &PeerTable, stats: &WorkerStats) -> bool {
        let taken = self.echoes.as_mut().is_some_and(|echoes| echoes.take(packet, table, &self.limits));
        if taken {
            stats.echo();
        }
        taken
    }

    /// Tells a peer that a super-packet of its arrived whole, from `src` inside.
    pub fn whole(&mut self, src: IpAddr, hop: &Hop, table: &PeerTable) {
        if let Some(echoes) = &mut self.echoes {
            echoes.tell_of_whole(src, hop, table);
        }
    }

    /// Tells the sender of `packet` that it failed with `error`, if it may be told and is not
    /// told too often. Failing to do so is no matter: ICMP promises nothing.
    pub fn tell(&mut self, error: IcmpError, local: &Local, packet: &Packet<'_>, stats: &WorkerStats) {
        if !icmp::may_answer(error, packet) {
            return;
        }
        let granted = match error {
            IcmpError::FragmentationNeeded { .. } => self.limits.size(),
            IcmpError::TimeExceeded | IcmpError::NetUnreachable => self.limits.error(packet.src()),
        };
        if !granted {
            return;
        }
        let from = local.overlay_addresses.get(packet.version());
        let answer = from.and_then(|from| icmp::build(error, from, packet));
        if answer.is_some_and(|answer| self.out.send(packet.src(), &answer).is_ok()) {
            stats.icmp_sent();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use parking_lot::Mutex;
    use std::time::Instant;

    use overlay_wire::Format;
    use overlay_wire::samples::udp_packet;

    use super::*;
    use crate::table::tests::local;

    /// Receivers and packets, in order.
    type Log = Vec<(IpAddr, Vec<u8>)>;

    /// Collects what is sent.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Sent(pub(crate) Arc<Mutex<Log>>);

    impl IcmpOut for Sent {
        fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
            self.0.lock().push((to, packet.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_expired_packets_is_answered_now_and_then() {
        let sent = Sent::default();
        let mut answers = Answers::new(Box::new(sent.clone()), Arc::default());
        let stats = WorkerStats::default();
        let local = local(Format::FlannelUdp);
        let mut flood = |from: &dyn Fn(usize) -> String, error| {
            let before = sent.0.lock().len();
            for i in 0..20_000 {
                let mut bytes = udp_packet(&from(i), "10.1.63.2", 1, &[7; 1400]);
                answers.tell(error, &local, &Packet::parse(&mut bytes).unwrap(), &stats);
            }
            sent.0.lock().len() - before
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
        assert!(sent.0.lock().iter().all(|(_, answer)| answer.len() <= 576));
        assert_eq!(stats.totals().icmp_sent as usize, victim + many);
    }
}
