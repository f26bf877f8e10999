//! What asks: one module for each kind of traffic. It runs in the network namespace of the calling
//! thread and knows nothing of overlays.

mod connect;
pub(crate) mod datagrams;
mod iperf3;
mod ping;
mod requests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{Load, Scenario};
use crate::server::Ports;
use crate::stats::Percentiles;

/// Whom to ask, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The server's address.
    pub address: IpAddr,
    /// The server's ports.
    pub ports: Ports,
    /// How long streams and floods run, in seconds.
    pub seconds: f64,
    /// Datagrams per second where the rate is set.
    pub udp_rate: u32,
}

/// What came of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// In the unit of the scenario's [`metric`](Scenario::metric).
    pub value: f64,
    /// How long it took.
    pub seconds: f64,
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// Packets that carried them: datagrams, requests and responses, or full TCP segments' worth.
    /// `None` for connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// TCP segments sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// The sender's congestion control, of TCP streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// Datagrams, requests or connections that were begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// How long the round trips took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<Percentiles>,
}

impl Target {
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }
}

/// Runs one scenario.
///
/// # Errors
/// If the server cannot be reached, or nothing arrives.
pub fn measure(scenario: Scenario, target: &Target) -> anyhow::Result<Measured> {
    let seconds = scenario.seconds(target.seconds);
    let duration = Duration::from_secs_f64(seconds);
    match scenario.load() {
        Load::Streams { count, direction } => iperf3::streams(target, count, direction, seconds),
        Load::Flood(len) => datagrams::flood(target, len, duration),
        Load::Wire { .. } => {
            anyhow::bail!("takes the host of the client, which is only at hand in namespaces")
        }
        Load::Paced(len) => datagrams::paced(target, len, duration),
        Load::TcpRequests => requests::tcp(target, duration),
        Load::UdpRequests => requests::udp(target, duration),
        Load::Echoes => ping::echoes(target, seconds),
        Load::Connections => connect::connections(target, duration),
    }
}

/// How long one connection, answer or stretch of silence may take before the way counts as broken.
const PATIENCE: Duration = Duration::from_secs(5);
