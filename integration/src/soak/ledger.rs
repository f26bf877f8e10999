//! What must add up: packets in and out, and what a daemon that runs for long may take.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::datagrams::receiver;
use crate::netns::Namespace;
use crate::overlayd::Status;
use crate::process::await_until;
use crate::site::Host;

/// The counters of one daemon, and those of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Packets that the device has given to the daemon.
    pub read: u64,
    /// Packets that it has sent, as many as the wire sees.
    pub sent: u64,
    /// Packets that it has dropped on their way out.
    pub dropped_out: u64,
    /// Packets that it has handed on to its host.
    pub delivered: u64,
    /// Packets that it has dropped on their way in.
    pub dropped_in: u64,
}

impl Counters {
    /// Reads those of a host's daemon.
    #[track_caller]
    pub fn of(host: &Host, device: &str) -> Self {
        let status = Status::of(&host.ns, &[]);
        let count = |direction: &str| {
            let packets = &status.0["counters"][direction]["packets"];
            packets.as_u64().unwrap_or_else(|| panic!("no count of packets in {}", status.0["counters"]))
        };
        let file = format!("/sys/class/net/{device}/statistics/tx_packets");
        let read = host.ns.ok(&format!("cat {file}"));
        Self {
            read: read.trim().parse().unwrap_or_else(|_| panic!("{file}: {read}")),
            sent: count("egress"),
            dropped_out: status.all_drops("egress"),
            delivered: count("ingress"),
            dropped_in: status.all_drops("ingress"),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            read: self.read - before.read,
            sent: self.sent - before.sent,
            dropped_out: self.dropped_out - before.dropped_out,
            delivered: self.delivered - before.delivered,
            dropped_in: self.dropped_in - before.dropped_in,
        }
    }
}

/// One end of the counted traffic.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where the daemon runs.
    pub host: &'a Host,
    /// Where its pod does, and the pod's address.
    pub pod: (&'a Namespace, Ipv4Addr),
}

/// Sends counted datagrams between all ends while nothing else is under way, some of them to nobody, and
/// checks what each daemon says about them against what was sent. Returns how many that were.
#[track_caller]
pub fn check(ends: &[End<'_>], device: &str, nobody: Ipv4Addr) -> u64 {
    let counters = || ends.iter().map(|end| Counters::of(end.host, device)).collect::<Vec<_>>();
    let before = await_still(counters);
    for from in ends {
        let socket = from.pod.0.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        for to in ends.iter().filter(|to| to.host.name != from.host.name) {
            let far = receiver(to.pod.0, to.pod.1);
            let target = far.local_addr().expect("a bound address");
            for number in 0..GOOD {
                socket.send_to(&number.to_le_bytes(), target).expect("send a datagram");
            }
            let mut buffer = [0; 64];
            for number in 0..GOOD {
                let length = far.recv(&mut buffer).unwrap_or_else(|error| {
                    panic!("{} → {}: datagram {number}: {error}", from.host.name, to.host.name)
                });
                assert_eq!(buffer[..length], number.to_le_bytes());
            }
        }
        for _ in 0..BAD {
            socket.send_to(b"nobody has this", (nobody, 9)).expect("send a datagram");
        }
    }
    let after = await_still(counters);
    let delta: Vec<_> = after.iter().zip(&before).map(|(after, before)| after.since(*before)).collect();
    let others = ends.len() as u64 - 1;
    for (end, count) in ends.iter().zip(&delta) {
        let name = &end.host.name;
        assert_eq!(count.read, GOOD * others + BAD, "{name}: what it was given to forward: {count:?}");
        assert_eq!(count.sent + count.dropped_out, count.read, "{name}: in = out + dropped: {count:?}");
        assert_eq!(count.dropped_out, BAD, "{name}: what nobody has is dropped: {count:?}");
        assert_eq!(count.delivered, GOOD * others, "{name}: what came in: {count:?}");
        assert_eq!(count.dropped_in, 0, "{name}: what came in is good: {count:?}");
    }
    delta.iter().map(|count| count.read).sum()
}

/// Checks that a host's daemon, with nothing on its way, has no frame of its rings in hand, and the kernel none that
/// is to be sent.
#[track_caller]
pub fn check_frames(host: &Host) {
    await_until(PATIENCE, &format!("{}: every frame to be in its place", host.name), || {
        let status = Status::of(&host.ns, &[]);
        let rings = &status.0["io"]["rings"];
        // While the node is made anew there are none; nor while the kernel still has those of the process before.
        if !rings.is_object() {
            return false;
        }
        let count =
            |what: &str| rings["frames"].pointer(what).and_then(Value::as_u64).expect("a number of frames");
        let (sent, all) = (count("/egress/lent"), count("/egress/all"));
        count("/ingress/lent") == count("/ingress/all")
            && count("/ingress/free") == 0
            && sent + count("/egress/free") == all
            && sent <= LAST_SENT
    });
}

/// What the counters say once they stand still.
#[track_caller]
fn await_still(counters: impl Fn() -> Vec<Counters>) -> Vec<Counters> {
    let (start, mut last) = (Instant::now(), counters());
    loop {
        std::thread::sleep(STILL);
        let now = counters();
        if now == last {
            return now;
        }
        assert!(start.elapsed() < PATIENCE, "something is still sent: {last:?} → {now:?}");
        last = now;
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Resident memory in KiB.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Held {
    /// Looks at a process.
    #[track_caller]
    pub fn by(pid: u32) -> Self {
        let count = |what: &str| {
            let directory = format!("/proc/{pid}/{what}");
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("read {directory}: {error}")).count()
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read a process's status");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
        Self { memory: memory.expect("VmRSS in KiB"), descriptors: count("fd"), threads: count("task") }
    }

    /// Checks that a process that held `self` holds not much more `now`.
    #[track_caller]
    pub fn check(self, now: Self, who: &str) {
        let grown = now.memory.saturating_sub(self.memory);
        assert!(grown <= MAY_GROW, "{who}: its memory has grown by {grown} KiB: {self:?} → {now:?}");
        let more = now.descriptors.saturating_sub(self.descriptors);
        assert!(more <= MAY_OPEN, "{who}: it has {more} descriptors more: {self:?} → {now:?}");
        let more = now.threads.saturating_sub(self.threads);
        assert!(more <= MAY_START, "{who}: it has {more} threads more: {self:?} → {now:?}");
    }
}

/// Without a packet for so long, nothing is under way: TCP sends again after a fifth of a second, and a busy machine
/// later.
const STILL: Duration = Duration::from_millis(600);
const PATIENCE: Duration = Duration::from_secs(20);
/// Frames that were sent last are noted as such with what comes next: a batch, at most.
const LAST_SENT: u64 = 64;
/// Datagrams from each end to each other.
const GOOD: u64 = 300;
/// Datagrams from each end to nobody.
const BAD: u64 = 50;
/// KiB: what an allocator keeps after a burst, and not what leaks at each of some hundred events.
const MAY_GROW: u64 = 12 << 10;
/// Connections to the store, pipes of a program that looks at the rules.
const MAY_OPEN: usize = 8;
/// What blocks is done by threads of the moment.
const MAY_START: usize = 4;
