//! The ICMP errors (RFC 792, RFC 4443) that a router owes to the sender of a packet it cannot forward.

use std::net::IpAddr;

use etherparse::icmpv4::{self, DestUnreachableHeader};
use etherparse::icmpv6::{self, DestUnreachableCode};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

use crate::ip::{Packet, Version, protocol};

/// What went wrong with a packet, so far as its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// Its time to live, or hop limit, has run out.
    TimeExceeded,
    /// No node owns the destination.
    NetUnreachable,
    /// It is too large and must not be fragmented; `mtu` is what would fit.
    FragmentationNeeded {
        /// The largest packet, in bytes, that can be forwarded.
        mtu: u16,
    },
}

const IP_AND_ICMP_HEADERS: [usize; 2] = [20 + 8, 40 + 8];
const TTL: u8 = 64;
/// ICMPv6 messages that are no errors have types from here on (RFC 4443, section 2.1).
const FIRST_ICMPV6_QUERY: u8 = 128;
const ICMPV6_REDIRECT: u8 = 137;

/// An ICMP error about a packet of that version never exceeds this many bytes (RFC 1812, section
/// 4.3.2.3; RFC 4443, section 2.4 c).
#[must_use]
pub const fn max_len(version: Version) -> usize {
    match version {
        Version::V4 => 576,
        Version::V6 => 1280,
    }
}

/// Whether `packet` may be answered with an error at all (RFC 1122, section 3.2.2; RFC 4443,
/// section 2.4 e): it is not an ICMP error itself, no later fragment, not to a broadcast address,
/// not to a multicast address unless it says what is `too_big` in IPv6 for path MTU discovery,
/// and its source is that of one host.
#[must_use]
pub fn may_answer(error: IcmpError, packet: &Packet<'_>) -> bool {
    let kind = packet.payload().first().copied();
    let about_error = match packet.protocol() {
        protocol::ICMP => !kind.is_some_and(is_icmp_query),
        protocol::ICMPV6 => !kind.is_some_and(is_icmpv6_query),
        _ => false,
    };
    let one_sender = match packet.src() {
        IpAddr::V4(src) => !(src.octets()[0] == 0 || src.is_loopback() || src.octets()[0] >= 224),
        IpAddr::V6(src) => !(src.is_unspecified() || src.is_loopback() || src.is_multicast()),
    };
    let one_receiver = match packet.dst() {
        IpAddr::V4(dst) => !(dst.is_multicast() || dst.is_broadcast()),
        IpAddr::V6(dst) => !dst.is_multicast() || matches!(error, IcmpError::FragmentationNeeded { .. }),
    };
    one_sender && one_receiver && !about_error && !packet.is_later_fragment()
}

/// Builds the error about `packet`, from `src` to the packet's sender, as a whole IP packet; `None`
/// if `src` is an address of the other version.
#[must_use]
pub fn build(error: IcmpError, src: IpAddr, packet: &Packet<'_>) -> Option<Vec<u8>> {
    let version = packet.version();
    let headers_len = IP_AND_ICMP_HEADERS[version as usize];
    let quoted = &packet.bytes()[..packet.bytes().len().min(max_len(version) - headers_len)];
    let mut bytes = Vec::with_capacity(headers_len + quoted.len());
    let written = match (src, packet.src()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => PacketBuilder::ipv4(src.octets(), dst.octets(), TTL)
            .icmpv4(icmpv4_type(error))
            .write(&mut bytes, quoted),
        (IpAddr::V6(src), IpAddr::V6(dst)) => PacketBuilder::ipv6(src.octets(), dst.octets(), TTL)
            .icmpv6(icmpv6_type(error))
            .write(&mut bytes, quoted),
        _ => return None,
    };
    written.expect("a quote that short fits a packet, and a Vec takes any write");
    Some(bytes)
}

fn icmpv4_type(error: IcmpError) -> Icmpv4Type {
    match error {
        IcmpError::TimeExceeded => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
        IcmpError::NetUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
        IcmpError::FragmentationNeeded { mtu } => {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu,
            })
        }
    }
}

fn icmpv6_type(error: IcmpError) -> Icmpv6Type {
    match error {
        IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        IcmpError::NetUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute),
        IcmpError::FragmentationNeeded { mtu } => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
    }
}

/// Echo, timestamp, information and address mask, request and reply: the messages that are not
/// errors. Unknown types count as errors, to be safe.
fn is_icmp_query(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 13..=18)
}

/// Informational messages. A redirect is one, too, and yet must not be answered.
fn is_icmpv6_query(kind: u8) -> bool {
    kind >= FIRST_ICMPV6_QUERY && kind != ICMPV6_REDIRECT
}

#[cfg(test)]
mod tests {
    use etherparse::{IcmpEchoHeader, Icmpv4Slice, Icmpv6Slice};

    use super::*;
    use crate::checksum;
    use crate::samples::udp_packet;

    const TOO_BIG: IcmpError = IcmpError::FragmentationNeeded { mtu: 1450 };
    /// The address of our overlay device, a pod's and one of another node's, in each version.
    const ENDS: [[&str; 3]; 2] =
        [["10.1.9.0", "10.1.9.3", "10.1.63.2"], ["fd00:0:0:9::", "fd00:0:0:9::3", "fd00:0:0:63::2"]];

    #[test]
    fn an_error_quotes_the_packet_and_goes_to_its_sender() {
        for [ours, src, dst] in ENDS {
            let mut original = udp_packet(src, dst, 1, &[9; 100]);
            let quoted = original.clone();
            let packet = Packet::parse(&mut original).unwrap();
            let ours: IpAddr = ours.parse().unwrap();
            let mut reply = build(TOO_BIG, ours, &packet).unwrap();
            let reply = Packet::parse(&mut reply).unwrap();
            assert_eq!((reply.src(), reply.dst()), (ours, packet.src()));
            match packet.version() {
                Version::V4 => {
                    assert_eq!(checksum::sum(reply.payload()), 0xffff);
                    let icmp = Icmpv4Slice::from_slice(reply.payload()).unwrap();
                    assert_eq!(icmp.icmp_type(), icmpv4_type(TOO_BIG));
                    assert_eq!(icmp.payload(), quoted);
                }
                Version::V6 => {
                    assert_eq!(checksum::add(reply.pseudo_header(), checksum::sum(reply.payload())), 0xffff);
                    let icmp = Icmpv6Slice::from_slice(reply.payload()).unwrap();
                    assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1450 });
                    assert_eq!(icmp.payload(), quoted);
                }
            }
        }
    }

    #[test]
    fn an_error_is_never_longer_than_allowed() {
        for ([ours, src, dst], len) in ENDS.into_iter().zip([576, 1280]) {
            let mut original = udp_packet(src, dst, 1, &[9; 3000]);
            let packet = Packet::parse(&mut original).unwrap();
            let built = build(IcmpError::TimeExceeded, ours.parse().unwrap(), &packet).unwrap();
            assert_eq!(built.len(), len);
        }
    }

    #[test]
    fn an_error_needs_an_address_of_the_same_version() {
        let mut original = udp_packet("10.1.9.3", "10.1.63.2", 1, b"x");
        let packet = Packet::parse(&mut original).unwrap();
        assert_eq!(build(IcmpError::TimeExceeded, "fd00::1".parse().unwrap(), &packet), None);
    }

    fn may(error: IcmpError, mut bytes: Vec<u8>) -> bool {
        may_answer(error, &Packet::parse(&mut bytes).unwrap())
    }

    #[test]
    fn some_packets_are_never_answered() {
        let udp = |src, dst| may(IcmpError::NetUnreachable, udp_packet(src, dst, 1, b"x"));
        assert!(udp("10.1.9.3", "10.1.63.2"));
        assert!(!udp("10.1.9.3", "224.0.0.5"));
        assert!(!udp("10.1.9.3", "255.255.255.255"));
        assert!(!udp("0.0.0.0", "10.1.63.2"));
        assert!(!udp("127.0.0.1", "10.1.63.2"));
        assert!(!udp("239.1.1.1", "10.1.63.2"));
        assert!(!udp("255.255.255.255", "10.1.63.2"));

        assert!(udp("fd00::3", "fd00::2"));
        assert!(!udp("fd00::3", "ff0e::1"));
        assert!(!udp("::", "fd00::2"));
        assert!(!udp("::1", "fd00::2"));
        assert!(!udp("ff0e::1", "fd00::2"));
        assert!(may(TOO_BIG, udp_packet("fd00::3", "ff0e::1", 1, b"x")), "RFC 4443, section 2.4 e.3");
        assert!(!may(TOO_BIG, udp_packet("10.1.9.3", "224.0.0.5", 1, b"x")));
    }

    #[test]
    fn errors_are_not_answered_and_queries_are() {
        let icmp = |kind: Icmpv4Type| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4([10, 1, 9, 3], [10, 1, 63, 2], 1)
                .icmpv4(kind)
                .write(&mut bytes, &[0; 28])
                .unwrap();
            may(IcmpError::TimeExceeded, bytes)
        };
        let echo = IcmpEchoHeader { id: 1, seq: 1 };
        assert!(icmp(Icmpv4Type::EchoRequest(echo)));
        assert!(!icmp(icmpv4_type(IcmpError::TimeExceeded)));
        assert!(!icmp(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port)));

        let icmpv6 = |kind: Icmpv6Type| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 1).icmpv6(kind).write(&mut bytes, &[0; 48]).unwrap();
            may(IcmpError::TimeExceeded, bytes)
        };
        assert!(icmpv6(Icmpv6Type::EchoRequest(echo)));
        assert!(!icmpv6(icmpv6_type(TOO_BIG)));
        assert!(!icmpv6(Icmpv6Type::Unknown { type_u8: ICMPV6_REDIRECT, code_u8: 0, bytes5to8: [0; 4] }));
    }

    #[test]
    fn a_later_fragment_is_not_answered_and_a_first_one_is() {
        let fragment = |field: [u8; 2]| {
            let mut bytes = udp_packet("10.1.9.3", "10.1.63.2", 1, &[1; 16]);
            bytes[6..8].copy_from_slice(&field);
            bytes[10..12].fill(0);
            let sum = !checksum::sum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            may(IcmpError::TimeExceeded, bytes)
        };
        assert!(fragment([0x20, 0]));
        assert!(!fragment([0x20, 2]));
        assert!(!fragment([0, 2]));
    }
}
