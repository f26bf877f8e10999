//! What a scrape finds.

use std::sync::Arc;

use overlay::offload::Offload;
use overlay::stats::Totals;

use super::peers::PeerSample;
use overlay_api::status::Status;

/// Where a scrape finds what there is to tell at that moment.
pub type SampleSource = Arc<dyn Fn() -> Sample + Send + Sync>;

/// What there is to tell at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The node's state; none while there is no node.
    pub status: Option<Status>,
    /// The counters of all egress workers together, and of all ingress workers.
    pub totals: Option<(Totals, Totals)>,
    /// The peers of the tunnel.
    pub peers: Vec<PeerSample>,
    /// What the operator wants the kernel to do.
    pub offloads: Vec<Offload>,
    /// What keeps the node from being ready; unknown before the first look.
    pub problems: Option<Vec<String>>,
    /// Whether the store's changes are being followed.
    pub store_connected: bool,
}
