//! What can be told of any packet, however odd, for people who look at it: nothing is checked here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ip::protocol;

/// Who exchanges a packet with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Its source.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// The protocol number of IPv4 or the first next header of IPv6.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP.
    pub ports: Option<(u16, u16)>,
}

impl Glance {
    /// Looks at a packet as far as its bytes go; `None` if not even the addresses are there.
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (src, dst, protocol, payload) = match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let [src, dst] = [12, 16].map(|at| Ipv4Addr::from(word(header, at)));
                // A later fragment begins with no ports.
                let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
                let payload = packet.get(usize::from(header[0] & 15) * 4..).filter(|_| is_first);
                (src.into(), dst.into(), header[9], payload)
            }
            6 => {
                let header: &[u8; 40] = packet.first_chunk()?;
                let address = |at: usize| {
                    Ipv6Addr::from_bits(
                        (0..4).fold(0, |bits, i| bits << 32 | u128::from(word(header, at + 4 * i))),
                    )
                };
                (address(8).into(), address(24).into(), header[6], packet.get(40..))
            }
            _ => return None,
        };
        let ports = payload
            .filter(|_| matches!(protocol, protocol::TCP | protocol::UDP))
            .and_then(|payload| payload.first_chunk())
            .map(|[a, b, c, d]| (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
        Some(Self { src, dst, protocol, ports })
    }
}

/// Four bytes of a header, which has them.
fn word(header: &[u8], at: usize) -> u32 {
    header[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::samples::udp_packet;

    #[test]
    fn both_versions_are_seen_as_far_as_they_go() {
        let v4 = udp_packet("10.1.9.3", "10.1.63.2", 64, b"x");
        let glance = Glance::of(&v4).unwrap();
        assert_eq!((glance.src, glance.dst), ("10.1.9.3".parse().unwrap(), "10.1.63.2".parse().unwrap()));
        assert_eq!(glance.protocol, 17);
        let ports = glance.ports.unwrap();
        assert_eq!(Glance::of(&v4[..24]).unwrap().ports, Some(ports));
        assert_eq!(Glance::of(&v4[..23]).unwrap().ports, None);
        assert_eq!(Glance::of(&v4[..19]), None);

        let mut v6 = Vec::new();
        let (src, dst) =
            (Ipv6Addr::new(0xfd00, 0, 0, 9, 0, 0, 0, 3), Ipv6Addr::new(0xfd00, 0, 0, 63, 0, 0, 0, 2));
        PacketBuilder::ipv6(src.octets(), dst.octets(), 64).tcp(4000, 80, 1, 1).write(&mut v6, b"x").unwrap();
        let expected = Glance { src: src.into(), dst: dst.into(), protocol: 6, ports: Some((4000, 80)) };
        assert_eq!(Glance::of(&v6), Some(expected));
        assert_eq!(Glance::of(&v6[..39]), None);
        assert_eq!(Glance::of(&[]), None);
        assert_eq!(Glance::of(&[0x75; 60]), None);
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut packet = udp_packet("10.1.9.3", "10.1.63.2", 64, b"x");
        packet[7] = 1;
        assert_eq!(Glance::of(&packet).unwrap().ports, None);
    }
}
