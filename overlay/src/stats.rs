//! Counters of one worker. Each worker writes its own; whoever wants to know reads them at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;

use crate::drops::DropReason;

/// What one worker has done since it started. Padded, so that two workers never share a cache line.
#[derive(Debug, Default)]
pub struct WorkerStats(CachePadded<Counters>);

#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    super_packets: AtomicU64,
    icmp_sent: AtomicU64,
    echoes: AtomicU64,
    rounds: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl WorkerStats {
    /// Counts `packets` inner packets of `bytes` bytes together, forwarded in one batch.
    pub fn forwarded(&self, packets: u64, bytes: u64) {
        add(&self.0.packets, packets);
        add(&self.0.bytes, bytes);
        add(&self.0.batches, 1);
    }

    /// Counts super-packets, read from the device or written to it, of which those packets were parts.
    pub fn super_packets(&self, count: u64) {
        add(&self.0.super_packets, count);
    }

    /// Counts a dropped packet.
    pub fn dropped(&self, reason: DropReason) {
        add(&self.0.drops[reason as usize], 1);
    }

    /// Counts an ICMP error sent.
    pub fn icmp_sent(&self) {
        add(&self.0.icmp_sent, 1);
    }

    /// Counts an echo between daemons that ended here.
    pub fn echo(&self) {
        add(&self.0.echoes, 1);
    }

    /// Counts a round of the worker's loop, or of a wait within it.
    pub fn round(&self) {
        add(&self.0.rounds, 1);
    }

    /// How many rounds the worker has made.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.0.rounds.load(Relaxed)
    }

    /// The counters as they stand.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            packets: self.0.packets.load(Relaxed),
            bytes: self.0.bytes.load(Relaxed),
            batches: self.0.batches.load(Relaxed),
            super_packets: self.0.super_packets.load(Relaxed),
            icmp_sent: self.0.icmp_sent.load(Relaxed),
            echoes: self.0.echoes.load(Relaxed),
            drops: std::array::from_fn(|i| self.0.drops[i].load(Relaxed)),
        }
    }
}

/// A counter has one writer, so a load and a store do, and cost less than an atomic addition.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Counters of one worker, or the sum over several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inner packets forwarded.
    pub packets: u64,
    /// Their bytes, without any encapsulation.
    pub bytes: u64,
    /// Batches forwarded; `packets / batches` is the mean size of a batch.
    pub batches: u64,
    /// Super-packets among them, each of several packets.
    pub super_packets: u64,
    /// ICMP errors sent to inner senders.
    pub icmp_sent: u64,
    /// Echoes between daemons that ended here: neither forwarded nor dropped.
    pub echoes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Totals {
    /// How many packets were dropped for `reason`.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}

impl std::iter::Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
            sum.batches += one.batches;
            sum.super_packets += one.super_packets;
            sum.icmp_sent += one.icmp_sent;
            sum.echoes += one.echoes;
            for (total, n) in sum.drops.iter_mut().zip(one.drops) {
                *total += n;
            }
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_over_workers() {
        let workers = [WorkerStats::default(), WorkerStats::default()];
        workers[0].forwarded(3, 300);
        workers[1].forwarded(2, 50);
        workers[1].dropped(DropReason::NoRoute);
        workers[1].icmp_sent();
        let sum: Totals = workers.iter().map(WorkerStats::totals).sum();
        assert_eq!((sum.packets, sum.bytes, sum.batches, sum.icmp_sent), (5, 350, 2, 1));
        assert_eq!(sum.drops(DropReason::NoRoute), 1);
        assert_eq!(sum.drops(DropReason::TooBig), 0);
    }
}
