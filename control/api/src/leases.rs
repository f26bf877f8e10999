//! All leases, as the store has them now: `GET /v1/leases`.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Show;
use overlay_support::text::{Align, millis, plural, table};

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

/// Of more, none is asked: each is a question of its own to the store.
pub const MOST_ASKED: usize = 10_000;
