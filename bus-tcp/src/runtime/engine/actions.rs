//! What the state machine asks for is done here, and whoever waits for it is woken.

use super::super::clock;
use super::super::core::{Core, Todo};
use super::super::events::Event;
use super::{Holder, State, Stream, random};
use crate::frame::Reason;
use crate::replay::Replay;
use crate::resume::{Secret, SessionId};
use crate::session::{Action, CarrierId, Grant, Session, Side};
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

impl State {
    /// Does what the state machine asks for.
    pub(in crate::runtime) fn carry_on(&mut self) {
        while let Some(todo) = self.core.todo() {
            match todo {
                Todo::Session(id, action) => self.act(id, action),
                Todo::Dial(address) => {
                    self.dial = Some(address);
                    self.dial_waker.take().into_iter().for_each(Waker::wake);
                }
                Todo::AskNew(carrier) => {
                    let grant = Grant {
                        session: SessionId(random()),
                        secret: Secret(random()),
                    };
                    if let Core::Host(host) = &mut self.core {
                        host.grant(clock::now(), carrier, grant);
                    }
                    self.wake_line(carrier);
                }
                Todo::AskResume(carrier) => {
                    if let Core::Host(host) = &mut self.core {
                        host.grant_resume(clock::now(), carrier);
                    }
                    self.wake_line(carrier);
                }
                Todo::Writable(carrier) => self.wake_line(carrier),
                Todo::Close(carrier, flush) => {
                    if let Some(line) = self.lines.get_mut(&carrier) {
                        line.close = Some(flush);
                        line.waker.take().into_iter().for_each(Waker::wake);
                    }
                }
                Todo::Trouble(who, trouble) => {
                    self.troubles.turned_away(clock::now(), who.as_deref(), &trouble)
                }
            }
        }
        let next = self.core.deadline();
        if next.is_some_and(|next| self.armed.is_none_or(|armed| next < armed)) {
            self.timer_waker.take().into_iter().for_each(Waker::wake);
        }
    }

    fn act(&mut self, id: SessionId, action: Action) {
        if let (Action::Opened, Some(opened)) = (&action, &mut self.opened) {
            self.streams.insert(id, Stream::default());
            opened.push_back(id);
            self.accept_waker.take().into_iter().for_each(Waker::wake);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        match action {
            Action::Deliver { bytes, .. } => {
                stream.counters.received.fetch_add(bytes.len() as u64, Relaxed);
                if stream.holder != Holder::Program {
                    stream.read += bytes.len() as u64;
                    let upto = stream.read;
                    self.core.committed(clock::now(), id, upto);
                } else {
                    stream.inbox.push_back(bytes);
                    stream.reader.take().into_iter().for_each(Waker::wake);
                }
            }
            Action::Acked { upto } => {
                let before = stream.replay.len();
                stream.replay.forget(upto);
                let after = stream.replay.len();
                self.budget.refund((before - after) as u64);
                let starved = std::mem::take(&mut self.starved);
                stream.writer.take().into_iter().for_each(Waker::wake);
                stream.closer.take().into_iter().for_each(Waker::wake);
                if starved {
                    self.wake_writers();
                }
            }
            Action::Finished { .. } => {
                stream.finished = true;
                stream.reader.take().into_iter().for_each(Waker::wake);
            }
            Action::Opened => {
                stream.events.push(Event::Opened);
                self.leave(id);
            }
            Action::Parked { at } => {
                stream.events.push(Event::Parked { at });
                stream.writer.take().into_iter().for_each(Waker::wake);
            }
            Action::Fenced => {
                stream.events.push(Event::Fenced);
                // Nobody is left who could hear how it ends.
                if stream.holder != Holder::Program {
                    self.abort(id, Reason::Dropped);
                }
            }
            Action::Resumed { again, fenced } => {
                stream.counters.resumptions.fetch_add(1, Relaxed);
                stream.counters.again.fetch_add(again, Relaxed);
                stream.events.push(Event::Resumed { again, fenced });
                self.leave(id);
            }
            Action::Ended(ending) => {
                stream.ending = Some(ending);
                if ending.by == Side::Us && !ending.clean() {
                    // The other side hears that these were not taken.
                    stream.inbox.clear();
                }
                stream.events.push(if ending.clean() {
                    Event::Ended
                } else {
                    Event::Lost(ending)
                });
                self.budget.refund(stream.replay.len() as u64);
                stream.replay = Replay::new(stream.replay.end());
                stream.wake_all();
                self.wake_writers();
                self.forget(id);
            }
            Action::Connect { .. } | Action::Close { .. } => {}
        }
    }

    /// A session that is over, and that nobody holds any more.
    pub(super) fn forget(&mut self, id: SessionId) {
        let over = |stream: &Stream| stream.holder != Holder::Program && stream.ending.is_some();
        if self.streams.get(&id).is_some_and(over) {
            self.streams.remove(&id);
            self.stop_if_over();
        }
    }

    /// A client's only session is over, and its last word is said.
    pub(super) fn stop_if_over(&mut self) {
        if self.opened.is_none() && self.streams.is_empty() && self.lines.is_empty() {
            self.stop();
        }
    }

    pub(super) fn wake_writers(&mut self) {
        for stream in self.streams.values_mut() {
            stream.writer.take().into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn wake_line(&mut self, carrier: CarrierId) {
        if let Some(line) = self.lines.get_mut(&carrier) {
            line.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn wake_session(&mut self, id: SessionId) {
        if let Some(carrier) = self.core.session(id).and_then(Session::carrier) {
            self.wake_line(carrier);
        }
    }

    /// A commit may have made an acknowledgement due at once.
    pub(super) fn wake_if_urgent(&mut self, id: SessionId) {
        if self
            .core
            .session(id)
            .is_some_and(|session| session.ack_is_due(clock::now()))
        {
            self.wake_session(id);
        }
    }
}
