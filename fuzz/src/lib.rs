//! What the fuzz targets check. `tests/corpus.rs` of bus-client, bus-tcp and bus-wire and `bus-daemon/tests/state_image`
//! replay the corpus through the same functions, so that an ordinary test run covers all that fuzzing has found.

pub mod checks;
pub mod config;
pub mod session;
pub mod state_image;
pub mod tcp;
