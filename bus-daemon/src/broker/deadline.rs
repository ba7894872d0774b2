//! All deadlines of the bus.

use std::collections::BTreeSet;

use super::event::{Millis, PeerId};
use super::invariants::Violation;
use super::peer::Peer;

/// What is due when its time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// The peer must have said Hello (`auth_timeout`).
    Hello(PeerId),
    /// The message that the peer's descriptors belong to must have arrived (`pending_fd_timeout`).
    Fds(PeerId),
    /// The call must have been answered (`reply_timeout`).
    Reply {
        callee: PeerId,
        caller: PeerId,
        serial: u32,
    },
    /// The configuration is to be read again.
    Reload,
    /// The keyring is to be read again.
    Keyring,
    /// A peer that sent most is read from again, or its messages are not refused any more.
    HeldBack(PeerId),
    /// The time of the peer's next message has come.
    Paced(PeerId),
}

/// The present, and all that is due later. A peer's own deadlines are also in the [`Peer`], those of calls also in the
/// [`CallTable`](super::call_table::CallTable).
#[derive(Debug)]
pub(super) struct Deadlines {
    now: Millis,
    due: BTreeSet<(Millis, Deadline)>,
}

impl Deadlines {
    pub(super) fn new(now: Millis) -> Self {
        Self {
            now,
            due: BTreeSet::new(),
        }
    }

    pub(super) fn now(&self) -> Millis {
        self.now
    }

    /// The time `after` milliseconds from now.
    pub(super) fn later(&self, after: u64) -> Millis {
        Millis(self.now.0.saturating_add(after))
    }

    /// Time does not go backwards.
    pub(super) fn advance(&mut self, now: Millis) {
        self.now = self.now.max(now);
    }

    /// When the first is due.
    pub(super) fn first(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes out the first deadline that has come.
    pub(super) fn pop_due(&mut self) -> Option<Deadline> {
        let (at, _) = self.due.first()?;
        if *at > self.now {
            return None;
        }
        self.due.pop_first().map(|(_, deadline)| deadline)
    }

    /// Until when a peer must have said Hello; `None` once it has.
    pub(super) fn expect_hello(&mut self, peer: &mut Peer, until: Option<Millis>) {
        let before = std::mem::replace(&mut peer.hello_deadline, until);
        self.change(Deadline::Hello(peer.id), before, until);
    }

    /// Until when the rest of a message with descriptors must have arrived; `None` while none is awaited.
    pub(super) fn expect_fds(&mut self, peer: &mut Peer, until: Option<Millis>) {
        let before = std::mem::replace(&mut peer.fds_deadline, until);
        self.change(Deadline::Fds(peer.id), before, until);
    }

    /// Moves a deadline; one that was popped is not there any more, which is no harm.
    #[inline]
    pub(super) fn change(&mut self, deadline: Deadline, before: Option<Millis>, after: Option<Millis>) {
        // Most calls have none.
        if before.is_some() || after.is_some() {
            self.replace(deadline, before, after);
        }
    }

    fn replace(&mut self, deadline: Deadline, before: Option<Millis>, after: Option<Millis>) {
        if let Some(at) = before {
            self.due.remove(&(at, deadline));
        }
        if let Some(at) = after {
            self.due.insert((at, deadline));
        }
    }

    /// These are due, and no others.
    pub(super) fn check(&self, expected: &BTreeSet<(Millis, Deadline)>) -> Result<(), Violation> {
        if *expected == self.due {
            Ok(())
        } else {
            Err(Violation::new("the deadlines are not those of the peers"))
        }
    }
}
