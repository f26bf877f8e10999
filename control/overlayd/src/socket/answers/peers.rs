//! `GET /v1/peers`.

use std::collections::HashMap;

use overlay::peer_state::{Exchanged, PeerTotals};

use overlay_api::peers::{Peer, Peers, Traffic};
use overlay_api::status::Directions;
use overlay_leases::lease::{Lease, LeaseBackend};
use overlay_node::ways::Reached;
use overlay_node::{Node, Tunnel};

/// Those of a running node.
pub(super) fn peers(node: &Node, at_ms: u64) -> Peers {
    let states = node.tunnel().map(Tunnel::exchanged).unwrap_or_default();
    let states: HashMap<_, PeerTotals> =
        states.into_iter().map(|(subnet, public_ip, totals)| ((subnet, public_ip), totals)).collect();
    let peer = |Reached { lease: Lease { subnet, attrs }, way, problem }| {
        let totals = states.get(&(subnet, attrs.public_ip)).cloned().unwrap_or_default();
        Peer {
            subnet,
            public_ip: attrs.public_ip,
            vtep_mac: match attrs.backend {
                LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac.to_string()),
                _ => None,
            },
            way,
            problem,
            path_mtu: totals.path_mtu,
            answers: totals.answers,
            last_seen_ms: totals.last_seen.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
            traffic: Directions { egress: traffic(totals.egress), ingress: traffic(totals.ingress) },
        }
    };
    let backend = node.plan().config.backend.name().to_owned();
    Peers { at_ms, backend, peers: node.peers().into_iter().map(peer).collect() }
}

fn traffic(exchanged: Exchanged) -> Traffic {
    let Exchanged { packets, bytes, drops } = exchanged;
    Traffic { packets, bytes, drops }
}
