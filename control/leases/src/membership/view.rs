//! What the membership tells, and what it asks.

use ipnet::Ipv4Net;
use tokio::sync::oneshot;

use crate::lease::{Admitted, Conflict, HostFacts, Lease, Refused};
use crate::netconf::NetworkConfig;
use crate::store::StoreId;
use overlay_support::json::JsonError;
use overlay_support::problem::Problem;

/// What the store says, as far as this node is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The network's configuration.
    pub config: NetworkConfig,
    /// The same as text.
    pub config_text: String,
    /// Our own lease.
    pub lease: Lease,
    /// Whether the store has it. If not, it is the one that we had and try to get again.
    pub held: bool,
    /// The other nodes of our backend type.
    pub peers: Admitted,
    /// Leases of another backend type.
    pub ignored: usize,
    /// Leases that the gate does not let pass; the first of them, if there are many.
    pub refused: Vec<Refused>,
    /// How many there are in all.
    pub refused_count: usize,
    /// Lease keys that cannot be read.
    pub garbage: usize,
    /// Nodes that share what only one may have.
    pub conflicts: Vec<Conflict>,
    /// What leases are judged by of this host.
    pub host: HostFacts,
    /// Whether changes are being followed.
    pub connected: bool,
}

impl View {
    /// What a network says of which nothing is wrong, and whose leases nobody has confirmed yet.
    #[must_use]
    pub fn unconfirmed(
        (config_text, config): (String, NetworkConfig),
        lease: Lease,
        peers: Admitted,
        host: HostFacts,
    ) -> Self {
        Self {
            config,
            config_text,
            lease,
            held: false,
            peers,
            ignored: 0,
            refused: Vec::new(),
            refused_count: 0,
            garbage: 0,
            conflicts: Vec::new(),
            host,
            connected: false,
        }
    }
}

/// There is nothing to go on with.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The configuration cannot be used, and there is no earlier one.
    #[error("the network configuration in {store} cannot be used: {error}")]
    BadConfig {
        /// Where it stands.
        store: StoreId,
        /// What is wrong with it.
        error: JsonError,
    },
    /// This host cannot run the network, and runs none.
    #[error("{0}")]
    Host(String),
}

/// Asks whether this host can run a network, before a lease is taken in it.
#[derive(Debug)]
pub struct Question {
    /// The network.
    pub config: NetworkConfig,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}

/// This host cannot run a network.
#[derive(Debug)]
pub struct Refusal {
    /// Why not.
    pub problem: Problem,
    /// Whether it forwards in another one meanwhile.
    pub forwarding: bool,
}

/// What there is to say of the membership besides its view.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// What is waited for before there can be a first view.
    pub waits_for: Option<String>,
    /// Why another configuration is not applied.
    pub not_applied: Option<Problem>,
    /// Lease keys for which there is no room.
    pub beyond: usize,
}

/// A network that this host runs, and the subnet that it has in it.
pub type Running = (NetworkConfig, Ipv4Net);
