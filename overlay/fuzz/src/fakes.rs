//! A device, a wire and a socket for answers, in memory.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlay::answers::IcmpOut;
use overlay::batch::Batch;
use overlay::echo::EchoOut;
use overlay::tun::Device;
use overlay::underlay::{Arrival, Receiver, Transmitter, Unsent};
use overlay::wire::ecn::Ecn;

/// A device whose packets are queued and inspected. Clones are the same device.
#[derive(Debug, Clone, Default)]
pub struct FakeDevice(Arc<Mutex<DeviceState>>);

#[derive(Debug, Default)]
struct DeviceState {
    queued: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    refuses: u8,
}

impl FakeDevice {
    /// Has `bytes`, virtio header and packet, read next.
    pub fn queue(&self, bytes: Vec<u8>) {
        lock(&self.0).queued.push_back(bytes);
    }

    /// Of eight writes, those are refused whose bit is set.
    pub fn refuse(&self, pattern: u8) {
        lock(&self.0).refuses = pattern;
    }

    /// What was written, with its virtio headers.
    #[must_use]
    pub fn take_written(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.0).written)
    }
}

impl Device for FakeDevice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = lock(&self.0).queued.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = lock(&self.0);
        state.refuses = state.refuses.rotate_left(1);
        if state.refuses & 1 != 0 {
            return Err(io::Error::from_raw_os_error(22));
        }
        state.written.push(parts.iter().map(|part| &part[..]).collect::<Vec<_>>().concat());
        Ok(())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("a target steps and never sleeps")
    }
}

/// A wire whose datagrams are delivered and inspected. Clones are the same wire.
#[derive(Debug, Clone, Default)]
pub struct FakeWire {
    state: Arc<Mutex<WireState>>,
    batch: Vec<Arriving<(SocketAddr, Range<usize>)>>,
    memory: Vec<u8>,
}

#[derive(Debug, Default)]
struct WireState {
    sent: Vec<Sent>,
    refuses: u8,
    arrived: Vec<Arriving<(Ipv4Addr, Vec<u8>)>>,
}

/// What arrives, or where it is; what the outer header says of congestion, the segments' length, whether the end is lost.
type Arriving<T> = (T, Ecn, Option<usize>, bool);

/// A datagram that was sent.
#[derive(Debug)]
pub struct Sent {
    /// Where to.
    pub to: SocketAddr,
    /// What the outer header says of congestion.
    pub ecn: Ecn,
    /// Its payload.
    pub bytes: Vec<u8>,
}

impl FakeWire {
    /// Has `payload` received next from `outer`, with what is said of congestion, as several datagrams if it has a
    /// segment length, or with its end lost.
    pub fn arrive(
        &self,
        outer: Ipv4Addr,
        payload: Vec<u8>,
        ecn: Ecn,
        segment_len: Option<usize>,
        truncated: bool,
    ) {
        lock(&self.state).arrived.push(((outer, payload), ecn, segment_len, truncated));
    }

    /// Of eight runs, those are refused whose bit is set.
    pub fn refuse(&self, pattern: u8) {
        lock(&self.state).refuses = pattern;
    }

    /// What was sent.
    #[must_use]
    pub fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut lock(&self.state).sent)
    }
}

impl Transmitter for FakeWire {
    fn lanes(&self) -> usize {
        2
    }

    fn takes_super_packets(&self) -> bool {
        false
    }

    fn transmit(&mut self, batch: &Batch, mut failed: impl FnMut(Unsent<'_>)) {
        let mut state = lock(&self.state);
        for run in (0..2).flat_map(|lane| batch.runs(lane)) {
            state.refuses = state.refuses.rotate_left(1);
            if state.refuses & 1 != 0 {
                let error = io::Error::from_raw_os_error(22);
                failed(Unsent { run, first: 0, count: run.count(), inner_len: run.inner_len(), error });
                continue;
            }
            let mut whole = 0;
            for message in run.singly() {
                let slices = message.slices.iter().map(|s| &batch.bytes()[s.start..s.start + s.len]);
                let bytes = slices.collect::<Vec<_>>().concat();
                whole += bytes.len();
                state.sent.push(Sent { to: message.to, ecn: run.ecn(), bytes });
            }
            // What the kernel takes at once (`UDP_MAX_SEGMENTS`, the longest payload over IPv4).
            assert!(run.count() == 1 || (run.count() <= 64 && whole <= 65_507), "{} of {whole}", run.count());
        }
    }
}

impl Receiver for FakeWire {
    fn receive(&mut self) -> io::Result<usize> {
        self.batch.clear();
        self.memory.clear();
        for ((from, bytes), ecn, segment_len, truncated) in lock(&self.state).arrived.drain(..) {
            let start = self.memory.len();
            self.memory.extend(bytes);
            let from = SocketAddr::from((from, 51_234));
            self.batch.push(((from, start..self.memory.len()), ecn, segment_len, truncated));
        }
        if self.batch.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(self.batch.len()) }
    }

    fn arrival(&self, index: usize) -> Arrival {
        let ((from, place), ecn, segment_len, truncated) = self.batch[index].clone();
        Arrival { from, ecn, place, segment_len, truncated }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("a target steps and never sleeps")
    }
}

/// Collects ICMP errors and echoes.
#[derive(Debug, Clone, Default)]
pub struct FakeIcmp(Arc<Mutex<Vec<Answer>>>);

/// A packet and where it went.
type Answer = (IpAddr, Vec<u8>);

impl FakeIcmp {
    /// What was sent, and where to.
    #[must_use]
    pub fn take_sent(&self) -> Vec<Answer> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl IcmpOut for FakeIcmp {
    fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
        lock(&self.0).push((to, packet.to_vec()));
        Ok(())
    }
}

impl EchoOut for FakeIcmp {
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        lock(&self.0).push((to.ip(), payload.to_vec()));
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
