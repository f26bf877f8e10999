//! The way to a peer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use overlay_wire::ecn::Ecn;
use overlay_wire::ip::Version;
use overlay_wire::{Format, vxlan};

use super::node::{Local, Peer};
use crate::peer_state::{PeerFlag, PeerState};

/// Where a packet of one version to a peer goes and what stands in front of it.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The address of the peer's end of the tunnel.
    pub address: IpAddr,
    /// And its port.
    pub port: u16,
    /// What is known of the peer beside its lease.
    pub state: Arc<PeerState>,
    /// Whether a peer's public address lies in the subnet: the tunnel's own packets could be routed into it.
    pub holds_tunnel_end: bool,
    /// Which of the peers it is.
    pub(super) peer: u32,
    header: [u8; vxlan::HEADER_LEN],
    header_len: u8,
}

impl Hop {
    /// The way to `peer`, the one of that index, for packets of that version.
    ///
    /// Each version is carried by the same outside, as flannel has it, where both nodes are on an underlay of that; else
    /// by the other. (Where they have none in common, sending tells.)
    pub(super) fn new(
        local: &Local,
        peer: &Peer,
        index: u32,
        version: Version,
        state: Arc<PeerState>,
    ) -> Self {
        let common = |outer: &Version| local.public.has(*outer) && peer.public.has(*outer);
        let outer = [version, version.other()].into_iter().find(common).unwrap_or(version);
        let (address, port) = (peer.public.prefer(outer), local.port);
        let (header, header_len) = match (local.format, peer.vtep_macs) {
            (Format::Vxlan { vni, vtep_mac }, Some(theirs)) => {
                (vxlan::header(version, vni, vtep_mac, theirs.prefer(outer)), vxlan::HEADER_LEN as u8)
            }
            _ => ([0; vxlan::HEADER_LEN], 0),
        };
        Self { address, port, state, holds_tunnel_end: false, peer: index, header, header_len }
    }

    /// The peer's end of the tunnel. (Made when it is asked for: a hop is to be small, since a packet to another peer than
    /// the one before reads it from memory.)
    #[inline]
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// The encapsulation that goes between the outer UDP header and the inner packet.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_len)]
    }

    /// What stands outside the inner packet that `bytes` begin with. flanneld, of flannel's UDP format, would lose a
    /// mark that a router makes there: to it, congestion shows by losses (RFC 6040, section 4.1, compatibility mode).
    #[inline]
    #[must_use]
    pub fn outer_ecn(&self, bytes: &[u8]) -> Ecn {
        match Ecn::of_packet(bytes) {
            Ecn::NotEct => Ecn::NotEct,
            inner if self.header_len > 0 || self.state.has(PeerFlag::Answers) => inner.outside(),
            _ => Ecn::NotEct,
        }
    }

    /// The largest inner packet, in bytes, that the path to the peer takes in one piece.
    #[must_use]
    pub fn mtu(&self, local: &Local) -> u32 {
        let path = self
            .state
            .path_mtu()
            .map(|mtu| mtu.saturating_sub(local.format.overhead(Version::of(self.address))));
        path.map_or(local.mtu, |mtu| mtu.min(local.mtu))
    }
}

/// What the table says about a destination.
#[derive(Debug)]
pub enum Route<'a> {
    /// A peer has it.
    Peer(&'a Hop),
    /// It is in this node's own subnet.
    Own,
    /// Nobody has it.
    None,
}
