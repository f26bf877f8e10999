use std::net::IpAddr;

use overlay_wire::ecn::Ecn;
use overlay_wire::ip::Version;
use overlay_wire::samples::{builder, udp_packet};
use overlay_wire::samples::{super_packet, super_packet_header};
use overlay_wire::vnet::{Gso, GsoKind};
use overlay_wire::{Format, MacAddr};

use super::*;
use crate::answers::tests::Sent;
use crate::capture::{Filter, Layer, Tap};
use crate::fake::{FakeDevice, FakeWire};
use crate::peer_state::Exchanged;
use crate::peer_state::PeerFlag;
use crate::table::tests::{addresses, local, peer, subnets};
use crate::table::{Local, Peer, PeerTable, SharedTable};
use crate::witness::Watched;

struct Rig {
    egress: Egress<FakeDevice, FakeWire>,
    device: FakeDevice,
    wire: FakeWire,
    icmp: Sent,
    stats: Arc<WorkerStats>,
    table: SharedTable,
}

fn rig(format: Format) -> Rig {
    rig_of(local(format))
}

fn rig_of(local: Local) -> Rig {
    let peers = vec![peer("10.1.63.0/24", "192.168.199.238"), peer("10.1.7.0/24", "192.168.199.7")];
    let table = SharedTable::new(PeerTable::new(local, peers));
    let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), Sent::default());
    let stats = Arc::new(WorkerStats::default());
    let answers = Answers::new(Box::new(icmp.clone()), Arc::default());
    let egress = Egress::new(device.clone(), wire.clone(), table.reader(), answers, Arc::clone(&stats));
    Rig { egress, device, wire, icmp, stats, table }
}

const VXLAN: Format = Format::Vxlan { vni: 1, vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]) };

#[test]
fn what_goes_to_one_node_by_two_families_goes_to_two_addresses_though_in_one_batch() {
    let here = Local { public: addresses("192.168.1.12", "2001:db8::12"), ..local(VXLAN) };
    let node = Peer {
        public: addresses("192.168.199.238", "2001:db8::238"),
        ..peer("10.1.63.0/24", "192.168.199.238")
    };
    let mut rig = rig_of(here.clone());
    rig.table.publish(here, vec![node]);
    rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, &[1; 100]));
    rig.device.queue(&udp_packet("fd00:0:0:9::3", "fd00:0:0:63::2", 64, &[1; 50]));
    assert_eq!(rig.egress.step().unwrap(), 2);
    let to: Vec<String> = rig.wire.take_sent().into_iter().map(|(to, _)| to.to_string()).collect();
    assert_eq!(to, ["192.168.199.238:8472", "[2001:db8::238]:8472"]);
}

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
    assert_eq!(header[8..14], peer("10.1.63.0/24", "1.1.1.1").vtep_macs.unwrap().prefer(Version::V4).0);
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
    let count = BATCH as u8 + 2;
    for i in 0..count {
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, &[i]));
    }
    assert_eq!(rig.egress.step().unwrap(), BATCH);
    assert_eq!(rig.egress.step().unwrap(), 2);
    assert_eq!(rig.egress.step().unwrap(), 0);
    let order: Vec<u8> = rig.wire.take_sent().iter().map(|(_, bytes)| *bytes.last().unwrap()).collect();
    assert_eq!(order, (0..count).collect::<Vec<_>>());
}

#[test]
fn a_flood_of_what_is_dropped_holds_nothing_up() {
    let mut rig = rig(VXLAN);
    rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, b"good"));
    for _ in 0..3 * BATCH {
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.8.2", 64, b"nobody's"));
    }
    assert_eq!(rig.egress.step().unwrap(), BATCH);
    assert_eq!(rig.wire.take_sent().len(), 1);
}

#[test]
fn a_super_packet_leaves_in_segments_with_right_checksums() {
    let mut rig = rig(VXLAN);
    let packet = udp_packet("10.1.9.3", "10.1.63.2", 64, &[7; 3000]);
    let header = VnetHdr {
        needs_csum: true,
        gso: Some(Gso { kind: GsoKind::Udp, size: 1400 }),
        csum_start: 20,
        csum_offset: 6,
        hdr_len: 3028,
    };
    rig.device.queue_with(header, &packet);
    rig.egress.step().unwrap();
    let sent = rig.wire.take_sent();
    let lens: Vec<usize> = sent.iter().map(|(_, frame)| frame.len() - vxlan::HEADER_LEN - 28).collect();
    assert_eq!(lens, [1400, 1400, 200]);
    for (_, mut frame) in sent {
        let inner = Packet::parse(&mut frame[vxlan::HEADER_LEN..]).unwrap();
        assert_eq!(VnetHdr::for_arrival(&inner, 1450, None), VnetHdr::default());
    }
    assert_eq!(rig.stats.totals().packets, 3);
    assert_eq!(rig.stats.totals().bytes, 3000 + 3 * 28);
}

#[test]
fn what_is_said_of_congestion_stands_outside_too() {
    let all = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];
    for (src, dst) in [("10.1.9.3", "10.1.63.2"), ("fd00:0:0:9::3", "fd00:0:0:63::2")] {
        let mut rig = rig(VXLAN);
        let mut inner = Vec::new();
        for ecn in all {
            let mut packet = udp_packet(src, dst, 64, b"hello");
            Packet::parse(&mut packet).unwrap().set_ecn(ecn);
            rig.device.queue(&packet);
            inner.push(packet);
        }
        rig.egress.step().unwrap();
        assert_eq!(rig.wire.take_ecn(), all.map(Ecn::outside));
        let sent = rig.wire.take_sent();
        assert!(sent.iter().zip(&inner).all(|((_, frame), inner)| frame[vxlan::HEADER_LEN..] == *inner));
    }
    let mut rig = rig(VXLAN);
    rig.wire.take_super_packets();
    for unfinished in [false, true] {
        rig.table.current().hops().next().unwrap().state.set(PeerFlag::Unfinished, unfinished);
        let mut packet = super_packet(3000);
        Packet::parse(&mut packet).unwrap().set_ecn(Ecn::Ect0);
        rig.device.queue_with(super_packet_header(1400), &packet);
        rig.egress.step().unwrap();
        let pieces = if unfinished { 1 } else { 3 };
        assert_eq!(rig.wire.take_ecn(), vec![Ecn::Ect0; pieces]);
    }
}

#[test]
fn a_super_packet_leaves_whole_to_who_sends_unfinished_ones_and_in_its_place() {
    let mut rig = rig(VXLAN);
    let state = Arc::clone(&rig.table.current().at("192.168.199.238".parse().unwrap()).unwrap().state);
    let packet = super_packet(3000);
    let mut frames = || {
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, b"before"));
        rig.device.queue_with(super_packet_header(1400), &packet);
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, b"after!"));
        rig.egress.step().unwrap();
        rig.wire.take_sent().iter().map(|(_, frame)| frame.len() - vxlan::HEADER_LEN).collect::<Vec<_>>()
    };
    let (cut, whole) = (vec![34, 1440, 1440, 240, 34], vec![34, 3040, 34]);
    assert_eq!(frames(), cut);
    state.set(PeerFlag::Unfinished, true);
    assert_eq!(frames(), cut, "the wire does not take it");
    rig.wire.take_super_packets();
    assert_eq!(frames(), whole);
    state.set_path_mtu(Some(1490));
    assert_eq!(frames(), whole);
    state.set_path_mtu(Some(1489));
    assert_eq!(frames(), cut);
    state.set_path_mtu(None);
    state.set(PeerFlag::Unfinished, false);
    assert_eq!(frames(), cut);

    let expected = (6 * 5, 6 * (34 + 34 + 3000 + 3 * 40));
    assert_eq!((rig.stats.totals().packets, rig.stats.totals().bytes), expected, "they count the same");
    assert_eq!((state.totals().egress.packets, state.totals().egress.bytes), expected);
}

#[test]
fn an_underlay_of_ipv6_carries_both_versions_in_pieces() {
    let public = addresses("192.168.1.12", "2001:db8::12");
    let mut rig = rig_of(Local { public, ..local(VXLAN) });
    let theirs = Peer { public: addresses("", "2001:db8::238"), ..peer("10.1.63.0/24", "192.168.199.238") };
    rig.table.publish(Local { public, ..local(VXLAN) }, vec![theirs]);
    rig.wire.take_super_packets();
    let to = "[2001:db8::238]:8472".parse().unwrap();
    let table = rig.table.current();
    let state = &table.hops().next().unwrap().state;
    state.set(PeerFlag::Unfinished, true);
    rig.device.queue_with(super_packet_header(1400), &super_packet(3000));
    rig.device.queue(&udp_packet("fd00:0:0:9::3", "fd00:0:0:63::2", 64, b"hello"));
    rig.egress.step().unwrap();
    let sent = rig.wire.take_sent();
    assert_eq!(
        sent.iter().map(|(end, _)| *end).collect::<Vec<_>>(),
        [to; 4],
        "headers of our own are IPv4's"
    );

    // Its header is longer by 20 bytes.
    state.set_path_mtu(Some(1400));
    let most = 1400 - 40 - 8 - 22;
    for (len, passes) in [(most, true), (most + 1, false)] {
        let mut packet = udp_packet("10.1.9.3", "10.1.63.2", 64, &vec![7; len - 28]);
        packet[6] |= 0x40;
        packet[10..12].fill(0);
        let sum = !overlay_wire::checksum::sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        rig.device.queue(&packet);
        rig.egress.step().unwrap();
        assert_eq!(rig.wire.take_sent().len(), usize::from(passes), "{len} bytes");
    }
}

#[test]
fn a_checksum_left_for_later_is_filled() {
    let mut rig = rig(VXLAN);
    let finished = udp_packet("10.1.9.3", "10.1.63.2", 64, b"hello");
    let mut packet = finished.clone();
    let unfilled = Packet::parse(&mut packet).unwrap().pseudo_header();
    packet[26..28].copy_from_slice(&unfilled.to_be_bytes());
    let header = VnetHdr { needs_csum: true, csum_start: 20, csum_offset: 6, ..VnetHdr::default() };
    rig.device.queue_with(header, &packet);
    rig.egress.step().unwrap();
    assert_eq!(rig.wire.take_sent()[0].1[vxlan::HEADER_LEN..], finished);
}

#[test]
fn a_super_packet_is_too_big_only_if_its_segments_are() {
    let tell = |size| {
        let mut rig = rig(VXLAN);
        let packet = udp_packet("10.1.9.3", "10.1.63.2", 64, &[7; 3000]);
        let gso = Some(Gso { kind: GsoKind::Udp, size });
        rig.device.queue_with(VnetHdr { needs_csum: true, gso, ..VnetHdr::default() }, &packet);
        rig.egress.step().unwrap();
        rig.stats.totals().drops(DropReason::TooBig)
    };
    assert_eq!((tell(1422), tell(1423)), (0, 1));
}

#[test]
fn a_narrow_path_counts_for_its_peer_and_no_other() {
    let mut rig = rig(VXLAN);
    let state = |rig: &Rig| {
        let table = rig.table.current();
        let state = table.state(subnets("10.1.63.0/24", ""), addresses("192.168.199.238", ""));
        Arc::clone(state.unwrap())
    };
    let told = |rig: &mut Rig, dst: &str, len: usize| {
        rig.icmp.0.lock().clear();
        rig.device.queue(&udp_packet("10.1.9.3", dst, 64, &vec![7; len - 28]));
        rig.egress.step().unwrap();
        let icmp = rig.icmp.0.lock();
        icmp.first().map(|(_, icmp)| u16::from_be_bytes([icmp[26], icmp[27]]))
    };
    state(&rig).set_path_mtu(Some(1400));
    assert_eq!(told(&mut rig, "10.1.63.2", 1350), None);
    assert_eq!(told(&mut rig, "10.1.63.2", 1351), Some(1350));
    assert_eq!(told(&mut rig, "10.1.7.2", 1351), None);
    let gso = Some(Gso { kind: GsoKind::Udp, size: 1323 });
    let packet = udp_packet("10.1.9.3", "10.1.63.2", 64, &[7; 3000]);
    rig.device.queue_with(VnetHdr { needs_csum: true, gso, ..VnetHdr::default() }, &packet);
    rig.egress.step().unwrap();
    assert_eq!(rig.stats.totals().drops(DropReason::TooBig), 2, "a segment of 1351 bytes");
    state(&rig).set_path_mtu(Some(9000));
    assert_eq!(told(&mut rig, "10.1.63.2", 1451), Some(1450), "the device's own MTU counts, too");
    state(&rig).set_path_mtu(None);
    assert_eq!(told(&mut rig, "10.1.63.2", 1351), None);
}

/// Sends one packet and returns why it was dropped and the ICMP type, code and word that told so.
fn refused(format: Format, packet: &[u8]) -> (Vec<DropReason>, Option<[u8; 8]>) {
    let mut rig = rig(format);
    rig.device.queue(packet);
    rig.egress.step().unwrap();
    assert!(rig.wire.take_sent().is_empty());
    let totals = rig.stats.totals();
    let reasons = DropReason::ALL.into_iter().filter(|reason| totals.drops(*reason) == 1).collect();
    let told = rig.icmp.0.lock().first().map(|(to, icmp)| {
        assert_eq!(*to, IpAddr::from([10, 1, 9, 3]));
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
    let (reasons, told) = refused(VXLAN, &to("10.1.255.255", 64));
    assert_eq!((reasons, kind(told)), (vec![DropReason::NoRoute], None));
    let (reasons, told) = refused(VXLAN, &to("10.1.9.77", 64));
    assert_eq!((reasons, kind(told)), (vec![DropReason::OwnSubnet], None));
    let (reasons, told) = refused(Format::FlannelUdp, &to("10.1.63.2", 1));
    assert_eq!((reasons, kind(told)), (vec![DropReason::TtlExpired], Some((11, 0))));
    let (reasons, told) = refused(VXLAN, &[0x70; 40]);
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
    let sum = !overlay_wire::checksum::sum(&packet[..20]);
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
    for payload in [&b"x"[..], b"xx", b"xxx", b"xxxx"] {
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.63.2", 64, payload));
    }
    rig.egress.step().unwrap();
    let totals = rig.stats.totals();
    assert_eq!(totals.packets, 2);
    assert_eq!(totals.bytes, 29 + 32);
    assert_eq!(totals.drops(DropReason::SendFailed), 1);
    assert_eq!(totals.drops(DropReason::TooBig), 1);
    let peer = |public_ip: &str| rig.table.current().at(public_ip.parse().unwrap()).unwrap().state.totals();
    assert_eq!(peer("192.168.199.238").egress, Exchanged { packets: 2, bytes: 29 + 32, drops: 2 });
    assert_eq!(peer("192.168.199.7").egress, Exchanged::default());
}

#[test]
fn who_captures_sees_what_was_sent_and_what_was_not() {
    for layer in [Layer::Inner, Layer::Outer] {
        let mut rig = rig(VXLAN);
        let (watched, own) = (Arc::<Watched>::default(), "192.168.1.12:40000".parse().unwrap());
        rig.egress = rig.egress.watched_by(Witness::new(Direction::Egress, Arc::clone(&watched), vec![own]));
        let filter = Filter { layer, snaplen: 2000, ..Filter::default() };
        let capturing = Tap::open(&watched.tap, filter).unwrap();
        let packet = |payload: &[u8]| udp_packet("10.1.9.3", "10.1.63.2", 64, payload);
        let gso = Some(Gso { kind: GsoKind::Udp, size: 1400 });
        rig.device.queue_with(VnetHdr { needs_csum: true, gso, ..VnetHdr::default() }, &packet(&[7; 2000]));
        rig.device.queue(&packet(b"refused"));
        rig.device.queue(&udp_packet("10.1.9.3", "10.1.8.2", 64, b"nobody's"));
        rig.wire.refuse(1, libc::ENETUNREACH);
        rig.egress.step().unwrap();
        let seen: Vec<_> = capturing.packets.try_iter().map(|c| (c.outer, c.len, c.reason)).collect();
        let to = Some((own, "192.168.199.238:8472".parse().unwrap()));
        let (no_route, failed) = (Some(DropReason::NoRoute), Some(DropReason::SendFailed));
        let expected = match layer {
            Layer::Inner => {
                vec![(None, 2028, None), (None, 35, None), (None, 36, no_route), (None, 35, failed)]
            }
            Layer::Outer => {
                vec![(None, 36, no_route), (to, 57, failed), (to, 1450, None), (to, 650, None)]
            }
        };
        assert_eq!(seen, expected, "{layer:?}");
        let offender = watched.offender(Direction::Egress, DropReason::SendFailed).unwrap();
        assert_eq!((offender.outer, offender.len), (to.map(|to| to.1), 35));
        assert_eq!(watched.offender(Direction::Egress, DropReason::NoRoute).unwrap().outer, None);
    }
}

#[test]
fn the_tunnels_own_packets_never_go_into_the_tunnel() {
    // Both peers' public addresses are in the first one's subnet, and the host routes them to the overlay.
    let peers = vec![peer("10.1.63.0/24", "10.1.63.200"), peer("10.1.7.0/24", "10.1.63.201")];
    let mut rig = rig(VXLAN);
    rig.table.publish(local(VXLAN), peers);
    let tunnel = |src: &str, dst: &str, port: u16| {
        let mut packet = udp_packet(src, dst, 64, b"x");
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet
    };
    for dst in ["10.1.63.200", "10.1.63.201"] {
        rig.device.queue(&tunnel("192.168.1.12", dst, 8472));
    }
    rig.egress.step().unwrap();
    assert_eq!(rig.stats.totals().drops(DropReason::Recursion), 2);
    assert!(rig.wire.take_sent().is_empty() && rig.icmp.0.lock().is_empty());
    // Other ports, other senders and other receivers are not the tunnel's.
    rig.device.queue(&tunnel("192.168.1.12", "10.1.63.200", 53));
    rig.device.queue(&tunnel("10.1.9.3", "10.1.63.200", 8472));
    rig.device.queue(&tunnel("192.168.1.12", "10.1.63.2", 8472));
    rig.egress.step().unwrap();
    assert_eq!(rig.stats.totals().drops(DropReason::Recursion), 2);
    assert_eq!(rig.wire.take_sent().len(), 3);
}

#[test]
fn what_is_refused_counts_as_its_peers_if_it_has_one() {
    let mut rig = rig(Format::FlannelUdp);
    for (dst, ttl) in [("10.1.63.2", 1), ("10.1.7.2", 64), ("10.1.8.2", 64)] {
        rig.device.queue(&udp_packet("10.1.9.3", dst, ttl, b"x"));
    }
    rig.egress.step().unwrap();
    let exchanged = rig.table.current().hops().map(|hop| hop.state.totals().egress).collect::<Vec<_>>();
    let expected = [(0, 0, 1), (1, 29, 0)];
    assert_eq!(exchanged, expected.map(|(packets, bytes, drops)| Exchanged { packets, bytes, drops }));
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let mut rig = rig(VXLAN);
    rig.device.fail(libc::EBADFD);
    assert_eq!(rig.egress.step().unwrap_err().raw_os_error(), Some(libc::EBADFD));
}

const POD_V6: &str = "fd00:0:0:9::3";
const THEIRS_V6: &str = "fd00:0:0:63::2";

#[test]
fn ipv6_leaves_as_a_frame_of_its_own_type() {
    let mut rig = rig(VXLAN);
    let packet = udp_packet(POD_V6, THEIRS_V6, 64, b"hello");
    rig.device.queue(&packet);
    rig.egress.step().unwrap();
    let (to, frame) = rig.wire.take_sent().remove(0);
    assert_eq!(to, "192.168.199.238:8472".parse().unwrap());
    assert_eq!(frame[20..22], [0x86, 0xdd]);
    assert_eq!(frame[vxlan::HEADER_LEN..], packet, "the packet itself is untouched, its hop limit too");
    let state = &rig.table.current().at(IpAddr::from([192, 168, 199, 238])).unwrap().state.totals();
    assert_eq!(state.egress.packets, 1, "a peer is one, whatever is sent to it");
}

#[test]
fn flannels_udp_takes_a_hop_off_ipv6_too() {
    let mut rig = rig(Format::FlannelUdp);
    rig.device.queue(&udp_packet(POD_V6, "fd00:0:0:7::2", 64, b"hello"));
    rig.egress.step().unwrap();
    assert_eq!(rig.wire.take_sent()[0].1, udp_packet(POD_V6, "fd00:0:0:7::2", 63, b"hello"));
}

#[test]
fn an_ipv6_super_packet_leaves_in_segments_unless_they_are_too_big() {
    for (size, count) in [(1390, 3), (1391, 0)] {
        let mut rig = rig(VXLAN);
        let mut packet = Vec::new();
        let tcp = builder(POD_V6, THEIRS_V6, 64).tcp(4000, 80, 7, 500).ack(9);
        tcp.write(&mut packet, &[7; 3000]).unwrap();
        let gso = Some(Gso { kind: GsoKind::Tcp6, size });
        let header = VnetHdr { needs_csum: true, gso, csum_start: 40, csum_offset: 16, hdr_len: 60 };
        rig.device.queue_with(header, &packet);
        rig.egress.step().unwrap();
        let sent = rig.wire.take_sent();
        assert_eq!(sent.len(), count, "segments of {size}");
        for (_, mut frame) in sent {
            let inner = Packet::parse(&mut frame[vxlan::HEADER_LEN..]).unwrap();
            let sum = overlay_wire::checksum::sum(inner.payload());
            assert_eq!(overlay_wire::checksum::add(inner.pseudo_header(), sum), 0xffff);
        }
        assert_eq!(rig.stats.totals().drops(DropReason::TooBig), u64::from(count == 0));
    }
}

/// Sends one IPv6 packet and returns why it was dropped and the ICMPv6 type, code and word that told so.
fn refused_v6(format: Format, packet: &[u8]) -> (Vec<DropReason>, Option<(u8, u8, u32)>) {
    let mut rig = rig(format);
    rig.device.queue(packet);
    rig.egress.step().unwrap();
    assert!(rig.wire.take_sent().is_empty());
    let totals = rig.stats.totals();
    let reasons = DropReason::ALL.into_iter().filter(|reason| totals.drops(*reason) == 1).collect();
    let told = rig.icmp.0.lock().first().map(|(to, icmp)| {
        assert_eq!(*to, POD_V6.parse::<IpAddr>().unwrap());
        let mut icmp = icmp.clone();
        let icmp = Packet::parse(&mut icmp).unwrap();
        assert_eq!(icmp.src(), "fd00:0:0:9::".parse::<IpAddr>().unwrap(), "the overlay device's address");
        let payload = icmp.payload();
        (payload[0], payload[1], u32::from_be_bytes(*payload[4..].first_chunk().unwrap()))
    });
    (reasons, told)
}

#[test]
fn what_cannot_go_on_of_ipv6_is_counted_and_told() {
    let to = |dst, hops| udp_packet(POD_V6, dst, hops, b"x");
    let no_route = vec![DropReason::NoRoute];
    assert_eq!(refused_v6(VXLAN, &to("fd00:0:0:8::2", 64)), (no_route.clone(), Some((1, 0, 0))));
    assert_eq!(refused_v6(VXLAN, &to("ff02::1", 64)), (no_route, None));
    assert_eq!(refused_v6(VXLAN, &to("fd00:0:0:9::77", 64)), (vec![DropReason::OwnSubnet], None));
    let expired = (vec![DropReason::TtlExpired], Some((3, 0, 0)));
    assert_eq!(refused_v6(Format::FlannelUdp, &to(THEIRS_V6, 1)), expired);
    let too_big = (vec![DropReason::TooBig], Some((2, 0, 1450)));
    assert_eq!(refused_v6(VXLAN, &udp_packet(POD_V6, THEIRS_V6, 64, &[0; 1403])), too_big);
}

#[test]
fn ipv6_has_1280_bytes_however_small_the_mtu() {
    let local = Local { mtu: 1000, ..local(VXLAN) };
    let mut rig = rig_of(local);
    for len in [1280, 1281] {
        rig.device.queue(&udp_packet(POD_V6, THEIRS_V6, 64, &vec![0; len - 48]));
    }
    rig.egress.step().unwrap();
    assert_eq!(rig.wire.take_sent().len(), 1, "which the kernel cuts");
    let told = rig.icmp.0.lock().remove(0).1;
    assert_eq!(told[44..48], 1280u32.to_be_bytes());
}

#[test]
fn a_network_without_ipv6_takes_none_and_says_nothing() {
    let mut rig = rig_of(Local { subnets: subnets("10.1.9.0/24", ""), ..local(VXLAN) });
    rig.device.queue(&udp_packet(POD_V6, THEIRS_V6, 64, b"x"));
    rig.egress.step().unwrap();
    assert_eq!(rig.stats.totals().drops(DropReason::NotIp), 1);
    assert!(rig.wire.take_sent().is_empty() && rig.icmp.0.lock().is_empty());
}

#[test]
fn pods_and_subnets_have_hashes_of_their_own() {
    let mut seen = std::collections::HashSet::new();
    for subnet in 0..16 {
        for pod in 0..16 {
            let mut packet = udp_packet(POD_V6, &format!("fd00:0:0:{subnet:x}::{pod:x}"), 64, b"x");
            seen.insert(flow_hash(&Packet::parse(&mut packet).unwrap()));
        }
    }
    assert!(seen.len() > 200, "{} of 256", seen.len());
}
