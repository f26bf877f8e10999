//! All leases, as the store has them now: `GET /v1/leases`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use futures::{StreamExt, TryStreamExt, stream};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Align, Show, millis, plural, table};
use crate::lease::{Ground, Judgement, LeaseAttrs, LeaseBackend, LeaseSet};
use crate::membership::View;
use crate::store::{Entry, LeaseStore, Listing, StoreError};

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leases {
    /// Where they are, as in `etcd http://127.0.0.1:2379 /coreos.com/network`.
    pub store: String,
    /// By subnet.
    pub leases: Vec<StoredLease>,
    /// Nodes that share what only one may have: who they are, and what to do.
    pub conflicts: Vec<String>,
    /// Keys beside the leases whose name is not a subnet's.
    pub other_keys: usize,
}

/// A lease key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredLease {
    /// The key.
    pub key: String,
    /// The subnet that it names.
    pub subnet: Ipv4Net,
    /// Its owner.
    pub public_ip: Option<Ipv4Addr>,
    /// The owner's backend type.
    pub backend: Option<String>,
    /// The address that frames to the owner carry, with VXLAN.
    pub vtep_mac: Option<String>,
    /// Whether it is this node's.
    pub own: bool,
    /// When it ends unless it is renewed; nothing if it stays.
    pub expires_in_ms: Option<u64>,
    /// Whether it is kept for its owner without end, in a store that otherwise has leases end.
    pub reservation: bool,
    /// Why the value is no lease.
    pub error: Option<String>,
    /// Why the lease is not used.
    pub refused: Option<String>,
}

impl Leases {
    /// Those in `store`, for a node with that view.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub async fn of(store: &dyn LeaseStore, view: &View) -> Result<Self, StoreError> {
        let listing = store.list().await?;
        let few = listing.entries.len() <= MOST_ASKED;
        let judgement = judge(&listing, view);
        let refused: HashMap<&str, String> = judgement
            .refused
            .iter()
            .map(|refused| (refused.key.as_str(), refused.reason.to_string()))
            .collect();
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
        Ok(Self { store: store.describe(), leases, conflicts, other_keys: listing.skipped })
    }
}

impl Show for Leases {
    const RESOURCE: &'static str = "/v1/leases";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        let rows = self.leases.iter().map(|lease| {
            let dash = || "-".to_owned();
            let expiry = match (lease.expires_in_ms, lease.reservation) {
                (Some(ms), _) => format!("in {}", millis(ms)),
                (None, true) => "never (reservation)".to_owned(),
                (None, false) if self.leases.len() > MOST_ASKED => "not asked".to_owned(),
                (None, false) => "never".to_owned(),
            };
            vec![
                lease.subnet.to_string(),
                lease.public_ip.map_or_else(dash, |public_ip| public_ip.to_string()),
                lease.backend.clone().unwrap_or_else(dash),
                expiry,
                match (&lease.error, &lease.refused) {
                    (Some(error), _) => format!("cannot be read: {error}"),
                    (None, Some(reason)) => format!("not used: {reason}"),
                    (None, None) if lease.own => "this node".to_owned(),
                    (None, None) => String::new(),
                },
            ]
        });
        const COLUMNS: [(&str, Align); 5] = [
            ("SUBNET", Align::Left),
            ("OWNER", Align::Left),
            ("BACKEND", Align::Left),
            ("EXPIRES", Align::Left),
            ("", Align::Left),
        ];
        let mut out = format!("{} in {}\n", self.leases.len(), self.store);
        out += &table(&COLUMNS, rows.collect());
        for conflict in &self.conflicts {
            let _ = writeln!(out, "\nconflict: {conflict}");
        }
        if self.other_keys > 0 {
            let (count, s) = (self.other_keys, plural(self.other_keys));
            let _ = writeln!(out, "\nbeside them: {count} other key{s}");
        }
        out
    }
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
/// Of more, none is asked: each is a question of its own to the store.
const MOST_ASKED: usize = 10_000;
