//! Random numbers that can be drawn again: the seed is printed, and taken from the environment where it is given.

use bus_load::clock;
use std::ops::Range;
use std::time::Duration;

/// A small generator.
pub struct Random(u64);

impl Random {
    /// With the seed in the environment variable `variable`, or a fresh one, which is printed.
    pub fn from_environment(variable: &str) -> Random {
        let seed = clock::seed(variable);
        eprintln!("{variable}={seed}");
        Random(seed)
    }

    /// Another one, for another thread.
    pub fn split(&mut self) -> Random {
        Random(self.below(u64::from(u32::MAX)) << 31 | self.below(u64::from(u32::MAX)))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    pub fn duration(&mut self, range: Range<Duration>) -> Duration {
        let width = (range.end - range.start).as_micros() as u64;
        range.start + Duration::from_micros(self.below(width))
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
