//! The only file of the client that reads a clock.

use std::time::{Duration, Instant};

/// Times since it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock file")]
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The moment so long after the beginning.
    pub(crate) fn at(&self, time: Duration) -> Instant {
        self.origin + time
    }
}
