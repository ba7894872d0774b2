//! The one look at the clock.

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};

/// Monotonic time in nanoseconds; the same for all processes of the machine.
pub(crate) fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
