//! UDP as applications send it: in bursts, by the kernel's segmentation, without checksum, numbered.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::netns::Namespace;
use crate::packets::udp_packet;
use crate::process::SOON;

/// A UDP socket at each end of the way between two namespaces.
#[derive(Debug)]
pub struct Line {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Line {
    /// Joins a socket in `from` to one in `to` at that namespace's `address`.
    #[track_caller]
    pub fn new(from: &Namespace, to: &Namespace, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        let receiver = receiver(to, address);
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let sender = from.within(|| UdpSocket::bind((any, 0))).expect("bind a UDP socket");
        sender.connect(receiver.local_addr().expect("a bound address")).expect("connect a UDP socket");
        Self { sender, receiver }
    }

    /// Sends datagrams without a pause; all must arrive, in this order.
    #[track_caller]
    pub fn burst(&self, datagrams: &[Vec<u8>]) {
        self.in_order(&datagrams.iter().map(Vec::as_slice).collect::<Vec<_>>(), || {
            for datagram in datagrams {
                self.sender.send(datagram).unwrap_or_else(|e| panic!("send {} octets: {e}", datagram.len()));
            }
        });
    }

    /// Sends octets with one call that has the kernel cut them into datagrams of `size`
    /// (`UDP_SEGMENT`); all must arrive, in order.
    #[track_caller]
    pub fn segmented(&self, octets: &[u8], size: u16) {
        self.in_order(&octets.chunks(size.into()).collect::<Vec<_>>(), || {
            setsockopt(&self.sender, sockopt::UdpGsoSegment, &i32::from(size)).expect("set UDP_SEGMENT");
            let sent = self.sender.send(octets);
            sent.unwrap_or_else(|e| panic!("send {} octets in segments of {size}: {e}", octets.len()));
            setsockopt(&self.sender, sockopt::UdpGsoSegment, &0).expect("set UDP_SEGMENT");
        });
    }

    /// Has `send` send these. Each time all must arrive, and in order at least once: a thread that is moved to
    /// another processor can get ahead of what the kernel has queued for it at the one before.
    #[track_caller]
    fn in_order(&self, datagrams: &[&[u8]], send: impl Fn()) {
        let in_order = (0..ATTEMPTS).any(|_| {
            send();
            self.arrive_in_order(datagrams)
        });
        assert!(in_order, "of {} datagrams some were overtaken, {ATTEMPTS} times", datagrams.len());
    }

    /// Receives these, and returns whether they came in order.
    #[track_caller]
    fn arrive_in_order(&self, datagrams: &[&[u8]]) -> bool {
        let mut buffer = vec![0; 1 << 16];
        let mut missing: Vec<_> = datagrams.iter().collect();
        let mut in_order = true;
        while !missing.is_empty() {
            let (left, of) = (missing.len(), datagrams.len());
            let length = self.receiver.recv(&mut buffer);
            let length = length.unwrap_or_else(|e| panic!("receive the last {left} datagrams of {of}: {e}"));
            let place = missing.iter().position(|datagram| **datagram == &buffer[..length]);
            let place =
                place.unwrap_or_else(|| panic!("{length} octets came that were not sent, or not twice"));
            missing.remove(place);
            in_order &= place == 0;
        }
        in_order
    }
}

/// Sends a datagram whose UDP checksum is zero, as `SO_NO_CHECK` makes them; it must arrive.
#[track_caller]
pub fn without_checksum(
    from: &Namespace,
    source: Ipv4Addr,
    to: &Namespace,
    address: Ipv4Addr,
    payload: &[u8],
) {
    let receiver = receiver(to, address);
    let target = receiver.local_addr().expect("a bound address");
    let mut packet = udp_packet(source, address, target.port(), payload);
    packet[UDP_CHECKSUM].fill(0);
    // With this protocol a raw socket takes packets with their IP header (raw(7)).
    let raw = from.within(|| Socket::new(Domain::IPV4, Type::RAW, Some(IPPROTO_RAW.into())));
    raw.and_then(|raw| raw.send_to(&packet, &target.into())).expect("send by a raw socket");
    let mut buffer = vec![0; 1 << 16];
    let length = receiver.recv(&mut buffer).unwrap_or_else(|e| panic!("{} octets: {e}", payload.len()));
    assert!(&buffer[..length] == payload, "{} octets became {length}, or others", payload.len());
}

/// What became of numbered streams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Order {
    /// Streams, each of a socket of its own.
    pub streams: usize,
    /// Sent datagrams.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Those that arrived behind, or as, one of the same stream with the same or a higher number.
    pub overtaken: u64,
    /// The longest time without any.
    pub longest_gap: Duration,
}

/// Sends one stream of numbered datagrams after the other at full speed for `duration`. While a
/// stream flows, answers flow back: by them the kernel learns which queue of a device it would
/// rather have the stream use.
#[track_caller]
pub fn numbered(from: &Namespace, to: &Namespace, address: Ipv4Addr, duration: Duration) -> Order {
    let receiver = receiver(to, address);
    let target = receiver.local_addr().expect("a bound address");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_numbered(&receiver, &done, &AtomicU64::new(0)));
        let (mut streams, mut sent) = (0, 0);
        let start = Instant::now();
        while start.elapsed() < duration {
            let socket = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
            socket.connect(target).expect("connect a UDP socket");
            let mut datagram = [0; NUMBERED_LEN];
            datagram[..8].copy_from_slice(&(streams as u64).to_le_bytes());
            for number in 0..STREAM {
                datagram[8..16].copy_from_slice(&number.to_le_bytes());
                // A full queue on the way is a loss like any other.
                sent += u64::from(socket.send(&datagram).is_ok());
            }
            streams += 1;
        }
        done.store(true, Ordering::Release);
        Order { streams, sent, ..receiving.join().expect("the receiver") }
    })
}

/// Receives until `done`, and until nothing more comes.
pub(crate) fn receive_numbered(socket: &UdpSocket, done: &AtomicBool, counter: &AtomicU64) -> Order {
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    let mut order = Order::default();
    let mut next = HashMap::<u64, u64>::new();
    let mut buffer = [0; NUMBERED_LEN];
    let mut last: Option<Instant> = None;
    loop {
        let Ok((_, peer)) = socket.recv_from(&mut buffer) else {
            if done.load(Ordering::Acquire) {
                return order;
            }
            continue;
        };
        let field = |at: usize| u64::from_le_bytes(*buffer[at..].first_chunk().expect("eight octets"));
        let (stream, number) = (field(0), field(8));
        let next = next.entry(stream).or_default();
        order.received += 1;
        if let Some(last) = last.replace(Instant::now()) {
            order.longest_gap = order.longest_gap.max(last.elapsed());
        }
        counter.store(order.received, Ordering::Release);
        order.overtaken += u64::from(number < *next);
        *next = (*next).max(number + 1);
        if number % ANSWERED == 0 {
            // One that cannot be sent is followed by another.
            let _ = socket.send_to(&buffer, peer);
        }
    }
}

/// A socket at an address of a namespace, with room for what comes in a burst.
#[track_caller]
pub(crate) fn receiver(ns: &Namespace, address: impl Into<IpAddr>) -> UdpSocket {
    let address = address.into();
    let socket = ns.within(|| UdpSocket::bind((address, 0))).expect("bind a UDP socket");
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM).expect("set the receive buffer");
    socket.set_read_timeout(Some(SOON)).expect("set a timeout");
    socket
}

/// How often datagrams are sent to see them arrive in order.
const ATTEMPTS: usize = 3;
/// Where a UDP checksum stands in an IPv4 packet without options.
const UDP_CHECKSUM: std::ops::Range<usize> = 26..28;
/// `netinet/in.h`
const IPPROTO_RAW: i32 = 255;
pub(crate) const NUMBERED_LEN: usize = 200;
/// Datagrams of one stream: enough that some are queued when the first answer has come back.
const STREAM: u64 = 1000;
/// Of so many datagrams one is answered.
const ANSWERED: u64 = 16;
/// Receive buffer in octets.
const ROOM: usize = 8 << 20;
