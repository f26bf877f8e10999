//! Why a node cannot be built.

use std::io::ErrorKind;

use overlay::SetupError;

use crate::plan::PlanError;
use crate::takeover::TakeoverError;
use overlay_host::HostError;
use overlay_support::claim::Claimed;

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
            Self::DeviceTaken(_) | Self::Claimed(_) => true,
            _ => false,
        }
    }

    /// What tells it from others, however it is put.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Forwarder(error) => format!("{} {} {}", error.call, error.object, error.source.kind()),
            Self::Host(error) => error.kind(),
            Self::Plan(error) => error.kind(),
            other => other.to_string(),
        }
    }
}
