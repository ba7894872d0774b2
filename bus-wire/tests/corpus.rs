//! All that fuzzing has found, and the seeds it began with, through the functions that the fuzz targets call.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    clippy::wildcard_enum_match_arm
)]

use std::path::Path;

#[path = "../../fuzz/src/checks.rs"]
mod checks;

/// Every file in the corpus of a target. The last name that is printed is of the file that fails.
fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    for path in paths {
        eprintln!("{}", path.display());
        check(&std::fs::read(&path).unwrap());
    }
}

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
