//! `GET /v1/stats`.

use std::collections::HashMap;

use overlay::stats::Totals;
use overlay_wire::drops::DropReason;

use crate::threads::cpu_times;
use overlay_api::stats::{Stats, Worker};
use overlay_node::Tunnel;

/// Those of a tunnel's workers.
pub(super) fn stats(tunnel: Option<&Tunnel>, at_ms: u64) -> Stats {
    let Some(tunnel) = tunnel else { return Stats { at_ms, workers: Vec::new() } };
    let cpu: HashMap<_, _> = cpu_times().collect();
    let worker = |direction: &str, index: usize, totals: Totals| {
        let name = format!("{direction}-{index}");
        let cpu = cpu.get(&name);
        Worker {
            packets: totals.packets,
            bytes: totals.bytes,
            batches: totals.batches,
            super_packets: totals.super_packets(),
            drops: DropReason::ALL.iter().map(|reason| totals.drops(*reason)).sum(),
            icmp_sent: totals.icmp_sent,
            cpu_ms: cpu.map(|cpu| u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX)),
            name,
        }
    };
    let (egress, ingress) = (tunnel.forwarder().egress(), tunnel.forwarder().ingress());
    let egress = egress.into_iter().enumerate().map(|(index, totals)| worker("egress", index, totals));
    let ingress = ingress.into_iter().enumerate().map(|(index, totals)| worker("ingress", index, totals));
    Stats { at_ms, workers: egress.chain(ingress).collect() }
}
