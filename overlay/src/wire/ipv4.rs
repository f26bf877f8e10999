//! IPv4 headers (RFC 791): checked once, then read and changed without a way to fail.

use std::net::Ipv4Addr;

use super::checksum;
use crate::drops::DropReason;

/// Protocol numbers (IANA) that are looked at.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

const MIN_HEADER_LEN: usize = 20;

/// A well-formed IPv4 packet: exactly as many bytes as its header says.
#[derive(Debug)]
pub struct Packet<'a>(&'a mut [u8]);

impl<'a> Packet<'a> {
    /// Checks version, lengths and header checksum. Bytes beyond the total length (the padding of
    /// a short Ethernet frame) are left out.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] if there are fewer bytes than the header says,
    /// [`DropReason::NotIp`] for another version, [`DropReason::Malformed`] for a header that
    /// contradicts itself.
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, DropReason> {
        match bytes.first() {
            None => return Err(DropReason::Truncated),
            Some(first) if first >> 4 != 4 => return Err(DropReason::NotIp),
            Some(_) if bytes.len() < MIN_HEADER_LEN => return Err(DropReason::Truncated),
            Some(_) => {}
        }
        let header_len = usize::from(bytes[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if header_len < MIN_HEADER_LEN || total_len < header_len {
            return Err(DropReason::Malformed);
        }
        if bytes.len() < total_len {
            return Err(DropReason::Truncated);
        }
        if checksum::sum(&bytes[..header_len]) != 0xffff {
            return Err(DropReason::Malformed);
        }
        Ok(Self(&mut bytes[..total_len]))
    }

    /// The whole packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0
    }

    /// The whole packet, to be changed. Whoever changes its header keeps it well-formed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0
    }

    /// Length of the header, options included.
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.0[self.header_len()..]
    }

    /// Source address.
    #[must_use]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    /// Destination address.
    #[must_use]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    /// Number of the protocol that the payload is in.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// Hops left.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.0[8]
    }

    /// Whether it must not be fragmented (DF).
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    /// Whether it is a fragment, first or later.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes([self.0[6], self.0[7]]) & 0x3fff != 0
    }

    /// Whether it is a fragment other than the first, so without its transport header.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes([self.0[6], self.0[7]]) & 0x1fff != 0
    }

    /// Takes one hop off, and brings the header's checksum along. The TTL must not be 0.
    pub fn decrement_ttl(&mut self) {
        let word = |packet: &[u8]| u16::from_be_bytes([packet[8], packet[9]]);
        let old = word(self.0);
        self.0[8] -= 1;
        let sum = u16::from_be_bytes([self.0[10], self.0[11]]);
        let sum = checksum::update(sum, old, word(self.0));
        self.0[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A UDP packet between two addresses, as etherparse builds it.
    pub(crate) fn udp_packet(src: &str, dst: &str, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(octets(src), octets(dst), ttl).udp(4000, 53).write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn fields_are_those_etherparse_wrote() {
        let mut bytes = udp_packet("10.1.9.3", "10.1.63.2", 64, b"hello");
        let len = bytes.len();
        bytes.extend([0; 7]);
        let packet = Packet::parse(&mut bytes).unwrap();
        assert_eq!(packet.bytes().len(), len, "the padding is left out");
        assert_eq!(packet.src(), Ipv4Addr::new(10, 1, 9, 3));
        assert_eq!(packet.dst(), Ipv4Addr::new(10, 1, 63, 2));
        assert_eq!(packet.protocol(), protocol::UDP);
        assert_eq!(packet.ttl(), 64);
        assert_eq!(&packet.payload()[8..], b"hello");
        assert!(!packet.is_fragment());
    }

    #[test]
    fn every_truncation_is_recognised() {
        let whole = udp_packet("10.1.9.3", "10.1.63.2", 64, &[1; 30]);
        for len in 0..whole.len() {
            let mut cut = whole[..len].to_vec();
            assert_eq!(Packet::parse(&mut cut).unwrap_err(), DropReason::Truncated, "{len} bytes");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let good = udp_packet("10.1.9.3", "10.1.63.2", 64, &[1; 30]);
        let broken = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Packet::parse(&mut bytes).unwrap_err()
        };
        assert_eq!(broken(0, 0x65), DropReason::NotIp);
        assert_eq!(broken(0, 0x44), DropReason::Malformed);
        assert_eq!(broken(3, 19), DropReason::Malformed);
        assert_eq!(broken(10, good[10] ^ 1), DropReason::Malformed);
    }

    #[test]
    fn a_hop_less_keeps_the_checksum_right() {
        for ttl in 1..=255 {
            let mut bytes = udp_packet("10.1.9.3", "10.1.63.2", ttl, b"x");
            Packet::parse(&mut bytes).unwrap().decrement_ttl();
            let packet = Packet::parse(&mut bytes).unwrap();
            assert_eq!(packet.ttl(), ttl - 1);
        }
    }
}
