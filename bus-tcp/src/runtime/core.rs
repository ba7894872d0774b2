//! One client's session, or all of a host's, behind the same words.

use crate::frame::Reason;
use crate::host::{Host, HostAction, Identity, Trouble};
use crate::moment::Moment;
use crate::resume::{Nonce, SessionId};
use crate::session::{Action, CarrierId, Session, Transmit};
use bytes::Bytes;

/// What a client's only session is called here, before and after it has a name.
pub(super) const OURS: SessionId = SessionId([0; 16]);

#[derive(Debug)]
pub(super) enum Core {
    Client(Box<Session>),
    Host(Box<Host>),
}

/// What there is to do.
#[derive(Debug)]
pub(super) enum Todo {
    Session(SessionId, Action),
    Dial(Option<String>),
    AskNew(CarrierId),
    AskResume(CarrierId),
    Writable(CarrierId),
    Close(CarrierId, bool),
    Trouble(Option<Identity>, Trouble),
}

impl Core {
    pub(super) fn session(&self, id: SessionId) -> Option<&Session> {
        match self {
            Self::Client(session) => Some(session),
            Self::Host(host) => host.session(id),
        }
    }

    pub(super) fn received(&mut self, now: Moment, carrier: CarrierId, bytes: Bytes) {
        match self {
            Self::Client(session) => session.received(now, carrier, bytes),
            Self::Host(host) => host.received(now, carrier, bytes),
        }
    }

    pub(super) fn carrier_lost(&mut self, now: Moment, carrier: CarrierId) {
        match self {
            Self::Client(session) => session.carrier_lost(now, carrier),
            Self::Host(host) => host.carrier_lost(now, carrier),
        }
    }

    pub(super) fn tick(&mut self, now: Moment) {
        match self {
            Self::Client(session) => session.tick(now),
            Self::Host(host) => host.tick(now),
        }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        match self {
            Self::Client(session) => session.deadline(),
            Self::Host(host) => host.deadline(),
        }
    }

    pub(super) fn transmit(&mut self, now: Moment, carrier: CarrierId) -> Option<(SessionId, Transmit)> {
        match self {
            Self::Client(session) => Some((OURS, session.transmit(now, carrier)?)),
            Self::Host(host) => {
                let id = host.session_on(carrier).unwrap_or(OURS);
                Some((id, host.transmit(now, carrier)?))
            }
        }
    }

    pub(super) fn produced(&mut self, id: SessionId, end: u64) {
        match self {
            Self::Client(session) => session.produced(end),
            Self::Host(host) => host.produced(id, end),
        }
    }

    pub(super) fn committed(&mut self, now: Moment, id: SessionId, upto: u64) {
        match self {
            Self::Client(session) => session.committed(now, upto),
            Self::Host(host) => host.committed(now, id, upto),
        }
    }

    pub(super) fn finish(&mut self, id: SessionId) {
        match self {
            Self::Client(session) => session.finish(),
            Self::Host(host) => host.finish(id),
        }
    }

    pub(super) fn abort(&mut self, id: SessionId, reason: Reason) {
        match self {
            Self::Client(session) => session.abort(reason),
            Self::Host(host) => host.abort(id, reason),
        }
    }

    /// A client has a carrier, or a host was given one by `who`.
    pub(super) fn attach(
        &mut self,
        now: Moment,
        carrier: CarrierId,
        who: Option<Identity>,
        binding: Option<crate::resume::Binding>,
        nonce: Nonce,
    ) {
        match (self, who, binding) {
            (Self::Client(session), _, binding) => session.attach(now, carrier, binding),
            (Self::Host(host), Some(who), Some(binding)) => host.accepted(now, carrier, who, binding),
            (Self::Host(host), Some(who), None) => host.accepted_plain(now, carrier, who, nonce),
            (Self::Host(_), None, _) => {}
        }
    }

    pub(super) fn todo(&mut self) -> Option<Todo> {
        match self {
            Self::Client(session) => Some(match session.action()? {
                Action::Connect { address } => Todo::Dial(address),
                Action::Close { carrier, flush } => Todo::Close(carrier, flush),
                action @ (Action::Deliver { .. }
                | Action::Finished { .. }
                | Action::Acked { .. }
                | Action::Opened
                | Action::Parked { .. }
                | Action::Resumed { .. }
                | Action::Fenced
                | Action::Ended(_)) => Todo::Session(OURS, action),
            }),
            Self::Host(host) => Some(match host.action()? {
                HostAction::AskNew { carrier, .. } => Todo::AskNew(carrier),
                HostAction::AskResume { carrier, .. } => Todo::AskResume(carrier),
                HostAction::Session { session, action } => Todo::Session(session, action),
                HostAction::Writable { session } => match host.session(session).and_then(Session::carrier) {
                    Some(carrier) => Todo::Writable(carrier),
                    None => return self.todo(),
                },
                HostAction::WritableCarrier { carrier } => Todo::Writable(carrier),
                HostAction::Close { carrier, flush } => Todo::Close(carrier, flush),
                HostAction::Buried { .. } => return self.todo(),
                HostAction::Trouble { who, trouble, .. } => Todo::Trouble(who, trouble),
            }),
        }
    }
}
