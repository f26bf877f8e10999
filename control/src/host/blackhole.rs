//! flannel's `--ip-blackhole-route`: what is sent to this node's subnet and to none of its pods is dropped here,
//! and does not follow a wider route, back into the overlay or to the default gateway.
//!
//! flannel (0.28, `main.go`, `pkg/ip/iface.go`) puts the route with metric 0, where it would come before the
//! bridge's own if that is made later, and cut off all its containers. Ours has the last metric of all.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::link::ROUTE_PROTOCOL;
use super::netlink::{Netlink, refused};
use super::{Desired, HostError};

/// Puts the route, or removes it if it is not wanted. An existing one is left as it is.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel refuses.
pub async fn apply(desired: &Desired) -> Result<(), HostError> {
    let subnet = desired.pod_subnet.trunc();
    let netlink = Netlink::open()?;
    let routes = netlink.handle.route();
    let (outcome, settled, action) = if desired.blackhole {
        (routes.add(route(subnet)).execute().await, EEXIST, "put")
    } else {
        (routes.del(route(subnet)).execute().await, ESRCH, "remove")
    };
    match outcome {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -settled => Ok(()),
        outcome => outcome.map_err(|e| refused(format!("{action} the blackhole route to {subnet}"), &e)),
    }
}

/// Removes the routes of this kind within `network`, except that to `keep`: those of an earlier life, whose
/// subnets may be other nodes' now. Returns what they led to.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel does not list them, or refuses.
pub async fn remove(network: Ipv4Net, keep: Option<Ipv4Net>) -> Result<Vec<Ipv4Net>, HostError> {
    let netlink = Netlink::open()?;
    let mut removed = Vec::new();
    let ours = netlink.routes_of(ROUTE_PROTOCOL).await?;
    for route in ours.into_iter().filter(|route| !route.unicast && route.metric == METRIC) {
        let subnet = route.destination;
        if network.contains(&subnet) && Some(subnet) != keep {
            let action = format!("remove the blackhole route to {subnet}");
            netlink.handle.route().del(route.message).execute().await.map_err(|e| refused(action, &e))?;
            removed.push(subnet);
        }
    }
    Ok(removed)
}

fn route(subnet: Ipv4Net) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .kind(RouteType::BlackHole)
        .scope(RouteScope::Universe)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .destination_prefix(subnet.addr(), subnet.prefix_len())
        .priority(METRIC)
        .build()
}

/// After every other route to the same subnet.
const METRIC: u32 = u32::MAX;

const EEXIST: i32 = 17;
const ESRCH: i32 = 3;
