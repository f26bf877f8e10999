//! Who takes the lease, and on what terms.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;

use overlay_wire::MacAddr;

/// Who takes the lease, and on what terms.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The address that the others send to; it is what makes an existing lease ours.
    pub public_ip: Ipv4Addr,
    /// The subnet this node had before, if known.
    pub previous: Option<Ipv4Net>,
    /// The VTEP MAC this node had before, if known.
    pub vtep_mac: Option<MacAddr>,
    /// For how long a lease is taken.
    pub ttl: Duration,
    /// How long before its expiry it is renewed.
    pub renew_margin: Duration,
}

impl Terms {
    /// When a lease taken now is renewed: the margin before its expiry, or, where the margin leaves
    /// less than a minute, after a third of its life.
    pub(super) fn next_renewal(&self) -> Instant {
        let after = match self.ttl.checked_sub(self.renew_margin) {
            Some(after) if after >= SHORTEST_RENEWAL => after,
            _ => self.ttl / 3,
        };
        Instant::now() + after
    }
}

/// A margin that leaves less was meant for leases of another length.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(ttl: u64, margin: u64) -> Terms {
        Terms {
            public_ip: Ipv4Addr::new(192, 168, 1, 12),
            previous: None,
            vtep_mac: None,
            ttl: Duration::from_secs(ttl),
            renew_margin: Duration::from_secs(margin),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_comes_the_margin_before_expiry() {
        let after = |ttl, margin| (terms(ttl, margin).next_renewal() - Instant::now()).as_secs();
        assert_eq!(after(86_400, 3_600), 82_800);
        assert_eq!(after(30, 3_600), 10);
        assert_eq!(after(3_600, 3_600), 1_200);
        // The longest margin that the flag takes leaves a minute; flannel's default, half a minute here.
        assert_eq!(after(86_400, 86_340), 60);
        assert_eq!(after(3_630, 3_600), 1_210);
    }
}
