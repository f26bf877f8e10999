//! The whole egress loop, in both formats.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz::egress::run(data));
