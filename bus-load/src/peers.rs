//! Which programs of other implementations this machine has.
//!
//! A test that needs one asks [`find`]: without the program it says `skipped: PROGRAM not found` on stderr and
//! returns; with `BUS_TEST_PEERS=require` in the environment it fails instead.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where `program` is, or None if it is not installed, which has then been said on stderr.
///
/// # Errors
/// It is not installed and `BUS_TEST_PEERS=require`.
pub fn find(program: &str) -> anyhow::Result<Option<PathBuf>> {
    found_or_skipped(program, locate(program))
}

/// A Python interpreter that can import all of `modules`, with the same rule as [`find`].
///
/// # Errors
/// There is none and `BUS_TEST_PEERS=require`.
pub fn find_python(modules: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    found_or_skipped(
        &format!("python3 with {}", modules.join(", ")),
        locate_python(modules),
    )
}

/// Where `program` is, without a word.
pub fn locate(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin"), PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// The first Python interpreter that can import all of `modules`, without a word. The system's own is asked
/// first, as distributions install the bindings for it alone.
pub fn locate_python(modules: &[&str]) -> Option<PathBuf> {
    let system = Some(PathBuf::from("/usr/bin/python3")).filter(|python| python.is_file());
    system
        .into_iter()
        .chain(locate("python3"))
        .find(|python| can_import(python, modules))
}

fn can_import(python: &Path, modules: &[&str]) -> bool {
    let status = Command::new(python)
        .args(["-c", &format!("import {}", modules.join(", "))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn found_or_skipped(what: &str, found: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    if found.is_none() {
        anyhow::ensure!(
            std::env::var_os("BUS_TEST_PEERS").is_none_or(|value| value != "require"),
            "{what} not found, and BUS_TEST_PEERS=require"
        );
        eprintln!("skipped: {what} not found");
    }
    Ok(found)
}
