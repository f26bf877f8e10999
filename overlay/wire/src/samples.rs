//! Packets to test with, here and in the crates that use this one (feature `samples`).

use std::net::IpAddr;

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};

use crate::checksum;
use crate::ip::Packet;
use crate::vnet::{Gso, GsoKind, VnetHdr};

const V4_HEADER_LEN: usize = 20;
const V6_HEADER_LEN: usize = 40;

/// A UDP packet between two addresses of one version, as etherparse builds it.
pub fn udp_packet(src: &str, dst: &str, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder(src, dst, ttl).udp(4000, 53).write(&mut bytes, payload).unwrap();
    bytes
}

/// A packet between two addresses of one version, so far.
pub fn builder(src: &str, dst: &str, ttl: u8) -> PacketBuilderStep<IpHeaders> {
    match (src.parse().unwrap(), dst.parse().unwrap()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => PacketBuilder::ipv4(src.octets(), dst.octets(), ttl),
        (IpAddr::V6(src), IpAddr::V6(dst)) => PacketBuilder::ipv6(src.octets(), dst.octets(), ttl),
        mixed => panic!("{mixed:?}"),
    }
}

/// Addresses of each version on our side, and on the other.
pub const ENDS: [(&str, &str); 2] = [("10.1.9.3", "10.1.63.2"), ("fd00:0:0:9::3", "fd00:0:0:63::2")];

/// A UDP packet with these extension headers: the number of each, and its bytes but for the first.
pub fn with_extensions(extensions: &[(u8, &[u8])], payload: &[u8]) -> Vec<u8> {
    let mut bytes = udp_packet("fd00:0:0:9::3", "fd00:0:0:63::2", 64, payload);
    let mut at = 6;
    let mut end = V6_HEADER_LEN;
    for (number, body) in extensions {
        let next = std::mem::replace(&mut bytes[at], *number);
        at = end;
        end += 1 + body.len();
        bytes.splice(at..at, std::iter::once(next).chain(body.iter().copied()));
    }
    let len = (bytes.len() - V6_HEADER_LEN) as u16;
    bytes[4..6].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A packet with these options, filled up to 32 bits with ends.
pub fn with_options(options: &[u8]) -> Vec<u8> {
    let mut bytes = udp_packet("10.1.63.2", "10.1.9.3", 64, b"hello");
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    bytes.splice(V4_HEADER_LEN..V4_HEADER_LEN, options.iter().copied());
    bytes[0] = 0x45 + (options.len() / 4) as u8;
    let total_len = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&total_len.to_be_bytes());
    bytes[10..12].fill(0);
    let sum = !checksum::sum(&bytes[..V4_HEADER_LEN + options.len()]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A TCP super-packet with so much payload, as the overlay device hands it over.
pub fn super_packet(payload: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let payload: Vec<u8> = (0..payload).map(|i| i as u8).collect();
    let packet = PacketBuilder::ipv4([10, 1, 9, 3], [10, 1, 63, 2], 64).tcp(4000, 80, 7, 500).ack(77);
    packet.write(&mut bytes, &payload).unwrap();
    // It may be fragmented, which etherparse does not let it.
    bytes[6] = 0;
    bytes[10..12].fill(0);
    let sum = !checksum::sum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    let sum = Packet::parse(&mut bytes).unwrap().pseudo_header();
    bytes[36..38].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The header that it comes with, which has it cut into segments of `size`.
pub fn super_packet_header(size: u16) -> VnetHdr {
    let gso = Some(Gso { kind: GsoKind::Tcp4, size });
    VnetHdr { needs_csum: true, gso, csum_start: 20, csum_offset: 16, hdr_len: 40 }
}
