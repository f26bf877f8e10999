//! What the store says of leases is taken in.

use std::mem;

use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::Membership;
use super::told::{shorten, tell};
use crate::store::{Event, Listing, Revision, StoreError};

impl Membership {
    /// Step 2. Returns the revision that the list is of.
    pub(super) async fn list(&mut self) -> Result<Revision, StoreError> {
        let listing: Listing = self.store.list().await?;
        self.skipped = listing.skipped;
        tell(&self.leases.forget_missing(Instant::now()));
        tell(&self.leases.apply(&listing, Instant::now()));
        self.leases.expect(mem::take(&mut self.expected), Instant::now());
        if let Some(held) = &self.held
            && listing.beyond == 0
            && !listing.entries.iter().any(|entry| entry.key == held.entry.key)
        {
            // Nobody is waited for: it is for us to take it again.
            tell(&self.leases.apply_event(&Event::Delete(held.entry.key.clone())));
        }
        self.refresh_held();
        self.tell_beyond();
        Ok(listing.revision)
    }

    pub(super) fn learn(&mut self, event: Event) {
        match event {
            Event::Config(Some(text)) => {
                if let Err(error) = self.take_config(text) {
                    error!(%error, "no usable network configuration yet");
                }
            }
            Event::Config(None) => {
                warn!("the network configuration was removed: keeping the last one");
                self.complained = None;
                if self.candidate.is_none() {
                    self.not_applied(None);
                }
            }
            Event::Put(_) | Event::Delete(_) => {
                tell(&self.leases.apply_event(&event));
                if let (Event::Put(entry), Some(held)) = (&event, &self.held) {
                    let attrs = self.leases.get(&entry.key).map(|known| &known.attrs);
                    let ours = (held.entry.key.as_str(), &held.attrs);
                    self.rivals.saw(entry, attrs, ours, self.terms.ttl, Instant::now());
                }
                self.refresh_held();
                self.tell_beyond();
            }
            Event::Relist => {}
        }
    }

    /// Keeps up with what the store says of our own key, so that a renewal compares with the latest.
    pub(super) fn refresh_held(&mut self) {
        let Some((current, right)) = self.current() else { return };
        let current = current.clone();
        let Some(held) = &mut self.held else { return };
        if !right && current.revision != held.entry.revision {
            let (key, value, pause) = (&current.key, shorten(&current.value), self.rivals.pause());
            if self.rivals.go_on() {
                debug!(key, value, ?pause, "somebody else has written our lease again");
            } else {
                warn!(key, value, ?pause, "somebody else has written our lease: it will be put right");
            }
            held.renew_at = held.renew_at.min(Instant::now() + pause);
        }
        held.entry = current;
    }
}
