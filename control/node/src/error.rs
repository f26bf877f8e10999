//! Why a node cannot be built.

use std::io::ErrorKind;
use std::net::SocketAddr;

use overlay::SetupError;
use tokio::task::spawn_blocking;

use crate::plan::{Plan, PlanError};
use crate::takeover::TakeoverError;
use overlay_host::HostError;
use overlay_support::claim::Claimed;
use overlay_support::owner::{self, Owner};

/// A node could not be built.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data plane.
    #[error(transparent)]
    Forwarder(#[from] SetupError),
    /// The host's configuration.
    #[error(transparent)]
    Host(#[from] HostError),
    /// What flanneld has left cannot be taken over.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// A second network with the same VNI, on another port or interface.
    #[error(
        "another process has the device {0} open, perhaps an overlayd of another network: stop it, or give the networks different VNIs"
    )]
    DeviceTaken(String),
    /// Another process has what is wanted.
    #[error("{error}; it is {name}'s (process {pid}): stop that, or {otherwise}", name = .owner.name, pid = .owner.pid)]
    Taken {
        /// What cannot be had.
        error: Box<Self>,
        /// Who has it.
        owner: Owner,
        /// What there is to do instead.
        otherwise: &'static str,
    },
    /// A second daemon of the same network.
    #[error(transparent)]
    Claimed(#[from] Claimed),
    /// The plan cannot be carried out here.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl NodeError {
    /// Whether it is something that another process has, which may be about to end.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Forwarder(error) => {
                matches!(error.source.kind(), ErrorKind::AddrInUse | ErrorKind::ResourceBusy)
            }
            Self::DeviceTaken(_) | Self::Claimed(_) | Self::Taken { .. } => true,
            _ => false,
        }
    }

    /// The same, with whose it is that `plan` wants, where another process has it and can be told.
    pub async fn with_owner(self, plan: &Plan) -> Self {
        let (listen, device) = (plan.listen(), plan.device());
        let wants_port = match &self {
            Self::Forwarder(error) if error.source.kind() == ErrorKind::AddrInUse => true,
            Self::Forwarder(error) if error.source.kind() == ErrorKind::ResourceBusy => false,
            Self::DeviceTaken(_) => false,
            _ => return self,
        };
        let find = move || match (wants_port, listen) {
            (true, Some(SocketAddr::V4(listen))) => owner::of_udp_port(listen),
            (true, _) => None,
            (false, _) => owner::of_tun(&device),
        };
        let otherwise = match wants_port {
            true => "give the network another Port",
            false => "give the networks different VNIs",
        };
        match spawn_blocking(find).await {
            Ok(Some(owner)) => Self::Taken { error: Box::new(self), owner, otherwise },
            _ => self,
        }
    }

    /// What tells it from others, however it is put.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Forwarder(error) => format!("{} {} {}", error.call, error.object, error.source.kind()),
            Self::Host(error) => error.kind(),
            Self::Plan(error) => error.kind(),
            Self::Taken { error, .. } => error.kind(),
            other => other.to_string(),
        }
    }
}
