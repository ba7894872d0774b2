//! The other side's stream, as far as it has come here.

use crate::frame::{Reason, Rule};
use crate::limits::{ACK_BYTES, ACK_DELAY};
use crate::moment::Moment;

/// `acked <= committed <= received <= credit`.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Came, and was passed on.
    pub(super) received: u64,
    /// Whoever owns the session has it for good.
    pub(super) committed: u64,
    /// The other side was told so.
    pub(super) acked: u64,
    /// What may come at most. Never goes back.
    pub(super) credit: u64,
    /// What may come beyond what is committed.
    pub(super) window: u32,
    /// Where the stream ends.
    pub(super) end: Option<u64>,
    /// The owner has heard that it ended.
    pub(super) end_told: bool,
    /// When the other side has to hear of what is committed.
    pub(super) ack_at: Option<Moment>,
    /// That time has come, and it was not sent: the carrier may take nothing for a while.
    pub(super) ack_due: bool,
}

/// What became of bytes that came.
pub(super) enum Taken {
    /// They are next.
    Next,
    /// Bytes are missing, or came before: this carrier is not to be trusted.
    Gap,
    /// The peer broke a rule.
    Violation(Rule),
}

impl Incoming {
    pub(super) fn new(window: u32) -> Self {
        Self {
            received: 0,
            committed: 0,
            acked: 0,
            credit: window.into(),
            window,
            end: None,
            end_told: false,
            ack_at: None,
            ack_due: false,
        }
    }

    pub(super) fn take(&mut self, offset: u64, length: usize) -> Taken {
        if offset != self.received {
            return Taken::Gap;
        }
        let Some(end) = offset
            .checked_add(length as u64)
            .filter(|end| *end <= self.credit)
        else {
            return Taken::Violation(Rule::Credit);
        };
        if self.end.is_some_and(|last| end > last) {
            return Taken::Violation(Rule::Bye);
        }
        self.received = end;
        Taken::Next
    }

    /// The other side says where its stream ends.
    pub(super) fn ends(&mut self, end: u64) -> Result<(), Reason> {
        // All that precedes BYE came before it on the same carrier.
        if end != self.received || self.end.is_some_and(|known| known != end) {
            return Err(Reason::Violation(Rule::Bye));
        }
        self.end = Some(end);
        Ok(())
    }

    /// Whether the whole stream is committed.
    pub(super) fn complete(&self) -> bool {
        self.end == Some(self.committed)
    }

    pub(super) fn commit(&mut self, now: Moment, upto: u64) {
        let upto = upto.min(self.received);
        if upto <= self.committed {
            return;
        }
        self.committed = upto;
        if self.ack_due {
            return;
        }
        let due = if self.committed - self.acked >= ACK_BYTES.min(u64::from(self.window) / 4).max(1) {
            now
        } else {
            now + ACK_DELAY
        };
        self.ack_at = Some(self.ack_at.map_or(due, |before| before.min(due)));
    }

    /// A new carrier serves: what was said on the one before may not have been heard.
    pub(super) fn repeat(&mut self, now: Moment) {
        if self.committed > 0 {
            self.ack_at = Some(now);
        }
    }

    pub(super) fn ack_at(&self) -> Option<Moment> {
        self.ack_at
    }

    /// Time has passed: an acknowledgement may be due.
    pub(super) fn tick(&mut self, now: Moment) {
        if self.ack_at.take_if(|due| now >= *due).is_some() {
            self.ack_due = true;
        }
    }

    /// Offset and credit to send, if they are due.
    pub(super) fn ack(&mut self, now: Moment) -> Option<(u64, u64)> {
        self.tick(now);
        if !std::mem::take(&mut self.ack_due) {
            return None;
        }
        self.ack_at = None;
        self.acked = self.committed;
        self.credit = self.credit.max(self.committed.saturating_add(self.window.into()));
        Some((self.acked, self.credit))
    }
}
