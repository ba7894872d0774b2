//! Cases that hurt: hostile or merely busy peers, and what must be so for everybody else. Each is short here; the long ones
//! are campaigns (`-- --ignored`). docs/testing.md says which case is tested where.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod campaign;
mod descriptors;
mod foe;
mod leaving;
mod newcomers;
#[path = "../support/mod.rs"]
mod support;
mod user;

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::Bus;
use support::bystander::Waits;

/// One at a time: they measure.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The clients of a case are all in this process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = hard.min(65_536);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
    guard
}

/// A bus that any user may connect to, with the limits of the system bus and this in its configuration.
fn public_bus(configuration: &str) -> Bus {
    public(Bus::start_with(&public_configuration(configuration)))
}

fn public_configuration(configuration: &str) -> String {
    format!("<policy context='default'><allow user='*'/></policy>{configuration}")
}

fn public(bus: Bus) -> Bus {
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bus.directory.path(), mode).unwrap();
    bus
}

/// What an optimized build promises, and what any other one has to keep: it is many times slower, and the processors may be
/// busy with other tests.
fn within(promised: Duration) -> Duration {
    if cfg!(debug_assertions) {
        promised * 20
    } else {
        promised
    }
}

#[track_caller]
fn expect_waits(waits: &Waits, promised: Duration) {
    let (longest, bound) = (waits.longest(), within(promised));
    assert!(
        longest <= bound,
        "somebody innocent waited for {longest:?}, not {bound:?}: {waits}"
    );
}
