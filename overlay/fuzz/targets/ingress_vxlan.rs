//! The whole ingress loop, in the format `vxlan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz::ingress::run(data, overlay_fuzz::VXLAN));
