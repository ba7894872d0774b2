//! Who is served next: users take turns by the work that is done for them, and the peers of one user by the work that is done
//! for each, at that user's turn. Accepting connections is one participant beside the users.
//!
//! How much work it is to serve somebody shows afterwards, and is then counted. Before it is, it is taken for what the last
//! times were. So whoever needs little is next at once, even behind many who need much, as long as it does not get more than
//! they do. It makes no difference to a user how many peers another one has, nor how much each of them wants; and the same is
//! true between the peers of one user.
//!
//! ```text
//! beginning = what was done for somebody, but not before the clock of its line: nobody saves up turns
//! place     = beginning + what will be done, as far as is known, roughly
//! clock     = the latest beginning of anybody who was served
//! ```
//!
//! What was done for somebody beyond the clock is its debt. That is never more than the work of serving it once or twice, since
//! whoever has a debt is served only when it is next, and it is forgotten when a tenth of a second or two have passed. What is
//! done to accept a user's connections is a debt of the user, too: it may be as much as all that was done for whoever accepts.

use std::collections::BTreeMap;

use super::line::Line;
use crate::broker::{Millis, PeerId};

/// Places that differ by less work are the same: among those who need little whoever came first is served first, as programs
/// expect that talk over several connections.
const LEVEL: u64 = 64;
/// Turns that are short after more than one user was served in one of them.
const SHORT_TURNS: u32 = 64;
/// A debt is forgotten in the second of such spans of time after the one in which it was made.
const SPAN_MILLIS: u64 = 128;

/// A participant's place in the rotation's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UserSlot(u32);

impl UserSlot {
    /// The one who accepts connections.
    const ACCEPTING: Self = Self(0);
}

/// Who or what is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ready {
    /// A peer's link.
    Peer(PeerId),
    /// A listener, by its index.
    Listener(u32),
}

/// What was done for somebody, to be compared with what was done for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Served {
    work: u64,
    /// What it will be the next time, as far as is known: not much less than the last times.
    expected: u64,
    /// When the last of it was.
    span: u64,
}

impl Served {
    /// Where somebody comes into a line with this clock: its place, and its beginning.
    #[inline]
    fn place(&mut self, clock: u64, span: u64) -> (u64, u64) {
        if self.span + 2 <= span {
            *self = Self::default();
        }
        self.work = self.work.max(clock);
        ((self.work + self.expected) / LEVEL, self.work)
    }

    /// More was done than is done at its own turns.
    fn owe(&mut self, clock: u64, span: u64, work: u64) {
        if self.span + 2 <= span {
            *self = Self::default();
        }
        self.work = self.work.max(clock) + work;
        self.span = span;
    }

    #[inline]
    fn note(&mut self, work: u64, span: u64) {
        self.work += work;
        self.expected = work.max(self.expected - self.expected / 8);
        self.span = span;
    }
}

/// A peer's part in the rotation, or that of all listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    user: UserSlot,
    served: Served,
}

impl Turn {
    /// Of one of this user's peers.
    pub(crate) fn of(user: UserSlot) -> Self {
        Self {
            user,
            served: Served::default(),
        }
    }

    /// Whose peer it is.
    pub(crate) fn user(&self) -> UserSlot {
        self.user
    }

    /// Of whoever accepts connections.
    pub(crate) fn accepting() -> Self {
        Self::of(UserSlot::ACCEPTING)
    }
}

#[derive(Debug)]
struct Participant<T> {
    served: Served,
    /// Each with its beginning.
    ready: Line<(T, u64)>,
    clock: u64,
}

impl<T: Ord + Copy> Default for Participant<T> {
    fn default() -> Self {
        Self {
            served: Served::default(),
            ready: Line::default(),
            clock: 0,
        }
    }
}

/// Who is being served.
#[derive(Debug, Clone, Copy)]
struct Current<T> {
    user: u32,
    ready: T,
    is_ready_again: bool,
}

/// The order in which those who are ready are served. Each that is added is served once, unless it is added again.
#[derive(Debug)]
pub(crate) struct Rotation<T> {
    participants: Vec<Participant<T>>,
    /// Those with somebody ready, but for the one whose peer is being served; each with its beginning.
    order: Line<(u32, u64)>,
    clock: u64,
    current: Option<Current<T>>,
    /// The time, in spans.
    span: u64,
    /// Users, by uid; `None` for peers of whom no uid is known.
    slots: BTreeMap<Option<u32>, u32>,
    /// Who was served last, connections that were accepted aside.
    last: u32,
    /// So many turns are short yet, because users alternate.
    short: u32,
}

impl<T: Ord + Copy> Default for Rotation<T> {
    fn default() -> Self {
        Self {
            participants: vec![Participant::default()],
            order: Line::default(),
            clock: 0,
            current: None,
            span: 0,
            slots: BTreeMap::new(),
            last: UserSlot::ACCEPTING.0,
            short: 0,
        }
    }
}

impl<T: Ord + Copy> Rotation<T> {
    /// The slot of a user.
    pub(crate) fn user(&mut self, uid: Option<u32>) -> UserSlot {
        let next = self.participants.len() as u32;
        let slot = *self.slots.entry(uid).or_insert(next);
        if slot == next {
            self.participants.push(Participant::default());
        }
        UserSlot(slot)
    }

    /// Time has gone on.
    pub(crate) fn note_time(&mut self, now: Millis) {
        self.span = now.0 / SPAN_MILLIS;
    }

    /// Adds somebody who is not in it. Whoever is being served is added when [that is done](Self::done).
    pub(crate) fn add(&mut self, turn: &mut Turn, ready: T) {
        let user = turn.user.0;
        let Some(participant) = self.participants.get_mut(user as usize) else {
            return;
        };
        let mut is_users_turn = false;
        if let Some(current) = self.current.as_mut().filter(|current| current.user == user) {
            if current.ready == ready {
                current.is_ready_again = true;
                return;
            }
            is_users_turn = true;
        }
        if participant.ready.is_empty() && !is_users_turn {
            let (place, beginning) = participant.served.place(self.clock, self.span);
            self.order.add(place, (user, beginning));
        }
        let (place, beginning) = turn.served.place(participant.clock, self.span);
        participant.ready.add(place, (ready, beginning));
    }

    /// Takes out who is to be served now. How much work it was is to be told [when it is done](Self::done).
    pub(crate) fn next(&mut self) -> Option<T> {
        let (user, beginning) = self.order.next()?;
        self.clock = self.clock.max(beginning);
        self.note_served(user);
        let participant = self.participants.get_mut(user as usize)?;
        let (ready, beginning) = participant.ready.next()?;
        participant.clock = participant.clock.max(beginning);
        self.current = Some(Current {
            user,
            ready,
            is_ready_again: false,
        });
        Some(ready)
    }

    /// Whoever was [taken out](Self::next) was served, which was so much work. `None`: it is not there any more.
    pub(crate) fn done(&mut self, turn: Option<&mut Turn>, work: u64) {
        let Some(current) = self.current.take() else {
            return;
        };
        let Some(participant) = self.participants.get_mut(current.user as usize) else {
            return;
        };
        participant.served.note(work, self.span);
        if let Some(turn) = turn {
            turn.served.note(work, self.span);
            if current.is_ready_again {
                let (place, beginning) = turn.served.place(participant.clock, self.span);
                participant.ready.add(place, (current.ready, beginning));
            }
        }
        if !participant.ready.is_empty() {
            let (place, beginning) = participant.served.place(self.clock, self.span);
            self.order.add(place, (current.user, beginning));
        }
    }

    /// So much was done for a user at somebody else's turn. It counts as if it had been done for the user's peers.
    pub(crate) fn charge(&mut self, user: UserSlot, work: u64) {
        if let Some(participant) = self.participants.get_mut(user.0 as usize) {
            participant.served.owe(self.clock, self.span, work);
        }
    }

    fn note_served(&mut self, user: u32) {
        if user == self.last || user == UserSlot::ACCEPTING.0 {
            return;
        }
        if self.last != UserSlot::ACCEPTING.0 {
            self.short = SHORT_TURNS;
        }
        self.last = user;
    }

    /// Another turn begins. True: of late users alternated, so it is to be a short one; whoever comes up in it waits for its
    /// end, and a user that is alone with its peers makes nobody else wait by a long one, which costs less.
    pub(crate) fn begin_turn(&mut self) -> bool {
        let is_short = self.short > 0;
        self.short = self.short.saturating_sub(1);
        is_short
    }

    /// Whether nobody waits to be served.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests;
