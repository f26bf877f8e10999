//! Ten million hostile frames while TCP flows: none reaches the overlay device, memory stays what it was, and
//! the good flow suffers no more than by as many datagrams that are no business of the daemon's.

use std::net::Ipv4Addr;

use integration::capture::Capture;
use integration::flood::{Flood, Train};
use integration::noise::Noise;
use integration::packets::{mac, udp_packet, vxlan_frame};
use integration::pair::Pair;
use integration::traffic::iperf3;
use integration::{Backend, Overlayd, Site, Store};

/// Hostile frames of one test.
const TOTAL: u64 = 5_000_000;
/// Rounds of one phase with each kind of flood.
const ROUNDS: u64 = 4;
/// Frames a second: what is sent in bursts of 64 keeps a processor busy, and leaves one for the good flow.
const RATE: u32 = 125_000;
/// A port of the worker that nobody listens on.
const UNRELATED: u16 = 4000;

#[test]
fn full_five_million_hostile_vxlan_frames() {
    flood(Backend::Vxlan);
}

#[test]
fn full_five_million_hostile_udp_packets() {
    flood(Backend::Udp);
}

fn flood(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let stranger = site.host("stranger", "192.168.66.6");
    let store = Store::dir(&site, backend);
    let pair = Pair::start([&worker, &master], &store, &[]);
    let trains = trains(backend, &pair);
    let blanks: Vec<_> = trains.iter().map(Train::blank).collect();
    let directory = worker.directory();

    // Both are warm before anything is measured.
    iperf3(&pair.b.ns, &pair.a.ns, pair.a.address, "-t 1", directory);
    let not_good = format!("not (tcp and host {} and host {})", pair.a.address, pair.b.address);
    let reached = Capture::start(&worker.ns, backend.device(), &format!("inbound and {not_good}"), directory);
    let (status, memory) = (pair.left.status(), resident(pair.left.id()));

    // From a peer's address and from a stranger's, in equal parts.
    let phase = |trains: &[Train], port: u16| {
        let count = TOTAL / ROUNDS / 2;
        std::thread::scope(|scope| {
            let floods: Vec<_> = [&stranger.ns, &master.ns]
                .map(|ns| {
                    scope.spawn(move || Flood::new(ns, worker.public_ip, port).run(trains, count, RATE / 2))
                })
                .into_iter()
                .collect();
            let seconds = TOTAL / ROUNDS / u64::from(RATE);
            let flags = format!("-t {}", seconds.max(1));
            let good = iperf3(&pair.b.ns, &pair.a.ns, pair.a.address, &flags, directory).bits_per_second;
            let sent: u64 = floods.into_iter().map(|flood| flood.join().expect("a flood")).sum();
            (sent, good)
        })
    };
    let (mut sent, mut hostile, mut unrelated) = (0, 0.0, 0.0);
    for round in 0..ROUNDS {
        let (frames, good) = phase(&trains, backend.port());
        let (_, beside) = phase(&blanks, UNRELATED);
        println!("round {round}: {:.2} of {:.2} Gbit/s", good / 1e9, beside / 1e9);
        (sent, hostile, unrelated) = (sent + frames, hostile + good, unrelated + beside);
    }

    let after = pair.left.status();
    let dropped = after.all_drops("ingress") - status.all_drops("ingress");
    let reasons: Vec<_> = REASONS
        .iter()
        .map(|reason| (reason, after.drops("ingress", reason) - status.drops("ingress", reason)))
        .collect();
    println!("{sent} frames sent, {dropped} dropped by the daemon, the rest by its socket: {reasons:?}");
    println!("good flow beside them: {:.2} of what an unrelated flood leaves", hostile / unrelated);
    assert!(sent >= TOTAL);
    assert!(dropped > sent / 4, "{dropped} of {sent} came as far as the daemon");
    for (reason, count) in reasons {
        let of_frames = ["wrong_vni", "wrong_mac", "bad_vxlan_header"].contains(reason);
        assert!(count > 0 || (of_frames && backend == Backend::Udp), "none was dropped as {reason}");
    }
    assert_eq!(reached.stop(), Vec::<Vec<u8>>::new(), "a hostile packet reached the overlay device");
    let grown = resident(pair.left.id()).saturating_sub(memory);
    println!("resident memory has grown by {grown} KiB");
    assert!(grown < 4096, "resident memory has grown by {grown} KiB");
}

/// What the flood must have been refused for.
const REASONS: [&str; 11] = [
    "unknown_peer",
    "unknown_address",
    "stale_source",
    "martian_source",
    "own_source",
    "malformed",
    "truncated",
    "not_ip",
    "wrong_vni",
    "wrong_mac",
    "bad_vxlan_header",
];

/// Trains of each kind of spoof and malformation, and of noise.
fn trains(backend: Backend, pair: &Pair<'_>) -> Vec<Train> {
    let daemon = &pair.left;
    let ours = own_mac(daemon);
    let base = u32::from(daemon.env().base());
    let mut noise = Noise::default();
    let (pod, peer) = (pair.a.address, pair.b.address);
    let nobody = Ipv4Addr::new(10, 1, 254, 2);
    let packet = |source, length: usize| udp_packet(source, pod, 9, &vec![0x66; length]);
    let wrap = |packet: &[u8]| match backend {
        Backend::Udp => packet.to_vec(),
        Backend::Vxlan => vxlan_frame(1, ours, packet),
    };
    let mut trains = Vec::new();
    for round in 0..64usize {
        let length = 4 + round * 7;
        let own = Ipv4Addr::from(base + 2 + round as u32);
        let mut train = |datagram: &mut dyn FnMut(u32) -> Vec<u8>| {
            trains.push(Train::new(&(0..64).map(datagram).collect::<Vec<_>>()));
        };
        // Spoofs: other nodes' pods, no node's, this host's, addresses that are nobody's.
        train(&mut |i| wrap(&packet(Ipv4Addr::from(u32::from(nobody) + i), length)));
        train(&mut |_| wrap(&packet(own, length)));
        // (From the peer itself this would be genuine, so its header is false.)
        train(&mut |_| {
            let mut bytes = packet(peer, length);
            bytes[8] ^= 1;
            wrap(&bytes)
        });
        for source in MARTIANS {
            train(&mut |_| wrap(&packet(source, length)));
        }
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
        if backend == Backend::Vxlan {
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
    }
    trains
}

/// Sources that no packet has.
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
