//! A file of the store, hostile or damaged, and what a worker does with it: see `bus_daemon::fuzz_store`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bus_daemon::fuzz_store(data));
