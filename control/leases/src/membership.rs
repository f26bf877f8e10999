//! The lease's way: from the store to what this node is and whom it reaches.
//!
//! 1. fetch the network configuration, waiting until there is one
//! 2. list all leases
//! 3. take a lease: our own earlier one, the previous subnet, or a free one; but first ask whether this host can
//!    run the network at all
//! 4. publish what is known
//! 5. follow changes and renew the lease, publishing each time; after a gap, list again
//!
//! A store that fails is tried again for ever: what was published stays in force meanwhile. So it does
//! when the lease is lost, until it has been taken again. Another configuration ([`candidate`]) is in force, and the
//! earlier lease given up, only once this host can run it and a lease is held in it.

use std::collections::VecDeque;
use std::future::ready;
use std::mem;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::Fuse;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::lease::{Conflict, Ground, HostFacts, Lease, LeaseAttrs, LeaseSet, NetworkFull, Refused, Rivals};
use crate::meters::Meters;
use crate::netconf::NetworkConfig;
use crate::store::key_of;
use crate::store::{Entry, Event, EventStream, LeaseStore, Listing, Revision, StoreError};
use overlay_support::backoff::Backoff;

mod candidate;
mod own;
mod terms;
mod told;
mod view;

pub use terms::Terms;
pub use view::{MembershipError, Question, Refusal, Running, Standing, View};

use candidate::Candidate;
use told::{shorten, tell, tell_conflicts, tell_refused};

/// One node's membership in its network.
pub struct Membership {
    store: Arc<dyn LeaseStore>,
    terms: Terms,
    /// The configuration in force.
    config: Option<(String, NetworkConfig)>,
    /// Another, which is to take its place.
    candidate: Option<Candidate>,
    /// Whether the store's configuration has been looked at: later changes are only told.
    looked: bool,
    /// A text that was to be applied and is no configuration: the next one is to be.
    unusable: Option<String>,
    /// The last configuration text that was complained about.
    complained: Option<String>,
    /// The last one whose keys were looked at.
    read: Option<String>,
    leases: LeaseSet,
    /// Peers of an earlier run, until the first listing.
    expected: Vec<Lease>,
    skipped: usize,
    /// Our lease, or the one of an earlier run; whether the store has it is told by `leases` alone.
    held: Option<Held>,
    /// Whether it was taken in this run.
    taken: bool,
    /// Whether this host has shown that it can run the configuration in force.
    fit: bool,
    /// The address that the others are to send to from now on; `terms` has the one that the lease says.
    public_ip: watch::Receiver<Ipv4Addr>,
    connected: bool,
    /// Whether it has been said that the lease is gone.
    lost: bool,
    /// What has been said of a network without a subnet for us.
    full: Option<NetworkFull>,
    /// Keys of ours that are to be given up.
    misfits: VecDeque<String>,
    /// What leases, ours among them, are judged by of this host.
    host: watch::Receiver<HostFacts>,
    rivals: Rivals,
    /// The conflicts that have been said.
    conflicts: Vec<Conflict>,
    /// The refused leases that have been said.
    refused: Vec<Refused>,
    /// Asks for the configuration to be read again and applied.
    reload: Arc<Notify>,
    /// Whether it has asked, and not been answered yet.
    reload_due: bool,
    /// Answers whether this host can run a network; without one it can run any.
    can_run: Option<mpsc::Sender<Question>>,
    /// Which network this host runs, with which subnet; without one it runs whatever is in force.
    runs: Option<watch::Receiver<Option<Running>>>,
    standing: watch::Sender<Standing>,
    meters: Meters,
    out: watch::Sender<Option<View>>,
}

struct Held {
    entry: Entry,
    attrs: LeaseAttrs,
    renew_at: Instant,
}

impl Held {
    /// The lease of an earlier run.
    fn earlier(Lease { subnet, attrs }: &Lease) -> Self {
        let (key, value) = (key_of(*subnet), attrs.to_json().into_bytes());
        let entry = Entry { key, subnet: *subnet, value, revision: 0, created: 0, expiry: None };
        Self { entry, attrs: attrs.clone(), renew_at: Instant::now() }
    }
}

/// Why following the store came to an end for now.
enum Interrupted {
    Store(StoreError),
    ForGood(MembershipError),
}

impl From<StoreError> for Interrupted {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Membership {
    /// Membership through `store`, publishing to `out`. The configuration of an `earlier` run stays
    /// in force if the store's turns out to be unusable; its peers that the store does not have are
    /// missing, not gone.
    #[must_use]
    pub fn new(
        store: Arc<dyn LeaseStore>,
        terms: Terms,
        earlier: Option<View>,
        out: watch::Sender<Option<View>>,
    ) -> Self {
        let held = earlier.as_ref().map(|view| Held::earlier(&view.lease));
        let (config, expected) =
            earlier.map(|view| ((view.config_text, view.config), view.peers.to_vec())).unzip();
        Self {
            store,
            public_ip: watch::channel(terms.public_ip).1,
            reload: Arc::default(),
            reload_due: false,
            can_run: None,
            runs: None,
            standing: watch::channel(Standing::default()).0,
            terms,
            config,
            candidate: None,
            looked: false,
            unusable: None,
            complained: None,
            read: None,
            leases: LeaseSet::default(),
            expected: expected.unwrap_or_default(),
            skipped: 0,
            held,
            taken: false,
            fit: false,
            connected: false,
            lost: false,
            full: None,
            misfits: VecDeque::new(),
            host: watch::channel(HostFacts::default()).1,
            rivals: Rivals::default(),
            conflicts: Vec::new(),
            refused: Vec::new(),
            meters: Meters::default(),
            out,
        }
    }

    /// Follows `public_ip`: when this host's address changes, the lease is kept and says the new one.
    #[must_use]
    pub fn following(mut self, public_ip: watch::Receiver<Ipv4Addr>) -> Self {
        self.public_ip = public_ip;
        self
    }

    /// Applies the network configuration anew whenever `reload` says so.
    #[must_use]
    pub fn reloading(self, reload: Arc<Notify>) -> Self {
        Self { reload, ..self }
    }

    /// Asks `host` whether it can run a network before a lease is taken in it.
    #[must_use]
    pub fn asking(self, host: mpsc::Sender<Question>) -> Self {
        Self { can_run: Some(host), ..self }
    }

    /// Gives up earlier leases only once `runs` says that this host runs by the one that is held.
    #[must_use]
    pub fn once_it_runs(self, runs: watch::Receiver<Option<Running>>) -> Self {
        Self { runs: Some(runs), ..self }
    }

    /// Tells `standing` what there is to say besides the view.
    #[must_use]
    pub fn telling(self, standing: watch::Sender<Standing>) -> Self {
        Self { standing, ..self }
    }

    /// Judges leases, ours among them, by what `host` says of this host: when the host itself comes to be in our
    /// subnet, another one is taken.
    #[must_use]
    pub fn minding(self, host: watch::Receiver<HostFacts>) -> Self {
        Self { host, ..self }
    }

    /// Counts on `meters`.
    #[must_use]
    pub fn measured(self, meters: Meters) -> Self {
        Self { meters, ..self }
    }

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
                let store = self.store.describe();
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
    ) -> Result<std::convert::Infallible, Interrupted> {
        let mut revision = self.begin().await?;
        loop {
            // Fused: its end can be seen while a burst is gathered.
            let mut events = self.store.watch(revision).await?.fuse();
            self.meters.store.watching();
            self.set_connected(true);
            if last_problem.take().is_some() {
                info!(store = self.store.describe(), "the lease store serves us again");
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

    /// Step 1.
    async fn fetch_config(&mut self) -> Result<(), Interrupted> {
        let mut said = false;
        loop {
            match self.store.config().await? {
                Some(text) => return self.take_config(text).map_err(Interrupted::ForGood),
                None if self.config.is_some() && self.held.is_some() => return Ok(()),
                None => {}
            }
            if !said {
                let (store, remedy) = (self.store.describe(), self.store.how_to_configure(EXAMPLE_CONFIG));
                info!(store, %remedy, "waiting for the network configuration");
                self.wait_for(format!("its network configuration in {store}: put one, as by {remedy}"));
                said = true;
            }
            sleep(CONFIG_RETRY).await;
        }
    }

    fn wait_for(&self, what: String) {
        self.standing.send_if_modified(|standing| {
            let now = Some(format!("overlayd waits for {what}"));
            let changed = standing.waits_for != now;
            standing.waits_for = now;
            changed
        });
    }

    /// Makes `text` the configuration while nothing runs, or that which takes the place of an earlier run's; other
    /// changes are only told.
    fn take_config(&mut self, text: String) -> Result<(), MembershipError> {
        let first_look = !std::mem::replace(&mut self.looked, true);
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
            Err(error) => return Err(MembershipError::BadConfig { store: self.store.describe(), error }),
        }
        Ok(())
    }

    /// Step 2. Returns the revision that the list is of.
    async fn list(&mut self) -> Result<i64, StoreError> {
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

    fn tell_beyond(&self) {
        let beyond = self.leases.beyond();
        self.standing.send_if_modified(|standing| std::mem::replace(&mut standing.beyond, beyond) != beyond);
    }

    fn learn(&mut self, event: Event) {
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
    fn refresh_held(&mut self) {
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

    /// Our key as the store has it, if it is still ours, and whether it says what we say. One that
    /// cannot be read is ours, unless it names somebody else.
    fn current(&self) -> Option<(&Entry, bool)> {
        let held = self.held.as_ref()?;
        match self.leases.get(&held.entry.key) {
            Some(known) => {
                let ours = known.attrs.public_ip == self.terms.public_ip;
                ours.then_some((&known.entry, known.attrs == held.attrs))
            }
            None => {
                let garbage = self.leases.get_garbage(&held.entry.key)?;
                let owner = LeaseAttrs::public_ip_of(&garbage.value);
                owner.is_none_or(|owner| owner == self.terms.public_ip).then_some((garbage, false))
            }
        }
    }

    fn is_held(&self) -> bool {
        self.current().is_some()
    }

    /// For how long a lease is held from now on; without end if its key has no expiry.
    fn lasts(&self, entry: &Entry) -> Option<Duration> {
        entry.expiry.map(|_| self.terms.ttl)
    }

    /// Step 4.
    fn publish(&mut self) {
        let (Some((text, config)), Some(held)) = (&self.config, &self.held) else { return };
        let ours = (held.entry.key.as_str(), &held.attrs);
        let host = self.host.borrow().clone();
        let (own, public_ip) = (Some(held.entry.subnet), self.terms.public_ip);
        let mut judgement = Ground { config, own, public_ip, host: &host }.judge(&self.leases);
        self.leases.note_use(&judgement);
        let refused_count = judgement.refused.len();
        judgement.refused.truncate(TOLD);
        tell_refused(&self.refused, &judgement.refused, refused_count);
        self.refused.clone_from(&judgement.refused);
        let mut conflicts = judgement.conflicts;
        conflicts.extend(self.rivals.conflicts(&self.leases, ours, self.terms.ttl, Instant::now()));
        tell_conflicts(&self.conflicts, &conflicts);
        self.conflicts.clone_from(&conflicts);
        self.standing.send_if_modified(|standing| standing.waits_for.take().is_some());
        let view = View {
            config: config.clone(),
            config_text: text.clone(),
            lease: Lease { subnet: held.entry.subnet, attrs: held.attrs.clone() },
            held: self.is_held(),
            peers: judgement.peers,
            ignored: judgement.other_backend,
            refused: judgement.refused,
            refused_count,
            garbage: self.leases.garbage() + self.skipped,
            conflicts,
            host,
            connected: self.connected,
        };
        self.out.send_if_modified(|current| {
            let modified = current.as_ref() != Some(&view);
            *current = Some(view);
            modified
        });
    }

    fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
        self.meters.store.set_connected(connected);
        self.out.send_if_modified(|view| match view {
            Some(view) if view.connected != connected => {
                view.connected = connected;
                true
            }
            _ => false,
        });
    }
}

/// When it is `time`; never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// When `told` says something new; never, if there is nobody to say it.
async fn changed<T>(told: &mut Option<watch::Receiver<T>>) {
    let changed = match told {
        Some(told) => told.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// For who has none yet.
pub const EXAMPLE_CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// How often a configuration that is not there is looked for; flannel's period.
const CONFIG_RETRY: Duration = Duration::from_secs(1);
/// Of leases that are not used, as many are named: there may be any number.
const TOLD: usize = 100;
/// Lost races that nodes starting together may see; more have another cause.
const HARMLESS_CONFLICTS: u32 = 4;

/// The first pause is up to 250 ms long and the longest up to 250 ms × 2⁵ = 8 s, so that a store that is back is found
/// soon.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(250), 5);
