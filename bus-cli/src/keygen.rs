//! `bus keygen FILE`: a key for `bus-tcp:` addresses.

use crate::output;
use anyhow::Context;
use bus_tcp::tls::{Key, provider};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Makes FILE and FILE.pub, and prints the pin.
pub(crate) fn run(file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let key = Key::generate_files(&provider(), file).context("no key was made")?;
    let pin = key.pin().to_string();
    output::line(&if json {
        json!({ "key": file, "pin": pin }).to_string()
    } else {
        pin
    });
    Ok(ExitCode::SUCCESS)
}
