//! The other nodes: `GET /v1/peers`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{Show, rate};
use crate::reach::Way;
use crate::status::Directions;
use overlay_support::text::{Align, ago, bits, count, plural, table};

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// When it was given, since the daemon's start.
    pub at_ms: u64,
    /// `udp`, `vxlan`, `host-gw` or `alloc`.
    pub backend: String,
    /// One for each lease, by subnet.
    pub peers: Vec<Peer>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// The subnet of its containers.
    pub subnet: Ipv4Net,
    /// Where its tunnel ends.
    pub public_ip: Ipv4Addr,
    /// The address that frames to it carry, with VXLAN.
    pub vtep_mac: Option<String>,
    /// Which way packets to it go.
    pub way: Way,
    /// Why they do not go as they should.
    pub problem: Option<String>,
    /// The largest outer packet that reaches it, where that has been found to be less than the interface's MTU.
    pub path_mtu: Option<u32>,
    /// Whether it is known to run overlayd: it has answered an echo, or asked for one.
    pub answers: bool,
    /// How long ago something valid came from it through the tunnel.
    pub last_seen_ms: Option<u64>,
    /// What went through the tunnel.
    pub traffic: Directions<Traffic>,
}

/// What was exchanged in one direction: inner packets, and their bytes without encapsulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets dropped on the way to it, or sent from its address and refused.
    pub drops: u64,
}

impl Peers {
    /// What each peer had exchanged, to compare with.
    pub fn by_name(&self) -> HashMap<(Ipv4Net, Ipv4Addr), &Directions<Traffic>> {
        self.peers.iter().map(|peer| ((peer.subnet, peer.public_ip), &peer.traffic)).collect()
    }
}

/// Packets and bytes a second between two looks.
pub fn rates(before: Option<&Traffic>, now: &Traffic, elapsed_ms: u64) -> (f64, f64) {
    let before = before.copied().unwrap_or_default();
    (rate(before.packets, now.packets, elapsed_ms), rate(before.bytes, now.bytes, elapsed_ms))
}

impl Show for Peers {
    const RESOURCE: &'static str = "/v1/peers";
    const HAS_RATES: bool = true;

    fn to_text(&self, earlier: Option<&Self>) -> String {
        let before = earlier.map(Self::by_name).unwrap_or_default();
        let elapsed = self.at_ms.saturating_sub(earlier.map_or(0, |earlier| earlier.at_ms));
        let rows = self.peers.iter().map(|peer| {
            let before = before.get(&(peer.subnet, peer.public_ip));
            let (sent, sent_bytes) = rates(before.map(|b| &b.egress), &peer.traffic.egress, elapsed);
            let (got, got_bytes) = rates(before.map(|b| &b.ingress), &peer.traffic.ingress, elapsed);
            vec![
                peer.subnet.to_string(),
                peer.public_ip.to_string(),
                peer.way.to_string(),
                peer.path_mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
                ago(peer.last_seen_ms),
                bits(sent_bytes),
                count(sent),
                bits(got_bytes),
                count(got),
                (peer.traffic.egress.drops + peer.traffic.ingress.drops).to_string(),
            ]
        });
        const COLUMNS: [(&str, Align); 10] = [
            ("SUBNET", Align::Left),
            ("PUBLIC IP", Align::Left),
            ("WAY", Align::Left),
            ("PATH MTU", Align::Right),
            ("LAST SEEN", Align::Right),
            ("OUT", Align::Right),
            ("PACKETS OUT", Align::Right),
            ("IN", Align::Right),
            ("PACKETS IN", Align::Right),
            ("DROPS", Align::Right),
        ];
        let mut out = format!("{} peer{} by {}\n", self.peers.len(), plural(self.peers.len()), self.backend);
        out += &table(&COLUMNS, rows.collect());
        for (peer, problem) in self.peers.iter().filter_map(|peer| Some((peer, peer.problem.as_ref()?))) {
            let _ = writeln!(out, "\n{}: {problem}", peer.subnet);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(at_ms: u64, bytes: u64) -> Peers {
        Peers {
            at_ms,
            backend: "vxlan".into(),
            peers: vec![Peer {
                subnet: "10.1.63.0/24".parse().unwrap(),
                public_ip: Ipv4Addr::new(192, 168, 199, 238),
                vtep_mac: None,
                way: Way::Tunnel,
                problem: Some("unwell".into()),
                path_mtu: Some(1400),
                answers: true,
                last_seen_ms: Some(2_500),
                traffic: Directions {
                    egress: Traffic { packets: bytes / 1000, bytes, drops: 3 },
                    ingress: Traffic { drops: 4, ..Traffic::default() },
                },
            }],
        }
    }

    #[test]
    fn the_table_has_rates_between_two_looks() {
        let text = peers(3_000, 3_000_000).to_text(Some(&peers(1_000, 500_000)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1 peer by vxlan");
        let row: Vec<&str> = lines[2].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            row,
            [
                "10.1.63.0/24",
                "192.168.199.238",
                "tunnel",
                "1400",
                "2 s ago",
                "10.0 Mbit/s",
                "1.2 k/s",
                "0 bit/s",
                "0 /s",
                "7"
            ]
        );
        assert_eq!(lines[4], "10.1.63.0/24: unwell");
        let rebuilt = peers(5_000, 0).to_text(Some(&peers(3_000, 3_000_000)));
        assert!(rebuilt.contains("0 bit/s"), "{rebuilt}");
    }
}
