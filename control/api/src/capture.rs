//! What `GET /v1/capture?…` is asked with.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Which packets, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Outer packets instead of inner ones.
    #[serde(default)]
    pub outer: bool,
    /// Only dropped ones.
    #[serde(default)]
    pub drops: bool,
    /// `egress` or `ingress` only.
    pub direction: Option<String>,
    /// Inner source or destination.
    pub host: Option<IpNet>,
    /// The other node's public address.
    pub peer: Option<Ipv4Addr>,
    /// The inner packet's protocol number.
    pub protocol: Option<u8>,
    /// The inner packet's source or destination port.
    pub port: Option<u16>,
    /// Bytes kept of each packet.
    pub snaplen: Option<usize>,
    /// Ends after so many packets.
    pub count: Option<u64>,
    /// Ends before the file has more bytes than this.
    pub bytes: Option<u64>,
    /// Ends after so many milliseconds.
    pub millis: Option<u64>,
}
