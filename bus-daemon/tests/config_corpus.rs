//! All that fuzzing has found in configuration files and keyrings, and the seeds it began with.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../fuzz/src/config.rs"]
mod config;
#[path = "../../fuzz/src/corpus.rs"]
mod corpus;

#[test]
fn config_files() {
    corpus::replay("config", config::config);
}

#[test]
fn keyrings() {
    corpus::replay("keyring", config::keyring);
}
