//! The kernel's routes for the network: `GET /v1/routes`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{Align, Show, table};
use crate::host::HostError;
use crate::host::routes::{self, Seen};
use crate::node::{Node, Way};

/// The answer: the routes that lie in the network or cover it, the default route left out, and those missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routes(pub Vec<Route>);

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Net,
    /// By which gateway.
    pub via: Option<Ipv4Addr>,
    /// Through which device.
    pub device: Option<String>,
    /// Its metric.
    pub metric: u32,
    /// Whose it is, or whether it is missing.
    pub state: RouteState,
}

/// Whose a route is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// The daemon's.
    Ours,
    /// Somebody else's: docker's for its bridge, or one that may be in the way.
    Foreign,
    /// It should be there and is not.
    Missing,
}

impl Routes {
    /// Those that concern a node, now.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn of(node: &Node) -> Result<Self, HostError> {
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
        Ok(Self(all))
    }
}

impl Show for Routes {
    const RESOURCE: &'static str = "/v1/routes";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        let rows = self.0.iter().map(|Route { destination, via, device, metric, state }| {
            vec![
                destination.to_string(),
                via.map_or_else(|| "-".to_owned(), |via| via.to_string()),
                device.clone().unwrap_or_else(|| "-".to_owned()),
                metric.to_string(),
                match state {
                    RouteState::Ours => "overlayd's",
                    RouteState::Foreign => "somebody else's",
                    RouteState::Missing => "MISSING",
                }
                .to_owned(),
            ]
        });
        const COLUMNS: [(&str, Align); 5] = [
            ("DESTINATION", Align::Left),
            ("VIA", Align::Left),
            ("DEVICE", Align::Left),
            ("METRIC", Align::Right),
            ("", Align::Left),
        ];
        if self.0.is_empty() { "no routes\n".to_owned() } else { table(&COLUMNS, rows.collect()) }
    }
}
