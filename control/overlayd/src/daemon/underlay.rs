//! The interface to the other nodes: chosen, and told of.

use std::net::Ipv4Addr;

use tracing::info;

use overlay_flags::Flags;
use overlay_host::iface::{self, IfaceError, IfaceSpec, Underlay};
use overlay_support::problem::Problem;

/// The one that `flags` ask for, with what they ask; an `earlier` run may have had this address.
///
/// # Errors
/// There is none.
pub(super) async fn choose(
    flags: &Flags,
    earlier: Option<Ipv4Addr>,
) -> Result<(IfaceSpec, Underlay), IfaceError> {
    let spec = IfaceSpec { earlier, ..flags.iface_spec() };
    let underlay = iface::choose(&spec).await?;
    tell(&underlay, "interface chosen");
    Ok((spec, underlay))
}

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
