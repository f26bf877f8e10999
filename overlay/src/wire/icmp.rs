//! The ICMP errors (RFC 792) that a router owes to the sender of a packet it cannot forward.

use std::net::Ipv4Addr;

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{Icmpv4Type, PacketBuilder};

use super::ipv4::{Packet, protocol};

/// What went wrong with a packet, so far as its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// Its time to live has run out.
    TimeExceeded,
    /// No node owns the destination.
    NetUnreachable,
    /// It is too large and must not be fragmented; `mtu` is what would fit.
    FragmentationNeeded {
        /// The largest packet, in bytes, that can be forwarded.
        mtu: u16,
    },
}

/// An ICMP error never exceeds this many bytes (RFC 1812, section 4.3.2.3).
pub const MAX_LEN: usize = 576;
const IP_AND_ICMP_HEADERS: usize = 28;
const TTL: u8 = 64;

/// Whether `packet` may be answered with an error at all (RFC 1122, section 3.2.2): it is not an
/// ICMP error itself, no later fragment, not to a broadcast or multicast address, and its source
/// is that of one host.
#[must_use]
pub fn may_answer(packet: &Packet<'_>) -> bool {
    let about_error = packet.protocol() == protocol::ICMP
        && !packet.payload().first().is_some_and(|kind| is_icmp_query(*kind));
    let src = packet.src();
    let one_sender = !(src.octets()[0] == 0 || src.is_loopback() || src.octets()[0] >= 224);
    let dst = packet.dst();
    let one_receiver = !(dst.is_multicast() || dst.is_broadcast());
    one_sender && one_receiver && !about_error && !packet.is_later_fragment()
}

/// Builds the error about `packet`, from `src` to the packet's sender, as a whole IPv4 packet.
#[must_use]
pub fn build(error: IcmpError, src: Ipv4Addr, packet: &Packet<'_>) -> Vec<u8> {
    let kind = match error {
        IcmpError::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        IcmpError::NetUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
        IcmpError::FragmentationNeeded { mtu } => {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu,
            })
        }
    };
    let quoted = &packet.bytes()[..packet.bytes().len().min(MAX_LEN - IP_AND_ICMP_HEADERS)];
    let mut bytes = Vec::with_capacity(IP_AND_ICMP_HEADERS + quoted.len());
    PacketBuilder::ipv4(src.octets(), packet.src().octets(), TTL)
        .icmpv4(kind)
        .write(&mut bytes, quoted)
        .expect("a quote of at most 548 bytes fits an IPv4 packet, and a Vec takes any write");
    bytes
}

/// Echo, timestamp, information and address mask, request and reply: the messages that are not
/// errors. Unknown types count as errors, to be safe.
fn is_icmp_query(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 13..=18)
}

#[cfg(test)]
mod tests {
    use etherparse::Icmpv4Slice;

    use super::super::ipv4::tests::udp_packet;
    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 0);

    #[test]
    fn an_error_quotes_the_packet_and_goes_to_its_sender() {
        let mut original = udp_packet("10.1.9.3", "10.1.63.2", 1, &[9; 100]);
        let quoted = original.clone();
        let packet = Packet::parse(&mut original).unwrap();
        let mut reply = build(IcmpError::FragmentationNeeded { mtu: 1450 }, OURS, &packet);
        let reply = Packet::parse(&mut reply).unwrap();
        assert_eq!((reply.src(), reply.dst()), (OURS, packet.src()));
        assert_eq!(super::super::checksum::sum(reply.payload()), 0xffff);
        let icmp = Icmpv4Slice::from_slice(reply.payload()).unwrap();
        assert_eq!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1450
            })
        );
        assert_eq!(icmp.payload(), quoted);
    }

    #[test]
    fn an_error_is_never_longer_than_576_bytes() {
        let mut original = udp_packet("10.1.9.3", "10.1.63.2", 1, &[9; 3000]);
        let packet = Packet::parse(&mut original).unwrap();
        assert_eq!(build(IcmpError::TimeExceeded, OURS, &packet).len(), MAX_LEN);
    }

    #[test]
    fn some_packets_are_never_answered() {
        let may = |mut bytes: Vec<u8>| may_answer(&Packet::parse(&mut bytes).unwrap());
        let udp = |src, dst| may(udp_packet(src, dst, 1, b"x"));
        assert!(udp("10.1.9.3", "10.1.63.2"));
        assert!(!udp("10.1.9.3", "224.0.0.5"));
        assert!(!udp("10.1.9.3", "255.255.255.255"));
        assert!(!udp("0.0.0.0", "10.1.63.2"));
        assert!(!udp("127.0.0.1", "10.1.63.2"));
        assert!(!udp("239.1.1.1", "10.1.63.2"));
        assert!(!udp("255.255.255.255", "10.1.63.2"));

        let icmp = |kind: Icmpv4Type| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4([10, 1, 9, 3], [10, 1, 63, 2], 1)
                .icmpv4(kind)
                .write(&mut bytes, &[0; 28])
                .unwrap();
            may(bytes)
        };
        assert!(icmp(Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 1, seq: 1 })));
        assert!(!icmp(Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)));
        assert!(!icmp(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port)));
    }

    #[test]
    fn a_later_fragment_is_not_answered_and_a_first_one_is() {
        let fragment = |field: [u8; 2]| {
            let mut bytes = udp_packet("10.1.9.3", "10.1.63.2", 1, &[1; 16]);
            bytes[6..8].copy_from_slice(&field);
            bytes[10..12].fill(0);
            let sum = !super::super::checksum::sum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            may_answer(&Packet::parse(&mut bytes).unwrap())
        };
        assert!(fragment([0x20, 0]));
        assert!(!fragment([0x20, 2]));
        assert!(!fragment([0, 2]));
    }
}
