//! What the kernel does for the data plane: `GET /v1/offloads`.

use serde::{Deserialize, Serialize};

use super::Show;
use overlay::offload::Offload;
use overlay_support::text::{Align, table};

/// The answer; none without a tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OffloadStates(pub Vec<OffloadState>);

/// One offload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OffloadState {
    /// Its name, as in `--offload`.
    pub name: String,
    /// What it is.
    pub what: String,
    /// Whether it was asked for.
    pub asked: bool,
    /// Whether it is in use; if it was asked for, the kernel has refused it.
    pub on: bool,
    /// Why it is not in use now, although it is to be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

impl Show for OffloadStates {
    const RESOURCE: &'static str = "/v1/offloads";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        if self.0.is_empty() {
            return "no offloads: this backend has no tunnel\n".to_owned();
        }
        let rows = self.0.iter().map(|OffloadState { name, what, asked, on, held }| {
            if let Some(reason) = held {
                return vec![name.clone(), "off".to_owned(), format!("because {reason}")];
            }
            let state = match (on, asked) {
                (true, _) => "on",
                // It also takes a backend and an interface that have a use for it.
                (false, true) if name == Offload::TunnelGso.label() => "not to be had here",
                (false, true) => "refused by the kernel",
                (false, false) => "off by --offload",
            };
            vec![name.clone(), state.to_owned(), what.clone()]
        });
        table(&[("OFFLOAD", Align::Left), ("STATE", Align::Left), ("WHAT", Align::Left)], rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_told_with_the_reason() {
        let state = |name: &str, asked, on| OffloadState {
            name: name.into(),
            what: String::new(),
            asked,
            on,
            held: None,
        };
        let states = OffloadStates(vec![
            state("tso", true, true),
            state("uso", true, false),
            state("gro", false, false),
            state("tunnel-gso", true, false),
        ]);
        let text = states.to_text(None);
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        let expected = [
            "tso         on",
            "uso         refused by the kernel",
            "gro         off by --offload",
            "tunnel-gso  not to be had here",
        ];
        assert_eq!(lines, expected);
    }
}
