//! Ten million hostile frames while TCP flows: none reaches the overlay device, memory stays what it was, and
//! the good flow suffers no more than by as many datagrams that are no business of the daemon's.

use std::net::Ipv4Addr;

use integration::capture::Capture;
use integration::flood::{Flood, Train};
use integration::noise::Noise;
use integration::packets::{Injector, mac, source_routed, udp_packet, vxlan_frame};
use integration::pair::Pair;
use integration::traffic::iperf3;
use integration::{Backend, Overlayd, Site, Status, Store, Wire};

/// Hostile frames of one test.
const TOTAL: u64 = 5_000_000;
/// Pairs of phases, one with each kind of flood. As many again, if something else kept the machine busy.
const ROUNDS: usize = 5;
/// Frames a second, from two hosts together.
const RATE: u32 = 200_000;
/// Of what a flood of unrelated datagrams leaves the good flow, this must be left beside a hostile one.
const GOAL: f64 = 0.8;
/// A port of the worker that nobody listens on.
const UNRELATED: u16 = 4000;
/// A node that is in the store only, and its pods' subnet.
const ABSENT: &str = "10.1.250.0/24";

#[test]
fn full_five_million_hostile_vxlan_frames() {
    flood(Backend::Vxlan);
}

#[test]
fn full_five_million_hostile_udp_packets() {
    flood(Backend::Udp);
}

fn flood(backend: Backend) {
    let (site, worker, master) = Site::two_hosts_on(Wire::Plain);
    let stranger = site.host("stranger", "192.168.66.6");
    let store = Store::dir_with_free_subnets(&site, "store", backend);
    let pair = Pair::start([&worker, &master], &store, &[]);
    store.put_lease("10.1.250.0-24", absent(backend));
    pair.left.await_peers(&[ABSENT, &pair.right.env().base_with_length()]);
    let own_mac = (backend == Backend::Vxlan).then(|| own_mac(&pair.left));
    let wrap = |packet: &[u8]| own_mac.map_or(packet.to_vec(), |mac| vxlan_frame(1, mac, packet));
    let trains = trains(&pair, worker.public_ip, own_mac, &wrap);
    let blanks: Vec<_> = trains.iter().map(Train::blank).collect();
    let directory = worker.directory();

    // From a peer's address and from a stranger's, in equal parts.
    let both = |trains: &[Train], port: u16, count: u64| {
        std::thread::scope(|scope| {
            let send = |ns| move || Flood::new(ns, worker.public_ip, port).run(trains, count / 2, RATE / 2);
            let floods = [&stranger.ns, &master.ns].map(|ns| scope.spawn(send(ns)));
            floods.into_iter().map(|flood| flood.join().expect("a flood")).sum::<u64>()
        })
    };

    let not_good = format!("not (tcp and host {} and host {})", pair.a.address, pair.b.address);
    let reached = Capture::inbound(&worker.ns, backend.device(), &not_good, directory);
    // Of each kind, while nothing else is on its way.
    let before = pair.left.status();
    let each = 2 * trains.iter().map(Train::count).sum::<u64>();
    let mut sent = both(&trains, backend.port(), each);
    let after = pair.left.status();
    assert!(after.all_drops("ingress") > before.all_drops("ingress") + sent / 4, "{}", after.0["drops"]);
    assert_eq!(forwarded(&after), forwarded(&before), "nothing is let through");

    // Both are warm before anything is measured.
    iperf3(&pair.b.ns, &pair.a.ns, pair.a.address, "-t 1", directory);
    let beside = |trains: &[Train], port: u16| {
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| both(trains, port, TOTAL / ROUNDS as u64));
            let flags = format!("-t {}", TOTAL / ROUNDS as u64 / u64::from(RATE) - 1);
            let good = iperf3(&pair.b.ns, &pair.a.ns, pair.a.address, &flags, directory).bits_per_second;
            (flood.join().expect("the floods"), good)
        })
    };
    let (mut ratios, mut memory) = (Vec::new(), 0);
    while ratios.len() < ROUNDS || (median(&ratios) < GOAL && ratios.len() < 2 * ROUNDS) {
        let (hostile, unrelated) = if ratios.len() % 2 == 0 {
            let hostile = beside(&trains, backend.port());
            (hostile, beside(&blanks, UNRELATED))
        } else {
            let unrelated = beside(&blanks, UNRELATED);
            (beside(&trains, backend.port()), unrelated)
        };
        println!("{:.2} of {:.2} Gbit/s", hostile.1 / 1e9, unrelated.1 / 1e9);
        sent += hostile.0;
        ratios.push(hostile.1 / unrelated.1);
        if ratios.len() == 1 {
            // Buffers have been used to their full length by now.
            memory = resident(pair.left.id());
        }
    }

    let after = pair.left.status();
    let dropped = after.all_drops("ingress") - before.all_drops("ingress");
    let grown = resident(pair.left.id()).saturating_sub(memory);
    println!(
        "{sent} frames sent, {dropped} dropped by the daemon, the rest before it; the good flow has {:.2} of what \
         an unrelated flood leaves it; resident memory has grown by {grown} KiB",
        median(&ratios)
    );
    for reason in REASONS {
        let count = after.drops("ingress", reason) - before.drops("ingress", reason);
        println!("{count:>8} {reason}");
        let of_frames = ["wrong_vni", "wrong_mac", "bad_vxlan_header"].contains(&reason);
        assert!(count > 0 || (of_frames && backend == Backend::Udp), "none was dropped as {reason}");
    }
    assert!(sent >= TOTAL);
    assert!(dropped > sent / 4, "{dropped} of {sent} came as far as the daemon");
    // One that is as it should be, so that silence means refusal.
    let genuine = udp_packet(pair.b.address, pair.a.address, 9, b"genuine");
    Injector::new(&master.ns, worker.public_ip, backend.port()).send(&wrap(&genuine));
    reached.frames(1);
    let reached = reached.stop();
    assert!(reached.len() == 1 && reached[0].ends_with(b"genuine"), "these reached the device: {reached:x?}");
    assert!(grown < 4096, "resident memory has grown by {grown} KiB");
    assert!(median(&ratios) >= GOAL, "{ratios:?}");
}

/// Packets that have been written to the overlay device.
fn forwarded(status: &Status) -> u64 {
    status.0["counters"]["ingress"]["packets"].as_u64().expect("a counter")
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The lease of a node that does not run.
fn absent(backend: Backend) -> &'static str {
    match backend {
        Backend::Udp => r#"{"PublicIP":"192.168.77.7","BackendType":"udp"}"#,
        Backend::Vxlan => {
            r#"{"PublicIP":"192.168.77.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#
        }
    }
}

/// What the flood must have been refused for.
const REASONS: [&str; 15] = [
    "unknown_peer",
    "unknown_address",
    "other_peers_source",
    "stale_source",
    "wrong_source",
    "own_source",
    "martian_source",
    "martian_destination",
    "source_route",
    "malformed",
    "truncated",
    "not_ip",
    "wrong_vni",
    "wrong_mac",
    "bad_vxlan_header",
];

/// Trains of each kind of spoof and malformation, and of noise; with frames, if there is an own MAC.
fn trains(
    pair: &Pair<'_>,
    own_public: Ipv4Addr,
    own_mac: Option<[u8; 6]>,
    wrap: &dyn Fn(&[u8]) -> Vec<u8>,
) -> Vec<Train> {
    let base = u32::from(pair.left.env().base());
    let mut noise = Noise::default();
    let (pod, peer) = (pair.a.address, pair.b.address);
    let nobody = Ipv4Addr::new(10, 1, 254, 2);
    let packet = |source, length: usize| udp_packet(source, pod, 9, &vec![0x66; length]);
    let mut trains = Vec::new();
    for round in 0..64usize {
        let length = 4 + round * 7;
        let mut train = |datagram: &mut dyn FnMut(u32) -> Vec<u8>| {
            trains.push(Train::new(&(0..64).map(datagram).collect::<Vec<_>>()));
        };
        // Spoofs: another node's pods, no node's, this host's, addresses outside of the network, and nobody's.
        train(&mut |i| wrap(&packet(Ipv4Addr::from(u32::from(nobody) + i), length)));
        train(&mut |i| wrap(&packet(Ipv4Addr::new(10, 1, 250, i as u8), length)));
        train(&mut |i| wrap(&packet(Ipv4Addr::from(base + 2 + i), length)));
        train(&mut |i| wrap(&packet(Ipv4Addr::new(8, 8, 8, i as u8), length)));
        train(&mut |_| wrap(&packet(own_public, length)));
        for address in MARTIANS {
            train(&mut |_| wrap(&packet(address, length)));
            train(&mut |_| wrap(&udp_packet(peer, address, 9, &vec![0x66; length])));
        }
        train(&mut |_| wrap(&source_routed(peer, own_public, pod, 9)));
        // Malformations: lengths, checksum, version, options beyond the end, cuts; one octet of the header at a
        // time, and any octets. (The source stays somebody else's, lest one should be right by chance.)
        train(&mut |i| {
            let mut bytes = packet(nobody, length);
            bytes[[0, 2, 3, 10, 11][i as usize % 5]] ^= 1 << (i % 3 + 1);
            wrap(&bytes)
        });
        train(&mut |i| {
            let mut bytes = packet(peer, length);
            bytes[0] = (i as u8 % 16) << 4 | 5;
            bytes[10] ^= 1;
            wrap(&bytes)
        });
        train(&mut |_| {
            let mut bytes = wrap(&packet(peer, length));
            bytes.truncate(bytes.len() - 3);
            bytes
        });
        train(&mut |_| noise.octets(length));
        train(&mut |_| {
            let mut bytes = wrap(&packet(nobody, length));
            let at = noise.number() as usize % bytes.len();
            bytes[at] = noise.number() as u8;
            bytes
        });
        if let Some(ours) = own_mac {
            let inner = packet(peer, length);
            train(&mut |i| vxlan_frame(2 + i, ours, &inner));
            train(&mut |i| vxlan_frame(1, [2, 0, 0, 0, 0, i as u8], &inner));
            train(&mut |_| vxlan_frame(1, [0xff; 6], &inner));
            train(&mut |i| {
                let mut frame = vxlan_frame(1, ours, &inner);
                frame[0] &= !0x08;
                frame[1 + i as usize % 3] = i as u8;
                frame
            });
            train(&mut |i| {
                let mut frame = vxlan_frame(1, ours, &inner);
                // ARP, IPv6, 802.1Q and others behind the frame's header.
                let kind = [0x0806u16, 0x8100, 0x88a8, 0x0000][i as usize % 4];
                frame[20..22].copy_from_slice(&kind.to_be_bytes());
                frame
            });
        } else {
            // From one end of the table of versions to the other, IPv4 without its own checksum among them.
            train(&mut |i| [&[(i as u8) << 4 | 5][..], &[0x66; 40]].concat());
        }
        // And noise of any length, which comes one by one.
        for _ in 0..16 {
            let length = 1 + noise.number() as usize % 1400;
            trains.push(Train::new(&[noise.octets(length)]));
        }
    }
    trains
}

/// Addresses that no packet has.
const MARTIANS: [Ipv4Addr; 6] = [
    Ipv4Addr::new(0, 0, 0, 0),
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(169, 254, 1, 1),
    Ipv4Addr::new(224, 0, 0, 5),
    Ipv4Addr::new(240, 0, 0, 1),
    Ipv4Addr::BROADCAST,
];

fn own_mac(daemon: &Overlayd<'_>) -> [u8; 6] {
    mac(daemon.status().0["backend"]["vtep_mac"].as_str().expect("a VTEP MAC"))
}

/// Resident memory of a process in KiB.
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}
