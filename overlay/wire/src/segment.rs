//! Segmentation: a super-packet from the overlay device, cut as the kernel or a network card would
//! cut it. No payload byte is copied: a segment is a header of its own and a range of the payload.

use std::ops::Range;

use crate::checksum;
use crate::drops::DropReason;
use crate::ip::{Packet, Version, protocol};
use crate::ipv6;
use crate::vnet::{Gso, GsoKind, VnetHdr};

/// A super-packet, ready to be cut.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    version: Version,
    kind: GsoKind,
    size: usize,
    ip_len: usize,
    headers_len: usize,
    count: usize,
    /// Sum of the IPv4 header with those words zero that differ between segments.
    ip_sum: u16,
    /// The same of pseudo-header and transport header.
    transport_sum: u16,
}

/// The longest IP header, extension headers included, that segments are given a copy of.
pub const MAX_IP_LEN: usize = 128;
/// The longest headers of a segment: those of IP, and TCP's with all their options.
pub const MAX_SEGMENT_HEADERS_LEN: usize = MAX_IP_LEN + 60;
/// TCP flags that only the last segment keeps: FIN and PSH.
const LAST_ONLY: u8 = 0x09;
/// The TCP flag that only the first segment keeps: CWR (RFC 3168, section 6.1.2).
const FIRST_ONLY: u8 = 0x80;
const UDP_HEADER_LEN: usize = 8;

impl<'a> Segments<'a> {
    /// Prepares to cut `packet` as `gso` says.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] if its headers are not what the kind of super-packet needs.
    pub fn new(packet: &'a Packet<'_>, gso: Gso) -> Result<Self, DropReason> {
        let bytes = packet.bytes();
        let ip_len = packet.header_len();
        let transport = packet.payload();
        let headers_len = headers_len(packet, gso.kind);
        let whole = gso.kind.fits(packet) && bytes.len() > headers_len && !packet.is_fragment();
        // With places to go to on the way, the addresses at hand are not those that checksums cover.
        if !whole || packet.is_routed() || ip_len > MAX_IP_LEN {
            return Err(DropReason::Malformed);
        }
        let transport_len = headers_len - ip_len;
        let size = usize::from(gso.size);

        let ip_sum = match packet.version() {
            Version::V4 => {
                let mut ip = [0; 60];
                let ip = &mut ip[..ip_len];
                ip.copy_from_slice(&bytes[..ip_len]);
                // Length, identification, checksum.
                [2..6, 10..12].into_iter().for_each(|varies| ip[varies].fill(0));
                checksum::sum(ip)
            }
            Version::V6 => 0,
        };
        let mut header = [0; 60];
        let header = &mut header[..transport_len];
        header.copy_from_slice(&transport[..transport_len]);
        match gso.kind {
            // Sequence number, flags with the data offset, checksum.
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                [4..8, 12..14, 16..18].into_iter().for_each(|varies| header[varies].fill(0));
            }
            // Length, checksum.
            GsoKind::Udp => header[4..8].fill(0),
        }
        let pseudo = packet.pseudo_header_of(0);
        Ok(Self {
            packet: bytes,
            version: packet.version(),
            kind: gso.kind,
            size,
            ip_len,
            headers_len,
            count: (bytes.len() - headers_len).div_ceil(size),
            ip_sum,
            transport_sum: checksum::add(pseudo, checksum::sum(header)),
        })
    }

    /// How many segments there are; at least one.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of every segment's headers.
    #[inline]
    #[must_use]
    pub fn headers_len(&self) -> usize {
        self.headers_len
    }

    /// Where the payload of the `index`th segment lies in the packet.
    #[inline]
    #[must_use]
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = self.headers_len + index * self.size;
        start..(start + self.size).min(self.packet.len())
    }

    /// Writes the headers of the `index`th segment to `out`, which is as long as they are.
    pub fn write_headers(&self, index: usize, out: &mut [u8]) {
        let payload = self.payload(index);
        out.copy_from_slice(&self.packet[..self.headers_len]);
        let (ip, transport) = out.split_at_mut(self.ip_len);

        let total_len = self.headers_len + payload.len();
        match self.version {
            Version::V4 => {
                let total_len = total_len as u16;
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
                put(ip, 2, total_len);
                put(ip, 4, id);
                put(ip, 10, !checksum::add(self.ip_sum, checksum::add(total_len, id)));
            }
            Version::V6 => put(ip, 4, (total_len - ipv6::HEADER_LEN) as u16),
        }

        let transport_len = (total_len - self.ip_len) as u16;
        let sum = checksum::add(self.transport_sum, transport_len);
        let sum = checksum::add(sum, checksum::sum(&self.packet[payload]));
        match self.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                let first = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let sequence = first.wrapping_add((index * self.size) as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if index + 1 < self.count {
                    transport[13] &= !LAST_ONLY;
                }
                if index > 0 {
                    transport[13] &= !FIRST_ONLY;
                }
                let varies = checksum::add(
                    checksum::sum(&transport[4..8]),
                    u16::from_be_bytes([transport[12], transport[13]]),
                );
                put(transport, 16, !checksum::add(sum, varies));
            }
            GsoKind::Udp => {
                put(transport, 4, transport_len);
                put(transport, 6, finish_udp(checksum::add(sum, transport_len)));
            }
        }
    }
}

/// Length of the headers of `packet`, taken for a super-packet of that kind. (The length that the
/// kernel gives in the virtio header is but a hint, and often larger.)
#[inline]
#[must_use]
pub fn headers_len(packet: &Packet<'_>, kind: GsoKind) -> usize {
    let transport_len = match kind {
        GsoKind::Udp => UDP_HEADER_LEN,
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            packet.payload().get(12).map_or(0, |offset| usize::from(offset >> 4) * 4).max(20)
        }
    };
    packet.header_len() + transport_len
}

/// Fills the checksum that `header` says is still to be filled.
///
/// # Errors
/// [`DropReason::Malformed`] if the field lies outside the packet.
#[inline]
pub fn fill_checksum(packet: &mut Packet<'_>, header: &VnetHdr) -> Result<(), DropReason> {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    let udp = packet.protocol() == protocol::UDP;
    let bytes = packet.bytes_mut();
    if start > bytes.len() || at + 2 > bytes.len() {
        return Err(DropReason::Malformed);
    }
    let sum = checksum::sum(&bytes[start..]);
    put(bytes, at, if udp { finish_udp(sum) } else { !sum });
    Ok(())
}

/// A UDP checksum of zero would say that there is none (RFC 768).
fn finish_udp(sum: u16) -> u16 {
    match !sum {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[inline]
fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::TcpHeaderSlice;

    use super::*;
    use crate::samples::with_extensions;
    use crate::samples::{ENDS, builder, udp_packet};

    type Ends = (&'static str, &'static str);

    fn tcp((src, dst): Ends, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        builder(src, dst, 64)
            .tcp(4000, 80, 0xffff_fff0, 500)
            .ack(77)
            .psh()
            .fin()
            .cwr()
            .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .unwrap()
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn udp((src, dst): Ends, payload: &[u8]) -> Vec<u8> {
        udp_packet(src, dst, 64, payload)
    }

    /// Cuts `bytes` and checks that every segment is a packet with right checksums.
    fn cut(mut bytes: Vec<u8>, kind: GsoKind, size: u16) -> Vec<Vec<u8>> {
        let packet = Packet::parse(&mut bytes).unwrap();
        let segments = Segments::new(&packet, Gso { kind, size }).unwrap();
        (0..segments.count())
            .map(|index| {
                let mut out = vec![0; segments.headers_len()];
                segments.write_headers(index, &mut out);
                out.extend(&packet.bytes()[segments.payload(index)]);
                let len = out.len();
                let segment = Packet::parse(&mut out).unwrap();
                assert_eq!(segment.bytes().len(), len);
                assert_eq!(checksum::add(segment.pseudo_header(), checksum::sum(segment.payload())), 0xffff);
                out
            })
            .collect()
    }

    #[test]
    fn tcp_segments_carry_sequence_flags_and_checksums() {
        let payload: Vec<u8> = (0..3001u32).map(|i| i as u8).collect();
        for (ends, kind, ip_len) in [(ENDS[0], GsoKind::Tcp4, 20), (ENDS[1], GsoKind::Tcp6, 40)] {
            let whole = tcp(ends, &payload);
            let segments = cut(whole.clone(), kind, 1000);
            assert_eq!(segments.len(), 4);
            let mut joined: Vec<u8> = Vec::new();
            for (index, segment) in segments.iter().enumerate() {
                let header = TcpHeaderSlice::from_slice(&segment[ip_len..]).unwrap();
                assert_eq!(header.sequence_number(), 0xffff_fff0u32.wrapping_add(1000 * index as u32));
                assert_eq!(header.acknowledgment_number(), 77);
                assert_eq!((header.psh(), header.fin()), (index == 3, index == 3));
                assert_eq!(header.cwr(), index == 0);
                match kind {
                    GsoKind::Tcp6 => {
                        assert_eq!((&segment[..4], &segment[6..40]), (&whole[..4], &whole[6..40]));
                    }
                    _ => assert_eq!(u16::from_be_bytes([segment[4], segment[5]]), index as u16),
                }
                joined.extend(&segment[ip_len + 32..]);
            }
            assert_eq!(joined, payload);
        }
    }

    #[test]
    fn udp_segments_are_datagrams() {
        for (ends, headers_len) in ENDS.into_iter().zip([28, 48]) {
            let segments = cut(udp(ends, &[7; 250]), GsoKind::Udp, 100);
            assert_eq!(segments.len(), 3);
            assert_eq!(segments[0], udp(ends, &[7; 100]));
            assert_eq!(segments[2].len(), headers_len + 50);
        }
    }

    #[test]
    fn extension_headers_stand_in_every_segment() {
        let options: (u8, &[u8]) = (60, &[0, 1, 4, 9, 9, 9, 9]);
        let segments = cut(with_extensions(&[options], &[7; 250]), GsoKind::Udp, 100);
        assert_eq!(segments.len(), 3);
        assert_eq!(segments[0], {
            let mut first = with_extensions(&[options], &[7; 100]);
            // etherparse has computed the checksum for the same addresses and protocol.
            let udp = udp(ENDS[1], &[7; 100]);
            first[48..56].copy_from_slice(&udp[40..48]);
            first
        });
        assert_eq!(segments[2].len(), 40 + 8 + 8 + 50);
    }

    fn refused(mut bytes: Vec<u8>, kind: GsoKind) -> DropReason {
        Segments::new(&Packet::parse(&mut bytes).unwrap(), Gso { kind, size: 100 }).unwrap_err()
    }

    #[test]
    fn what_is_no_super_packet_is_refused() {
        let kinds = [(GsoKind::Tcp4, GsoKind::Tcp6), (GsoKind::Tcp6, GsoKind::Tcp4)];
        for (ends, (kind, other)) in ENDS.into_iter().zip(kinds) {
            assert_eq!(refused(udp(ends, &[1; 300]), kind), DropReason::Malformed);
            assert_eq!(refused(tcp(ends, &[1; 300]), GsoKind::Udp), DropReason::Malformed);
            assert_eq!(refused(tcp(ends, &[1; 300]), other), DropReason::Malformed);
            assert_eq!(refused(tcp(ends, &[]), kind), DropReason::Malformed);
            let mut offset_beyond = tcp(ends, &[]);
            let at = offset_beyond.len() - 32 + 12;
            offset_beyond[at] = 0xf0;
            assert_eq!(refused(offset_beyond, kind), DropReason::Malformed);
        }
    }

    #[test]
    fn what_cannot_be_cut_rightly_is_refused() {
        let fragment: (u8, &[u8]) = (44, &[0, 0, 1, 0, 0, 0, 7]);
        let routing: (u8, &[u8]) = (43, &[0, 4, 1, 0, 0, 0, 0]);
        let long: (u8, &[u8]) = (60, &[15; 127]);
        for extension in [fragment, routing, long] {
            let reason = refused(with_extensions(&[extension], &[1; 300]), GsoKind::Udp);
            assert_eq!(reason, DropReason::Malformed, "{extension:?}");
        }
    }

    #[test]
    fn a_checksum_is_filled_where_the_header_says() {
        for ends in ENDS {
            for (good, offset) in [(tcp(ends, b"hello"), 16), (udp(ends, b"hello"), 6)] {
                let mut bytes = good.clone();
                let packet = Packet::parse(&mut bytes).unwrap();
                let (start, pseudo) = (packet.header_len(), packet.pseudo_header());
                put(&mut bytes, start + offset, pseudo);
                let header = VnetHdr {
                    needs_csum: true,
                    csum_start: start as u16,
                    csum_offset: offset as u16,
                    ..VnetHdr::default()
                };
                fill_checksum(&mut Packet::parse(&mut bytes).unwrap(), &header).unwrap();
                assert_eq!(bytes, good);
                let beyond = VnetHdr { csum_start: 80, csum_offset: 80, ..header };
                assert!(fill_checksum(&mut Packet::parse(&mut bytes).unwrap(), &beyond).is_err());
            }
        }
    }
}
