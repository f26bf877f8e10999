//! `subnet.env`, as anybody may have left it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay_leases::subnet_file::Previous;

fuzz_target!(|data: &[u8]| {
    let previous = Previous::parse(&String::from_utf8_lossy(data));
    for net in [previous.network, previous.subnet].into_iter().flatten() {
        assert_eq!(net, net.trunc());
    }
});
