//! The way to a peer.

use std::net::SocketAddr;
use std::sync::Arc;

use overlay_wire::ecn::Ecn;
use overlay_wire::ip::Version;
use overlay_wire::{Format, vxlan};

use super::node::{Local, Peer};
use crate::peer_state::{PeerFlag, PeerState};

/// Where a packet of one version to a peer goes and what stands in front of it.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The peer's end of the tunnel.
    pub to: SocketAddr,
    /// What is known of the peer beside its lease.
    pub state: Arc<PeerState>,
    /// Whether a peer's public address lies in the subnet: the tunnel's own packets could be routed into it.
    pub holds_tunnel_end: bool,
    header: [u8; vxlan::HEADER_LEN],
    header_len: usize,
}

impl Hop {
    /// The way to `peer` for packets of that version.
    pub(super) fn new(local: &Local, peer: &Peer, version: Version, state: Arc<PeerState>) -> Self {
        let to = SocketAddr::new(peer.public_ip.into(), local.port);
        let (header, header_len) = match (local.format, peer.vtep_mac) {
            (Format::Vxlan { vni, vtep_mac }, Some(dst)) => {
                (vxlan::header(version, vni, vtep_mac, dst), vxlan::HEADER_LEN)
            }
            _ => ([0; vxlan::HEADER_LEN], 0),
        };
        Self { to, state, holds_tunnel_end: false, header, header_len }
    }

    /// The encapsulation that goes between the outer UDP header and the inner packet.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
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
            .map(|mtu| mtu.saturating_sub(local.format.overhead(Version::of(self.to.ip()))));
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
