//! Who reads: the one definition for all that asks. Fair shares of a queue ([`pacing`](super::pacing)) and the cap of
//! memory ([`relief`](super::relief)) must not disagree about it.
//!
//! Time is counted in milliseconds in which the bus was awake: one that stood still, or slept, blames nobody. All of it
//! follows from events (`Tick`, `Sent`, and what fills a queue), and is saved, so that a replay finds the same.

/// A receiver is live that within so many awake milliseconds drained all that waited, or this many bytes in each.
pub(super) const LIVE: u64 = 5000;
pub(super) const LIVE_RATE: u64 = 4 * 1024 * 1024 / 1000;
/// Who will have read all that waits within so many milliseconds is slow, and not stalled.
const SLOW: u64 = 60_000;
/// More than this between two ticks is no time in which a peer could have read: the bus stood still, or was idle.
const AWAKE: u64 = 1000;

/// Milliseconds in which the bus was awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct AwakeTime(u64);

impl AwakeTime {
    /// As it was saved.
    pub(super) fn restore(milliseconds: u64) -> Self {
        // So far below its end that no sum overflows, nor the product with a rate.
        Self(milliseconds.min(1 << 48))
    }

    /// Time has gone on by so much.
    pub(super) fn note_time(&mut self, milliseconds: u64) {
        self.0 = self.0.saturating_add(milliseconds.min(AWAKE));
    }

    pub(super) fn now(self) -> u64 {
        self.0
    }
}

/// When a peer's output began to wait, and how fast it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Liveness {
    /// When the queue was last empty, in awake milliseconds.
    pub(super) since: u64,
    /// Two moments at which something was sent, some seconds apart, and what had been sent.
    pub(super) marks: [(u64, u64); 2],
    /// When the message that is arriving began. Only advises; not saved.
    pub(super) input_since: u64,
}

impl Liveness {
    /// Of a peer that was restored: whatever waits for it, or comes from it, begins to do so now.
    pub(super) fn begun(awake: AwakeTime, sent: u64) -> Self {
        let mut new = Self {
            input_since: awake.now(),
            ..Self::default()
        };
        new.begin(awake, sent);
        new
    }

    /// Output begins to wait.
    pub(super) fn begin(&mut self, awake: AwakeTime, sent: u64) {
        self.since = awake.now();
        self.marks = [(awake.now(), sent); 2];
    }

    /// Something was sent.
    #[inline]
    pub(super) fn note_sent(&mut self, awake: AwakeTime, sent: u64) {
        if awake.now() >= self.marks[1].0 + LIVE / 2 {
            self.marks = [self.marks[1], (awake.now(), sent)];
        }
    }

    /// Whether the peer drained all that waited `within` so many awake milliseconds, or reads as fast as is asked for.
    pub(super) fn is_live(&self, awake: AwakeTime, sent: u64, within: u64) -> bool {
        let (at, from) = self.marks[0];
        awake.now() - self.since < within || sent - from >= LIVE_RATE.saturating_mul(awake.now() - at)
    }

    /// Whether the peer, which may not be live, has read something of late, and will have read the `queued` bytes that wait
    /// within [`SLOW`] at that rate.
    pub(super) fn gets_on(&self, awake: AwakeTime, sent: u64, queued: u64) -> bool {
        self.reads_within(awake, sent, queued, SLOW)
    }

    /// The same with another time than [`SLOW`].
    pub(super) fn reads_within(&self, awake: AwakeTime, sent: u64, queued: u64, within: u64) -> bool {
        let (at, from) = self.marks[0];
        // Whoever reads all the time has a mark not older than half of it.
        let is_reading = awake.now().saturating_sub(self.marks[1].0) < LIVE + LIVE / 2;
        let read = sent.saturating_sub(from).saturating_mul(within);
        is_reading && read >= queued.saturating_mul(awake.now().saturating_sub(at))
    }

    /// Whether it can be that of a peer that was sent so much.
    pub(super) fn is_sound(&self, awake: AwakeTime, sent: u64) -> bool {
        let [first, second] = self.marks;
        let is_past = self.since <= awake.now() && first.0 <= second.0 && second.0 <= awake.now();
        is_past && first.1 <= second.1 && second.1 <= sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_slowly_gets_on_and_who_reads_next_to_nothing_does_not() {
        let mut awake = AwakeTime::default();
        let mut slow = Liveness::default();
        let mut sent = 0;
        slow.begin(awake, sent);
        for _ in 0..100 {
            awake.note_time(100);
            sent += 50_000;
            slow.note_sent(awake, sent);
        }
        assert!(!slow.is_live(awake, sent, LIVE));
        // Half a megabyte in each second.
        assert!(slow.gets_on(awake, sent, 25_000_000));
        assert!(!slow.gets_on(awake, sent, 35_000_000));
        for _ in 0..80 {
            awake.note_time(100);
        }
        assert!(!slow.gets_on(awake, sent, 1_000_000), "it reads no more");
    }

    #[test]
    fn a_damaged_time_overflows_nowhere() {
        let mut awake = AwakeTime::restore(u64::MAX);
        let reading = Liveness::default();
        assert!(reading.is_sound(awake, 7));
        assert!(!reading.is_live(awake, 7, LIVE));
        awake.note_time(u64::MAX);
        assert!(!reading.is_live(awake, 7, LIVE));
        assert!(reading.is_live(awake, u64::MAX, LIVE));
    }
}
