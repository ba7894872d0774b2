//! The only file of the crate that reads a clock.

use crate::moment::Moment;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CLOCK_BOOTTIME: it goes on while the machine sleeps, as the other side's does.
pub fn now() -> Moment {
    #[allow(clippy::expect_used)] // Linux has had it since 2.6.39.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME");
    Moment::default() + Duration::from(time)
}
