//! Two nodes that share what only one may have. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::attrs::LeaseBackend;
use overlay_wire::MacAddr;

/// Two nodes that cannot both be right. Its text says who they are, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Conflict {
    /// A plain and a dual-stack key, or two of the latter, name one subnet for two nodes.
    #[error(
        "lease keys {} and {} name one subnet for two nodes, {} and {}: delete the key of the node that no longer has it",
        keys[0], keys[1], public_ips[0], public_ips[1]
    )]
    OneSubnet {
        /// Both keys; the first one counts.
        keys: [String; 2],
        /// The PublicIP of each.
        public_ips: [Ipv4Addr; 2],
    },
    /// One lease lies inside another's subnet, or around it.
    #[error(
        "the lease {} of {} is not used, its addresses belong to the lease {} of {}: delete the one that should not be there",
        keys[1], public_ips[1], keys[0], public_ips[0]
    )]
    Overlap {
        /// Both keys; the first one counts.
        keys: [String; 2],
        /// The PublicIP of each.
        public_ips: [Ipv4Addr; 2],
    },
    /// Two leases name one address, but two Ethernet addresses behind it.
    #[error(
        "the leases of {} and {} both name {public_ip}, but different VTEP MACs, {} and {}: delete the one that is no longer used, or give each node an address of its own (--public-ip, --iface)",
        subnets[0], subnets[1], macs[0], macs[1]
    )]
    OneAddress {
        /// The PublicIP of both.
        public_ip: Ipv4Addr,
        /// The subnet of each.
        subnets: [Ipv4Net; 2],
        /// The VTEP MAC of each.
        macs: [MacAddr; 2],
    },
    /// Two leases name one Ethernet address, but two nodes behind it.
    #[error(
        "the leases {} of {} and {} of {} name one VTEP MAC, {mac}: nodes with the kernel's VXLAN reach only one of them; delete the one that is no longer used, or the lease of the node that has copied it, and restart that",
        subnets[0], public_ips[0], subnets[1], public_ips[1]
    )]
    OneMac {
        /// The VTEP MAC of both.
        mac: MacAddr,
        /// The subnet of each.
        subnets: [Ipv4Net; 2],
        /// The PublicIP of each.
        public_ips: [Ipv4Addr; 2],
    },
    /// Somebody keeps a lease that carries our PublicIP.
    #[error(
        "another node keeps the lease {theirs} with our public address {public_ip}, which our lease {ours} has: give each node an address of its own (--public-ip, --iface)"
    )]
    OurAddress {
        /// Our own key.
        ours: String,
        /// The other node's key.
        theirs: String,
        /// The PublicIP of both.
        public_ip: Ipv4Addr,
    },
    /// Somebody writes our own lease.
    #[error(
        "another node with our public address {public_ip} writes our lease {key}, we as {}, it as {}: give each node an address of its own (--public-ip, --iface)",
        Words(Some(ours)), Words(theirs.as_ref())
    )]
    OurLease {
        /// Our own key.
        key: String,
        /// The PublicIP of both.
        public_ip: Ipv4Addr,
        /// What we write.
        ours: LeaseBackend,
        /// What the other one wrote last; `None` if that cannot be read.
        theirs: Option<LeaseBackend>,
    },
}

/// A backend, as far as it tells two nodes apart.
struct Words<'a>(Option<&'a LeaseBackend>);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(LeaseBackend::Udp) => f.write_str("udp"),
            Some(LeaseBackend::HostGw) => f.write_str("host-gw"),
            Some(LeaseBackend::Vxlan { vtep_mac, .. }) => write!(f, "VtepMAC {vtep_mac}"),
            Some(LeaseBackend::Other(name)) => f.write_str(name),
            None => f.write_str("something that cannot be read"),
        }
    }
}

/// Somebody who wants to make trouble could name any number.
pub(super) const MOST_CONFLICTS: usize = 100;
