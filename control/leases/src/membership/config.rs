//! The network configuration that the store has: fetched, looked at, and used or complained about.

use std::mem;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::candidate::Candidate;
use super::told::NAMED;
use super::{EXAMPLE_CONFIG, Interrupted, Membership, MembershipError};
use crate::netconf::NetworkConfig;
use overlay_support::json::JsonError;
use overlay_support::problem::Problem;

impl Membership {
    /// Step 1.
    pub(super) async fn fetch_config(&mut self) -> Result<(), Interrupted> {
        let mut said = false;
        loop {
            match self.store.config().await? {
                Some(text) => return self.take_config(text).map_err(Interrupted::ForGood),
                None if self.config.is_some() && self.held.is_some() => return Ok(()),
                None => {}
            }
            if !said {
                let (store, remedy) =
                    (self.store.id().to_string(), self.store.how_to_configure(EXAMPLE_CONFIG));
                info!(store, %remedy, "waiting for the network configuration");
                self.wait_for(format!("its network configuration in {store}: put one, as by {remedy}"));
                said = true;
            }
            sleep(CONFIG_RETRY).await;
        }
    }

    /// Makes `text` the configuration while nothing runs, or that which takes the place of an earlier run's; other
    /// changes are only told.
    pub(super) fn take_config(&mut self, text: String) -> Result<(), MembershipError> {
        let first_look = !mem::replace(&mut self.looked, true);
        self.tell_unknown_keys(&text);
        if self.unusable.as_ref().is_some_and(|unusable| *unusable != text) {
            self.reload_due = true;
            return Ok(());
        }
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.text);
        if candidate == Some(&text) {
            return Ok(());
        }
        if self.candidate.take().is_some() {
            info!("the network configuration that was to be applied has been replaced: it is given up");
            self.not_applied(None);
        }
        let in_force = self.config.as_ref().map(|(text, _)| text);
        if in_force == Some(&text) {
            self.complained = None;
            self.not_applied(None);
            return Ok(());
        }
        if self.complained.as_ref() == Some(&text) {
            return Ok(());
        }
        match NetworkConfig::parse(&text) {
            // Nothing runs that would have to be kept.
            Ok(config) if self.held.is_none() => {
                self.config = Some((text, config));
                self.fit = false;
                self.not_applied(None);
            }
            Ok(config) if first_look => {
                info!(
                    config = text,
                    "the network configuration is another than that of the earlier run: applying it"
                );
                // Nobody comes back with a subnet of the earlier run's network.
                self.expected.retain(|peer| config.network.contains(&peer.subnet));
                self.candidate = Some(Candidate::new(text, config));
            }
            Ok(_) => {
                warn!(
                    config = text,
                    "the network configuration has changed: reload overlayd (systemctl reload overlayd, or SIGHUP) or restart it to apply it"
                );
                self.not_applied(None);
                self.complained = Some(text);
            }
            Err(error) if self.config.is_some() => {
                self.refuse(&text, &error);
                self.complained = Some(text);
            }
            Err(error) => return Err(MembershipError::BadConfig { store: self.store.id(), error }),
        }
        Ok(())
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
}

/// How often a configuration that is not there is looked for; flannel's period.
const CONFIG_RETRY: Duration = Duration::from_secs(1);
