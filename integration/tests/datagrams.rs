//! Datagrams of every kind arrive as they were sent, one for one: short and empty ones, mixed sizes,
//! fragments, super-packets, and those without a checksum; between daemons and with a kernel VXLAN host.

use integration::capture::Capture;
use integration::datagrams::{Line, without_checksum};
use integration::kernel_vxlan::KernelVxlan;
use integration::noise::Noise;
use integration::{Backend, Pair, Pod, Site, Store, Wire, traffic};

#[test]
fn datagrams_arrive_unchanged_over_vxlan() {
    datagrams_arrive_unchanged(Backend::Vxlan, Wire::Virtual);
}

#[test]
fn datagrams_arrive_unchanged_over_udp() {
    datagrams_arrive_unchanged(Backend::Udp, Wire::Virtual);
}

#[test]
fn datagrams_arrive_unchanged_over_vxlan_on_a_plain_wire() {
    datagrams_arrive_unchanged(Backend::Vxlan, Wire::Plain);
}

#[test]
fn datagrams_arrive_unchanged_over_udp_on_a_plain_wire() {
    datagrams_arrive_unchanged(Backend::Udp, Wire::Plain);
}

fn datagrams_arrive_unchanged(backend: Backend, wire: Wire) {
    let (site, worker, master) = Site::two_hosts_on(wire);
    let store = Store::dir(&site, backend);
    let pair = Pair::start([&worker, &master], &store, &[]);
    exchange(&pair.a, &pair.b, pair.left.env().mtu);
    pair.assert_nothing_dropped();
}

#[test]
fn datagrams_pass_unchanged_to_and_from_a_kernel_vxlan_host() {
    datagrams_pass_to_and_from_a_kernel_vxlan_host(Wire::Virtual);
}

#[test]
fn datagrams_pass_unchanged_to_and_from_a_kernel_vxlan_host_on_a_plain_wire() {
    datagrams_pass_to_and_from_a_kernel_vxlan_host(Wire::Plain);
}

fn datagrams_pass_to_and_from_a_kernel_vxlan_host(wire: Wire) {
    let (site, worker, master) = Site::two_hosts_on(wire);
    let store = Store::dir(&site, Backend::Vxlan);
    let daemon = worker.overlayd(&store).start();
    // None of the first hundred, among which the daemon has chosen.
    let kernel = KernelVxlan::start(&master, &store, "10.1.163");
    daemon.await_peers(&["10.1.163.0/24"]);
    let (a, b) = (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()));
    exchange(&a, &b, daemon.env().mtu);
    let status = daemon.status();
    assert_eq!(status.all_drops("ingress"), 0, "{}", status.0["drops"]);
}

/// Sends everything there is from each pod to the other.
#[track_caller]
fn exchange(a: &Pod, b: &Pod, mtu: u32) {
    let largest = usize::try_from(mtu).unwrap() - HEADERS;
    for (from, to) in [(a, b), (b, a)] {
        let line = Line::new(&from.ns, &to.ns, to.address);
        for size in [1, 2, 3, 7, 8, 17, 63, 64, 65, 511, 512, 513, 1000, largest - 1, largest] {
            line.burst(&vec![Noise::seeded(size as u64).octets(size); 20]);
        }
        line.burst(&vec![Vec::new(); 20]);
        line.burst(&mixed(largest));

        for size in [largest + 1, 1500, 4000, 9001, 60_000, LARGEST_DATAGRAM] {
            // A run of equal fragments is as good a run as any.
            line.burst(&vec![Noise::default().octets(size); 3]);
        }

        for size in [1, 99, 100, 1000, largest] {
            for count in [1, 2, 7, 43, 64] {
                let whole = (size * count).min(LARGEST_DATAGRAM);
                line.segmented(&Noise::seeded(count as u64).octets(whole), u16::try_from(size).unwrap());
                if size > 1 {
                    line.segmented(&Noise::default().octets(whole - 1), u16::try_from(size).unwrap());
                }
            }
        }

        for size in [0, 1, 100, 1001, largest] {
            let payload = Noise::default().octets(size);
            without_checksum(&from.ns, from.address, &to.ns, to.address, &payload);
        }
        for size in [0, 1, 1000, 1401, 1473, 4000, 8001, 65_507] {
            traffic::ping_once(&from.ns, to.address, size);
        }
    }
}

/// A burst in which lengths repeat, grow, shrink and vanish.
fn mixed(largest: usize) -> Vec<Vec<u8>> {
    let mut noise = Noise::seeded(6);
    (0..200)
        .map(|_| {
            let size = match noise.number() >> 61 {
                0 => 0,
                1..=3 => 600,
                4..=5 => largest,
                _ => (noise.number() >> 32) as usize % largest,
            };
            noise.octets(size)
        })
        .collect()
}

#[test]
fn a_datagram_without_checksum_arrives_without_one() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let Pair { a, b, .. } = &Pair::start([&worker, &master], &store, &[]);
        let pod = Capture::start(&b.ns, "eth0", "udp", master.directory());
        for _ in 0..3 {
            without_checksum(&a.ns, a.address, &b.ns, b.address, b"unchecked");
        }
        for frame in pod.frames(3) {
            assert_eq!(frame[14 + 26..14 + 28], [0, 0], "{backend:?}: a checksum was made up");
        }
    }
}

/// IPv4 without options, and UDP.
const HEADERS: usize = 20 + 8;
const LARGEST_DATAGRAM: usize = 65_507;
