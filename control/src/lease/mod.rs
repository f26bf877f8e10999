//! What flannel calls a lease: a subnet, who owns it, and how its owner is reached.
//!
//! The shapes here are flannel's own, byte for byte: the key `10.1.86.0-24` and the JSON value
//! `{"PublicIP":…,"PublicIPv6":null,…}` (flannel 0.28, `pkg/subnet/etcd`, `pkg/lease`).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use overlay::MacAddr;

/// How a node is reached: the value of a lease key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Where the owner's tunnel ends, as the other nodes see it.
    pub public_ip: Ipv4Addr,
    /// The owner's kind of backend and what peers must know of it.
    pub backend: LeaseBackend,
}

/// The backend that a lease names. A lease without `BackendType` is a `udp` one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseBackend {
    /// Bare IP packets in UDP.
    Udp,
    /// VXLAN: frames to the owner carry this VNI and are addressed to this MAC.
    Vxlan {
        /// The owner's VXLAN network identifier.
        vni: u32,
        /// The address its end of the tunnel answers to.
        vtep_mac: MacAddr,
    },
    /// Another type (`host-gw`, `ipip`, …) or a form we do not read: kept by name, never a peer of ours.
    Other(String),
}

/// One subnet and its owner, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet, with its host bits zero.
    pub subnet: Ipv4Net,
    /// Who owns it.
    pub attrs: LeaseAttrs,
}
