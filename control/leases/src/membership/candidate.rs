//! Another configuration on its way to be in force. What runs stays until this host can run the new one and a lease is
//! held in it; what cannot be had is tried again, later and later.

use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use super::told::NAMED;
use super::{Interrupted, Membership, Question, Refusal};
use crate::netconf::NetworkConfig;
use overlay_support::backoff::Backoff;
use overlay_support::json::JsonError;
use overlay_support::problem::Problem;

/// A configuration that is to be applied.
pub(super) struct Candidate {
    pub(super) text: String,
    config: NetworkConfig,
    /// When it is tried next.
    pub(super) due: Instant,
    /// When it was tried last.
    tried: Option<Instant>,
    pauses: Backoff,
}

impl Candidate {
    pub(super) fn new(text: String, config: NetworkConfig) -> Self {
        Self { text, config, due: Instant::now(), tried: None, pauses: Backoff::of_this_host() }
    }
}

impl Membership {
    /// Applies the network configuration as it is now, which may make another node of this one. What
    /// cannot be used changes nothing.
    pub(super) async fn reload(&mut self) -> Result<(), Interrupted> {
        let text = self.store.config().await?;
        self.reload_due = false;
        let Some(text) = text else {
            warn!("there is no network configuration to be applied: keeping the last one");
            return Ok(());
        };
        self.tell_unknown_keys(&text);
        (self.candidate, self.unusable) = (None, None);
        if self.config.as_ref().is_some_and(|(in_force, _)| *in_force == text) {
            info!("the network configuration has not changed");
            self.not_applied(None);
            return Ok(());
        }
        match NetworkConfig::parse(&text) {
            Err(error) => {
                self.refuse(&text, &error);
                self.unusable = Some(text);
                Ok(())
            }
            Ok(config) => {
                info!(config = text, "applying the network configuration");
                self.candidate = Some(Candidate::new(text, config));
                self.try_candidate().await
            }
        }
    }

    /// Puts the candidate in force, if there is one and it can be had.
    pub(super) async fn try_candidate(&mut self) -> Result<(), Interrupted> {
        let Some(Candidate { text, config, .. }) = &self.candidate else { return Ok(()) };
        let (text, config) = (text.clone(), config.clone());
        match self.take_as(&config).await? {
            Ok(()) => {
                self.candidate = None;
                (self.config, self.fit, self.complained) = (Some((text, config)), true, None);
                (self.lost, self.full) = (false, None);
                self.not_applied(None);
                self.publish();
                self.release_misfits();
            }
            Err(problem) => {
                if let Some(candidate) = &mut self.candidate {
                    let now = Instant::now();
                    candidate.tried = Some(now);
                    candidate.due = now + candidate.pauses.pause();
                }
                self.not_applied(Some(problem));
            }
        }
        Ok(())
    }

    /// Takes a lease as `config` wants it, beside what is held, if this host can run that; else says why not.
    async fn take_as(&mut self, config: &NetworkConfig) -> Result<Result<(), Problem>, Interrupted> {
        let keeps = |problem| {
            format!("the new network configuration is not applied, the earlier one stays: {problem}")
        };
        // This is known without trying anything out.
        if let Err(full) = self.choose(config) {
            return Ok(Err(Problem::new("full", keeps(full.to_string()))));
        }
        if let Err(Refusal { problem, .. }) = self.ask_host(config).await {
            let text = keeps(problem.text().to_owned());
            return Ok(Err(Problem::new(problem.kind(), text)));
        }
        let taken = self.take(config).await?;
        Ok(taken.map_err(|full| Problem::new("full", keeps(full.to_string()))))
    }

    /// Whether this host can run `config`.
    pub(super) async fn ask_host(&self, config: &NetworkConfig) -> Result<(), Refusal> {
        let Some(host) = &self.can_run else { return Ok(()) };
        let (answer, answered) = oneshot::channel();
        let sent = host.send(Question { config: config.clone(), answer }).await;
        match (sent, answered.await) {
            (Ok(()), Ok(answer)) => answer,
            // Nobody is there to answer: the daemon is about to end.
            _ => std::future::pending().await,
        }
    }

    /// What the candidate waits for may have come. However much comes, it is tried once a second at most.
    pub(super) fn hasten_candidate(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            let soon = candidate.tried.map_or_else(Instant::now, |tried| tried + BETWEEN_TRIES);
            candidate.due = candidate.due.min(soon);
        }
    }

    /// Tells that the store's configuration is none that can be used.
    pub(super) fn refuse(&self, text: &str, error: &JsonError) {
        let what = format!(
            "the network configuration in the store cannot be used, the last good one stays: {error}; correct it there"
        );
        self.not_applied(Some(Problem::new(text, what)));
    }

    /// Says once of a configuration which of its keys nobody reads.
    pub(super) fn tell_unknown_keys(&mut self, text: &str) {
        if self.read.as_deref() == Some(text) {
            return;
        }
        self.read = Some(text.to_owned());
        let unknown = NetworkConfig::unknown_keys(text);
        if !unknown.is_empty() {
            let keys: Vec<String> = unknown.iter().take(NAMED).map(ToString::to_string).collect();
            let keys = keys.join(", ");
            warn!(
                unknown = unknown.len(),
                keys,
                "the network configuration has keys that mean nothing: they are passed over, as by flanneld"
            );
        }
    }

    pub(super) fn not_applied(&self, problem: Option<Problem>) {
        self.standing.send_if_modified(|standing| {
            let changed = standing.not_applied != problem;
            standing.not_applied = problem;
            changed
        });
    }
}

const BETWEEN_TRIES: Duration = Duration::from_secs(1);
