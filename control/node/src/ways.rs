//! Which way each node's pods are reached, and the routes that this takes.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tracing::{error, info, warn};

use crate::plan::Plan;
use overlay_api::reach::{Routed, Way};
use overlay_host::HostError;
use overlay_host::routes::{self, Leads, OffLink, OwnRoute, Synced};
use overlay_leases::lease::Lease;
use overlay_leases::netconf::{Backend, NetworkConfig};
use overlay_support::overlap::{Claim, Holdings, HostRoute, Need};

/// Another node, and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Its lease.
    pub lease: Lease,
    /// How its pods are reached.
    pub way: Way,
    /// Why they are not reached as they should be.
    pub problem: Option<String>,
}

/// The ways to all other nodes.
#[derive(Debug, Default)]
pub struct Ways {
    /// In the order of the leases.
    pub reached: Vec<Reached>,
    /// With a tunnel: what leads into it.
    pub routed: Option<Routed>,
    /// The routes for them.
    pub wanted: Vec<OwnRoute>,
}

/// What ways are found for.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The node's.
    pub plan: &'a Plan,
    /// The overlay's device, if there is a tunnel.
    pub device: Option<u32>,
    /// Whether what is sent to this node's subnet and to none of its pods ends here without a word.
    pub blackhole: bool,
}

/// The claim of a network, and of the node with the subnet `own` in it.
#[must_use]
pub fn claim(config: &NetworkConfig, own: Option<Ipv4Net>) -> Claim {
    Claim { network: config.network, pods: config.pods(), own }
}

impl Ways {
    /// Finds the ways to the nodes of `leases` on the holdings of `holdings`, which gets to know the nodes. For backends with
    /// direct ways, `on_link` says who is on our link.
    pub fn find(
        Terms { plan, device, blackhole }: Terms<'_>,
        mut holdings: Holdings,
        leases: Vec<Lease>,
        on_link: Option<Vec<Result<(), OffLink>>>,
    ) -> Self {
        let claim = claim(&plan.config, Some(plan.subnet));
        let nodes = leases.iter().map(|lease| lease.attrs.public_ip);
        nodes.filter(|node| claim.network.contains(node)).for_each(|node| holdings.need(node, Need::Peer));
        let routed = device.map(|_| routed(&holdings, &claim));
        let mut ways = Self { routed, ..Self::default() };
        if let (Some(device), Some(routed)) = (device, &ways.routed) {
            let ends = routed.ends(claim.network).map(|to| OwnRoute { to, leads: Leads::Unreachable });
            let whole = OwnRoute { to: claim.network, leads: Leads::Into(device) };
            ways.wanted.extend(ends.chain(routed.whole.then_some(whole)));
        }
        if blackhole {
            ways.wanted.retain(|route| route.to != plan.subnet);
            ways.wanted.push(OwnRoute { to: plan.subnet, leads: Leads::Blackhole });
        }
        let finder = Finder { plan, device, claim, holdings: &holdings, whole: ways.is_whole() };
        let on_link =
            on_link.map_or_else(|| vec![None; leases.len()], |all| all.into_iter().map(Some).collect());
        for (lease, on_link) in leases.into_iter().zip(on_link) {
            let (reached, route) = finder.reach(lease, on_link);
            ways.reached.push(reached);
            ways.wanted.extend(route);
        }
        ways
    }

    /// Puts the routes, and removes what is left of others. Routes that were wanted `before`, too, if any have been put
    /// before, have been put back. A node whose route cannot be had is told as that.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn put(
        &mut self,
        network: Ipv4Net,
        before: Option<&HashSet<OwnRoute>>,
    ) -> Result<Put, HostError> {
        let Synced { put, failed, left } = routes::sync(network, &self.wanted, before).await?;
        let back = put.iter().filter(|route| before.is_some_and(|before| before.contains(*route)));
        let back = back.map(|route| format!("the route {}", route.describe())).collect();
        let mut result = Put { back, whole: None, rest: left };
        let mut of_nodes = HashMap::new();
        for (route, error) in failed {
            match route.leads {
                Leads::Into(_) if route.to == network => result.whole = Some(error),
                Leads::Into(_) | Leads::Via { .. } => _ = of_nodes.insert(route.to, error),
                Leads::Unreachable | Leads::Blackhole => result.rest.push(error),
            }
        }
        let whole = self.is_whole();
        for peer in &mut self.reached {
            if let Some(error) = of_nodes.get(&peer.lease.subnet) {
                peer.problem = Some(error.to_string());
                peer.way = without_route(whole);
            }
        }
        Ok(result)
    }

    fn is_whole(&self) -> bool {
        self.routed.as_ref().is_some_and(|routed| routed.whole)
    }
}

/// What became of the routes.
#[derive(Debug)]
pub struct Put {
    /// Those that have been put back, for people.
    back: Vec<String>,
    /// Why the one that leads all of the network into the tunnel cannot be put.
    whole: Option<HostError>,
    /// What else could not be put or removed, and is no node's.
    rest: Vec<HostError>,
}

impl Put {
    /// Those that have been put back, for people.
    ///
    /// # Errors
    /// What could not be put or removed.
    pub fn outcome(self) -> Result<Vec<String>, HostError> {
        let failed = self.whole.into_iter().chain(self.rest).collect();
        HostError::of(failed).map_or(Ok(self.back), Err)
    }

    /// What could not be put or removed, though packets to other nodes have their ways.
    ///
    /// # Errors
    /// They have none.
    pub fn unless_cut_off(self) -> Result<Option<HostError>, HostError> {
        self.whole.map_or_else(|| Ok(HostError::of(self.rest)), Err)
    }
}

/// What a node that makes this `claim` routes into its device.
#[must_use]
pub fn routed(holdings: &Holdings, claim: &Claim) -> Routed {
    let overlaps = holdings.overlaps(claim);
    let whole = overlaps.is_empty();
    Routed {
        whole,
        overlaps: overlaps.iter().take(TOLD).map(ToString::to_string).collect(),
        rejected: if whole { Vec::new() } else { holdings.rejected(claim) },
    }
}

struct Finder<'a> {
    plan: &'a Plan,
    device: Option<u32>,
    claim: Claim,
    holdings: &'a Holdings,
    whole: bool,
}

impl Finder<'_> {
    fn reach(&self, lease: Lease, on_link: Option<Result<(), OffLink>>) -> (Reached, Option<OwnRoute>) {
        let to = lease.subnet;
        match self.way(to, lease.attrs.public_ip, on_link) {
            Ok((way, leads)) => {
                (Reached { lease, way, problem: None }, leads.map(|leads| OwnRoute { to, leads }))
            }
            Err(problem) => (Reached { lease, way: without_route(self.whole), problem: Some(problem) }, None),
        }
    }

    /// The way to the pods in `subnet`, and where the route for it leads, if it takes one of its own.
    fn way(
        &self,
        subnet: Ipv4Net,
        node: Ipv4Addr,
        on_link: Option<Result<(), OffLink>>,
    ) -> Result<(Way, Option<Leads>), String> {
        let Plan { underlay, config, .. } = self.plan;
        if config.backend == Backend::Alloc {
            return Ok((Way::None, None));
        }
        match (on_link, self.device) {
            (Some(Ok(())), _) => {
                let host = self.holdings.routes.get(&subnet);
                let leads = Leads::Via { gateway: node, device: underlay.index };
                let same =
                    |host: &&HostRoute| (host.gateway, host.device) == (Some(node), Some(underlay.index));
                match host.filter(same) {
                    // What the host says itself need not be said again.
                    Some(host) => Ok((Way::Direct, host.as_flannels.then_some(leads))),
                    None => self.unless_the_hosts(subnet).map(|()| (Way::Direct, Some(leads))),
                }
            }
            (_, Some(_)) if self.whole => Ok((Way::Tunnel, None)),
            (_, Some(device)) => {
                self.unless_the_hosts(subnet).map(|()| (Way::Tunnel, Some(Leads::Into(device))))
            }
            (Some(Err(OffLink::Gateway)), None) => Err(format!(
                "{node} is behind a router, not on the link of {0}: host-gw cannot reach it. Put the nodes on one link; or use the backend vxlan, with \"DirectRouting\":true for plain routes where there is one; or, if {node} is on another link of this host, name that: --iface",
                underlay.name
            )),
            (_, None) => Err(format!("there is no route to {node}")),
        }
    }

    fn unless_the_hosts(&self, subnet: Ipv4Net) -> Result<(), String> {
        let obstacle = self.holdings.obstacle(&self.claim, subnet);
        obstacle.map_or(Ok(()), |obstacle| Err(obstacle.to_string()))
    }
}

/// How a node's pods are reached that have no route of their own.
fn without_route(whole: bool) -> Way {
    if whole { Way::Tunnel } else { Way::None }
}

/// Says which problems have come and gone between `before` and `now`, so that each is said once.
pub fn tell(before: &[Reached], now: &[Reached]) {
    let had: HashMap<Ipv4Net, &str> =
        before.iter().filter_map(|peer| Some((peer.lease.subnet, peer.problem.as_deref()?))).collect();
    for peer in now {
        let (subnet, before) = (peer.lease.subnet, had.get(&peer.lease.subnet).copied());
        match &peer.problem {
            Some(problem) if before != Some(problem) => {
                error!(%subnet, public_ip = %peer.lease.attrs.public_ip, problem, "a node's pods are not reached");
            }
            None if before.is_some() => info!(%subnet, "a node's pods are reached again"),
            _ => {}
        }
    }
}

/// Says what of the network is routed, if that is another thing than `before`.
pub fn tell_routed(before: Option<&Routed>, now: Option<&Routed>) {
    let Some(now) = now.filter(|now| before != Some(now)) else { return };
    if !now.whole {
        let rejected: Vec<String> = now.rejected.iter().map(ToString::to_string).collect();
        warn!(
            overlaps = now.overlaps.join("; "),
            rejected = rejected.join(" "),
            "this host has something of its own in the network: only what other nodes have leased is routed into the overlay"
        );
    } else if before.is_some() {
        info!("nothing of this host's is in the network any more: all of it is routed into the overlay");
    }
}

/// How much of what lies in the network is told: of a site with a thousand routes, enough to know what is meant.
const TOLD: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_host::iface::Underlay;
    use overlay_leases::lease::{LeaseAttrs, LeaseBackend};
    use overlay_support::overlap::Need;

    const TUN: u32 = 7;
    const ETH: u32 = 2;

    fn plan(network: &str, backend: &str, own: &str) -> Plan {
        let config = format!(r#"{{"Network":"{network}","Backend":{{"Type":"{backend}"}}}}"#);
        let address = Ipv4Addr::new(192, 168, 1, 12);
        Plan {
            config: NetworkConfig::parse(&config).unwrap(),
            subnet: own.parse().unwrap(),
            vtep_mac: overlay_wire::MacAddr([2, 0, 0, 0, 0, 1]),
            underlay: Underlay {
                name: "eth0".to_owned(),
                index: ETH,
                mtu: 1500,
                mac: None,
                address,
                public_ip: address,
                reason: String::new(),
            },
        }
    }

    fn lease(subnet: &str, public_ip: &str) -> Lease {
        let attrs = LeaseAttrs { public_ip: public_ip.parse().unwrap(), backend: LeaseBackend::Udp };
        Lease { subnet: subnet.parse().unwrap(), attrs }
    }

    fn route(to: &str, gateway: Option<&str>, as_flannels: bool) -> (Ipv4Net, HostRoute) {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        (
            to.parse().unwrap(),
            HostRoute { gateway, device: Some(ETH), text: "dev eth0".to_owned(), as_flannels },
        )
    }

    fn holdings(routes: &[(Ipv4Net, HostRoute)]) -> Holdings {
        Holdings { routes: routes.iter().cloned().collect(), ..Holdings::default() }
    }

    /// Each peer's way, whether something is wrong with it, and all routes.
    fn found(ways: &Ways) -> (Vec<(Way, bool)>, Vec<String>) {
        let peers = ways.reached.iter().map(|peer| (peer.way, peer.problem.is_some())).collect();
        let lead = |route: &OwnRoute| match route.leads {
            Leads::Into(_) => format!("{} dev", route.to),
            Leads::Via { gateway, .. } => format!("{} via {gateway}", route.to),
            Leads::Unreachable => format!("{} unreachable", route.to),
            Leads::Blackhole => format!("{} blackhole", route.to),
        };
        (peers, ways.wanted.iter().map(lead).collect())
    }

    fn tunnel(plan: &Plan, holdings: Holdings, leases: &[Lease]) -> Ways {
        Ways::find(Terms { plan, device: Some(TUN), blackhole: false }, holdings, leases.to_vec(), None)
    }

    #[test]
    fn on_free_ground_one_route_leads_to_all_nodes_and_elsewhere_one_to_each() {
        let leases = [lease("10.1.63.0/24", "192.168.199.238"), lease("10.1.64.0/24", "192.168.199.239")];
        for backend in ["vxlan", "udp"] {
            let plan = plan("10.1.0.0/22", backend, "10.1.1.0/24");
            let here = [lease("10.1.2.0/24", "192.168.199.238"), lease("10.1.3.0/24", "192.168.199.239")];
            let free = tunnel(&plan, holdings(&[]), &here);
            assert_eq!(
                found(&free),
                (
                    vec![(Way::Tunnel, false); 2],
                    vec!["10.1.0.0/22 unreachable".to_owned(), "10.1.0.0/22 dev".to_owned()]
                )
            );
            let inside = tunnel(&plan, holdings(&[route("10.1.0.128/25", None, false)]), &here);
            let routes =
                ["10.1.1.0/24 unreachable", "10.1.2.0/23 unreachable", "10.1.2.0/24 dev", "10.1.3.0/24 dev"];
            assert_eq!(found(&inside), (vec![(Way::Tunnel, false); 2], routes.map(str::to_owned).to_vec()));
        }
        let plan = plan("10.1.0.0/16", "vxlan", "10.1.9.0/24");
        let site = tunnel(&plan, holdings(&[route("10.1.0.0/16", Some("192.168.1.1"), false)]), &leases);
        assert_eq!(found(&site).1, ["10.1.63.0/24 dev", "10.1.64.0/24 dev"]);
        assert_eq!(site.routed.unwrap().overlaps, ["the route 10.1.0.0/16 dev eth0"]);
    }

    #[test]
    fn a_node_without_a_way_is_told_and_the_others_have_theirs() {
        let plan = plan("192.168.0.0/16", "vxlan", "192.168.9.0/24");
        let mut site = holdings(&[route("192.168.1.0/24", None, false)]);
        site.need(plan.underlay.address, Need::Underlay("eth0".to_owned()));
        let leases = [lease("192.168.1.0/24", "192.168.1.66"), lease("192.168.40.0/24", "192.168.1.13")];
        let (peers, routes) = found(&tunnel(&plan, site, &leases));
        assert_eq!(peers, [(Way::None, true), (Way::Tunnel, false)]);
        assert_eq!(routes, ["192.168.40.0/24 dev"]);
    }

    #[test]
    fn a_direct_way_takes_flannels_place_and_stands_beside_nobody_elses() {
        let plan = plan("10.1.0.0/16", "host-gw", "10.1.9.0/24");
        let node = "192.168.1.13";
        let there = holdings(&[
            route("10.1.1.0/24", Some(node), true),
            route("10.1.2.0/24", Some(node), false),
            route("10.1.3.0/24", Some("192.168.1.99"), true),
        ]);
        let leases =
            ["10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24", "10.1.4.0/24", "10.1.5.0/24", "10.1.6.0/24"];
        let leases = leases.map(|subnet| lease(subnet, node)).to_vec();
        let mut on_link = vec![Ok(()); 4];
        on_link.extend([Err(OffLink::Gateway), Err(OffLink::Unreachable)]);
        let terms = Terms { plan: &plan, device: None, blackhole: true };
        let (peers, routes) = found(&Ways::find(terms, there, leases, Some(on_link)));
        let (direct, lost) = ((Way::Direct, false), (Way::None, true));
        assert_eq!(peers, [direct, direct, lost, direct, lost, lost]);
        assert_eq!(
            routes,
            ["10.1.9.0/24 blackhole", "10.1.1.0/24 via 192.168.1.13", "10.1.4.0/24 via 192.168.1.13"]
        );
    }

    #[test]
    fn alloc_leaves_all_ways_to_others() {
        let plan = plan("10.1.0.0/16", "alloc", "10.1.9.0/24");
        let terms = Terms { plan: &plan, device: None, blackhole: false };
        let ways = Ways::find(terms, holdings(&[]), vec![lease("10.1.1.0/24", "192.168.1.13")], None);
        assert_eq!(found(&ways), (vec![(Way::None, false)], Vec::new()));
        assert_eq!(ways.routed, None);
    }
}
