//! How the pods of other nodes are reached, as the control socket tells it.

use std::fmt;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Which way packets to a peer's pods go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Through the tunnel.
    Tunnel,
    /// As they are, by a route of their own.
    Direct,
    /// Nowhere, as far as we are concerned.
    None,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
            Self::None => "none",
        })
    }
}

/// What of the network is routed into the overlay's device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// All of it. If not, the other nodes' subnets only.
    pub whole: bool,
    /// What of this host's lies in the network, for people: the reason why not all of it is.
    pub overlaps: Vec<String>,
    /// Parts of the network that nobody has leased. They are unreachable here, so that the default route does not carry
    /// their packets off.
    pub rejected: Vec<Ipv4Net>,
}

impl Routed {
    /// What ends here where no other route leads: what is rejected, or all of the network, for as long as the device
    /// is gone that somebody has deleted.
    pub fn ends(&self, network: Ipv4Net) -> impl Iterator<Item = Ipv4Net> {
        self.rejected.iter().copied().chain(self.whole.then_some(network))
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        if self.whole {
            return "all of it".to_owned();
        }
        let rest = if self.rejected.is_empty() {
            "the rest goes by this host's own routes"
        } else {
            "what may be a pod's and is not leased is rejected"
        };
        format!(
            "only what other nodes have leased, as this host has in it: {}; {rest}",
            self.overlaps.join("; ")
        )
    }
}
