//! Another configuration on its way to be in force.

use tokio::time::Instant;

use crate::netconf::NetworkConfig;
use overlay_support::backoff::Backoff;

/// A configuration that is to be applied.
pub(super) struct Candidate {
    pub(super) text: String,
    pub(super) config: NetworkConfig,
    /// When it is tried next.
    pub(super) due: Instant,
    /// When it was tried last.
    pub(super) tried: Option<Instant>,
    pub(super) pauses: Backoff,
}

impl Candidate {
    pub(super) fn new(text: String, config: NetworkConfig) -> Self {
        Self { text, config, due: Instant::now(), tried: None, pauses: Backoff::of_this_host() }
    }
}
