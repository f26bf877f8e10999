//! The admission rule: which packets go on, out ([`outward`]) and in ([`inward`]), and what becomes of the others.
//!
//! It decides and does nothing: the loops ([`crate::egress`], [`crate::ingress`]) act on the decision and count it.

mod inward;
mod outward;

pub use inward::{SourceCheck, check_encapsulation, inward};
pub use outward::{Refusal, outward};

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
fn check_hops(packet: &Packet<'_>, local: &Local) -> Result<(), (DropReason, IcmpError)> {
    if counts_hops(local) && packet.ttl() <= 1 {
        return Err((DropReason::TtlExpired, IcmpError::TimeExceeded));
    }
    Ok(())
}
