//! What the loops would do with a packet that somebody describes: [`admit`] is asked, and nothing is sent or noted.

use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header,
    Ipv6Extensions, Ipv6Header, PacketBuilder,
};
use overlay_wire::drops::DropReason;
use overlay_wire::ecn::Ecn;
use overlay_wire::icmp::{self, IcmpError};
use overlay_wire::ip::{Packet, protocol};
use overlay_wire::vnet::VnetHdr;

use crate::admit::{self, SourceCheck};
use crate::table::{Hop, Local, Peer, PeerTable, Route};

/// A packet as somebody describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// Its source.
    pub src: IpAddr,
    /// Its destination, an address of the same version.
    pub dst: IpAddr,
    /// What it carries. ICMP is an echo request.
    pub protocol: u8,
    /// Source and destination port, with TCP and UDP.
    pub ports: (u16, u16),
    /// Its length in bytes; shorter than its headers it is not.
    pub len: usize,
    /// Whether no router may cut it.
    pub dont_fragment: bool,
    /// Its time to live, or hop limit.
    pub ttl: u8,
    /// What it says of congestion.
    pub ecn: Ecn,
}

/// No packet is as it is described: its addresses are of two versions, say, or it is longer than any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no packet has these addresses, this protocol and this length")]
pub struct NoPacket;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it goes on, and if not, why.
    pub outcome: Result<(), DropReason>,
    /// What its sender is told, unless it has been told often of late.
    pub told: Option<IcmpError>,
}

/// What becomes of a packet that the host gives to the overlay device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outward {
    /// Here.
    pub verdict: Verdict,
    /// The node that has its destination.
    pub to: Option<IpAddr>,
    /// The largest inner packet, in bytes, that goes there in one piece.
    pub mtu: Option<u32>,
    /// At the other end of the tunnel, if that asks of sources what [`SourceCheck::Strict`] does.
    pub far_end: Option<Verdict>,
}

/// What becomes of a packet that arrives from the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inward {
    /// Here.
    pub verdict: Verdict,
    /// Where it came from: as asked, or the node whose packet it can be, if there is any.
    pub outer: Option<IpAddr>,
}

impl Described {
    /// What becomes of it where the host gives it to the overlay device. `own` is the address by which others know this
    /// node.
    ///
    /// # Errors
    /// There is no such packet.
    pub fn outward(&self, table: &PeerTable, own: IpAddr) -> Result<Outward, NoPacket> {
        let mut bytes = self.bytes()?;
        let mut packet = Packet::parse(&mut bytes).map_err(|_| NoPacket)?;
        let refusal = match admit::outward(&packet, &VnetHdr::default(), table) {
            Ok(hop) => {
                let (to, mtu) = (hop.address, hop.mtu(table.local()));
                let outside = hop.outer_ecn(packet.bytes());
                if admit::counts_hops(table.local()) {
                    packet.decrement_ttl();
                }
                let far_end = far_end(table, self.dst, own);
                let far_end = far_end.map(|far| arrival(&packet, &far, SourceCheck::Strict, (own, outside)));
                let verdict = Verdict { outcome: Ok(()), told: None };
                return Ok(Outward { verdict, to: Some(to), mtu: Some(mtu), far_end });
            }
            Err(refusal) => refusal,
        };
        Ok(Outward {
            verdict: Verdict::refused(refusal.reason, refusal.tell, &packet),
            to: refusal.hop.map(|hop| hop.address),
            mtu: refusal.hop.map(|hop| hop.mtu(table.local())),
            far_end: None,
        })
    }

    /// What becomes of it where it arrives from `outer`, with `outside` in the outer header. Without an `outer` it comes
    /// from a node from which it passes, or else from any.
    ///
    /// # Errors
    /// There is no such packet.
    pub fn inward(
        &self,
        table: &PeerTable,
        check: SourceCheck,
        outer: Option<IpAddr>,
        outside: Ecn,
    ) -> Result<Inward, NoPacket> {
        let mut bytes = self.bytes()?;
        let packet = Packet::parse(&mut bytes).map_err(|_| NoPacket)?;
        let judge = |outer| (arrival(&packet, table, check, (outer, outside)), outer);
        let (verdict, outer) = match outer {
            Some(outer) => judge(outer),
            None => {
                // First the node that has its source.
                let owner = match table.route(self.src) {
                    Route::Peer(hop) => Some(hop),
                    Route::Own | Route::None => table.at(self.src),
                };
                let mut nodes = owner.into_iter().chain(table.hops()).map(|hop| judge(hop.address));
                let first = nodes.next();
                let found = first.into_iter().chain(nodes).find(|(verdict, _)| verdict.outcome.is_ok());
                // Of no node at all: from wherever, it is unknown.
                found.or(first).unwrap_or_else(|| judge(IpAddr::from([0; 4])))
            }
        };
        Ok(Inward { verdict, outer: Some(outer).filter(|outer| !outer.is_unspecified()) })
    }

    /// The packet.
    ///
    /// # Errors
    /// There is no such one.
    fn bytes(&self) -> Result<Vec<u8>, NoPacket> {
        if self.len > LONGEST {
            return Err(NoPacket);
        }
        let bytes = self.built(0)?;
        match self.len.saturating_sub(bytes.len()) {
            0 => Ok(bytes),
            payload => self.built(payload),
        }
    }

    fn built(&self, payload: usize) -> Result<Vec<u8>, NoPacket> {
        let (mut bytes, payload, (from, to)) = (Vec::new(), vec![0; payload], self.ports);
        let ip = PacketBuilder::ip(self.header()?);
        let written = match self.protocol {
            protocol::TCP => ip.tcp(from, to, 0, u16::MAX).write(&mut bytes, &payload),
            protocol::UDP => ip.udp(from, to).write(&mut bytes, &payload),
            protocol::ICMP => ip.icmpv4(Icmpv4Type::EchoRequest(ECHO)).write(&mut bytes, &payload),
            protocol::ICMPV6 => ip.icmpv6(Icmpv6Type::EchoRequest(ECHO)).write(&mut bytes, &payload),
            other => ip.write(&mut bytes, IpNumber(other), &payload),
        };
        written.map(|()| bytes).map_err(|_| NoPacket)
    }

    fn header(&self) -> Result<IpHeaders, NoPacket> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Ipv4Header {
                    ecn: IpEcn::try_new(self.ecn as u8).map_err(|_| NoPacket)?,
                    dont_fragment: self.dont_fragment,
                    time_to_live: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv4Header::default()
                };
                Ok(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6Header {
                    traffic_class: self.ecn as u8,
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                Ok(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
            }
            _ => Err(NoPacket),
        }
    }
}

impl Verdict {
    fn refused(reason: DropReason, tell: Option<IcmpError>, packet: &Packet<'_>) -> Self {
        Self { outcome: Err(reason), told: tell.filter(|error| icmp::may_answer(*error, packet)) }
    }
}

/// What becomes of `packet` where it arrives from an address and with a mark outside.
fn arrival(packet: &Packet<'_>, table: &PeerTable, check: SourceCheck, outside: (IpAddr, Ecn)) -> Verdict {
    // A question: it is not noted that a packet has come.
    let announced = |hop: &Hop, src| hop.state.has_announced(src);
    match admit::inward(packet, outside, table, check, announced) {
        Ok(_) => Verdict { outcome: Ok(()), told: None },
        Err((reason, tell)) => Verdict::refused(reason, tell, packet),
    }
}

/// The table of the node that has `dst`, so far as it can be told from here: it has the same leases.
fn far_end(table: &PeerTable, dst: IpAddr, own: IpAddr) -> Option<PeerTable> {
    let len = |peer: &Peer| {
        let subnets = peer.subnets.iter().filter(|subnet| subnet.contains(&dst));
        subnets.map(|subnet| subnet.prefix_len()).max()
    };
    let far = table.peers().iter().filter(|peer| len(peer).is_some()).max_by_key(|peer| len(peer))?;
    let here = table.local();
    let overlay_addresses = far.subnets.bases();
    let local = Local {
        subnets: far.subnets,
        overlay_addresses,
        public: far.public,
        addresses: far.public.iter().chain(overlay_addresses.iter()).collect(),
        ..here.clone()
    };
    let this = Peer { subnets: here.subnets, public: own.into(), vtep_macs: far.vtep_macs };
    let others = table.peers().iter().filter(|peer| *peer != far).cloned();
    Some(PeerTable::new(local, others.chain([this]).collect()))
}

/// No packet is longer (RFC 8200, section 3: what follows the header, and that).
const LONGEST: usize = 65_535 + 40;
const ECHO: IcmpEchoHeader = IcmpEchoHeader { id: 0, seq: 0 };

#[cfg(test)]
mod tests;
