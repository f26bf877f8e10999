//! By when a node is to be rebuilt, or stopped, whatever hangs.

use std::time::Duration;

use tokio::time::Instant;

/// One deadline for all that is waited for between two nodes: what one step takes, the next ones lack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// That of what begins now.
    pub(super) fn begins() -> Self {
        Self(Instant::now() + IN_ALL)
    }

    /// Until when the firewall's programs are waited for. If a node runs, workers are to be stopped afterwards.
    pub(super) fn of_programs(self, runs: bool) -> Instant {
        self.0 - TO_START - if runs { TO_STOP } else { Duration::ZERO }
    }

    /// How long workers are waited for from now on.
    pub(super) fn to_stop(self) -> Duration {
        (self.0 - TO_START).saturating_duration_since(Instant::now()).clamp(SHORTEST_STOP, LONGEST_STOP)
    }
}

/// Less than a person's patience.
const IN_ALL: Duration = Duration::from_secs(2);
/// What starting a node takes, with the queues of a card that are still taken for a moment.
const TO_START: Duration = Duration::from_millis(400);
/// What is left for workers where programs hang. They end within milliseconds, unless they hang, too.
const TO_STOP: Duration = Duration::from_millis(600);
/// Healthy workers end by then. A process that was stopped meanwhile finds its deadline over, and must not leave them to
/// hold what the next node needs.
const SHORTEST_STOP: Duration = Duration::from_millis(200);
/// A worker that has not ended by then does not end, and a process that is to end has files to write.
const LONGEST_STOP: Duration = Duration::from_millis(1200);

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn programs_and_workers_that_hang_leave_time_to_start_the_next_node() {
        // What happens before programs are waited for takes its time, too.
        for (runs, before) in [(true, 0), (true, 500), (true, 1500), (false, 0), (false, 1500)] {
            let (begun, deadline) = (Instant::now(), Deadline::begins());
            advance(Duration::from_millis(before)).await;
            sleep_until(deadline.of_programs(runs)).await;
            let workers = deadline.to_stop();
            if runs {
                let least = if before > 1000 { SHORTEST_STOP } else { TO_STOP };
                assert!(workers >= least, "after {before} ms: {workers:?}");
                advance(workers).await;
            }
            let (taken, late) = (begun.elapsed(), if before > 1000 { SHORTEST_STOP } else { Duration::ZERO });
            assert!(
                taken + TO_START <= IN_ALL + late + Duration::from_millis(2),
                "after {before} ms: {taken:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_hang_leave_time_to_write_files() {
        assert_eq!(Deadline::begins().to_stop(), LONGEST_STOP);
    }
}
