//! Tells when the rules that packets of this host meet may have changed: netfilter's, IPsec policies, and those of
//! policy routing.

use std::time::Duration;

use futures::FutureExt;
use overlay::xtables::TableInfo;
use tracing::debug;

use super::events::{Multicast, NETLINK_NETFILTER, NETLINK_ROUTE, NFNLGRP_NFTABLES, Polled};
use super::firewall::generation;

/// Changes from the moment of subscribing on.
pub struct RuleEvents {
    sockets: Vec<Multicast>,
}

impl RuleEvents {
    /// Subscribes to what the kernel tells. What it does not, or not us, [`Version`] sees.
    #[must_use]
    pub fn subscribe() -> Self {
        let join = |(protocol, group, what): (isize, u32, &str)| {
            Multicast::join(protocol, &[group])
                .inspect_err(|error| debug!(%error, "no events of {what}: they are looked at in turn"))
                .ok()
        };
        Self { sockets: GROUPS.into_iter().filter_map(join).collect() }
    }

    /// Whether all is told that the kernel can tell.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.sockets.len() == GROUPS.len()
    }

    /// Waits until something may have changed, and for what comes with it. May be cancelled.
    pub async fn changed(&mut self) {
        self.one().await;
        tokio::time::sleep(SETTLE).await;
        while self.one().now_or_never().is_some() {}
    }

    async fn one(&mut self) {
        if self.sockets.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.sockets.iter_mut().map(|socket| Box::pin(async { socket.receive().await.is_ok() }));
        let (works, at, _) = futures::future::select_all(waits).await;
        if !works {
            drop(self.sockets.remove(at));
        }
    }
}

/// What tells one state of netfilter's rules from another, at the cost of a few system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    nftables: Option<u32>,
    legacy: Vec<TableInfo>,
}

impl Version {
    /// That of now; `polled` asks about iptables-legacy.
    pub fn now(polled: &mut Polled) -> Self {
        polled.again();
        Self { nftables: generation::current(), legacy: polled.tables().to_vec() }
    }
}

const GROUPS: [(isize, u32, &str); 3] = [
    (NETLINK_NETFILTER, NFNLGRP_NFTABLES, "firewall rules"),
    (NETLINK_ROUTE, RTNLGRP_IPV4_RULE, "routing rules"),
    (NETLINK_XFRM, XFRMNLGRP_POLICY, "IPsec policies"),
];

/// What one command changes comes in several events.
const SETTLE: Duration = Duration::from_millis(20);

/// linux/netlink.h
const NETLINK_XFRM: isize = 6;
/// linux/xfrm.h
const XFRMNLGRP_POLICY: u32 = 4;
/// linux/rtnetlink.h
const RTNLGRP_IPV4_RULE: u32 = 8;
