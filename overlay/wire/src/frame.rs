//! Whole frames, Ethernet, IPv4 and UDP around a payload: built, and taken apart, as the kernel's UDP does it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

use crate::ecn::Ecn;
use crate::ip::{Packet, protocol};
use crate::mac::MacAddr;
use crate::outer::{self, Outer};
use crate::vnet::VnetHdr;
use crate::{checksum, vxlan};

/// Ethernet, IPv4 without options, UDP.
pub const HEADERS_LEN: usize = IP + outer::LEN;

/// Where the IPv4 header begins, and the UDP header.
const IP: usize = 14;
const UDP: usize = 34;
const UDP_LEN: usize = 8;
/// The EtherType of IPv4 (RFC 894).
const IPV4: [u8; 2] = [0x08, 0x00];
/// Version 4, five words of header.
const PLAIN: u8 = 0x45;

/// What is the same in all frames from one source port.
#[derive(Debug)]
pub struct Template {
    ethernet: [u8; IP],
    outer: Outer,
}

impl Template {
    /// Frames from `mac`, with these headers.
    #[must_use]
    pub fn new(mac: MacAddr, outer: Outer) -> Self {
        let mut ethernet = [0; IP];
        ethernet[6..12].copy_from_slice(&mac.0);
        ethernet[12..].copy_from_slice(&IPV4);
        Self { ethernet, outer }
    }

    /// Writes a datagram to `to`, made of `slices`, as a frame to the next hop with the address `mac`; returns its
    /// length.
    ///
    /// # Panics
    /// If it does not fit `out`.
    #[inline]
    pub fn write<'a>(
        &mut self,
        out: &mut [u8],
        mac: MacAddr,
        to: SocketAddrV4,
        ecn: Ecn,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> usize {
        let mut end = HEADERS_LEN;
        for slice in slices {
            out[end..end + slice.len()].copy_from_slice(slice);
            end += slice.len();
        }
        let payload_sum = checksum::sum(&out[HEADERS_LEN..end]);
        let mut headers = self.outer.headers(to, ecn, end - HEADERS_LEN, 1);
        outer::fill_checksum(&mut headers, payload_sum);
        out[..IP].copy_from_slice(&self.ethernet);
        out[..6].copy_from_slice(&mac.0);
        out[IP..HEADERS_LEN].copy_from_slice(&headers);
        end
    }
}

/// Why a frame is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is none for this end, or not whole.
    Malformed,
    /// Its UDP checksum is wrong.
    Checksum,
}

/// What is in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender's address and port.
    pub from: SocketAddrV4,
    /// What the outer header says of congestion.
    pub ecn: Ecn,
    /// Where the UDP payload lies.
    pub place: Range<usize>,
}

/// The datagram in a frame for `local`. (No byte is changed.)
///
/// # Errors
/// What the kernel's UDP would drop it for.
#[inline]
pub fn parse(frame: &mut [u8], local: SocketAddrV4) -> Result<Datagram, Refused> {
    let headers: &[u8; HEADERS_LEN] = frame.first_chunk().ok_or(Refused::Malformed)?;
    let half = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
    let address = |at: usize| Ipv4Addr::new(headers[at], headers[at + 1], headers[at + 2], headers[at + 3]);
    let ours = headers[12..IP] == IPV4
        && headers[IP] == PLAIN
        && half(IP + 6) & FRAGMENT == 0
        && headers[IP + 9] == protocol::UDP
        && address(IP + 16) == *local.ip()
        && half(UDP + 2) == local.port()
        && checksum::sum(&headers[IP..UDP]) == 0xffff;
    let (total_len, udp_len) = (usize::from(half(IP + 2)), usize::from(half(UDP + 4)));
    // The frame may be padded, and so may the packet.
    let whole = IP + total_len <= frame.len() && UDP_LEN <= udp_len && UDP - IP + udp_len <= total_len;
    if !(ours && whole) {
        return Err(Refused::Malformed);
    }
    let (from, end) = (SocketAddrV4::new(address(IP + 12), half(UDP)), UDP + udp_len);
    let ecn = Ecn::of_tos(headers[IP + 1]);
    let addresses: [u8; 8] = std::array::from_fn(|at| headers[IP + 12 + at]);
    let pseudo = checksum::pseudo_header(&addresses, protocol::UDP, udp_len);
    if is_intact(&mut frame[UDP..end], pseudo) {
        Ok(Datagram { from, ecn, place: HEADERS_LEN..end })
    } else {
        Err(Refused::Checksum)
    }
}

/// Whether a datagram is as it was sent, as far as its checksum tells: with none (RFC 768) that is nothing. On a
/// virtual wire frames pass that their sender's kernel has not finished yet. Such a one holds the
/// pseudo-header's sum, or lies around an inner packet that does.
#[inline]
fn is_intact(datagram: &mut [u8], pseudo: u16) -> bool {
    let field = u16::from_be_bytes([datagram[6], datagram[7]]);
    let sum = checksum::add(pseudo, checksum::sum(datagram));
    field == 0 || sum == 0xffff || field == pseudo || lacks_inner_checksum(&mut datagram[UDP_LEN..], sum)
}

/// Whether the datagram of that sum would be right if the checksum of the packet in its VXLAN frame were filled in:
/// a kernel that leaves the inner one for later counts on that
/// (Documentation/networking/checksum-offloads.rst, "LCO").
fn lacks_inner_checksum(payload: &mut [u8], sum: u16) -> bool {
    let Some(inner) = payload.get_mut(vxlan::HEADER_LEN..) else { return false };
    let Ok(packet) = Packet::parse(inner) else { return false };
    // What is filled in makes all under the inner checksum, with its pseudo-header, add up to 0xffff.
    VnetHdr::for_arrival(&packet, usize::MAX, None).needs_csum
        && sum == checksum::add(packet.pseudo_header(), checksum::sum(packet.payload()))
}

/// More fragments, or an offset.
const FRAGMENT: u16 = 0x3fff;

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 12), 8472);

    fn template() -> Template {
        let source = SocketAddrV4::new(Ipv4Addr::new(192, 168, 199, 238), 51_234);
        Template::new(MacAddr([2, 0, 0, 0, 0, 1]), Outer::new(source, 64))
    }

    fn build(template: &mut Template, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0xaa; HEADERS_LEN + payload.len() + 5];
        // In two slices, as a segment's headers and payload come.
        let middle = payload.len() / 4 * 2;
        let slices = [&payload[..middle], &payload[middle..]];
        let len = template.write(&mut out, MacAddr([2, 0, 0, 0, 0, 9]), LOCAL, Ecn::Ect0, slices.into_iter());
        out.truncate(len);
        out
    }

    #[test]
    fn a_frame_is_what_etherparse_would_build() {
        let mut template = template();
        for len in [0, 7, 1450] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let frame = build(&mut template, &payload);
            let mut expected = Vec::new();
            let mut ip = etherparse::Ipv4Header::new(
                (8 + len) as u16,
                64,
                etherparse::IpNumber::UDP,
                [192, 168, 199, 238],
                [192, 168, 1, 12],
            )
            .unwrap();
            ip.identification = u16::from_be_bytes([frame[IP + 4], frame[IP + 5]]);
            ip.dont_fragment = false;
            ip.ecn = etherparse::IpEcn::Ect0;
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9])
                .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
                .udp(51_234, 8472)
                .write(&mut expected, &payload)
                .unwrap();
            assert_eq!(frame, expected, "{len} bytes");
            assert!(matches!(
                SlicedPacket::from_ethernet(&frame).unwrap().transport,
                Some(TransportSlice::Udp(_))
            ));
        }
    }

    #[test]
    fn what_is_built_is_taken_apart_and_padding_is_cut_off() {
        let mut frame = build(&mut template(), b"payload");
        frame.extend([0; 20]);
        let Datagram { from, ecn, place } = parse(&mut frame, LOCAL).unwrap();
        assert_eq!(ecn, Ecn::Ect0);
        assert_eq!(from, "192.168.199.238:51234".parse().unwrap());
        assert_eq!(&frame[place], b"payload");
    }

    #[test]
    fn what_is_not_ours_or_not_whole_is_left_alone() {
        let good = build(&mut template(), b"payload");
        for len in 0..good.len() {
            assert_eq!(parse(&mut good.clone()[..len], LOCAL), Err(Refused::Malformed), "{len} bytes");
        }
        // Type, version, total length, fragment, protocol, checksum, destination, port, UDP length.
        for at in [12, 14, 17, 20, 23, 24, 33, 37, 39] {
            let mut bad = good.clone();
            bad[at] ^= 0x24;
            assert_eq!(parse(&mut bad, LOCAL), Err(Refused::Malformed), "byte {at}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused_and_none_is_taken() {
        let good = build(&mut template(), b"a payload of some length");
        for at in HEADERS_LEN..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(parse(&mut bad, LOCAL), Err(Refused::Checksum), "byte {at}");
            bad[UDP + 6..UDP + 8].fill(0);
            assert!(parse(&mut bad, LOCAL).is_ok(), "without a checksum");
        }
        let mut other_sender = good.clone();
        other_sender[UDP + 1] ^= 1;
        assert_eq!(parse(&mut other_sender, LOCAL), Err(Refused::Checksum));
    }

    #[test]
    fn what_a_virtual_wire_leaves_for_later_is_taken() {
        let payload = [7; 99];
        let mut unfilled = build(&mut template(), &payload);
        let addresses = unfilled[IP + 12..].first_chunk::<8>().unwrap();
        let pseudo = checksum::pseudo_header(addresses, protocol::UDP, payload.len() + 8);
        unfilled[UDP + 6..UDP + 8].copy_from_slice(&pseudo.to_be_bytes());
        assert!(parse(&mut unfilled, LOCAL).is_ok());

        // A kernel's VXLAN: the outer checksum is that of the packet with its inner one filled in.
        let mut inner = crate::samples::udp_packet("10.1.63.2", "10.1.9.3", 64, b"inner payload");
        let header = vxlan::header(crate::ip::Version::V4, 1, MacAddr([2; 6]), MacAddr([4; 6]));
        let mut frame = build(&mut template(), &[&header[..], &inner].concat());
        let packet = Packet::parse(&mut inner).unwrap();
        let unfilled = packet.pseudo_header();
        let field = HEADERS_LEN + vxlan::HEADER_LEN + packet.header_len() + 6;
        frame[field..field + 2].copy_from_slice(&unfilled.to_be_bytes());
        assert!(parse(&mut frame, LOCAL).is_ok());
        // All in front of what is left for later is under the outer checksum.
        frame[HEADERS_LEN + 1] ^= 4;
        assert_eq!(parse(&mut frame, LOCAL), Err(Refused::Checksum));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_within_the_frame(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            whole in any::<bool>(),
            changes in proptest::collection::vec((0..60usize, any::<u8>()), 0..4),
        ) {
            if whole {
                frame = build(&mut template(), &frame);
            }
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(Datagram { place, .. }) = parse(&mut frame, LOCAL) {
                prop_assert!(place.start == HEADERS_LEN && place.start <= place.end && place.end <= frame.len());
            }
        }
    }
}
