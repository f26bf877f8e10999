//! When this host is to be compared with what it should be: soon after an event, and in any case once a
//! period. Events are gathered, so that neither our own changes nor a flood of others' keep us busy.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::warn;

use crate::HostError;
use crate::events::{HostEvents, Interest, Polled, Touched};

/// The clock of the comparison with the kernel.
pub struct Reconcile {
    /// `None` while they cannot be had.
    events: Option<HostEvents>,
    polled: Polled,
    poll: Interval,
    pace: Pace,
}

impl Reconcile {
    /// Has everything looked at once in `period`, and what events tell of within [`GAP`].
    ///
    /// # Errors
    /// [`HostError::Netlink`] if there are no events to be had.
    pub fn start(period: Duration) -> Result<Self, HostError> {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            events: Some(HostEvents::subscribe()?),
            polled: Polled::now(),
            poll,
            pace: Pace::new(period, Instant::now()),
        })
    }

    /// Waits until something of `interest` is to be looked at; for ever while nothing is ours. May be
    /// cancelled.
    pub async fn due(&mut self, interest: Option<Interest>) -> Touched {
        let Some(interest) = interest else { return std::future::pending().await };
        loop {
            tokio::select! {
                () = sleep_until(self.pace.due()) => return self.pace.take(Instant::now()),
                changed = changed(self.events.as_mut(), &interest) => match changed {
                    Ok(touched) => self.pace.hasten(touched, Instant::now()),
                    Err(error) => {
                        warn!(%error, "this host's changes are not told: looking every second until they are");
                        self.events = None;
                    }
                },
                _ = self.poll.tick() => {
                    let mut touched = self.polled.again();
                    if self.events.is_none() {
                        self.events = HostEvents::subscribe().ok();
                        touched = Touched::ALL;
                    }
                    self.pace.hasten(touched, Instant::now());
                }
            }
        }
    }
}

async fn changed(events: Option<&mut HostEvents>, interest: &Interest) -> Result<Touched, HostError> {
    match events {
        Some(events) => events.changed(interest).await,
        None => std::future::pending().await,
    }
}

/// The times at which to look.
#[derive(Debug)]
struct Pace {
    period: Duration,
    /// What waits to be looked at, and when.
    waiting: Option<(Touched, Instant)>,
    /// When all is looked at, whatever happens.
    all_at: Instant,
    last: Option<Instant>,
}

impl Pace {
    fn new(period: Duration, now: Instant) -> Self {
        Self { period, waiting: None, all_at: now + period, last: None }
    }

    fn due(&self) -> Instant {
        self.waiting.map_or(self.all_at, |(_, at)| at.min(self.all_at))
    }

    /// What is to be looked at, now that it is `due`.
    fn take(&mut self, now: Instant) -> Touched {
        self.last = Some(now);
        let waiting = self.waiting.take();
        if now >= self.all_at {
            self.all_at = now + self.period;
            return Touched::ALL;
        }
        waiting.map_or(Touched::NOTHING, |(touched, _)| touched)
    }

    fn hasten(&mut self, touched: Touched, now: Instant) {
        if touched == Touched::NOTHING {
            return;
        }
        let at = self.last.map_or(now, |last| last + GAP).max(now + SETTLE);
        let (before, at) = self.waiting.unwrap_or((Touched::NOTHING, at));
        self.waiting = Some((before.and(touched), at));
    }
}

/// How often what gives no event is looked at.
const POLL: Duration = Duration::from_secs(1);
/// What one command changes comes in several events.
const SETTLE: Duration = Duration::from_millis(20);
/// Between two comparisons, each of which may run a few programs: somebody who keeps undoing what we do
/// must not keep us busy.
const GAP: Duration = Duration::from_millis(400);

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Touched = Touched { link: true, rules: false };
    const RULES: Touched = Touched { link: false, rules: true };

    #[tokio::test(start_paused = true)]
    async fn an_event_is_prompt_and_a_flood_is_not_followed() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(60), start);
        pace.hasten(LINK, start);
        pace.hasten(RULES, start + SETTLE / 2);
        assert_eq!(pace.due(), start + SETTLE, "a later event does not put the look off");
        let first = pace.due();
        assert_eq!(pace.take(first), Touched::ALL);

        // Ten thousand events in ten seconds.
        let mut looks = 0;
        for number in 0..10_000 {
            let now = first + Duration::from_millis(number);
            if now >= pace.due() {
                assert_eq!(pace.take(now), LINK);
                looks += 1;
            }
            pace.hasten(LINK, now);
        }
        assert!((20..=25).contains(&looks), "{looks}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_looked_at_once_in_a_period_whatever_happens() {
        let start = Instant::now();
        let period = Duration::from_secs(5);
        let mut pace = Pace::new(period, start);
        pace.hasten(LINK, start);
        let at = pace.due();
        assert_eq!(pace.take(at), LINK);
        assert_eq!(pace.due(), start + period);
        assert_eq!(pace.take(start + period), Touched::ALL);
        assert_eq!(pace.due(), start + 2 * period);
    }
}
