//! What a program may want to know of its session.

use crate::moment::Moment;
use crate::session::Ending;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Events that nobody has asked for are kept up to here; then the oldest go.
const KEPT: usize = 64;

/// What happened to a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// It exists.
    Opened,
    /// Its carrier is lost; it is not, and is resumed as soon as that is possible.
    Parked {
        /// Since when.
        at: Moment,
    },
    /// It has a carrier again.
    Resumed {
        /// Bytes that are sent for a second time.
        again: u64,
        /// A client could not rely on it in between: what it owned may have been somebody else's.
        fenced: bool,
    },
    /// A client may not rely on it any more, until it is resumed.
    Fenced,
    /// It ended, and all bytes of both sides arrived.
    Ended,
    /// It is lost; `taken` says how many bytes the other side took in all, if anybody knows.
    Lost(Ending),
}

/// Numbers of one session.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// It has a carrier that serves.
    pub live: bool,
    /// How long it has had none.
    pub parked_for: Option<Duration>,
    /// How long the last answer to a PING took. Clients only.
    pub rtt: Option<Duration>,
    /// Times that it was resumed.
    pub resumptions: u64,
    /// Bytes that came, each counted once.
    pub received: u64,
    /// Bytes of DATA that were sent, each counted as often as it was sent.
    pub sent: u64,
    /// Bytes that were sent again.
    pub again: u64,
    /// Bytes that are kept until the other side has them.
    pub unacked: usize,
    /// Bytes that came, and that the program has not read.
    pub unread: usize,
}

/// Numbers that go on being known when the session is over and forgotten.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) resumptions: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) again: AtomicU64,
}

impl Counters {
    pub(super) fn stats(&self) -> Stats {
        Stats {
            resumptions: self.resumptions.load(Relaxed),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            again: self.again.load(Relaxed),
            ..Stats::default()
        }
    }
}

/// Events that wait for the program.
#[derive(Debug, Default)]
pub(super) struct Events {
    waiting: VecDeque<Event>,
    over: bool,
    waker: Option<Waker>,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        if self.waiting.len() == KEPT {
            self.waiting.pop_front();
        }
        self.over |= matches!(event, Event::Ended | Event::Lost(_));
        self.waiting.push_back(event);
        self.wake();
    }

    pub(super) fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.waiting.pop_front() {
            return Poll::Ready(Some(event));
        }
        if self.over {
            return Poll::Ready(None);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
