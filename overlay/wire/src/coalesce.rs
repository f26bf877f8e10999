//! Coalescing: segments of one flow that arrived one after the other become one super-packet
//! again, which the kernel takes through its stack once, and cuts again where it must. The rules
//! are those of the kernel's own GRO (`tcp_offload.c` and `udp_offload.c` in `net/ipv4`, `af_inet.c`,
//! `net/ipv6/ip6_offload.c`): what a receiver
//! could tell apart is not merged. No payload byte is copied.

use std::ops::Range;

use crate::checksum;
use crate::ip::{Packet, Version, protocol};
use crate::ipv6;
use crate::vnet::{Gso, GsoKind, VnetHdr};

/// Segments of one flow in the order of their arrival, as long as they continue one another. All lie in
/// one memory, each with its headers in front.
#[derive(Debug, Default)]
pub struct Coalescer {
    /// Where the segments' payloads lie, in the buffer that they arrived in.
    parts: Vec<Range<usize>>,
    /// Where the first segment's header begins there.
    start: usize,
    flow: Option<Flow>,
}

/// What the next segment must look like.
#[derive(Debug)]
struct Flow {
    version: Version,
    kind: GsoKind,
    /// The headers of the first segment.
    headers: [u8; MAX_HEADERS_LEN],
    ip_len: usize,
    headers_len: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
    payload_len: usize,
    /// Sum of the pseudo-header but for its length.
    pseudo_sum: u16,
    next_id: u16,
    next_sequence: u32,
    /// Flags that the last segment adds.
    last_flags: u8,
    closed: bool,
}

/// A merged packet: its headers, then the parts of its payload.
#[derive(Debug)]
pub struct Merged<'a> {
    /// What the kernel must know of it.
    pub vnet: VnetHdr,
    /// IP and transport header.
    pub headers: &'a [u8],
    /// Where the payload lies, in the buffer that the segments arrived in.
    pub parts: &'a [Range<usize>],
}

/// The longest IP header and the longest TCP header.
const MAX_HEADERS_LEN: usize = 60 + 60;
const MAX_PACKET_LEN: usize = 65_535;
/// As many segments as one datagram of the wire can hold (`UDP_MAX_SEGMENTS`, Linux 6.9).
pub const MAX_SEGMENTS: usize = 128;
/// FIN and PSH: they close a super-packet, and only its last segment has them.
const CLOSING: u8 = 0x09;
/// ACK alone may be set besides.
const ACK: u8 = 0x10;
/// ECE stays as it is; CWR, URG, RST and SYN mark segments that stand alone.
const ECE: u8 = 0x40;

impl Coalescer {
    /// Whether nothing is held.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes `packet`, which begins at `start` of its buffer, if it can begin a super-packet (and
    /// nothing is held), or continues the one held. Otherwise the caller lets go of what is held
    /// first, and if it was nothing, passes the packet on as it is.
    pub fn offer(&mut self, start: usize, packet: &Packet<'_>, udp: bool) -> bool {
        let taken = match &mut self.flow {
            None => {
                self.flow = Flow::begin(packet, udp);
                self.start = start;
                self.flow.is_some()
            }
            Some(flow) => self.parts.len() < MAX_SEGMENTS && flow.accept(packet),
        };
        if taken && let Some(flow) = &self.flow {
            self.parts.push(start + flow.headers_len..start + packet.bytes().len());
        }
        taken
    }

    /// Where the only packet held lies; `None` if there are several, or none.
    #[inline]
    #[must_use]
    pub fn single(&self) -> Option<Range<usize>> {
        match self.parts.as_slice() {
            [only] => Some(self.start..only.end),
            _ => None,
        }
    }

    /// The super-packet made of what is held.
    #[inline]
    pub fn merged(&mut self) -> Option<Merged<'_>> {
        let vnet = self.flow.as_mut()?.finish();
        let flow = self.flow.as_ref()?;
        Some(Merged { vnet, headers: &flow.headers[..flow.headers_len], parts: &self.parts })
    }

    /// Lets go of what is held.
    #[inline]
    pub fn clear(&mut self) {
        self.parts.clear();
        self.flow = None;
    }
}

impl Flow {
    fn begin(packet: &Packet<'_>, udp: bool) -> Option<Self> {
        let transport = packet.payload();
        let (kind, transport_len) = match packet.protocol() {
            protocol::TCP if transport.len() > 20 => {
                (GsoKind::tcp(packet.version()), usize::from(transport[12] >> 4) * 4)
            }
            protocol::UDP if udp && transport.len() > 8 => (GsoKind::Udp, 8),
            _ => return None,
        };
        let size = transport.len().checked_sub(transport_len).filter(|size| *size > 0)?;
        let alone = match kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => transport_len < 20 || transport[13] & !(CLOSING | ECE) != ACK,
            // A length that differs from the IP packet's, or no checksum that could be kept.
            GsoKind::Udp => {
                usize::from(u16::from_be_bytes([transport[4], transport[5]])) != transport.len()
                    || transport[6..8] == [0, 0]
            }
        };
        if alone || packet.is_fragment() || packet.has_extensions() || !is_intact(packet) {
            return None;
        }
        let headers_len = packet.header_len() + transport_len;
        let mut headers = [0; MAX_HEADERS_LEN];
        headers[..headers_len].copy_from_slice(&packet.bytes()[..headers_len]);
        let mut flow = Self {
            version: packet.version(),
            kind,
            headers,
            ip_len: packet.header_len(),
            headers_len,
            size,
            payload_len: 0,
            pseudo_sum: packet.pseudo_header_of(0),
            next_id: 0,
            next_sequence: 0,
            last_flags: 0,
            closed: false,
        };
        flow.advance(packet);
        Some(flow)
    }

    /// Whether `packet` continues the flow; if so it is the last one now.
    fn accept(&mut self, packet: &Packet<'_>) -> bool {
        let continues = !self.closed
            && packet.bytes().len() > self.headers_len
            && self.payload_len + packet.bytes().len() <= MAX_PACKET_LEN
            && packet.bytes().len() - self.headers_len <= self.size
            && self.same_headers(packet)
            && is_intact(packet);
        if continues {
            self.advance(packet);
        }
        continues
    }

    /// Whether all that a receiver could tell apart is as it must be.
    fn same_headers(&self, packet: &Packet<'_>) -> bool {
        let ours = &self.headers[..self.headers_len];
        let theirs = packet.bytes();
        let same = |range: Range<usize>| ours[range.clone()] == theirs[range];
        let l4 = self.ip_len;
        let same_ip = match self.version {
            // Version, header length and type of service; then flags and offset, TTL and protocol;
            // then addresses and options. Length and checksum follow from the rest.
            Version::V4 => {
                let id = u16::from_be_bytes([theirs[4], theirs[5]]);
                // A datagram that is never fragmented needs no identification (RFC 6864), and Linux
                // gives all of a socket's the same.
                let any_id = self.kind == GsoKind::Udp && packet.dont_fragment() && same(4..6);
                (id == self.next_id || any_id) && same(0..2) && same(6..10) && same(12..l4)
            }
            // Version, traffic class and flow label; next header, hop limit and addresses.
            Version::V6 => same(0..4) && same(6..l4),
        };
        if !same_ip {
            return false;
        }
        match self.kind {
            // Ports; acknowledgement number and data offset; window; urgent pointer and options.
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                let sequence =
                    u32::from_be_bytes([theirs[l4 + 4], theirs[l4 + 5], theirs[l4 + 6], theirs[l4 + 7]]);
                sequence == self.next_sequence
                    && same(l4..l4 + 4)
                    && same(l4 + 8..l4 + 13)
                    && ours[l4 + 13] & !CLOSING == theirs[l4 + 13] & !CLOSING
                    && same(l4 + 14..l4 + 16)
                    && same(l4 + 18..self.headers_len)
            }
            GsoKind::Udp => {
                let len = theirs.len() - l4;
                same(l4..l4 + 4)
                    && usize::from(u16::from_be_bytes([theirs[l4 + 4], theirs[l4 + 5]])) == len
                    && theirs[l4 + 6..l4 + 8] != [0, 0]
            }
        }
    }

    fn advance(&mut self, packet: &Packet<'_>) {
        let bytes = packet.bytes();
        let payload_len = bytes.len() - self.headers_len;
        self.payload_len += payload_len;
        if self.version == Version::V4 {
            self.next_id = u16::from_be_bytes([bytes[4], bytes[5]]).wrapping_add(1);
        }
        self.closed = payload_len < self.size;
        if self.kind != GsoKind::Udp {
            let l4 = self.ip_len;
            let sequence = u32::from_be_bytes([bytes[l4 + 4], bytes[l4 + 5], bytes[l4 + 6], bytes[l4 + 7]]);
            self.next_sequence = sequence.wrapping_add(payload_len as u32);
            self.last_flags = bytes[l4 + 13] & CLOSING;
            self.closed |= self.last_flags != 0;
        }
    }

    /// Makes the headers those of the whole.
    fn finish(&mut self) -> VnetHdr {
        let total_len = self.headers_len + self.payload_len;
        let (ip, transport) = self.headers[..self.headers_len].split_at_mut(self.ip_len);
        match self.version {
            Version::V4 => {
                ip[2..4].copy_from_slice(&(total_len as u16).to_be_bytes());
                ip[10..12].fill(0);
                let sum = !checksum::sum(ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Version::V6 => ip[4..6].copy_from_slice(&((total_len - ipv6::HEADER_LEN) as u16).to_be_bytes()),
        }

        let transport_len = total_len - self.ip_len;
        // The kernel fills the checksum from here, or of each segment if it cuts the packet again.
        let unfilled = checksum::add(self.pseudo_sum, transport_len as u16).to_be_bytes();
        let csum_offset = match self.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                transport[13] |= self.last_flags;
                16
            }
            GsoKind::Udp => {
                transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
                6
            }
        };
        transport[csum_offset..csum_offset + 2].copy_from_slice(&unfilled);
        VnetHdr {
            needs_csum: true,
            gso: Some(Gso { kind: self.kind, size: self.size as u16 }),
            csum_start: self.ip_len as u16,
            csum_offset: csum_offset as u16,
            hdr_len: self.headers_len as u16,
        }
    }
}

/// Whether the TCP or UDP checksum is right, or was left for later by a virtual wire. A merged
/// packet gets a new one, and that must not cover up what was damaged on the way.
fn is_intact(packet: &Packet<'_>) -> bool {
    let transport = packet.payload();
    let pseudo = packet.pseudo_header();
    let at = if packet.protocol() == protocol::TCP { 16 } else { 6 };
    checksum::add(pseudo, checksum::sum(transport)) == 0xffff || transport[at..at + 2] == pseudo.to_be_bytes()
}
