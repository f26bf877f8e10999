//! The nodes, as the forwarding loops know them: this one, and the others.

use std::net::IpAddr;

use overlay_wire::{Addresses, Format, MacAddrs, Subnets};

/// This node, as the forwarding loops must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The whole overlay network.
    pub network: Subnets,
    /// The subnets this node has leased. Packets of a family without one do not pass.
    pub subnets: Subnets,
    /// The overlay device's addresses: ICMP errors come from them.
    pub overlay_addresses: Addresses,
    /// Its addresses on the underlay: the tunnel's packets leave from them.
    pub public: Addresses,
    /// Every address of this host. None is a valid source of a packet from the wire.
    pub addresses: Vec<IpAddr>,
    /// The largest inner packet in bytes.
    pub mtu: u32,
    /// How inner packets stand on the wire.
    pub format: Format,
    /// The UDP port that every node listens on.
    pub port: u16,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The subnets it has leased.
    pub subnets: Subnets,
    /// Its addresses on the underlay. Several peers can share one, behind a NAT.
    pub public: Addresses,
    /// What frames to it are addressed to, by the family of the underlay; `None` where the format has no frames.
    pub vtep_macs: Option<MacAddrs>,
}
