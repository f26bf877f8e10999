//! The interface to the other nodes, for people.

use tracing::info;

use overlay_host::iface::{IfaceError, Underlay};
use overlay_support::problem::Problem;

/// Says which it is, and why.
pub(super) fn tell(underlay: &Underlay, what: &str) {
    info!(
        interface = underlay.name,
        address = %underlay.address,
        public_ip = %underlay.public_ip,
        mtu = underlay.mtu,
        reason = underlay.reason,
        "{what}"
    );
}

/// It cannot be looked at again, for this `error`.
pub(super) fn problem(underlay: &Underlay, error: &IfaceError) -> Problem {
    let Underlay { name, address, .. } = underlay;
    let text = format!("the interface {name} with the address {address} is not as it was: {error}");
    Problem::new("underlay", text)
}
