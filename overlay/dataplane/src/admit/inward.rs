//! What arrives from the wire.

use std::net::IpAddr;

use overlay_wire::drops::DropReason;
use overlay_wire::ecn::Ecn;
use overlay_wire::icmp::IcmpError;
use overlay_wire::ip::Packet;
use overlay_wire::martian;
use overlay_wire::{Format, vxlan};

use super::hops::check_hops;
use crate::table::{Hop, Origin, PeerTable, Route};

/// How much is asked of the source of a packet from the wire. The form of a packet, its VNI and
/// its MAC are always checked, and an address of this host is never a valid inner source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceCheck {
    /// The outer source is a known peer, and the inner source belongs to that peer.
    Strict,
    /// The outer source is a known peer.
    Loose,
    /// Nothing more.
    Off,
}

/// Checks what stands in front of the inner packet and returns how long that is.
///
/// # Errors
/// It is not an encapsulation of this network, or not for this node.
#[inline]
pub fn check_encapsulation(payload: &[u8], format: Format) -> Result<usize, DropReason> {
    match format {
        Format::FlannelUdp => Ok(0),
        Format::Vxlan { vni, vtep_mac } => {
            vxlan::check(payload, vni, vtep_mac)?;
            Ok(vxlan::HEADER_LEN)
        }
    }
}

/// Decides whether `packet` goes to the device, having arrived from `outer` with `ecn` outside. Returns the peer that
/// it is from, if it is one. `announced` says whether the peer has announced an address as its own. It is asked only where
/// that decides, so it may note that it was asked.
///
/// # Errors
/// It does not go on; with what its sender is told, if it may be told.
#[inline]
pub fn inward<'a>(
    packet: &Packet<'_>,
    (outer, ecn): (IpAddr, Ecn),
    table: &'a PeerTable,
    check: SourceCheck,
    announced: impl FnOnce(&Hop, IpAddr) -> bool,
) -> Result<Option<&'a Hop>, (DropReason, Option<IcmpError>)> {
    let silently = |reason| (reason, None);
    let peer = check_source(packet, outer, table, check, announced).map_err(silently)?;
    check_destination(packet, table).map_err(silently)?;
    if ecn != Ecn::NotEct {
        packet.ecn().received(ecn).map_err(silently)?;
    }
    check_hops(packet, table.local()).map_err(|(reason, tell)| (reason, Some(tell)))?;
    Ok(peer)
}

/// Checks where `packet` claims to come from, having arrived from `outer`. Returns the peer that it is from, if
/// it is one.
#[inline]
fn check_source<'a>(
    packet: &Packet<'_>,
    outer: IpAddr,
    table: &'a PeerTable,
    check: SourceCheck,
    announced: impl FnOnce(&Hop, IpAddr) -> bool,
) -> Result<Option<&'a Hop>, DropReason> {
    if !table.carries(packet.version()) {
        return Err(DropReason::NotIp);
    }
    let origin = table.origin(outer, packet.src());
    match origin {
        Origin::Unknown if check != SourceCheck::Off => Err(match table.route(packet.src()) {
            Route::Peer(_) => DropReason::UnknownAddress,
            _ => DropReason::UnknownPeer,
        }),
        Origin::Peer(_) | Origin::Unknown if martian::is_martian(packet.src()) => {
            Err(DropReason::MartianSource)
        }
        _ if table.is_own(packet.src()) => Err(DropReason::OwnSource),
        Origin::Peer(hop) if check == SourceCheck::Strict => {
            match (table.route(packet.src()), packet.src()) {
                (Route::Peer(_), _) => Err(DropReason::OtherPeersSource),
                (_, src) if table.local().network.contains(src) => Err(DropReason::StaleSource),
                // An address of another node's, or of none, cannot be this one's, whatever it says.
                (_, src) if table.at(src).is_none() && !table.is_no_nodes(src) && announced(hop, src) => {
                    Ok(Some(hop))
                }
                _ => Err(DropReason::WrongSource),
            }
        }
        Origin::Owner(hop) | Origin::Peer(hop) => Ok(Some(hop)),
        Origin::Unknown => Ok(None),
    }
}

/// Checks that `packet` goes where a packet of the overlay may go.
#[inline]
fn check_destination(packet: &Packet<'_>, table: &PeerTable) -> Result<(), DropReason> {
    martian::check(packet)?;
    // Of fragments the first one tells, and without it the kernel joins the others to nothing. A node that would
    // send it on, to another's tunnel, would lend it its own address by masquerading.
    if packet.is_udp_to(table.local().port) && table.is_tunnel_end(packet.dst()) {
        return Err(DropReason::Nested);
    }
    Ok(())
}
