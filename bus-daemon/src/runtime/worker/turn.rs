//! The turn: what is ready is served in a fair order, within a bound, and then everything that came of it is sent.
//!
//! Priorities: 1. the keeper; 2. timers; 3. whoever is ready, as the [rotation](crate::runtime::rotation) says, until the
//! turn's work is used up; 4. sends, so many in a turn; 5. [memory](super::shortage), if it is short; 6. the checkpoint.
//! What is left over is served in the next turn, which then comes at
//! once.
//!
//! Architecture invariant: nothing is left unheard. As a rule the worker waits in the epoll set itself, which is
//! level-triggered: what was not taken to its end is told again. Where something else runs on the runtime, that waits on the
//! set by its edges, so it may only wait when everything that the set told of has been taken to its end: a socket to an empty
//! read or to one that brought less than there was room for while no end was in sight, a listener to EAGAIN. Whatever comes
//! later is an edge of its own. Except where a read has ended for the descriptors that it brought, or the interest in a
//! descriptor has changed since the set was asked: the kernel gives no edge for one that is ready at that moment and was
//! told of before, so the set is asked again.

use super::Worker;
use crate::broker::{Event, Millis};
use crate::journal::RareEvent;
use crate::runtime::links::{Link, STEP};
use crate::runtime::poll::Source;
use crate::runtime::rotation::Ready;

/// The broker's time goes on in steps of at least this many milliseconds.
const TICK: u64 = 20;
/// How long to wait before what the kernel refused for want of room is tried again, in milliseconds.
const RETRY: u64 = 20;
/// A deadline that is noticed so many milliseconds late was not missed by whom it concerns: the bus itself stood still
/// (a debugger, the freezer, suspend). What arrived meanwhile is served first.
const LATE: u64 = 250;
/// After so many turns in which there was always somebody ready time goes on all the same.
const LATE_TURNS: u32 = 256;
/// How long to wait before a checkpoint that could not be taken is tried again, in milliseconds.
const AGAIN: u64 = 100;
/// How long to wait before the log is told again, in milliseconds.
const COMPLAINTS: u64 = 10_000;
/// Work of one turn, in the units of [`Broker::work`](crate::broker::Broker::work), and one more for whoever is served.
const WORK: u64 = 512;
/// Of a turn that is [short](crate::runtime::rotation::Rotation::begin_turn).
const SHORT_WORK: u64 = 64;
/// Bytes of input that is not whole, for which whoever sends more of it is served is counted one more: until it is whole each
/// checkpoint has to write them again. So no turn makes more of them to be written than are [written
/// ahead](crate::journal::Journal::write_ahead) at its end.
const UNFINISHED: u64 = 1024;
const UNFINISHED_MOST: u64 = 64;

impl Worker {
    /// When the next tick is due; `None` = not by itself.
    pub(crate) fn next_tick(&self) -> Option<Millis> {
        let is_retrying = !self.follow_ups.is_empty() || self.journal.is_incomplete();
        let retry = is_retrying.then_some(Millis(self.now.0 + RETRY));
        let checkpoint = self
            .has_no_checkpoint_now()
            .then_some(Millis(self.no_checkpoint_before));
        let write = self.passing.retry().map(Millis);
        let look = self.next_look().map(Millis);
        let accept = self.acceptance.again().map(Millis);
        let deadline = self.broker.next_deadline();
        let all = deadline.into_iter().chain(retry).chain(write).chain(look);
        all.chain(accept).chain(checkpoint).min()
    }

    /// Takes turns until nothing is left to do, and the epoll set has nothing to tell.
    pub(crate) fn turns(&mut self) {
        while self.turn() || self.must_look.get() {}
    }

    /// One turn. True: there is more to do at once; otherwise the set may still have something to tell.
    pub(crate) fn turn(&mut self) -> bool {
        let is_late = self.is_late();
        if is_late {
            // What was told when the wait was interrupted is not all that there is.
            self.told = None;
        } else {
            self.tick();
        }
        let has_more = self.look();
        let work = self.serve();
        if is_late {
            self.late_turns += 1;
            let is_all = !has_more && self.rotation.is_empty();
            if is_all || self.late_turns >= LATE_TURNS {
                self.tick();
                self.late_turns = 0;
            }
        }
        let mut is_sent = !self.send_some();
        if !self.follow_ups.is_empty() {
            self.follow_up();
            is_sent = !self.send_some();
        }
        let is_look_due = self.is_look_due(work);
        if is_look_due {
            self.relieve();
            // Most of those who are told that there is no room.
            is_sent = !self.send_some();
        }
        let mut is_writing = self.keep_replay_short();
        if self.journal.has_chores() {
            self.journal.do_chores();
            if !self.journal.has_chores() && self.journal.has_needless_output() {
                // Perhaps nothing else comes that would lead to one.
                is_writing |= self.keep_replay_short();
            }
        }
        if is_look_due {
            self.tidy_up();
        }
        let is_settling = self.settle();
        let may_send = !self.unsent.is_empty() && !self.journal.is_incomplete();
        has_more
            || may_send
            || is_settling
            || !is_sent
            || is_writing
            || self.journal.has_chores()
            || self.is_tidying()
            || !self.rotation.is_empty()
    }

    /// Whether a deadline has long passed, so that it is not its owner's fault.
    pub(super) fn is_late(&self) -> bool {
        let deadline = self.broker.next_deadline();
        deadline.is_some_and(|deadline| crate::runtime::now().0 > deadline.0 + LATE)
    }

    /// Tells the broker what time it is, and tries again what had to wait.
    pub(crate) fn tick(&mut self) {
        let now = crate::runtime::now();
        let deadline = self.broker.next_deadline();
        let looks = [
            deadline.map(|at| at.0),
            self.next_look(),
            self.acceptance.again(),
            self.passing.retry(),
        ];
        let is_due = looks.into_iter().flatten().any(|at| at <= now.0);
        if now.0 < self.now.0 + TICK && !is_due {
            return;
        }
        self.now = now;
        self.rotation.note_time(now);
        self.unsent.note_time(now);
        self.journal.note_tick(now.0);
        self.apply(Event::Tick { now });
        self.retry_writes();
        if self.acceptance.again().is_some_and(|again| now.0 >= again) {
            self.accept_again();
        }
    }

    /// Waits in the epoll set itself until somebody is ready, or a tick is due: the next turn begins with what it told of.
    pub(crate) fn wait(&mut self) -> std::io::Result<()> {
        let timeout = self.next_tick().map_or(-1, |due| {
            let left = due.0.saturating_sub(crate::runtime::now().0);
            i32::try_from(left).unwrap_or(i32::MAX)
        });
        self.must_look.set(false);
        self.ready.clear();
        let is_all = self.epoll.take_ready(&mut self.ready, timeout)?;
        self.told = Some(is_all);
        Ok(())
    }

    /// Asks the epoll set who is ready, unless it was waited for; hears the keeper, and puts the others into the rotation.
    /// True: the set may have more to tell.
    fn look(&mut self) -> bool {
        let told = self.told.take();
        let mut ready = std::mem::take(&mut self.ready);
        let is_all = told.unwrap_or_else(|| {
            self.must_look.set(false);
            ready.clear();
            self.epoll.take_ready(&mut ready, 0).unwrap_or_else(|error| {
                tracing::error!("epoll: {error}");
                true
            })
        });
        for &(source, events) in &ready {
            match source {
                Source::Control => self.listen_to_keeper(),
                Source::Listener(index) => {
                    self.acceptance.note_ready(index, &mut self.rotation);
                }
                Source::Peer(id) => self.note_ready(crate::broker::PeerId::from_u64(id), events),
            }
        }
        self.ready = ready;
        !is_all
    }

    /// A link is ready, or has more to give than it was asked for.
    pub(super) fn note_ready(&mut self, peer: crate::broker::PeerId, events: u32) {
        if let Some(link) = self.links.get_mut(peer) {
            if link.ready == 0 && events != 0 {
                self.rotation.add(&mut link.turn, Ready::Peer(peer));
            }
            link.ready |= events;
            link.is_shut |= events & libc::EPOLLHUP as u32 != 0;
        } else {
            self.note_left(peer);
        }
    }

    /// Serves the rotation until the turn's work is used up. How much that was.
    fn serve(&mut self) -> u64 {
        let most = if self.rotation.begin_turn() {
            SHORT_WORK
        } else {
            WORK
        };
        let mut served = 0;
        while served < most
            && !self.journal.is_short_of_segments()
            && let Some(ready) = self.rotation.next()
        {
            let begin = self.broker.work();
            // What the broker does not count: reads that complete no message, writes, and connections.
            served += match ready {
                Ready::Peer(peer) => {
                    let taken = self.taken(peer);
                    let written = self.serve_peer(peer);
                    // Bytes of a large message are validated when they are read, which takes the longest of all.
                    let taken = self.taken(peer).saturating_sub(taken);
                    let unfinished = self.unfinished(peer);
                    let work = 1 + (taken + written) / 2048 + unfinished + self.broker.work() - begin;
                    let turn = self.links.get_mut(peer).map(|link| &mut link.turn);
                    self.rotation.done(turn, work);
                    work
                }
                Ready::Listener(index) => {
                    let work = 1 + self.accept(index) + self.broker.work() - begin;
                    self.acceptance.served(&mut self.rotation, work);
                    work
                }
            };
        }
        served
    }

    fn taken(&mut self, peer: crate::broker::PeerId) -> u64 {
        self.links.get_mut(peer).map_or(0, |link| link.taken)
    }

    /// Bytes of a peer's message or line that is not whole, where they do not stand in an extent, in
    /// [units](UNFINISHED). That is no more than one read, where there is address space for extents.
    fn unfinished(&mut self, peer: crate::broker::PeerId) -> u64 {
        match self.links.get_mut(peer) {
            Some(Link { large: None, .. }) => {
                (self.broker.rewritten_of(peer) / UNFINISHED).min(UNFINISHED_MOST)
            }
            Some(_) | None => 0,
        }
    }

    /// One read from a peer, or a step of its agenda, and the writes that it has room for again: how many bytes these were.
    fn serve_peer(&mut self, peer: crate::broker::PeerId) -> u64 {
        let Some(link) = self.links.get_mut(peer) else {
            return 0;
        };
        let events = std::mem::take(&mut link.ready);
        let written = if events & libc::EPOLLOUT as u32 != 0 {
            self.write(peer)
        } else {
            0
        };
        let input = events & !(libc::EPOLLOUT as u32 | STEP);
        if events & STEP != 0 {
            self.step(peer);
            // What it has sent since is read when its agenda is done.
            self.note_ready(peer, input);
        } else if input != 0 {
            if self.read(peer, input) {
                self.note_ready(peer, input);
            }
            // Whoever sends something may have read something.
            self.retry_write(peer);
        }
        written
    }

    /// Goes on with a peer's agenda.
    fn step(&mut self, peer: crate::broker::PeerId) {
        self.journal.note(Some(peer), &RareEvent::Step);
        self.apply(Event::Step { peer });
        self.continue_large(peer);
    }

    /// Takes a checkpoint when a replay would take long; one that is large is written ahead in parts. True: there is more of
    /// it to be written, whether anything else happens or not.
    fn keep_replay_short(&mut self) -> bool {
        if self.has_no_checkpoint_now() {
            return false;
        }
        if self.journal.write_ahead(&mut self.broker) {
            return self.journal.wants_checkpoint(&self.broker);
        }
        if self.journal.wants_checkpoint(&self.broker) {
            self.take_checkpoint();
        }
        false
    }

    /// Whether a checkpoint could not be taken a moment ago.
    pub(super) fn has_no_checkpoint_now(&self) -> bool {
        self.now.0 < self.no_checkpoint_before
    }

    #[cfg(test)]
    pub(in crate::runtime) fn want_checkpoint(&mut self) {
        self.journal.want_checkpoint();
    }

    #[cfg(test)]
    pub(in crate::runtime) fn take_checkpoint_now(&mut self) {
        self.take_checkpoint();
    }

    /// False: that was not possible, and the last one counts.
    pub(super) fn take_checkpoint(&mut self) -> bool {
        let was_incomplete = self.journal.is_incomplete();
        match self.journal.checkpoint(&mut self.broker, self.links.generation()) {
            Ok(()) => {
                if self.record.image >= 0 {
                    // The state that this worker began with is not needed any more.
                    crate::os::descriptor::close(self.record.image);
                    self.record.image = -1;
                }
                // In this order: what is not acknowledged is still the keeper's, and told to the next worker.
                self.acknowledge();
                let closing = std::mem::take(&mut self.needed_until_checkpoint);
                self.close_descriptors(&closing);
                if was_incomplete {
                    // Nothing was heard meanwhile.
                    self.record.control.wake_worker();
                }
                true
            }
            Err(error) => {
                if self.now.0 >= self.next_complaint {
                    tracing::error!("no checkpoint: {error}");
                    self.next_complaint = self.now.0 + COMPLAINTS;
                }
                // Nothing is sent before there is one, if something is not in the log.
                let wait = if was_incomplete { RETRY } else { AGAIN };
                self.no_checkpoint_before = self.now.0 + wait;
                false
            }
        }
    }
}
