//! A device and a wire that exist in memory only: the loops are tested on them without root.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use overlay_wire::ecn::Ecn;
use overlay_wire::vnet::VnetHdr;
use parking_lot::Mutex;

use crate::batch::Batch;
use crate::tun::Device;
use crate::underlay::{Arrival, Receiver, Transmitter, Unsent};

/// A device whose packets a test queues and inspects. Clones are the same device.
#[derive(Clone, Default)]
pub(crate) struct FakeDevice(Arc<Mutex<DeviceState>>);

#[derive(Default)]
struct DeviceState {
    queued: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    failure: Option<i32>,
    refuses_super_packets: bool,
}

impl FakeDevice {
    /// Has `packet` read next.
    pub(crate) fn queue(&self, packet: &[u8]) {
        self.queue_with(VnetHdr::default(), packet);
    }

    /// Has `packet` read next, with work left to do.
    pub(crate) fn queue_with(&self, header: VnetHdr, packet: &[u8]) {
        self.0.lock().queued.push_back([&header.to_bytes(), packet].concat());
    }

    /// What was written, with its virtio headers.
    pub(crate) fn take_written(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().written)
    }

    /// Writes of super-packets fail from now on, as with an old kernel.
    pub(crate) fn refuse_super_packets(&self) {
        self.0.lock().refuses_super_packets = true;
    }

    /// Every call fails from now on.
    pub(crate) fn fail(&self, errno: i32) {
        self.0.lock().failure = Some(errno);
    }
}

impl Device for FakeDevice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if let Some(errno) = state.failure {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let packet = state.queued.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Some(errno) = state.failure {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if state.refuses_super_packets && parts[0][1] != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        state.written.push(parts.iter().flat_map(|part| part.iter().copied()).collect());
        Ok(())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("a test steps and never sleeps")
    }
}

/// A wire whose datagrams a test delivers and inspects. Clones are the same wire.
#[derive(Clone, Default)]
pub(crate) struct FakeWire {
    state: Arc<Mutex<WireState>>,
    batch: Vec<(SocketAddr, Ecn, Range<usize>, Option<usize>)>,
    memory: Vec<u8>,
}

#[derive(Default)]
struct WireState {
    sent: Vec<(SocketAddr, Vec<u8>)>,
    ecn: Vec<Ecn>,
    refused: HashMap<usize, i32>,
    takes_super_packets: bool,
    arrived: VecDeque<(SocketAddr, Ecn, Vec<u8>, Option<usize>)>,
}

impl FakeWire {
    /// What was sent, and where to.
    pub(crate) fn take_sent(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.state.lock().sent)
    }

    /// What the outer headers said of congestion, of all that was sent so far.
    pub(crate) fn take_ecn(&self) -> Vec<Ecn> {
        std::mem::take(&mut self.state.lock().ecn)
    }

    /// The run of that index fails in every batch.
    pub(crate) fn refuse(&self, index: usize, errno: i32) {
        self.state.lock().refused.insert(index, errno);
    }

    /// It takes super-packets whole from now on.
    pub(crate) fn take_super_packets(&self) {
        self.state.lock().takes_super_packets = true;
    }

    /// Has `payload` received next, from a random port of `outer`.
    pub(crate) fn arrive(&self, outer: &str, payload: &[u8]) {
        self.put(outer, payload, None, Ecn::NotEct);
    }

    /// The same, with what a router or its sender has said of congestion.
    pub(crate) fn arrive_with(&self, outer: &str, payload: &[u8], ecn: Ecn) {
        self.put(outer, payload, None, ecn);
    }

    /// Has several datagrams of `segment_len` bytes each received as one.
    pub(crate) fn arrive_segmented(&self, outer: &str, payload: &[u8], segment_len: usize) {
        self.put(outer, payload, Some(segment_len), Ecn::NotEct);
    }

    fn put(&self, outer: &str, payload: &[u8], segment_len: Option<usize>, ecn: Ecn) {
        let from = SocketAddr::new(outer.parse().unwrap(), 51_234);
        self.state.lock().arrived.push_back((from, ecn, payload.to_vec(), segment_len));
    }
}

impl Transmitter for FakeWire {
    fn lanes(&self) -> usize {
        1
    }

    fn takes_super_packets(&self) -> bool {
        self.state.lock().takes_super_packets
    }

    fn transmit(&mut self, batch: &Batch, mut failed: impl FnMut(Unsent<'_>)) {
        let mut state = self.state.lock();
        for (index, run) in batch.runs(0).iter().enumerate() {
            if let Some(errno) = state.refused.get(&index) {
                let error = io::Error::from_raw_os_error(*errno);
                let (count, inner_len) = (run.count(), run.inner_len());
                failed(Unsent { run, first: 0, count, inner_len, error });
                continue;
            }
            for message in run.singly() {
                let bytes = message.slices.iter().flat_map(|s| &batch.bytes()[s.start..s.start + s.len]);
                state.sent.push((message.to, bytes.copied().collect()));
                state.ecn.push(run.ecn());
            }
        }
    }
}

impl Receiver for FakeWire {
    fn receive(&mut self) -> io::Result<usize> {
        self.batch.clear();
        self.memory.clear();
        for (from, ecn, bytes, segment_len) in self.state.lock().arrived.drain(..) {
            let start = self.memory.len();
            self.memory.extend(bytes);
            self.batch.push((from, ecn, start..self.memory.len(), segment_len));
        }
        if self.batch.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(self.batch.len()) }
    }

    fn arrival(&self, index: usize) -> Arrival {
        let (from, ecn, place, segment_len) = self.batch[index].clone();
        Arrival { from, ecn, place, segment_len, truncated: false }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("a test steps and never sleeps")
    }
}
