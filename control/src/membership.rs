//! The lease's way: from the store to what this node is and whom it reaches.
//!
//! 1. fetch the network configuration, waiting until there is one
//! 2. list all leases
//! 3. take a lease: our own earlier one, the previous subnet, or a free one
//! 4. publish what is known
//! 5. follow changes and renew the lease, publishing each time; after a gap, list again
//!
//! A store that fails is tried again for ever: what was published stays in force meanwhile.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use ipnet::Ipv4Net;
use overlay::MacAddr;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::json::JsonError;
use crate::lease::{Changes, Choice, Lease, LeaseAttrs, LeaseBackend, LeaseSet, NetworkFull, choose, key_of};
use crate::netconf::{Backend, NetworkConfig};
use crate::node::derive_vtep_mac;
use crate::store::{Entry, Event, LeaseStore, Listing, StoreError, Written};

/// Who takes the lease, and on what terms.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The address that the others send to; it is what makes an existing lease ours.
    pub public_ip: Ipv4Addr,
    /// The subnet this node had before, if known.
    pub previous: Option<Ipv4Net>,
    /// The VTEP MAC this node had before, if known.
    pub vtep_mac: Option<MacAddr>,
    /// For how long a lease is taken.
    pub ttl: Duration,
    /// How long before its expiry it is renewed.
    pub renew_margin: Duration,
}

/// What the store says, as far as this node is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The network's configuration.
    pub config: NetworkConfig,
    /// The same as text.
    pub config_text: String,
    /// Our own lease.
    pub lease: Lease,
    /// The other nodes of our backend type.
    pub peers: Vec<Lease>,
    /// Leases of another backend type.
    pub ignored: usize,
    /// Lease keys that cannot be read.
    pub garbage: usize,
    /// Whether changes are being followed.
    pub connected: bool,
}

/// The configuration cannot be used, and there is no earlier one to go on with.
#[derive(Debug, thiserror::Error)]
#[error("the network configuration in {store} cannot be used: {error}")]
pub struct BadConfig {
    /// Where it stands.
    pub store: String,
    /// What is wrong with it.
    pub error: JsonError,
}

/// One node's membership in its network.
pub struct Membership {
    store: Arc<dyn LeaseStore>,
    terms: Terms,
    config: Option<(String, NetworkConfig)>,
    /// The last configuration text that was complained about.
    complained: Option<String>,
    leases: LeaseSet,
    skipped: usize,
    held: Option<Held>,
    /// The address that the others are to send to from now on; `terms` has the one that the lease says.
    public_ip: watch::Receiver<Ipv4Addr>,
    out: watch::Sender<Option<View>>,
}

struct Held {
    entry: Entry,
    attrs: LeaseAttrs,
    renew_at: Instant,
}

/// Why following the store came to an end for now.
enum Interrupted {
    Store(StoreError),
    Full(NetworkFull),
    BadConfig(BadConfig),
}

impl From<StoreError> for Interrupted {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Membership {
    /// Membership through `store`, publishing to `out`. `config` is that of an earlier run, which
    /// stays in force if the store's turns out to be unusable.
    #[must_use]
    pub fn new(
        store: Arc<dyn LeaseStore>,
        terms: Terms,
        config: Option<(String, NetworkConfig)>,
        out: watch::Sender<Option<View>>,
    ) -> Self {
        Self {
            store,
            public_ip: watch::channel(terms.public_ip).1,
            terms,
            config,
            complained: None,
            leases: LeaseSet::default(),
            skipped: 0,
            held: None,
            out,
        }
    }

    /// Follows `public_ip`: when this host's address changes, the lease is kept and says the new one.
    #[must_use]
    pub fn following(mut self, public_ip: watch::Receiver<Ipv4Addr>) -> Self {
        self.public_ip = public_ip;
        self
    }

    /// Takes part until the task is dropped.
    ///
    /// Returns only if there is no configuration to go by.
    pub async fn run(mut self) -> BadConfig {
        let mut backoff = Backoff::default();
        let mut last_problem = None;
        loop {
            let problem = match self.follow(&mut backoff, &mut last_problem).await {
                Interrupted::BadConfig(error) => return error,
                Interrupted::Store(error) => error.to_string(),
                Interrupted::Full(error) => error.to_string(),
            };
            self.set_connected(false);
            let wait = backoff.next();
            // Said once, however long it lasts.
            if last_problem.as_ref() != Some(&problem) {
                warn!(store = self.store.describe(), %problem, "the lease store does not serve us; trying again, forwarding goes on");
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
    ) -> Result<std::convert::Infallible, Interrupted> {
        self.fetch_config().await?;
        let mut revision = self.list().await?;
        self.readdress().await?;
        self.hold().await?;
        loop {
            // Fused: its end can be seen while a burst is gathered.
            let mut events = self.store.watch(revision).await?.fuse();
            self.set_connected(true);
            if last_problem.take().is_some() {
                info!(store = self.store.describe(), "the lease store serves us again");
            }
            loop {
                let renew_at = self.held.as_ref().map_or_else(Instant::now, |held| held.renew_at);
                tokio::select! {
                    event = events.next() => {
                        let Some(event) = event else { break };
                        backoff.reset();
                        // A burst of changes is one publication.
                        let mut event = Some(event);
                        while let Some(next) = event {
                            let (at, change) = next?;
                            revision = at;
                            if change == Event::Relist {
                                self.fetch_config().await?;
                                revision = self.list().await?;
                            } else {
                                self.learn(change);
                            }
                            event = events.next().now_or_never().flatten();
                        }
                        if !self.is_held() {
                            self.hold().await?;
                        }
                        self.publish();
                    }
                    () = sleep_until(renew_at) => {
                        self.renew().await?;
                        self.publish();
                    }
                    // Nobody tells any more once the sender is gone.
                    Ok(()) = self.public_ip.changed() => {
                        self.readdress().await?;
                        self.hold().await?;
                        self.publish();
                    }
                }
            }
            // The store ended the watch; it goes on from where it was.
            sleep(backoff.next()).await;
        }
    }

    /// Step 1.
    async fn fetch_config(&mut self) -> Result<(), Interrupted> {
        let mut said = false;
        loop {
            match self.store.config().await? {
                Some(text) => return self.take_config(text).map_err(Interrupted::BadConfig),
                None if self.config.is_some() && self.held.is_some() => return Ok(()),
                None => {}
            }
            if !said {
                info!(store = self.store.describe(), "waiting for the network configuration");
                said = true;
            }
            sleep(CONFIG_RETRY).await;
        }
    }

    /// Makes `text` the configuration if there is none in force yet; later changes are only told.
    fn take_config(&mut self, text: String) -> Result<(), BadConfig> {
        let in_force = self.config.as_ref().map(|(text, _)| text);
        if in_force == Some(&text) {
            self.complained = None;
            return Ok(());
        }
        if self.complained.as_ref() == Some(&text) {
            return Ok(());
        }
        match NetworkConfig::parse(&text) {
            // Only a node that holds no lease yet can still become another.
            Ok(config) if self.held.is_none() => self.config = Some((text, config)),
            Ok(_) => {
                warn!(config = text, "the network configuration has changed: restart overlayd to apply it");
                self.complained = Some(text);
            }
            Err(error) if self.config.is_some() => {
                error!(config = text, %error, "the network configuration cannot be used: keeping the last good one");
                self.complained = Some(text);
            }
            Err(error) => return Err(BadConfig { store: self.store.describe(), error }),
        }
        Ok(())
    }

    /// Step 2. Returns the revision that the list is of.
    async fn list(&mut self) -> Result<i64, StoreError> {
        let listing: Listing = self.store.list().await?;
        self.skipped = listing.skipped;
        let changes = self.leases.apply(&listing);
        tell(&changes);
        self.refresh_held();
        Ok(listing.revision)
    }

    fn learn(&mut self, event: Event) {
        match event {
            Event::Config(Some(text)) => {
                if let Err(error) = self.take_config(text) {
                    error!(%error, "no usable network configuration yet");
                }
            }
            Event::Config(None) => warn!("the network configuration was removed: keeping the last one"),
            Event::Put(_) | Event::Delete(_) => {
                let changes = self.leases.apply_event(&event);
                tell(&changes);
                self.refresh_held();
            }
            Event::Relist => {}
        }
    }

    /// Keeps up with what the store says of our own key, so that a renewal compares with the latest.
    fn refresh_held(&mut self) {
        let Some(held) = &mut self.held else { return };
        match self.leases.get(held.entry.subnet) {
            Some(known) if known.attrs.public_ip == self.terms.public_ip => {
                held.entry = known.entry.clone();
                if known.attrs != held.attrs {
                    warn!(subnet = %held.entry.subnet, "somebody else has written our lease: it will be put right");
                    held.renew_at = held.renew_at.min(Instant::now() + PUT_RIGHT_AFTER);
                }
            }
            _ => {}
        }
    }

    /// Whether our key is still there and still ours.
    fn is_held(&self) -> bool {
        let held = self.held.as_ref().and_then(|held| self.leases.get(held.entry.subnet));
        held.is_some_and(|known| known.attrs.public_ip == self.terms.public_ip)
    }

    /// Step 3. Does nothing while the lease is held.
    async fn hold(&mut self) -> Result<(), Interrupted> {
        if let Some(held) = &self.held
            && !self.is_held()
        {
            warn!(subnet = %held.entry.subnet, "our lease is gone: taking one again");
            self.terms.previous = Some(held.entry.subnet);
        }
        let mut conflicts = Backoff::default();
        while !self.is_held() {
            let Some((_, config)) = &self.config else { return Ok(()) };
            let previous = self.terms.previous;
            let choice = choose(config, &self.leases, self.terms.public_ip, previous, &mut rand::rng())
                .map_err(Interrupted::Full)?;
            let (subnet, existing, why) = match &choice {
                Choice::Ours(entry) => (entry.subnet, Some(entry), "it is ours already"),
                Choice::Previous(subnet) => (*subnet, None, "we had it before"),
                Choice::Free(subnet) => (*subnet, None, "it is free"),
            };
            let attrs = self.attrs(config, subnet);
            let value = attrs.to_json();
            let written = match existing {
                Some(entry) => self.store.renew(entry, value.as_bytes(), self.terms.ttl).await?,
                None => self.store.create(subnet, value.as_bytes(), self.terms.ttl).await?,
            };
            match written {
                Written::Done(entry) => {
                    info!(%subnet, public_ip = %self.terms.public_ip, why, "lease taken");
                    self.leases.apply_event(&Event::Put(entry.clone()));
                    self.held = Some(Held { entry, attrs, renew_at: self.terms.next_renewal() });
                }
                Written::Conflict => {
                    debug!(%subnet, "another node was faster: choosing again");
                    // The list shows who was faster. What is refused without showing there (a directory
                    // of that name, a key in another spelling) is refused for as long as it is there.
                    if conflicts.attempts == HARMLESS_CONFLICTS {
                        warn!(%subnet, "the lease's key is refused again and again: is there another of this subnet?");
                    }
                    let wait = conflicts.next();
                    if conflicts.attempts > 1 {
                        sleep(wait).await;
                    }
                    self.list().await?;
                }
            }
        }
        self.publish();
        Ok(())
    }

    /// Has our lease say the address that we have now. What is ours goes by the earlier one until the store has it.
    async fn readdress(&mut self) -> Result<(), Interrupted> {
        loop {
            let public_ip = *self.public_ip.borrow_and_update();
            if public_ip == self.terms.public_ip {
                return Ok(());
            }
            let Some(held) = self.held.as_mut().filter(|held| {
                let known = self.leases.get(held.entry.subnet);
                known.is_some_and(|known| known.attrs.public_ip == self.terms.public_ip)
            }) else {
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
            match self.store.renew(&held.entry, value.as_bytes(), self.terms.ttl).await? {
                Written::Done(entry) => {
                    info!(subnet = %entry.subnet, before = %self.terms.public_ip, now = %public_ip, "our lease says our new address");
                    self.leases.apply_event(&Event::Put(entry.clone()));
                    self.held = Some(Held { entry, attrs, renew_at: self.terms.next_renewal() });
                    self.terms.public_ip = public_ip;
                }
                Written::Conflict => {
                    sleep(RENEW_AGAIN).await;
                    self.list().await?;
                }
            }
        }
    }

    /// What our lease says. A VTEP MAC once published is kept: peers need not learn another.
    fn attrs(&self, config: &NetworkConfig, subnet: Ipv4Net) -> LeaseAttrs {
        let public_ip = self.terms.public_ip;
        let backend = match config.backend {
            Backend::Udp { .. } | Backend::Alloc => LeaseBackend::Udp,
            Backend::HostGw => LeaseBackend::HostGw,
            Backend::Vxlan { vni, .. } => {
                let published = self.leases.get(subnet).map(|known| &known.attrs);
                let vtep_mac = match published {
                    Some(LeaseAttrs { backend: LeaseBackend::Vxlan { vtep_mac, .. }, public_ip: owner })
                        if *owner == public_ip && vtep_mac.is_unicast() =>
                    {
                        *vtep_mac
                    }
                    _ => self.terms.vtep_mac.unwrap_or_else(|| derive_vtep_mac(public_ip, vni)),
                };
                LeaseBackend::Vxlan { vni, vtep_mac }
            }
        };
        LeaseAttrs { public_ip, backend }
    }

    async fn renew(&mut self) -> Result<(), Interrupted> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let value = held.attrs.to_json();
        match self.store.renew(&held.entry, value.as_bytes(), self.terms.ttl).await? {
            Written::Done(entry) => {
                debug!(subnet = %entry.subnet, "lease renewed");
                self.leases.apply_event(&Event::Put(entry.clone()));
                held.entry = entry;
                held.renew_at = self.terms.next_renewal();
            }
            Written::Conflict => {
                self.list().await?;
                if let Some(held) = &mut self.held {
                    held.renew_at = Instant::now() + RENEW_AGAIN;
                }
                self.hold().await?;
            }
        }
        Ok(())
    }

    /// Step 4.
    fn publish(&self) {
        let (Some((text, config)), Some(held)) = (&self.config, &self.held) else { return };
        let peers = self.leases.peers(held.entry.subnet, config.backend.kind());
        let view = View {
            config: config.clone(),
            config_text: text.clone(),
            lease: Lease { subnet: held.entry.subnet, attrs: held.attrs.clone() },
            peers: peers.leases,
            ignored: peers.other_backend,
            garbage: self.leases.garbage() + self.skipped,
            connected: self.out.borrow().as_ref().is_some_and(|view| view.connected),
        };
        self.out.send_if_modified(|current| {
            let modified = current.as_ref() != Some(&view);
            *current = Some(view);
            modified
        });
    }

    fn set_connected(&self, connected: bool) {
        self.out.send_if_modified(|view| match view {
            Some(view) if view.connected != connected => {
                view.connected = connected;
                true
            }
            _ => false,
        });
    }
}

impl Terms {
    /// When a lease taken now is renewed: the margin before its expiry, or, where the margin leaves
    /// no time, after a third of its life.
    fn next_renewal(&self) -> Instant {
        let after = match self.ttl.checked_sub(self.renew_margin) {
            Some(after) if !after.is_zero() => after,
            _ => self.ttl / 3,
        };
        Instant::now() + after
    }
}

fn tell(changes: &Changes) {
    for subnet in &changes.put {
        debug!(%subnet, "lease learned");
    }
    for subnet in &changes.removed {
        debug!(%subnet, "lease gone");
    }
    for garbage in &changes.garbage {
        warn!(
            key = key_of(garbage.subnet),
            value = garbage.value,
            error = %garbage.error,
            "a lease key cannot be read: skipping it"
        );
    }
}

/// How often a configuration that is not there is looked for; flannel's period.
const CONFIG_RETRY: Duration = Duration::from_secs(1);
/// How soon a renewal that met another change is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// How soon a lease of ours that says something else is written again; no sooner, since whoever
/// wrote it may do so again.
const PUT_RIGHT_AFTER: Duration = Duration::from_secs(2);
/// Lost races that nodes starting together may see; more have another cause.
const HARMLESS_CONFLICTS: u32 = 4;

/// Growing waits between attempts, with jitter, so that nodes do not return all at once.
#[derive(Debug, Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let longest = BACKOFF_FIRST * 2u32.pow(self.attempts.min(BACKOFF_DOUBLINGS));
        self.attempts += 1;
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// The longest first wait.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// Up to 250 ms × 2⁵ = 8 s, so that a store that is back is found soon.
const BACKOFF_DOUBLINGS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(ttl: u64, margin: u64) -> Terms {
        Terms {
            public_ip: Ipv4Addr::new(192, 168, 1, 12),
            previous: None,
            vtep_mac: None,
            ttl: Duration::from_secs(ttl),
            renew_margin: Duration::from_secs(margin),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_comes_the_margin_before_expiry() {
        let after = |ttl, margin| (terms(ttl, margin).next_renewal() - Instant::now()).as_secs();
        assert_eq!(after(86_400, 3_600), 82_800);
        assert_eq!(after(30, 3_600), 10);
        assert_eq!(after(3_600, 3_600), 1_200);
    }

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        let first = backoff.next();
        assert!(first >= Duration::from_millis(125) && first <= Duration::from_millis(250));
        let last = (0..20).map(|_| backoff.next()).last().unwrap();
        assert!(last >= Duration::from_secs(4) && last <= Duration::from_secs(8));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(250));
    }
}
