//! What the data plane would do with a packet: `POST /v1/trace?…`. No packet is sent.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::reach::Way;

/// Where it is asked.
pub const RESOURCE: &str = "/v1/trace";

/// Which packet, and where the data plane meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Whether the host gives it to the overlay device, or it arrives from the wire.
    pub direction: Direction,
    /// Its source.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Its protocol number; without one, that of ICMP.
    pub protocol: Option<u8>,
    /// Its source port, with TCP and UDP.
    pub source_port: Option<u16>,
    /// Its destination port.
    pub port: Option<u16>,
    /// Its length, in bytes; without one, as short as it can be.
    pub len: Option<usize>,
    /// Whether it may be cut; without an answer, it may not.
    pub may_fragment: Option<bool>,
    /// Its time to live; without one, 64.
    pub ttl: Option<u8>,
    /// What it says of congestion, as in RFC 3168: 3 is a mark.
    pub ecn: Option<u8>,
    /// From which address it arrives; without one, from the node that may send it, or else from any.
    pub outer: Option<IpAddr>,
    /// What the outer header says of congestion when it arrives.
    pub outer_ecn: Option<u8>,
}

impl Question {
    /// The shortest packet from `src` to `dst`.
    #[must_use]
    pub fn new(direction: Direction, src: IpAddr, dst: IpAddr) -> Self {
        Self {
            direction,
            src,
            dst,
            protocol: None,
            source_port: None,
            port: None,
            len: None,
            may_fragment: None,
            ttl: None,
            ecn: None,
            outer: None,
            outer_ecn: None,
        }
    }
}

/// Which way a packet goes through the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the overlay device to the wire.
    Egress,
    /// From the wire to the overlay device.
    Ingress,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The node that it goes to, or comes from.
    pub peer: Option<Peer>,
    /// What the data plane does with it; nothing where it goes past that, by a plain route or nowhere.
    pub verdict: Option<Verdict>,
    /// The largest packet, in bytes, that goes to the node in one piece.
    pub mtu: Option<u32>,
    /// What the node's data plane does with it if it checks sources strictly, so far as that can be told from the leases.
    pub far_end: Option<Verdict>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The subnet of its containers.
    pub subnet: Ipv4Net,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// The address that frames to it carry, with VXLAN.
    pub vtep_mac: Option<String>,
    /// Which way packets to it go.
    pub way: Way,
    /// Why they do not go as they should.
    pub problem: Option<String>,
}

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Why it does not go on; nothing if it does.
    pub dropped: Option<Dropped>,
    /// What its sender is told by ICMP, unless it has been told often of late.
    pub told: Option<String>,
}

/// Why a packet does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// As drops are counted.
    pub reason: String,
    /// What that means.
    pub meaning: String,
    /// What to do.
    pub remedy: String,
}
