//! IP packets of both versions: checked once, then read and changed without a way to fail. What the
//! versions' headers look like stand in [`ipv4`] and [`ipv6`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::drops::DropReason;
use crate::ecn::Ecn;
pub use crate::header::Version;
use crate::header::{Fragment, Header};
use crate::{checksum, ipv4, ipv6};

/// Protocol numbers (IANA) that are looked at.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// A well-formed IP packet: exactly as many bytes as its header says.
#[derive(Debug)]
pub struct Packet<'a> {
    bytes: &'a mut [u8],
    header: Header,
}

impl<'a> Packet<'a> {
    /// Checks version and lengths, and the header checksum where there is one. Bytes beyond the
    /// total length (the padding of a short Ethernet frame) are left out.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] if there are fewer bytes than the header says,
    /// [`DropReason::NotIp`] for an unknown version, [`DropReason::Malformed`] for a header that
    /// contradicts itself.
    #[inline]
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, DropReason> {
        let (header, total_len) = match bytes.first().map(|first| first >> 4) {
            None => return Err(DropReason::Truncated),
            Some(4) => ipv4::parse(bytes)?,
            Some(6) => ipv6::parse(bytes)?,
            Some(_) => return Err(DropReason::NotIp),
        };
        Ok(Self { bytes: &mut bytes[..total_len], header })
    }

    /// The whole packet.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The whole packet, to be changed. Whoever changes its header keeps it well-formed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Its version.
    #[inline]
    #[must_use]
    pub fn version(&self) -> Version {
        self.header.version
    }

    /// Length of what stands in front of the payload, options and extension headers included.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header.len
    }

    /// Whether there are IPv6 extension headers.
    #[inline]
    #[must_use]
    pub fn has_extensions(&self) -> bool {
        self.header.version == Version::V6 && self.header.len > ipv6::HEADER_LEN
    }

    /// Whether the destination is one on the way, so that checksums cover another.
    #[inline]
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.header.routed
    }

    /// What follows the header.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.header.len..]
    }

    /// Source address.
    #[inline]
    #[must_use]
    pub fn src(&self) -> IpAddr {
        match self.header.version {
            Version::V4 => Ipv4Addr::from(self.array(12)).into(),
            Version::V6 => Ipv6Addr::from(self.array(8)).into(),
        }
    }

    /// Destination address.
    #[inline]
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        match self.header.version {
            Version::V4 => Ipv4Addr::from(self.array(16)).into(),
            Version::V6 => Ipv6Addr::from(self.array(24)).into(),
        }
    }

    /// Number of the protocol that the payload is in.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.header.protocol
    }

    /// The sum, not inverted, of the pseudo-header in front of the payload: what the field of a
    /// TCP or UDP checksum holds that is left for later.
    #[inline]
    #[must_use]
    pub fn pseudo_header(&self) -> u16 {
        self.pseudo_header_of(self.payload().len())
    }

    /// The same of a payload of `len` bytes.
    #[inline]
    #[must_use]
    pub fn pseudo_header_of(&self, len: usize) -> u16 {
        match self.header.version {
            Version::V4 => checksum::pseudo_header::<8>(&self.array(12), self.protocol(), len),
            Version::V6 => checksum::pseudo_header::<32>(&self.array(8), self.protocol(), len),
        }
    }

    /// Hops left: IPv4's time to live, IPv6's hop limit.
    #[inline]
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.bytes[self.ttl_at()]
    }

    /// Whether it must not be fragmented on its way: IPv4's DF, and always in IPv6.
    #[inline]
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.header.version == Version::V6 || self.bytes[6] & 0x40 != 0
    }

    /// Whether it is a fragment, first or later.
    #[inline]
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.header.fragment != Fragment::Whole
    }

    /// Whether it is a fragment other than the first, so without its transport header.
    #[inline]
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.header.fragment == Fragment::Later
    }

    /// What it says of congestion.
    #[inline]
    #[must_use]
    pub fn ecn(&self) -> Ecn {
        Ecn::of_packet(self.bytes)
    }

    /// Has it say `ecn`, and brings the header's checksum along.
    #[inline]
    pub fn set_ecn(&mut self, ecn: Ecn) {
        let word = |packet: &[u8]| u16::from_be_bytes([packet[0], packet[1]]);
        let old = word(self.bytes);
        match self.header.version {
            Version::V4 => {
                self.bytes[1] = self.bytes[1] & !3 | ecn as u8;
                let sum = u16::from_be_bytes([self.bytes[10], self.bytes[11]]);
                let sum = checksum::update(sum, old, word(self.bytes));
                self.bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Version::V6 => self.bytes[1] = self.bytes[1] & !0x30 | (ecn as u8) << 4,
        }
    }

    /// Whether it is the beginning of a UDP datagram to `port`.
    #[inline]
    #[must_use]
    pub fn is_udp_to(&self, port: u16) -> bool {
        self.header.protocol == protocol::UDP
            && matches!(self.payload(), [_, _, a, b, ..] if u16::from_be_bytes([*a, *b]) == port)
            && !self.is_later_fragment()
    }

    /// Takes one hop off, and brings the header's checksum along. There must be one left.
    #[inline]
    pub fn decrement_ttl(&mut self) {
        let at = self.ttl_at();
        let word = |packet: &[u8]| u16::from_be_bytes([packet[8], packet[9]]);
        let old = word(self.bytes);
        self.bytes[at] -= 1;
        if self.header.version == Version::V4 {
            let sum = u16::from_be_bytes([self.bytes[10], self.bytes[11]]);
            let sum = checksum::update(sum, old, word(self.bytes));
            self.bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }

    #[inline]
    fn ttl_at(&self) -> usize {
        match self.header.version {
            Version::V4 => 8,
            Version::V6 => 7,
        }
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        array
    }
}

/// How long the packet that `bytes` begin with says it is; `None` if it does not.
#[inline]
#[must_use]
pub fn announced_len(bytes: &[u8]) -> Option<usize> {
    let [first, _, a, b, c, d, ..] = bytes else { return None };
    match first >> 4 {
        4 => Some(usize::from(u16::from_be_bytes([*a, *b]))),
        6 => Some(ipv6::HEADER_LEN + usize::from(u16::from_be_bytes([*c, *d]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{ENDS, udp_packet};

    #[test]
    fn fields_are_those_etherparse_wrote() {
        for (src, dst) in ENDS {
            let mut bytes = udp_packet(src, dst, 64, b"hello");
            let len = bytes.len();
            assert_eq!(announced_len(&bytes), Some(len));
            bytes.extend([0; 7]);
            let packet = Packet::parse(&mut bytes).unwrap();
            assert_eq!(packet.bytes().len(), len, "the padding is left out");
            assert_eq!(packet.src(), src.parse::<IpAddr>().unwrap());
            assert_eq!(packet.dst(), dst.parse::<IpAddr>().unwrap());
            assert_eq!(packet.protocol(), protocol::UDP);
            assert_eq!(packet.ttl(), 64);
            assert_eq!(&packet.payload()[8..], b"hello");
            assert!(!packet.is_fragment() && !packet.has_extensions());
            assert_eq!(checksum::add(packet.pseudo_header(), checksum::sum(packet.payload())), 0xffff);
        }
    }

    #[test]
    fn every_truncation_is_recognised() {
        for (src, dst) in ENDS {
            let whole = udp_packet(src, dst, 64, &[1; 30]);
            for len in 0..whole.len() {
                let mut cut = whole[..len].to_vec();
                assert_eq!(Packet::parse(&mut cut).unwrap_err(), DropReason::Truncated, "{len} bytes");
            }
        }
    }

    #[test]
    fn an_unknown_version_is_not_ip() {
        for version in (0..=15).filter(|version| ![4, 6].contains(version)) {
            let mut bytes = [version << 4; 40];
            assert_eq!(Packet::parse(&mut bytes).unwrap_err(), DropReason::NotIp);
            assert_eq!(announced_len(&bytes), None);
        }
    }

    #[test]
    fn what_is_said_of_congestion_changes_nothing_else() {
        for (src, dst) in ENDS {
            for from in 0..4 {
                for to in 0..4 {
                    let mut bytes = udp_packet(src, dst, 64, b"x");
                    let mut packet = Packet::parse(&mut bytes).unwrap();
                    packet.set_ecn(Ecn::of_tos(from));
                    packet.set_ecn(Ecn::of_tos(to));
                    assert_eq!(packet.ecn() as u8, to);
                    packet.set_ecn(Ecn::NotEct);
                    assert_eq!(bytes, udp_packet(src, dst, 64, b"x"));
                }
            }
        }
    }

    #[test]
    fn a_hop_less_keeps_the_packet_well_formed() {
        for (src, dst) in ENDS {
            for ttl in 1..=255 {
                let mut bytes = udp_packet(src, dst, ttl, b"x");
                Packet::parse(&mut bytes).unwrap().decrement_ttl();
                assert_eq!(bytes, udp_packet(src, dst, ttl - 1, b"x"));
            }
        }
    }
}
