//! `overlayctl trace`: the way of one packet through this host, step by step, as daemon and kernel have it now. What the
//! data plane does with it, the daemon says.

mod daemon;
mod inwards;
mod outwards;
mod rules;
mod steps;
mod tracer;

use std::path::Path;

use super::kernel::Kernel;
use overlay_api::status::Status;
use overlay_host::firewall::ruleset::Ruleset;

pub use daemon::TraceError;
pub use steps::{Dropped, Question, Step, Trace};
use tracer::Tracer;

/// Follows the packet of `question` through the host of the daemon that says `status` and answers at `socket`.
///
/// # Errors
/// The kernel, the firewall or the daemon cannot be asked.
pub async fn trace(question: &Question, status: &Status, socket: &Path) -> Result<Trace, TraceError> {
    let mut tracer = Tracer {
        question,
        status,
        socket,
        kernel: Kernel::open().await?,
        ruleset: Ruleset::read().await?,
        trace: Trace { steps: Vec::new() },
    };
    let own = status.lease.subnet;
    match (own.contains(&question.src), own.contains(&question.dst)) {
        (true, true) => tracer.trace.pass(
            "route",
            format!(
                "{} and {} are both in {own}: the bridge carries it, not the overlay",
                question.src, question.dst
            ),
        ),
        (false, true) => tracer.inwards().await?,
        _ => tracer.outwards().await?,
    }
    Ok(tracer.trace)
}
