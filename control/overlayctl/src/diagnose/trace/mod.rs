//! `overlayctl trace`: the way of one packet through this host, step by step, as daemon and kernel have it now.

mod inwards;
mod outwards;
mod rules;
mod steps;
mod tracer;

use super::kernel::Kernel;
use overlay_api::status::Status;
use overlay_host::HostError;
use overlay_host::firewall::ruleset::Ruleset;

pub use steps::{Dropped, Question, Step, Trace};
use tracer::Tracer;

/// Follows the packet of `question` through the host of the daemon that says `status`.
///
/// # Errors
/// The kernel or the firewall cannot be asked.
pub async fn trace(question: &Question, status: &Status) -> Result<Trace, HostError> {
    let mut tracer = Tracer {
        question,
        status,
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
