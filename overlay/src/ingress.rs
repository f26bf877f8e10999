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
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

use crate::answers::Answers;
use crate::drops::DropReason;
use crate::idle::Idle;
use crate::offload::{Offload, Offloads, is_super_packet_refused};
use crate::peer_state::{Direction, Tally};
use crate::stats::WorkerStats;
use crate::sys::wake::{StopFlag, Woken};
use crate::table::{Hop, Origin, PeerTable, Route, TableReader};
use crate::tun::Device;
use crate::underlay::{Arrival, Receiver};
use crate::wire::coalesce::{Coalescer, MAX_SEGMENTS};
use crate::wire::ecn::Ecn;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{Packet, announced_len, protocol};
use crate::wire::martian;
use crate::wire::segment::{MAX_SEGMENT_HEADERS_LEN, Segments};
use crate::wire::vnet::{Gso, GsoKind, VnetHdr};
use crate::wire::{Format, vxlan};
use crate::witness::Witness;

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
    peers: Tally,
    witness: Witness,
    outlet: Outlet<D>,
}

/// The device, and what has been written to it.
struct Outlet<D> {
    device: D,
    stats: Arc<WorkerStats>,
    /// Packets written since the last count, as many as the wire saw, and their bytes.
    packets: u64,
    bytes: u64,
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
        let outlet = Outlet { device, stats, packets: 0, bytes: 0 };
        let peers = Tally::new(Direction::Ingress);
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
        let outer = *from.ip();
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
    fn dropped(&mut self, reason: DropReason, outer: Ipv4Addr, table: &PeerTable) {
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
        (outer, ecn): (Ipv4Addr, Ecn),
        whole: Option<Gso>,
        table: &PeerTable,
    ) -> Result<(), DropReason> {
        let local = table.local();
        let start = place.start + check_encapsulation(&bytes[place.clone()], local.format)?;
        let mut packet = Packet::parse(&mut bytes[start..place.end])?;
        let peer = admit(&packet, outer, table, self.check)?;
        if ecn != Ecn::NotEct {
            packet.set_ecn(packet.ecn().received(ecn)?);
        }
        if local.format == Format::FlannelUdp {
            if packet.ttl() <= 1 {
                self.answers.tell(IcmpError::TimeExceeded, local, &packet, &self.outlet.stats);
                return Err(DropReason::TtlExpired);
            }
            packet.decrement_ttl();
        }
        if let Some(hop) = peer {
            self.peers.forwarded(&hop.state, 1, packet.bytes().len());
        }
        if packet.dst() == local.overlay_address && self.answers.echo(&packet, table, &self.outlet.stats) {
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
            match self.outlet.device.write(&parts[..count + 2]) {
                Ok(()) => self.outlet.written(&parts[1..count + 2], count),
                Err(error) => {
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
        }
        self.coalescer.clear();
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

impl<D: Device> Outlet<D> {
    /// Writes a packet, behind its virtio header.
    fn write(&mut self, header: &VnetHdr, packet: &[u8], witness: &mut Witness) {
        if self.try_write(header, packet).is_err() {
            self.failed(packet, witness);
        }
    }

    fn try_write(&mut self, header: &VnetHdr, packet: &[u8]) -> io::Result<()> {
        let header = header.to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        self.device.write(&parts)?;
        self.written(&parts[1..], 1);
        Ok(())
    }

    /// Writes the segments of a super-packet, which counts as the one packet that it was on the wire. Whether all
    /// have been written.
    fn write_cut(&mut self, gso: Gso, packet: &mut [u8]) -> bool {
        let Ok(parsed) = Packet::parse(packet) else { return false };
        let Ok(segments) = Segments::new(&parsed, gso) else { return false };
        let (plain, mut headers) = (VnetHdr::default().to_bytes(), [0; MAX_SEGMENT_HEADERS_LEN]);
        let headers = &mut headers[..segments.headers_len()];
        let mut failures = 0;
        for index in 0..segments.count() {
            segments.write_headers(index, headers);
            let payload = &parsed.bytes()[segments.payload(index)];
            let parts = [IoSlice::new(&plain), IoSlice::new(headers), IoSlice::new(payload)];
            failures += usize::from(self.device.write(&parts).is_err());
        }
        if failures == 0 {
            self.written(&[IoSlice::new(parsed.bytes())], 1);
        }
        failures == 0
    }

    /// The device has refused `packet`.
    fn failed(&mut self, packet: &[u8], witness: &mut Witness) {
        self.stats.dropped(DropReason::WriteFailed);
        witness.unwritten(packet, DropReason::WriteFailed);
    }

    /// A packet made of `parts` has been written, which the wire saw as `packets` ones, each with headers as
    /// long as the first part.
    fn written(&mut self, parts: &[IoSlice<'_>], packets: usize) {
        self.stats.super_packet(packets as u64);
        self.packets += packets as u64;
        let repeated = parts[0].len() * (packets - 1);
        self.bytes += repeated as u64 + parts.iter().map(|part| part.len() as u64).sum::<u64>();
    }

    fn count(&mut self) {
        if self.packets > 0 {
            self.stats.forwarded(self.packets, self.bytes);
        }
        (self.packets, self.bytes) = (0, 0);
    }
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

/// Checks what stands in front of the inner packet and returns how long that is.
fn check_encapsulation(payload: &[u8], format: Format) -> Result<usize, DropReason> {
    match format {
        Format::FlannelUdp => Ok(0),
        Format::Vxlan { vni, vtep_mac } => {
            vxlan::check(payload, vni, vtep_mac)?;
            Ok(vxlan::HEADER_LEN)
        }
    }
}

/// Checks where `packet` claims to come from, having arrived from `outer`. Returns the peer that it is from, if
/// it is one.
fn admit<'a>(
    packet: &Packet<'_>,
    outer: Ipv4Addr,
    table: &'a PeerTable,
    check: SourceCheck,
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
                (_, IpAddr::V4(src)) if table.local().network.contains(&src) => Err(DropReason::StaleSource),
                // An address of another node's cannot be this one's, whatever it says.
                (_, IpAddr::V4(src)) if table.at(src).is_none() && hop.state.has_announced(src) => {
                    check_destination(packet, table).map(|()| Some(hop))
                }
                _ => Err(DropReason::WrongSource),
            }
        }
        Origin::Owner(hop) | Origin::Peer(hop) => check_destination(packet, table).map(|()| Some(hop)),
        Origin::Unknown => check_destination(packet, table).map(|()| None),
    }
}

/// Checks that `packet` goes where a packet of the overlay may go.
fn check_destination(packet: &Packet<'_>, table: &PeerTable) -> Result<(), DropReason> {
    martian::check(packet)?;
    // Of fragments the first one tells, and without it the kernel joins the others to nothing. A node that would
    // send it on, to another's tunnel, would lend it its own address by masquerading.
    if packet.is_udp_to(table.local().port) && table.is_tunnel_end(packet.dst()) {
        return Err(DropReason::Nested);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;
    use crate::answers::tests::Sent;
    use crate::capture::{Filter, Tap};
    use crate::fake::{FakeDevice, FakeWire};
    use crate::peer_state::PeerTotals;
    use crate::table::tests::{local, peer};
    use crate::table::{Local, Peer, SharedTable};
    use crate::wire::ip::tests::udp_packet;
    use crate::wire::ip::{self, Version};
    use crate::wire::vnet;
    use crate::witness::Watched;

    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
    const VXLAN: Format = Format::Vxlan { vni: 1, vtep_mac: OURS };
    const MASTER: &str = "192.168.199.238";

    struct Rig {
        ingress: Ingress<FakeDevice, FakeWire>,
        device: FakeDevice,
        wire: FakeWire,
        icmp: Sent,
        stats: Arc<WorkerStats>,
        table: SharedTable,
    }

    fn rig(format: Format, check: SourceCheck) -> Rig {
        let peers = vec![peer("10.1.63.0/24", MASTER), peer("10.1.7.0/24", "192.168.199.7")];
        let table = SharedTable::new(PeerTable::new(local(format), peers));
        let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), Sent::default());
        let stats = Arc::new(WorkerStats::default());
        let answers = Answers::new(Box::new(icmp.clone()), Arc::default());
        let ingress = Ingress::new(
            device.clone(),
            wire.clone(),
            check,
            table.reader(),
            answers,
            Arc::clone(&stats),
            Arc::new(Offloads::new(&Offload::ALL)),
        );
        Rig { ingress, device, wire, icmp, stats, table }
    }

    fn frame(packet: &[u8]) -> Vec<u8> {
        let version = if packet[0] >> 4 == 6 { Version::V6 } else { Version::V4 };
        [&vxlan::header(version, 1, THEIRS, OURS)[..], packet].concat()
    }

    /// Receives one payload from `outer`; `None` if it was written to the device, else the reason.
    fn verdict(format: Format, check: SourceCheck, outer: &str, payload: &[u8]) -> Option<DropReason> {
        let mut rig = rig(format, check);
        rig.wire.arrive(outer, payload);
        assert_eq!(rig.ingress.step(), 1);
        let totals = rig.stats.totals();
        let mut reasons = DropReason::ALL.into_iter().filter(|reason| totals.drops(*reason) > 0);
        let reason = reasons.next();
        assert_eq!(reasons.next(), None, "counted once");
        assert_eq!(rig.device.take_written().len(), usize::from(reason.is_none()));
        reason
    }

    #[test]
    fn martians_and_source_routes_are_dropped_whatever_is_asked_of_sources() {
        let cases = [
            ("127.0.0.1", "10.1.9.3", DropReason::MartianSource),
            ("224.0.0.5", "10.1.9.3", DropReason::MartianSource),
            ("169.254.1.1", "10.1.9.3", DropReason::MartianSource),
            ("255.255.255.255", "10.1.9.3", DropReason::MartianSource),
            ("fe80::1", "fd00:0:0:9::3", DropReason::MartianSource),
            ("10.1.63.2", "127.0.0.1", DropReason::MartianDestination),
            ("10.1.63.2", "224.0.0.1", DropReason::MartianDestination),
            ("10.1.63.2", "255.255.255.255", DropReason::MartianDestination),
            ("fd00:0:0:63::2", "ff02::1", DropReason::MartianDestination),
        ];
        for check in [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off] {
            for (src, dst, reason) in cases {
                let mut rig = rig(VXLAN, check);
                rig.wire.arrive(MASTER, &frame(&udp_packet(src, dst, 64, b"x")));
                rig.ingress.step();
                assert_eq!(rig.stats.totals().drops(reason), 1, "{src} to {dst}");
                assert!(rig.device.take_written().is_empty());
            }
        }
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        rig.wire.arrive(MASTER, &frame(&martian::tests::with_options(&[131, 7, 4, 10, 1, 7, 2])));
        rig.ingress.step();
        assert_eq!(rig.stats.totals().drops(DropReason::SourceRoute), 1);
    }

    #[test]
    fn a_tunnel_inside_the_tunnel_is_dropped_whatever_the_leases_say() {
        let nested = |src: &str, dst: &str, port: u16, fragment: bool| {
            let inner = frame(&udp_packet("10.1.7.2", "10.1.9.3", 64, b"forged"));
            let mut bytes = Vec::new();
            ip::tests::builder(src, dst, 64).udp(4000, port).write(&mut bytes, &inner).unwrap();
            if fragment {
                // More are to follow.
                bytes[6] = 0x20;
                bytes[10..12].fill(0);
                let sum = !crate::wire::checksum::sum(&bytes[..20]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            bytes
        };
        // Also to another peer, whom this host would send it on to in its own name.
        let ours = ["192.168.1.12", "10.1.9.0", "2001:db8::12", "192.168.199.7"];
        for check in [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off] {
            for format in [VXLAN, Format::FlannelUdp] {
                let verdict = |src: &str, dst: &str, port, fragment| {
                    let mut rig = rig(format, check);
                    // Leases that make every source the sender's.
                    let everything =
                        Peer { subnet_v6: Some("::/0".parse().unwrap()), ..peer("0.0.0.0/0", MASTER) };
                    rig.table.publish(local(format), vec![everything, peer("10.1.7.0/24", "192.168.199.7")]);
                    let packet = nested(src, dst, port, fragment);
                    rig.wire.arrive(MASTER, &if format == VXLAN { frame(&packet) } else { packet });
                    rig.ingress.step();
                    assert_eq!(rig.device.take_written().len() as u64, rig.stats.totals().packets);
                    rig.stats.totals().drops(DropReason::Nested)
                };
                for dst in ours {
                    let src = if dst.contains(':') { "2001:db8::7" } else { "192.168.199.9" };
                    assert_eq!(verdict(src, dst, 8472, false), 1, "{dst}");
                    assert_eq!(verdict(src, dst, 8473, false), 0, "{dst}, another service");
                }
                assert_eq!(verdict("192.168.199.9", "192.168.1.12", 8472, true), 1, "a first fragment");
                assert_eq!(verdict("192.168.199.9", "10.1.9.3", 8472, false), 0, "a pod's own service");
            }
        }
    }

    #[test]
    fn an_address_of_this_host_is_no_peers_though_it_lies_in_its_subnet() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let peers = vec![peer("192.168.1.0/24", MASTER)];
        rig.table.publish(local(VXLAN), peers);
        for src in ["192.168.1.12", "192.168.1.13"] {
            rig.wire.arrive(MASTER, &frame(&udp_packet(src, "10.1.9.3", 64, b"x")));
        }
        rig.ingress.step();
        assert_eq!(rig.stats.totals().drops(DropReason::OwnSource), 1);
        assert_eq!(rig.device.take_written().len(), 1);
    }

    #[test]
    fn options_and_fragments_arrive_as_they_came() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let plain = udp_packet("10.1.63.2", "10.1.9.3", 64, b"hello");
        let router_alert = martian::tests::with_options(&[148, 4, 0, 0]);
        let timestamp = martian::tests::with_options(&[68, 4, 5, 0]);
        let fragment = |field: [u8; 2]| {
            let mut bytes = plain.clone();
            bytes[6..8].copy_from_slice(&field);
            bytes[10..12].fill(0);
            let sum = !crate::wire::checksum::sum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes
        };
        let sent = [
            plain.clone(),
            router_alert,
            timestamp,
            fragment([0x20, 0]),
            fragment([0x20, 1]),
            fragment([0, 2]),
        ];
        for packet in &sent {
            rig.wire.arrive(MASTER, &frame(packet));
        }
        rig.ingress.step();
        let written = rig.device.take_written();
        assert!(written.iter().map(|written| &written[vnet::LEN..]).eq(sent.iter().map(Vec::as_slice)));
    }

    #[test]
    fn a_frame_arrives_as_its_inner_packet() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let packet = udp_packet("10.1.63.2", "10.1.9.3", 64, b"hello");
        rig.wire.arrive(MASTER, &frame(&packet));
        assert_eq!(rig.ingress.step(), 1);
        assert_eq!(rig.device.take_written(), [[&[0; vnet::LEN][..], &packet].concat()]);
        assert_eq!((rig.stats.totals().packets, rig.stats.totals().bytes), (1, packet.len() as u64));
    }

    #[test]
    fn padding_of_a_short_frame_is_left_out() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let packet = udp_packet("10.1.63.2", "10.1.9.3", 64, b"");
        rig.wire.arrive(MASTER, &[frame(&packet), vec![0; 18]].concat());
        rig.ingress.step();
        assert_eq!(rig.device.take_written()[0][vnet::LEN..], packet);
    }

    #[test]
    fn flannels_udp_takes_a_hop_off_and_tells_when_none_is_left() {
        let mut rig = rig(Format::FlannelUdp, SourceCheck::Strict);
        rig.wire.arrive(MASTER, &udp_packet("10.1.63.2", "10.1.9.3", 2, b"x"));
        rig.wire.arrive(MASTER, &udp_packet("10.1.63.2", "10.1.9.3", 1, b"x"));
        assert_eq!(rig.ingress.step(), 2);
        let written = rig.device.take_written();
        assert_eq!(written.len(), 1);
        assert_eq!(written[0][vnet::LEN..], udp_packet("10.1.63.2", "10.1.9.3", 1, b"x"));
        assert_eq!(rig.stats.totals().drops(DropReason::TtlExpired), 1);
        let icmp = rig.icmp.0.lock().unwrap();
        assert_eq!(icmp[0].0, IpAddr::from([10, 1, 63, 2]));
        assert_eq!(icmp[0].1[20], 11);
    }

    #[test]
    fn every_truncation_of_a_frame_is_dropped() {
        let whole = frame(&udp_packet("10.1.63.2", "10.1.9.3", 64, b"hello"));
        for len in 0..whole.len() {
            let verdict = verdict(VXLAN, SourceCheck::Strict, MASTER, &whole[..len]);
            assert_eq!(verdict, Some(DropReason::Truncated), "{len} bytes");
        }
    }

    #[test]
    fn form_is_checked_whatever_the_source_check() {
        let packet = udp_packet("10.1.63.2", "10.1.9.3", 64, b"x");
        let with = |vni, dst| [&vxlan::header(Version::V4, vni, THEIRS, dst)[..], &packet].concat();
        for check in [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off] {
            let verdict = |payload: &[u8]| verdict(VXLAN, check, MASTER, payload);
            assert_eq!(verdict(&with(1, OURS)), None);
            assert_eq!(verdict(&with(2, OURS)), Some(DropReason::WrongVni));
            assert_eq!(verdict(&with(1, THEIRS)), Some(DropReason::WrongMac));
            assert_eq!(verdict(&with(1, MacAddr([0xff; 6]))), Some(DropReason::WrongMac));
            let mut frame = with(1, OURS);
            frame[0] = 0;
            assert_eq!(verdict(&frame), Some(DropReason::BadVxlanHeader));
            let mut frame = with(1, OURS);
            frame[vxlan::HEADER_LEN + 10] ^= 1;
            assert_eq!(verdict(&frame), Some(DropReason::Malformed));
        }
    }

    #[test]
    fn sources_are_checked_as_far_as_asked() {
        use DropReason::{
            OtherPeersSource, OwnSource, StaleSource, UnknownAddress, UnknownPeer, WrongSource,
        };
        use SourceCheck::{Loose, Off, Strict};
        let cases = [
            (MASTER, "10.1.63.2", [None, None, None]),
            (MASTER, MASTER, [None, None, None]),
            (MASTER, "10.1.7.2", [Some(OtherPeersSource), None, None]),
            (MASTER, "192.168.199.7", [Some(WrongSource), None, None]),
            (MASTER, "10.1.99.2", [Some(StaleSource), None, None]),
            (MASTER, "8.8.8.8", [Some(WrongSource), None, None]),
            ("192.168.199.99", "10.1.63.2", [Some(UnknownAddress), Some(UnknownAddress), None]),
            ("192.168.199.99", "10.1.99.2", [Some(UnknownPeer), Some(UnknownPeer), None]),
            ("192.168.199.99", "192.168.199.99", [Some(UnknownPeer), Some(UnknownPeer), None]),
            (MASTER, "10.1.9.3", [Some(OwnSource); 3]),
            (MASTER, "192.168.1.12", [Some(OwnSource); 3]),
        ];
        for (outer, inner, expected) in cases {
            for (check, expected) in [Strict, Loose, Off].into_iter().zip(expected) {
                let packet = udp_packet(inner, "10.1.9.3", 64, b"x");
                let vxlan = verdict(VXLAN, check, outer, &frame(&packet));
                let udp = verdict(Format::FlannelUdp, check, outer, &packet);
                assert_eq!((vxlan, udp), (expected, expected), "{outer} {inner} {check:?}");
            }
        }
    }

    #[test]
    fn an_address_that_a_peer_has_said_is_its_own_and_nobody_elses() {
        use DropReason::{MartianSource, OtherPeersSource, OwnSource, StaleSource, WrongSource};
        let said =
            ["172.16.5.1", "10.1.7.2", "192.168.199.7", "10.1.99.2", "10.1.9.3", "192.168.1.12", "127.0.0.1"];
        let verdict = |outer: &str, inner: &str| {
            let mut rig = rig(VXLAN, SourceCheck::Strict);
            let table = rig.table.current();
            let state = &table.at(MASTER.parse().unwrap()).unwrap().state;
            state.announce(said.map(|address| address.parse().unwrap()).into());
            rig.wire.arrive(outer, &frame(&udp_packet(inner, "10.1.9.3", 64, b"x")));
            assert_eq!(rig.ingress.step(), 1);
            let totals = rig.stats.totals();
            DropReason::ALL.into_iter().find(|reason| totals.drops(*reason) > 0)
        };
        for (inner, expected) in said.into_iter().zip([
            None,
            Some(OtherPeersSource),
            Some(WrongSource),
            Some(StaleSource),
            Some(OwnSource),
            Some(OwnSource),
            Some(MartianSource),
        ]) {
            assert_eq!(verdict(MASTER, inner), expected, "{inner}");
        }
        assert_eq!(verdict("192.168.199.7", "172.16.5.1"), Some(WrongSource), "another node has not said so");
        assert_eq!(verdict(MASTER, "172.16.5.2"), Some(WrongSource));
    }

    #[test]
    fn who_captures_sees_each_packet_and_why_it_does_not_go_on() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let (watched, own) = (Arc::<Watched>::default(), "192.168.1.12:8472".parse().unwrap());
        let witness = Witness::new(Direction::Ingress, Arc::clone(&watched), vec![own]);
        rig.ingress = rig.ingress.watched_by(witness);
        let filter = Filter { snaplen: 2000, ..Filter::default() };
        let capturing = Tap::open(&watched, filter).unwrap();
        let packet = |src| udp_packet(src, "10.1.9.3", 64, &[7; 100]);
        let run = frame(&packet("10.1.63.2")).repeat(2);
        rig.wire.arrive_segmented(MASTER, &run, vxlan::HEADER_LEN + 128);
        rig.wire.arrive(MASTER, &frame(&packet("10.1.7.2")));
        rig.wire.arrive(MASTER, &[8; 10]);
        rig.ingress.step();
        let seen: Vec<_> =
            capturing.packets.try_iter().map(|c| (c.outer.is_some(), c.bytes.len(), c.reason)).collect();
        let refused =
            [(false, 128, Some(DropReason::OtherPeersSource)), (true, 10, Some(DropReason::Truncated))];
        assert_eq!(seen, [&[(false, 128, None); 2][..], &refused].concat());
        let offender = watched.offender(Direction::Ingress, DropReason::OtherPeersSource).unwrap();
        assert_eq!(offender.outer.unwrap().ip().to_string(), MASTER);
        assert_eq!(offender.inner.unwrap().src.to_string(), "10.1.7.2");
    }

    #[test]
    fn segments_of_a_flow_are_written_as_one_and_others_in_their_place() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let packet = |port: u16, len: usize, id: u16| {
            let mut packet = udp_packet("10.1.63.2", "10.1.9.3", 64, &vec![port as u8; len]);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let sum = !crate::wire::checksum::sum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        };
        let forged = udp_packet("10.1.7.2", "10.1.9.3", 64, &[1; 100]);
        let sent = [packet(1, 100, 0), packet(1, 100, 1), forged, packet(1, 100, 2), packet(1, 90, 3)];
        let frames: Vec<u8> = sent.iter().flat_map(|packet| frame(packet)).collect();
        rig.wire.arrive_segmented(MASTER, &frames, vxlan::HEADER_LEN + 128);
        rig.ingress.step();
        let written = rig.device.take_written();
        assert_eq!(written.len(), 1, "all but the forged one");
        let header = VnetHdr::parse(written[0].first_chunk().unwrap()).unwrap();
        assert_eq!(header.gso, Some(Gso { kind: GsoKind::Udp, size: 100 }));
        assert_eq!(written[0].len(), vnet::LEN + 28 + 390);
        let totals = rig.stats.totals();
        assert_eq!((totals.packets, totals.drops(DropReason::OtherPeersSource)), (4, 1));
        let peer = rig.table.current().at(MASTER.parse().unwrap()).unwrap().state.totals();
        assert_eq!((peer.ingress.packets, peer.ingress.bytes), (totals.packets, totals.bytes));
        assert_eq!((peer.ingress.drops, peer.last_seen.is_some()), (1, true));
        let innocent = rig.table.current().at("192.168.199.7".parse().unwrap()).unwrap().state.totals();
        assert_eq!(innocent, PeerTotals::default(), "drops are of who has sent the packet");
    }

    #[test]
    fn marks_outside_come_in_and_losses_stand_for_those_that_nobody_would_understand() {
        for (src, dst) in [("10.1.63.2", "10.1.9.3"), ("fd00:0:0:63::2", "fd00:0:0:9::3")] {
            for format in [VXLAN, Format::FlannelUdp] {
                let inner = |ecn| {
                    let mut bytes = udp_packet(src, dst, 64, &[7; 100]);
                    Packet::parse(&mut bytes).unwrap().set_ecn(ecn);
                    bytes
                };
                let mut rig = rig(format, SourceCheck::Strict);
                let outside = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];
                for within in outside {
                    let payload = inner(within);
                    let payload = if format == VXLAN { frame(&payload) } else { payload };
                    for ecn in outside {
                        rig.wire.arrive_with(MASTER, &payload, ecn);
                        rig.ingress.step();
                        let written = rig.device.take_written().pop();
                        let seen = written.map(|mut bytes| {
                            let packet = Packet::parse(&mut bytes[vnet::LEN..]).expect("a right header");
                            assert_eq!((packet.ttl() == 64, packet.bytes()[1] & 0xc), (format == VXLAN, 0));
                            packet.ecn()
                        });
                        assert_eq!(seen, within.received(ecn).ok(), "{within:?} in {ecn:?}");
                    }
                }
                assert_eq!(rig.stats.totals().drops(DropReason::Congestion), 1);
            }
        }
    }

    #[test]
    fn a_marked_segment_is_not_hidden_among_others() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let mut packet = udp_packet("10.1.63.2", "10.1.9.3", 64, &[7; 100]);
        Packet::parse(&mut packet).unwrap().set_ecn(Ecn::Ect0);
        for ecn in [Ecn::Ect0, Ecn::NotEct, Ecn::Ce, Ecn::Ce, Ecn::Ect0] {
            rig.wire.arrive_with(MASTER, &frame(&packet), ecn);
        }
        rig.ingress.step();
        let written = rig.device.take_written();
        let seen: Vec<_> =
            written.iter().map(|bytes| (bytes[vnet::LEN + 1], bytes.len() - vnet::LEN - 28)).collect();
        assert_eq!(seen, [(2, 200), (3, 200), (2, 100)]);
    }

    #[test]
    fn what_a_sender_had_to_split_is_written_as_one() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let packet = udp_packet("10.1.63.2", "10.1.9.3", 64, &[7; 100]);
        let run = frame(&packet).repeat(3);
        rig.wire.arrive_segmented(MASTER, &run, vxlan::HEADER_LEN + 128);
        rig.wire.arrive(MASTER, &frame(&packet));
        rig.wire.arrive("192.168.199.7", &frame(&udp_packet("10.1.7.2", "10.1.9.3", 64, &[7; 100])));
        assert_eq!(rig.ingress.step(), 3);
        let lens: Vec<_> =
            rig.device.take_written().iter().map(|written| written.len() - vnet::LEN).collect();
        assert_eq!(lens, [28 + 400, 128], "four of one flow, then one of another");
        assert_eq!(rig.stats.totals().packets, 5);
    }

    #[test]
    fn a_super_packet_that_the_device_refuses_is_written_in_its_segments() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        rig.device.refuse_super_packets();
        let packet = udp_packet("10.1.63.2", "10.1.9.3", 64, &[7; 100]);
        for round in 1..=2 {
            // Identical datagrams may carry one identification, since they are never fragmented.
            rig.wire.arrive_segmented(MASTER, &frame(&packet).repeat(3), vxlan::HEADER_LEN + 128);
            rig.ingress.step();
            let written = rig.device.take_written();
            assert_eq!(written.len(), 3, "round {round}");
            assert!(written.iter().all(|written| written[vnet::LEN..] == packet));
        }
        assert!(!rig.ingress.sink.offloads.is_on(Offload::Uso));
        assert!(rig.ingress.sink.offloads.is_on(Offload::Tso));
        assert_eq!(rig.stats.totals().packets, 6);
    }

    #[test]
    fn a_udp_super_packet_that_arrives_uncut_is_cut_by_the_kernel() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let mut packet = udp_packet("10.1.63.2", "10.1.9.3", 64, &[7; 3000]);
        let unfilled = Packet::parse(&mut packet).unwrap().pseudo_header();
        packet[26..28].copy_from_slice(&unfilled.to_be_bytes());
        rig.wire.arrive_segmented(MASTER, &frame(&packet), 1000);
        rig.ingress.step();
        let written = rig.device.take_written();
        assert_eq!(written[0][vnet::LEN..], packet);
        let header = VnetHdr::parse(written[0].first_chunk().unwrap()).unwrap();
        assert_eq!(header.gso, Some(Gso { kind: GsoKind::Udp, size: 1000 }));
    }

    #[test]
    fn a_super_packet_that_arrives_uncut_is_cut_here_for_a_device_that_knows_none() {
        for (src, dst, headers_len) in
            [("10.1.63.2", "10.1.9.3", 28), ("fd00:0:0:63::2", "fd00:0:0:9::3", 48)]
        {
            let mut rig = rig(VXLAN, SourceCheck::Strict);
            rig.device.refuse_super_packets();
            let mut packet = udp_packet(src, dst, 64, &[7; 3000]);
            let unfilled = Packet::parse(&mut packet).unwrap().pseudo_header();
            packet[headers_len - 2..headers_len].copy_from_slice(&unfilled.to_be_bytes());
            rig.wire.arrive_segmented(MASTER, &frame(&packet), 1000);
            rig.ingress.step();
            let written = rig.device.take_written();
            assert_eq!(written.len(), 3);
            for segment in written {
                assert_eq!(segment[..vnet::LEN], [0; vnet::LEN]);
                let expected = udp_packet(src, dst, 64, &[7; 1000]);
                // The kernel numbers segments; whoever made the expected one did not.
                assert_eq!(segment.len(), vnet::LEN + expected.len());
                assert_eq!(segment[vnet::LEN + headers_len - 8..], expected[headers_len - 8..]);
            }
            let totals = rig.stats.totals();
            assert_eq!((totals.packets, totals.bytes), (1, packet.len() as u64));
            assert_eq!(totals.drops(DropReason::WriteFailed), 0);
            assert!(!rig.ingress.sink.offloads.is_on(Offload::Uso));
        }
    }

    #[test]
    fn what_the_device_refuses_is_counted_and_shown() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let watched = Arc::<Watched>::default();
        let listen = "192.168.1.12:8472".parse().unwrap();
        let witness = Witness::new(Direction::Ingress, Arc::clone(&watched), vec![listen]);
        rig.ingress = rig.ingress.watched_by(witness);
        let capturing = Tap::open(&watched, Filter { snaplen: 100, ..Filter::default() }).unwrap();
        rig.device.fail(libc::EIO);
        let packet = udp_packet("10.1.63.2", "10.1.9.3", 64, b"x");
        rig.wire.arrive(MASTER, &frame(&packet));
        rig.ingress.step();
        assert_eq!(rig.stats.totals().drops(DropReason::WriteFailed), 1);
        assert_eq!(rig.stats.totals().packets, 0);
        let shown: Vec<_> = capturing.packets.try_iter().map(|seen| (seen.bytes, seen.reason)).collect();
        assert_eq!(shown, [(packet.clone(), None), (packet, Some(DropReason::WriteFailed))]);
        let last = watched.offender(Direction::Ingress, DropReason::WriteFailed).unwrap();
        assert_eq!(last.inner.unwrap().src.to_string(), "10.1.63.2");
    }

    #[test]
    fn sources_of_ipv6_are_checked_as_far_as_asked() {
        use DropReason::{MartianSource, OtherPeersSource, OwnSource, UnknownAddress, WrongSource};
        use SourceCheck::{Loose, Off, Strict};
        let cases = [
            (MASTER, "fd00:0:0:63::2", [None, None, None]),
            (MASTER, "fd00:0:0:7::2", [Some(OtherPeersSource), None, None]),
            (MASTER, "2001:db8::1", [Some(WrongSource), None, None]),
            (MASTER, "fe80::1", [Some(MartianSource); 3]),
            (MASTER, "::ffff:10.1.63.2", [Some(WrongSource), None, None]),
            ("192.168.199.99", "fd00:0:0:63::2", [Some(UnknownAddress), Some(UnknownAddress), None]),
            (MASTER, "fd00:0:0:9::3", [Some(OwnSource); 3]),
            (MASTER, "2001:db8::12", [Some(OwnSource); 3]),
        ];
        for (outer, inner, expected) in cases {
            for (check, expected) in [Strict, Loose, Off].into_iter().zip(expected) {
                let packet = udp_packet(inner, "fd00:0:0:9::3", 64, b"x");
                let vxlan = verdict(VXLAN, check, outer, &frame(&packet));
                let udp = verdict(Format::FlannelUdp, check, outer, &packet);
                assert_eq!((vxlan, udp), (expected, expected), "{outer} {inner} {check:?}");
            }
        }
    }

    #[test]
    fn a_network_without_ipv6_takes_none_whatever_the_source_check() {
        for check in [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off] {
            let mut rig = rig(VXLAN, check);
            rig.table.publish(Local { v6: None, ..local(VXLAN) }, vec![peer("10.1.63.0/24", MASTER)]);
            rig.wire.arrive(MASTER, &frame(&udp_packet("fd00:0:0:63::2", "fd00:0:0:9::3", 64, b"x")));
            rig.ingress.step();
            assert!(rig.device.take_written().is_empty());
            assert_eq!(rig.stats.totals().drops(DropReason::NotIp), 1);
        }
    }

    #[test]
    fn every_truncation_of_an_ipv6_frame_is_dropped() {
        let whole = frame(&udp_packet("fd00:0:0:63::2", "fd00:0:0:9::3", 64, b"hello"));
        for len in 0..whole.len() {
            let verdict = verdict(VXLAN, SourceCheck::Strict, MASTER, &whole[..len]);
            assert_eq!(verdict, Some(DropReason::Truncated), "{len} bytes");
        }
    }

    #[test]
    fn flannels_udp_takes_a_hop_off_ipv6_and_tells_when_none_is_left() {
        let mut rig = rig(Format::FlannelUdp, SourceCheck::Strict);
        let packet = |hops| udp_packet("fd00:0:0:63::2", "fd00:0:0:9::3", hops, b"x");
        rig.wire.arrive(MASTER, &packet(2));
        rig.wire.arrive(MASTER, &packet(1));
        rig.ingress.step();
        let written = rig.device.take_written();
        assert_eq!(written.len(), 1);
        assert_eq!(written[0][vnet::LEN..], packet(1));
        let icmp = rig.icmp.0.lock().unwrap();
        assert_eq!(icmp[0].0, "fd00:0:0:63::2".parse::<IpAddr>().unwrap());
        assert_eq!(icmp[0].1[40], 3);
    }

    #[test]
    fn ipv6_segments_are_written_as_one_and_fragments_as_they_came() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let whole = udp_packet("fd00:0:0:63::2", "fd00:0:0:9::3", 64, &[7; 100]);
        let fragment = {
            let mut bytes = whole.clone();
            // First of several: the header's next is the fragment header, whose next is UDP.
            bytes[6] = 44;
            bytes.splice(40..40, [17, 0, 0, 1, 0, 0, 0, 9]);
            let len = (bytes.len() - 40) as u16;
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes
        };
        for packet in [&whole, &whole, &fragment, &fragment, &whole] {
            rig.wire.arrive(MASTER, &frame(packet));
        }
        rig.ingress.step();
        let written = rig.device.take_written();
        let lens: Vec<_> = written.iter().map(|written| written.len() - vnet::LEN).collect();
        assert_eq!(lens, [48 + 200, fragment.len(), fragment.len(), 148]);
        let header = VnetHdr::parse(written[0].first_chunk().unwrap()).unwrap();
        assert_eq!(header.gso, Some(Gso { kind: GsoKind::Udp, size: 100 }));
        assert_eq!(written[1][vnet::LEN..], fragment);
        assert_eq!(written[1][..vnet::LEN], [0; vnet::LEN]);
    }

    #[test]
    fn an_ipv6_super_packet_that_arrives_uncut_is_cut_by_the_kernel() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let mut packet = udp_packet("fd00:0:0:63::2", "fd00:0:0:9::3", 64, &[7; 3000]);
        let unfilled = Packet::parse(&mut packet).unwrap().pseudo_header();
        packet[46..48].copy_from_slice(&unfilled.to_be_bytes());
        rig.wire.arrive_segmented(MASTER, &frame(&packet), 1000);
        rig.ingress.step();
        let written = rig.device.take_written();
        assert_eq!(written[0][vnet::LEN..], packet);
        let header = VnetHdr::parse(written[0].first_chunk().unwrap()).unwrap();
        assert_eq!(header.gso, Some(Gso { kind: GsoKind::Udp, size: 1000 }));
    }
}
