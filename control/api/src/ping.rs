//! What comes of an echo to the daemon of another node: `GET /v1/ping`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The address of the node's overlay device.
    pub overlay_address: Ipv4Addr,
    /// The node's public address.
    pub public_ip: Ipv4Addr,
    /// The length of the inner packet, in bytes.
    pub bytes: usize,
    /// The time from question to answer, in microseconds; nothing if there was no answer.
    pub round_trip_us: Option<f64>,
    /// How long ago a packet of a pod had last come from the node when it was asked, in seconds; nothing if none has.
    pub last_seen_s: Option<f64>,
    /// Whether it has ever answered an echo, now included: a node without overlayd never does.
    pub answers: bool,
}
