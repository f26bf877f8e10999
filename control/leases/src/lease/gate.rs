//! The gate: what of the leases in a store is used. Who writes a lease may be broken or hostile, so everything
//! that this node does with the leases of others (the tunnel's table, direct routes, the choice of a subnet,
//! conflicts, the status) starts from what passes here. Pure.
//!
//! Each lease is looked at by itself first ([`Ground::reason_against`]). Those that pass may still claim the
//! same addresses; then one keeps them, and the other is refused as a conflict:
//!
//! 1. our own subnet is ours;
//! 2. a lease that was in use keeps its addresses for as long as its owner keeps the lease;
//! 3. otherwise the lease that was created first does. The longest match would hand the addresses of a
//!    neighbour to whoever writes a smaller subnet.
//! 4. A store that does not tell the order prefers subnets of the length that the network's configuration asks for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::attrs::{Lease, LeaseAttrs, LeaseBackend};
use super::conflict::{Conflict, MOST_CONFLICTS};
use super::judgement::{Admitted, Judgement, Reason, Refused};
use super::set::{Known, LeaseSet};
use crate::netconf::NetworkConfig;
use crate::store::key_of;
use overlay_support::overlap::overlap;
use overlay_wire::MacAddr;

/// What leases are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The network that they are to be of.
    pub config: &'a NetworkConfig,
    /// Our own subnet, once we have one.
    pub own: Option<Ipv4Net>,
    /// Our own address, as the others see it.
    pub public_ip: Ipv4Addr,
    /// What there is of this host.
    pub host: &'a HostFacts,
}

/// What of this host leases are judged by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// What is its own, or what it has to reach, where our subnet would be in the way.
    pub kept: BTreeSet<Ipv4Addr>,
    /// Those of them without which it is cut off: no node can be built with one in its subnet.
    pub vital: BTreeSet<Ipv4Addr>,
    /// The gateways that it reaches by other devices than that to the other nodes.
    pub gateways: BTreeSet<Gateway>,
    /// The broadcast addresses of its interfaces.
    pub broadcasts: BTreeSet<Ipv4Addr>,
}

/// A gateway by which a route of this host's leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Where it is.
    pub address: Ipv4Addr,
    /// The addresses of this host's on the device that leads there.
    pub beside: BTreeSet<Ipv4Addr>,
}

impl Gateway {
    /// Whether it would be cut off if `subnet` was pods'. On a bridge with an address in the subnet it is a pod that
    /// routes.
    fn is_lost_to(&self, subnet: Ipv4Net) -> bool {
        subnet.contains(&self.address) && !is_any_in(&self.beside, subnet)
    }
}

impl HostFacts {
    /// Whether `subnet` would take something from this host if it was its pods'.
    #[must_use]
    pub fn is_in(&self, subnet: Ipv4Net) -> bool {
        is_any_in(&self.kept, subnet) || self.loses_a_gateway_to(subnet)
    }

    /// What no subnet is taken for anew, if another is free.
    pub fn avoided(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.kept.iter().copied().chain(self.gateways.iter().map(|gateway| gateway.address))
    }

    fn loses_a_gateway_to(&self, subnet: Ipv4Net) -> bool {
        self.gateways.iter().any(|gateway| gateway.is_lost_to(subnet))
    }

    /// Whether this host would be cut off if `subnet` was its pods'.
    #[must_use]
    pub fn is_cut_off_by(&self, subnet: Ipv4Net) -> bool {
        is_any_in(&self.vital, subnet) || self.loses_a_gateway_to(subnet)
    }
}

fn is_any_in(addresses: &BTreeSet<Ipv4Addr>, subnet: Ipv4Net) -> bool {
    addresses.range(subnet.network()..=subnet.broadcast()).next().is_some()
}

impl Ground<'_> {
    /// Judges all leases of a store.
    #[must_use]
    pub fn judge(&self, leases: &LeaseSet) -> Judgement {
        let mut judgement = Judgement::default();
        let mut sound = Vec::new();
        for known in leases.all() {
            match self.reason_against(known.entry.subnet, &known.attrs) {
                None => sound.push(known),
                Some(reason) => judgement.refuse(known, reason),
            }
        }
        let passing = if self.is_peaceful(&sound) { sound } else { self.settle(sound, &mut judgement) };

        let mut vteps = Vec::new();
        for known in passing {
            let (subnet, attrs) = (known.entry.subnet, &known.attrs);
            judgement.held.push(subnet);
            if let LeaseBackend::Vxlan { vtep_mac, .. } = attrs.backend {
                vteps.push((subnet, attrs.public_ip, vtep_mac));
            }
            if Some(subnet) == self.own || attrs.public_ip == self.public_ip {
                continue;
            }
            if attrs.backend.kind() == Some(self.config.backend.kind()) {
                judgement.peers.0.push(Lease { subnet, attrs: attrs.clone() });
            } else {
                judgement.other_backend += 1;
            }
        }
        judgement.name_shared_addresses(self.public_ip, &vteps);
        judgement
    }

    /// Judges what an earlier run has saved, which the gate may have passed under another configuration.
    #[must_use]
    pub fn judge_saved(&self, leases: Vec<Lease>) -> Admitted {
        let mut set = LeaseSet::default();
        set.expect(leases, tokio::time::Instant::now());
        self.judge(&set).peers
    }

    /// Why a lease cannot be used, whatever the other leases are.
    #[must_use]
    pub fn reason_against(&self, subnet: Ipv4Net, attrs: &LeaseAttrs) -> Option<Reason> {
        let network = self.config.network;
        let public_ip = attrs.public_ip;
        if subnet == network {
            return Some(Reason::WholeNetwork);
        }
        if !network.contains(&subnet) {
            return Some(Reason::Outside(network));
        }
        if public_ip != self.public_ip {
            if let Some(what) = self.no_host(public_ip) {
                return Some(Reason::NoHost(public_ip, what));
            }
            if subnet.contains(&self.public_ip) {
                return Some(Reason::HoldsNode(self.public_ip));
            }
        }
        if subnet.contains(&public_ip) {
            return Some(Reason::Inside(public_ip));
        }
        match &attrs.backend {
            LeaseBackend::Vxlan { vtep_mac, .. } if !vtep_mac.is_unicast() => Some(Reason::Mac(*vtep_mac)),
            _ => None,
        }
    }

    /// What `address` is if no other host can be reached there.
    fn no_host(&self, address: Ipv4Addr) -> Option<&'static str> {
        match address.octets() {
            [0, ..] => Some("of this network (0.0.0.0/8)"),
            [127, ..] => Some("a loopback address"),
            // Hosts that have found each other without a router may build an overlay, too.
            [169, 254, ..] if !self.public_ip.is_link_local() => Some("a link-local address"),
            [224..=239, ..] => Some("a multicast address"),
            [255, 255, 255, 255] => Some("the broadcast address"),
            [240..=255, ..] => Some("reserved (240.0.0.0/4)"),
            _ if self.host.broadcasts.contains(&address) => {
                Some("the broadcast address of a network of this host's")
            }
            _ => None,
        }
    }

    /// Whether no two of `leases`, which are in the order of their subnets, want the same: the usual case, in
    /// which nothing has to be put into order.
    fn is_peaceful(&self, leases: &[&Known]) -> bool {
        let mut reach = None;
        leases.iter().all(|known| {
            let subnet = known.entry.subnet;
            let is_free = reach.is_none_or(|reach| reach < subnet.network());
            reach = reach.max(Some(subnet.broadcast()));
            is_free
                && !self.config.network.contains(&known.attrs.public_ip)
                && self.own.is_none_or(|own| !overlap(own, subnet) || self.is_ours(known))
        })
    }

    fn is_ours(&self, known: &Known) -> bool {
        Some(known.entry.subnet) == self.own && known.attrs.public_ip == self.public_ip
    }

    /// Those of `leases` that keep their addresses, by subnet.
    fn settle<'k>(&self, mut leases: Vec<&'k Known>, judgement: &mut Judgement) -> Vec<&'k Known> {
        leases.sort_by_key(|known| {
            let entry = &known.entry;
            let unfit = !self.config.fits(entry.subnet);
            (!self.is_ours(known), !known.in_use, entry.created, unfit, entry.subnet, &entry.key)
        });
        let mut claims = Claims::default();
        if let Some(own) = self.own {
            claims
                .subnets
                .insert(own.network(), Claim { subnet: own, key: key_of(own), owner: self.public_ip });
        }
        let mut passing = Vec::with_capacity(leases.len());
        for known in leases {
            if self.is_ours(known) {
                passing.push(known);
                continue;
            }
            let (subnet, public_ip) = (known.entry.subnet, known.attrs.public_ip);
            let Some(claim) = claims.overlapping(subnet) else {
                if let Some(claim) = claims.overlapping(public_ip.into()) {
                    judgement.refuse(known, Reason::PodsAddress(public_ip, claim.key.clone()));
                } else if let Some(node) = claims.node_in(subnet) {
                    judgement.refuse(known, Reason::HoldsNode(node));
                } else {
                    claims.add(known);
                    passing.push(known);
                }
                continue;
            };
            let same = claim.subnet == subnet;
            if same && (claim.owner == public_ip || claim.key == known.entry.key) {
                // The second key of one node, or the key that we had and that is another node's now.
                continue;
            }
            let keys = [claim.key.clone(), known.entry.key.clone()];
            let public_ips = [claim.owner, public_ip];
            judgement.dispute(match same {
                true => Conflict::OneSubnet { keys, public_ips },
                false => Conflict::Overlap { keys, public_ips },
            });
            judgement.refuse(known, Reason::Overlaps(claim.key.clone(), claim.owner));
        }
        passing.sort_by_key(|known| known.entry.subnet);
        passing
    }
}

/// What those that pass have claimed so far. Their subnets do not overlap.
#[derive(Default)]
struct Claims {
    /// By first address.
    subnets: BTreeMap<Ipv4Addr, Claim>,
    nodes: BTreeMap<Ipv4Addr, ()>,
}

struct Claim {
    subnet: Ipv4Net,
    key: String,
    owner: Ipv4Addr,
}

impl Claims {
    fn add(&mut self, known: &Known) {
        let (entry, owner) = (&known.entry, known.attrs.public_ip);
        let claim = Claim { subnet: entry.subnet, key: entry.key.clone(), owner };
        self.subnets.insert(entry.subnet.network(), claim);
        self.nodes.insert(owner, ());
    }

    fn overlapping(&self, subnet: Ipv4Net) -> Option<&Claim> {
        let (_, last) = self.subnets.range(..=subnet.broadcast()).next_back()?;
        (last.subnet.broadcast() >= subnet.network()).then_some(last)
    }

    fn node_in(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        self.nodes.range(subnet.network()..=subnet.broadcast()).next().map(|(node, ())| *node)
    }
}

impl Judgement {
    fn refuse(&mut self, known: &Known, reason: Reason) {
        let (entry, public_ip) = (&known.entry, known.attrs.public_ip);
        self.refused.push(Refused { key: entry.key.clone(), subnet: entry.subnet, public_ip, reason });
    }

    fn dispute(&mut self, conflict: Conflict) {
        if self.conflicts.len() < MOST_CONFLICTS {
            self.conflicts.push(conflict);
        }
    }

    /// Leases of one address with different VTEP MACs are two nodes', and so are those of one MAC with different
    /// addresses. (One node may have several leases. Who else has `ours`, is noticed by what is written.)
    fn name_shared_addresses(&mut self, ours: Ipv4Addr, vteps: &[(Ipv4Net, Ipv4Addr, MacAddr)]) {
        let mut by_address: HashMap<Ipv4Addr, (Ipv4Net, MacAddr)> = HashMap::new();
        let mut by_mac: HashMap<MacAddr, (Ipv4Net, Ipv4Addr)> = HashMap::new();
        for (subnet, public_ip, mac) in vteps.iter().copied() {
            let (first, other) = *by_address.entry(public_ip).or_insert((subnet, mac));
            if other != mac && public_ip != ours {
                self.dispute(Conflict::OneAddress {
                    public_ip,
                    subnets: [first, subnet],
                    macs: [other, mac],
                });
            }
            let (first, other) = *by_mac.entry(mac).or_insert((subnet, public_ip));
            if other != public_ip {
                self.dispute(Conflict::OneMac {
                    mac,
                    subnets: [first, subnet],
                    public_ips: [other, public_ip],
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
