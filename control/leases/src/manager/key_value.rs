//! Leases in a store of keys and values, as flannel has them in etcd: each node chooses a free subnet.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::lease_manager::{LeaseList, LeaseManager, Links, ListedLease, Nodes, Released};
use crate::lease::{Ground, Judgement, Lease, LeaseAttrs, LeaseSet};
use crate::membership::{Membership, MembershipError, View};
use crate::store::{Entry, LeaseStore, Listing, StoreError, StoreId};

/// The leases of one store.
pub struct KeyValueManager {
    store: Arc<dyn LeaseStore>,
}

impl KeyValueManager {
    /// Those in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn LeaseStore>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl LeaseManager for KeyValueManager {
    fn id(&self) -> StoreId {
        self.store.id()
    }

    fn how_to_configure(&self, config: &str) -> String {
        self.store.how_to_configure(config)
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        self.store.config().await
    }

    async fn nodes(&self) -> Result<Nodes, StoreError> {
        let entries = self.store.list().await?.entries;
        let public_ips = entries.iter().filter_map(|entry| LeaseAttrs::public_ip_of(&entry.value)).collect();
        Ok(Nodes { leases: entries.len(), public_ips })
    }

    async fn leases(&self, view: &View, most_asked: usize) -> Result<LeaseList, StoreError> {
        let listing = self.store.list().await?;
        let few = listing.entries.len() <= most_asked;
        let refused = judge(&listing, view).refused.into_iter();
        let refused: HashMap<_, _> = refused.map(|refused| (refused.key, refused.reason)).collect();
        let refused = &refused;
        let described = |entry: Entry| async move {
            let expires_in = match entry.expiry {
                Some(_) if few => self.store.expires_in(&entry).await?,
                _ => None,
            };
            let attrs = LeaseAttrs::from_json(&entry.value);
            Ok::<_, StoreError>(ListedLease {
                subnet: entry.subnet,
                own: entry.subnet == view.lease.subnet
                    && attrs.as_ref().is_ok_and(|attrs| attrs.public_ip == view.lease.attrs.public_ip),
                attrs,
                expires_in,
                is_reservation: self.store.knows_expiry() && entry.expiry.is_none(),
                refused: refused.get(&entry.key).cloned(),
                key: entry.key,
            })
        };
        // A store that fails is not asked for the rest.
        let described = stream::iter(listing.entries).map(described).buffer_unordered(AT_ONCE);
        let mut leases: Vec<_> = described.try_collect().await?;
        leases.sort_by(|a, b| (a.subnet, &a.key).cmp(&(b.subnet, &b.key)));
        Ok(LeaseList { leases, other_keys: listing.skipped })
    }

    async fn release(&self, lease: &Lease, dry_run: bool) -> Result<Released, StoreError> {
        let ours = self.store.list().await?.entries.into_iter().find(|entry| {
            let attrs = LeaseAttrs::from_json(&entry.value);
            entry.subnet == lease.subnet && attrs.is_ok_and(|attrs| attrs.public_ip == lease.attrs.public_ip)
        });
        let Some(entry) = ours else { return Ok(Released::Nothing) };
        if entry.expiry.is_none() && self.store.knows_expiry() {
            return Ok(Released::Nothing);
        }
        Ok(match dry_run || self.store.release(&entry).await? {
            true => Released::Done,
            false => Released::Changed,
        })
    }

    async fn take_part(&self, links: Links) -> MembershipError {
        Membership::new(Arc::clone(&self.store), links.terms, links.earlier, links.views)
            .following(links.public_ip)
            .reloading(links.reload)
            .minding(links.host)
            .asking(links.questions)
            .once_it_runs(links.runs)
            .telling(links.standing)
            .measured(links.meters)
            .run()
            .await
    }
}

/// What a node with that view makes of a listing.
fn judge(listing: &Listing, view: &View) -> Judgement {
    let mut set = LeaseSet::default();
    set.apply(listing, Instant::now());
    set.note_peers(&view.peers);
    let (own, public_ip) = (Some(view.lease.subnet), view.lease.attrs.public_ip);
    Ground { config: &view.config, own, public_ip, host: &view.host }.judge(&set)
}

/// How many are asked for their expiry at a time.
const AT_ONCE: usize = 32;
