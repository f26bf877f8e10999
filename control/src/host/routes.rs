//! Plain routes to the pods of nodes on our own link: the node's public address is the gateway.
//!
//! They lie inside the network, carry our protocol, and of all routes that do, only the wanted ones stay.
//! Several daemons of one host tell their routes apart by their networks.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteProtocol;
use tracing::info;

use super::HostError;
use super::link::ROUTE_PROTOCOL;
use super::netlink::{Netlink, Route, refused};

/// A route to one node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRoute {
    /// The node's subnet.
    pub subnet: Ipv4Net,
    /// Its public address.
    pub via: Ipv4Addr,
    /// The device of the link that both are on.
    pub device: u32,
}

/// What became of the wanted routes.
#[derive(Debug, Default)]
pub struct Synced {
    /// Those that were missing or bent and are in place now, for people.
    pub put: Vec<String>,
    /// Those that could not be put, each with the reason.
    pub failed: Vec<(PeerRoute, HostError)>,
}

/// Why a node's pods have no plain route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffLink {
    /// The kernel knows no way to its public address.
    Unreachable,
    /// Its public address is reached by a gateway, or through another device than the underlay's.
    Gateway,
}

/// For each of `nodes`, in order, whether its public address is on the link of `device`. The kernel is asked
/// for its route there, as for any packet.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn on_link(nodes: &[Ipv4Addr], device: u32) -> Result<Vec<Result<(), OffLink>>, HostError> {
    let netlink = Netlink::open()?;
    let mut answers = Vec::with_capacity(nodes.len());
    for node in nodes {
        answers.push(match netlink.way_to(*node).await? {
            None => Err(OffLink::Unreachable),
            Some(way) if way.on_link && !way.local && way.device == device => Ok(()),
            Some(_) => Err(OffLink::Gateway),
        });
    }
    Ok(answers)
}

/// A route of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where to.
    pub destination: Ipv4Net,
    /// By which gateway, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// Through which device; none for a blackhole and its like.
    pub device: Option<String>,
    /// Its metric.
    pub metric: u32,
    /// Whether it carries our protocol.
    pub ours: bool,
}

/// The main table's routes that lie in `network` or cover it, but for the default route.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn within(network: Ipv4Net) -> Result<Vec<Seen>, HostError> {
    let netlink = Netlink::open()?;
    let names: HashMap<u32, String> =
        netlink.links().await?.into_iter().map(|link| (link.index, link.name)).collect();
    let concerns = |route: &Route| {
        let destination = route.destination;
        destination.prefix_len() > 0 && (network.contains(&destination) || destination.contains(&network))
    };
    let seen = |route: Route| Seen {
        ours: is_ours(&route),
        destination: route.destination,
        gateway: route.gateway,
        device: route.device.and_then(|index| names.get(&index).cloned()),
        metric: route.metric,
    };
    Ok(netlink.routes().await?.into_iter().filter(concerns).map(seen).collect())
}

/// Makes `wanted` the only routes of ours inside `network`; with a `tunnel`, the route to all of `network`,
/// which its device has, stays too. First what is missing is put, then what is left over goes. A route of
/// somebody else stays; one that says the same becomes ours, as when flanneld made it.
///
/// # Errors
/// [`HostError`] if the kernel cannot be asked, or refuses to give up a route.
pub async fn sync(network: Ipv4Net, tunnel: bool, wanted: &[PeerRoute]) -> Result<Synced, HostError> {
    let netlink = Netlink::open()?;
    let there = netlink.routes().await?;
    // The kernel keeps one route for each destination and metric; ours have the metric 0.
    let before: HashMap<Ipv4Net, &Route> =
        there.iter().filter(|route| route.metric == 0).map(|route| (route.destination, route)).collect();
    let mut synced = Synced::default();
    for route in wanted {
        match put(&netlink, before.get(&route.subnet).copied(), route).await {
            Ok(false) => {}
            Ok(true) => synced.put.push(format!("the route {} via {}", route.subnet, route.via)),
            Err(error) => synced.failed.push((*route, error)),
        }
    }
    let wanted: HashMap<Ipv4Net, &PeerRoute> = wanted.iter().map(|route| (route.subnet, route)).collect();
    let is_stale = |route: &Route| {
        is_ours(route)
            // That of our own subnet is for `blackhole` to keep.
            && route.unicast
            && network.contains(&route.destination)
            && !(tunnel && route.destination == network)
            && wanted.get(&route.destination).is_none_or(|wanted| !is_at(route, wanted))
    };
    let mut refusals = Vec::new();
    for stale in netlink.routes().await?.into_iter().filter(is_stale) {
        info!(destination = %stale.destination, gateway = ?stale.gateway, "removing a route of ours that nobody needs any more");
        let action = format!("remove the route to {}", stale.destination);
        if let Err(error) = netlink.handle.route().del(stale.message).execute().await {
            refusals.push(refused(action, &error));
        }
    }
    if refusals.is_empty() { Ok(synced) } else { Err(HostError::Several(refusals)) }
}

/// Puts `wanted`, where `before` is; returns whether it was another.
async fn put(netlink: &Netlink, before: Option<&Route>, wanted: &PeerRoute) -> Result<bool, HostError> {
    let action = format!("route {} via {}", wanted.subnet, wanted.via);
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(wanted.subnet.network(), wanted.subnet.prefix_len())
        .gateway(wanted.via)
        .output_interface(wanted.device)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .build();
    let request = netlink.handle.route().add(message);
    let done = match before {
        None => request.execute().await,
        Some(before) if is_ours(before) && is_at(before, wanted) => return Ok(false),
        Some(before) if is_ours(before) || is_at(before, wanted) => request.replace().execute().await,
        Some(_) => {
            let remedy = format!("remove it with 'ip route delete {}', or the node's lease", wanted.subnet);
            return Err(HostError::Netlink {
                action,
                reason: format!("a route that is not ours is in the way: {remedy}"),
            });
        }
    };
    done.map(|()| true).map_err(|error| refused(action, &error))
}

fn is_ours(route: &Route) -> bool {
    route.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// Whether `route` is where `wanted` would be put, and leads the same way.
fn is_at(route: &Route, wanted: &PeerRoute) -> bool {
    route.destination == wanted.subnet
        && route.metric == 0
        && route.gateway == Some(wanted.via)
        && route.device == Some(wanted.device)
}
