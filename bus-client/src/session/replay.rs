//! What is asked of the bus: when somebody wants something, and all of it again when a bus comes.

use std::time::Duration;

use bus_wire::{ArgCondition, ArgKind, MatchRule, Message, MessageType};

use super::calls::CallStage;
use super::event::{
    Action, CallId, CallOptions, Missed, NameFlags, NameId, NameState, Outcome, Outgoing, Refusal, StreamId,
    WatchId, WhileDown,
};
use super::ledger::{Change, RuleId, followed};
use super::link::Stage;
use super::own_names::Ask;
use super::requests::{Asked, DRIVER, Request, call_driver};
use super::{Phase, Session};

impl Session {
    pub(super) fn subscribe(&mut self, stream: StreamId, rule: MatchRule) {
        if let Some(name) = &rule.sender
            && self.epochs.is_stale(name, None)
        {
            let missed = Missed::Epoch;
            self.actions.push(Action::Missed { stream, missed });
            return self.actions.push(Action::StreamEnded(stream));
        }
        if let Some(name) = followed(&rule).filter(|_| self.has_bus()) {
            self.watch_use(name);
        }
        let (ready, change) = self.ledger.subscribe(stream, rule);
        if !self.has_bus() {
            if self.link_that_is_up().is_some() {
                for (stream, missed) in self.ledger.all_ready() {
                    self.ready(stream, missed, false);
                }
            }
            return;
        }
        if ready {
            self.actions.push(Action::Ready(stream));
        }
        self.ask_about_rule(change);
    }

    pub(super) fn unsubscribe(&mut self, stream: StreamId) {
        if let Some((rule, change)) = self.ledger.unsubscribe(stream) {
            self.ask_about_rule(change);
            if let Some(name) = followed(&rule).filter(|_| self.has_bus()) {
                self.unwatch_use(name);
            }
        }
    }

    fn ask_about_rule(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.push(Request::Rule(change));
        }
    }

    /// Asks the bus, if there is one to be asked. Otherwise the replay will.
    fn push(&mut self, request: Request) {
        if let Phase::Linked(link) = &self.phase
            && matches!(link.stage, Stage::Replaying | Stage::Up(_))
            && self.has_bus()
            && !link.bare
        {
            self.requests.push(request);
        }
    }

    pub(super) fn own_name(&mut self, handle: NameId, name: &str, flags: NameFlags) {
        let (state, ask) = self.own_names.own(handle, name, flags);
        if ask.is_none() {
            self.actions.push(Action::NameState { handle, state });
        }
        if let Some(ask) = ask {
            self.push(Request::Name(ask, name.into()));
        }
    }

    pub(super) fn drop_name(&mut self, handle: NameId) {
        if let Some((name, ask)) = self.own_names.disown(handle) {
            self.push(Request::Name(ask, name));
        }
    }

    pub(super) fn watch(&mut self, watch: WatchId, name: &str) {
        let (is_new, first) = self.names.watch(watch, name, self.epochs.number());
        if let Some(change) = first {
            self.actions.push(Action::OwnerChanged { watch, change });
        }
        if is_new {
            self.follow(name);
        }
    }

    pub(super) fn unwatch(&mut self, watch: WatchId) {
        if let Some(rule) = self.names.unwatch(watch) {
            self.unwant(rule);
        }
    }

    pub(super) fn watch_use(&mut self, name: &str) {
        if self.names.add_use(name) {
            self.follow(name);
        }
    }

    pub(super) fn unwatch_use(&mut self, name: &str) {
        if let Some(rule) = self.names.remove_use(name) {
            self.unwant(rule);
        }
    }

    pub(super) fn unwant(&mut self, rule: RuleId) {
        let change = self.ledger.unwant(rule);
        self.ask_about_rule(change);
    }

    /// The rule first, the question after it: so no change falls between the two.
    fn follow(&mut self, name: &str) {
        let (rule, change) = self.ledger.want(owner_rule(name));
        self.names.set_rule(name, rule);
        self.ask_about_rule(change);
        self.push(Request::Owner(name.into()));
    }

    pub(super) fn wait_for_names(&mut self, call: CallId, names: Vec<Box<str>>, timeout: Option<Duration>) {
        let options = CallOptions {
            expects_reply: true,
            timeout,
            idempotent: true,
            while_down: WhileDown::Wait,
        };
        let nothing = Outgoing {
            bytes: Vec::new(),
            destination: None,
            epoch: None,
            fds: Vec::new(),
        };
        self.calls
            .open(call, nothing, options, CallStage::Names, self.now);
        for name in self.names.wait(call, names) {
            self.follow(&name);
        }
        if self.names.is_over(call) {
            self.end(call, Outcome::Done);
        } else if matches!(self.phase, Phase::Closed) {
            self.fail(call, super::Cause::Closed, super::Fate::NotSent);
        }
    }

    /// Another link: everything is asked for again, rules before names, so that nothing is missed that names bring about; and
    /// owners last, behind the rules that tell how they change.
    pub(super) fn replay(&mut self) {
        let rules = self.ledger.replay().into_iter().map(Request::Rule);
        let names = self.own_names.all().into_iter();
        let names = names.map(|name| Request::Name(Ask::Request, name));
        let owners = self.names.all().into_iter().map(Request::Owner);
        self.requests.replay(rules.chain(names).chain(owners).collect());
    }

    /// Asks the bus as much as it will take at a time.
    pub(super) fn ask(&mut self) {
        loop {
            let Phase::Linked(link) = &mut self.phase else {
                return;
            };
            if !matches!(link.stage, Stage::Replaying | Stage::Up(_)) {
                return;
            }
            let Some(asked) = self.requests.next(self.config.window) else {
                return;
            };
            let serial =
                link.next_serial(|serial| self.calls.has_serial(serial) || self.requests.has_serial(serial));
            let message = match &asked.request {
                Request::Rule(change) => self.ledger.begin(*change).map(|text| {
                    let member = match change {
                        Change::Add(_) => "AddMatch",
                        Change::Remove(_) => "RemoveMatch",
                    };
                    call_driver(member, serial, |body| {
                        body.str(&text);
                    })
                }),
                Request::Name(ask, name) => self.own_names.begin(name, *ask).map(|flags| match ask {
                    Ask::Request => call_driver("RequestName", serial, |body| {
                        body.str(name).u32(flags);
                    }),
                    Ask::Release => call_driver("ReleaseName", serial, |body| {
                        body.str(name);
                    }),
                }),
                Request::Owner(name) => self.names.is_watched(name).then(|| {
                    call_driver("GetNameOwner", serial, |body| {
                        body.str(name);
                    })
                }),
            };
            match message {
                Some(message) => {
                    link.push(&message);
                    self.requests.sent(serial, asked);
                }
                None => self.replayed(asked.in_replay),
            }
        }
    }

    fn replayed(&mut self, in_replay: bool) {
        if !in_replay {
            return;
        }
        self.requests.replayed();
        if let Phase::Linked(link) = &mut self.phase
            && let Some(patience) = &mut link.patience
        {
            *patience = self.now + self.config.patience;
        }
        self.end_of_replay();
    }

    /// The bus has answered a question of the session's.
    pub(super) fn answered(&mut self, asked: Asked, message: &Message) {
        let Asked { request, in_replay } = asked;
        match request {
            Request::Rule(change) => self.answered_rule(change, in_replay, message),
            Request::Name(ask, name) => self.answered_name(ask, &name, in_replay, message),
            Request::Owner(name) => {
                let is_return = message.message_type() == MessageType::MethodReturn;
                let owner = message.body().read_str().ok().filter(|_| is_return);
                if let Some(owner) = owner {
                    self.epochs.note(owner);
                }
                self.learn(&name, owner);
            }
        }
        self.replayed(in_replay);
    }

    fn answered_rule(&mut self, change: Change, in_replay: bool, message: &Message) {
        let (Change::Add(rule) | Change::Remove(rule)) = change;
        let refusal = match (change, message.message_type()) {
            (Change::Add(_), MessageType::Error) => self
                .ledger
                .get(rule)
                .map(|entry| (refusal(&entry.rule.to_text(), message), entry.streams.clone())),
            _ => None,
        };
        let next = self.ledger.done(change, refusal.is_some());
        self.certain(rule);
        if let Some((refusal, streams)) = refusal {
            for stream in streams {
                let missed = Missed::Refused(refusal.clone());
                self.actions.push(Action::Missed { stream, missed });
            }
            if in_replay {
                self.requests.failed.push(refusal);
            }
        }
        self.ask_about_rule(next);
    }

    /// If it is known whose signals a rule is about, its streams miss none from now on.
    fn certain(&mut self, rule: RuleId) {
        let sender = self.ledger.get(rule).map(|entry| followed(&entry.rule));
        if sender
            .flatten()
            .is_some_and(|sender| !self.names.is_known(sender))
        {
            return;
        }
        let same_bus = matches!(&self.phase, Phase::Linked(link) if link.same_bus);
        for (stream, missed) in self.ledger.certain(rule) {
            self.ready(stream, missed, same_bus);
        }
    }

    fn answered_name(&mut self, ask: Ask, name: &str, in_replay: bool, message: &Message) {
        let state = match (ask, message.message_type()) {
            (Ask::Release, _) => NameState::Pending,
            (Ask::Request, MessageType::MethodReturn) => match message.body().read_u32() {
                Ok(1 | 4) => NameState::Owned,
                Ok(2) => NameState::Queued,
                _ => NameState::Taken,
            },
            (Ask::Request, _) => NameState::Refused(refusal(name, message)),
        };
        if in_replay && let NameState::Refused(refusal) = &state {
            self.requests.failed.push(refusal.clone());
        }
        let (handles, state, next) = self.own_names.done(name, ask, state);
        self.tell_names(handles, &state);
        if let Some(ask) = next {
            self.push(Request::Name(ask, name.into()));
        }
    }

    pub(super) fn tell_names(&mut self, handles: Vec<NameId>, state: &NameState) {
        for handle in handles {
            let state = state.clone();
            self.actions.push(Action::NameState { handle, state });
        }
    }

    pub(super) fn learn(&mut self, name: &str, owner: Option<&str>) {
        let was_known = self.names.is_known(name);
        let news = self.names.learn(name, owner, self.epochs.number());
        for (watch, change) in news.changes {
            self.actions.push(Action::OwnerChanged { watch, change });
        }
        for call in news.ended {
            self.end(call, Outcome::Done);
        }
        if !was_known {
            for rule in self.ledger.from(name) {
                self.certain(rule);
            }
        }
        if owner.is_some() {
            self.settled(name);
        }
    }
}

/// The changes of a name's owner (specification, "org.freedesktop.DBus.NameOwnerChanged").
fn owner_rule(name: &str) -> MatchRule {
    let mut rule = MatchRule::default();
    rule.message_type = Some(MessageType::Signal);
    rule.sender = Some(DRIVER.into());
    rule.interface = Some(DRIVER.into());
    rule.member = Some("NameOwnerChanged".into());
    rule.args = vec![ArgCondition {
        index: 0,
        kind: ArgKind::Equals,
        value: name.into(),
    }];
    rule
}

fn refusal(what: &str, message: &Message) -> Refusal {
    let text = match message.signature().starts_with('s') {
        true => message.body().read_str().unwrap_or_default(),
        false => "",
    };
    Refusal {
        what: what.into(),
        name: message.error_name().unwrap_or_default().into(),
        text: text.into(),
    }
}
