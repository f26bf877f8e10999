//! Floods: datagrams by the ten thousands a second, as the kernel segments them for us.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Namespace;

/// Datagrams of one length, sent with one call.
#[derive(Debug, Clone)]
pub struct Train {
    octets: Vec<u8>,
    length: u16,
    count: u64,
}

impl Train {
    /// Puts datagrams behind one another; the shorter ones are filled up to the longest with zeros, which count
    /// as padding behind an inner packet. No more than fit one call are taken.
    pub fn new(datagrams: &[Vec<u8>]) -> Self {
        let length = datagrams.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let count = datagrams.len().min(MAX_SEGMENTS).min(MAX_OCTETS / length);
        let mut octets = Vec::with_capacity(count * length);
        for datagram in &datagrams[..count] {
            octets.extend_from_slice(datagram);
            octets.resize(octets.len() + length - datagram.len(), 0);
        }
        Self { octets, length: length as u16, count: count as u64 }
    }

    /// How many datagrams.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The same lengths, with nothing in them.
    pub fn blank(&self) -> Self {
        Self { octets: vec![0; self.octets.len()], ..self.clone() }
    }
}

/// Sends trains to one address at a pace, from a host of the underlay.
#[derive(Debug)]
pub struct Flood {
    socket: UdpSocket,
    target: SocketAddr,
}

impl Flood {
    /// From a namespace, with its address and a port of the kernel's choice.
    #[track_caller]
    pub fn new(ns: &Namespace, target: Ipv4Addr, port: u16) -> Self {
        let socket = ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        Self { socket, target: (target, port).into() }
    }

    /// Sends `total` datagrams, going round in `trains`, `per_second` of them; returns how many were sent.
    #[track_caller]
    pub fn run(&self, trains: &[Train], total: u64, per_second: u32) -> u64 {
        let start = Instant::now();
        let mut sent = 0;
        for train in trains.iter().cycle() {
            if sent >= total {
                break;
            }
            let due = Duration::from_secs_f64(sent as f64 / f64::from(per_second));
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            setsockopt(&self.socket, sockopt::UdpGsoSegment, &i32::from(train.length)).expect("UDP_SEGMENT");
            // An answer that nobody listens is no matter, nor is a full queue.
            if self.socket.send_to(&train.octets, self.target).is_ok() {
                sent += train.count;
            }
        }
        sent
    }
}

/// `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_SEGMENTS: usize = 64;
/// What one call takes.
const MAX_OCTETS: usize = 60_000;
