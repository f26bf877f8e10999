//! The nodes, as the forwarding loops know them: this one, and the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use overlay_wire::ip::Version;
use overlay_wire::{Format, MacAddr};

/// This node, as the forwarding loops must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// The subnet this node has leased.
    pub subnet: Ipv4Net,
    /// The overlay device's address: ICMP errors come from it.
    pub overlay_address: Ipv4Addr,
    /// What it has of IPv6. Without that, no IPv6 packet passes.
    pub v6: Option<LocalV6>,
    /// Every address of this host. None is a valid source of a packet from the wire.
    pub addresses: Vec<IpAddr>,
    /// The largest inner packet in bytes.
    pub mtu: u32,
    /// How inner packets stand on the wire.
    pub format: Format,
    /// The UDP port that every node listens on.
    pub port: u16,
}

/// This node in a network that carries IPv6, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalV6 {
    /// The subnet this node has leased.
    pub subnet: Ipv6Net,
    /// The overlay device's address: ICMPv6 errors come from it.
    pub overlay_address: Ipv6Addr,
}

impl Local {
    /// The overlay device's address of that version.
    #[must_use]
    pub fn overlay_address(&self, version: Version) -> Option<IpAddr> {
        match version {
            Version::V4 => Some(self.overlay_address.into()),
            Version::V6 => self.v6.map(|v6| v6.overlay_address.into()),
        }
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The subnet it has leased.
    pub subnet: Ipv4Net,
    /// The IPv6 subnet it has leased, if any.
    pub subnet_v6: Option<Ipv6Net>,
    /// Its address on the underlay. Several peers can share one, behind a NAT.
    pub public_ip: Ipv4Addr,
    /// What frames to it are addressed to; `None` where the format has no frames.
    pub vtep_mac: Option<MacAddr>,
}
