//! The one file of this crate that reads a clock.

use std::time::{Duration, Instant};

/// The monotonic time.
#[allow(
    clippy::disallowed_methods,
    reason = "the load runs in real time; this is its clock file"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// A point in time after which a bounded wait gives up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `after` from now.
    pub fn after(after: Duration) -> Deadline {
        Deadline(now() + after)
    }

    /// What is left; zero once it has passed.
    pub fn left(&self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// Whether it has passed.
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// A seed from the environment variable `variable`, or a fresh one.
pub fn seed(variable: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    match std::env::var(variable).ok().and_then(|text| text.parse().ok()) {
        Some(seed) => seed,
        None => RandomState::new().hash_one(std::process::id()) & 0xffff_ffff,
    }
}
