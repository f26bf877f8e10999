//! Where the answers come from.

use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use overlay::offload::Offload;

use overlay_api::config::Setting;
use overlay_api::status::Status;
use overlay_leases::manager::LeaseManager;
use overlay_leases::membership::View;
use overlay_node::Node;

/// Where the answers come from: `None` while the data plane is being rebuilt.
pub trait Source: Send + Sync {
    /// All there is to tell at this moment.
    fn status(&self) -> Option<Status>;

    /// The running node, for what takes longer than a look.
    fn node(&self) -> Option<Arc<Node>>;

    /// What the store said last.
    fn view(&self) -> Option<View>;

    /// What does not change while the daemon runs.
    fn facts(&self) -> Option<Arc<Facts>>;

    /// Why there is no answer, if there is none.
    fn excuse(&self) -> String {
        "the data plane is being rebuilt".to_owned()
    }
}

/// What a daemon was started with.
pub struct Facts {
    /// When it started.
    pub started: Instant,
    /// Where leases live.
    pub leases: Arc<dyn LeaseManager>,
    /// Its flags.
    pub settings: Vec<Setting>,
    /// The offloads that were asked for.
    pub offloads: Vec<Offload>,
}

/// The answer while there is none.
pub(super) fn not_yet(source: &dyn Source) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, source.excuse()).into_response()
}
