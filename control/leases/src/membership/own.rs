//! Our own lease: taken, kept, given up, and made to say what is so.

use std::future::pending;
use std::mem;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::told::{NAMED, shorten, tell};
use super::{Held, Interrupted, Membership, MembershipError, PAUSES, Question, Refusal};
use crate::lease::{Choice, Known, LeaseAttrs, LeaseBackend, NetworkFull, choose, derive_vtep_mac};
use crate::netconf::{Backend, NetworkConfig};
use crate::store::{Entry, Event, StoreError, Written};

impl Membership {
    /// Step 3. Does nothing while a lease is held, unless its subnet has come to cut this host off. While no subnet is
    /// free, it is left to the next change.
    pub(super) async fn hold(&mut self) -> Result<(), Interrupted> {
        let is_held = self.is_held() && self.taken;
        if is_held && !self.is_in_our_way() {
            self.full = None;
            return Ok(());
        }
        if let Some(held) = &self.held
            && self.taken
            && !is_held
            && !self.lost
        {
            warn!(key = held.entry.key, "our lease is gone: taking it again, forwarding goes on");
            self.terms.previous = Some(held.entry.subnet);
            self.lost = true;
            self.meters.lease.lost();
            self.publish();
        }
        let Some((_, config)) = self.config.clone() else { return Ok(()) };
        if !self.fit {
            match self.ask_host(&config).await {
                Ok(()) => self.fit = true,
                Err(Refusal { problem, forwarding: true }) => {
                    self.not_applied(Some(problem));
                    return Ok(());
                }
                Err(Refusal { problem, .. }) => {
                    return Err(Interrupted::ForGood(MembershipError::Host(problem.text().to_owned())));
                }
            }
        }
        match self.take(&config).await? {
            Ok(()) => {
                (self.lost, self.full) = (false, None);
                self.publish();
                self.release_misfits();
            }
            Err(full) => {
                if self.full.as_ref() != Some(&full) {
                    error!("{full}");
                }
                if self.held.is_none() {
                    self.wait_for(format!("a lease: {full}"));
                }
                self.full = Some(full);
            }
        }
        Ok(())
    }

    /// Whether this host can run `config`.
    pub(super) async fn ask_host(&self, config: &NetworkConfig) -> Result<(), Refusal> {
        let Some(host) = &self.can_run else { return Ok(()) };
        let (answer, answered) = oneshot::channel();
        let sent = host.send(Question { config: config.clone(), answer }).await;
        match (sent, answered.await) {
            (Ok(()), Ok(answer)) => answer,
            // Nobody is there to answer: the daemon is about to end.
            _ => pending().await,
        }
    }

    /// What lease there is to be had as `config` wants it. Those of ours that it does not allow are in nobody's way.
    pub(super) fn choose(&self, config: &NetworkConfig) -> Result<Choice, NetworkFull> {
        let misfits: Vec<String> = self.misfits(config).map(|entry| entry.key.clone()).collect();
        let (public_ip, previous) = (self.terms.public_ip, self.terms.previous);
        let held = self.held.as_ref().map(|held| held.entry.subnet);
        let previous = previous.filter(|subnet| config.fits(*subnet)).or(held);
        let host = self.host.borrow();
        if misfits.is_empty() {
            return choose(config, &self.leases, public_ip, previous, &host, &mut rand::rng());
        }
        let mut others = self.leases.clone();
        for key in misfits {
            others.apply_event(&Event::Delete(key));
        }
        choose(config, &others, public_ip, previous, &host, &mut rand::rng())
    }

    /// Takes a lease as `config` wants it. What was held until then is held until this is.
    pub(super) async fn take(
        &mut self,
        config: &NetworkConfig,
    ) -> Result<Result<(), NetworkFull>, Interrupted> {
        let mut conflicts = PAUSES;
        loop {
            let choice = match self.choose(config) {
                Ok(choice) => choice,
                Err(full) => return Ok(Err(full)),
            };
            let (subnet, existing, why) = match &choice {
                Choice::Ours(entry) => (entry.subnet, Some(entry), "it is ours already"),
                Choice::Previous(subnet) => (*subnet, None, "we had it before"),
                Choice::Free(subnet) => (*subnet, None, "it is free"),
            };
            let attrs = self.attrs(config, existing);
            let value = attrs.to_json();
            self.rivals.writing(value.as_bytes());
            let written = match existing {
                Some(entry) => self.store.renew(entry, value.as_bytes(), self.terms.ttl).await?,
                None => self.store.create(subnet, value.as_bytes(), self.terms.ttl).await?,
            };
            match written {
                Written::Done(entry) => {
                    info!(key = entry.key, public_ip = %self.terms.public_ip, why, "lease taken");
                    if let Some(before) = self.held.as_ref().map(|held| held.entry.subnet)
                        && before != subnet
                    {
                        warn!(%before, now = %subnet, "this node has another subnet now");
                    }
                    self.rivals.wrote(entry.revision);
                    self.rivals.moved();
                    self.meters.lease.taken(self.lasts(&entry));
                    self.leases.put_own(&entry);
                    self.held = Some(Held { entry, attrs, renew_at: self.terms.next_renewal() });
                    self.taken = true;
                    return Ok(Ok(()));
                }
                Written::Conflict => {
                    self.rivals.refused();
                    debug!(%subnet, "another node was faster: choosing again");
                    // The list shows who was faster. What is refused without showing there (a directory
                    // of that name, a key in another spelling) is refused for as long as it is there.
                    if conflicts.attempts() == HARMLESS_CONFLICTS {
                        warn!(%subnet, "the lease's key is refused again and again: is there another of this subnet?");
                    }
                    let wait = conflicts.pause();
                    if conflicts.attempts() > 1 {
                        sleep(wait).await;
                    }
                    self.list().await?;
                    if self.leases.beyond() > 0
                        && let Some(entry) = self.store.entry_of(subnet).await?
                    {
                        // It may be ours, and in a listing there is no room for it.
                        tell(&self.leases.put_own(&entry));
                    }
                }
            }
        }
    }

    /// Whether no node could be built any more with the lease that we have: this host itself is in its subnet.
    pub(super) fn is_in_our_way(&self) -> bool {
        self.held.as_ref().is_some_and(|held| self.host.borrow().is_cut_off_by(held.entry.subnet))
    }

    /// Leases of ours that `config` does not allow, or that would cut this host off.
    fn misfits<'a>(&'a self, config: &'a NetworkConfig) -> impl Iterator<Item = &'a Entry> {
        let known = self.leases.iter().filter(|known| self.is_misfit(known, config));
        known.map(|known| &known.entry)
    }

    fn is_misfit(&self, Known { entry, attrs, .. }: &Known, config: &NetworkConfig) -> bool {
        attrs.public_ip == self.terms.public_ip
            && (!config.fits(entry.subnet) || self.host.borrow().is_cut_off_by(entry.subnet))
    }

    /// Has leases of ours given up that nobody could use, once another is held and this host runs by it: they would take
    /// the place of others. Whoever names our address can make any number of them, so that nothing waits for this.
    pub(super) fn release_misfits(&mut self) {
        let before = mem::take(&mut self.misfits);
        let Some((_, config)) = self.config.as_ref().filter(|_| self.taken && self.is_held()) else { return };
        let wanted = self.held.as_ref().map(|held| (config.clone(), held.entry.subnet));
        if self.runs.as_ref().is_some_and(|runs| *runs.borrow() != wanted) {
            return;
        }
        let keys = self.misfits(config).map(|entry| &entry.key).filter(|key| !self.is_key_held(key));
        self.misfits = keys.cloned().collect();
        if !self.misfits.is_empty() && self.misfits != before {
            let (count, keys) = (self.misfits.len(), self.misfits.iter().take(NAMED).collect::<Vec<_>>());
            warn!(count, ?keys, "leases that carry our address but cannot be ours are given up");
        }
    }

    fn is_key_held(&self, key: &str) -> bool {
        self.held.as_ref().is_some_and(|held| held.entry.key == key)
    }

    /// Gives up the next few of them, as many as a moment suffices for.
    pub(super) async fn release_some(&mut self) -> Result<(), StoreError> {
        let begun = Instant::now();
        while begun.elapsed() < A_MOMENT
            && let Some(key) = self.misfits.pop_front()
        {
            let Some((_, config)) = &self.config else { return Ok(()) };
            let known = self.leases.get(&key).filter(|_| !self.is_key_held(&key));
            let Some(known) = known.filter(|known| self.is_misfit(known, config)) else { continue };
            let entry = known.entry.clone();
            // What has changed meanwhile is looked at again with the next listing.
            if self.store.release(&entry).await? {
                debug!(key, value = shorten(&entry.value), "a lease of ours is given up");
            }
            self.leases.apply_event(&Event::Delete(key));
        }
        Ok(())
    }

    /// Has our lease say the address that we have now. What is ours goes by the earlier one until the store has it.
    pub(super) async fn readdress(&mut self) -> Result<(), Interrupted> {
        loop {
            let public_ip = *self.public_ip.borrow_and_update();
            if public_ip == self.terms.public_ip {
                return Ok(());
            }
            let ours = self.is_held();
            let Some(held) = self.held.as_ref().filter(|_| ours) else {
                // There is no lease of ours, or it says so already.
                self.terms.public_ip = public_ip;
                if let Some(held) = &mut self.held {
                    held.attrs.public_ip = public_ip;
                }
                self.refresh_held();
                return Ok(());
            };
            let attrs = LeaseAttrs { public_ip, ..held.attrs.clone() };
            let value = attrs.to_json();
            self.rivals.writing(value.as_bytes());
            match self.store.renew(&held.entry, value.as_bytes(), self.terms.ttl).await? {
                Written::Done(entry) => {
                    self.rivals.wrote(entry.revision);
                    info!(subnet = %entry.subnet, before = %self.terms.public_ip, now = %public_ip, "our lease says our new address");
                    self.meters.lease.renewed(self.lasts(&entry));
                    self.leases.apply_event(&Event::Put(entry.clone()));
                    self.held = Some(Held { entry, attrs, renew_at: self.terms.next_renewal() });
                    self.terms.public_ip = public_ip;
                }
                Written::Conflict => {
                    self.rivals.refused();
                    sleep(self.rivals.pause()).await;
                    self.list().await?;
                }
            }
        }
    }

    /// What our lease says. A VTEP MAC that we use, or once published, is kept: peers need not learn another.
    fn attrs(&self, config: &NetworkConfig, existing: Option<&Entry>) -> LeaseAttrs {
        let public_ip = self.terms.public_ip;
        let backend = match config.backend {
            Backend::Udp { .. } | Backend::Alloc => LeaseBackend::Udp,
            Backend::HostGw => LeaseBackend::HostGw,
            Backend::Vxlan { vni, .. } => {
                let in_use = self.held.as_ref().map(|held| held.attrs.clone());
                let published = existing.and_then(|entry| LeaseAttrs::from_json(&entry.value).ok());
                let mac_of = |attrs: LeaseAttrs| match attrs.backend {
                    LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
                    _ => None,
                };
                let vtep_mac = in_use
                    .and_then(mac_of)
                    .or_else(|| published.and_then(mac_of))
                    .or(self.terms.vtep_mac)
                    .unwrap_or_else(|| derive_vtep_mac(public_ip, vni));
                LeaseBackend::Vxlan { vni, vtep_mac }
            }
        };
        LeaseAttrs { public_ip, backend }
    }

    pub(super) async fn renew(&mut self) -> Result<(), Interrupted> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let value = held.attrs.to_json();
        self.rivals.writing(value.as_bytes());
        match self.store.renew(&held.entry, value.as_bytes(), self.terms.ttl).await? {
            Written::Done(entry) => {
                debug!(key = entry.key, "lease renewed");
                self.meters.lease.renewed(entry.expiry.map(|_| self.terms.ttl));
                self.rivals.wrote(entry.revision);
                self.leases.apply_event(&Event::Put(entry.clone()));
                held.entry = entry;
                held.renew_at = self.terms.next_renewal();
            }
            Written::Conflict => {
                self.rivals.refused();
                self.list().await?;
                if let Some(held) = &mut self.held {
                    held.renew_at = Instant::now() + self.rivals.pause();
                }
                self.hold().await?;
            }
        }
        Ok(())
    }
}

/// What comes before the next look at what has changed may take so long.
const A_MOMENT: Duration = Duration::from_millis(100);
/// Lost races that nodes starting together may see; more have another cause.
const HARMLESS_CONFLICTS: u32 = 4;
