//! A wire with faults: it loses, duplicates and reorders what passes between two hosts, in place of
//! the router's own forwarding, and says how often it did.
//!
//! ```text
//!              router
//!  lan1 ──rule──► wire1 ──► thread ──► wire199 ──route──► lan199
//!  lan1 ◄──route── wire1 ◄── thread ◄── wire199 ◄──rule── lan199
//! ```
//!
//! `wire1` and `wire199` are plain TUN devices, so the kernel hands over finished packets that fit
//! their MTU: a super-packet is cut and its checksums are filled before it gets here.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use tun_tap::{Iface, Mode};

use crate::netns::output;
use crate::noise::Noise;
use crate::site::{Host, Site};

/// How often what happens, in thousandths of all packets, and which packets it happens to.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Lost packets.
    pub lost: u64,
    /// Packets that arrive twice in a row.
    pub duplicated: u64,
    /// Packets that are overtaken by the next 1 to [`LONGEST_DELAY`].
    pub delayed: u64,
    /// The same seed makes the same choices for the same number of packets.
    pub seed: u64,
}

/// What a wire has done so far, in packets of both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Packets that entered it.
    pub entered: u64,
    /// Lost ones.
    pub lost: u64,
    /// Those that left twice.
    pub duplicated: u64,
    /// Those that others were let overtake.
    pub delayed: u64,
    /// Those that the kernel did not take at the other end: losses that nobody planned.
    pub refused: u64,
}

/// A running wire. Packets take it as long as it lives.
#[derive(Debug)]
pub struct FaultyWire {
    router: String,
    devices: [String; 2],
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl FaultyWire {
    /// Puts a wire between the LANs of two hosts of a site.
    #[track_caller]
    pub fn between(site: &Site, hosts: [&Host; 2], faults: Faults) -> Self {
        let addresses = hosts.map(|host| host.public_ip);
        let devices = addresses.map(|address| format!("wire{}", address.octets()[2]));
        let open = |name: &String| {
            let opened = site.router.within(|| Iface::without_packet_info(name, Mode::Tun));
            Arc::new(opened.unwrap_or_else(|error| panic!("open the TUN device {name}: {error}")))
        };
        let [near, far] = [open(&devices[0]), open(&devices[1])];
        for (own, other) in [(0, 1), (1, 0)] {
            let (device, table) = (&devices[own], 100 + own);
            let (lan, there) = (Site::lan_device(addresses[own]), network(addresses[other]));
            // Without an address of its own the device sends nothing of its own either.
            site.router.ip(&format!(
                "link set {device} txqueuelen {QUEUE} addrgenmode none\n\
                 link set {device} up\n\
                 route add default dev {device} table {table}\n\
                 rule add priority {table} iif {lan} to {there} lookup {table}"
            ));
        }
        for host in hosts {
            // A card delivers bursts, and GRO joins what belongs together in a burst. The threads
            // deliver packet by packet: let GRO wait for the next ones.
            host.ns.feed("tee /sys/class/net/eth0/gro_flush_timeout", GRO_WAITS);
        }
        let counts = Arc::new(Counts::default());
        let start = |from: &Arc<Iface>, to: &Arc<Iface>, seed: u64| {
            let (from, to, counts) = (Arc::clone(from), Arc::clone(to), Arc::clone(&counts));
            let mangler = Mangler::new(Faults { seed, ..faults });
            std::thread::spawn(move || forward(&from, &to, mangler, &counts))
        };
        let threads = vec![start(&near, &far, faults.seed), start(&far, &near, !faults.seed)];
        Self { router: site.router.name().into(), devices, counts, threads }
    }

    /// What it has done so far.
    pub fn done(&self) -> Done {
        let Counts { entered, lost, duplicated, delayed, refused } = &*self.counts;
        let [entered, lost, duplicated, delayed, refused] =
            [entered, lost, duplicated, delayed, refused].map(|count| count.load(Relaxed));
        Done { entered, lost, duplicated, delayed, refused }
    }
}

impl Drop for FaultyWire {
    fn drop(&mut self) {
        // Reading from a device that is gone fails, and so the threads end.
        let removed = self.devices.iter().all(|device| {
            let mut command = Command::new("ip");
            output(command.args(["-n", &self.router, "link", "del", device])).status.success()
        });
        if removed {
            for thread in self.threads.drain(..) {
                // A thread that panicked has said so itself.
                let _ = thread.join();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    entered: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    delayed: AtomicU64,
    refused: AtomicU64,
}

/// Carries packets from one device to the other until the first is gone.
fn forward(from: &Iface, to: &Iface, mut mangler: Mangler, counts: &Counts) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.recv(&mut buffer) {
        let fate = mangler.pass(&buffer[..length], |packet| {
            if to.send(packet).is_err() {
                counts.refused.fetch_add(1, Relaxed);
            }
        });
        counts.entered.fetch_add(1, Relaxed);
        match fate {
            Fate::Passed => 0,
            Fate::Lost => counts.lost.fetch_add(1, Relaxed),
            Fate::Duplicated => counts.duplicated.fetch_add(1, Relaxed),
            Fate::Delayed => counts.delayed.fetch_add(1, Relaxed),
        };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passed,
    Lost,
    Duplicated,
    Delayed,
}

/// Decides what becomes of each packet of one direction.
#[derive(Debug)]
struct Mangler {
    faults: Faults,
    noise: Noise,
    entered: u64,
    /// Delayed packets, each with the number of the packet behind which it leaves. When the wire
    /// falls silent they wait for the next packet: no clock takes part, a run can be repeated.
    delayed: Vec<(u64, Vec<u8>)>,
}

impl Mangler {
    fn new(faults: Faults) -> Self {
        Self { faults, noise: Noise::seeded(faults.seed), entered: 0, delayed: Vec::new() }
    }

    /// Takes a packet, and lets go of those whose time it is.
    fn pass(&mut self, packet: &[u8], mut emit: impl FnMut(&[u8])) -> Fate {
        self.entered += 1;
        let fate = self.fate();
        match fate {
            Fate::Passed => emit(packet),
            Fate::Lost => {}
            Fate::Duplicated => {
                emit(packet);
                emit(packet);
            }
            Fate::Delayed => {
                let due = self.entered + 1 + (self.noise.number() >> 32) % LONGEST_DELAY;
                self.delayed.push((due, packet.to_vec()));
            }
        }
        while let Some(index) = self.delayed.iter().position(|(due, _)| *due <= self.entered) {
            emit(&self.delayed.swap_remove(index).1);
        }
        fate
    }

    fn fate(&mut self) -> Fate {
        let Faults { lost, duplicated, delayed, .. } = self.faults;
        match (self.noise.number() >> 32) % 1000 {
            lot if lot < lost => Fate::Lost,
            lot if lot < lost + duplicated => Fate::Duplicated,
            lot if lot < lost + duplicated + delayed => Fate::Delayed,
            _ => Fate::Passed,
        }
    }
}

/// The /24 LAN of an address.
fn network(address: Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    format!("{a}.{b}.{c}.0/24")
}

/// How many packets can overtake a delayed one.
pub const LONGEST_DELAY: u64 = 10;
/// Packets that a TUN device queues: losses are to be those of the plan, not a full queue's.
const QUEUE: u32 = 10_000;
/// In nanoseconds.
const GRO_WAITS: &str = "100000";

#[cfg(test)]
mod tests {
    use super::*;

    const FAULTS: Faults = Faults { lost: 10, duplicated: 20, delayed: 50, seed: 7 };
    const PACKETS: u64 = 100_000;

    /// What leaves the wire when packets numbered from 0 enter it, and how many met each fate.
    fn passed(faults: Faults) -> (Vec<u64>, [u64; 4]) {
        let (mut mangler, mut left, mut fates) = (Mangler::new(faults), Vec::new(), [0; 4]);
        for number in 0..PACKETS {
            let fate = mangler.pass(&number.to_le_bytes(), |packet| {
                left.push(u64::from_le_bytes(packet.try_into().unwrap()));
            });
            fates[fate as usize] += 1;
        }
        (left, fates)
    }

    #[test]
    fn each_fault_is_as_frequent_as_planned() {
        let (left, [_, lost, duplicated, delayed]) = passed(FAULTS);
        for (count, plan) in [(lost, 10), (duplicated, 20), (delayed, 50)] {
            let planned = PACKETS * plan / 1000;
            assert!(count.abs_diff(planned) < planned / 5, "{count} for {planned}");
        }
        let expected = PACKETS - lost + duplicated;
        assert!((expected - LONGEST_DELAY..=expected).contains(&(left.len() as u64)));
    }

    #[test]
    fn a_delayed_packet_is_overtaken_by_ten_at_most_and_the_rest_stay_in_order() {
        let (left, [.., delayed]) = passed(Faults { lost: 0, duplicated: 0, ..FAULTS });
        let mut newest = 0;
        let mut overtaken = Vec::new();
        for number in left {
            if number < newest {
                overtaken.push(newest - number);
            }
            newest = newest.max(number);
        }
        let late = overtaken.len() as u64;
        // One whose followers were all delayed too is overtaken by nobody.
        assert!(late <= delayed && late > delayed * 9 / 10, "{late} of {delayed}");
        assert_eq!(overtaken.iter().max(), Some(&LONGEST_DELAY));
    }

    #[test]
    fn a_seed_makes_the_same_choices_again_and_another_seed_others() {
        assert_eq!(passed(FAULTS), passed(FAULTS));
        assert_ne!(passed(FAULTS), passed(Faults { seed: 8, ..FAULTS }));
    }

    #[test]
    fn without_faults_everything_passes_as_it_came() {
        let (left, _) = passed(Faults { lost: 0, duplicated: 0, delayed: 0, seed: 7 });
        assert!(left.into_iter().eq(0..PACKETS));
    }
}
