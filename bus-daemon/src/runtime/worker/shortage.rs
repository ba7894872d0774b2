//! Memory: what is done when the bus holds almost as much as it may, and that it gives back what it does not need.
//!
//! The broker says what is to be done ([`Broker::relief`](crate::broker::Broker::relief)); it is noted, and then done, as any
//! event. Before it is asked, a checkpoint is taken: then what waits is in the store, each body once, and what is not needed
//! any more does not count.
//!
//! What is kept only to be used again goes back to the system once the bus has been quiet for a while. That takes one
//! wake-up, and none if there is little.

use super::Worker;
use crate::broker::{Event, Memory};
use crate::journal::RareEvent;
use crate::os::memory;

/// Milliseconds between two judgements, unless more is held than at the last.
const JUDGE: u64 = 200;
/// Milliseconds after which it is looked again while more is held than may be, even if nothing happens: who is not live shows
/// by time.
const LOOK: u64 = 500;
/// So long must have been quiet before memory is given back, in milliseconds.
const QUIET: u64 = 1000;
/// Bytes that are not worth it.
const LITTLE: u64 = 256 << 10;
/// Work after which it is looked how much is held, in units of a message or 2 KiB: what less of it leaves in memory, or lets
/// go of, is [little](LITTLE). So short turns do not pay for it each.
const UNLOOKED: u64 = 64;

/// How it stands.
#[derive(Debug)]
pub(super) struct Shortage {
    /// When it was last judged, in milliseconds, and what was held then.
    judged: (u64, u64),
    /// Somebody has begun a message that may be too large to be held.
    is_large_begun: bool,
    /// When it is to be looked again.
    look: Option<u64>,
    /// When what is idle is given back, if nothing happens until then; and how much had happened.
    tidy: Option<(u64, u64)>,
    /// What could not be given back the last time.
    rest: u64,
    /// Memory is being given back.
    is_tidying: bool,
    /// The most that the heap has held since it was last trimmed.
    heap_peak: u64,
    /// Work done since it was last looked how much is held.
    unlooked: u64,
}

impl Default for Shortage {
    /// A worker may have been given a lot: it looks in its first turn.
    fn default() -> Self {
        Self {
            judged: (0, 0),
            is_large_begun: false,
            look: None,
            tidy: None,
            rest: 0,
            is_tidying: false,
            heap_peak: 0,
            unlooked: UNLOOKED,
        }
    }
}

impl Worker {
    fn memory(&self) -> Memory {
        Memory {
            held: self.journal.used() + self.broker.held_outside(),
            cap: self.journal.cap(),
        }
    }

    /// A message of so many bytes has begun.
    pub(super) fn note_large(&mut self, bytes: usize) {
        self.shortage.is_large_begun |= bytes as u64 > self.journal.cap() / 2;
    }

    /// When the worker wants to look after its memory, though nothing happens.
    pub(super) fn next_look(&self) -> Option<u64> {
        let tidy = self.shortage.tidy.map(|(at, _)| at);
        self.shortage.look.into_iter().chain(tidy).min()
    }

    /// So many bytes were sent.
    pub(super) fn note_sent(&mut self, bytes: u64) {
        self.shortage.unlooked += bytes / 2048;
    }

    /// A peer is gone, with whatever it held.
    pub(super) fn note_gone(&mut self) {
        self.shortage.unlooked += UNLOOKED;
    }

    /// Whether it is to be looked how much is held, in a turn that did so much.
    pub(super) fn is_look_due(&mut self, work: u64) -> bool {
        self.shortage.unlooked += work;
        let is_time = self.next_look().is_some_and(|due| due <= self.now.0);
        let is_due = is_time
            || self.shortage.unlooked >= UNLOOKED
            || self.shortage.is_large_begun
            || self.shortage.is_tidying;
        if is_due {
            self.shortage.unlooked = 0;
        }
        is_due
    }

    /// Does something about it if memory is short.
    pub(super) fn relieve(&mut self) {
        let memory = self.memory();
        self.shortage.heap_peak = self.shortage.heap_peak.max(self.broker.held_outside());
        if !memory.is_short() && !self.shortage.is_large_begun {
            self.shortage.look = None;
            return;
        }
        let (at, held) = self.shortage.judged;
        let has_grown = memory.held > held.saturating_add(memory.cap / 256);
        if self.now.0 < at + JUDGE && !has_grown && !self.shortage.is_large_begun {
            self.shortage.look = Some(self.now.0 + JUDGE);
            return;
        }
        self.shortage.is_large_begun = false;
        // If there can be none, what is held counts as it is.
        self.take_checkpoint();
        if self.journal.release_extents() {
            // Of those who went: where they lay is free from the next checkpoint on.
            self.take_checkpoint();
        }
        self.journal.return_idle();
        let memory = self.memory();
        self.shortage.judged = (self.now.0, memory.held);
        self.shortage.look = (memory.held > memory.cap).then_some(self.now.0 + LOOK);
        if let Some(relief) = self.broker.relief(memory) {
            tracing::debug!("{memory:?}: {relief:?}");
            self.journal.note(None, &RareEvent::Relieved(relief.clone()));
            self.apply(Event::Relieved(relief));
            self.flush();
        }
    }

    /// Gives memory back that nobody has needed for a while.
    pub(super) fn tidy_up(&mut self) {
        if self.journal.has_chores() {
            // To be looked again when they are done.
            self.shortage.unlooked = UNLOOKED;
            return;
        }
        if self.shortage.is_tidying {
            self.shortage.is_tidying = false;
            self.shortage.rest = self.journal.idle();
            self.shortage.heap_peak = 0;
            memory::trim_heap();
        }
        let activity = self.journal.activity();
        match self.shortage.tidy {
            None if self.has_idle_memory() => self.shortage.tidy = Some((self.now.0 + QUIET, activity)),
            None => {}
            Some((at, _)) if self.now.0 < at => {}
            Some((_, before)) if before != activity => {
                self.shortage.tidy = Some((self.now.0 + QUIET, activity));
            }
            Some(_) => {
                self.shortage.tidy = None;
                self.take_checkpoint();
                if self.journal.release_extents() {
                    // Where they lay is free from the next checkpoint on.
                    self.take_checkpoint();
                }
                self.journal.return_idle();
                self.shortage.is_tidying = true;
            }
        }
    }

    fn has_idle_memory(&self) -> bool {
        if self.journal.cap() == u64::MAX {
            // Nobody wants to know how much it is.
            return false;
        }
        let heap = self.shortage.heap_peak.saturating_sub(self.broker.held_outside());
        self.journal.idle() > self.shortage.rest + LITTLE || heap > LITTLE
    }

    /// Whether [`tidy_up`](Self::tidy_up) has only begun.
    pub(super) fn is_tidying(&self) -> bool {
        self.shortage.is_tidying
    }
}
