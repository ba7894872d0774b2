//! Memory: what is done when the bus holds almost as much as it may, and that it gives back what it does not need.
//!
//! The broker says what is to be done ([`Broker::relief`](crate::broker::Broker::relief)); it is noted, and then done, as any
//! event. Before it is asked, a checkpoint is taken: then what waits is in the store, each body once, and what is not needed
//! any more does not count.
//!
//! What is in memory is kept near what is held: beyond the cap no more than a quarter of it may be idle, and what those have
//! left behind who were disconnected goes back at once. A turn takes in about a megabyte, and memory is looked after in each.
//! Where a control group has a limit, the kernel is asked how much is left of it, since it counts there what nobody here
//! does (sockets' buffers, its own tables, others in the group); where that is little, the cap is lower.
//!
//! What is kept only to be used again goes back to the system once the bus has been quiet for a while. That takes one
//! wake-up, and none if there is little.

use super::Worker;
use crate::broker::{Event, Memory};
use crate::journal::RareEvent;
use crate::os::control_group::{self, Limited};
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
/// Idle memory that is worth a checkpoint, and what it leaves to do, at once: this part of the cap, and what the log keeps.
const IDLE_PART: u64 = 4;
const IDLE: u64 = 4 << 20;
/// Steps of what a checkpoint leaves to do that are taken in one go where the system's memory is short: each may give back
/// 2 MiB.
const STEPS: usize = 256;
/// Milliseconds between two looks at the control group, unless what is in memory grows by this part of the cap.
const GAUGE: u64 = 100;
const GROWTH_PART: u64 = 16;
/// Milliseconds after which it is looked again which control groups have a limit, and what it is, if there is anything to do.
const SEARCH: u64 = 5000;
/// What is to be left of a control group's limit: a part of it, and not more than that.
const RESERVE_PART: u64 = 8;
const RESERVE: u64 = 64 << 20;

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
    /// What was idle and could not be given back when that was last tried: parts of pages.
    stuck: u64,
    /// Control groups with a limit, in which this process's memory counts; once they were looked for.
    groups: Option<Vec<Limited>>,
    /// When they were last looked for, in milliseconds, since a limit may be set at any time.
    searched: u64,
    /// What the system grants the bus, as it was last asked; `u64::MAX`: nobody wants to know.
    granted: u64,
    /// When it was last asked how much is left of these, in milliseconds, and what was in memory then.
    gauged: Option<(u64, u64)>,
    /// What the bus may hold, as far as they have room for it.
    room: Option<u64>,
}

impl Shortage {
    /// Of a worker that may hold so much. It may have been given a lot: it looks in its first turn.
    pub(super) fn new(granted: u64) -> Self {
        Self {
            judged: (0, 0),
            is_large_begun: false,
            look: None,
            tidy: None,
            rest: 0,
            is_tidying: false,
            heap_peak: 0,
            unlooked: UNLOOKED,
            stuck: 0,
            groups: None,
            searched: 0,
            granted,
            gauged: None,
            room: None,
        }
    }
}

impl Worker {
    fn memory(&self) -> Memory {
        let cap = self.journal.cap();
        Memory {
            held: self.journal.used() + self.broker.held_outside(),
            cap: self.shortage.room.map_or(cap, |room| room.min(cap)),
        }
    }

    /// Asks how much is left of the limits of control groups, if it is time, and gives back what is idle where that is little.
    fn gauge(&mut self) {
        let is_searched = self.now.0 < self.shortage.searched + SEARCH;
        if is_searched && self.shortage.groups.as_ref().is_some_and(Vec::is_empty) {
            return;
        }
        let resident = self.journal.store_resident() + self.broker.held_outside();
        let Some((at, before)) = self.shortage.gauged else {
            // A worker that has just begun has others waiting.
            self.shortage.gauged = Some((self.now.0, resident));
            return;
        };
        let has_grown = resident > before.saturating_add(self.journal.cap() / GROWTH_PART);
        if self.now.0 < at + GAUGE && !has_grown {
            return;
        }
        self.shortage.gauged = Some((self.now.0, resident));
        let groups = self.shortage.groups.take().filter(|_| is_searched);
        let groups = groups.unwrap_or_else(|| self.search());
        self.lower_cap(&groups);
        self.shortage.groups = Some(groups);
    }

    /// Looks which control groups have a limit now. Where it is another than before, the bus may hold another part of it.
    fn search(&mut self) -> Vec<Limited> {
        self.shortage.searched = self.now.0;
        let before = self.shortage.granted;
        if before != u64::MAX {
            let granted = memory::cap();
            if granted != before {
                tracing::info!("the bus may hold {granted} bytes now, and not {before}");
                self.shortage.granted = granted;
                self.journal.set_cap(granted);
            }
        }
        control_group::limited(&control_group::own())
    }

    /// Lowers the cap where these groups have little left, and gives back what is idle first.
    fn lower_cap(&mut self, groups: &[Limited]) {
        let least = |groups: &[Limited]| {
            let left = groups.iter().filter_map(Limited::left);
            left.map(|(limit, left)| (left, (limit / RESERVE_PART).min(RESERVE)))
                .min_by_key(|(left, reserve)| left.saturating_sub(*reserve))
        };
        self.shortage.room = None;
        let Some((left, reserve)) = least(groups) else {
            return;
        };
        if left >= 2 * reserve {
            return;
        }
        if self.journal.idle() > LITTLE {
            self.give_back();
        }
        let Some((left, reserve)) = least(groups) else {
            return;
        };
        // However little others leave: so much is the bus's own.
        let room = (self.memory().held + left)
            .saturating_sub(reserve)
            .max(memory::LEAST);
        self.shortage.room = Some(room);
    }

    /// Gives back at once what a checkpoint sets free, and what is kept to be used again.
    fn give_back(&mut self) {
        if self.has_no_checkpoint_now() {
            return;
        }
        // The second sets free what stood in backlogs that came to their ends after the first.
        for _ in 0..2 {
            self.take_checkpoint();
            self.journal.release_extents();
            self.journal.return_idle();
            for _ in 0..STEPS {
                if !self.journal.has_chores() {
                    break;
                }
                self.journal.do_chores();
            }
        }
        self.shortage.stuck = self.journal.resident().saturating_sub(self.journal.used());
    }

    /// The same, but where only the bus's own cap is near, not at once, since to give back much takes long: as
    /// [chores](crate::journal::Journal::do_chores), some in each turn. Of what may be used again no more than too much of it, unless `is_all`.
    fn give_back_soon(&mut self, is_all: bool) {
        if self.shortage.room.is_some() {
            return self.give_back();
        }
        if self.has_no_checkpoint_now() {
            return;
        }
        self.take_checkpoint();
        self.journal.release_extents();
        if is_all {
            self.journal.return_idle();
        }
    }

    /// Whether what those had who were dismissed is still being given back.
    fn is_giving_back(&self) -> bool {
        self.journal.has_chores() && self.shortage.room.is_none()
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
        self.gauge();
        let memory = self.memory();
        let outside = self.broker.held_outside();
        self.shortage.heap_peak = self.shortage.heap_peak.max(outside);
        // Log and checkpoints keep little that is idle.
        if self.journal.store_resident() + outside > memory.cap {
            let idle = (self.journal.resident() + outside).saturating_sub(memory.held);
            let is_much = idle > memory.cap / IDLE_PART + IDLE + self.shortage.stuck;
            if is_much && !self.is_giving_back() {
                self.give_back_soon(true);
            }
        }
        if !memory.is_short() && !self.shortage.is_large_begun {
            self.shortage.look = None;
            return;
        }
        let (at, held) = self.shortage.judged;
        // Who was dismissed a moment ago had enough: that is to be seen before anybody else is.
        let is_soon = self.now.0 < at + JUDGE || self.is_giving_back();
        let part = if self.is_giving_back() { 32 } else { 256 };
        let has_grown = memory.held > held.saturating_add(memory.cap / part);
        if is_soon && !has_grown && !self.shortage.is_large_begun {
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
            let is_any_dismissed = !relief.dismiss.is_empty();
            self.apply(Event::Relieved(relief));
            if is_any_dismissed {
                self.give_back_soon(false);
            }
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
            // What stood in backlogs that came to their ends since is free from the next checkpoint on.
            if self.journal.freed_by_checkpoint() > 0 && self.take_checkpoint() {
                return self.journal.return_idle();
            }
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
