//! When the next attempt to connect is made.

use std::time::Duration;

/// How attempts to connect are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// The first wait is up to this; each further one up to twice as much.
    pub base: Duration,
    /// No wait is longer.
    pub cap: Duration,
    /// A link that lasted so long counts for a good one: the next attempt is the first again.
    pub steady: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(10),
            steady: Duration::from_secs(10),
        }
    }
}

/// Exponential backoff with full jitter: each wait is drawn between nothing and the bound, so that a thousand clients do not
/// come back in one moment. The first attempt is made at once.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    config: BackoffConfig,
    /// State of the generator (SplitMix64); the seed comes from outside.
    state: u64,
    attempts: u32,
    /// When the socket's path last hastened an attempt.
    hastened: Option<Duration>,
}

/// The path of a socket may be made anew by somebody over and over; it hastens an attempt once in so long.
const HASTE: Duration = Duration::from_millis(500);

impl Backoff {
    pub(super) fn new(config: BackoffConfig, seed: u64) -> Self {
        Self {
            config,
            state: seed,
            attempts: 0,
            hastened: None,
        }
    }

    /// How many attempts were made since the last good link.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait before the next attempt, which counts.
    pub(super) fn next(&mut self) -> Duration {
        let attempt = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        let Some(doublings) = attempt.checked_sub(1) else {
            return Duration::ZERO;
        };
        let bound = self.config.base.saturating_mul(1 << doublings.min(20));
        let bound = bound.min(self.config.cap).as_micros() as u64;
        Duration::from_micros(self.random() % (bound + 1))
    }

    /// A link that was up from `since` is lost.
    pub(super) fn lost(&mut self, since: Option<Duration>, now: Duration) {
        if since.is_some_and(|since| now.saturating_sub(since) >= self.config.steady) {
            self.attempts = 0;
        }
    }

    /// The application wants an attempt now.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Whether what has just appeared is a reason to try at once; the waits after it are short again.
    pub(super) fn hasten(&mut self, now: Duration) -> bool {
        if self.hastened.is_some_and(|last| now.saturating_sub(last) < HASTE) {
            return false;
        }
        self.hastened = Some(now);
        self.attempts = self.attempts.min(1);
        true
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_are_spread_below_a_bound_that_doubles_up_to_the_cap() {
        let config = BackoffConfig::default();
        let mut greatest = [Duration::ZERO; 12];
        for seed in 0..2000 {
            let mut backoff = Backoff::new(config, seed);
            for greatest in &mut greatest {
                *greatest = backoff.next().max(*greatest);
            }
        }
        assert_eq!(greatest[0], Duration::ZERO, "the first is made at once");
        for (attempt, greatest) in greatest.iter().enumerate().skip(1) {
            let bound = config.base.saturating_mul(1 << (attempt - 1)).min(config.cap);
            assert!(*greatest <= bound, "attempt {attempt}: {greatest:?}");
            assert!(*greatest > bound * 9 / 10, "attempt {attempt}: {greatest:?}");
        }
    }

    #[test]
    fn only_a_link_that_lasted_makes_the_next_attempt_the_first() {
        let mut backoff = Backoff::new(BackoffConfig::default(), 7);
        for _ in 0..5 {
            backoff.next();
        }
        backoff.lost(Some(SECOND), 10 * SECOND);
        assert_eq!(backoff.attempts(), 5);
        backoff.lost(Some(SECOND), 11 * SECOND);
        assert_eq!(backoff.next(), Duration::ZERO);
    }

    #[test]
    fn a_path_that_is_made_over_and_over_hastens_no_storm() {
        let mut backoff = Backoff::new(BackoffConfig::default(), 7);
        let hastened = (0..1000).filter(|ms| backoff.hasten(Duration::from_millis(*ms)));
        assert_eq!(hastened.count(), 2);
    }
}
