//! A machine's clock, and whether it is awake.

use crate::random::Random;
use bus_tcp::Moment;

/// Where one end lives.
#[derive(Debug)]
pub(super) struct Machine {
    /// Parts in a million that its clock runs fast, or slow.
    rate: i64,
    epoch: u64,
    asleep_until: u64,
    /// A clock that is broken: what it has missed.
    missed: u64,
}

impl Machine {
    pub(super) fn new(random: &mut Random) -> Self {
        // Together they differ by less than the hundredth that the lease allows for.
        let rate = i64::try_from(random.below(8_000)).unwrap_or(0) - 4_000;
        Self {
            rate,
            epoch: random.below(1 << 40),
            asleep_until: 0,
            missed: 0,
        }
    }

    /// What its clock shows; it goes on while the machine sleeps.
    pub(super) fn clock(&self, now: u64) -> Moment {
        let awake = i64::try_from(now.saturating_sub(self.missed)).unwrap_or(i64::MAX);
        let drift = awake / 1_000_000 * self.rate;
        Moment::from_micros(self.epoch.saturating_add_signed(awake + drift))
    }

    pub(super) const fn awake(&self, now: u64) -> bool {
        now >= self.asleep_until
    }

    pub(super) const fn sleep(&mut self, until: u64) {
        self.asleep_until = until;
    }

    pub(super) const fn miss(&mut self, time: u64) {
        self.missed += time;
    }

    /// After a restart of the whole machine its clock begins anew.
    pub(super) fn restart(&mut self, random: &mut Random) {
        self.epoch = random.below(1 << 40);
    }
}
