//! Our routes: into the overlay's device, by plain ways to the nodes on our own link, and those that end here.
//!
//! They lie inside the network and carry our protocol. Several daemons of one host tell their routes apart by their
//! networks; where one of these lies in another, by the device, which only one of them claims, and by who has put them.
//! A route of somebody else is never replaced: ours is added beside it or not at all, and a bent one of ours goes when
//! the right one stands behind it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter::successors;
use std::net::Ipv4Addr;

use futures::{StreamExt, TryStreamExt, stream};
use ipnet::Ipv4Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use tracing::{debug, info};

use super::HostError;
use super::batch::{self, Request};
use super::link::ROUTE_PROTOCOL;
use super::netlink::{Link, Netlink, Route, Way, refused};
use overlay_support::claim;

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnRoute {
    /// Where to.
    pub to: Ipv4Net,
    /// By which way.
    pub leads: Leads,
}

/// Where a route of ours leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leads {
    /// Into the overlay's device.
    Into(u32),
    /// To a node on our own link: as flanneld's do, whose place it takes.
    Via {
        /// The node's public address.
        gateway: Ipv4Addr,
        /// The device of the link that both are on.
        device: u32,
    },
    /// Nowhere, and the sender is told; after every other route to the same destination.
    Unreachable,
    /// Nowhere, and nobody is told: flannel's `--ip-blackhole-route`. flannel (0.28, `main.go`, `pkg/ip/iface.go`) puts
    /// it with metric 0, where it would come before a bridge's own if that is made later, and cut off its containers.
    /// Ours comes after every other, too.
    Blackhole,
}

/// What became of the wanted routes.
#[derive(Debug, Default)]
pub struct Synced {
    /// Those that were missing or bent and are in place now.
    pub put: Vec<OwnRoute>,
    /// Those that could not be put, each with the reason.
    pub failed: HashMap<OwnRoute, HostError>,
    /// Why some that nobody needs any more are still there.
    pub left: Vec<HostError>,
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
    let on_link = |way: Option<Way>| match way {
        None => Err(OffLink::Unreachable),
        Some(way) if way.on_link && !way.local && way.device == device => Ok(()),
        Some(_) => Err(OffLink::Gateway),
    };
    let ways = stream::iter(nodes.iter().copied()).map(|node| netlink.way_to(node)).buffered(ASKED_AT_ONCE);
    ways.map_ok(on_link).try_collect().await
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

/// Makes `wanted` the only routes of ours inside `network`. First what is missing is put, in this order, then what is
/// left over goes. A route of somebody else stays, but for one that says what ours to a node says, where flanneld
/// would have made it: ours takes its place. What names no device of an overlay, and comes to be there later than
/// what we have put, is another daemon's, whose network is in ours: so it counts what was wanted `before`, if this is not
/// the first time.
///
/// # Errors
/// [`HostError`] if the kernel cannot be asked.
pub async fn sync(
    network: Ipv4Net,
    wanted: &[OwnRoute],
    before: Option<&HashSet<OwnRoute>>,
) -> Result<Synced, HostError> {
    let netlink = Netlink::open()?;
    let all = routes_in(&netlink, network).await?;
    let mut there: HashMap<(Ipv4Net, u32), Vec<Route>> = HashMap::new();
    for route in all.ours {
        there.entry((route.destination, route.metric)).or_default().push(route);
    }
    let (right, had) = (by_place(wanted), by_place(before.into_iter().flatten()));
    let mut synced = put(&netlink, &there, wanted).await?;
    let is_stale = |place: &(Ipv4Net, u32), route: &Route| match right.get(place) {
        Some(right) => !right.is_at(route),
        None => {
            before.is_none()
                || route.device.is_some_and(|device| all.overlays.contains(&device))
                || had.get(place).is_some_and(|earlier| earlier.is_at(route))
        }
    };
    // Where what is to come in its place could not be put, it is all that there is.
    let lacking: HashSet<Ipv4Net> = synced.failed.keys().map(|route| route.to).collect();
    let is_needed = |route: &Route| {
        let mut around = successors(Some(route.destination), Ipv4Net::supernet);
        around.any(|net| lacking.contains(&net))
    };
    let mut stale = Vec::new();
    for (place, routes) in there {
        stale.extend(routes.into_iter().filter(|route| is_stale(&place, route) && !is_needed(route)));
    }
    for route in stale.iter().take(NAMED) {
        info!(destination = %route.destination, gateway = ?route.gateway, "removing a route of ours that nobody needs any more");
    }
    if let Some(more) = stale.len().checked_sub(NAMED + 1) {
        info!(more = more + 1, "removing further routes of ours that nobody needs any more");
    }
    let removals = stale
        .iter()
        .map(|route| Request { message: RouteNetlinkMessage::DelRoute(route.message.clone()), flags: 0 });
    for (route, answer) in stale.iter().zip(batch::ask(removals.collect()).await?) {
        match answer {
            // With its device, or by somebody else.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -ESRCH => {}
            Err(error) => {
                synced.left.push(refused(format!("remove the route to {}", route.destination), &error));
            }
            Ok(()) => {}
        }
    }
    Ok(synced)
}

/// Has what routes through `device` lead to in `network` end here once they are gone, until a [`sync`] puts what is wanted.
///
/// # Errors
/// [`HostError`] if the kernel cannot be asked.
pub async fn bar(network: Ipv4Net, device: u32) -> Result<(), HostError> {
    let netlink = Netlink::open()?;
    let leads = |route: &Route| route.device == Some(device) && network.contains(&route.destination);
    let end = |route: Route| OwnRoute { to: route.destination, leads: Leads::Unreachable };
    let ends: Vec<OwnRoute> = netlink.routes().await?.into_iter().filter(leads).map(end).collect();
    // What stands there already may be ours, and keeps nobody from taking the device's place.
    for error in put(&netlink, &HashMap::new(), &ends).await?.failed.values() {
        debug!(%error, "what the device leads to does not end here meanwhile");
    }
    Ok(())
}

/// Removes our routes in `network`, but not those in `kept`, which another node of ours has put.
///
/// # Errors
/// [`HostError`] if the kernel cannot be asked, or refuses.
pub async fn remove(network: Ipv4Net, kept: Ipv4Net) -> Result<(), HostError> {
    let netlink = Netlink::open()?;
    let ours = routes_in(&netlink, network).await?.ours;
    for route in ours.into_iter().filter(|route| !kept.contains(&route.destination)) {
        let action = format!("remove the route to {}", route.destination);
        netlink.handle.route().del(route.message).execute().await.map_err(|error| refused(action, &error))?;
    }
    Ok(())
}

/// Routes by their destinations and metrics.
fn by_place<'a>(routes: impl IntoIterator<Item = &'a OwnRoute>) -> HashMap<(Ipv4Net, u32), &'a OwnRoute> {
    routes.into_iter().map(|route| ((route.to, route.metric()), route)).collect()
}

/// The routes with our protocol.
struct Marked {
    /// But for those by another daemon's device.
    ours: Vec<Route>,
    /// The devices of overlays by which they lead.
    overlays: BTreeSet<u32>,
}

/// Those in `network`.
async fn routes_in(netlink: &Netlink, network: Ipv4Net) -> Result<Marked, HostError> {
    let mut routes = netlink.routes_of(ROUTE_PROTOCOL).await?;
    routes.retain(|route| network.contains(&route.destination));
    let links = if routes.is_empty() { Vec::new() } else { netlink.links().await? };
    leave_to_others(&mut routes, &links);
    let overlays = links.iter().filter(|link| link.tun).map(|link| link.index).collect();
    Ok(Marked { ours: routes, overlays })
}

/// Leaves of `routes`, which all have our protocol, this daemon's only: those that lead into another daemon's device go, and
/// the unreachable ones that stand behind them.
pub fn leave_to_others(routes: &mut Vec<Route>, links: &[Link]) {
    let others = of_others(routes, links);
    let through = |route: &Route| route.device.is_some_and(|device| others.contains(&device));
    let theirs: HashSet<Ipv4Net> =
        routes.iter().filter(|route| through(route)).map(|route| route.destination).collect();
    let stands_in = |route: &Route| route.device.is_none() && theirs.contains(&route.destination);
    routes.retain(|route| !through(route) && !stands_in(route));
}

/// The devices of other daemons by which `routes` with our protocol lead.
pub fn of_others<'a>(routes: &[Route], links: impl IntoIterator<Item = &'a Link>) -> BTreeSet<u32> {
    let devices: BTreeSet<u32> =
        routes.iter().filter(|route| is_ours(route)).filter_map(|route| route.device).collect();
    let others = links
        .into_iter()
        .filter(|link| link.tun && devices.contains(&link.index) && claim::is_anothers(&link.name));
    others.map(|link| link.index).collect()
}

/// Puts those of `wanted` that are missing, where `there` are those of ours.
async fn put(
    netlink: &Netlink,
    there: &HashMap<(Ipv4Net, u32), Vec<Route>>,
    wanted: &[OwnRoute],
) -> Result<Synced, HostError> {
    let at = |route: &OwnRoute| there.get(&(route.to, route.metric())).map_or(&[][..], Vec::as_slice);
    let is_missing = |route: &&OwnRoute| !at(route).iter().any(|there| route.is_at(there));
    let missing: Vec<&OwnRoute> = wanted.iter().filter(is_missing).collect();
    let request = |route: &&OwnRoute| {
        // Behind a bent one, which goes afterwards: so packets have a way at every moment.
        let how = if at(route).is_empty() { NLM_F_EXCL } else { NLM_F_APPEND };
        addition(route.message(), how)
    };
    let answers = batch::ask(missing.iter().map(request).collect()).await?;
    let mut synced = Synced::default();
    let mut others = None;
    for (route, answer) in missing.into_iter().zip(answers) {
        let outcome = match answer {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -EEXIST => {
                let others = match &others {
                    Some(others) => others,
                    None => others.insert(by_destination(netlink).await?),
                };
                displace_flannels(others, route).await
            }
            answer => {
                answer.map(|()| true).map_err(|error| refused(format!("route {}", route.describe()), &error))
            }
        };
        match outcome {
            Ok(true) => synced.put.push(*route),
            Ok(false) => {}
            Err(error) => _ = synced.failed.insert(*route, error),
        }
    }
    Ok(synced)
}

/// All routes, whoever has put them.
async fn by_destination(netlink: &Netlink) -> Result<HashMap<Ipv4Net, Vec<Route>>, HostError> {
    let mut routes: HashMap<Ipv4Net, Vec<Route>> = HashMap::new();
    for route in netlink.routes().await? {
        routes.entry(route.destination).or_default().push(route);
    }
    Ok(routes)
}

/// Takes the place of a route that flanneld has left, if that is what stands there among `others`. It looks as one that
/// was put with `ip route add`.
async fn displace_flannels(
    others: &HashMap<Ipv4Net, Vec<Route>>,
    wanted: &OwnRoute,
) -> Result<bool, HostError> {
    let at = |route: &&Route| route.metric == wanted.metric();
    let others: Vec<&Route> = others.get(&wanted.to).into_iter().flatten().filter(at).collect();
    let action = format!("route {}", wanted.describe());
    let [other] = others.as_slice() else {
        return Err(in_the_way(action, wanted.to, &others));
    };
    if let Leads::Into(device) = wanted.leads
        && other.device == Some(device)
    {
        // It leads where ours would, and goes with the device.
        return Ok(false);
    }
    let to_node = matches!(wanted.leads, Leads::Via { .. });
    if !(to_node && wanted.is_at(other) && other.protocol == RouteProtocol::Boot) {
        return Err(in_the_way(action, wanted.to, &others));
    }
    let removal = Request { message: RouteNetlinkMessage::DelRoute(other.message.clone()), flags: 0 };
    let answers = batch::ask(vec![addition(wanted.message(), NLM_F_APPEND), removal]).await?;
    let actions = [action.clone(), format!("remove flanneld's {action}")];
    for (action, answer) in actions.into_iter().zip(answers) {
        answer.map_err(|error| refused(action, &error))?;
    }
    Ok(true)
}

fn in_the_way(action: String, to: Ipv4Net, others: &[&Route]) -> HostError {
    let reason = if others.iter().any(|route| is_ours(route)) {
        "a route of another overlayd of this host is in the way: give the two networks addresses of their own"
            .to_owned()
    } else {
        format!(
            "a route that is not ours is in the way: remove it with 'ip route delete {to}', or the node's lease"
        )
    };
    HostError::Netlink { action, reason }
}

/// Adds a route: with `NLM_F_EXCL` only if there is none to its destination with its metric, with `NLM_F_APPEND`
/// behind those that there are.
fn addition(route: RouteMessage, how: u16) -> Request {
    Request { message: RouteNetlinkMessage::NewRoute(route), flags: NLM_F_CREATE | how }
}

impl OwnRoute {
    fn metric(&self) -> u32 {
        match self.leads {
            Leads::Into(_) | Leads::Via { .. } => 0,
            Leads::Unreachable | Leads::Blackhole => u32::MAX,
        }
    }

    /// Whether `route` is where this one would be put, and leads the same way.
    fn is_at(&self, route: &Route) -> bool {
        let leads = match self.leads {
            Leads::Into(device) => {
                route.unicast
                    && (route.gateway, route.device) == (None, Some(device))
                    && route.message.header.scope == RouteScope::Link
            }
            Leads::Via { gateway, device } => {
                route.unicast && (route.gateway, route.device) == (Some(gateway), Some(device))
            }
            Leads::Unreachable => route.message.header.kind == RouteType::Unreachable,
            Leads::Blackhole => route.message.header.kind == RouteType::BlackHole,
        };
        leads && (route.destination, route.metric) == (self.to, self.metric())
    }

    fn message(&self) -> RouteMessage {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.to.network(), self.to.prefix_len())
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
        match self.leads {
            Leads::Into(device) => route.output_interface(device).scope(RouteScope::Link),
            Leads::Via { gateway, device } => route.gateway(gateway).output_interface(device),
            Leads::Unreachable => route.kind(RouteType::Unreachable).priority(self.metric()),
            Leads::Blackhole => route.kind(RouteType::BlackHole).priority(self.metric()),
        }
        .build()
    }

    /// For people, behind "the route".
    pub fn describe(&self) -> String {
        let to = self.to;
        match self.leads {
            Leads::Into(_) => format!("{to} into the overlay"),
            Leads::Via { gateway, .. } => format!("{to} via {gateway}"),
            Leads::Unreachable => format!("to {to}, which ends here (unreachable)"),
            Leads::Blackhole => format!("to {to}, which ends here (blackhole)"),
        }
    }
}

/// Whether it carries our protocol.
pub(super) fn is_ours(route: &Route) -> bool {
    route.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// How many routes that go are named in the log.
const NAMED: usize = 20;
/// How many questions the kernel has at a time.
const ASKED_AT_ONCE: usize = 64;
const EEXIST: i32 = 17;
const ESRCH: i32 = 3;
