//! All deadlines of the bus.

use super::Broker;
use super::disconnect::Excess;
use super::event::{Millis, PeerId};

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
}

impl Broker {
    /// The time `after` milliseconds from now.
    pub(super) fn later(&self, after: u64) -> Millis {
        Millis(self.now.0.saturating_add(after))
    }

    pub(super) fn tick(&mut self, now: Millis) {
        self.now = self.now.max(now);
        while let Some((at, deadline)) = self.deadlines.first().copied()
            && at <= self.now
        {
            self.deadlines.pop_first();
            match deadline {
                Deadline::Hello(id) => {
                    if let Some(peer) = self.peers.get_mut(id) {
                        peer.hello_deadline = None;
                    }
                    self.disconnect(id, Excess::Hello.into());
                }
                Deadline::Fds(id) => {
                    if let Some(peer) = self.peers.get_mut(id) {
                        peer.fds_deadline = None;
                    }
                    self.disconnect(id, Excess::PendingFdsTime.into());
                }
                Deadline::Reply {
                    callee,
                    caller,
                    serial,
                } => self.reply_overdue(callee, caller, serial),
            }
        }
    }
}
