//! This side's stream, as far as it has gone. Offsets only: whoever owns the session has the bytes, from `acked` to `end`.

use crate::frame::{Reason, Rule};
use crate::limits::MAX_DATA;

/// `acked <= sent <= end`, `sent <= high`, `sent <= credit`.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The other side has committed these.
    pub(super) acked: u64,
    /// These are on the way on this carrier, or arrived before it.
    pub(super) sent: u64,
    /// These were ever sent on any carrier.
    pub(super) high: u64,
    /// These there are.
    pub(super) end: u64,
    /// These may be sent.
    pub(super) credit: u64,
    /// How the stream ends.
    pub(super) ending: StreamEnd,
    /// A BYE has to be sent on this carrier.
    pub(super) bye_due: bool,
    /// A BYE that confirms the other side's has been sent, on any carrier.
    pub(super) confirms: bool,
}

/// ```text
/// Open ──finish──▶ Closing ──the other side has all of it──▶ Confirmed
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(super) enum StreamEnd {
    /// There may be more bytes.
    Open,
    /// There are no more.
    Closing,
    /// And the other side has them.
    Confirmed,
}

impl Outgoing {
    pub(super) fn new(credit: u64) -> Self {
        Self {
            acked: 0,
            sent: 0,
            high: 0,
            end: 0,
            credit,
            ending: StreamEnd::Open,
            bye_due: false,
            confirms: false,
        }
    }

    /// What can be sent now: where it begins, and how long it is.
    pub(super) fn next(&self, most: usize) -> Option<(u64, usize)> {
        let limit = self.end.min(self.credit);
        let length = limit.checked_sub(self.sent).filter(|length| *length > 0)?;
        Some((
            self.sent,
            usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(most)
                .min(MAX_DATA),
        ))
    }

    pub(super) fn send(&mut self, length: usize) {
        self.sent += length as u64;
        self.high = self.high.max(self.sent);
        debug_assert!(self.sent <= self.end);
    }

    /// The other side says what it has committed and what it will take. True if that is news.
    pub(super) fn acknowledge(&mut self, offset: u64, credit: u64) -> Result<bool, Reason> {
        if offset < self.acked || offset > self.high || credit < self.credit || credit < offset {
            return Err(Reason::Violation(Rule::Ack));
        }
        let news = offset > self.acked;
        self.acked = offset;
        self.credit = credit;
        Ok(news)
    }

    /// The other side has `received` bytes at the beginning of a carrier: what follows is sent, again or not.
    pub(super) fn rewind(&mut self, received: u64) -> Result<(), Reason> {
        if received < self.acked {
            return Err(Reason::RolledBack);
        }
        if received > self.high {
            return Err(Reason::Violation(Rule::Ack));
        }
        self.sent = received;
        // Credit that was given since this was saved: what came within it cannot be beyond it.
        self.credit = self.credit.max(received);
        self.bye_due = self.ending != StreamEnd::Open;
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        if self.ending == StreamEnd::Open {
            self.ending = StreamEnd::Closing;
            self.bye_due = true;
        }
    }

    /// Whether BYE can be sent now.
    pub(super) fn bye(&self) -> bool {
        self.bye_due && self.sent == self.end
    }

    pub(super) fn confirm(&mut self) -> Result<(), Reason> {
        if self.ending == StreamEnd::Open {
            return Err(Reason::Violation(Rule::Bye));
        }
        self.ending = StreamEnd::Confirmed;
        Ok(())
    }
}
