//! The whole way from the device to the wire, held against a plain model of what leaves.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use overlay::drops::DropReason;
use overlay::wire::ip::{Packet, Version};
use overlay::wire::vnet::{Gso, GsoKind, VnetHdr};
use overlay::wire::{Format, checksum, icmp, vxlan};

use crate::input::Input;
use crate::packets::{cut, fill_header, normalised, packet};
use crate::{EgressRig, MTU, OURS, PEERS, THEIRS, VXLAN, dropped};

const SOURCES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 1, 9, 3),
    Ipv4Addr::new(10, 1, 9, 4),
    Ipv4Addr::new(0, 0, 0, 0),
    Ipv4Addr::new(239, 1, 1, 1),
];
const DESTINATIONS: [Ipv4Addr; 8] = [
    Ipv4Addr::new(10, 1, 63, 2),
    Ipv4Addr::new(10, 1, 7, 2),
    Ipv4Addr::new(10, 1, 8, 2),
    Ipv4Addr::new(10, 1, 64, 200),
    Ipv4Addr::new(10, 1, 9, 77),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(10, 1, 255, 255),
    Ipv4Addr::new(10, 1, 64, 2),
];

/// Runs one input: what the device gives in one batch.
///
/// # Panics
/// If a packet is lost without being counted, or one leaves other than it should.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.byte();
    let format = if mode & 1 == 0 { VXLAN } else { Format::FlannelUdp };
    let refused = if mode & 2 != 0 { input.byte() } else { 0 };
    let mut rig = EgressRig::new(format);
    rig.wire.refuse(refused);

    let (mut lost, mut leaving) = (0, HashMap::<SocketAddr, Vec<Vec<u8>>>::new());
    let (mut packets, mut given) = (0, 0);
    for _ in 0..MAX_PACKETS {
        if input.is_empty() || given > MAX_GIVEN {
            break;
        }
        let (header, packet) = read(&mut input);
        given += packet.len();
        match expected(header.as_ref(), &packet, format) {
            Some((to, segments)) => {
                packets += segments.len() as u64;
                leaving.entry(to).or_default().extend(segments);
            }
            None => lost += 1,
        }
        let header = header.map_or(NO_HEADER, VnetHdr::to_bytes);
        rig.device.queue([&header[..], &packet].concat());
    }
    while rig.worker.step().expect("the device is there") > 0 {}

    let totals = rig.totals();
    let unsent = totals.drops(DropReason::SendFailed);
    assert_eq!(dropped(&totals) - unsent, lost, "{totals:?}");
    assert_eq!(totals.packets + unsent, packets, "in = out + dropped: {totals:?}");
    let answers = rig.icmp.take_sent();
    assert!(answers.len() as u64 <= lost && answers.len() as u64 == totals.icmp_sent);
    assert!(answers.iter().all(|(_, answer)| answer.len() <= icmp::max_len(Version::V6)));
    if refused != 0 {
        return;
    }
    let mut sent = HashMap::<SocketAddr, Vec<Vec<u8>>>::new();
    for datagram in rig.wire.take_sent() {
        let mut inner = &datagram.bytes[..];
        let (format_passes_marks, behind) = match format {
            Format::Vxlan { .. } => (true, &inner[vxlan::HEADER_LEN..]),
            // To flanneld, as which everybody counts who has not said otherwise.
            Format::FlannelUdp => (false, inner),
        };
        let within = if behind[0] >> 4 == 6 { behind[1] >> 4 & 3 } else { behind[1] & 3 };
        let outside = if within == 3 { 2 } else { within };
        assert_eq!(datagram.ecn as u8, if format_passes_marks { outside } else { 0 });
        if let Format::Vxlan { .. } = format {
            let version = if inner[vxlan::HEADER_LEN] >> 4 == 6 { Version::V6 } else { Version::V4 };
            assert_eq!(inner[..vxlan::HEADER_LEN], vxlan::header(version, 1, OURS, THEIRS));
            inner = &inner[vxlan::HEADER_LEN..];
        }
        sent.entry(datagram.to).or_default().push(inner.to_vec());
    }
    // Flows keep their order, but two flows may leave by two lanes.
    for packets in leaving.values_mut().chain(sent.values_mut()) {
        packets.iter_mut().for_each(|packet| *packet = normalised(packet));
        packets.sort_unstable();
    }
    for (to, packets) in leaving {
        let sent = sent.remove(&to).unwrap_or_default();
        assert_eq!(sent.len(), packets.len(), "packets to {to}");
        let odd = sent.iter().zip(&packets).position(|(sent, packet)| sent != packet);
        assert!(
            odd.is_none(),
            "{:?} was sent instead of {:?}",
            odd.map(|at| &sent[at]),
            odd.map(|at| &packets[at])
        );
    }
    assert!(sent.is_empty(), "packets to somebody else");
}

/// A worker's batch has sixty-four.
const MAX_PACKETS: usize = 80;
/// Bytes of one input: a batch has some more, and a few of the longest packets are beyond it.
const MAX_GIVEN: usize = 300 << 10;
/// No kernel writes such a header: a kind of super-packet that was not asked for.
const NO_HEADER: [u8; 12] = [0, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// One packet of the device. The kernel's headers are taken to be true, but for their limits.
fn read(input: &mut Input<'_>) -> (Option<VnetHdr>, Vec<u8>) {
    let flags = input.byte();
    let (kind, needs_csum) = match flags & 7 {
        0 => return (None, Vec::new()),
        1 => (Some(GsoKind::Tcp4), true),
        2 => (Some(GsoKind::Tcp6), true),
        3 | 4 => (Some(GsoKind::Udp), true),
        5 => (None, true),
        _ => (None, false),
    };
    let size = input.word().max(8);
    let packet = packet(input, &SOURCES, &DESTINATIONS);
    let header = VnetHdr {
        needs_csum,
        gso: kind.map(|kind| Gso { kind, size }),
        csum_start: if flags & 0x80 != 0 { input.word().max(20) } else { 20 },
        csum_offset: if flags & 0x80 != 0 { input.word() } else { 6 },
        hdr_len: 0,
    };
    (Some(header), packet)
}

/// What leaves, and where to.
fn expected(header: Option<&VnetHdr>, packet: &[u8], format: Format) -> Option<(SocketAddr, Vec<Vec<u8>>)> {
    let header = header?;
    if packet.first()? >> 4 == 6 {
        return expected_v6(header, packet, format);
    }
    let header_len = usize::from(packet.first()? & 15) * 4;
    let total_len = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let form = packet[0] >> 4 == 4
        && header_len >= 20
        && (header_len..=packet.len()).contains(&total_len)
        && checksum::sum(&packet[..header_len]) == 0xffff;
    if !form {
        return None;
    }
    let mut packet = packet[..total_len].to_vec();
    let owner = match packet[16..20] {
        [10, 1, 63, _] => 0,
        [10, 1, 7, _] => 1,
        [10, 1, 8, _] => 2,
        [10, 1, 64, 0..128] => 3,
        _ => return None,
    };
    let to = SocketAddr::new(PEERS[owner].1.parse().expect("an address"), 8472);
    let transport_len = |kind| match kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            packet.get(header_len + 12).map_or(0, |byte| usize::from(byte >> 4) * 4).max(20)
        }
        GsoKind::Udp => 8,
    };
    let on_the_wire =
        header.gso.map_or(total_len, |gso| header_len + transport_len(gso.kind) + usize::from(gso.size));
    if packet[6] & 0x40 != 0 && on_the_wire > MTU as usize {
        return None;
    }
    if format == Format::FlannelUdp {
        if packet[8] <= 1 {
            return None;
        }
        packet[8] -= 1;
        fill_header(&mut packet);
    }
    Some((to, leaving(header, packet)?))
}

fn expected_v6(header: &VnetHdr, packet: &[u8], format: Format) -> Option<(SocketAddr, Vec<Vec<u8>>)> {
    let total_len = 40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let mut packet = packet.get(..total_len)?.to_vec();
    let owner = match packet[24..32] {
        [0xfd, 0, 0, 0, 0, 0, 0, 63] => 0,
        [0xfd, 0, 0, 0, 0, 0, 0, 7] => 1,
        [0xfd, 0, 0, 0, 0, 0, 0, 8] => 2,
        _ => return None,
    };
    let to = SocketAddr::new(PEERS[owner].1.parse().expect("an address"), 8472);
    let header_len = Packet::parse(&mut packet).ok()?.header_len();
    let on_the_wire = header.gso.map_or(total_len, |gso| {
        let transport_len = match gso.kind {
            GsoKind::Udp => 8,
            _ => packet.get(header_len + 12).map_or(0, |byte| usize::from(byte >> 4) * 4).max(20),
        };
        header_len + transport_len + usize::from(gso.size)
    });
    if on_the_wire > MTU as usize {
        return None;
    }
    if format == Format::FlannelUdp {
        if packet[7] <= 1 {
            return None;
        }
        packet[7] -= 1;
    }
    Some((to, leaving(header, packet)?))
}

/// The packets that one becomes which may leave.
fn leaving(header: &VnetHdr, mut packet: Vec<u8>) -> Option<Vec<Vec<u8>>> {
    match header.gso {
        Some(gso) => {
            let segments = cut(&packet, gso.kind, gso.size.into())?;
            // More than any that the kernel makes.
            (segments.len() <= 2048).then_some(segments)
        }
        None => {
            if header.needs_csum {
                let start = usize::from(header.csum_start);
                let at = start + usize::from(header.csum_offset);
                if start > packet.len() || at + 2 > packet.len() {
                    return None;
                }
                let protocol = Packet::parse(&mut packet).ok()?.protocol();
                let sum = !checksum::sum(&packet[start..]);
                let sum = if sum == 0 && protocol == 17 { 0xffff } else { sum };
                packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            }
            Some(vec![packet])
        }
    }
}
