//! From the wire to the overlay device.
//!
//! 1. receive a batch of datagrams with one system call
//! 2. check the form: encapsulation, VNI and MAC ours, a whole IPv4 packet inside
//! 3. check the source: sent by a known peer, and the inner source belongs to that peer
//! 4. take off the encapsulation
//! 5. write the packet to the device
//!
//! What cannot go on is dropped, counted, and where the rules say so, its sender is told.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::answers::Answers;
use crate::drops::DropReason;
use crate::stats::WorkerStats;
use crate::sys::wake::{StopFlag, Woken, wait_readable};
use crate::table::{PeerTable, TableReader};
use crate::tun::Device;
use crate::underlay::{HEADROOM, Receiver};
use crate::wire::icmp::IcmpError;
use crate::wire::ipv4::Packet;
use crate::wire::vnet::{self, VnetHdr};
use crate::wire::{Format, vxlan};

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
    device: D,
    wire: R,
    check: SourceCheck,
    table: TableReader,
    answers: Answers,
    stats: Arc<WorkerStats>,
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
    ) -> Self {
        Self { device, wire, check, table, answers, stats }
    }

    /// Forwards until `stop` is raised.
    ///
    /// # Errors
    /// Sleeping on the wire failed: the process is out of memory.
    pub fn run(mut self, stop: &StopFlag) -> io::Result<()> {
        while !stop.is_raised() {
            if self.step() == 0 && wait_readable(self.wire.readiness(), stop)? == Woken::Stopped {
                break;
            }
        }
        Ok(())
    }

    /// Forwards what has arrived, up to one batch, and returns the number of datagrams received.
    pub fn step(&mut self) -> usize {
        let Self { device, wire, check, table, answers, stats } = self;
        let table = table.load();
        let (mut packets, mut bytes) = (0, 0);
        let received = wire.receive(|datagram| {
            if datagram.truncated {
                stats.dropped(DropReason::Truncated);
                return;
            }
            let (headroom, payload) = datagram.buffer.split_at_mut(HEADROOM);
            let start = match check_encapsulation(payload, table.local().format) {
                Ok(start) => start,
                Err(reason) => return stats.dropped(reason),
            };
            let (encapsulation, inner) = payload.split_at_mut(start);
            let mut packet = match Packet::parse(inner) {
                Ok(packet) => packet,
                Err(reason) => return stats.dropped(reason),
            };
            if let Err(reason) = admit(&packet, *datagram.from.ip(), table, *check) {
                return stats.dropped(reason);
            }
            if table.local().format == Format::FlannelUdp {
                if packet.ttl() <= 1 {
                    stats.dropped(DropReason::TtlExpired);
                    let from = table.local().overlay_address;
                    return answers.tell(IcmpError::TimeExceeded, from, &packet, stats);
                }
                packet.decrement_ttl();
            }

            let header = VnetHdr::for_arrival(&packet, table.local().mtu as usize).to_bytes();
            let len = packet.bytes().len();
            let packet_at = headroom.len() + encapsulation.len();
            let header_at = packet_at - vnet::LEN;
            datagram.buffer[header_at..packet_at].copy_from_slice(&header);
            match device.write(&datagram.buffer[header_at..packet_at + len]) {
                Ok(()) => {
                    packets += 1;
                    bytes += len as u64;
                }
                Err(_) => stats.dropped(DropReason::WriteFailed),
            }
        });
        if packets > 0 {
            stats.forwarded(packets, bytes);
        }
        // An error of the socket (say, an ICMP error for something sent earlier) is cleared by
        // reporting it; there is nothing lost and nothing to do but to receive again.
        received.unwrap_or(0)
    }
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

/// Checks where `packet` claims to come from, having arrived from `outer`.
fn admit(
    packet: &Packet<'_>,
    outer: Ipv4Addr,
    table: &PeerTable,
    check: SourceCheck,
) -> Result<(), DropReason> {
    let inner = packet.src();
    if check != SourceCheck::Off && !table.knows(outer) {
        return Err(DropReason::UnknownPeer);
    }
    if table.is_own(inner) {
        return Err(DropReason::OwnSource);
    }
    if check == SourceCheck::Strict && !table.owns(outer, inner) {
        return Err(DropReason::WrongSource);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;
    use crate::answers::tests::Sent;
    use crate::fake::{FakeDevice, FakeWire};
    use crate::table::SharedTable;
    use crate::table::tests::{local, peer};
    use crate::wire::ipv4::tests::udp_packet;

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
    }

    fn rig(format: Format, check: SourceCheck) -> Rig {
        let peers = vec![peer("10.1.63.0/24", MASTER), peer("10.1.7.0/24", "192.168.199.7")];
        let table = SharedTable::new(PeerTable::new(local(format), peers));
        let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), Sent::default());
        let stats = Arc::new(WorkerStats::default());
        let answers = Answers::new(Box::new(icmp.clone()));
        let ingress =
            Ingress::new(device.clone(), wire.clone(), check, table.reader(), answers, Arc::clone(&stats));
        Rig { ingress, device, wire, icmp, stats }
    }

    fn frame(packet: &[u8]) -> Vec<u8> {
        [&vxlan::header(1, THEIRS, OURS)[..], packet].concat()
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
        assert_eq!(icmp[0].0, "10.1.63.2".parse::<Ipv4Addr>().unwrap());
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
        let with = |vni, dst| [&vxlan::header(vni, THEIRS, dst)[..], &packet].concat();
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
        use DropReason::{OwnSource, UnknownPeer, WrongSource};
        use SourceCheck::{Loose, Off, Strict};
        let cases = [
            (MASTER, "10.1.63.2", [None, None, None]),
            (MASTER, MASTER, [None, None, None]),
            (MASTER, "10.1.7.2", [Some(WrongSource), None, None]),
            (MASTER, "8.8.8.8", [Some(WrongSource), None, None]),
            ("192.168.199.99", "10.1.63.2", [Some(UnknownPeer), Some(UnknownPeer), None]),
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
    fn what_the_device_refuses_is_counted() {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        rig.device.fail(libc::EIO);
        rig.wire.arrive(MASTER, &frame(&udp_packet("10.1.63.2", "10.1.9.3", 64, b"x")));
        rig.ingress.step();
        assert_eq!(rig.stats.totals().drops(DropReason::WriteFailed), 1);
        assert_eq!(rig.stats.totals().packets, 0);
    }
}
