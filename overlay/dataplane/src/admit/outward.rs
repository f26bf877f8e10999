//! What the host gives to the overlay device.

use overlay_wire::drops::DropReason;
use overlay_wire::icmp::IcmpError;
use overlay_wire::ip::{Packet, Version};
use overlay_wire::segment;
use overlay_wire::vnet::VnetHdr;

use super::hops::check_hops;
use crate::table::{Hop, PeerTable, Route};

/// Why a packet does not go on, whom it was for, and what its sender is told.
#[derive(Debug)]
pub struct Refusal<'a> {
    /// Why.
    pub reason: DropReason,
    /// The way to the peer that it was for, as far as it is known.
    pub hop: Option<&'a Hop>,
    /// What its sender is told, if it may be told.
    pub tell: Option<IcmpError>,
}

/// No path is narrower (RFC 791: 576 bytes with the encapsulation), and small packets need not look at what is
/// known of theirs. To a device of a smaller MTU the kernel gives nothing larger.
const ALWAYS_FITS: usize = 512;

/// Decides which way `packet` goes, which the device has read behind `header`.
///
/// # Errors
/// It goes nowhere.
#[inline]
pub fn outward<'a>(
    packet: &Packet<'_>,
    header: &VnetHdr,
    table: &'a PeerTable,
) -> Result<&'a Hop, Refusal<'a>> {
    let local = table.local();
    let refuse = |reason, tell| Err(Refusal { reason, hop: None, tell });
    if !table.carries(packet.version()) {
        return refuse(DropReason::NotIp, None);
    }
    let hop = match table.route(packet.dst()) {
        Route::Peer(hop) => hop,
        Route::Own => return refuse(DropReason::OwnSubnet, None),
        // Nobody is told about a broadcast (RFC 1122, section 3.2.2).
        Route::None if local.network.v4().is_some_and(|network| packet.dst() == network.broadcast()) => {
            return refuse(DropReason::NoRoute, None);
        }
        Route::None => return refuse(DropReason::NoRoute, Some(IcmpError::NetUnreachable)),
    };
    if hop.holds_tunnel_end && is_tunnel(packet, table) {
        return Err(Refusal { reason: DropReason::Recursion, hop: Some(hop), tell: None });
    }
    let refuse = |reason, tell| Refusal { reason, hop: Some(hop), tell: Some(tell) };
    // Without DF the packet may be cut, and the kernel cuts the outer one where it must.
    let on_the_wire = match header.gso {
        Some(gso) => segment::headers_len(packet, gso.kind) + usize::from(gso.size),
        None => packet.bytes().len(),
    };
    if on_the_wire > ALWAYS_FITS && packet.dont_fragment() {
        let mtu = hop.mtu(local).max(least_mtu(packet.version()));
        if on_the_wire > mtu as usize {
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            return Err(refuse(DropReason::TooBig, IcmpError::FragmentationNeeded { mtu }));
        }
    }
    check_hops(packet, local).map_err(|(reason, tell)| refuse(reason, tell))?;
    Ok(hop)
}

/// Whether `packet` is one that this node has encapsulated itself. (Of fragments, the first one tells, and
/// without it the others are nothing.)
fn is_tunnel(packet: &Packet<'_>, table: &PeerTable) -> bool {
    packet.is_udp_to(table.local().port) && table.is_tunnel(packet.src(), packet.dst())
}

/// What every link carries, if need be in pieces (RFC 791, section 3.2; RFC 8200, section 5): the kernel cuts
/// the outer packet then.
const fn least_mtu(version: Version) -> u32 {
    match version {
        Version::V4 => 68,
        Version::V6 => 1280,
    }
}
