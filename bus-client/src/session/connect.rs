//! Links come and go.

use std::time::Duration;

use bus_wire::sasl::cookie::Cookie;
use bus_wire::{Guid, Message, MessageType, UniqueName};
use bytes::Bytes;

use super::auth::{Agreed, Auth, Progress};
use super::event::{Action, CallId, Decision, LinkEvent, Missed, State, WhileDown};
use super::fault::{Cause, Fate, LinkError};
use super::link::{Link, Marked, Stage};
use super::requests::call_driver;
use super::{Phase, Role, Session};
use crate::session::calls::CallStage;

impl Session {
    pub(super) fn start(&mut self) {
        if matches!(self.phase, Phase::New) {
            let _ = self.backoff.next();
            self.dial(false);
        }
    }

    pub(super) fn dial(&mut self, bare: bool) {
        self.attempt += 1;
        let until = self.now + self.config.patience;
        self.phase = Phase::Dialing { until, bare };
        let attempt = self.attempt;
        self.actions.push(Action::Dial { attempt });
    }

    pub(super) fn connected(&mut self, attempt: u64, fds: bool, guid: Option<Guid>) {
        let Phase::Dialing { bare, .. } = self.phase else {
            return;
        };
        if attempt != self.attempt {
            return;
        }
        let mut hello = Vec::new();
        let auth = match &self.config.role {
            Role::Bus | Role::Peer => Auth::client(self.config.uid, self.config.cookies, fds, &mut hello),
            Role::Accepted { sasl, uid } => Auth::server(sasl.clone(), *uid),
        };
        let patience = self.now + self.config.patience;
        let mut link = Link::new(auth, fds, self.config.max_message, patience);
        link.bare = bare;
        // The bus that is started anew has another GUID: what an address says holds for the first one.
        link.expected = guid.filter(|_| !self.was_up);
        link.push(&hello);
        self.phase = Phase::Linked(Box::new(link));
    }

    pub(super) fn dial_failed(&mut self, attempt: u64, error: LinkError) {
        if attempt != self.attempt || !matches!(self.phase, Phase::Dialing { .. }) {
            return;
        }
        // Whatever comes of it still is void.
        self.attempt += 1;
        self.retry_or_close(error);
    }

    /// An attempt has failed, or a link that was not up yet.
    fn retry_or_close(&mut self, error: LinkError) {
        if !self.was_up && !self.config.waits_for_bus {
            return self.close(Some(error));
        }
        let attempts = self.backoff.attempts();
        let event = LinkEvent::Retry(attempts, error.clone());
        self.ask_handler(event, error);
    }

    fn ask_handler(&mut self, event: LinkEvent, error: LinkError) {
        let decision = if error == LinkError::DirectoryGone {
            Decision::GiveUp
        } else {
            Decision::Replay
        };
        self.phase = Phase::Asking(error);
        self.actions.push(Action::Link(event));
        if !self.config.asks {
            self.decided(decision);
        }
    }

    pub(super) fn decided(&mut self, decision: Decision) {
        let Phase::Asking(error) = &self.phase else {
            // The answer to Back: all there is to decide is to leave.
            if decision == Decision::GiveUp {
                self.close(None);
            }
            return;
        };
        let (wait, bare) = match decision {
            Decision::GiveUp => {
                let error = error.clone();
                return self.close(Some(error));
            }
            Decision::Replay => (self.backoff.next(), false),
            Decision::Bare => (self.backoff.next(), true),
            Decision::Wait(wait) => {
                let _ = self.backoff.next();
                (wait, false)
            }
        };
        if wait.is_zero() {
            self.dial(bare);
        } else {
            let until = self.now.saturating_add(wait);
            self.phase = Phase::Waiting { until, bare };
        }
    }

    pub(super) fn socket_appeared(&mut self) {
        if let Phase::Waiting { bare, .. } = self.phase
            && self.backoff.hasten(self.now)
        {
            self.dial(bare);
        }
    }

    pub(super) fn reconnect(&mut self) {
        self.backoff.reset();
        match &self.phase {
            Phase::Linked(_) => self.lose(LinkError::Asked),
            Phase::Waiting { .. } => {
                let _ = self.backoff.next();
                self.dial(false);
            }
            Phase::New | Phase::Dialing { .. } | Phase::Asking(_) | Phase::Closed => {}
        }
    }

    /// The link is gone, or is given up.
    pub(super) fn lose(&mut self, error: LinkError) {
        let Phase::Linked(_) = self.phase else { return };
        let was_up = match std::mem::replace(&mut self.phase, Phase::Asking(error.clone())) {
            Phase::Linked(link) => self.drop_link(*link, &error),
            Phase::New | Phase::Dialing { .. } | Phase::Asking(_) | Phase::Waiting { .. } | Phase::Closed => {
                None
            }
        };
        self.actions.push(Action::HangUp);
        self.backoff.lost(was_up, self.now);
        if matches!(self.config.role, Role::Accepted { .. }) {
            return self.close(Some(error));
        }
        if was_up.is_some() {
            let event = LinkEvent::Lost(error.clone());
            self.ask_handler(event, error);
        } else {
            self.retry_or_close(error);
        }
    }

    /// All that was on the link has ended, or waits again. Since when the link was up, if it was.
    fn drop_link(&mut self, link: Link, error: &LinkError) -> Option<Duration> {
        let was_up = match link.stage {
            Stage::Up(since) => Some(since),
            Stage::Authenticating(_) | Stage::Greeting(_) | Stage::Replaying => None,
        };
        let (unwritten, fds) = link.end();
        let mut fds = fds;
        for mark in unwritten {
            match mark {
                Marked::Reply(of_reply) => fds.extend(of_reply),
                // There was room for it before.
                Marked::Invalidation(invalidation) => {
                    let _ = self.invalidations.add(invalidation, usize::MAX);
                }
                Marked::Call(_) => {}
            }
        }
        self.close_fds(fds);
        if !matches!(self.phase, Phase::Closed) {
            self.set_state(State::Down);
        }
        self.requests.lost();
        self.ledger.lost();
        self.names.lost();
        self.own_names.lost();
        for (name, calls) in self.settle.end(true) {
            self.unwatch_use(&name);
            for call in calls {
                self.calls.hold(call, true);
            }
        }
        for call in self.calls.held() {
            if self.is_invalidation(call) {
                self.invalidate(call, Cause::Lost(error.clone()));
            } else if self.fails_fast(call) {
                self.fail(call, Cause::Lost(error.clone()), Fate::NotSent);
            }
        }
        for (call, stage) in self.calls.in_link() {
            self.call_was_on_link(call, stage, error);
        }
        was_up
    }

    fn is_invalidation(&self, call: CallId) -> bool {
        let call = self.calls.get(call);
        let is_over = matches!(self.phase, Phase::Closed);
        call.is_some_and(|call| call.options.while_down == WhileDown::Invalidate && !call.is_abandoned)
            && !is_over
    }

    fn fails_fast(&self, call: CallId) -> bool {
        let call = self.calls.get(call);
        call.is_some_and(|call| call.options.while_down == WhileDown::FailFast || call.is_abandoned)
    }

    /// A call that was on a link which is gone is sent again only if it was not sent completely, or if that does no harm.
    fn call_was_on_link(&mut self, id: CallId, stage: CallStage, error: &LinkError) {
        let Some(call) = self.calls.get(id) else { return };
        let fate = match stage {
            CallStage::Queued(_) => Fate::NotSent,
            CallStage::New | CallStage::Held | CallStage::Sent(_) | CallStage::Names => Fate::Unknown,
        };
        if fate == Fate::NotSent && self.is_invalidation(id) {
            return self.invalidate(id, Cause::Lost(error.clone()));
        }
        let may_repeat = fate == Fate::NotSent || call.options.idempotent;
        let length = call.bytes.len();
        let has_room = self
            .calls
            .has_room(length, self.config.held, self.config.held_bytes);
        if may_repeat && has_room && !self.fails_fast(id) {
            self.calls.hold(id, true);
        } else {
            self.fail(id, Cause::Lost(error.clone()), fate);
        }
    }

    pub(super) fn close(&mut self, error: Option<LinkError>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        let cause = error.clone().unwrap_or(LinkError::Asked);
        if let Phase::Linked(link) = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.drop_link(*link, &cause);
            self.actions.push(Action::HangUp);
        }
        for call in self.calls.all() {
            self.fail(call, Cause::Closed, Fate::NotSent);
        }
        self.set_state(State::Closed);
        self.actions.push(Action::Closed(error));
    }

    /// Bytes of the authentication. What is behind them are messages.
    pub(super) fn authenticate(&mut self, bytes: &Bytes) -> Option<usize> {
        let Phase::Linked(link) = &mut self.phase else {
            return None;
        };
        let Stage::Authenticating(auth) = &mut link.stage else {
            return Some(0);
        };
        let mut output = Vec::new();
        let result = auth.feed(bytes, &mut output);
        link.push(&output);
        match result {
            Err(error) => {
                self.lose(LinkError::Auth(error));
                None
            }
            Ok((_, Progress::Open)) => None,
            Ok((_, Progress::Cookie(challenge))) => {
                let attempt = self.attempt;
                self.actions.push(Action::Cookie { attempt, challenge });
                None
            }
            Ok((used, Progress::Agreed(agreed))) => {
                self.authenticated(agreed);
                Some(used)
            }
        }
    }

    /// The cookie that the bus asks for was looked up.
    pub(super) fn cookie(&mut self, attempt: u64, cookie: Option<&Cookie>, random: [u8; 16]) {
        if attempt != self.attempt {
            return;
        }
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        let Stage::Authenticating(auth) = &mut link.stage else {
            return;
        };
        let mut output = Vec::new();
        // Where nobody has asked for it there is nothing to be said.
        if auth.cookie(cookie, random, &mut output).is_ok() {
            link.push(&output);
        }
    }

    fn authenticated(&mut self, agreed: Agreed) {
        let has_bus = self.has_bus();
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        link.fds = agreed.fds;
        if link.expected.is_some() && link.expected != agreed.guid {
            return self.lose(LinkError::OtherBus);
        }
        link.patience = Some(self.now + self.config.patience);
        link.guid = agreed.guid;
        link.same_bus = agreed.guid.is_some() && agreed.guid == self.up_guid;
        self.link += 1;
        if has_bus {
            let serial = link.next_serial(|_| false);
            link.push(&call_driver("Hello", serial, |_| ()));
            link.stage = Stage::Greeting(serial);
            return;
        }
        let same_bus = link.same_bus;
        self.epochs.enter(agreed.guid);
        for (stream, missed) in self.ledger.all_ready() {
            self.ready(stream, missed, same_bus);
        }
        self.up();
    }

    /// The answer to Hello.
    pub(super) fn greeted(&mut self, message: &Message) {
        let is_return = message.message_type() == MessageType::MethodReturn;
        let name = message.body().read_str().ok().filter(|_| is_return);
        let name = name.and_then(|name| UniqueName::new(name).ok().map(|_| Box::<str>::from(name)));
        let Some(name) = name else {
            let text = message.error_name().unwrap_or("something that is no unique name");
            return self.lose(LinkError::Greeting(text.into()));
        };
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        link.stage = Stage::Replaying;
        link.patience = Some(self.now + self.config.patience);
        let bare = link.bare;
        // Not before: whoever goes between its OK and this has not been met.
        let is_known = self.epochs.enter(link.guid);
        let old = self.unique_name.replace(name);
        // While rules about ourselves still have the old name: somebody else's may be our new one.
        if !is_known {
            self.end_epoch(old.as_deref());
        }
        if let (Some(old), Some(new)) = (&old, self.unique_name.as_deref())
            && **old != *new
        {
            self.ledger.rename(old, new);
        }
        if !bare {
            self.replay();
        }
        self.end_of_replay();
    }

    /// The bus is another: unique names from before are nobody's that we know.
    fn end_epoch(&mut self, own: Option<&str>) {
        for stream in self.ledger.end_of_epoch(own) {
            let missed = Missed::Epoch;
            self.actions.push(Action::Missed { stream, missed });
            self.actions.push(Action::StreamEnded(stream));
        }
        let owned = self.names.end_of_epoch();
        if self.was_up && !self.config.settle.is_zero() {
            self.settle.begin(self.now + self.config.settle, owned);
        }
    }

    /// Everything that was to be replayed has its answer.
    pub(super) fn end_of_replay(&mut self) {
        let is_over = self.requests.is_replay_over();
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        if !is_over || !matches!(link.stage, Stage::Replaying) {
            return;
        }
        self.settle.open(self.now + self.config.settle);
        self.up();
    }

    /// The link can be used. What waits goes out after its handler was told.
    fn up(&mut self) {
        let Phase::Linked(link) = &mut self.phase else {
            return;
        };
        link.stage = Stage::Up(self.now);
        link.patience = None;
        self.up_guid = link.guid;
        let same_bus = link.same_bus;
        self.set_state(State::Up);
        if std::mem::replace(&mut self.was_up, true) {
            let failed = std::mem::take(&mut self.requests.failed);
            let event = LinkEvent::Back { same_bus, failed };
            self.actions.push(Action::Link(event));
        }
    }

    pub(super) fn ready(&mut self, stream: super::StreamId, missed: bool, same_bus: bool) {
        if missed {
            let missed = Missed::Outage { same_bus };
            self.actions.push(Action::Missed { stream, missed });
        } else {
            self.actions.push(Action::Ready(stream));
        }
    }
}
