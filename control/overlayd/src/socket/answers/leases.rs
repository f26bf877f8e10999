//! `GET /v1/leases`.

use overlay_api::leases::{Leases, MOST_ASKED, StoredLease};
use overlay_leases::lease::LeaseBackend;
use overlay_leases::manager::{LeaseManager, ListedLease};
use overlay_leases::membership::View;
use overlay_leases::store::StoreError;

/// Those of `manager`, for a node with that view.
///
/// # Errors
/// The store cannot be asked.
pub(super) async fn leases(manager: &dyn LeaseManager, view: &View) -> Result<Leases, StoreError> {
    let list = manager.leases(view, MOST_ASKED).await?;
    Ok(Leases {
        store: manager.id().to_string(),
        leases: list.leases.into_iter().map(described).collect(),
        conflicts: view.conflicts.iter().map(ToString::to_string).collect(),
        other_keys: list.other_keys,
    })
}

fn described(lease: ListedLease) -> StoredLease {
    let backend = lease.attrs.as_ref().ok().map(|attrs| &attrs.backend);
    StoredLease {
        own: lease.own,
        subnet: lease.subnet,
        public_ip: lease.attrs.as_ref().ok().map(|attrs| attrs.public_ip),
        backend: backend.map(|backend| match backend {
            LeaseBackend::Other(name) => name.clone(),
            known => known.kind().map_or_else(String::new, |kind| kind.to_string()),
        }),
        vtep_mac: match backend {
            Some(LeaseBackend::Vxlan { vtep_mac, .. }) => Some(vtep_mac.to_string()),
            _ => None,
        },
        expires_in_ms: lease.expires_in.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        reservation: lease.is_reservation,
        error: lease.attrs.err().map(|error| error.to_string()),
        refused: lease.refused.map(|reason| reason.to_string()),
        key: lease.key,
    }
}
