//! All that fuzzing has found, and the seeds it began with, through the functions that the fuzz targets call.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    clippy::wildcard_enum_match_arm
)]

#[path = "../../fuzz/src/checks.rs"]
mod checks;
#[path = "../../fuzz/src/corpus.rs"]
mod corpus;

use corpus::replay;

#[test]
fn message() {
    replay("message", checks::message);
}

#[test]
fn body() {
    replay("body", checks::body);
}

#[test]
fn match_rule() {
    replay("match_rule", checks::match_rule);
}

#[test]
fn sasl() {
    replay("sasl", checks::sasl);
}

#[test]
fn sasl_client() {
    replay("sasl_client", checks::sasl_client);
}

#[test]
fn address() {
    replay("address", checks::address);
}
