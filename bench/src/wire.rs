//! Datagrams that the client's host puts on the wire already wrapped, many with one call: of all that they go
//! through, only what receives them has to work for each, and so it is that which is measured.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use integration::Backend;
use integration::flood::{Flood, Train};
use integration::packets::{udp_packet, vxlan_frame};

use crate::client::{Measured, Target, datagrams};
use crate::subject::{Running, WayIn};

/// Sends datagrams of `len` bytes payload and of so many flows, in turn, as fast as the wire takes them. The value is what
/// arrived per second.
///
/// # Errors
/// If nothing arrives.
pub fn measure(running: &Running<'_>, len: usize, flows: u8, target: &Target) -> anyhow::Result<Measured> {
    let (run, payload) = datagrams::new_run(len)?;
    let trains = Trains::new(running, flows, target.ports.sink(), &payload);
    let duration = Duration::from_secs_f64(target.seconds);
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < duration {
        sent += trains.send();
    }
    let took = begun.elapsed();
    let tally = running.client.ns.within(|| datagrams::settled(target, run))?;
    // By the receiver's clock: what was still queued when sending ended took time to arrive, too.
    let seconds = Duration::from_nanos(tally.nanoseconds).max(took).as_secs_f64();
    Ok(Measured {
        value: tally.received as f64 / seconds,
        seconds,
        bytes: tally.bytes,
        packets: Some(tally.received),
        retransmits: None,
        congestion: None,
        sent: Some(sent),
        round_trip: None,
    })
}

/// What is sent, by whom.
struct Trains(Vec<(Flood, Train)>);

impl Trains {
    fn new(running: &Running<'_>, flows: u8, port: u16, payload: &[u8]) -> Self {
        let (client, server) = (u32::from(running.client.address), running.server.address);
        // A flow each: the client's address, and those behind it.
        let packets: Vec<_> = (0..flows)
            .map(|flow| udp_packet(Ipv4Addr::from(client + u32::from(flow)), server, port, payload))
            .collect();
        let to = |host, port| Flood::new(&running.worker.ns, host, port);
        let wrapped = |flood, wrap: &dyn Fn(&[u8]) -> Vec<u8>| {
            let datagrams = packets.iter().cycle().take(LENGTH).map(|packet| wrap(packet));
            vec![(flood, Train::new(&datagrams.collect::<Vec<_>>()))]
        };
        Self(match running.way_in {
            WayIn::Bare => {
                let train = Train::new(&vec![payload.to_vec(); LENGTH]);
                (0..flows).map(|_| (to(server, port), train.clone())).collect()
            }
            WayIn::FlannelUdp(host) => wrapped(to(host, Backend::Udp.port()), &<[u8]>::to_vec),
            WayIn::Vxlan(host, mac) => {
                wrapped(to(host, Backend::Vxlan.port()), &|packet| vxlan_frame(VNI, mac, packet))
            }
        })
    }

    /// Sends one of each; returns how many datagrams.
    fn send(&self) -> u64 {
        let at_once =
            |(flood, train): &(Flood, Train)| flood.run(std::slice::from_ref(train), train.count(), u32::MAX);
        self.0.iter().map(at_once).sum()
    }
}

/// Datagrams of one call: `UDP_MAX_SEGMENTS` before Linux 6.9.
const LENGTH: usize = 64;
/// flannel's.
const VNI: u32 = 1;
