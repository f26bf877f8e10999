//! The receiving end of an `AF_XDP` queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz::rings::run(data));
