//! What was logged lately that is worth a person's eye: `/v1/events` on the control socket, the status page.
//!
//! A layer of the log keeps what is of level `info` or more urgent, the last few hundred events and no more, so
//! that it can be asked for without access to the journal.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use overlay_api::events::{Event, EventList};

/// The last events of this process. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Mutex<Ring>>);

#[derive(Debug)]
struct Ring {
    since: Timestamp,
    events: VecDeque<Event>,
    /// How many there have been.
    count: u64,
}

impl Default for Ring {
    #[expect(clippy::disallowed_methods, reason = "events have dates")]
    fn default() -> Self {
        Self { since: Timestamp::now(), events: VecDeque::new(), count: 0 }
    }
}

/// What of them is wanted.
#[derive(Debug, Deserialize)]
struct Wanted {
    /// Only those with a higher number.
    #[serde(default)]
    after: u64,
}

impl Events {
    /// Those with a number higher than `after`, oldest first.
    #[must_use]
    pub fn after(&self, after: u64) -> EventList {
        let ring = self.0.lock();
        let events = ring.events.iter().filter(|event| event.number > after).cloned().collect();
        EventList { since: ring.since, events }
    }

    /// Serves them at `/v1/events`, and with `?after=NUMBER` those since then.
    pub fn router(&self) -> Router {
        let answer = async |State(events): State<Self>, Query(Wanted { after }): Query<Wanted>| {
            Json(events.after(after))
        };
        Router::new().route("/v1/events", get(answer)).with_state(self.clone())
    }

    #[expect(clippy::disallowed_methods, reason = "events have dates")]
    fn push(&self, level: Level, message: String, fields: BTreeMap<String, String>) {
        let mut ring = self.0.lock();
        ring.count += 1;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        let (number, level) = (ring.count, level.as_str().to_ascii_lowercase());
        ring.events.push_back(Event { number, time: Timestamp::now(), level, message, fields });
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Libraries have words for those who debug them.
        let ours = metadata.target().starts_with("overlay");
        if ours && *metadata.level() <= Level::INFO {
            let mut seen = Seen::default();
            event.record(&mut seen);
            self.push(*metadata.level(), seen.message, seen.fields);
        }
    }
}

#[derive(Default)]
struct Seen {
    message: String,
    fields: BTreeMap<String, String>,
}

impl Seen {
    fn note(&mut self, field: &Field, value: String) {
        let value = overlay_support::json::cut(&value, LONGEST);
        match field.name() {
            "message" => self.message = value,
            name => _ = self.fields.insert(name.to_owned(), value),
        }
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.to_owned());
    }
}

/// Weeks of a quiet node, and the whole story of a bad hour.
const KEPT: usize = 256;
/// Characters of a message or a field: as much as says what is the matter.
const LONGEST: usize = 1000;

#[cfg(test)]
mod tests {
    use tracing::{debug, error, info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn logged(what: impl FnOnce()) -> Events {
        let events = Events::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(events.clone()), what);
        events
    }

    #[test]
    fn events_have_number_level_message_and_fields() {
        let events = logged(|| {
            info!(subnet = %"10.1.9.0/24", peers = 2, "forwarding");
            debug!("not worth an eye");
            error!(target: "h2::proto", "not ours");
            warn!(error = "gone", "the store does not answer");
        });
        let all = events.after(0).events;
        let told: Vec<_> = all.iter().map(|e| (e.number, e.level.as_str(), e.message.as_str())).collect();
        assert_eq!(told, [(1, "info", "forwarding"), (2, "warn", "the store does not answer")]);
        let fields: Vec<_> = all[0].fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(fields, [("peers", "2"), ("subnet", "10.1.9.0/24")]);
        assert_eq!(events.after(1).events, all[1..]);
        let json = serde_json::to_string(&events.after(0)).unwrap();
        assert_eq!(serde_json::from_str::<EventList>(&json).unwrap(), events.after(0));
    }

    #[test]
    fn only_the_last_ones_are_kept_and_none_is_too_long() {
        let events = logged(|| {
            for number in 0..KEPT + 3 {
                info!(number, "{}", "ü".repeat(5000));
            }
        });
        let all = events.after(0).events;
        assert_eq!((all.len(), all[0].number), (KEPT, 4));
        assert_eq!(all[0].message.chars().count(), LONGEST + 1);
    }

    #[test]
    fn a_line_for_the_terminal_holds_no_control_characters() {
        let events = logged(|| info!(key = "a\u{1b}[2J\nb", "one\nline"));
        let line = events.after(0).events[0].to_string();
        assert!(line.ends_with(r" INFO one\nline key=a\u{1b}[2J\nb"), "{line}");
    }
}
