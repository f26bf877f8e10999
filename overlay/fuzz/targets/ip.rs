//! The check of IP packets of both versions, beside etherparse: what passes here, etherparse reads to the same fields;
//! what etherparse reads, with a right header checksum, passes here.
#![no_main]

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpSlice};
use libfuzzer_sys::fuzz_target;
use overlay::wire::checksum;
use overlay::wire::ip::{Packet, protocol};
use overlay::wire::segment::headers_len;
use overlay::wire::vnet::GsoKind;
use overlay_fuzz::packets::{fill_header, same_as_etherparse};

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if flags & 1 != 0 && !bytes.is_empty() {
        fill_header(&mut bytes);
    }
    let copy = bytes.clone();
    let theirs = Ipv4HeaderSlice::from_slice(&copy);
    match Packet::parse(&mut bytes) {
        Ok(mut packet) => {
            same_as_etherparse(&packet);
            if packet.protocol() == protocol::TCP
                && !packet.is_fragment()
                && let Ok(tcp) = TcpSlice::from_slice(packet.payload())
            {
                let len = packet.header_len() + tcp.header_len();
                assert_eq!(headers_len(&packet, GsoKind::tcp(packet.version())), len);
            }
            if packet.ttl() > 0 {
                let ttl = packet.ttl();
                packet.decrement_ttl();
                assert_eq!(packet.ttl(), ttl - 1);
                let len = packet.bytes().len();
                let again = Packet::parse(&mut bytes).expect("a hop less keeps the checksum right");
                assert_eq!(again.bytes().len(), len);
            }
        }
        Err(_) => {
            let good = theirs.is_ok_and(|header| {
                checksum::sum(header.slice()) == 0xffff
                    && usize::from(header.total_len()) <= copy.len()
                    && header.total_len() >= u16::from(header.ihl()) * 4
            });
            let good = good
                || Ipv6HeaderSlice::from_slice(&copy)
                    .is_ok_and(|header| 40 + usize::from(header.payload_length()) <= copy.len());
            assert!(!good, "etherparse reads what we refuse");
        }
    }
});
