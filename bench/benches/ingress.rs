//! The loop from the wire to the device, without either: what a packet costs that goes through, and what a hostile
//! one costs that does not.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bench::lookup;
use divan::Bencher;
use divan::counter::ItemsCount;
use etherparse::PacketBuilder;
use overlay::MacAddr;
use overlay::admit::SourceCheck;
use overlay::answers::{Answers, IcmpOut};
use overlay::ingress::Ingress;
use overlay::offload::Offloads;
use overlay::stats::WorkerStats;
use overlay::table::SharedTable;
use overlay::tun::Device;
use overlay::underlay::{Arrival, Receiver};
use overlay::wire::ecn::Ecn;
use overlay::wire::ip::Version;
use overlay::wire::vxlan;

fn main() {
    divan::main();
}

/// What is sent to us.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Genuine,
    /// A node's, with an inner source that is another node's.
    Forged,
    /// Of nobody that we know.
    Unknown,
    /// For another overlay.
    WrongVni,
    /// With a false header checksum.
    Malformed,
}

#[divan::bench(args = [Kind::Genuine, Kind::Forged, Kind::Unknown, Kind::WrongVni, Kind::Malformed])]
fn datagram(bencher: Bencher<'_, '_>, kind: Kind) {
    let table = SharedTable::new(lookup::table(1_000, |_| 24));
    let stats = Arc::<WorkerStats>::default();
    let mut ingress = Ingress::new(
        Nowhere,
        Wire::with(kind),
        SourceCheck::Strict,
        table.reader(),
        Answers::new(Box::new(Nowhere), Arc::default()),
        Arc::clone(&stats),
        // Joining has a benchmark of its own.
        Arc::new(Offloads::new(&[])),
    );
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| ingress.step());
    assert_eq!(stats.totals().packets > 0, matches!(kind, Kind::Genuine));
}

/// A batch of one kind, which arrives anew each time.
struct Wire {
    memory: Vec<u8>,
    arrivals: Vec<(SocketAddr, Range<usize>)>,
}

impl Wire {
    fn with(kind: Kind) -> Self {
        let mut wire = Self { memory: Vec::new(), arrivals: Vec::new() };
        for i in 0..BATCH {
            let node = 1 + i as u8;
            let mut outer = Ipv4Addr::new(192, 168, 0, node);
            let (mut vni, mut source) = (1, [10, 0, node, 2]);
            match kind {
                Kind::Forged => source[2] = node + 100,
                Kind::Unknown => outer = Ipv4Addr::new(172, 16, 0, node),
                Kind::WrongVni => vni = 2,
                Kind::Genuine | Kind::Malformed => {}
            }
            let start = wire.memory.len();
            let ours = MacAddr([2, 0, 0, 0, 0, 0]);
            wire.memory.extend(vxlan::header(Version::V4, vni, MacAddr([2, 0, 0, 0, 0, node]), ours));
            let packet = PacketBuilder::ipv4(source, [10, 0, 0, 2], 64).udp(4000, 53);
            packet.write(&mut wire.memory, &[0x5a; 64]).expect("a vector takes it");
            if matches!(kind, Kind::Malformed) {
                wire.memory[start + vxlan::HEADER_LEN + 10] ^= 1;
            }
            wire.arrivals.push(((outer, 51_234).into(), start..wire.memory.len()));
        }
        wire
    }
}

impl Receiver for Wire {
    fn receive(&mut self) -> io::Result<usize> {
        Ok(self.arrivals.len())
    }

    fn arrival(&self, index: usize) -> Arrival {
        let (from, place) = self.arrivals[index].clone();
        Arrival { from, ecn: Ecn::NotEct, place, segment_len: None, truncated: false }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("there is always something to receive")
    }
}

/// Takes everything.
struct Nowhere;

impl Device for Nowhere {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        std::hint::black_box(parts);
        Ok(())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("nothing is read")
    }
}

impl IcmpOut for Nowhere {
    fn send(&self, _: IpAddr, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Datagrams of a batch.
const BATCH: usize = 64;
