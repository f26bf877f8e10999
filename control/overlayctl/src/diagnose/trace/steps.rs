//! Which packet, and its way in steps.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde::Serialize;

use crate::carries::Carries;

/// Which packet.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Its source: a pod's, or this host's own.
    pub src: Ipv4Addr,
    /// Its destination.
    pub dst: Ipv4Addr,
    /// What it carries.
    pub carries: Option<Carries>,
    /// Its length, in bytes, if it is not the shortest.
    pub size: Option<usize>,
    /// From which address it arrives, if not from the node that may send it.
    pub outer: Option<Ipv4Addr>,
}

/// The way of a packet.
#[derive(Debug, Serialize)]
pub struct Trace {
    /// What comes after what. The last one may drop it.
    pub steps: Vec<Step>,
}

/// One thing that happens to the packet.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// What happens.
    pub text: String,
    /// Why the packet does not get beyond it.
    pub dropped: Option<Dropped>,
}

/// The end of a packet.
#[derive(Debug, Serialize)]
pub struct Dropped {
    /// As `overlayctl drops` and the metrics name it, if it is the data plane that drops.
    pub reason: Option<String>,
    /// What to do.
    pub remedy: String,
}

impl Trace {
    /// Whether the packet gets through this host.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.steps.iter().all(|step| step.dropped.is_none())
    }

    /// For a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for Step { step, text, dropped } in &self.steps {
            let _ = match dropped {
                None => writeln!(out, "{step:<12} {text}"),
                Some(Dropped { reason, remedy }) => {
                    let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                    writeln!(out, "{step:<12} DROPPED{reason}: {text}\n{:<12} remedy: {remedy}", "")
                }
            };
        }
        out
    }

    pub(super) fn pass(&mut self, step: &'static str, text: impl Into<String>) {
        self.steps.push(Step { step, text: text.into(), dropped: None });
    }

    /// The data plane drops it; `what` is known of it.
    pub(super) fn dropped(&mut self, step: &'static str, what: &str, dropped: &overlay_api::trace::Dropped) {
        let overlay_api::trace::Dropped { reason, meaning, remedy } = dropped;
        self.drop(step, Some(reason), format!("{what}. {}", meaning.trim_end_matches('.')), remedy);
    }

    pub(super) fn drop(
        &mut self,
        step: &'static str,
        reason: Option<&str>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let dropped = Some(Dropped { reason: reason.map(str::to_owned), remedy: remedy.into() });
        self.steps.push(Step { step, text: text.into(), dropped });
    }
}
