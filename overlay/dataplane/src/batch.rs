//! The packets that a worker reads from the overlay device and sends with one system call a lane.
//!
//! What goes to one node by one lane and has one length becomes one message, a *run*, which the
//! kernel takes through its stack once and segments at the end (UDP segmentation offload). Lanes
//! are the sockets, and so the outer source ports; a flow keeps to one lane, in order.

use std::net::SocketAddr;
use std::sync::Arc;

use overlay_sys::mmsg::{Outgoing, Slice};
use overlay_wire::drops::DropReason;
use overlay_wire::ecn::Ecn;
use overlay_wire::ip::Packet;
use overlay_wire::segment::{MAX_SEGMENT_HEADERS_LEN, Segments};
use overlay_wire::tunnel::SuperPacket;
use overlay_wire::vnet::{self, Gso};
use overlay_wire::vxlan;

use crate::peer_state::PeerState;
use crate::table::Hop;

/// Free bytes in front of every packet: room for its encapsulation.
const HEADROOM: usize = 32;
/// The largest IP packet, with the virtio header in front.
const READ_LEN: usize = vnet::LEN + 65_535;
/// A slot begins on a cache line.
const SLOT_LEN: usize = (HEADROOM + READ_LEN).next_multiple_of(64);
/// The longest headers of a segment, behind its encapsulation.
const MAX_HEADERS_LEN: usize = vxlan::HEADER_LEN + MAX_SEGMENT_HEADERS_LEN;
/// Segments of one super-packet. The smallest that Linux makes has 48 bytes of payload less
/// options (`tcp_min_snd_mss`).
const MAX_SEGMENTS: usize = 2048;
/// Room for the headers of segments: of the worst super-packet, after many a usual one.
const ARENA_LEN: usize = 2 * MAX_SEGMENTS * MAX_HEADERS_LEN;
/// A batch is full with this many bytes: more would leave the processor's cache before it is sent.
const FULL: usize = 256 * 1024;
/// Datagrams of one run (`UDP_MAX_SEGMENTS` before Linux 6.9).
pub const MAX_RUN: usize = 64;
/// Bytes of one run: the largest UDP payload over IPv4.
pub const MAX_RUN_LEN: usize = 65_507;
/// How many of a lane's last runs are looked at for one that a packet continues: with more peers
/// than that, taking turns packet by packet, runs are short.
const OPEN_RUNS: usize = 8;

const _: () = assert!(vnet::LEN <= HEADROOM && vxlan::HEADER_LEN <= HEADROOM);

/// Slots of the largest packet's size, filled one after the other, and the runs they become.
/// Memory is touched only as far as packets are long.
#[derive(Debug)]
pub struct Batch {
    /// The slots, then the headers of segments.
    bytes: Vec<u8>,
    capacity: usize,
    used: usize,
    arena: usize,
    gathered: usize,
    lanes: Vec<Lane>,
}

/// The runs of one lane. Those beyond `used` are kept for their memory.
#[derive(Debug, Default)]
struct Lane {
    runs: Vec<Run>,
    used: usize,
}

/// What a packet from the device has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Packets that the wire will see.
    pub packets: usize,
    /// Their bytes, without encapsulation.
    pub bytes: usize,
}

/// Datagrams to one peer, all of one length but for the last, with the same outer headers; or one super-packet that
/// is to leave whole.
#[derive(Debug)]
pub struct Run {
    to: SocketAddr,
    ecn: Ecn,
    peer: Arc<PeerState>,
    header_len: usize,
    slices: Vec<Slice>,
    /// Where each datagram's slices end.
    ends: Vec<usize>,
    segment_len: usize,
    len: usize,
    inner_len: usize,
    closed: bool,
    super_packet: Option<SuperPacket>,
}

impl Batch {
    /// An empty batch with room for `capacity` packets, which go by `lanes` lanes.
    #[must_use]
    pub fn new(capacity: usize, lanes: usize) -> Self {
        Self {
            bytes: vec![0; capacity * SLOT_LEN + ARENA_LEN],
            capacity,
            used: 0,
            arena: 0,
            gathered: 0,
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
        }
    }

    /// Whether to send before more is read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used == self.capacity
            || self.gathered >= FULL
            || self.arena + MAX_SEGMENTS * MAX_HEADERS_LEN > ARENA_LEN
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gathered == 0
    }

    /// How many lanes there are.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The buffer of the next free slot, into which virtio header and packet are read.
    ///
    /// # Panics
    /// If no slot is free.
    pub fn next_read(&mut self) -> &mut [u8] {
        let start = self.next_packet() - vnet::LEN;
        &mut self.bytes[start..start + READ_LEN]
    }

    /// Takes the slot last read into: its packet of `len` bytes goes by `lane` and `hop`. (The
    /// encapsulation overwrites the virtio header, which has been looked at by then.)
    ///
    /// # Panics
    /// If no slot is free, or there is no such lane.
    pub fn push(&mut self, lane: usize, hop: &Hop, len: usize) -> Pushed {
        let header = hop.header();
        let start = self.next_packet() - header.len();
        self.bytes[start..start + header.len()].copy_from_slice(header);
        let ecn = hop.outer_ecn(&self.bytes[start + header.len()..]);
        self.lanes[lane].append(hop, ecn, &[Slice { start, len: header.len() + len }], len);
        self.gathered += len;
        self.used += 1;
        Pushed { packets: 1, bytes: len }
    }

    /// Takes the slot last read into: its super-packet of `len` bytes goes by `lane` and `hop`, in
    /// segments.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] if it cannot be cut as `gso` says; the slot is free still.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_segments(
        &mut self,
        lane: usize,
        hop: &Hop,
        len: usize,
        gso: Gso,
    ) -> Result<Pushed, DropReason> {
        let start = self.next_packet();
        let arena_start = self.capacity * SLOT_LEN;
        let (slots, arena) = self.bytes.split_at_mut(arena_start);
        let packet = Packet::parse(&mut slots[start..start + len])?;
        let segments = Segments::new(&packet, gso)?;
        if segments.count() > MAX_SEGMENTS {
            return Err(DropReason::Malformed);
        }
        let (encapsulation, ecn) = (hop.header(), hop.outer_ecn(packet.bytes()));
        let headers_len = encapsulation.len() + segments.headers_len();
        for index in 0..segments.count() {
            let headers = &mut arena[self.arena..self.arena + headers_len];
            headers[..encapsulation.len()].copy_from_slice(encapsulation);
            segments.write_headers(index, &mut headers[encapsulation.len()..]);
            let payload = segments.payload(index);
            let inner_len = segments.headers_len() + payload.len();
            let slices = [
                Slice { start: arena_start + self.arena, len: headers_len },
                Slice { start: start + payload.start, len: payload.len() },
            ];
            self.lanes[lane].append(hop, ecn, &slices, inner_len);
            self.arena += headers_len;
        }
        let pushed = Pushed {
            packets: segments.count(),
            bytes: len + (segments.count() - 1) * segments.headers_len(),
        };
        self.gathered += len;
        self.used += 1;
        Ok(pushed)
    }

    /// Takes the slot last read into: its super-packet goes by `lane` and `hop`, whole. It counts as its
    /// segments.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_whole(&mut self, lane: usize, hop: &Hop, packet: SuperPacket) -> Pushed {
        let header = hop.header();
        let start = self.next_packet() - header.len();
        self.bytes[start..start + header.len()].copy_from_slice(header);
        let len = header.len() + packet.len();
        let pushed = Pushed { packets: packet.segments(), bytes: packet.segments_len() };
        let ecn = hop.outer_ecn(&self.bytes[start + header.len()..]);
        let run = self.lanes[lane].begin(hop, ecn, len);
        run.slices.push(Slice { start, len });
        run.ends.push(1);
        (run.len, run.inner_len, run.closed) = (len, pushed.bytes, true);
        run.super_packet = Some(packet);
        self.gathered += packet.len();
        self.used += 1;
        pushed
    }

    /// The runs that go by `lane`, in order.
    ///
    /// # Panics
    /// If there is no such lane.
    #[must_use]
    pub fn runs(&self, lane: usize) -> &[Run] {
        let lane = &self.lanes[lane];
        &lane.runs[..lane.used]
    }

    /// The buffer that the runs' slices lie in.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The packet of `len` bytes that was pushed last.
    ///
    /// # Panics
    /// If none was pushed.
    #[must_use]
    pub fn last(&self, len: usize) -> &[u8] {
        let start = (self.used - 1) * SLOT_LEN + HEADROOM;
        &self.bytes[start..start + len]
    }

    /// Frees every slot.
    pub fn clear(&mut self) {
        self.used = 0;
        self.arena = 0;
        self.gathered = 0;
        for lane in &mut self.lanes {
            lane.used = 0;
        }
    }

    fn next_packet(&self) -> usize {
        assert!(self.used < self.capacity, "the batch has no free slot");
        self.used * SLOT_LEN + HEADROOM
    }
}

impl Run {
    /// Whether what goes by `hop` goes the same way: to the same peer, and outside by the same family.
    #[inline]
    fn leads_along(&self, hop: &Hop) -> bool {
        Arc::ptr_eq(&self.peer, &hop.state) && self.to.is_ipv6() == hop.address.is_ipv6()
    }
}

impl Lane {
    /// Adds a datagram made of `slices`, with `inner_len` bytes of inner packet, to the last run
    /// to its peer, or begins another: so datagrams to one peer stay in order.
    fn append(&mut self, hop: &Hop, ecn: Ecn, slices: &[Slice], inner_len: usize) {
        let len = slices.iter().map(|slice| slice.len).sum();
        let recent = self.used.saturating_sub(OPEN_RUNS)..self.used;
        let last = self.runs[recent].iter_mut().rev().find(|run| run.leads_along(hop));
        let run = match last {
            Some(run) if run.takes(len) && run.ecn == ecn => run,
            _ => self.begin(hop, ecn, len),
        };
        run.slices.extend_from_slice(slices);
        run.ends.push(run.slices.len());
        run.len += len;
        run.inner_len += inner_len;
        run.closed = len < run.segment_len;
    }

    fn begin(&mut self, hop: &Hop, ecn: Ecn, segment_len: usize) -> &mut Run {
        if self.used == self.runs.len() {
            self.runs.push(Run {
                to: hop.to(),
                ecn,
                peer: Arc::clone(&hop.state),
                header_len: 0,
                slices: Vec::with_capacity(2 * MAX_RUN),
                ends: Vec::with_capacity(MAX_RUN),
                segment_len,
                len: 0,
                inner_len: 0,
                closed: false,
                super_packet: None,
            });
        }
        let run = &mut self.runs[self.used];
        run.slices.clear();
        run.ends.clear();
        (run.to, run.segment_len, run.len, run.inner_len, run.closed) = (hop.to(), segment_len, 0, 0, false);
        (run.ecn, run.header_len) = (ecn, hop.header().len());
        run.super_packet = None;
        // Mostly it is the peer that the run was for in an earlier batch: then no shared count is touched.
        if !Arc::ptr_eq(&run.peer, &hop.state) {
            run.peer = Arc::clone(&hop.state);
        }
        self.used += 1;
        run
    }
}

impl Run {
    fn takes(&self, len: usize) -> bool {
        !self.closed && len <= self.segment_len && self.ends.len() < MAX_RUN && self.len + len <= MAX_RUN_LEN
    }

    /// Whom it goes to.
    #[must_use]
    pub fn peer(&self) -> &Arc<PeerState> {
        &self.peer
    }

    /// Bytes of encapsulation in front of each inner packet.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// How long each of its datagrams is, but for the last, which may be shorter.
    #[must_use]
    pub fn segment_len(&self) -> usize {
        self.segment_len
    }

    /// How many datagrams it is, or would be if it were cut.
    #[must_use]
    pub fn count(&self) -> usize {
        self.super_packet.map_or(self.ends.len(), |packet| packet.segments())
    }

    /// The super-packet that it is, which lies behind its encapsulation where the first slice says.
    #[must_use]
    pub fn super_packet(&self) -> Option<(SuperPacket, Slice)> {
        Some((self.super_packet?, *self.slices.first()?))
    }

    /// Where it goes.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// What its outer headers say of congestion.
    #[must_use]
    pub fn ecn(&self) -> Ecn {
        self.ecn
    }

    /// Bytes of inner packets in it.
    #[must_use]
    pub fn inner_len(&self) -> usize {
        self.inner_len
    }

    /// All of it as one message, which the kernel cuts.
    #[must_use]
    pub fn whole(&self) -> Outgoing<'_> {
        let segment_len = (self.ends.len() > 1).then_some(self.segment_len as u16);
        Outgoing { to: self.to, tos: self.ecn as u8, slices: &self.slices, segment_len }
    }

    /// Each of its datagrams as a message.
    pub fn singly(&self) -> impl Iterator<Item = Outgoing<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| Outgoing {
            to: self.to,
            tos: self.ecn as u8,
            slices: &self.slices[start..*end],
            segment_len: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use overlay_wire::Format;
    use overlay_wire::samples::udp_packet;
    use overlay_wire::vnet::GsoKind;

    use super::*;
    use crate::table::tests::{local, peer};
    use crate::table::{PeerTable, Route};

    fn hop(last: u8) -> Hop {
        let format = Format::Vxlan { vni: 1, vtep_mac: overlay_wire::MacAddr([2; 6]) };
        let peers = vec![peer("10.1.63.0/24", &format!("192.168.199.{last}"))];
        let table = PeerTable::new(local(format), peers);
        match table.route("10.1.63.2".parse().unwrap()) {
            Route::Peer(hop) => hop.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn push(batch: &mut Batch, lane: usize, hop: &Hop, packet: &[u8]) {
        batch.next_read()[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(packet);
        batch.push(lane, hop, packet.len());
    }

    fn bytes(batch: &Batch, message: Outgoing<'_>) -> Vec<u8> {
        message.slices.iter().flat_map(|s| &batch.bytes()[s.start..s.start + s.len]).copied().collect()
    }

    #[test]
    fn a_packet_lies_behind_its_encapsulation() {
        let (mut batch, hop) = (Batch::new(2, 1), hop(1));
        assert!(batch.is_empty());
        push(&mut batch, 0, &hop, b"first");
        let [run] = batch.runs(0) else { panic!("one run") };
        assert_eq!(bytes(&batch, run.whole()), [hop.header(), b"first"].concat());
        assert_eq!(run.whole().segment_len, None);
        assert_eq!((run.count(), run.inner_len()), (1, 5));
        batch.clear();
        assert!(batch.is_empty() && batch.runs(0).is_empty());
    }

    #[test]
    fn equal_lengths_to_one_node_are_one_run_that_a_shorter_one_closes() {
        let (mut batch, hop) = (Batch::new(8, 1), hop(1));
        for packet in [&b"pppp"[..], b"qqqq", b"rr", b"ss", b"tttt", b"u"] {
            push(&mut batch, 0, &hop, packet);
        }
        let counts: Vec<usize> = batch.runs(0).iter().map(Run::count).collect();
        assert_eq!(counts, [3, 1, 2], "ss begins another run, which cannot take the longer tttt");
        let first = &batch.runs(0)[0];
        assert_eq!(usize::from(first.whole().segment_len.unwrap()), hop.header().len() + 4);
        let singly: Vec<_> = first.singly().map(|message| bytes(&batch, message)).collect();
        assert_eq!(singly.concat(), bytes(&batch, first.whole()));
        assert_eq!(singly[2], [hop.header(), b"rr"].concat());
    }

    #[test]
    fn what_is_said_of_congestion_is_the_same_in_all_of_a_run() {
        let (mut batch, hop) = (Batch::new(8, 1), hop(1));
        for tos in [0, 0, 2, 2, 3, 1, 0, 0xb8] {
            let mut packet = udp_packet("10.1.9.3", "10.1.63.2", 64, b"hello");
            packet[1] = tos;
            push(&mut batch, 0, &hop, &packet);
        }
        let runs: Vec<_> = batch.runs(0).iter().map(|run| (run.ecn(), run.count())).collect();
        assert_eq!(runs, [(Ecn::NotEct, 2), (Ecn::Ect0, 3), (Ecn::Ect1, 1), (Ecn::NotEct, 2)]);
    }

    #[test]
    fn nodes_and_lanes_have_runs_of_their_own() {
        let (mut batch, one, two) = (Batch::new(8, 2), hop(1), hop(2));
        for (lane, hop) in [(0, &one), (0, &two), (1, &one), (0, &one), (0, &two)] {
            push(&mut batch, lane, hop, b"aaaa");
        }
        let runs = |lane| -> Vec<_> { batch.runs(lane).iter().map(|run| (run.to, run.count())).collect() };
        assert_eq!(runs(0), [(one.to(), 2), (two.to(), 2)]);
        assert_eq!(runs(1), [(one.to(), 1)]);
    }

    #[test]
    fn a_super_packet_becomes_runs_within_the_kernels_limits() {
        let (mut batch, hop) = (Batch::new(2, 1), hop(1));
        let packet = udp_packet("10.1.9.3", "10.1.63.2", 64, &[7; 60_000]);
        for (size, runs) in [(1400u16, &[43][..]), (100, &[64, 64, 64, 64, 64, 64, 64, 64, 64, 24])] {
            batch.clear();
            batch.next_read()[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(&packet);
            let gso = Gso { kind: GsoKind::Udp, size };
            let pushed = batch.push_segments(0, &hop, packet.len(), gso).unwrap();
            let packets = 60_000usize.div_ceil(usize::from(size));
            assert_eq!(pushed, Pushed { packets, bytes: 60_000 + 28 * packets });
            let counts: Vec<usize> = batch.runs(0).iter().map(Run::count).collect();
            assert_eq!(counts, runs);
            assert!(batch.runs(0).iter().all(|run| run.len <= MAX_RUN_LEN));
        }
        let gso = Gso { kind: GsoKind::Tcp4, size: 1400 };
        batch.next_read()[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(&packet);
        assert_eq!(batch.push_segments(0, &hop, packet.len(), gso), Err(DropReason::Malformed));
    }
}
