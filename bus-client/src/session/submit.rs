//! Calls, signals and replies on their way out.

use std::time::Duration;

use super::calls::{CallStage, with_serial};
use super::event::{Action, CallId, CallOptions, Outcome, Outgoing, WhileDown};
use super::fault::{Cause, Fate, LinkError};
use super::invalidations::Invalidation;
use super::link::{Link, Marked, Stage};
use super::requests::DRIVER;
use super::{Phase, Session};

/// A call that nobody waits for, has no deadline and is stuck in the link is forgotten after so long.
const FORGOTTEN: Duration = Duration::from_secs(25);

/// How many times as much as usual may wait in a link, before a bus that reads nothing is given up. Only replies to calls that
/// came in can make it so much.
const NOT_READING: u64 = 64;

impl Session {
    pub(super) fn submit(&mut self, call: CallId, message: Outgoing, options: CallOptions) {
        self.calls.open(call, message, options, CallStage::New, self.now);
        self.route(call);
    }

    /// A call that is not on its way finds it, waits, or fails.
    fn route(&mut self, id: CallId) {
        let Some(call) = self.calls.get(id) else { return };
        let destination = call.destination.as_deref();
        if destination.is_some_and(|name| self.epochs.is_stale(name, call.learnt)) {
            return self.fail(id, Cause::StaleName, Fate::NotSent);
        }
        let Some(link) = self.link_that_is_up() else {
            return match (&self.phase, call.options.while_down) {
                (Phase::Closed, _) => self.fail(id, Cause::Closed, Fate::NotSent),
                (_, WhileDown::FailFast) => self.fail(id, Cause::Down, Fate::NotSent),
                (_, WhileDown::Invalidate) => self.invalidate(id, Cause::Down),
                (_, WhileDown::Wait) => self.hold(id, true),
            };
        };
        if !call.fds.is_empty() && !link.fds {
            return self.fail(id, Cause::NoDescriptors, Fate::NotSent);
        }
        if let Some(name) = destination.filter(|name| self.settle.is_expected(name)) {
            let name = Box::from(name);
            return self.wait_for_owner(&name, id);
        }
        let is_full = link.output().len() >= self.config.in_link || self.requests.are_waiting();
        let is_first = self.calls.first_held().is_none_or(|first| id <= first);
        if is_full || !is_first {
            return self.hold(id, true);
        }
        self.transmit(id);
    }

    fn hold(&mut self, id: CallId, in_line: bool) {
        let Some(call) = self.calls.get(id) else { return };
        let length = call.bytes.len();
        let (most, most_bytes) = (self.config.held, self.config.held_bytes);
        if call.stage == CallStage::Held || self.calls.has_room(length, most, most_bytes) {
            self.calls.hold(id, in_line);
        } else {
            self.fail(id, Cause::Full, Fate::NotSent);
        }
    }

    /// The destination was owned on the bus from before, and is expected on this one.
    fn wait_for_owner(&mut self, name: &str, id: CallId) {
        if self.names.owner(name).is_some() {
            self.settled(name);
            return self.route(id);
        }
        self.hold(id, false);
        if self.calls.get(id).is_some() && self.settle.wait(name, id) {
            self.watch_use(name);
        }
    }

    /// The owner of a name is back: what waited for it goes.
    pub(super) fn settled(&mut self, name: &str) {
        if let Some(calls) = self.settle.back(name) {
            self.unwatch_use(name);
            calls.into_iter().for_each(|call| self.calls.hold(call, true));
        }
    }

    /// Nobody is waited for any more.
    pub(super) fn end_settling(&mut self, lost: bool) {
        for (name, calls) in self.settle.end(lost) {
            self.unwatch_use(&name);
            calls.into_iter().for_each(|call| self.calls.hold(call, true));
        }
    }

    /// What waits in line goes, as far as there is room.
    pub(super) fn send_held(&mut self) {
        while let Some(link) = self.link_that_is_up()
            && link.output().len() < self.config.in_link
            && !self.requests.are_waiting()
            && let Some(call) = self.calls.first_held()
        {
            self.route(call);
        }
    }

    /// A signal cannot be sent: if it says that properties have changed, that is told later, in one word with other such changes.
    pub(super) fn invalidate(&mut self, id: CallId, otherwise: Cause) {
        let Some(call) = self.calls.get(id) else { return };
        let Some(invalidation) = Invalidation::of(&call.bytes) else {
            return self.fail(id, otherwise, Fate::NotSent);
        };
        if self.invalidations.add(invalidation, self.config.held_bytes) {
            self.end(id, Outcome::Done);
        } else {
            self.fail(id, Cause::Full, Fate::NotSent);
        }
    }

    /// What has changed while nobody could be told goes before all that waits.
    pub(super) fn send_invalidations(&mut self) {
        while let Some(link) = self.link_that_is_up()
            && link.output().len() < self.config.in_link
            && let Some(invalidation) = self.invalidations.take()
        {
            let Phase::Linked(link) = &mut self.phase else {
                return;
            };
            let serial =
                link.next_serial(|serial| self.calls.has_serial(serial) || self.requests.has_serial(serial));
            if let Some(bytes) = invalidation.signal(serial) {
                link.push_marked(bytes.into(), &[], Marked::Invalidation(invalidation));
            }
        }
    }

    fn transmit(&mut self, id: CallId) {
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        let serial =
            link.next_serial(|serial| self.calls.has_serial(serial) || self.requests.has_serial(serial));
        if let Some((bytes, fds)) = self.calls.queue(id, serial) {
            link.push_marked(bytes, fds, Marked::Call(id));
        }
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        link.advance(bytes);
        let mut written = Vec::new();
        while let Some(mark) = link.next_written() {
            written.push(mark);
        }
        for mark in written {
            match mark {
                Marked::Call(call) => self.written(call),
                Marked::Reply(fds) => self.close_fds(fds),
                Marked::Invalidation(_) => {}
            }
        }
    }

    fn written(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(id) else {
            return;
        };
        if let CallStage::Queued(serial) = call.stage {
            call.stage = CallStage::Sent(serial);
        }
        if !call.options.expects_reply || call.is_abandoned {
            return self.end(id, Outcome::Done);
        }
        if !call.options.idempotent {
            call.bytes = bytes::Bytes::new();
            let fds = std::mem::take(&mut call.fds);
            self.close_fds(fds);
        }
    }

    pub(super) fn reply(&mut self, link: u64, message: Outgoing) {
        let is_current = link == self.link;
        let Phase::Linked(link) = &mut self.phase else {
            return self.close_fds(message.fds);
        };
        if !is_current || matches!(link.stage, Stage::Authenticating(_) | Stage::Greeting(_)) {
            return self.close_fds(message.fds);
        }
        if !message.fds.is_empty() && !link.fds {
            return self.close_fds(message.fds);
        }
        let serial =
            link.next_serial(|serial| self.calls.has_serial(serial) || self.requests.has_serial(serial));
        let bytes = with_serial(message.bytes.into(), serial);
        let fds = message.fds.clone();
        link.push_marked(bytes, &fds, Marked::Reply(message.fds));
        let waiting = link.output().len();
        if waiting > self.config.in_link.saturating_mul(NOT_READING).max(1 << 28) {
            self.lose(LinkError::NotReading(waiting));
        }
    }

    pub(super) fn abandon(&mut self, id: CallId) {
        let Some(call) = self.calls.get(id) else { return };
        match call.stage {
            // What comes in answer to a call that was sent is an answer to nobody.
            CallStage::New | CallStage::Held | CallStage::Names | CallStage::Sent(_) => {
                self.calls.abandon(id, self.now);
                self.end(id, Outcome::Done);
            }
            CallStage::Queued(_) => self.calls.abandon(id, self.now + FORGOTTEN),
        }
    }

    /// The deadline of a call has come.
    pub(super) fn overdue(&mut self, id: CallId) {
        let fate = match self.calls.get(id).map(|call| call.stage) {
            // What is in the link goes out still.
            Some(CallStage::Queued(_) | CallStage::Sent(_)) => Fate::Unknown,
            Some(CallStage::New | CallStage::Held | CallStage::Names) | None => Fate::NotSent,
        };
        self.fail(id, Cause::Deadline, fate);
    }

    pub(super) fn fail(&mut self, id: CallId, cause: Cause, fate: Fate) {
        // What was not sent this time may have been before, where it may be repeated.
        let fate = match (fate, self.calls.get(id)) {
            (Fate::NotSent, Some(call)) => call.fate_so_far(),
            (fate, _) => fate,
        };
        self.end(id, Outcome::Failed { cause, fate });
    }

    /// The call has ended.
    pub(super) fn end(&mut self, id: CallId, outcome: Outcome) {
        let Some(call) = self.calls.remove(id) else { return };
        if call.stage == CallStage::Names {
            for rule in self.names.unwait(id) {
                self.unwant(rule);
            }
        }
        if let Some(name) = &call.destination {
            self.settle.remove(name, id);
            if matches!(&outcome, Outcome::Reply { message, .. } if message.sender() != Some(DRIVER)) {
                self.settle.note(name);
            }
        }
        self.close_fds(call.fds);
        if !call.is_abandoned {
            self.actions.push(Action::Ended { call: id, outcome });
        } else if let Outcome::Reply { fds, .. } = outcome {
            self.close_fds(fds);
        }
    }

    /// The link, where calls can be made over it.
    pub(super) fn link_that_is_up(&self) -> Option<&Link> {
        match &self.phase {
            Phase::Linked(link) if matches!(link.stage, Stage::Up(_)) => Some(link),
            Phase::New
            | Phase::Dialing { .. }
            | Phase::Linked(_)
            | Phase::Asking(_)
            | Phase::Waiting { .. }
            | Phase::Closed => None,
        }
    }
}
