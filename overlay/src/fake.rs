//! A device and a wire that exist in memory only: the loops are tested on them without root.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use crate::batch::Batch;
use crate::tun::Device;
use crate::underlay::{Datagram, HEADROOM, Receiver, Transmitter};
use crate::wire::vnet;

/// A device whose packets a test queues and inspects. Clones are the same device.
#[derive(Clone, Default)]
pub(crate) struct FakeDevice(Arc<Mutex<DeviceState>>);

#[derive(Default)]
struct DeviceState {
    queued: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    failure: Option<i32>,
}

impl FakeDevice {
    /// Has `packet` read next.
    pub(crate) fn queue(&self, packet: &[u8]) {
        self.0.lock().unwrap().queued.push_back([&[0; vnet::LEN], packet].concat());
    }

    /// What was written, with its virtio headers.
    pub(crate) fn take_written(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap().written)
    }

    /// Every call fails from now on.
    pub(crate) fn fail(&self, errno: i32) {
        self.0.lock().unwrap().failure = Some(errno);
    }
}

impl Device for FakeDevice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        if let Some(errno) = state.failure {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let packet = state.queued.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if let Some(errno) = state.failure {
            return Err(io::Error::from_raw_os_error(errno));
        }
        state.written.push(packet.to_vec());
        Ok(())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("a test steps and never sleeps")
    }
}

/// A wire whose datagrams a test delivers and inspects. Clones are the same wire.
#[derive(Clone, Default)]
pub(crate) struct FakeWire(Arc<Mutex<WireState>>);

#[derive(Default)]
struct WireState {
    sent: Vec<(SocketAddrV4, Vec<u8>)>,
    refused: HashMap<usize, i32>,
    arrived: VecDeque<(SocketAddrV4, Vec<u8>)>,
}

impl FakeWire {
    /// What was sent, and where to.
    pub(crate) fn take_sent(&self) -> Vec<(SocketAddrV4, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().unwrap().sent)
    }

    /// The message of that index fails in every batch.
    pub(crate) fn refuse(&self, index: usize, errno: i32) {
        self.0.lock().unwrap().refused.insert(index, errno);
    }

    /// Has `payload` received next, from a random port of `outer`.
    pub(crate) fn arrive(&self, outer: &str, payload: &[u8]) {
        let from = SocketAddrV4::new(outer.parse().unwrap(), 51_234);
        self.0.lock().unwrap().arrived.push_back((from, payload.to_vec()));
    }
}

impl Transmitter for FakeWire {
    fn transmit(&mut self, batch: &Batch, mut failed: impl FnMut(usize, io::Error)) {
        let mut state = self.0.lock().unwrap();
        for (index, message) in batch.messages().iter().enumerate() {
            if let Some(errno) = state.refused.get(&index) {
                failed(index, io::Error::from_raw_os_error(*errno));
                continue;
            }
            let payload = batch.bytes()[message.start..message.start + message.len].to_vec();
            state.sent.push((message.to, payload));
        }
    }
}

impl Receiver for FakeWire {
    fn receive(&mut self, mut each: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
        let arrived = std::mem::take(&mut self.0.lock().unwrap().arrived);
        for (from, payload) in &arrived {
            let mut buffer = [&[0xaa; HEADROOM], &payload[..]].concat();
            each(Datagram { from: *from, buffer: &mut buffer, truncated: false });
        }
        if arrived.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(arrived.len()) }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        unreachable!("a test steps and never sleeps")
    }
}
