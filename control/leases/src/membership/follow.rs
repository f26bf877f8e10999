//! The steps of a membership in their order, again and again.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::Arc;

use futures::stream::Fuse;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::told::tell;
use super::{Interrupted, Membership, MembershipError, PAUSES};
use crate::store::{Event, EventStream, Revision, StoreError};
use overlay_support::backoff::Backoff;

impl Membership {
    /// Takes part until the task is dropped.
    ///
    /// Returns only if there is nothing to go on with.
    pub async fn run(mut self) -> MembershipError {
        let mut backoff = PAUSES;
        let mut last_problem = None;
        loop {
            let problem = match self.follow(&mut backoff, &mut last_problem).await {
                Interrupted::ForGood(error) => return error,
                Interrupted::Store(error) => error.to_string(),
            };
            self.set_connected(false);
            let wait = backoff.pause();
            // Said once, however long it lasts.
            if last_problem.as_ref() != Some(&problem) {
                let store = self.store.id().to_string();
                if self.held.is_some() {
                    warn!(store, %problem, "the lease store does not serve us; trying again, forwarding goes on");
                } else {
                    warn!(store, %problem, "the lease store does not serve us; trying again, nothing is forwarded until it does");
                    self.wait_for(format!("the lease store {store}, which does not serve us: {problem}"));
                }
                last_problem = Some(problem);
            } else {
                debug!(?wait, "the lease store still does not serve us");
            }
            sleep(wait).await;
        }
    }

    async fn follow(&mut self, backoff: &mut Backoff, last_problem: &mut Option<String>) -> Interrupted {
        match self.try_follow(backoff, last_problem).await {
            Ok(never) => match never {},
            Err(interrupted) => interrupted,
        }
    }

    async fn try_follow(
        &mut self,
        backoff: &mut Backoff,
        last_problem: &mut Option<String>,
    ) -> Result<Infallible, Interrupted> {
        let mut revision = self.begin().await?;
        loop {
            // Fused: its end can be seen while a burst is gathered.
            let mut events = self.store.watch(revision).await?.fuse();
            self.meters.store.watching();
            self.set_connected(true);
            if last_problem.take().is_some() {
                info!(store = self.store.id().to_string(), "the lease store serves us again");
            }
            self.follow_changes(&mut events, &mut revision, backoff).await?;
            // The store ended the watch; it goes on from where it was.
            sleep(backoff.pause()).await;
        }
    }

    /// Steps 1 to 4. Returns the revision from which changes are to be followed.
    async fn begin(&mut self) -> Result<Revision, Interrupted> {
        self.fetch_config().await?;
        let revision = self.list().await?;
        self.readdress().await?;
        if self.taken {
            self.publish();
        }
        if self.reload_due {
            self.reload().await?;
        } else {
            self.try_candidate().await?;
        }
        self.hold().await?;
        self.publish();
        self.release_misfits();
        Ok(revision)
    }

    /// Step 5, until the store ends the watch.
    async fn follow_changes(
        &mut self,
        events: &mut Fuse<EventStream>,
        revision: &mut Revision,
        backoff: &mut Backoff,
    ) -> Result<(), Interrupted> {
        let reload = Arc::clone(&self.reload);
        loop {
            let renew_at = self.held.as_ref().filter(|_| self.is_held()).map(|held| held.renew_at);
            let forget_at = self.leases.forgets_at();
            let apply_at = self.candidate.as_ref().map(|candidate| candidate.due);
            let releases = !self.misfits.is_empty() && self.is_held();
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return Ok(()) };
                    backoff.reset();
                    self.learn_burst(event, events, revision).await?;
                }
                () = at(renew_at) => {
                    self.renew().await?;
                    self.publish();
                }
                () = at(forget_at) => {
                    tell(&self.leases.forget_missing(Instant::now()));
                    // A subnet may be free now that was not.
                    self.hold().await?;
                    self.publish();
                    self.hasten_candidate();
                }
                () = reload.notified() => {
                    self.reload_due = true;
                    self.reload().await?;
                }
                () = at(apply_at) => self.try_candidate().await?,
                () = changed(&mut self.runs) => self.release_misfits(),
                // Nobody tells any more once the sender is gone.
                Ok(()) = self.public_ip.changed() => {
                    self.readdress().await?;
                    self.hold().await?;
                    self.publish();
                }
                Ok(()) = self.host.changed() => {
                    self.hold().await?;
                    self.publish();
                }
                () = ready(()), if releases => self.release_some().await?,
            }
        }
    }

    /// Takes in an event and those that wait behind it: a burst of changes is one publication.
    async fn learn_burst(
        &mut self,
        first: Result<(Revision, Event), StoreError>,
        events: &mut Fuse<EventStream>,
        revision: &mut Revision,
    ) -> Result<(), Interrupted> {
        let mut event = Some(first);
        while let Some(next) = event {
            let (at, change) = next?;
            *revision = at;
            if change == Event::Relist {
                self.fetch_config().await?;
                *revision = self.list().await?;
            } else {
                self.learn(change);
            }
            event = events.next().now_or_never().flatten();
        }
        if self.reload_due {
            self.reload().await?;
        }
        if !self.is_held() || self.is_in_our_way() {
            self.hold().await?;
        }
        self.publish();
        // What it waits for may have come.
        self.hasten_candidate();
        Ok(())
    }
}

/// When it is `time`; never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// When `told` says something new; never, if there is nobody to say it.
async fn changed<T>(told: &mut Option<watch::Receiver<T>>) {
    let changed = match told {
        Some(told) => told.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        pending::<()>().await;
    }
}
