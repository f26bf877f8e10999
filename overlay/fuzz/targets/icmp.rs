//! ICMP errors about any packet: well-formed, short, addressed to its sender, and never about an error.
#![no_main]

use std::net::IpAddr;

use etherparse::{Icmpv4Slice, Icmpv4Type, Icmpv6Slice};
use libfuzzer_sys::fuzz_target;
use overlay::wire::checksum::{add, sum};
use overlay::wire::icmp::{IcmpError, build, max_len, may_answer};
use overlay::wire::ip::{Packet, Version};
use overlay_fuzz::input::Input;
use overlay_fuzz::packets::{packet, same_as_etherparse};
use overlay_fuzz::{OVERLAY_ADDRESS, OVERLAY_ADDRESS_V6};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let error = match input.byte() % 3 {
        0 => IcmpError::TimeExceeded,
        1 => IcmpError::NetUnreachable,
        _ => IcmpError::FragmentationNeeded { mtu: input.word() },
    };
    let addresses = [[10, 1, 63, 2].into(), [10, 1, 9, 3].into()];
    let mut bytes = packet(&mut input, &addresses, &addresses);
    let Ok(packet) = Packet::parse(&mut bytes) else { return };
    let may = may_answer(error, &packet);
    if may {
        assert!(!packet.is_later_fragment());
        let src = packet.src();
        assert!(!(src.is_multicast() || src.is_loopback() || src.is_unspecified()));
        let too_big = matches!(error, IcmpError::FragmentationNeeded { .. });
        assert!(!packet.dst().is_multicast() || (packet.version() == Version::V6 && too_big));
    }
    let (from, headers_len) = match packet.version() {
        Version::V4 => (IpAddr::from(OVERLAY_ADDRESS), 28),
        Version::V6 => (OVERLAY_ADDRESS_V6.into(), 48),
    };
    let mut answer = build(error, from, &packet).expect("addresses of one version");
    assert!(answer.len() <= max_len(packet.version()) && answer.len() <= packet.bytes().len() + headers_len);
    let answer = Packet::parse(&mut answer).expect("an answer is a packet");
    same_as_etherparse(&answer);
    assert_eq!((answer.src(), answer.dst()), (from, packet.src()));
    let quoted = match packet.version() {
        Version::V4 => {
            assert_eq!(sum(answer.payload()), 0xffff);
            let icmp = Icmpv4Slice::from_slice(answer.payload()).expect("an ICMP message");
            let kind = icmp.icmp_type();
            assert!(matches!(kind, Icmpv4Type::TimeExceeded(_) | Icmpv4Type::DestinationUnreachable(_)));
            icmp.payload()
        }
        Version::V6 => {
            assert_eq!(add(answer.pseudo_header(), sum(answer.payload())), 0xffff);
            Icmpv6Slice::from_slice(answer.payload()).expect("an ICMPv6 message").payload()
        }
    };
    assert!(packet.bytes().starts_with(quoted));
    assert!(!may_answer(error, &answer), "an error is never answered");
});
