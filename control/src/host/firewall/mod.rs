//! The firewall's part: [`nat`] keeps or rewrites sources in an nftables table of our own, [`forward`]
//! accepts forwarded packets in iptables, where docker's FORWARD policy would drop them.
//!
//! Both are brought to the wanted state by [`Firewall::sync`], at once and on a timer (`--iptables-resync`):
//! docker or an administrator may change the rules at any time, and iptables-legacy sends no event.

use tracing::info;

use self::forward::Forward;
use super::{Desired, HostError};

mod forward;
mod nat;

/// Keeps the rules of one overlay device in the kernel.
pub struct Firewall {
    desired: Desired,
    /// The kernel's listing of our table just after we had put it there: if it still reads so, nobody has
    /// touched it. (What we send and what is listed differ in spelling, so the two cannot be compared.)
    listing: Option<String>,
    forward: Forward,
}

impl Firewall {
    /// Nothing is done before [`sync`](Self::sync).
    pub fn new(desired: Desired) -> Self {
        let forward = Forward::new(&desired.device, desired.network);
        Self { desired, listing: None, forward }
    }

    /// Puts what is missing or changed; returns whether anything was. At first it always puts the NAT rules,
    /// in place of an earlier life's and without a moment in between.
    ///
    /// # Errors
    /// [`HostError::NoProgram`] without `nft`; otherwise what `nft` or iptables refused. NAT and forwarding
    /// do not wait for each other: one that fails does not keep the other from being put.
    pub async fn sync(&mut self) -> Result<bool, HostError> {
        let first = self.listing.is_none();
        let nat = self.sync_nat().await;
        let forward = if self.desired.forward_rules {
            self.forward.sync().await
        } else if first {
            forward::remove(&self.desired.device).await
        } else {
            Ok(false)
        };
        match (nat, forward) {
            (Ok(nat), Ok(forward)) => Ok(nat || forward),
            (Err(nat), Err(forward)) => Err(HostError::Several(vec![nat, forward])),
            (Err(e), Ok(_)) | (Ok(_), Err(e)) => Err(e),
        }
    }

    async fn sync_nat(&mut self) -> Result<bool, HostError> {
        if self.listing.is_some() && self.listing == nat::list(&self.desired.device).await? {
            return Ok(false);
        }
        if self.listing.take().is_some() {
            info!(device = self.desired.device, "the NAT rules were changed or removed: putting them back");
        }
        nat::replace(&self.desired).await?;
        self.listing = nat::list(&self.desired.device).await?;
        Ok(true)
    }
}

/// Removes all rules of `device`. Goes through to its end, whatever fails; rules that are not there, or whose
/// program is not installed, are no failure.
///
/// # Errors
/// [`HostError::Several`] with all that failed.
pub async fn remove(device: &str) -> Result<(), HostError> {
    let mut failed = Vec::new();
    match nat::remove(device).await {
        Ok(()) | Err(HostError::NoProgram { .. }) => {}
        Err(e) => failed.push(e),
    }
    if let Err(e) = forward::remove(device).await {
        failed.push(e);
    }
    if failed.is_empty() { Ok(()) } else { Err(HostError::Several(failed)) }
}
