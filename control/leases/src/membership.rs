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
//! when the lease is lost, until it has been taken again. Another configuration ([`apply`]) is in force, and the
//! earlier lease given up, only once this host can run it and a lease is held in it.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::lease::{Conflict, HostFacts, Lease, LeaseAttrs, LeaseSet, NetworkFull, Refused, Rivals};
use crate::meters::Meters;
use crate::netconf::NetworkConfig;
use crate::store::{Entry, LeaseStore, StoreError, key_of};
use overlay_support::backoff::Backoff;

mod apply;
mod candidate;
mod config;
mod follow;
mod learn;
mod own;
mod publish;
mod terms;
mod told;
mod view;

use candidate::Candidate;
pub use terms::Terms;
pub use view::{MembershipError, Question, Refusal, Running, Standing, View};

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
}

/// For who has none yet.
pub const EXAMPLE_CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// The first pause is up to 250 ms long and the longest up to 250 ms × 2⁵ = 8 s, so that a store that is back is found
/// soon.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(250), 5);
