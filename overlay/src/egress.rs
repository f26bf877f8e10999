//! From the overlay device to the wire.
//!
//! 1. read a packet from the device, until there is none or the batch is full
//! 2. parse its header
//! 3. find the node that owns its destination
//! 4. encapsulate it
//! 5. send the batch with one system call
//!
//! What cannot go on is dropped, counted, and where the rules say so, its sender is told.

use std::io;
use std::sync::Arc;

use crate::answers::Answers;
use crate::batch::Batch;
use crate::drops::DropReason;
use crate::stats::WorkerStats;
use crate::sys::wake::{StopFlag, Woken, wait_readable};
use crate::table::{Hop, PeerTable, Route, TableReader};
use crate::tun::Device;
use crate::underlay::Transmitter;
use crate::wire::icmp::IcmpError;
use crate::wire::ipv4::Packet;
use crate::wire::{Format, vnet};

/// One worker from the device to the wire.
pub struct Egress<D, T> {
    device: D,
    wire: T,
    table: TableReader,
    answers: Answers,
    stats: Arc<WorkerStats>,
    batch: Batch,
}

impl<D: Device, T: Transmitter> Egress<D, T> {
    /// Reads from `device`, sends through `wire`, up to `batch` packets at a time.
    #[must_use]
    pub fn new(
        device: D,
        wire: T,
        table: TableReader,
        answers: Answers,
        stats: Arc<WorkerStats>,
        batch: usize,
    ) -> Self {
        Self { device, wire, table, answers, stats, batch: Batch::new(batch) }
    }

    /// Forwards until `stop` is raised.
    ///
    /// # Errors
    /// The device is gone, or cannot be read any more.
    pub fn run(mut self, stop: &StopFlag) -> io::Result<()> {
        while !stop.is_raised() {
            if self.step()? == 0 && wait_readable(self.device.readiness(), stop)? == Woken::Stopped {
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
        let read = self.fill()?;
        self.flush();
        Ok(read)
    }

    fn fill(&mut self) -> io::Result<usize> {
        let table = self.table.load();
        let mut read = 0;
        while !self.batch.is_full() {
            let buffer = self.batch.next_read();
            let len = match self.device.read(buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            read += 1;
            let bytes = buffer.get_mut(vnet::LEN..len).unwrap_or_default();
            let mut packet = match Packet::parse(bytes) {
                Ok(packet) => packet,
                Err(reason) => {
                    self.stats.dropped(reason);
                    continue;
                }
            };
            match admit(&mut packet, table) {
                Ok(hop) => {
                    let len = packet.bytes().len();
                    self.batch.push(hop.to, hop.header(), len);
                }
                Err(refusal) => {
                    self.stats.dropped(refusal.reason);
                    if let Some(error) = refusal.tell {
                        self.answers.tell(error, table.local().overlay_address, &packet, &self.stats);
                    }
                }
            }
        }
        Ok(read)
    }

    fn flush(&mut self) {
        let messages = self.batch.messages();
        if messages.is_empty() {
            return;
        }
        let (mut packets, mut bytes) = (0, 0);
        for message in messages {
            packets += 1;
            bytes += message.inner_len() as u64;
        }
        let batch = &self.batch;
        self.wire.transmit(batch, |index, error| {
            packets -= 1;
            bytes -= batch.messages()[index].inner_len() as u64;
            self.stats.dropped(match error.raw_os_error() {
                Some(libc::EMSGSIZE) => DropReason::TooBig,
                _ => DropReason::SendFailed,
            });
        });
        self.stats.forwarded(packets, bytes);
        self.batch.clear();
    }
}

/// Why a packet does not go on, and what its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refusal {
    reason: DropReason,
    tell: Option<IcmpError>,
}

/// Decides where `packet` goes, and makes it ready to go there.
fn admit<'a>(packet: &mut Packet<'_>, table: &'a PeerTable) -> Result<&'a Hop, Refusal> {
    let local = table.local();
    let refuse = |reason, tell| Err(Refusal { reason, tell });
    let hop = match table.route(packet.dst()) {
        Route::Peer(hop) => hop,
        Route::Own => return refuse(DropReason::OwnSubnet, None),
        Route::None => return refuse(DropReason::NoRoute, Some(IcmpError::NetUnreachable)),
    };
    // Without DF the packet may be cut, and the kernel cuts the outer one where it must.
    if packet.bytes().len() > local.mtu as usize && packet.dont_fragment() {
        let mtu = u16::try_from(local.mtu).unwrap_or(u16::MAX);
        return refuse(DropReason::TooBig, Some(IcmpError::FragmentationNeeded { mtu }));
    }
    if local.format == Format::FlannelUdp {
        if packet.ttl() <= 1 {
            return refuse(DropReason::TtlExpired, Some(IcmpError::TimeExceeded));
        }
        packet.decrement_ttl();
    }
    Ok(hop)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::answers::tests::Sent;
    use crate::fake::{FakeDevice, FakeWire};
    use crate::table::SharedTable;
    use crate::table::tests::{local, peer};
    use crate::wire::ipv4::tests::udp_packet;
    use crate::{MacAddr, wire::vxlan};

    struct Rig {
        egress: Egress<FakeDevice, FakeWire>,
        device: FakeDevice,
        wire: FakeWire,
        icmp: Sent,
        stats: Arc<WorkerStats>,
    }

    fn rig(format: Format) -> Rig {
        let peers = vec![peer("10.1.63.0/24", "192.168.199.238"), peer("10.1.7.0/24", "192.168.199.7")];
        let table = SharedTable::new(PeerTable::new(local(format), peers));
        let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), Sent::default());
        let stats = Arc::new(WorkerStats::default());
        let answers = Answers::new(Box::new(icmp.clone()));
        let egress =
            Egress::new(device.clone(), wire.clone(), table.reader(), answers, Arc::clone(&stats), 4);
        Rig { egress, device, wire, icmp, stats }
    }

    const VXLAN: Format = Format::Vxlan { vni: 1, vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]) };

    #[test]
    fn a_packet_leaves_as_a_frame_to_the_owner_of_its_destination() {
        let mut rig = rig(VXLAN);
        let packet = udp_packet("10.1.9.3", "10.1.63.2", 64, b"hello");
        rig.device.queue(&packet);
        assert_eq!(rig.egress.step().unwrap(), 1);
        let sent = rig.wire.take_sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].0, "192.168.199.238:8472".parse().unwrap());
        let (header, inner) = sent[0].1.split_at(vxlan::HEADER_LEN);
        assert_eq!(header[8..14], peer("10.1.63.0/24", "1.1.1.1").vtep_mac.unwrap().0);
        assert_eq!(inner, packet, "the packet itself is untouched, its TTL too");
        assert_eq!(rig.stats.totals().packets, 1);
        assert_eq!(rig.stats.totals().bytes, packet.len() as u64);
    }

    #[test]
    fn flannels_udp_is_the_bare_packet_with_a_hop_less() {
        let mut rig = rig(Format::FlannelUdp);
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.7.2", 64, b"hello"));
        rig.egress.step().unwrap();
        let sent = rig.wire.take_sent();
        assert_eq!(sent[0].1, udp_packet("10.1.9.3", "10.1.7.2", 63, b"hello"));
    }

    #[test]
    fn more_than_a_batch_is_left_for_the_next() {
        let mut rig = rig(VXLAN);
        for i in 0..6 {
            rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, &[i]));
        }
        assert_eq!(rig.egress.step().unwrap(), 4);
        assert_eq!(rig.egress.step().unwrap(), 2);
        assert_eq!(rig.egress.step().unwrap(), 0);
        let order: Vec<u8> = rig.wire.take_sent().iter().map(|(_, bytes)| *bytes.last().unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    }

    /// Sends one packet and returns why it was dropped and the ICMP type, code and word that told so.
    fn refused(format: Format, packet: &[u8]) -> (Vec<DropReason>, Option<[u8; 8]>) {
        let mut rig = rig(format);
        rig.device.queue(packet);
        rig.egress.step().unwrap();
        assert!(rig.wire.take_sent().is_empty());
        let totals = rig.stats.totals();
        let reasons = DropReason::ALL.into_iter().filter(|reason| totals.drops(*reason) == 1).collect();
        let told = rig.icmp.0.lock().unwrap().first().map(|(to, icmp)| {
            assert_eq!(*to, Ipv4Addr::new(10, 1, 9, 3));
            assert_eq!(icmp[12..16], [10, 1, 9, 0], "from the overlay device's address");
            icmp[20..28].try_into().unwrap()
        });
        (reasons, told)
    }

    fn kind(told: Option<[u8; 8]>) -> Option<(u8, u8)> {
        told.map(|icmp| (icmp[0], icmp[1]))
    }

    #[test]
    fn what_cannot_go_on_is_counted_and_told() {
        let to = |dst, ttl| udp_packet("10.1.9.3", dst, ttl, b"x");
        let (reasons, told) = refused(VXLAN, &to("10.1.8.2", 64));
        assert_eq!((reasons, kind(told)), (vec![DropReason::NoRoute], Some((3, 0))));
        let (reasons, told) = refused(VXLAN, &to("224.0.0.9", 64));
        assert_eq!((reasons, kind(told)), (vec![DropReason::NoRoute], None));
        let (reasons, told) = refused(VXLAN, &to("10.1.9.77", 64));
        assert_eq!((reasons, kind(told)), (vec![DropReason::OwnSubnet], None));
        let (reasons, told) = refused(Format::FlannelUdp, &to("10.1.63.2", 1));
        assert_eq!((reasons, kind(told)), (vec![DropReason::TtlExpired], Some((11, 0))));
        let (reasons, told) = refused(VXLAN, &[0x60; 40]);
        assert_eq!((reasons, kind(told)), (vec![DropReason::NotIp], None));
        let (reasons, told) = refused(VXLAN, &[]);
        assert_eq!((reasons, kind(told)), (vec![DropReason::Truncated], None));
    }

    #[test]
    fn too_big_is_told_with_the_mtu_unless_it_may_be_cut() {
        let mut packet = udp_packet("10.1.9.3", "10.1.63.2", 64, &[0; 1500]);
        assert!(Packet::parse(&mut packet).unwrap().dont_fragment(), "etherparse sets DF");
        let (reasons, told) = refused(VXLAN, &packet);
        assert_eq!(reasons, [DropReason::TooBig]);
        let told = told.unwrap();
        assert_eq!((told[0], told[1]), (3, 4));
        assert_eq!(u16::from_be_bytes([told[6], told[7]]), 1450);

        packet[6] = 0;
        packet[10..12].fill(0);
        let sum = !crate::wire::checksum::sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut rig = rig(VXLAN);
        rig.device.queue(&packet);
        rig.egress.step().unwrap();
        assert_eq!(rig.wire.take_sent().len(), 1);
    }

    #[test]
    fn what_the_wire_refuses_is_counted_and_the_rest_goes_on() {
        let mut rig = rig(VXLAN);
        rig.wire.refuse(1, libc::ENETUNREACH);
        rig.wire.refuse(2, libc::EMSGSIZE);
        for _ in 0..4 {
            rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, b"x"));
        }
        rig.egress.step().unwrap();
        let totals = rig.stats.totals();
        assert_eq!(totals.packets, 2);
        assert_eq!(totals.bytes, 2 * 29);
        assert_eq!(totals.drops(DropReason::SendFailed), 1);
        assert_eq!(totals.drops(DropReason::TooBig), 1);
    }

    #[test]
    fn a_device_that_is_gone_is_an_error() {
        let mut rig = rig(VXLAN);
        rig.device.fail(libc::EBADFD);
        assert_eq!(rig.egress.step().unwrap_err().raw_os_error(), Some(libc::EBADFD));
    }
}
