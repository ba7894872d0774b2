//! See `bus_fuzz::tcp::tcp_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bus_fuzz::tcp::tcp_frames(data));
