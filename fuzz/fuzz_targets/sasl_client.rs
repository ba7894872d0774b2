//! See `checks::sasl_client`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bus_fuzz::checks::sasl_client(data));
