//! Packets made by hand, and a way to put them on the underlay.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use etherparse::{IpNumber, Ipv4Header, PacketBuilder, UdpHeader};

use crate::netns::Namespace;

/// An IPv4 packet with a UDP datagram in it, checksums filled in.
pub fn udp_packet(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), 64).udp(40_000, port);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).expect("write to a vector");
    packet
}

/// A packet that is to go on from `via` to `to`, strictly by itself (RFC 791, section 3.1), with an empty datagram.
pub fn source_routed(source: Ipv4Addr, via: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let options = [&[137, 7, 4][..], &to.octets(), &[0]].concat();
    let header = Ipv4Header {
        options: options.as_slice().try_into().expect("eight octets of options"),
        ..Ipv4Header::new(8, 64, IpNumber::UDP, source.octets(), via.octets()).expect("a short packet")
    };
    header.write(&mut packet).expect("write to a vector");
    let udp = UdpHeader { source_port: 40_000, destination_port: port, length: 8, checksum: 0 };
    packet.extend(udp.to_bytes());
    packet
}

/// A VXLAN frame (RFC 7348, section 5) around an IPv4 packet: what follows the outer UDP header.
pub fn vxlan_frame(vni: u32, destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    let mut frame = vec![VNI_IS_VALID, 0, 0, 0, high, middle, low, 0];
    frame.extend(destination);
    frame.extend(SOURCE_MAC);
    frame.extend(ETHERTYPE_IPV4);
    frame.extend_from_slice(packet);
    frame
}

/// The octets of a MAC address in its usual form.
#[track_caller]
pub fn mac(text: &str) -> [u8; 6] {
    let octets: Vec<_> = text.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets.try_into().unwrap_or_else(|_| panic!("{text} is no MAC address"))
}

/// A UDP socket that sends whatever it is given to one address.
#[derive(Debug)]
pub struct Injector {
    socket: UdpSocket,
    target: SocketAddr,
}

impl Injector {
    /// Sends from a namespace, with its address and a port of the kernel's choice.
    #[track_caller]
    pub fn new(ns: &Namespace, target: Ipv4Addr, port: u16) -> Self {
        let socket = ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        Self { socket, target: (target, port).into() }
    }

    /// Sends one datagram.
    #[track_caller]
    pub fn send(&self, payload: &[u8]) {
        self.socket.send_to(payload, self.target).unwrap_or_else(|e| panic!("send to {}: {e}", self.target));
    }
}

const VNI_IS_VALID: u8 = 0x08;
const SOURCE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x66];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
