//! One link: what it is sent, what has gone of that, and what came.

use std::collections::VecDeque;
use std::time::Duration;

use bus_wire::{Fd, Fds, Framer, Guid, SendQueue, Serial};
use bytes::Bytes;

use super::auth::Auth;
use super::event::CallId;
use super::invalidations::Invalidation;

/// One link to a bus, from the first byte of authentication.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stage: Stage,
    pub(super) framer: Framer,
    output: SendQueue,
    /// The messages in `output` whose end somebody wants to know, in order.
    marks: VecDeque<Mark>,
    serial: Serial,
    /// Whether file descriptors can be passed.
    pub(super) fds: bool,
    /// By when something must have come of setting it up.
    pub(super) patience: Option<Duration>,
    /// Nothing is replayed over it.
    pub(super) bare: bool,
    /// Of the bus at the other end.
    pub(super) guid: Option<Guid>,
    /// Whether the bus is that of the last link that was up.
    pub(super) same_bus: bool,
    /// The only bus that is to be at the other end.
    pub(super) expected: Option<Guid>,
}

/// How far a link has come.
///
/// ```text
/// Authenticating -> Greeting -> Replaying -> Up
///        \_________________________________/     (peers without a bus)
/// ```
#[derive(Debug)]
pub(super) enum Stage {
    Authenticating(Auth),
    /// Hello was sent with this serial.
    Greeting(Serial),
    /// What is in the ledger is being asked for.
    Replaying,
    /// Since then.
    Up(Duration),
}

/// A message that is not written completely.
#[derive(Debug)]
pub(super) struct Mark {
    /// Where it ends in the stream.
    end: u64,
    pub(super) what: Marked,
}

#[derive(Debug)]
pub(super) enum Marked {
    /// A call or signal; its descriptors are kept with it.
    Call(CallId),
    /// A reply, and its descriptors.
    Reply(Vec<Fd>),
    /// What is told of changed properties, and is told again where it does not arrive.
    Invalidation(Invalidation),
}

impl Link {
    pub(super) fn new(auth: Auth, fds: bool, max_message: usize, patience: Duration) -> Self {
        Self {
            stage: Stage::Authenticating(auth),
            framer: Framer::new(max_message),
            output: SendQueue::new(),
            marks: VecDeque::new(),
            serial: Serial::FIRST,
            fds,
            patience: Some(patience),
            bare: false,
            guid: None,
            same_bus: false,
            expected: None,
        }
    }

    /// A serial that `taken` does not know.
    pub(super) fn next_serial(&mut self, taken: impl Fn(u32) -> bool) -> Serial {
        while taken(self.serial.get()) {
            self.serial = self.serial.next();
        }
        let serial = self.serial;
        self.serial = serial.next();
        serial
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
    }

    /// Queues a message. Its descriptors stay the caller's: only numbers go into the queue.
    pub(super) fn push_marked(&mut self, bytes: Bytes, fds: &[Fd], what: Marked) {
        self.output.begin_fds(Fds::from_slice(fds));
        self.output.push_shared(bytes);
        self.marks.push_back(Mark {
            end: self.output.end(),
            what,
        });
    }

    pub(super) fn output(&self) -> &SendQueue {
        &self.output
    }

    /// So many bytes more were written.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.output.advance(bytes.min(self.output.len()));
    }

    /// The next message that has been written completely.
    pub(super) fn next_written(&mut self) -> Option<Marked> {
        let written = self.marks.front()?.end <= self.output.sent();
        let mark = if written { self.marks.pop_front() } else { None };
        mark.map(|mark| mark.what)
    }

    /// What was not written completely, when the link is gone; and descriptors that came and belong to no message.
    pub(super) fn end(mut self) -> (impl Iterator<Item = Marked>, Vec<Fd>) {
        let fds = self.framer.take_fds();
        (self.marks.into_iter().map(|mark| mark.what), fds)
    }
}
