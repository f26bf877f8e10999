//! Counters of one worker. Each worker writes its own; whoever wants to know reads them at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;
use overlay_wire::drops::DropReason;

/// What one worker has done since it started. Padded, so that two workers never share a cache line.
#[derive(Debug, Default)]
pub struct WorkerStats(CachePadded<Counters>);

#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    icmp_sent: AtomicU64,
    echoes: AtomicU64,
    rounds: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
    batch_sizes: SizeCounters,
    super_packet_sizes: SizeCounters,
}

/// As [`Sizes`], written by one worker.
#[derive(Debug, Default)]
struct SizeCounters {
    counts: [AtomicU64; SIZE_BUCKETS],
    sum: AtomicU64,
}

impl WorkerStats {
    /// Counts `packets` inner packets of `bytes` bytes together, forwarded in one batch.
    pub fn forwarded(&self, packets: u64, bytes: u64) {
        add(&self.0.packets, packets);
        add(&self.0.bytes, bytes);
        add(&self.0.batches, 1);
        self.0.batch_sizes.count(packets);
    }

    /// Counts what was read from the overlay device, or written to it, at once: on the wire it is so many
    /// `packets`.
    pub fn super_packet(&self, packets: u64) {
        self.0.super_packet_sizes.count(packets);
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
            icmp_sent: self.0.icmp_sent.load(Relaxed),
            echoes: self.0.echoes.load(Relaxed),
            drops: std::array::from_fn(|i| self.0.drops[i].load(Relaxed)),
            batch_sizes: self.0.batch_sizes.load(),
            super_packet_sizes: self.0.super_packet_sizes.load(),
        }
    }
}

impl SizeCounters {
    fn count(&self, size: u64) {
        add(&self.counts[Sizes::bucket(size)], 1);
        add(&self.sum, size);
    }

    fn load(&self) -> Sizes {
        Sizes { counts: std::array::from_fn(|i| self.counts[i].load(Relaxed)), sum: self.sum.load(Relaxed) }
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
    /// ICMP errors sent to inner senders.
    pub icmp_sent: u64,
    /// Echoes between daemons that ended here: neither forwarded nor dropped.
    pub echoes: u64,
    /// How many packets the batches had.
    pub batch_sizes: Sizes,
    /// How many packets on the wire each packet was that the overlay device gave or took.
    pub super_packet_sizes: Sizes,
    drops: [u64; DropReason::ALL.len()],
}

/// How often sizes were seen, in buckets that double.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Sizes up to 1, 2, 4, 8 and so on, each not in a bucket before; the last one has all that are larger.
    pub counts: [u64; SIZE_BUCKETS],
    /// Of all sizes.
    pub sum: u64,
}

/// The last but one is for 4096: a full batch of the smallest usual segments has fewer packets.
const SIZE_BUCKETS: usize = 14;

impl Sizes {
    /// The largest size of each bucket but the last.
    pub fn bounds() -> impl Iterator<Item = u64> {
        (0..SIZE_BUCKETS - 1).map(|bucket| 1 << bucket)
    }

    fn bucket(size: u64) -> usize {
        // The exponent of the next power of two.
        let exponent = u64::BITS - size.saturating_sub(1).leading_zeros();
        (exponent as usize).min(SIZE_BUCKETS - 1)
    }

    fn add(&mut self, other: &Self) {
        for (total, n) in self.counts.iter_mut().zip(other.counts) {
            *total += n;
        }
        self.sum += other.sum;
    }
}

impl Totals {
    /// How many packets were dropped for `reason`.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Super-packets, read from the device or written to it: those that were several packets on the wire.
    #[must_use]
    pub fn super_packets(&self) -> u64 {
        self.super_packet_sizes.counts[1..].iter().sum()
    }
}

impl std::iter::Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
            sum.batches += one.batches;
            sum.icmp_sent += one.icmp_sent;
            sum.echoes += one.echoes;
            for (total, n) in sum.drops.iter_mut().zip(one.drops) {
                *total += n;
            }
            sum.batch_sizes.add(&one.batch_sizes);
            sum.super_packet_sizes.add(&one.super_packet_sizes);
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
        assert_eq!((&sum.batch_sizes.counts[..4], sum.batch_sizes.sum), (&[0, 1, 1, 0][..], 5));
    }

    #[test]
    fn a_size_is_in_the_first_bucket_that_is_large_enough() {
        let stats = WorkerStats::default();
        let bounds: Vec<u64> = Sizes::bounds().collect();
        assert_eq!((bounds[0], bounds[1], bounds.last()), (1, 2, Some(&4096)));
        for size in [1, 2, 3, 44, 64, 65, 4096, 4097, 1 << 40] {
            stats.super_packet(size);
            let wanted = bounds.iter().position(|bound| size <= *bound).unwrap_or(bounds.len());
            assert_eq!(Sizes::bucket(size), wanted, "{size}");
        }
        let totals = stats.totals();
        assert_eq!(totals.super_packets(), 8, "all but one that is alone");
        let sizes = totals.super_packet_sizes;
        assert_eq!(sizes.counts.iter().sum::<u64>(), 9);
        assert_eq!(sizes.sum, 1 + 2 + 3 + 44 + 64 + 65 + 4096 + 4097 + (1 << 40));
    }
}
