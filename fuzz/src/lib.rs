//! What the fuzz targets check. `bus-tcp/tests/corpus.rs`, `bus-wire/tests/corpus.rs` and `bus-daemon/tests/state_image` replay the corpus through the same functions, so that an
//! ordinary test run covers all that fuzzing has found.

pub mod checks;
pub mod state_image;
pub mod session;
pub mod tcp;
