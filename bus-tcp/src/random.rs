//! Spread for timers: not secret, and the same for the same seed.

use std::time::Duration;

/// SplitMix64. Spreads heartbeats and attempts; keys and identifiers never come from here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread(u64);

impl Spread {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Anything from nothing to `most`.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.next() % (most + 1))
    }

    /// `around`, up to a fifth less or more.
    pub(crate) fn around(&mut self, around: Duration) -> Duration {
        around * 4 / 5 + self.up_to(around * 2 / 5)
    }
}
