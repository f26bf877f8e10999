//! From the wire to the overlay device.
//!
//! 1. receive a batch with one system call; the kernel joins datagrams of one sender and length
//! 2. check the form: encapsulation, VNI and MAC ours, a whole IP packet inside
//! 3. check the source: sent by a known peer, and the inner source belongs to that peer; and the destination, so
//!    far as no router would forward to it
//! 4. take off the encapsulation, and join the segments of one flow, over the whole batch, to a super-packet
//! 5. write it to the device
//!
//! What cannot go on is dropped, counted, and where the rules say so, its sender is told.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use overlay_sys::wake::{StopFlag, Woken};
use overlay_wire::coalesce::{Coalescer, MAX_SEGMENTS};
use overlay_wire::drops::DropReason;
use overlay_wire::ecn::Ecn;
use overlay_wire::ip::{Packet, announced_len, protocol};
use overlay_wire::vnet::{Gso, GsoKind, VnetHdr};
use overlay_wire::{Format, vxlan};

use crate::admit::{self, SourceCheck};
use crate::answers::Answers;
use crate::idle::Idle;
use crate::offload::{Offload, Offloads, is_super_packet_refused};
use crate::peer_state::{Direction, PeerCounters};
use crate::stats::WorkerStats;
use crate::table::{Hop, PeerTable, TableReader};
use crate::tun::Device;
use crate::underlay::{Arrival, Receiver};
use crate::witness::Witness;

mod outlet;

use outlet::Outlet;

/// One worker from the wire to the device.
pub struct Ingress<D, R> {
    wire: R,
    table: TableReader,
    sink: Sink<D>,
}

/// What becomes of packets that have been received.
struct Sink<D> {
    check: SourceCheck,
    answers: Answers,
    offloads: Arc<Offloads>,
    coalescer: Coalescer,
    peers: PeerCounters,
    witness: Witness,
    outlet: Outlet<D>,
}

impl<D: Device, R: Receiver> Ingress<D, R> {
    /// Receives from `wire`, writes to `device`.
    #[must_use]
    pub fn new(
        device: D,
        wire: R,
        check: SourceCheck,
        table: TableReader,
        answers: Answers,
        stats: Arc<WorkerStats>,
        offloads: Arc<Offloads>,
    ) -> Self {
        let outlet = Outlet::new(device, stats);
        let peers = PeerCounters::new(Direction::Ingress);
        let witness = Witness::new(Direction::Ingress, Arc::default(), Vec::new());
        let sink = Sink { check, answers, offloads, coalescer: Coalescer::default(), peers, witness, outlet };
        Self { wire, table, sink }
    }

    /// Shows what it forwards and drops to `witness`.
    #[must_use]
    pub fn watched_by(mut self, witness: Witness) -> Self {
        self.sink.witness = witness;
        self
    }

    /// Forwards until `stop` is raised, waiting as `idle` does when there is nothing to forward.
    ///
    /// # Errors
    /// Sleeping on the wire failed: the process is out of memory.
    pub fn run(mut self, mut idle: Idle, stop: &StopFlag) -> io::Result<()> {
        while !stop.is_raised() {
            self.sink.outlet.stats.round();
            if self.step() > 0 {
                idle.busy();
            } else if idle.wait(self.wire.readiness(), stop)? == Woken::Stopped {
                break;
            }
        }
        while self.wire.is_pending() {
            self.step();
        }
        Ok(())
    }

    /// Forwards what has arrived, up to one batch, and returns how much was received.
    pub fn step(&mut self) -> usize {
        let Self { wire, table, sink } = self;
        let table = table.load();
        // An error of the socket (say, an ICMP error for something sent earlier) is cleared by
        // reporting it; there is nothing lost and nothing to do but to receive again.
        let received = wire.receive().unwrap_or(0);
        sink.witness.begin();
        for index in 0..received {
            let arrival = wire.arrival(index);
            sink.take(wire.bytes(), arrival, table);
        }
        sink.release(wire.bytes());
        sink.outlet.count();
        sink.peers.settle();
        received
    }
}

impl<D: Device> Sink<D> {
    /// Takes an arrival, which lies in `bytes`. The coalescer may still hold some of it afterwards.
    fn take(&mut self, bytes: &mut [u8], arrival: Arrival, table: &PeerTable) {
        let Arrival { from, ecn, place, segment_len, truncated } = arrival;
        let outer = from.ip();
        if truncated || place.is_empty() {
            self.witness.arrived(
                from,
                &bytes[place],
                table.local().format.header_len(),
                Some(DropReason::Truncated),
            );
            return self.dropped(DropReason::Truncated, outer, table);
        }
        let whole = unsegmented(&bytes[place.clone()], segment_len, table.local().format);
        let step = match (whole, segment_len) {
            (None, Some(segment_len)) => segment_len,
            _ => place.len(),
        };
        for start in place.clone().step_by(step) {
            let datagram = start..(start + step).min(place.end);
            let refused = self.datagram(bytes, datagram.clone(), (outer, ecn), whole, table).err();
            if let Some(reason) = refused {
                self.dropped(reason, outer, table);
            }
            self.witness.arrived(from, &bytes[datagram], table.local().format.header_len(), refused);
        }
    }

    /// Counts what came from `outer` and does not go on.
    fn dropped(&mut self, reason: DropReason, outer: IpAddr, table: &PeerTable) {
        self.outlet.stats.dropped(reason);
        if let Some(hop) = table.at(outer) {
            self.peers.dropped(&hop.state);
        }
    }

    /// Takes one datagram, which lies at `place` of `bytes`; `whole` says how its inner packet is
    /// to be cut, if it arrived uncut.
    fn datagram(
        &mut self,
        bytes: &mut [u8],
        place: Range<usize>,
        (outer, ecn): (IpAddr, Ecn),
        whole: Option<Gso>,
        table: &PeerTable,
    ) -> Result<(), DropReason> {
        let local = table.local();
        let start = place.start + admit::check_encapsulation(&bytes[place.clone()], local.format)?;
        let mut packet = Packet::parse(&mut bytes[start..place.end])?;
        let announced = |hop: &Hop, src| hop.state.sends_from(src);
        let peer = match admit::inward(&packet, (outer, ecn), table, self.check, announced) {
            Ok(peer) => peer,
            Err((reason, tell)) => {
                if let Some(error) = tell {
                    mark(&mut packet, ecn);
                    self.answers.tell(error, local, &packet, &self.outlet.stats);
                }
                return Err(reason);
            }
        };
        mark(&mut packet, ecn);
        if admit::counts_hops(local) {
            packet.decrement_ttl();
        }
        if let Some(hop) = peer {
            self.peers.forwarded(&hop.state, 1, packet.bytes().len());
        }
        if local.overlay_addresses.contains(packet.dst())
            && self.answers.echo(&packet, table, &self.outlet.stats)
        {
            return Ok(());
        }

        let end = start + packet.bytes().len();
        let header = VnetHdr::for_arrival(&packet, local.mtu as usize, whole);
        if let Some(hop) = peer
            && (header.needs_csum || packet.protocol() == protocol::TCP)
        {
            self.peers.judged(&hop.state, header.needs_csum);
            if header.needs_csum && header.gso.is_some() {
                self.answers.whole(packet.src(), hop, table);
            }
        }
        let tso = self.offloads.is_on(Offload::Tso) && header.gso.is_none();
        let uso = self.offloads.is_on(Offload::Uso);
        if tso && self.coalescer.offer(start, &packet, uso) {
            return Ok(());
        }
        if !self.coalescer.is_empty() {
            // What is held came before, and nothing can be added to it.
            self.release(bytes);
            let packet = Packet::parse(&mut bytes[start..end])?;
            if tso && self.coalescer.offer(start, &packet, uso) {
                return Ok(());
            }
        }
        self.write_arrival(&header, &mut bytes[start..end]);
        Ok(())
    }

    /// Writes a packet that has arrived in one piece. If it is a super-packet of a kind that the device does not
    /// know, it is cut here.
    fn write_arrival(&mut self, header: &VnetHdr, bytes: &mut [u8]) {
        let Err(error) = self.outlet.try_write(header, bytes) else { return };
        if let Some(gso) = header.gso.filter(|_| is_super_packet_refused(&error)) {
            self.offloads.switch_off(Offload::of(gso.kind));
            if self.outlet.write_cut(gso, bytes) {
                return;
            }
        }
        self.outlet.failed(bytes, &mut self.witness);
    }

    /// Writes what the coalescer holds, whose payload lies in `bytes`.
    fn release(&mut self, bytes: &mut [u8]) {
        if let Some(place) = self.coalescer.single() {
            // Alone it stays as it came, its checksum too.
            let header = arrival(&mut bytes[place.clone()]);
            self.outlet.write(&header, &bytes[place], &mut self.witness);
        } else if let Some(merged) = self.coalescer.merged() {
            let header = merged.vnet.to_bytes();
            let mut parts = [IoSlice::new(&[]); MAX_SEGMENTS + 2];
            parts[0] = IoSlice::new(&header);
            parts[1] = IoSlice::new(merged.headers);
            for (to, part) in parts[2..].iter_mut().zip(merged.parts) {
                *to = IoSlice::new(&bytes[part.clone()]);
            }
            let count = merged.parts.len();
            if let Err(error) = self.outlet.try_write_parts(&parts[..count + 2], count) {
                if let Some(gso) = merged.vnet.gso.filter(|_| is_super_packet_refused(&error)) {
                    self.offloads.switch_off(Offload::of(gso.kind));
                }
                // The segments are still what they were: in front of each payload, its headers.
                for part in merged.parts {
                    let segment = part.start - merged.headers.len()..part.end;
                    let header = arrival(&mut bytes[segment.clone()]);
                    self.outlet.write(&header, &bytes[segment], &mut self.witness);
                }
            }
        }
        self.coalescer.clear();
    }
}

/// Brings a router's mark `outside` to the inner packet, if it takes marks.
#[inline]
fn mark(packet: &mut Packet<'_>, outside: Ecn) {
    if outside != Ecn::NotEct
        && let Ok(inside) = packet.ecn().received(outside)
    {
        packet.set_ecn(inside);
    }
}

/// The header for a packet that has been parsed before and fits the MTU.
fn arrival(bytes: &mut [u8]) -> VnetHdr {
    let packet = Packet::parse(bytes);
    packet.map_or_else(
        |_| VnetHdr::default(),
        |packet| VnetHdr::for_arrival(&packet, packet.bytes().len(), None),
    )
}

/// Whether `bytes` are, in spite of `segment_len`, one datagram: a UDP super-packet that a kernel
/// VXLAN peer sent over a virtual wire arrives uncut, behind one VXLAN header, and the segment
/// size that the socket tells is that of the inner packet.
fn unsegmented(bytes: &[u8], segment_len: Option<usize>, format: Format) -> Option<Gso> {
    let segment_len = segment_len?;
    let Format::Vxlan { .. } = format else { return None };
    let frame_len = vxlan::HEADER_LEN + announced_len(bytes.get(vxlan::HEADER_LEN..)?)?;
    let uncut = frame_len > segment_len && frame_len == bytes.len();
    uncut.then_some(Gso { kind: GsoKind::Udp, size: u16::try_from(segment_len).ok()? })
}

#[cfg(test)]
mod tests;
