//! The Internet checksum over a super-packet's payload and over a small packet.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use overlay::wire::checksum;

fn main() {
    divan::main();
}

#[divan::bench(args = [64, 1_400, 65_535])]
fn sum(bencher: Bencher<'_, '_>, len: usize) {
    let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
    bencher.counter(BytesCount::new(len)).bench_local(|| checksum::sum(black_box(&data)));
}
