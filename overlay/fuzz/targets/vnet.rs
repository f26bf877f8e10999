//! The virtio header: read, written, and made for a packet that arrived.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::wire::ip::Packet;
use overlay::wire::segment::{Segments, fill_checksum};
use overlay::wire::vnet::{Gso, GsoKind, LEN, VnetHdr};
use overlay_fuzz::input::Input;
use overlay_fuzz::packets::{assert_transport_checksum, packet};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut header = [0; LEN];
    let given = input.bytes(LEN);
    header[..given.len()].copy_from_slice(given);
    if let Ok(parsed) = VnetHdr::parse(&header) {
        let again = VnetHdr::parse(&parsed.to_bytes()).expect("what we write we read");
        assert_eq!(again.to_bytes(), parsed.to_bytes());
    }

    let mtu = usize::from(input.word()).max(68);
    let uncut = Some(input.word()).filter(|size| *size > 0).map(|size| Gso { kind: GsoKind::Udp, size });
    let addresses = [[10, 1, 63, 2].into(), [10, 1, 9, 3].into()];
    let mut bytes = packet(&mut input, &addresses, &addresses);
    let Ok(mut packet) = Packet::parse(&mut bytes) else { return };
    let header = VnetHdr::for_arrival(&packet, mtu, uncut);
    assert!(header.needs_csum || header == VnetHdr::default(), "nothing is asked of a finished packet");
    if let Some(gso) = header.gso {
        let segments = Segments::new(&packet, gso);
        // The kernel refuses what it cannot cut, and so do we.
        if let (Ok(segments), GsoKind::Tcp4 | GsoKind::Tcp6) = (&segments, gso.kind) {
            let longest = segments.headers_len() + segments.payload(0).len();
            assert!(longest <= mtu, "{longest} bytes do not fit {mtu}");
        }
    } else if header.needs_csum {
        fill_checksum(&mut packet, &header).expect("the field is in the packet");
        if packet.protocol() == 6 && packet.payload()[12] >> 4 < 5 {
            return;
        }
        if packet.protocol() == 6 && usize::from(packet.payload()[12] >> 4) * 4 > packet.payload().len() {
            return;
        }
        if packet.protocol() == 17
            && usize::from(u16::from_be_bytes([packet.payload()[4], packet.payload()[5]]))
                != packet.payload().len()
        {
            return;
        }
        assert_transport_checksum(&packet);
    }
});
