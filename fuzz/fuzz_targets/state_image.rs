//! See `state_image::state_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bus_fuzz::state_image::state_image(data));
