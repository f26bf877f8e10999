//! Another configuration is put in force. What runs stays until this host can run the new one and a lease is held in
//! it; what cannot be had is tried again, later and later.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::candidate::Candidate;
use super::{Interrupted, Membership, Refusal};
use crate::netconf::NetworkConfig;
use overlay_support::problem::Problem;

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

    /// What the candidate waits for may have come. However much comes, it is tried once a second at most.
    pub(super) fn hasten_candidate(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            let soon = candidate.tried.map_or_else(Instant::now, |tried| tried + BETWEEN_TRIES);
            candidate.due = candidate.due.min(soon);
        }
    }
}

const BETWEEN_TRIES: Duration = Duration::from_secs(1);
