//! Segmentation, beside a slow and simple one; etherparse looks at what comes out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::wire::ip::Packet;
use overlay::wire::segment::Segments;
use overlay::wire::vnet::{Gso, GsoKind};
use overlay_fuzz::input::Input;
use overlay_fuzz::packets::{assert_transport_checksum, cut, normalised, packet, same_as_etherparse};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let kind = [GsoKind::Tcp4, GsoKind::Udp, GsoKind::Tcp6][usize::from(input.byte()) % 3];
    let gso = Gso { kind, size: input.word().max(MIN_SIZE) };
    let addresses = [[10, 1, 63, 2].into(), [10, 1, 9, 3].into()];
    let mut bytes = packet(&mut input, &addresses, &addresses);
    let Ok(packet) = Packet::parse(&mut bytes) else { return };
    let expected = cut(packet.bytes(), kind, gso.size.into());
    let Ok(segments) = Segments::new(&packet, gso) else {
        assert_eq!(expected, None, "it could have been cut");
        return;
    };
    let expected = expected.expect("it is not what it says");
    assert_eq!(segments.count(), expected.len());
    for (index, expected) in expected.iter().enumerate() {
        let mut segment = vec![0; segments.headers_len()];
        segments.write_headers(index, &mut segment);
        segment.extend_from_slice(&packet.bytes()[segments.payload(index)]);
        // (Of two ways to write a sum of zero, each has its own.)
        assert_eq!(normalised(&segment), *expected, "segment {index}");
        let segment = Packet::parse(&mut segment).expect("a segment is a packet");
        same_as_etherparse(&segment);
        if kind == GsoKind::Udp || segment.payload()[12] >> 4 >= 5 {
            assert_transport_checksum(&segment);
        }
    }
});

/// Smaller segments than any kernel makes are told as well, but not so small that looking at each takes long.
const MIN_SIZE: u16 = 24;
