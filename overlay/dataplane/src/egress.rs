//! From the overlay device to the wire.
//!
//! 1. read a packet from the device, until there is none or the batch is full
//! 2. parse its header
//! 3. find the node that owns its destination, if it is to go on (`admit`)
//! 4. encapsulate it; a super-packet is cut into segments on the way, a checksum left for later filled
//! 5. send the batch with one system call a lane
//!
//! What cannot go on is dropped, counted, and where the rules say so, its sender is told.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_sys::wake::{StopFlag, Woken};
use overlay_wire::drops::DropReason;
use overlay_wire::ip::{Packet, protocol};
use overlay_wire::segment::fill_checksum;
use overlay_wire::tunnel::SuperPacket;
use overlay_wire::vnet::{self, VnetHdr};
use overlay_wire::vxlan;

use crate::admit;
use crate::answers::Answers;
use crate::batch::{Batch, Run};
use crate::idle::Idle;
use crate::peer_state::{Direction, PeerCounters};
use crate::stats::WorkerStats;
use crate::table::{Hop, TableReader};
use crate::tun::Device;
use crate::underlay::{Transmitter, Unsent};
use crate::witness::Witness;

/// One worker from the device to the wire.
pub struct Egress<D, T> {
    device: D,
    wire: T,
    table: TableReader,
    answers: Answers,
    stats: Arc<WorkerStats>,
    batch: Batch,
    /// Packets in the batch, as many as the wire will see, and their bytes.
    packets: u64,
    bytes: u64,
    peers: PeerCounters,
    witness: Witness,
}

/// Packets of a batch. Sixty-four are what the kernel's own NAPI budget takes at a time; more
/// would add delay to the first of them and little to throughput.
const BATCH: usize = 64;

impl<D: Device, T: Transmitter> Egress<D, T> {
    /// Reads from `device`, sends through `wire`.
    #[must_use]
    pub fn new(device: D, wire: T, table: TableReader, answers: Answers, stats: Arc<WorkerStats>) -> Self {
        let batch = Batch::new(BATCH, wire.lanes());
        let peers = PeerCounters::new(Direction::Egress);
        let witness = Witness::new(Direction::Egress, Arc::default(), Vec::new());
        Self { device, wire, table, answers, stats, batch, packets: 0, bytes: 0, peers, witness }
    }

    /// Shows what it forwards and drops to `witness`.
    #[must_use]
    pub fn watched_by(self, witness: Witness) -> Self {
        Self { witness, ..self }
    }

    /// Forwards until `stop` is raised, waiting as `idle` does when there is nothing to forward.
    ///
    /// # Errors
    /// The device is gone, or cannot be read any more.
    pub fn run(mut self, mut idle: Idle, stop: &StopFlag) -> io::Result<()> {
        while !stop.is_raised() {
            self.stats.round();
            if self.step()? > 0 {
                idle.busy();
            } else if idle.wait(self.device.readiness(), stop)? == Woken::Stopped {
                break;
            }
        }
        Ok(())
    }

    /// Forwards what there is to read, up to one batch, and returns the number of packets read.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn step(&mut self) -> io::Result<usize> {
        self.witness.begin();
        let read = self.fill()?;
        self.flush();
        self.peers.settle();
        Ok(read)
    }

    fn fill(&mut self) -> io::Result<usize> {
        let table = self.table.load();
        let counts_hops = admit::counts_hops(table.local());
        let lanes = self.batch.lanes();
        let takes_super_packets = self.wire.takes_super_packets();
        let mut read = 0;
        // Packets that are dropped fill no batch, and yet what was read before them must go out.
        while read < BATCH && !self.batch.is_full() {
            let buffer = self.batch.next_read();
            let len = match self.device.read(buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            read += 1;
            let Some((header, bytes)) = buffer[..len].split_first_chunk_mut::<{ vnet::LEN }>() else {
                self.stats.dropped(DropReason::Truncated);
                self.witness.read(None, &[], Some(DropReason::Truncated));
                continue;
            };
            let parsed = VnetHdr::parse(header).and_then(|header| Ok((header, Packet::parse(bytes)?)));
            let (header, mut packet) = match parsed {
                Ok(parsed) => parsed,
                Err(reason) => {
                    self.stats.dropped(reason);
                    self.witness.read(None, bytes, Some(reason));
                    continue;
                }
            };
            let hop = match admit::outward(&packet, &header, table) {
                Ok(hop) => hop,
                Err(refusal) => {
                    self.stats.dropped(refusal.reason);
                    if let Some(hop) = refusal.hop {
                        self.peers.dropped(&hop.state);
                    }
                    self.witness.read(refusal.hop.map(|hop| hop.to()), packet.bytes(), Some(refusal.reason));
                    if let Some(error) = refusal.tell {
                        self.answers.tell(error, table.local(), &packet, &self.stats);
                    }
                    continue;
                }
            };
            if counts_hops {
                packet.decrement_ttl();
            }
            let len = packet.bytes().len();
            let lane = flow_hash(&packet) as usize % lanes;
            let whole = if takes_super_packets { leaves_whole(&packet, &header, hop) } else { None };
            let pushed = match (header.gso, whole) {
                (_, Some(whole)) => Ok(self.batch.push_whole(lane, hop, whole)),
                (Some(gso), None) => self.batch.push_segments(lane, hop, len, gso),
                (None, None) if header.needs_csum => {
                    fill_checksum(&mut packet, &header).map(|()| self.batch.push(lane, hop, len))
                }
                (None, None) => Ok(self.batch.push(lane, hop, len)),
            };
            match pushed {
                Ok(pushed) => {
                    if self.witness.captures() {
                        self.witness.read(Some(hop.to()), self.batch.last(len), None);
                    }
                    self.stats.super_packet(pushed.packets as u64);
                    self.packets += pushed.packets as u64;
                    self.bytes += pushed.bytes as u64;
                }
                Err(reason) => {
                    self.stats.dropped(reason);
                    self.peers.dropped(&hop.state);
                    let bytes = &self.batch.next_read()[vnet::LEN..vnet::LEN + len];
                    self.witness.read(Some(hop.to()), bytes, Some(reason));
                }
            }
        }
        Ok(read)
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let Self { wire, batch, peers, stats, witness, packets, bytes, .. } = self;
        // What the witness has been shown already; nothing, unless somebody captures.
        let mut failed: Vec<(*const Run, usize)> = Vec::new();
        wire.transmit(batch, |Unsent { run, first, count, inner_len, error }| {
            *packets = packets.saturating_sub(count as u64);
            *bytes = bytes.saturating_sub(inner_len as u64);
            peers.lost(run.peer(), count, inner_len);
            let reason = match error.raw_os_error() {
                Some(libc::EMSGSIZE) => DropReason::TooBig,
                _ => DropReason::SendFailed,
            };
            for index in first..first + count {
                stats.dropped(reason);
                if witness.wants(reason) {
                    show(witness, batch, run, index, Some(reason));
                }
                if witness.captures() {
                    failed.push((run, index));
                }
            }
            // It may have taken the whole of the time to send, and the next may, too.
            stats.round();
        });
        for run in (0..batch.lanes()).flat_map(|lane| batch.runs(lane)) {
            peers.forwarded(run.peer(), run.count(), run.inner_len());
            if witness.captures() {
                let sent = (0..run.count()).filter(|index| !failed.contains(&(run as *const Run, *index)));
                sent.for_each(|index| show(witness, batch, run, index, None));
            }
        }
        stats.forwarded(*packets, *bytes);
        (self.packets, self.bytes) = (0, 0);
        self.batch.clear();
    }
}

/// Shows a datagram of a run to a witness that wants it.
fn show(witness: &mut Witness, batch: &Batch, run: &Run, index: usize, reason: Option<DropReason>) {
    let lane = (0..batch.lanes()).find(|lane| batch.runs(*lane).iter().any(|other| std::ptr::eq(other, run)));
    let Some(message) = run.singly().nth(index) else { return };
    let slices = message.slices.iter().map(|slice| &batch.bytes()[slice.start..slice.start + slice.len]);
    witness.sent(lane.unwrap_or(0), run.to(), &slices.collect::<Vec<_>>().concat(), run.header_len(), reason);
}

/// A number that all packets of a flow share, and that differs between flows: addresses and, for
/// TCP and UDP outside fragments, ports.
fn flow_hash(packet: &Packet<'_>) -> u32 {
    let ports = match (packet.protocol(), packet.payload()) {
        (protocol::TCP | protocol::UDP, [a, b, c, d, ..]) if !packet.is_fragment() => {
            u32::from_be_bytes([*a, *b, *c, *d])
        }
        _ => 0,
    };
    // Odd constants, so that each word counts in a way of its own; the upper bits are mixed best.
    let mixed = word(packet.src()).wrapping_mul(0x85eb_ca6b)
        ^ word(packet.dst()).wrapping_mul(0xc2b2_ae35)
        ^ ports.wrapping_mul(0x27d4_eb2f);
    mixed.wrapping_mul(0x9e37_79b1) >> 20
}

/// All of an address in one word.
fn word(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            // A subnet's pods differ in the lowest bits, subnets in some above the middle.
            let folded = bits as u64 ^ ((bits >> 64) as u64).rotate_left(16);
            folded as u32 ^ (folded >> 32) as u32
        }
    }
}

/// Whether `packet` is a super-packet that leaves uncut, over IPv4 only: behind virtual wires, where nobody has to cut it.
/// (A kernel's VXLAN device would take a run apart, look into each datagram, and join them again.)
fn leaves_whole(packet: &Packet<'_>, header: &VnetHdr, hop: &Hop) -> Option<SuperPacket> {
    if header.gso.is_none() || hop.header().len() != vxlan::HEADER_LEN || hop.address.is_ipv6() {
        return None;
    }
    let fits = |whole: &SuperPacket| hop.state.path_mtu().is_none_or(|mtu| whole.outer_len() <= mtu as usize);
    SuperPacket::of(packet, header).filter(fits).filter(|_| hop.state.claim_passthrough())
}

#[cfg(test)]
mod tests;
