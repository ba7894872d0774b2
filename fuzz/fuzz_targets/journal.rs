//! Damage to the journal's memory, and a replay: see `bus_daemon::fuzz_journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bus_daemon::fuzz_journal(data));
