//! A lease: a subnet, who owns it, and how its owner is reached.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::backend::BackendKind;
use overlay_wire::MacAddr;

/// How a node is reached: the value of a lease key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Where the owner's tunnel ends, as the other nodes see it.
    pub public_ip: Ipv4Addr,
    /// The owner's kind of backend and what peers must know of it.
    pub backend: LeaseBackend,
}

/// The backend that a lease names. A lease without `BackendType` is a `udp` one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LeaseBackend {
    /// Bare IP packets in UDP.
    Udp,
    /// VXLAN: frames to the owner are addressed to this MAC. (They carry the sender's VNI, which is the
    /// network's: flannel does not look at this one either.)
    Vxlan {
        /// The owner's VXLAN network identifier, 24 bits.
        vni: u32,
        /// The address its end of the tunnel answers to.
        vtep_mac: MacAddr,
    },
    /// Plain routes: the owner's public address is the gateway to its subnet.
    HostGw,
    /// Another type (`ipip`, `wireguard`, …): kept by name, never a peer of ours.
    Other(String),
}

impl LeaseBackend {
    /// The kind, if it is one of those we have.
    #[must_use]
    pub fn kind(&self) -> Option<BackendKind> {
        match self {
            Self::Udp => Some(BackendKind::Udp),
            Self::Vxlan { .. } => Some(BackendKind::Vxlan),
            Self::HostGw => Some(BackendKind::HostGw),
            Self::Other(_) => None,
        }
    }
}

/// One subnet and its owner, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet, with its host bits zero.
    pub subnet: Ipv4Net,
    /// Who owns it.
    pub attrs: LeaseAttrs,
}
