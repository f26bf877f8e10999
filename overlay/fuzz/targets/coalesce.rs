//! Coalescing, there and back: what is joined and cut again is what it was made of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::wire::coalesce::Coalescer;
use overlay::wire::ip::Packet;
use overlay_fuzz::input::Input;
use overlay_fuzz::packets::{cut, normalised, packet, same_id, successor};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let udp = input.byte() & 1 == 0;
    let addresses = [[10, 1, 63, 2].into(), [10, 1, 9, 3].into()];
    let mut memory = Vec::new();
    let mut places = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    while !input.is_empty() && places.len() < 200 && memory.len() < 200_000 {
        let flags = input.byte();
        let mut next = match last.take().filter(|_| flags & 1 != 0) {
            Some(last) => successor(&last),
            None => packet(&mut input, &addresses, &addresses),
        };
        if flags & 2 != 0 && !next.is_empty() {
            let at = usize::from(input.word()) % next.len();
            next[at] ^= input.byte();
        }
        if flags & 4 != 0 {
            next.truncate(usize::from(input.word()));
        }
        places.push(memory.len()..memory.len() + next.len());
        memory.extend_from_slice(&next);
        last = Some(next);
    }

    let mut coalescer = Coalescer::default();
    let mut held: Vec<Vec<u8>> = Vec::new();
    for place in places {
        let mut bytes = memory[place.clone()].to_vec();
        let Ok(packet) = Packet::parse(&mut bytes) else { continue };
        if coalescer.offer(place.start, &packet, udp) {
            held.push(packet.bytes().to_vec());
            continue;
        }
        let begun = !coalescer.is_empty();
        release(&mut coalescer, &mut held, &memory);
        if begun && coalescer.offer(place.start, &packet, udp) {
            held.push(packet.bytes().to_vec());
        }
    }
    release(&mut coalescer, &mut held, &memory);
});

/// Checks that what is held is what was taken.
fn release(coalescer: &mut Coalescer, held: &mut Vec<Vec<u8>>, memory: &[u8]) {
    if let Some(place) = coalescer.single() {
        assert_eq!(held.len(), 1);
        assert_eq!(memory[place], held[0]);
    } else if let Some(merged) = coalescer.merged() {
        let gso = merged.vnet.gso.expect("several are a super-packet");
        let parts = merged.parts.iter().map(|part| &memory[part.clone()]);
        let whole = [merged.headers].into_iter().chain(parts).collect::<Vec<_>>().concat();
        let segments = cut(&whole, gso.kind, gso.size.into()).expect("it can be cut");
        assert_eq!(segments.len(), held.len());
        for (mut segment, original) in segments.into_iter().zip(held.iter()) {
            // Where it does not matter, all may have the first one's identification.
            if same_id(&segment, gso.kind) {
                segment[4..6].copy_from_slice(&original[4..6]);
            }
            assert_eq!(normalised(&segment), normalised(original));
        }
    } else {
        assert!(held.is_empty());
    }
    coalescer.clear();
    held.clear();
}
