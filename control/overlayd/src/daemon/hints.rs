//! Says once what an operator can do about dropped packets that need not be somebody's attempt.

use overlay::stats::Totals;
use overlay_wire::drops::DropReason;
use tracing::warn;

/// For which reasons it has been said.
#[derive(Debug, Default)]
pub(super) struct Hints(Vec<DropReason>);

impl Hints {
    /// Looks at the counters of both directions.
    pub(super) fn look(&mut self, (egress, ingress): &(Totals, Totals)) {
        for reason in DropReason::ALL {
            let packets = egress.drops(reason) + ingress.drops(reason);
            if packets > 0
                && !self.0.contains(&reason)
                && let Some(hint) = reason.hint()
            {
                warn!(
                    reason = reason.label(),
                    packets,
                    hint,
                    "packets are dropped; this is said once, see 'overlayctl status' for how many"
                );
                self.0.push(reason);
            }
        }
    }
}
