//! The saved state: what it costs when any part of it is damaged, cut off or made up.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    dead_code,
    missing_docs,
    unreachable_pub
)]

#[path = "../broker/bus.rs"]
mod bus;
mod corpus;
mod damage;
mod forms;
#[path = "../../../fuzz/src/state_image.rs"]
mod fuzz;
#[path = "../../../fuzz/src/corpus.rs"]
mod fuzz_corpus;
#[cfg(not(feature = "next-version"))]
mod golden;
mod hostile;
mod image;
mod rich;
