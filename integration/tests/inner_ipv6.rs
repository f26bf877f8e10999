//! Inner IPv6 through the whole data plane: two forwarders with real devices and sockets, or one and a kernel
//! VXLAN host, carry what pods send to each other, as the hosts' kernels make and take it. Needs root.
//!
//! ```text
//!  pod fd00:0:0:9::2                                                  pod fd00:0:0:63::2
//!   │                                                                  │
//!  worker  ov: fd00:0:0:9::/64 here, else over  ── router, IPv4 ──  master
//! ```

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use integration::datagrams::Line;
use integration::noise::Noise;
use integration::{Host, Namespace, Site, Wire, traffic};
use overlay::MacAddr;
use overlay::admit::SourceCheck;
use overlay::confine::{Confinement, SystemCalls};
use overlay::forwarder::{Config, Forwarder};
use overlay::offload::{Offload, Offloads};
use overlay::priority::{Priority, Wanted};
use overlay::table::{Local, Peer, PeerTable, SharedTable};
use overlay::tun;
use overlay::wire::ip::Version;
use overlay::wire::{Addresses, Format, MacAddrs, Subnets};

/// The numbers that stand in the hosts' subnets.
const WORKER: u8 = 9;
const MASTER: u8 = 63;
const NETWORK_V6: &str = "fd00::/48";

#[test]
fn streams_and_datagrams_arrive_unchanged_over_vxlan() {
    carries(Shape::Vxlan, Wire::Virtual, &Offload::ALL);
}

#[test]
fn streams_and_datagrams_arrive_unchanged_over_vxlan_on_a_plain_wire() {
    carries(Shape::Vxlan, Wire::Plain, &Offload::ALL);
}

#[test]
fn streams_and_datagrams_arrive_unchanged_without_offloads() {
    carries(Shape::Vxlan, Wire::Virtual, &[]);
}

#[test]
fn streams_and_datagrams_arrive_unchanged_over_udp() {
    carries(Shape::FlannelUdp, Wire::Virtual, &Offload::ALL);
}

fn carries(shape: Shape, wire: Wire, offloads: &[Offload]) {
    let (_site, worker, master) = Site::two_hosts_on(wire);
    let a = End::start(&worker, shape, WORKER, (MASTER, &master), offloads);
    let b = End::start(&master, shape, MASTER, (WORKER, &worker), offloads);
    let (near, far) = (pod(&worker, WORKER, shape.mtu()), pod(&master, MASTER, shape.mtu()));
    let whole = worker.ns.ok("ethtool -k ov").contains("tx-tcp6-segmentation: on");
    assert_eq!(whole, !offloads.is_empty(), "super-packets pass the device");
    exchange(&near, &far, shape.mtu());
    for flow in 0..32 {
        // A socket and so a source port of its own for each.
        Line::new(&near, &far, address(MASTER, 2)).burst(&[vec![flow; 100]]);
    }
    for end in [&a, &b] {
        end.assert_nothing_dropped();
    }
    let egress = a.forwarder.egress();
    assert!(egress.iter().all(|totals| totals.packets > 0), "flows go by all queues: {egress:?}");
}

#[test]
fn a_kernel_vxlan_host_is_understood_and_understands() {
    kernel_peer(Wire::Virtual);
}

#[test]
fn a_kernel_vxlan_host_is_understood_and_understands_on_a_plain_wire() {
    kernel_peer(Wire::Plain);
}

fn kernel_peer(wire: Wire) {
    let (_site, worker, master) = Site::two_hosts_on(wire);
    let a = End::start(&worker, Shape::Vxlan, WORKER, (MASTER, &master), &Offload::ALL);
    let mtu = Shape::Vxlan.mtu();
    master.ns.ip(&format!(
        "link add ov address {} mtu {mtu} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning\n\
         link set ov up\n\
         address add {}/128 dev ov nodad\n\
         neigh replace {near} lladdr {mac} dev ov nud permanent\n\
         route add {near}/64 via {near} dev ov onlink",
        vtep(MASTER),
        master.public_ip,
        address(MASTER, 0),
        near = address(WORKER, 0),
        mac = vtep(WORKER),
    ));
    master.ns.ok(&format!("bridge fdb append {} dev ov dst {}", vtep(WORKER), worker.public_ip));
    let (near, far) = (pod(&worker, WORKER, mtu), pod(&master, MASTER, mtu));
    exchange(&near, &far, mtu);
    a.assert_nothing_dropped();
}

/// Sends pods' traffic of every kind both ways.
fn exchange(near: &Namespace, far: &Namespace, mtu: u32) {
    let ways = [(near, far, address(MASTER, 2)), (far, near, address(WORKER, 2))];
    let longest = mtu as usize - 48;
    for (from, to, address) in ways {
        traffic::transfer(from, to, address, 32);
        let line = Line::new(from, to, address);
        let mut noise = Noise::default();
        let lengths = [0, 1, 7, 512, longest - 1, longest, 3, longest, longest];
        line.burst(&lengths.map(|length| noise.octets(length)));
        // In fragments, which have no ports to go by and so a queue of their own.
        line.burst(&[longest + 1, 4000, 20_000].map(|length| noise.octets(length)));
        line.burst(&vec![noise.octets(64); 50]);
        line.segmented(&noise.octets(30_001), 1_000);
        line.segmented(&noise.octets(1_200 * 40), 1_200);
    }
}

#[test]
fn what_is_too_big_is_told_and_comes_in_smaller_packets() {
    let (_site, worker, master) = Site::two_hosts();
    let a = End::start(&worker, Shape::Vxlan, WORKER, (MASTER, &master), &Offload::ALL);
    let _b = End::start(&master, Shape::Vxlan, MASTER, (WORKER, &worker), &Offload::ALL);
    // Nobody but the data plane knows how much fits.
    worker.ns.ip("link set ov mtu 9000");
    master.ns.ip("link set ov mtu 9000");
    let (near, far) = (pod(&worker, WORKER, 9000), pod(&master, MASTER, 9000));
    let there = address(MASTER, 2);
    let learned = || near.ok(&format!("ip -6 route get {there}")).contains("mtu 1450");
    assert!(!learned());
    traffic::transfer(&near, &far, there, 8);
    assert!(learned(), "{}", near.ok(&format!("ip -6 route get {there}")));
    let egress = a.forwarder.egress();
    assert!(egress.iter().any(|totals| totals.icmp_sent > 0), "{egress:?}");
}

#[test]
fn what_cannot_go_on_is_told() {
    let (_site, worker, master) = Site::two_hosts();
    let _a = End::start(&worker, Shape::FlannelUdp, WORKER, (MASTER, &master), &Offload::ALL);
    let _b = End::start(&master, Shape::FlannelUdp, MASTER, (WORKER, &worker), &Offload::ALL);
    let (near, _far) = (pod(&worker, WORKER, 1472), pod(&master, MASTER, 1472));
    let ping = |flags: &str, to: Ipv6Addr| {
        let output = near.run(&format!("ping -6 -n -c 1 -W 5 {flags} {to}"));
        String::from_utf8(output.stdout).expect("what ping prints")
    };
    let told = ping("", address(77, 2));
    assert!(told.contains("No route"), "{told}");
    // One hop for the worker's kernel, and one for each end of the tunnel.
    for (hops, teller) in [(2, WORKER), (3, MASTER)] {
        let told = ping(&format!("-t {hops}"), address(MASTER, 2));
        let from = format!("From {}", address(teller, 0));
        assert!(told.contains(&from) && told.contains("Time exceeded"), "{hops} hops: {told}");
    }
    assert!(ping("-t 5", address(MASTER, 2)).contains("1 received"));
}

/// How packets stand on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Vxlan,
    FlannelUdp,
}

impl Shape {
    fn format(self, number: u8) -> Format {
        match self {
            Self::Vxlan => Format::Vxlan { vni: 1, vtep_mac: vtep(number) },
            Self::FlannelUdp => Format::FlannelUdp,
        }
    }

    fn mtu(self) -> u32 {
        1500 - self.format(0).overhead(Version::V4)
    }
}

/// The data plane of one host.
struct End {
    forwarder: Forwarder,
}

impl End {
    /// Starts it on the host whose subnet has that number, beside a peer.
    fn start(host: &Host, shape: Shape, number: u8, peer: (u8, &Host), offloads: &[Offload]) -> Self {
        let subnets = |number: u8| {
            let v4 = format!("10.1.{number}.0/24").parse().expect("a subnet");
            let v6 = format!("{}/64", address(number, 0)).parse().expect("a subnet");
            Subnets::Both(v4, v6)
        };
        let local = Local {
            network: Subnets::Both(
                "10.1.0.0/16".parse().expect("a network"),
                NETWORK_V6.parse().expect("a network"),
            ),
            subnets: subnets(number),
            overlay_addresses: Addresses::Both([10, 1, number, 0].into(), address(number, 0)),
            public: host.public_ip.into(),
            addresses: vec![host.public_ip.into()],
            mtu: shape.mtu(),
            format: shape.format(number),
            port: 8472,
        };
        let peer = Peer {
            subnets: subnets(peer.0),
            public: peer.1.public_ip.into(),
            vtep_macs: Some(MacAddrs::V4(vtep(peer.0))),
        };
        let offloads = Arc::new(Offloads::new(offloads));
        let forwarder = host.ns.within(|| {
            let queues = tun::open("ov", 2, &offloads, Vec::new()).expect("open the device");
            tun::steer_by_flow(&queues).expect("steer flows");
            let config = Config {
                queues,
                listen: (host.public_ip, 8472).into(),
                inherited: Vec::new(),
                port: None,
                source_check: SourceCheck::Strict,
                table: SharedTable::new(PeerTable::new(local, vec![peer])),
                offloads,
                spread_source_ports: true,
                taps: Vec::new(),
                stay_awake: Duration::from_micros(50),
                pin: false,
                confinement: Confinement::new(SystemCalls::Fatal, true).expect("confine the workers"),
                priority: Priority::of(Wanted::RealTime),
                on_answer: Arc::new(|_| {}),
            };
            let on_failure: overlay::forwarder::OnFailure =
                Arc::new(|worker, error| panic!("{worker} gave up: {error}"));
            Forwarder::start(config, &on_failure).expect("start the workers")
        });
        host.ns.ip(&format!(
            "link set ov mtu {} up\naddress add {}/128 dev ov nodad\nroute add {NETWORK_V6} dev ov",
            shape.mtu(),
            address(number, 0)
        ));
        Self { forwarder }
    }

    /// Checks that it has carried something, and dropped nothing but what a kernel says by itself on a new
    /// device, to all routers and the like.
    #[track_caller]
    fn assert_nothing_dropped(&self) {
        use overlay::drops::DropReason;
        for (way, workers) in [("egress", self.forwarder.egress()), ("ingress", self.forwarder.ingress())] {
            assert!(workers.iter().any(|totals| totals.packets > 0), "{way}: nothing passed");
            for reason in DropReason::ALL.into_iter().filter(|reason| *reason != DropReason::NoRoute) {
                let drops: u64 = workers.iter().map(|totals| totals.drops(reason)).sum();
                assert_eq!(drops, 0, "{way}: {}", reason.label());
            }
        }
    }
}

/// A pod on `host`, with the address that ends in 2, behind the host's own that ends in 1.
fn pod(host: &Host, number: u8, mtu: u32) -> Namespace {
    let pod = Namespace::new(&format!("{}-pod", host.name));
    let gateway = address(number, 1);
    for ns in [&host.ns, &pod] {
        // A new link's own address looks for duplicates for a second or two, and no neighbour is asked meanwhile.
        ns.sysctl("net/ipv6/conf/all/accept_dad", "0");
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
    }
    host.ns.sysctl("net/ipv6/conf/all/forwarding", "1");
    host.ns.ip(&format!(
        "link add pod0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set pod0 up\naddress add {gateway}/64 dev pod0 nodad",
        pod.name()
    ));
    pod.ip(&format!(
        "link set eth0 up\naddress add {}/64 dev eth0 nodad\nroute add default via {gateway}",
        address(number, 2)
    ));
    pod
}

fn address(subnet: u8, host: u16) -> Ipv6Addr {
    format!("fd00:0:0:{subnet}::{host}").parse().expect("an address")
}

fn vtep(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}
