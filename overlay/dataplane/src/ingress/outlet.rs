//! The way out of an ingress worker: packets are written to the device, behind their virtio headers, and counted.

use std::io::{self, IoSlice};
use std::sync::Arc;

use overlay_wire::drops::DropReason;
use overlay_wire::ip::Packet;
use overlay_wire::segment::{MAX_SEGMENT_HEADERS_LEN, Segments};
use overlay_wire::vnet::{Gso, VnetHdr};

use crate::stats::WorkerStats;
use crate::tun::Device;
use crate::witness::Witness;

/// The device, and what has been written to it.
pub(super) struct Outlet<D> {
    device: D,
    pub(super) stats: Arc<WorkerStats>,
    /// Packets written since the last count, as many as the wire saw, and their bytes.
    packets: u64,
    bytes: u64,
}

impl<D: Device> Outlet<D> {
    /// Writes to `device`.
    pub(super) fn new(device: D, stats: Arc<WorkerStats>) -> Self {
        Self { device, stats, packets: 0, bytes: 0 }
    }

    /// Writes a packet, behind its virtio header.
    pub(super) fn write(&mut self, header: &VnetHdr, packet: &[u8], witness: &mut Witness) {
        if self.try_write(header, packet).is_err() {
            self.failed(packet, witness);
        }
    }

    pub(super) fn try_write(&mut self, header: &VnetHdr, packet: &[u8]) -> io::Result<()> {
        self.try_write_parts(&[IoSlice::new(&header.to_bytes()), IoSlice::new(packet)], 1)
    }

    /// Writes a packet in parts, the virtio header first. The wire saw it as `packets` ones, each with headers as long as
    /// the second part.
    pub(super) fn try_write_parts(&mut self, parts: &[IoSlice<'_>], packets: usize) -> io::Result<()> {
        self.device.write(parts)?;
        self.written(&parts[1..], packets);
        Ok(())
    }

    /// Writes the segments of a super-packet, which counts as the one packet that it was on the wire. Whether all
    /// have been written.
    pub(super) fn write_cut(&mut self, gso: Gso, packet: &mut [u8]) -> bool {
        let Ok(parsed) = Packet::parse(packet) else { return false };
        let Ok(segments) = Segments::new(&parsed, gso) else { return false };
        let (plain, mut headers) = (VnetHdr::default().to_bytes(), [0; MAX_SEGMENT_HEADERS_LEN]);
        let headers = &mut headers[..segments.headers_len()];
        let mut failures = 0;
        for index in 0..segments.count() {
            segments.write_headers(index, headers);
            let payload = &parsed.bytes()[segments.payload(index)];
            let parts = [IoSlice::new(&plain), IoSlice::new(headers), IoSlice::new(payload)];
            failures += usize::from(self.device.write(&parts).is_err());
        }
        if failures == 0 {
            self.written(&[IoSlice::new(parsed.bytes())], 1);
        }
        failures == 0
    }

    /// The device has refused `packet`.
    pub(super) fn failed(&mut self, packet: &[u8], witness: &mut Witness) {
        self.stats.dropped(DropReason::WriteFailed);
        witness.unwritten(packet, DropReason::WriteFailed);
    }

    /// A packet made of `parts` has been written, which the wire saw as `packets` ones, each with headers as
    /// long as the first part.
    fn written(&mut self, parts: &[IoSlice<'_>], packets: usize) {
        self.stats.super_packet(packets as u64);
        self.packets += packets as u64;
        let repeated = parts[0].len() * (packets - 1);
        self.bytes += repeated as u64 + parts.iter().map(|part| part.len() as u64).sum::<u64>();
    }

    /// Adds what has been written to the counters: at the end of each batch.
    pub(super) fn count(&mut self) {
        if self.packets > 0 {
            self.stats.forwarded(self.packets, self.bytes);
        }
        (self.packets, self.bytes) = (0, 0);
    }
}
