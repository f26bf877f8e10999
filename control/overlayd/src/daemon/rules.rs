//! The firewall's rules, kept by a task of its own: the programs that it takes may take their time, hang or be missing,
//! and packets flow all the same.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::warn;

use super::report::Restored;
use crate::metrics::Repaired;
use crate::problems::{Part, Problems};
use overlay_host::firewall::{self, Firewall};
use overlay_host::{Desired, HostError};
use overlay_support::backoff::Backoff;
use overlay_support::problem::Problem;

mod stale;

/// The task, as others see it.
pub(super) struct Rules {
    wanted: watch::Sender<Wanted>,
    tried: watch::Receiver<u64>,
    look: Arc<Notify>,
    errands: mpsc::UnboundedSender<Errand>,
    task: JoinHandle<()>,
}

/// What is to be kept, numbered, so that it is known what has been tried.
#[derive(Clone, Default)]
struct Wanted {
    number: u64,
    desired: Option<Desired>,
}

/// Something to be done once.
enum Errand {
    /// Remove the rules of a device that is gone.
    Remove(String),
    /// Remove what earlier runs and flanneld have left, beside the device in use.
    Tidy(String),
}

impl Rules {
    pub(super) fn start(problems: Problems, restored: Restored) -> Self {
        let (wanted, want) = watch::channel(Wanted::default());
        let (tell, tried) = watch::channel(0);
        let (errands, waiting) = mpsc::unbounded_channel();
        let look = Arc::<Notify>::default();
        let task =
            Task { wanted: want, tried: tell, look: Arc::clone(&look), errands: waiting, problems, restored };
        Self { wanted, tried, look, errands, task: tokio::spawn(task.run()) }
    }

    /// Has `desired` kept from now on, instead of what was kept before.
    pub(super) fn want(&self, desired: Desired) {
        self.wanted.send_if_modified(|wanted| {
            let differs = wanted.desired.as_ref() != Some(&desired);
            if differs {
                *wanted = Wanted { number: wanted.number + 1, desired: Some(desired) };
            }
            differs
        });
    }

    /// Waits until what is wanted has been tried, but not beyond `deadline`.
    pub(super) async fn tried(&self, deadline: Instant) {
        let number = self.wanted.borrow().number;
        // Who hangs does not keep packets from flowing.
        let _ = timeout_at(deadline, self.tried.clone().wait_for(|tried| *tried >= number)).await;
    }

    /// Somebody may have changed them.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// Has the rules of `device` removed, unless it is the one whose rules are kept by then.
    pub(super) fn remove(&self, device: String) {
        // The task lives as long as this.
        let _ = self.errands.send(Errand::Remove(device));
    }

    /// Has the rules removed that earlier runs and flanneld have left, beside those of `device`.
    pub(super) fn tidy(&self, device: String) {
        let _ = self.errands.send(Errand::Tidy(device));
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    wanted: watch::Receiver<Wanted>,
    tried: watch::Sender<u64>,
    look: Arc<Notify>,
    errands: mpsc::UnboundedReceiver<Errand>,
    problems: Problems,
    restored: Restored,
}

impl Task {
    async fn run(mut self) {
        let mut firewall: Option<Firewall> = None;
        let mut interrupted: Option<Errand> = None;
        let mut number = 0;
        let mut pauses = Backoff::of_this_host();
        let mut retry_at = None;
        loop {
            let failing = retry_at.is_some();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                // What fails is tried again by its own clock, however much happens.
                () = self.look.notified(), if !failing => {}
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if failing => {}
                Some(errand) = next(&mut interrupted, &mut self.errands) => {
                    let mut wanted = self.wanted.clone();
                    interrupted = tokio::select! {
                        biased;
                        // Packets wait for these rules, and nobody for what is left of others.
                        Ok(()) = wanted.changed() => Some(errand),
                        () = self.run_errand(&errand) => None,
                    };
                    continue;
                }
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let first = wanted.number != number;
            if first {
                number = wanted.number;
                firewall = wanted.desired.map(Firewall::new);
                pauses.reset();
            }
            let Some(firewall) = &mut firewall else { continue };
            let slow = tell_if_slow(self.problems.clone());
            let outcome = tokio::select! {
                outcome = firewall.sync() => outcome,
                never = slow => match never {},
                // What is wanted now need not wait for what was.
                Ok(()) = self.wanted.changed() => {
                    self.wanted.mark_changed();
                    continue;
                }
            };
            retry_at = match outcome {
                Ok(changed) => {
                    pauses.reset();
                    self.problems.report(Part::Rules, None);
                    if changed && !first {
                        self.restored.count(Repaired::Rules, "the firewall rules".to_owned());
                    }
                    None
                }
                Err(error) => {
                    self.problems.report(Part::Rules, Some(problem(&error)));
                    Some(Instant::now() + pauses.pause())
                }
            };
            self.tried.send_replace(number);
        }
    }

    async fn run_errand(&self, errand: &Errand) {
        let kept = self.wanted.borrow().desired.as_ref().map(|desired| desired.device.clone());
        match errand {
            Errand::Remove(device) if Some(device) == kept.as_ref() => {}
            Errand::Remove(device) => {
                if let Err(error) = firewall::remove_all(device).await {
                    warn!(%error, device, "rules of the earlier device stay behind");
                }
            }
            Errand::Tidy(device) => stale::remove(device).await,
        }
    }
}

/// The errand that was not ended, or else the next one.
async fn next(
    interrupted: &mut Option<Errand>,
    errands: &mut mpsc::UnboundedReceiver<Errand>,
) -> Option<Errand> {
    match interrupted.take() {
        Some(errand) => Some(errand),
        None => errands.recv().await,
    }
}

/// Tells that the programs have not ended, if they have not for long. Never ends.
async fn tell_if_slow(problems: Problems) -> Infallible {
    sleep(SLOW).await;
    let text = format!("the firewall's programs have not ended for {} s", SLOW.as_secs());
    problems.report(Part::Rules, Some(Problem::new("slow", text)));
    std::future::pending().await
}

/// Many times what they take.
const SLOW: Duration = Duration::from_secs(3);

/// What `error` is for people and for the log.
pub(super) fn problem(error: &HostError) -> Problem {
    Problem::new(error.kind(), error)
}
