//! What the control socket tells, noun by noun: each answer's JSON, and the table that `overlayctl` makes of it.
//!
//! The shapes here are the schema. Lengths are in bytes, times in milliseconds, counters begin with the data plane.

#![warn(missing_docs)]

pub mod capture;
pub mod client;
pub mod config;
pub mod drops;
pub mod events;
#[cfg(any(test, feature = "example"))]
pub mod example;
pub mod leases;
pub mod offloads;
pub mod path;
pub mod pcapng;
pub mod peers;
pub mod ping;
pub mod reach;
pub mod routes;
pub mod stats;
pub mod status;
pub mod trace;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::status::Status;

/// An answer of the control socket.
pub trait Show: Serialize + DeserializeOwned {
    /// What is asked for, as in `/v1/peers`.
    const RESOURCE: &'static str;
    /// Whether the text shows rates, for which two answers are compared.
    const HAS_RATES: bool = false;

    /// The answer for a terminal, with rates since an `earlier` one.
    fn to_text(&self, earlier: Option<&Self>) -> String;
}

impl Show for Status {
    const RESOURCE: &'static str = "/v1/status";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        self.to_text()
    }
}

/// What was added to a counter each second, between two answers; a data plane that was rebuilt begins anew.
pub fn rate(before: u64, now: u64, elapsed_ms: u64) -> f64 {
    now.saturating_sub(before) as f64 * 1000.0 / elapsed_ms.max(1) as f64
}
