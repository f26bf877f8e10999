//! What the log is told of leases. There may be any number of them, so the first few are named.

use std::collections::{BTreeSet, HashSet};

use tracing::{debug, error, info, warn};

use crate::lease::{Changes, Conflict, GRACE, Refused};

/// A lease's value for a message.
pub(super) fn shorten(value: &[u8]) -> String {
    overlay_support::json::shorten(&String::from_utf8_lossy(value))
}

pub(super) fn tell(changes: &Changes) {
    for subnet in &changes.put {
        debug!(%subnet, "lease learned");
    }
    for subnet in &changes.removed {
        debug!(%subnet, "lease gone");
    }
    if !changes.missing.is_empty() {
        warn!(
            count = changes.missing.len(),
            subnets = ?&changes.missing[..changes.missing.len().min(NAMED)],
            "leases are no longer in the store: their nodes have {} s to take them again",
            GRACE.as_secs()
        );
    }
    let more = changes.garbage.len().saturating_sub(NAMED);
    if more > 0 {
        warn!(more, "more lease keys cannot be read than are named: see 'overlayctl leases'");
    }
    for garbage in changes.garbage.iter().take(NAMED) {
        warn!(
            key = garbage.key,
            value = garbage.value,
            error = %garbage.error,
            "a lease key cannot be read: skipping it"
        );
    }
}

/// Says which leases are refused that were not before.
pub(super) fn tell_refused(before: &[Refused], now: &[Refused], count: usize) {
    let said: BTreeSet<(&str, String)> =
        before.iter().map(|refused| (refused.key.as_str(), refused.reason.to_string())).collect();
    let is_new = |refused: &&Refused| !said.contains(&(refused.key.as_str(), refused.reason.to_string()));
    let mut news = now.iter().filter(is_new);
    for Refused { key, public_ip, reason, .. } in news.by_ref().take(NAMED) {
        warn!(key, %public_ip, %reason, refused = count, "a lease is not used");
    }
    let more = news.count();
    if more > 0 {
        warn!(more, refused = count, "more leases are not used than are named: see 'overlayctl leases'");
    }
}

/// Says which conflicts have come, and which are over.
pub(super) fn tell_conflicts(before: &[Conflict], now: &[Conflict]) {
    let (said, there): (HashSet<_>, HashSet<_>) = (before.iter().collect(), now.iter().collect());
    let mut news = now.iter().filter(|conflict| !said.contains(conflict));
    news.by_ref().take(NAMED).for_each(|conflict| error!("{conflict}"));
    let more = news.count();
    if more > 0 {
        error!(more, "there are more conflicts than are named: see 'overlayctl leases'");
    }
    let mut over = before.iter().filter(|conflict| !there.contains(conflict));
    over.by_ref().take(NAMED).for_each(|conflict| info!("over: {conflict}"));
    let more = over.count();
    if more > 0 {
        info!(more, "more conflicts are over");
    }
}

/// Of many subnets in one line of the log, or of many lines about one thing, the first few.
pub(super) const NAMED: usize = 10;
