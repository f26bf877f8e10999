//! When what could not be built is tried again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use overlay_support::backoff::Backoff;

/// The next attempt, if the last one has failed.
pub(super) struct Retry {
    due: Option<Instant>,
    /// When the last attempt failed.
    failed_at: Option<Instant>,
    pauses: Backoff,
}

impl Retry {
    pub(super) const fn new() -> Self {
        Self { due: None, failed_at: None, pauses: Backoff::of_this_host() }
    }

    /// Whether another attempt is to come.
    pub(super) fn is_pending(&self) -> bool {
        self.due.is_some()
    }

    /// When it is time for the next attempt; never, unless one is to come.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let due = self.due;
        async move {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }

    /// An attempt begins.
    pub(super) fn begins(&mut self) {
        self.due = None;
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::new();
    }

    pub(super) fn failed(&mut self) {
        let now = Instant::now();
        (self.failed_at, self.due) = (Some(now), Some(now + self.pauses.pause()));
    }

    /// Tries sooner: what is waited for may be there, unless it is our own attempt that has changed the host. However
    /// much changes, there is an attempt a second at most.
    pub(super) fn hasten(&mut self) {
        let (Some(due), Some(failed_at)) = (self.due, self.failed_at) else { return };
        if failed_at.elapsed() > OWN_EVENTS {
            self.due = Some(due.min(failed_at + SHORTEST_PAUSE));
        }
    }
}

/// The kernel tells of the changes that an attempt makes within this time.
const OWN_EVENTS: Duration = Duration::from_millis(500);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// A retry whose pauses have grown.
    fn after_failures() -> Retry {
        let mut retry = Retry::new();
        for _ in 0..5 {
            retry.begins();
            retry.failed();
        }
        retry
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_host_hastens_it_to_once_a_second() {
        for (after, hastened) in [(100, false), (499, false), (501, true), (900, true)] {
            let (begun, mut retry) = (Instant::now(), after_failures());
            advance(Duration::from_millis(after)).await;
            retry.hasten();
            retry.due().await;
            let waited = begun.elapsed();
            assert_eq!(waited == SHORTEST_PAUSE, hastened, "{after}: {waited:?}");
            assert!(hastened || waited >= Duration::from_secs(8), "{after}: {waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_pending_only_between_attempts() {
        let mut retry = after_failures();
        assert!(retry.is_pending());
        retry.begins();
        retry.hasten();
        assert!(!retry.is_pending());
        retry.succeeded();
        let begun = Instant::now();
        retry.failed();
        retry.due().await;
        assert!(begun.elapsed() <= Duration::from_secs(1), "pauses begin anew");
    }
}
