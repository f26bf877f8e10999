//! The capability that is held in reserve: to read what is somebody else's.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The right to read files that only their owner may read: etcd's keys are often root's or etcd's, iptables' tables root's. It is in effect only while that is read ([`reading`]).
pub const IN_RESERVE: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// Runs `read`, which may need what only root may read.
pub fn reading<T>(read: impl FnOnce() -> T) -> T {
    let held = capabilities(None).ok().filter(|held| held.permitted.contains(IN_RESERVE));
    // Where it cannot be had, the error is that of reading.
    let raised = held.filter(|held| {
        set_capabilities(None, CapabilitySets { effective: held.effective | IN_RESERVE, ..*held }).is_ok()
    });
    let result = read();
    if let Some(held) = raised {
        // To have less is never refused.
        let _ = set_capabilities(None, held);
    }
    result
}
