//! Super-packets that leave whole: by a TAP of ours, from where a program in the kernel sends them on to the
//! next hop ([`overlay_sys::redirect`]), so that nobody has to cut them on a way that carries them as they are.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use overlay_sys::link::Link;
use overlay_sys::redirect::{self, Redirect};
use overlay_sys::{ethtool, tun};
use overlay_wire::ip::Packet;
use overlay_wire::outer;
use overlay_wire::segment::Segments;
use overlay_wire::tunnel::SuperPacket;

use crate::offload::{Offload, Offloads};

/// One worker's queue of the TAP.
#[derive(Debug)]
pub struct TapQueue {
    queue: File,
    mac: [u8; 6],
    writer: u8,
    /// What the program has refused of this writer, as far as we know.
    refused: u64,
    redirect: Arc<Redirect>,
}

/// What an underlay's device must pass, by the names that `ethtool -k` has for them.
const FEATURES: [&str; 2] = ["tx-tcp-segmentation", "tx-udp_tnl-csum-segmentation"];

/// What an earlier process has left of a TAP.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Its queues.
    pub queues: Vec<OwnedFd>,
    /// Where programs of ours hang, each with the index of its device.
    pub links: Vec<(u32, Link)>,
}

/// Opens the TAP `name` with a queue for each of `count` workers, whose packets leave by the device `underlay`, given
/// by name and index; none if that is not wanted, or not to be had. The device goes with its last queue: with what is there of it
/// `earlier`, nobody waits for the kernel to take it down and to make another.
#[must_use]
pub fn open(
    name: &str,
    count: usize,
    underlay: (&str, u32),
    offloads: &Offloads,
    earlier: Earlier,
) -> Vec<TapQueue> {
    if !offloads.is_on(Offload::TunnelGso) || !passes(underlay.0) {
        return Vec::new();
    }
    // An older kernel, or rights that we do not have, are no reason not to forward.
    try_open(name, count, underlay.1, earlier).unwrap_or_default()
}

/// A descriptor from an earlier process as a queue of a TAP, with its device's name; given back if it is none of
/// the kind that [`open`] opens.
///
/// # Errors
/// The descriptor.
pub fn inherit(fd: OwnedFd) -> Result<(String, OwnedFd), OwnedFd> {
    match tun::tunnel_tap_of(fd.as_fd()) {
        Some(device) => Ok((device, fd)),
        None => Err(fd),
    }
}

/// Whether the device `underlay` passes super-packets in tunnels on as they are. If it does not, the kernel
/// cuts them, at a higher cost than that of runs.
#[must_use]
pub fn passes(underlay: &str) -> bool {
    ethtool::has_features(underlay, &FEATURES).unwrap_or(false)
}

fn try_open(name: &str, count: usize, underlay: u32, earlier: Earlier) -> io::Result<Vec<TapQueue>> {
    let Earlier { mut queues, links } = earlier;
    queues.truncate(count);
    while queues.len() < count {
        queues.push(tun::open_tunnel_tap(name)?);
    }
    let (index, mac) = tun::bring_up_mute(name)?;
    let link = links.into_iter().find(|(device, _)| *device == index).map(|(_, link)| link);
    let redirect = Arc::new(Redirect::attach(index, underlay, link)?);
    let queue = |(writer, queue)| TapQueue {
        queue: File::from(queue),
        mac,
        writer,
        refused: 0,
        redirect: Arc::clone(&redirect),
    };
    // More workers than a byte can name are more than a TUN has queues.
    Ok((0..=u8::MAX).zip(queues).map(queue).collect())
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl TapQueue {
    /// A second handle of the same queue.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { queue: self.queue.try_clone()?, redirect: Arc::clone(&self.redirect), ..*self })
    }

    /// What the program hangs on.
    #[must_use]
    pub fn link(&self) -> &Link {
        self.redirect.link()
    }

    /// Sends `packet`, which lies in `bytes` behind its VXLAN header, with these outer headers.
    ///
    /// # Errors
    /// `HostUnreachable` if there is no way for it now, be it that there is no route or one with too small an
    /// MTU; what the kernel said of the TAP. It has not left then.
    pub fn send(&mut self, packet: SuperPacket, bytes: &[u8], outer: &[u8; outer::LEN]) -> io::Result<()> {
        let longest = packet.outer_len().min(usize::from(u16::MAX)) as u16;
        let headers = packet.headers(outer, self.mac, redirect::source_mac(longest, self.writer));
        self.queue.write_vectored(&[IoSlice::new(&headers), IoSlice::new(bytes)]).map(drop)?;
        // The program has run when the call returns.
        let refused = self.redirect.refused(self.writer);
        if refused != self.refused {
            self.refused = refused;
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        Ok(())
    }
}

/// Cuts a super-packet that could not leave whole after all. Its memory is touched only then.
#[derive(Debug, Default)]
pub struct Cutter {
    packet: Vec<u8>,
    segments: Vec<u8>,
}

impl Cutter {
    /// Cuts `packet`, which lies in `bytes` behind an encapsulation. Returns the encapsulated segments, one
    /// behind the other, and the length of each but the last.
    pub fn cut(&mut self, packet: SuperPacket, bytes: &[u8]) -> (&[u8], usize) {
        let (encapsulation, inner) = bytes.split_at(bytes.len() - packet.len());
        self.packet.clear();
        self.packet.extend_from_slice(inner);
        self.segments.clear();
        let parsed = Packet::parse(&mut self.packet);
        let segments = parsed.as_ref().ok().and_then(|parsed| Segments::new(parsed, packet.gso()).ok());
        // What is no such packet has not been taken for one.
        let Some(segments) = segments else { return (&[], 1) };
        for index in 0..segments.count() {
            self.segments.extend_from_slice(encapsulation);
            let headers_at = self.segments.len();
            self.segments.resize(headers_at + segments.headers_len(), 0);
            segments.write_headers(index, &mut self.segments[headers_at..]);
            self.segments.extend_from_slice(&inner[segments.payload(index)]);
        }
        let step = encapsulation.len() + segments.headers_len() + usize::from(packet.gso().size);
        (&self.segments, step)
    }
}

#[cfg(test)]
mod tests {
    use overlay_wire::samples::{super_packet, super_packet_header};
    use overlay_wire::{checksum, vxlan};

    use super::*;

    #[test]
    fn what_is_cut_are_the_segments_behind_their_encapsulation() {
        let mut inner = super_packet(3000);
        let packet =
            SuperPacket::of(&Packet::parse(&mut inner).unwrap(), &super_packet_header(1000)).unwrap();
        let encapsulation = [7; vxlan::HEADER_LEN];
        let mut cutter = Cutter::default();
        for _ in 0..2 {
            let bytes = [&encapsulation[..], &inner].concat();
            let (cut, step) = cutter.cut(packet, &bytes);
            let segments: Vec<_> = cut.chunks(step).map(<[u8]>::to_vec).collect();
            assert_eq!(segments.len(), packet.segments());
            assert_eq!(cut.len(), packet.segments_len() + 3 * encapsulation.len());
            let mut payload = Vec::new();
            for mut segment in segments {
                assert_eq!(segment[..encapsulation.len()], encapsulation);
                let segment = Packet::parse(&mut segment[encapsulation.len()..]).unwrap();
                let sum = checksum::sum(segment.payload());
                assert_eq!(checksum::add(sum, segment.pseudo_header()), 0xffff);
                payload.extend_from_slice(&segment.payload()[20..]);
            }
            assert_eq!(payload, inner[40..]);
        }
    }
}
