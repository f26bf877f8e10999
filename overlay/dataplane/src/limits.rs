//! How much a node says by itself, whoever asks and however often: a flood to us must not become a flood from us.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// What all workers of a node may say together.
#[derive(Debug)]
pub struct Limits {
    epoch: Instant,
    errors: Limit,
    sizes: Limit,
    echoes: Limit,
    /// How often each host may be told of an error: a flood of packets with its address, which need not be its own,
    /// must not become a flood to it. Hosts share these, by their addresses, so that there is no list to grow.
    receivers: Box<[Limit]>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            errors: Limit::new(RATE, BURST),
            sizes: Limit::new(RATE, BURST),
            echoes: Limit::new(RATE, BURST),
            receivers: (0..RECEIVERS).map(|_| Limit::new(RECEIVER_RATE, RECEIVER_BURST)).collect(),
        }
    }
}

impl Limits {
    /// Whether `receiver` may be told of one more error.
    pub fn error(&self, receiver: IpAddr) -> bool {
        let now = self.now();
        self.receivers[bucket(receiver)].take(now) && self.errors.take(now)
    }

    /// Whether one more sender may be told which size would fit. It is not held up by other errors, nor counted for
    /// its receiver: each such answer changes what is sent next. (Linux does not limit these at all.)
    pub fn size(&self) -> bool {
        self.sizes.take(self.now())
    }

    /// Whether one more echo may be answered.
    pub fn echo(&self) -> bool {
        self.echoes.take(self.now())
    }

    /// Nanoseconds since the epoch.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Which of the receivers' limits is that of `address`.
fn bucket(address: IpAddr) -> usize {
    let bits = match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address) as u64 ^ (u128::from(address) >> 64) as u64,
    };
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - RECEIVERS.trailing_zeros())) as usize
}

/// Of a kind a second: what Linux allows itself of ICMP errors (`icmp_msgs_per_sec`).
const RATE: u32 = 1000;
/// And at once: Linux' own `icmp_msgs_burst`.
const BURST: u32 = 50;
/// Limits for receivers, a power of two: more than a host has pods.
const RECEIVERS: usize = 256;
/// To one receiver, a second: traceroute and mtr see every hop, and 576 bytes each are no flood.
const RECEIVER_RATE: u32 = 10;
/// To one receiver, at once. (Linux has 6, and one a second.)
const RECEIVER_BURST: u32 = 20;

/// So many a second, and so many at once (the generic cell rate algorithm, ITU-T I.371): one word, which is read
/// only while nothing is granted.
#[derive(Debug)]
struct Limit {
    /// Nanoseconds between two, sustained.
    interval: u64,
    /// How far ahead of time what is granted may be due.
    ahead: u64,
    /// When all that has been granted will have been due, one after the other.
    due: AtomicU64,
}

impl Limit {
    fn new(rate: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / u64::from(rate);
        Self { interval, ahead: interval * u64::from(burst), due: AtomicU64::new(0) }
    }

    /// Whether one more is granted `now`.
    fn take(&self, now: u64) -> bool {
        let next = |due: u64| Some(due.max(now) + self.interval).filter(|due| *due <= now + self.ahead);
        self.due.fetch_update(Relaxed, Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_burst_is_granted_and_then_the_rate() {
        let limit = Limit::new(RATE, BURST);
        let granted = |at: u64, tries: usize| (0..tries).filter(|_| limit.take(at * 1000)).count();
        assert_eq!(granted(0, 100), 50);
        assert_eq!(granted(900, 100), 0);
        assert_eq!(granted(10_500, 100), 10);
        assert_eq!(granted(11_000, 100), 1, "no half one is lost");
        assert_eq!(granted(9_000_000, 100), 50);
    }

    #[test]
    fn workers_together_say_no_more_than_one_would() {
        let limit = Arc::new(Limit::new(RATE, BURST));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let limit = Arc::clone(&limit);
                std::thread::spawn(move || (0..10_000).filter(|i| limit.take(i * 1000)).count())
            })
            .collect();
        let granted: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(granted, 59, "the burst, and what is due within not quite ten milliseconds");
    }

    #[test]
    fn what_is_too_big_is_told_in_spite_of_a_flood_of_other_errors() {
        let limits = Limits::default();
        while (0..=255).any(|host| limits.error([10, 1, 9, host].into())) {}
        assert!((0..50).all(|_| limits.size()));
    }
}
