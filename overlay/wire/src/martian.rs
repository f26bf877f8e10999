//! Packets that no router forwards, whoever sends them.

use std::net::IpAddr;

use crate::drops::DropReason;
use crate::ip::{Packet, Version};

const V4_HEADER_LEN: usize = 20;
/// IPv4 options (RFC 791, section 3.1): the two that are one byte long, and loose and strict source routes.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Checks where `packet` goes, and that it leaves the way there to the routers.
///
/// # Errors
/// [`DropReason::MartianDestination`] for what is no host's address, [`DropReason::SourceRoute`].
#[inline]
pub fn check(packet: &Packet<'_>) -> Result<(), DropReason> {
    if is_martian(packet.dst()) {
        return Err(DropReason::MartianDestination);
    }
    if is_source_routed(packet) {
        return Err(DropReason::SourceRoute);
    }
    Ok(())
}

/// Whether `address` is no host's that a packet could come from, or go to, by a router: this network, loopback,
/// link-local, multicast, reserved and the broadcast to all (RFC 1812, sections 4.2.2.11 and 5.3.7; RFC 4291).
#[inline]
#[must_use]
pub fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets(), [0 | 127 | 224.., ..] | [169, 254, ..]),
        IpAddr::V6(address) => {
            let link_local = address.segments()[0] & 0xffc0 == 0xfe80;
            link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast()
        }
    }
}

/// Whether the sender says by which hosts it is to go: it could reach where filters do not expect it (RFC 7126,
/// section 4.3; RFC 5095). A route that has been gone to its end is none.
#[inline]
fn is_source_routed(packet: &Packet<'_>) -> bool {
    match packet.version() {
        Version::V4 if packet.header_len() == V4_HEADER_LEN => false,
        Version::V4 => has_source_route(&packet.bytes()[V4_HEADER_LEN..packet.header_len()]),
        Version::V6 => packet.is_routed(),
    }
}

fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        let length = match options {
            [] | [END_OF_OPTIONS, ..] => return false,
            [NO_OPERATION, ..] => 1,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return true,
            // One that is shorter than its own header cannot be skipped; the kernel refuses it.
            [_, length, ..] if *length >= 2 => usize::from(*length),
            _ => return false,
        };
        match options.get(length..) {
            Some(rest) => options = rest,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::with_options;

    #[test]
    fn what_is_no_hosts_address_is_told_from_what_is() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.0.1",
            "224.0.0.5",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ] {
            assert!(is_martian(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.0.0.1",
            "10.1.63.2",
            "126.1.1.1",
            "169.253.1.1",
            "223.255.255.1",
            "fd00::1",
            "fec0::1",
            "2001:db8::1",
        ] {
            assert!(!is_martian(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn source_routes_are_found_among_other_options() {
        let check = |options: &[u8]| check(&Packet::parse(&mut with_options(options)).unwrap());
        let routed = Err(DropReason::SourceRoute);
        for kind in [LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE] {
            assert_eq!(check(&[kind, 7, 4, 10, 1, 7, 2]), routed);
            assert_eq!(check(&[NO_OPERATION, 148, 4, 0, 0, kind, 3, 4]), routed, "behind a router alert");
        }
        assert_eq!(check(&[148, 4, 0, 0]), Ok(()), "a router alert alone");
        assert_eq!(check(&[7, 7, 4, 0, 0, 0, 0]), Ok(()), "record route");
        assert_eq!(check(&[END_OF_OPTIONS, LOOSE_SOURCE_ROUTE, 3, 4]), Ok(()), "behind the end");
        for broken in [&[7, 0, 0, 0][..], &[7, 1, 131, 3], &[7, 200, 0, 0], &[1, 1, 1, 7]] {
            assert_eq!(check(broken), Ok(()), "{broken:?} ends the search");
        }
    }
}
