//! All that fuzzing has found, and the seeds it began with, through the functions that the fuzz targets call.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    clippy::wildcard_enum_match_arm
)]

#[path = "../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../fuzz/src/tcp.rs"]
mod tcp;

use corpus::replay;

#[test]
fn frames() {
    replay("tcp_frames", tcp::tcp_frames);
}

#[test]
fn session() {
    replay("tcp_session", tcp::tcp_session);
}
