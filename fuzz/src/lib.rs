//! What the fuzz targets check. `bus-wire/tests/corpus.rs` replays the corpus through the same functions, so that an
//! ordinary test run covers all that fuzzing has found.

pub mod checks;
