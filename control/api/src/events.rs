//! What was logged lately: `GET /v1/events`.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use overlay_support::text::printable;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up from 1 since the daemon's start.
    pub number: u64,
    /// When, in UTC, as in `2026-11-25T12:00:00.123Z`.
    pub time: Timestamp,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// What happened.
    pub message: String,
    /// And to what, by name.
    pub fields: BTreeMap<String, String>,
}

/// The answer of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// Since when they are counted: another moment is another daemon.
    pub since: Timestamp,
    /// Oldest first.
    pub events: Vec<Event>,
}

impl fmt::Display for Event {
    /// For a terminal: one line, whatever is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, level, message, fields, .. } = self;
        write!(f, "{time:.3} {:>5} {}", level.to_uppercase(), printable(message))?;
        fields.iter().try_for_each(|(name, value)| write!(f, " {name}={}", printable(value)))
    }
}
