use std::collections::BTreeSet;
use std::sync::Arc;

use overlay_wire::{Format, MacAddr, vxlan};

use super::*;
use crate::answers::Answers;
use crate::answers::tests::Sent;
use crate::egress::Egress;
use crate::fake::{FakeDevice, FakeWire};
use crate::ingress::Ingress;
use crate::offload::{Offload, Offloads};
use crate::peer_state::PeerFlag;
use crate::stats::WorkerStats;
use crate::table::SharedTable;
use crate::table::tests::{addresses, local, peer, subnets};

const VXLAN: Format = Format::Vxlan { vni: 1, vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]) };
/// What frames to each of the peers are addressed to.
const FAR_VXLAN: Format = Format::Vxlan { vni: 1, vtep_mac: MacAddr([2, 0, 0, 0, 0, 9]) };
const OWN: &str = "192.168.1.12";
const MASTER: &str = "192.168.199.238";
const OTHER: &str = "192.168.199.7";
/// Its public address is another one's pod's.
const INSIDE: &str = "10.1.7.7";
const ANNOUNCED: &str = "172.16.5.1";
const NARROW: u32 = 1400;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with three peers: the path to the second is narrow, and the first has announced an address.
fn network(local: Local) -> SharedTable {
    let peers = vec![peer("10.1.63.0/24", MASTER), peer("10.1.7.0/24", OTHER), peer("10.1.8.0/24", INSIDE)];
    let table = PeerTable::new(local, peers);
    let hops: Vec<_> = table.hops().collect();
    hops[0].state.announce(vec![ANNOUNCED.parse().unwrap()]);
    hops[1].state.set_path_mtu(Some(NARROW));
    SharedTable::new(table)
}

fn packet(src: &str, dst: &str) -> Described {
    let (src, dst) = (address(src), address(dst));
    let ports = (4000, 53);
    Described { src, dst, protocol: 17, ports, len: 0, dont_fragment: true, ttl: 64, ecn: Ecn::NotEct }
}

/// What a loop has done with one packet: why it dropped it, and what it told the sender.
struct Done {
    dropped: Option<DropReason>,
    told: Option<Vec<u8>>,
}

impl Done {
    fn of(stats: &WorkerStats, icmp: &Sent) -> Self {
        let totals = stats.totals();
        let dropped = DropReason::ALL.into_iter().find(|reason| totals.drops(*reason) > 0);
        Self { dropped, told: icmp.0.lock().pop().map(|(_, told)| told) }
    }

    /// Holds `verdict` against it.
    #[track_caller]
    fn is(&self, verdict: Verdict, from: IpAddr, bytes: &mut [u8]) {
        let packet = Packet::parse(bytes).unwrap();
        let told = verdict.told.map(|error| icmp::build(error, from, &packet).unwrap());
        assert_eq!((verdict.outcome.err(), told), (self.dropped, self.told.clone()));
    }
}

/// Has the loop take `bytes` from the device; also returns what it has sent, with the mark outside.
fn by_egress(table: &SharedTable, bytes: &[u8]) -> (Done, Option<(Vec<u8>, Ecn)>) {
    let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), Sent::default());
    let stats = Arc::new(WorkerStats::default());
    let answers = Answers::new(Box::new(icmp.clone()), Arc::default());
    let mut egress = Egress::new(device.clone(), wire.clone(), table.reader(), answers, Arc::clone(&stats));
    device.queue(bytes);
    assert_eq!(egress.step().unwrap(), 1);
    let done = Done::of(&stats, &icmp);
    let sent = wire.take_sent().pop();
    assert_eq!(sent.is_none(), done.dropped.is_some());
    (done, sent.map(|(_, payload)| payload).zip(wire.take_ecn().pop()))
}

/// Has the loop take `payload` from the wire.
fn by_ingress(table: &SharedTable, check: SourceCheck, (outer, ecn): (&str, Ecn), payload: &[u8]) -> Done {
    let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), Sent::default());
    let stats = Arc::new(WorkerStats::default());
    let answers = Answers::new(Box::new(icmp.clone()), Arc::default());
    let offloads = Arc::new(Offloads::new(&Offload::ALL));
    let (reader, counted) = (table.reader(), Arc::clone(&stats));
    let mut ingress = Ingress::new(device.clone(), wire.clone(), check, reader, answers, counted, offloads);
    wire.arrive_with(outer, payload, ecn);
    assert_eq!(ingress.step(), 1);
    let done = Done::of(&stats, &icmp);
    assert_eq!(device.take_written().is_empty(), done.dropped.is_some());
    done
}

/// The packets that all of `cases` drop have each of `reasons`, but those that no description can bring about.
#[track_caller]
fn are_all(cases: impl Iterator<Item = Option<DropReason>>, reasons: &[DropReason], never: &[DropReason]) {
    let name = |reason: DropReason| reason.label();
    let met: BTreeSet<_> = cases.flatten().chain(never.iter().copied()).map(name).collect();
    assert_eq!(met, reasons.iter().copied().map(name).collect());
}

#[test]
fn a_described_packet_meets_what_the_way_out_does_with_such_packets() {
    use DropReason::{NoRoute, NotIp, OwnSubnet, Recursion, TooBig, TtlExpired};
    let to = |dst: &str| packet("10.1.9.3", dst);
    let (pod, v6) = ("10.1.63.2", packet("fd00:0:0:9::3", "fd00:0:0:63::2"));
    let tunnel = Described { ports: (4000, 8472), ..packet(OWN, INSIDE) };
    let (both, udp) = (local(VXLAN), local(Format::FlannelUdp));
    let no_v6 = Local { subnets: subnets("10.1.9.0/24", ""), ..local(VXLAN) };
    let cases = [
        (&both, to(pod), None),
        (&both, v6, None),
        (&no_v6, v6, Some(NotIp)),
        (&both, to("10.1.99.2"), Some(NoRoute)),
        (&both, Described { protocol: 6, ..to("10.1.99.2") }, Some(NoRoute)),
        (&both, Described { protocol: 1, ..to("10.1.99.2") }, Some(NoRoute)),
        (&both, Described { protocol: 132, ..to("10.1.99.2") }, Some(NoRoute)),
        (&both, packet("fd00:0:0:9::3", "fd00:0:0:99::2"), Some(NoRoute)),
        (&both, to("10.1.255.255"), Some(NoRoute)),
        (&both, to("224.0.0.9"), Some(NoRoute)),
        (&both, to("10.1.9.77"), Some(OwnSubnet)),
        (&both, tunnel, Some(Recursion)),
        (&both, Described { ports: (8472, 53), ..tunnel }, None),
        (&both, Described { protocol: 6, ..tunnel }, None),
        (&both, packet("10.1.9.3", INSIDE), None),
        (&both, Described { len: 1450, ..to(pod) }, None),
        (&both, Described { len: 1451, ..to(pod) }, Some(TooBig)),
        (&both, Described { len: 1451, ..v6 }, Some(TooBig)),
        (&both, Described { len: 1451, dont_fragment: false, ..to(pod) }, None),
        (&both, Described { len: 1350, ..to("10.1.7.2") }, None),
        (&both, Described { len: 1351, ..to("10.1.7.2") }, Some(TooBig)),
        (&both, Described { ttl: 1, ..to(pod) }, None),
        (&udp, Described { ttl: 2, ..to(pod) }, None),
        (&udp, Described { ttl: 1, ..to(pod) }, Some(TtlExpired)),
        (&udp, Described { ttl: 1, ..v6 }, Some(TtlExpired)),
    ];
    for (local, described, expected) in cases {
        let table = network(local.clone());
        let answer = described.outward(&table.current(), OWN.parse().unwrap()).unwrap();
        assert_eq!(answer.verdict.outcome.err(), expected, "{described:?}");
        let mut bytes = described.bytes().unwrap();
        assert!(described.len == 0 || bytes.len() == described.len);
        let (done, sent) = by_egress(&table, &bytes);
        let version = Packet::parse(&mut bytes).unwrap().version();
        done.is(answer.verdict, local.overlay_addresses.get(version).unwrap_or(described.dst), &mut bytes);
        assert_eq!(answer.far_end.is_some(), sent.is_some());
        assert!(answer.to.is_some() || sent.is_none());
    }
    let never = [DropReason::Truncated, DropReason::Malformed, DropReason::SendFailed];
    are_all(cases.into_iter().map(|(_, _, expected)| expected), &DropReason::EGRESS, &never);
    let answer = |dst| to(dst).outward(&network(local(VXLAN)).current(), OWN.parse().unwrap()).unwrap();
    assert_eq!([pod, "10.1.7.2", "10.1.99.2"].map(|dst| answer(dst).mtu), [Some(1450), Some(1350), None]);
}

#[test]
fn a_described_packet_meets_what_the_way_in_does_with_such_packets() {
    use DropReason::{
        Congestion, MartianDestination, MartianSource, Nested, NotIp, OtherPeersSource, OwnSource,
        StaleSource, TtlExpired, UnknownAddress, UnknownPeer, WrongSource,
    };
    use SourceCheck::{Loose, Off, Strict};
    let from = |src: &str| packet(src, "10.1.9.3");
    let (pod, v6) = ("10.1.63.2", packet("fd00:0:0:63::2", "fd00:0:0:9::3"));
    let nested = Described { ports: (4000, 8472), ..packet(pod, OWN) };
    let (both, udp) = (local(VXLAN), local(Format::FlannelUdp));
    let no_v6 = Local { subnets: subnets("10.1.9.0/24", ""), ..local(VXLAN) };
    const STRANGER: &str = "192.168.1.99";
    let (unmarked, marked) = (Ecn::NotEct, Ecn::Ce);
    let cases = [
        (&both, Strict, (MASTER, unmarked), from(pod), None),
        (&both, Strict, (MASTER, unmarked), from(MASTER), None),
        (&both, Strict, (MASTER, unmarked), from(ANNOUNCED), None),
        (&both, Strict, (MASTER, unmarked), v6, None),
        (&no_v6, Off, (MASTER, unmarked), v6, Some(NotIp)),
        (&both, Strict, (STRANGER, unmarked), from("10.1.99.2"), Some(UnknownPeer)),
        (&both, Loose, (STRANGER, unmarked), from(pod), Some(UnknownAddress)),
        (&both, Off, (STRANGER, unmarked), from(pod), None),
        (&both, Strict, (MASTER, unmarked), from("10.1.7.2"), Some(OtherPeersSource)),
        (&both, Loose, (MASTER, unmarked), from("10.1.7.2"), None),
        (&both, Strict, (MASTER, unmarked), from("10.1.99.2"), Some(StaleSource)),
        (&both, Strict, (MASTER, unmarked), from("172.16.5.2"), Some(WrongSource)),
        (&both, Strict, (OTHER, unmarked), from(ANNOUNCED), Some(WrongSource)),
        (&both, Strict, (MASTER, unmarked), from("10.1.9.7"), Some(OwnSource)),
        (&both, Off, (STRANGER, unmarked), from(OWN), Some(OwnSource)),
        (&both, Loose, (MASTER, unmarked), from("127.0.0.1"), Some(MartianSource)),
        (&both, Strict, (MASTER, unmarked), packet(pod, "224.0.0.1"), Some(MartianDestination)),
        (&both, Strict, (MASTER, unmarked), nested, Some(Nested)),
        (&both, Strict, (MASTER, unmarked), Described { protocol: 6, ..nested }, None),
        (&both, Strict, (MASTER, marked), from(pod), Some(Congestion)),
        (&both, Strict, (MASTER, marked), Described { ecn: Ecn::Ect0, ..from(pod) }, None),
        (&both, Strict, (MASTER, unmarked), Described { ttl: 1, ..from(pod) }, None),
        (&udp, Strict, (MASTER, unmarked), Described { ttl: 1, ..from(pod) }, Some(TtlExpired)),
        (&udp, Strict, (MASTER, unmarked), Described { ttl: 1, ..v6 }, Some(TtlExpired)),
    ];
    for (local, check, (outer, ecn), described, expected) in cases {
        let table = network(local.clone());
        let answer = described.inward(&table.current(), check, Some(outer.parse().unwrap()), ecn).unwrap();
        assert_eq!(answer.verdict.outcome.err(), expected, "{described:?} from {outer}");
        let asked =
            |table: &SharedTable| table.current().hops().any(|hop| hop.state.has(PeerFlag::Unexplained));
        assert!(!asked(&table), "a question is no packet");
        let mut bytes = described.bytes().unwrap();
        let version = Packet::parse(&mut bytes).unwrap().version();
        let header = match local.format {
            Format::Vxlan { vni, vtep_mac } => {
                vxlan::header(version, vni, MacAddr([2; 6]), vtep_mac).to_vec()
            }
            Format::FlannelUdp => Vec::new(),
        };
        let done = by_ingress(&table, check, (outer, ecn), &[&header[..], &bytes].concat());
        done.is(answer.verdict, local.overlay_addresses.get(version).unwrap_or(described.dst), &mut bytes);
    }
    let never = [
        DropReason::Truncated,
        DropReason::Malformed,
        DropReason::BadVxlanHeader,
        DropReason::WrongVni,
        DropReason::WrongMac,
        DropReason::SourceRoute,
        DropReason::WriteFailed,
    ];
    are_all(cases.into_iter().map(|(.., expected)| expected), &DropReason::INGRESS, &never);
}

#[test]
fn a_packet_whose_sender_is_not_told_comes_from_the_node_that_may_send_it() {
    let table = network(local(VXLAN));
    let outer = |table: &SharedTable, src: &str| {
        let answer = packet(src, "10.1.9.3").inward(&table.current(), SourceCheck::Strict, None, Ecn::NotEct);
        let Inward { verdict, outer } = answer.unwrap();
        (outer.map(|outer| outer.to_string()), verdict.outcome.err())
    };
    let is = |node: &str| Some(node.to_owned());
    assert_eq!(outer(&table, "10.1.7.2"), (is(OTHER), None));
    assert_eq!(outer(&table, OTHER), (is(OTHER), None));
    assert_eq!(outer(&table, ANNOUNCED), (is(MASTER), None));
    assert_eq!(outer(&table, "10.1.99.2"), (is(MASTER), Some(DropReason::StaleSource)));
    assert_eq!(outer(&table, "172.16.5.2"), (is(MASTER), Some(DropReason::WrongSource)));
    // The second of the peers has it, whatever is asked of sources, and also what is dropped after that.
    for check in [SourceCheck::Strict, SourceCheck::Loose, SourceCheck::Off] {
        let nested = Described { ports: (4000, 8472), ..packet("10.1.7.2", OWN) };
        for (described, reason) in
            [(packet("10.1.7.2", "10.1.9.3"), None), (nested, Some(DropReason::Nested))]
        {
            let Inward { verdict, outer } =
                described.inward(&table.current(), check, None, Ecn::NotEct).unwrap();
            assert_eq!((outer, verdict.outcome.err()), (Some(address(OTHER)), reason), "{check:?}");
        }
    }
    let alone = SharedTable::new(PeerTable::new(local(VXLAN), Vec::new()));
    assert_eq!(outer(&alone, "10.1.99.2"), (None, Some(DropReason::UnknownPeer)));
}

#[test]
fn the_far_end_does_with_a_packet_what_is_said_of_it() {
    use DropReason::{MartianSource, OtherPeersSource, OwnSource, StaleSource, TtlExpired, WrongSource};
    let from = |src: &str| packet(src, "10.1.63.2");
    let (both, udp) = (local(VXLAN), local(Format::FlannelUdp));
    for (here, described, expected) in [
        (&both, from("10.1.9.3"), None),
        (&both, packet("fd00:0:0:9::3", "fd00:0:0:63::2"), None),
        (&both, from(OWN), None),
        (&both, from("10.1.9.0"), None),
        (&both, from("10.1.7.2"), Some(OtherPeersSource)),
        (&both, from("10.1.99.2"), Some(StaleSource)),
        (&both, from("172.16.5.2"), Some(WrongSource)),
        (&both, from("10.1.63.9"), Some(OwnSource)),
        (&both, from(MASTER), Some(OwnSource)),
        (&both, from("127.0.0.1"), Some(MartianSource)),
        (&both, Described { ecn: Ecn::Ce, ..from("10.1.9.3") }, None),
        (&udp, Described { ttl: 3, ..from("10.1.9.3") }, None),
        (&udp, Described { ttl: 2, ..from("10.1.9.3") }, Some(TtlExpired)),
    ] {
        let table = network(here.clone());
        let answer = described.outward(&table.current(), OWN.parse().unwrap()).unwrap();
        let said = answer.far_end.expect("it gets there").outcome.err();
        assert_eq!(said, expected, "{described:?}");

        let (_, sent) = by_egress(&table, &described.bytes().unwrap());
        let (payload, ecn) = sent.expect("it leaves");
        let there = Local {
            subnets: subnets("10.1.63.0/24", "fd00:0:0:63::/64"),
            overlay_addresses: addresses("10.1.63.0", "fd00:0:0:63::"),
            public: address(MASTER).into(),
            addresses: vec![address(MASTER), address("10.1.63.0")],
            format: if here.format == VXLAN { FAR_VXLAN } else { Format::FlannelUdp },
            ..here.clone()
        };
        let peers = vec![peer("10.1.9.0/24", OWN), peer("10.1.7.0/24", OTHER), peer("10.1.8.0/24", INSIDE)];
        let there = SharedTable::new(PeerTable::new(there, peers));
        let done = by_ingress(&there, SourceCheck::Strict, (OWN, ecn), &payload);
        assert_eq!(done.dropped, said, "{described:?}");
    }
}

#[test]
fn what_no_packet_can_be_is_none() {
    let table = network(local(VXLAN));
    for described in [
        packet("10.1.9.3", "fd00:0:0:63::2"),
        Described { len: 70_000, ..packet("10.1.9.3", "10.1.63.2") },
        Described { len: usize::MAX, ..packet("10.1.9.3", "10.1.63.2") },
        Described { protocol: 58, ..packet("10.1.9.3", "10.1.63.2") },
    ] {
        let (own, table) = (OWN.parse().unwrap(), table.current());
        assert_eq!(described.outward(&table, own), Err(NoPacket), "{described:?}");
        assert_eq!(described.inward(&table, SourceCheck::Off, None, Ecn::NotEct), Err(NoPacket));
    }
}
