//! What the kernel does for the data plane: `GET /v1/offloads`.

use overlay::offload::Offload;
use serde::{Deserialize, Serialize};

use super::{Align, Show, table};
use crate::node::Node;

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

impl OffloadStates {
    /// Those of a node's tunnel, of which some were asked for.
    #[must_use]
    pub fn of(node: &Node, asked: &[Offload]) -> Self {
        let Some(tunnel) = node.tunnel() else { return Self(Vec::new()) };
        let state = |offload: Offload| OffloadState {
            name: offload.label().to_owned(),
            what: what(offload).to_owned(),
            asked: asked.contains(&offload),
            on: tunnel.offloads.is_on(offload),
            held: node.why_not_whole().filter(|_| offload == Offload::TunnelGso),
        };
        Self(Offload::ALL.map(state).into())
    }
}

fn what(offload: Offload) -> &'static str {
    match offload {
        Offload::Tso => "TCP super-packets between the overlay device and us (TUN_F_TSO4)",
        Offload::Uso => "UDP super-packets between the overlay device and us (TUN_F_USO4, Linux 6.2)",
        Offload::Gso => "runs of datagrams are sent as one and cut by the kernel or the NIC (UDP_SEGMENT)",
        Offload::Gro => "datagrams of one sender are received as one (UDP_GRO)",
        Offload::TunnelGso => {
            "super-packets leave whole where virtual wires carry them (SKB_GSO_UDP_TUNNEL, Linux 6.17)"
        }
    }
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
