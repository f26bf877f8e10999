//! `GET /v1/offloads`.

use overlay::offload::Offload;

use overlay_api::offloads::{OffloadState, OffloadStates};
use overlay_node::Node;

/// Those of a node's tunnel, of which some were asked for.
pub(super) fn offloads(node: &Node, asked: &[Offload]) -> OffloadStates {
    let Some(tunnel) = node.tunnel() else { return OffloadStates(Vec::new()) };
    let state = |offload: Offload| OffloadState {
        name: offload.label().to_owned(),
        what: what(offload).to_owned(),
        asked: asked.contains(&offload),
        on: tunnel.offloads.is_on(offload),
        held: node.why_not_whole().filter(|_| offload == Offload::TunnelGso),
    };
    OffloadStates(Offload::ALL.map(state).into())
}

fn what(offload: Offload) -> &'static str {
    match offload {
        Offload::Tso => "TCP super-packets between the overlay device and us (TUN_F_TSO4)",
        Offload::Uso => "UDP super-packets between the overlay device and us (TUN_F_USO4, Linux 6.2)",
        Offload::Gso => "runs of datagrams are sent as one and cut by the kernel or the NIC (UDP_SEGMENT)",
        Offload::Gro => "datagrams of one sender are received as one (UDP_GRO)",
        Offload::TunnelGso => {
            "super-packets leave whole where virtual wires carry them (SKB_GSO_UDP_TUNNEL, Linux 6.17)"
        }
    }
}
