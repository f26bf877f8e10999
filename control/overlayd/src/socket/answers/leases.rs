//! `GET /v1/leases`.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use overlay_api::leases::{Leases, MOST_ASKED, StoredLease};
use overlay_leases::lease::{Ground, Judgement, LeaseAttrs, LeaseBackend, LeaseSet};
use overlay_leases::membership::View;
use overlay_leases::store::{Entry, LeaseStore, Listing, StoreError};

/// Those in `store`, for a node with that view.
///
/// # Errors
/// The store cannot be asked.
pub(super) async fn leases(store: &dyn LeaseStore, view: &View) -> Result<Leases, StoreError> {
    let listing = store.list().await?;
    let few = listing.entries.len() <= MOST_ASKED;
    let judgement = judge(&listing, view);
    let refused: HashMap<&str, String> =
        judgement.refused.iter().map(|refused| (refused.key.as_str(), refused.reason.to_string())).collect();
    let refused = &refused;
    let described = |entry: Entry| async move {
        let expires_in = match entry.expiry {
            Some(_) if few => store.expires_in(&entry).await?,
            _ => None,
        };
        let attrs = LeaseAttrs::from_json(&entry.value);
        let backend = attrs.as_ref().ok().map(|attrs| &attrs.backend);
        Ok::<_, StoreError>(StoredLease {
            own: entry.subnet == view.lease.subnet
                && attrs.as_ref().is_ok_and(|attrs| attrs.public_ip == view.lease.attrs.public_ip),
            subnet: entry.subnet,
            public_ip: attrs.as_ref().ok().map(|attrs| attrs.public_ip),
            backend: backend.map(|backend| match backend {
                LeaseBackend::Other(name) => name.clone(),
                known => known.kind().map_or_else(String::new, |kind| kind.to_string()),
            }),
            vtep_mac: match backend {
                Some(LeaseBackend::Vxlan { vtep_mac, .. }) => Some(vtep_mac.to_string()),
                _ => None,
            },
            expires_in_ms: expires_in.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            reservation: store.knows_expiry() && entry.expiry.is_none(),
            error: attrs.err().map(|error| error.to_string()),
            refused: refused.get(entry.key.as_str()).cloned(),
            key: entry.key,
        })
    };
    // A store that fails is not asked for the rest.
    let described = stream::iter(listing.entries).map(described).buffer_unordered(AT_ONCE);
    let mut leases: Vec<_> = described.try_collect().await?;
    leases.sort_by(|a, b| (a.subnet, &a.key).cmp(&(b.subnet, &b.key)));
    let conflicts = view.conflicts.iter().map(ToString::to_string).collect();
    Ok(Leases { store: store.describe(), leases, conflicts, other_keys: listing.skipped })
}

/// What this node makes of them.
fn judge(listing: &Listing, view: &View) -> Judgement {
    let mut set = LeaseSet::default();
    set.apply(listing, Instant::now());
    set.note_peers(&view.peers);
    let (own, public_ip) = (Some(view.lease.subnet), view.lease.attrs.public_ip);
    Ground { config: &view.config, own, public_ip, host: &view.host }.judge(&set)
}

/// How many are asked for their expiry at a time.
const AT_ONCE: usize = 32;
