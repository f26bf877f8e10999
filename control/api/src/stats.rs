//! The workers: `GET /v1/stats`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Show, rate};
use overlay_support::text::{Align, bits, count, share, table};

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When it was given, since the daemon's start.
    pub at_ms: u64,
    /// The threads that forward; none without a tunnel.
    pub workers: Vec<Worker>,
}

/// A thread that forwards in one direction, and what it has done since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// The thread's name, as in `egress-0`.
    pub name: String,
    /// Inner packets forwarded, as many as the wire sees.
    pub packets: u64,
    /// Their bytes, without encapsulation.
    pub bytes: u64,
    /// Batches that they were forwarded in.
    pub batches: u64,
    /// Super-packets read from the device, or written to it.
    pub super_packets: u64,
    /// Packets dropped.
    pub drops: u64,
    /// ICMP errors sent to inner senders.
    pub icmp_sent: u64,
    /// Processor time of the thread; nothing if the kernel does not tell.
    pub cpu_ms: Option<u64>,
}

impl Stats {
    /// The workers by name, to compare with.
    pub fn by_name(&self) -> HashMap<&str, &Worker> {
        self.workers.iter().map(|worker| (worker.name.as_str(), worker)).collect()
    }
}

impl Worker {
    /// Packets and bytes a second, and the part of a processor, since `before`.
    pub fn rates(&self, before: Option<&Self>, elapsed_ms: u64) -> (f64, f64, Option<f64>) {
        let rate = |now: u64, before: Option<u64>| rate(before.unwrap_or(0), now, elapsed_ms);
        let cpu = self.cpu_ms.map(|now| rate(now, before.and_then(|before| before.cpu_ms)) / 1000.0);
        (
            rate(self.packets, before.map(|before| before.packets)),
            rate(self.bytes, before.map(|before| before.bytes)),
            cpu,
        )
    }
}

impl Show for Stats {
    const RESOURCE: &'static str = "/v1/stats";
    const HAS_RATES: bool = true;

    fn to_text(&self, earlier: Option<&Self>) -> String {
        if self.workers.is_empty() {
            return "no workers: this backend has no tunnel\n".to_owned();
        }
        let before = earlier.map(Self::by_name).unwrap_or_default();
        let elapsed = self.at_ms.saturating_sub(earlier.map_or(0, |earlier| earlier.at_ms));
        let rows = self.workers.iter().map(|worker| {
            let before = before.get(worker.name.as_str()).copied();
            let (packets, bytes, cpu) = worker.rates(before, elapsed);
            let mean = worker.packets as f64 / worker.batches.max(1) as f64;
            vec![
                worker.name.clone(),
                bits(bytes),
                count(packets),
                cpu.map_or_else(|| "-".to_owned(), share),
                worker.packets.to_string(),
                worker.batches.to_string(),
                format!("{mean:.1}"),
                worker.super_packets.to_string(),
                worker.drops.to_string(),
                worker.cpu_ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.2} s", ms as f64 / 1000.0)),
            ]
        });
        const COLUMNS: [(&str, Align); 10] = [
            ("WORKER", Align::Left),
            ("RATE", Align::Right),
            ("PACKET RATE", Align::Right),
            ("CPU", Align::Right),
            ("PACKETS", Align::Right),
            ("BATCHES", Align::Right),
            ("PER BATCH", Align::Right),
            ("SUPER-PACKETS", Align::Right),
            ("DROPS", Align::Right),
            ("CPU TIME", Align::Right),
        ];
        table(&COLUMNS, rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_means_are_told() {
        let stats = |at_ms, packets| Stats {
            at_ms,
            workers: vec![Worker {
                name: "egress-0".into(),
                packets,
                bytes: packets * 1000,
                batches: packets / 4,
                super_packets: 5,
                drops: 6,
                icmp_sent: 0,
                cpu_ms: Some(at_ms / 2),
            }],
        };
        let text = stats(3_000, 3_000).to_text(Some(&stats(1_000, 1_000)));
        let row: Vec<&str> =
            text.lines().nth(1).unwrap().split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        assert_eq!(
            row,
            ["egress-0", "8.0 Mbit/s", "1.0 k/s", "50 %", "3000", "750", "4.0", "5", "6", "1.50 s"]
        );
    }
}
