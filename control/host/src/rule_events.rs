//! Tells when the rules that packets of this host meet may have changed: netfilter's, IPsec policies, and those of
//! policy routing.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::events::{Multicast, NETLINK_NETFILTER, NETLINK_ROUTE, NFNLGRP_NFTABLES, Polled};
use super::firewall::generation;
use overlay_sys::xtables::TableInfo;

/// Changes from the moment of subscribing on.
pub struct RuleEvents {
    sockets: Vec<Multicast>,
    crowd: Crowd,
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
        Self { sockets: GROUPS.into_iter().filter_map(join).collect(), crowd: Crowd::default() }
    }

    /// Whether all is told that the kernel can tell.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.sockets.len() == GROUPS.len()
    }

    /// Waits until something may have changed, and for what comes with it. May be cancelled without losing a change.
    pub async fn changed(&mut self) {
        let Self { sockets, crowd } = self;
        crowd.over(sockets).await;
    }
}

/// Where events come from.
trait Source {
    /// Waits for the next one. May be cancelled.
    fn event(&mut self) -> impl Future<Output = ()> + Send;
}

impl Source for Vec<Multicast> {
    async fn event(&mut self) {
        if self.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.iter_mut().map(|socket| Box::pin(async { socket.receive().await.is_ok() }));
        let (works, at, _) = futures::future::select_all(waits).await;
        if !works {
            drop(self.remove(at));
        }
    }
}

/// Events that come together.
#[derive(Debug, Default)]
struct Crowd {
    /// When those that have come are told. It outlasts a cancelled wait: the first event is read by then.
    told_at: Option<Instant>,
}

impl Crowd {
    /// Waits for the first event, and a moment for those that come with it.
    async fn over(&mut self, source: &mut impl Source) {
        if self.told_at.is_none() {
            source.event().await;
        }
        sleep_until(*self.told_at.get_or_insert_with(|| Instant::now() + SETTLE)).await;
        while source.event().now_or_never().is_some() {}
        self.told_at = None;
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

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::time::timeout;

    use super::*;

    impl Source for UnboundedReceiver<()> {
        async fn event(&mut self) {
            self.recv().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_outlasts_the_wait_that_has_read_it() {
        let (events, mut seen) = unbounded_channel();
        let mut crowd = Crowd::default();
        for (count, cancelled_after) in
            [(2, None), (1, Some(Duration::ZERO)), (2, Some(SETTLE / 2)), (1, Some(SETTLE / 2))]
        {
            (0..count).for_each(|_| events.send(()).unwrap());
            if let Some(limit) = cancelled_after {
                let wait = timeout(limit, crowd.over(&mut seen)).await;
                assert!(wait.is_err(), "cancelled after {limit:?}");
            }
            let told = timeout(SETTLE * 2, crowd.over(&mut seen)).await;
            assert!(told.is_ok(), "{count} events, cancelled after {cancelled_after:?}");
            let more = timeout(SETTLE * 9, crowd.over(&mut seen)).await;
            assert!(more.is_err(), "all were told as one");
        }
    }
}
