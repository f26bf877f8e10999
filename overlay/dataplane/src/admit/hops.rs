//! Hops that a packet has left.

use overlay_wire::Format;
use overlay_wire::drops::DropReason;
use overlay_wire::icmp::IcmpError;
use overlay_wire::ip::Packet;

use crate::table::Local;

/// Whether each end of the tunnel counts as a hop, as flannel's UDP format has it. VXLAN leaves the time to live alone.
#[inline]
#[must_use]
pub fn counts_hops(local: &Local) -> bool {
    local.format == Format::FlannelUdp
}

/// Checks that `packet` has a hop left where ends of the tunnel count as hops.
#[inline]
pub(super) fn check_hops(packet: &Packet<'_>, local: &Local) -> Result<(), (DropReason, IcmpError)> {
    if counts_hops(local) && packet.ttl() <= 1 {
        return Err((DropReason::TtlExpired, IcmpError::TimeExceeded));
    }
    Ok(())
}
