//! `GET /v1/routes`.

use overlay_api::reach::Way;
use overlay_api::routes::{Route, RouteState, Routes};
use overlay_host::HostError;
use overlay_host::routes::{self, Seen};
use overlay_node::Node;

/// Those that concern a node, now.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) async fn routes(node: &Node) -> Result<Routes, HostError> {
    let plan = node.plan();
    let network = plan.config.network;
    let seen = routes::within(network).await?;
    let route = |Seen { destination, gateway, device, metric, ours }: Seen| Route {
        destination,
        via: gateway,
        device,
        metric,
        state: if ours { RouteState::Ours } else { RouteState::Foreign },
    };
    let mut all: Vec<Route> = seen.into_iter().map(route).collect();
    let routed = node.routed();
    let whole = routed.as_ref().is_some_and(|routed| routed.whole);
    let ends = routed.iter().flat_map(|routed| routed.ends(network)).map(|to| (to, None, None));
    let one_for_all = whole.then(|| (network, None, Some(plan.device())));
    let peers = node.peers();
    let to_peers = peers.into_iter().filter_map(|peer| match peer.way {
        Way::Direct => {
            let via = peer.lease.attrs.public_ip;
            Some((peer.lease.subnet, Some(via), Some(plan.underlay.name.clone())))
        }
        Way::Tunnel if !whole => Some((peer.lease.subnet, None, Some(plan.device()))),
        Way::Tunnel | Way::None => None,
    });
    for (destination, via, device) in one_for_all.into_iter().chain(ends).chain(to_peers) {
        if all.iter().all(|route| (route.destination, &route.device) != (destination, &device)) {
            all.push(Route { destination, via, device, metric: 0, state: RouteState::Missing });
        }
    }
    all.sort_by_key(|route| (route.destination, route.metric));
    Ok(Routes(all))
}
