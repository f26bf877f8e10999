//! The outer IPv4 and UDP headers, in one place for all ways that packets leave by.
//!
//! | field | |
//! | --- | --- |
//! | DF | never: a router on a narrow path cuts the packet. Echoes that ask for the path's MTU have it (`path_mtu.rs`) |
//! | ECN | the inner packet's ([`Ecn::outside`]) |
//! | DSCP | 0, whatever the inner packet has, as the kernel's VXLAN devices do by default |
//! | TTL | the host's own (`net.ipv4.ip_default_ttl`), whatever the inner packet has |
//! | UDP checksum | always: without one no receiver joins datagrams |
//!
//! Sockets are made so by `underlay/udp.rs`; what goes by rings or whole has its headers from here.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::checksum;
use crate::ecn::Ecn;
use crate::ip::protocol;

/// Length of both headers.
pub const LEN: usize = UDP + 8;
/// Where the UDP header begins.
const UDP: usize = 20;
/// Version 4, five words of header.
const PLAIN: u8 = 0x45;

/// The headers of all packets that leave by one port.
#[derive(Debug)]
pub struct Outer {
    from: SocketAddrV4,
    ttl: u8,
    /// Sum of the words of the IP header that stay.
    ip_sum: u16,
    /// The same of the pseudo-header.
    pseudo_sum: u16,
    ids: Ids,
}

impl Outer {
    /// Those of packets from `from`, with this time to live.
    #[must_use]
    pub fn new(from: SocketAddrV4, ttl: u8) -> Self {
        let address_sum = checksum::sum(&from.ip().octets());
        let fixed = checksum::sum(&[PLAIN, 0, ttl, protocol::UDP]);
        Self {
            from,
            ttl,
            ip_sum: checksum::add(fixed, address_sum),
            pseudo_sum: checksum::add(address_sum, u16::from(protocol::UDP)),
            ids: Ids::default(),
        }
    }

    /// In front of a payload of `len` bytes to `to`, which may be cut into `packets` packets. The UDP checksum is left
    /// to be filled: its field holds the sum of the pseudo-header.
    #[inline]
    pub fn headers(&mut self, to: SocketAddrV4, ecn: Ecn, len: usize, packets: u16) -> [u8; LEN] {
        let (total_len, udp_len) = ((LEN + len) as u16, (LEN - UDP + len) as u16);
        let id = self.ids.take(packets);
        let address_sum = checksum::sum(&to.ip().octets());
        let varying = checksum::add(checksum::add(total_len, id), u16::from(ecn as u8));
        let ip_sum = checksum::add(checksum::add(self.ip_sum, address_sum), varying);
        let mut bytes = [0; LEN];
        (bytes[0], bytes[1]) = (PLAIN, ecn as u8);
        put(&mut bytes, 2, total_len);
        put(&mut bytes, 4, id);
        (bytes[8], bytes[9]) = (self.ttl, protocol::UDP);
        put(&mut bytes, 10, !ip_sum);
        bytes[12..16].copy_from_slice(&self.from.ip().octets());
        bytes[16..20].copy_from_slice(&to.ip().octets());
        put(&mut bytes, UDP, self.from.port());
        put(&mut bytes, UDP + 2, to.port());
        put(&mut bytes, UDP + 4, udp_len);
        put(&mut bytes, UDP + 6, checksum::add(checksum::add(self.pseudo_sum, address_sum), udp_len));
        bytes
    }
}

/// Fills the UDP checksum of `headers` in front of a payload whose words have this sum.
#[inline]
pub fn fill_checksum(headers: &mut [u8; LEN], payload_sum: u16) {
    // What the field holds counts as if it stood in front.
    let sum = !checksum::add(checksum::sum(&headers[UDP..]), payload_sum);
    // Zero would say that there is none (RFC 768).
    put(headers, UDP + 6, if sum == 0 { 0xffff } else { sum });
}

/// Identifications. Any packet may be cut on its way, and fragments are joined by addresses and identification,
/// whatever their ports: so all that make headers take from one range, some at a time.
#[derive(Debug, Default)]
struct Ids {
    next: u16,
    left: u16,
}

impl Ids {
    /// The first of `count`, which stand in a row.
    #[inline]
    fn take(&mut self, count: u16) -> u16 {
        if self.left < count {
            let taken = count.max(TAKEN);
            (self.next, self.left) = (NEXT_ID.fetch_add(taken, Relaxed), taken);
        }
        let first = self.next;
        self.next = first.wrapping_add(count);
        self.left -= count;
        first
    }
}

static NEXT_ID: AtomicU16 = AtomicU16::new(0);
/// As many as a batch needs.
const TAKEN: u16 = 64;

#[inline]
fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use etherparse::{Ipv4Header, UdpHeader};

    use super::*;

    #[test]
    fn the_headers_are_what_etherparse_would_build() {
        let from = "192.168.199.238:51234".parse().unwrap();
        let to: SocketAddrV4 = "192.168.1.12:8472".parse().unwrap();
        let mut outer = Outer::new(from, 61);
        for (ecn, len) in [(Ecn::NotEct, 0), (Ecn::Ect0, 7), (Ecn::Ect1, 1450), (Ecn::Ce, 60_000)] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut headers = outer.headers(to, ecn, len, 1);
            fill_checksum(&mut headers, checksum::sum(&payload));
            let (ip, _) = Ipv4Header::from_slice(&headers).unwrap();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!((ip.source, ip.destination), (from.ip().octets(), to.ip().octets()));
            assert_eq!((ip.time_to_live, ip.dscp.value(), ip.ecn.value()), (61, 0, ecn as u8));
            assert_eq!((ip.dont_fragment, ip.more_fragments, ip.fragment_offset.value()), (false, false, 0));
            assert_eq!(usize::from(ip.total_len), LEN + len);
            let udp =
                UdpHeader::with_ipv4_checksum(from.port(), to.port(), &ip, &payload).unwrap().to_bytes();
            assert_eq!(headers[UDP..], udp, "{len} bytes");
        }
    }

    #[test]
    fn no_two_packets_have_one_identification() {
        let (from, to) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let mut ports = [Outer::new(from, 64), Outer::new(from, 64), Outer::new(from, 64)];
        let mut seen = BTreeSet::new();
        for round in 0..200 {
            for (outer, packets) in ports.iter_mut().zip([1, 3, 70 * u16::from(round == 7)]) {
                let headers = outer.headers(to, Ecn::NotEct, 0, packets);
                let first = u16::from_be_bytes([headers[4], headers[5]]);
                for id in 0..packets {
                    assert!(seen.insert(first.wrapping_add(id)), "{first} and {id}");
                }
            }
        }
    }

    #[test]
    fn an_outer_checksum_of_zero_is_not_sent() {
        let (from, to) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let mut headers = Outer::new(from, 64).headers(to, Ecn::NotEct, 2, 1);
        let rest = !checksum::sum(&headers[UDP..]);
        fill_checksum(&mut headers, rest);
        assert_eq!(headers[UDP + 6..], [0xff, 0xff]);
    }
}
