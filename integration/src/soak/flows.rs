//! Numbered datagrams between pods: whether each arrives once, unchanged and in its turn.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::datagrams::receiver;
use crate::netns::Namespace;
use crate::noise::Noise;

/// Flows, each of one socket at either end, at a steady pace until the program ends.
#[derive(Debug, Default)]
pub struct Flows {
    paused: Arc<AtomicBool>,
    flows: Vec<Flow>,
}

/// What a flow has done since its beginning.
#[derive(Debug)]
struct Flow {
    name: String,
    counts: Arc<Counts>,
    /// Those that earlier looks have counted.
    seen: Loss,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    overtaken: AtomicU64,
    idle: AtomicBool,
}

/// What became of datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Sent ones.
    pub sent: u64,
    /// Those that did not arrive.
    pub lost: u64,
    /// Those that arrived behind a later one of their flow.
    pub overtaken: u64,
}

impl Flows {
    /// Adds a flow of so many datagrams a second.
    #[track_caller]
    pub fn add(&mut self, name: &str, from: &Namespace, to: &Namespace, address: Ipv4Addr, per_second: u32) {
        let far = receiver(to, address);
        far.set_read_timeout(None).expect("wait for ever");
        let near = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        near.connect(far.local_addr().expect("a bound address")).expect("connect a UDP socket");
        let counts = Arc::<Counts>::default();
        let (paused, counting) = (Arc::clone(&self.paused), Arc::clone(&counts));
        std::thread::spawn(move || send(&near, per_second, &paused, &counting));
        let (counting, called) = (Arc::clone(&counts), name.to_owned());
        std::thread::spawn(move || receive(&far, &called, &counting));
        self.flows.push(Flow { name: name.to_owned(), counts, seen: Loss::default() });
    }

    /// Waits until each flow has delivered so many more, and panics if that takes longer than `limit`.
    #[track_caller]
    pub fn await_more(&self, count: u64, limit: Duration) {
        let start = Instant::now();
        for Flow { name, counts, .. } in &self.flows {
            let wanted = counts.received.load(Ordering::Acquire) + count;
            while counts.received.load(Ordering::Acquire) < wanted {
                assert!(start.elapsed() < limit, "the flow {name} stands still: nothing for {limit:?}");
                std::thread::sleep(POLL);
            }
        }
    }

    /// Stops sending, waits for what is on its way, and says what became of those sent since the last look.
    /// Nothing is sent until [`resume`](Self::resume).
    pub fn pause(&mut self) -> Loss {
        self.paused.store(true, Ordering::Release);
        while !self.flows.iter().all(|flow| flow.counts.idle.load(Ordering::Acquire)) {
            std::thread::sleep(POLL);
        }
        let arrived = |flows: &[Flow]| -> u64 {
            flows.iter().map(|flow| flow.counts.received.load(Ordering::Acquire)).sum()
        };
        let sent: u64 = self.flows.iter().map(|flow| flow.counts.sent.load(Ordering::Acquire)).sum();
        let known: u64 = self.flows.iter().map(|flow| flow.seen.lost).sum();
        let (mut last, mut since) = (arrived(&self.flows), Instant::now());
        while last + known < sent && since.elapsed() < ON_ITS_WAY {
            std::thread::sleep(POLL);
            let now = arrived(&self.flows);
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        let mut total = Loss::default();
        for flow in &mut self.flows {
            let sent = flow.counts.sent.load(Ordering::Acquire);
            let lost = sent.checked_sub(flow.counts.received.load(Ordering::Acquire));
            let lost = lost.unwrap_or_else(|| panic!("{}: more has arrived than was sent", flow.name));
            let overtaken = flow.counts.overtaken.load(Ordering::Acquire);
            total.sent += sent - flow.seen.sent;
            // Fewer than at the last look, if what was given up has come all the same.
            total.lost += lost.saturating_sub(flow.seen.lost);
            total.overtaken += overtaken - flow.seen.overtaken;
            flow.seen = Loss { sent, lost, overtaken };
        }
        total
    }

    /// Sends again.
    pub fn resume(&self) {
        for flow in &self.flows {
            flow.counts.idle.store(false, Ordering::Release);
        }
        self.paused.store(false, Ordering::Release);
    }
}

fn send(socket: &UdpSocket, per_second: u32, paused: &AtomicBool, counts: &Counts) {
    let (mut start, mut begun, mut number) = (Instant::now(), 0, 0);
    loop {
        if paused.load(Ordering::Acquire) {
            counts.idle.store(true, Ordering::Release);
            std::thread::sleep(POLL);
            (start, begun) = (Instant::now(), number);
            continue;
        }
        let due = begun + (start.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        while number < due {
            // One that is refused, for an ICMP error about an earlier one, is tried again later.
            if socket.send(&datagram(number)).is_err() {
                break;
            }
            number += 1;
            counts.sent.store(number, Ordering::Release);
        }
        std::thread::sleep(PACE);
    }
}

fn receive(socket: &UdpSocket, name: &str, counts: &Counts) {
    let (mut buffer, mut next) = (vec![0; 1 << 16], 0);
    loop {
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{name}: receive: {error}"));
        let number = u64::from_le_bytes(*buffer.first_chunk().expect("a number"));
        assert!(buffer[..length] == datagram(number), "{name}: datagram {number} was changed on its way");
        if number < next {
            counts.overtaken.fetch_add(1, Ordering::AcqRel);
        }
        next = next.max(number + 1);
        counts.received.fetch_add(1, Ordering::AcqRel);
    }
}

/// The datagram of a number: its length and octets follow from it.
fn datagram(number: u64) -> Vec<u8> {
    let mut noise = Noise::seeded(number);
    let length = 8 + (noise.number() >> 32) as usize % LONGEST;
    let mut octets = noise.octets(length);
    octets[..8].copy_from_slice(&number.to_le_bytes());
    octets
}

/// Octets behind the number; all must fit the overlay's MTU.
const LONGEST: usize = 1300;
const POLL: Duration = Duration::from_millis(5);
/// Between two looks at what is due.
const PACE: Duration = Duration::from_millis(2);
/// A datagram that has not come after so long without any is lost.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
