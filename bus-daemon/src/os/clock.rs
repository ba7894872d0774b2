//! The only file that reads a clock.

use nix::time::{ClockId, clock_gettime};

/// A moment of the monotonic clock, in nanoseconds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
pub(crate) struct Nanos(pub(crate) u64);

impl std::ops::Add for Nanos {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Nanos {
    /// Whole milliseconds.
    pub(crate) fn millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Microseconds since `earlier`.
    pub(crate) fn micros_since(self, earlier: Self) -> u32 {
        u32::try_from(self.0.saturating_sub(earlier.0) / 1000).unwrap_or(u32::MAX)
    }
}

fn read(clock: ClockId) -> Nanos {
    clock_gettime(clock).map_or(Nanos(0), |time| {
        Nanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    })
}

/// Now, for deadlines, pauses and patience. All processes of the machine see the same; time in suspend does not count:
/// the service manager freezes sessions then, and nobody is to be late for having been frozen.
pub(crate) fn monotonic() -> Nanos {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    read(ClockId::CLOCK_REALTIME).0 / 1_000_000_000
}
