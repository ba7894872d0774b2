//! See `checks::match_rule`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bus_fuzz::checks::match_rule(data));
