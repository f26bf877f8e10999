use std::net::IpAddr;

use overlay_wire::MacAddr;
use overlay_wire::ip::Version;
use overlay_wire::samples;
use overlay_wire::samples::udp_packet;
use overlay_wire::vnet;

use super::*;
use crate::answers::tests::Sent;
use crate::capture::{Filter, Tap};
use crate::fake::{FakeDevice, FakeWire};
use crate::peer_state::PeerTotals;
use crate::table::tests::{local, peer, subnets};
use crate::table::{Local, Peer, SharedTable};
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

/// Packets to `to` are judged by outer and inner source as `cases` have it, with the check strict, loose and off, and in
/// both formats alike.
fn sources_are_judged(to: &str, cases: &[(&str, &str, [Option<DropReason>; 3])]) {
    for (outer, inner, expected) in cases {
        for (check, expected) in
            [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off].into_iter().zip(*expected)
        {
            let packet = udp_packet(inner, to, 64, b"x");
            let vxlan = verdict(VXLAN, check, outer, &frame(&packet));
            let udp = verdict(Format::FlannelUdp, check, outer, &packet);
            assert_eq!((vxlan, udp), (expected, expected), "{outer} {inner} {check:?}");
        }
    }
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
    rig.wire.arrive(MASTER, &frame(&samples::with_options(&[131, 7, 4, 10, 1, 7, 2])));
    rig.ingress.step();
    assert_eq!(rig.stats.totals().drops(DropReason::SourceRoute), 1);
}

#[test]
fn a_tunnel_inside_the_tunnel_is_dropped_whatever_the_leases_say() {
    let nested = |src: &str, dst: &str, port: u16, fragment: bool| {
        let inner = frame(&udp_packet("10.1.7.2", "10.1.9.3", 64, b"forged"));
        let mut bytes = Vec::new();
        samples::builder(src, dst, 64).udp(4000, port).write(&mut bytes, &inner).unwrap();
        if fragment {
            // More are to follow.
            bytes[6] = 0x20;
            bytes[10..12].fill(0);
            let sum = !overlay_wire::checksum::sum(&bytes[..20]);
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
                let everything = Peer { subnets: subnets("0.0.0.0/0", "::/0"), ..peer("0.0.0.0/0", MASTER) };
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
    let router_alert = samples::with_options(&[148, 4, 0, 0]);
    let timestamp = samples::with_options(&[68, 4, 5, 0]);
    let fragment = |field: [u8; 2]| {
        let mut bytes = plain.clone();
        bytes[6..8].copy_from_slice(&field);
        bytes[10..12].fill(0);
        let sum = !overlay_wire::checksum::sum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let sent =
        [plain.clone(), router_alert, timestamp, fragment([0x20, 0]), fragment([0x20, 1]), fragment([0, 2])];
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
    let icmp = rig.icmp.0.lock();
    assert_eq!(icmp[0].0, IpAddr::from([10, 1, 63, 2]));
    assert_eq!(icmp[0].1[20], 11);
}

#[test]
fn who_is_told_of_a_packet_is_told_of_it_with_the_mark_that_it_got_on_the_way() {
    let sent = |ecn| {
        let mut packet = udp_packet("10.1.63.2", "10.1.9.3", 1, b"x");
        Packet::parse(&mut packet).unwrap().set_ecn(ecn);
        packet
    };
    let mut rig = rig(Format::FlannelUdp, SourceCheck::Strict);
    rig.wire.arrive_with(MASTER, &sent(Ecn::Ect0), Ecn::Ce);
    assert_eq!(rig.ingress.step(), 1);
    let icmp = rig.icmp.0.lock();
    assert!(icmp[0].1.ends_with(&sent(Ecn::Ce)), "{icmp:?}");
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
    use DropReason::{OtherPeersSource, OwnSource, StaleSource, UnknownAddress, UnknownPeer, WrongSource};
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
    sources_are_judged("10.1.9.3", &cases);
}

#[test]
fn an_address_that_a_peer_has_said_is_its_own_and_nobody_elses() {
    use DropReason::{MartianSource, OtherPeersSource, OwnSource, StaleSource, WrongSource};
    let said = [
        "172.16.5.1",
        "10.1.7.2",
        "192.168.199.7",
        "10.1.99.2",
        "10.1.9.3",
        "192.168.1.12",
        "127.0.0.1",
        "192.168.1.1",
    ];
    let verdict = |outer: &str, inner: &str| {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        rig.table.set_no_nodes(["192.168.1.1", MASTER].map(|address| address.parse().unwrap()).into());
        // As another lease comes.
        let before = rig.table.current();
        rig.table.publish(before.local().clone(), before.peers().to_vec());
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
        Some(WrongSource),
    ]) {
        assert_eq!(verdict(MASTER, inner), expected, "{inner}");
    }
    assert_eq!(verdict(MASTER, MASTER), None, "its lease says so");
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
    let capturing = Tap::open(&watched.tap, filter).unwrap();
    let packet = |src| udp_packet(src, "10.1.9.3", 64, &[7; 100]);
    let run = frame(&packet("10.1.63.2")).repeat(2);
    rig.wire.arrive_segmented(MASTER, &run, vxlan::HEADER_LEN + 128);
    rig.wire.arrive(MASTER, &frame(&packet("10.1.7.2")));
    rig.wire.arrive(MASTER, &[8; 10]);
    rig.ingress.step();
    let seen: Vec<_> =
        capturing.packets.try_iter().map(|c| (c.outer.is_some(), c.bytes.len(), c.reason)).collect();
    let refused = [(false, 128, Some(DropReason::OtherPeersSource)), (true, 10, Some(DropReason::Truncated))];
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
        let sum = !overlay_wire::checksum::sum(&packet[..20]);
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
    let lens: Vec<_> = rig.device.take_written().iter().map(|written| written.len() - vnet::LEN).collect();
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
    // The UDP checksum lies 6 bytes behind the IP header.
    for (src, dst, checksum) in [("10.1.63.2", "10.1.9.3", 26), ("fd00:0:0:63::2", "fd00:0:0:9::3", 46)] {
        let mut rig = rig(VXLAN, SourceCheck::Strict);
        let mut packet = udp_packet(src, dst, 64, &[7; 3000]);
        let unfilled = Packet::parse(&mut packet).unwrap().pseudo_header();
        packet[checksum..checksum + 2].copy_from_slice(&unfilled.to_be_bytes());
        rig.wire.arrive_segmented(MASTER, &frame(&packet), 1000);
        rig.ingress.step();
        let written = rig.device.take_written();
        assert_eq!(written[0][vnet::LEN..], packet, "from {src}");
        let header = VnetHdr::parse(written[0].first_chunk().unwrap()).unwrap();
        assert_eq!(header.gso, Some(Gso { kind: GsoKind::Udp, size: 1000 }), "from {src}");
    }
}

#[test]
fn a_super_packet_that_arrives_uncut_is_cut_here_for_a_device_that_knows_none() {
    for (src, dst, headers_len) in [("10.1.63.2", "10.1.9.3", 28), ("fd00:0:0:63::2", "fd00:0:0:9::3", 48)] {
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
    let capturing = Tap::open(&watched.tap, Filter { snaplen: 100, ..Filter::default() }).unwrap();
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
    sources_are_judged("fd00:0:0:9::3", &cases);
}

#[test]
fn a_network_without_ipv6_takes_none_whatever_the_source_check() {
    for check in [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off] {
        let mut rig = rig(VXLAN, check);
        rig.table.publish(
            Local { subnets: subnets("10.1.9.0/24", ""), ..local(VXLAN) },
            vec![peer("10.1.63.0/24", MASTER)],
        );
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
    let icmp = rig.icmp.0.lock();
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
