//! The whole ingress loop, in the format `udp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz::ingress::run(
    data,
    overlay::wire::Format::FlannelUdp
));
