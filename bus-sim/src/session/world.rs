//! What happens in a run.

mod choices;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus_client::session::{
    Action, CallId, CallOptions, Command, Config, Event, LinkError, NameFlags, NameId, Outgoing, Session,
    State, StreamId, WatchId, WhileDown,
};
use bus_wire::{Fd, Flags, MatchRule, MessageBuilder};
use bytes::Bytes;

use super::bus::{Bus, Happened, Manners, NAMES, SERVICES, TOPICS};
use super::checker::Checker;
use super::{SessionOptions, SessionStats};
use crate::random::Random;

type Check = Result<(), String>;

const SETTLE: Duration = Duration::from_secs(5);

pub(super) struct World {
    random: Random,
    options: SessionOptions,
    step: u32,
    now: Duration,
    session: Session,
    checker: Checker,
    bus: Option<Bus>,
    /// The GUID of the last bus.
    guid: u8,
    ticks: BTreeMap<&'static str, u64>,
    /// In the client's socket: bytes, and where descriptors go.
    to_bus: Vec<u8>,
    dialing: Option<(u64, Duration)>,
    is_connected: bool,
    next: u64,
    watches: BTreeMap<u64, String>,
    names: BTreeMap<u64, &'static str>,
    /// When the session came up first on the bus that there is.
    up_at: Option<Duration>,
    /// In which epoch that was.
    up_epoch: u64,
    /// Services that have answered this client: in the last epoch, and in this.
    answered_before: BTreeSet<String>,
    answered: BTreeSet<String>,
    is_closed: bool,
}

impl World {
    pub(super) fn new(seed: u64, options: SessionOptions) -> Self {
        let config = Config {
            uid: Some(0),
            seed,
            waits_for_bus: true,
            settle: if options.settles { SETTLE } else { Duration::ZERO },
            in_link: if seed.is_multiple_of(3) { 300 } else { 1 << 20 },
            held: 50,
            held_bytes: 8000,
            window: 4,
            ..Config::default()
        };
        Self {
            random: Random::new(seed),
            options,
            step: 0,
            now: Duration::ZERO,
            session: Session::new(config),
            checker: Checker::default(),
            bus: None,
            guid: 0,
            ticks: BTreeMap::new(),
            to_bus: Vec::new(),
            dialing: None,
            is_connected: false,
            next: 0,
            watches: BTreeMap::new(),
            names: BTreeMap::new(),
            up_at: None,
            up_epoch: 0,
            answered_before: BTreeSet::new(),
            answered: BTreeSet::new(),
            is_closed: false,
        }
    }

    pub(super) fn step(&self) -> u32 {
        self.step
    }

    pub(super) fn run(&mut self) -> Result<SessionStats, String> {
        self.start_bus(self.options.lies, self.options.refuses);
        self.tell(Event::Start)?;
        for step in 0..self.options.steps {
            self.step = step;
            self.one_step()?;
        }
        self.heal()?;
        if self.options.lies == 0 {
            self.check_healed()?;
        }
        self.leave()?;
        Ok(self.checker.stats)
    }

    fn start_bus(&mut self, lies: u32, refuses: u32) {
        if self.bus.is_some() {
            return;
        }
        self.guid = self.guid.wrapping_add(1).max(1);
        let present: Vec<&'static str> = SERVICES.into_iter().filter(|_| self.random.percent(30)).collect();
        let mut bus = Bus::new(self.guid, Manners { refuses, lies }, &present);
        bus.ticks = self.ticks.clone();
        self.bus = Some(bus);
        self.answered_before = std::mem::take(&mut self.answered);
    }

    fn one_step(&mut self) -> Check {
        if self.bus.is_none() && self.random.percent(10) {
            self.start_bus(self.options.lies, self.options.refuses);
        }
        if !self.is_connected && self.random.percent(30) {
            return self.pass_time();
        }
        let chance = self.random.below(1000) as u32;
        if chance < self.options.deaths {
            return self.die();
        }
        if chance < self.options.deaths + self.options.cuts {
            return self.cut();
        }
        match self.random.below(24) {
            0..=2 => self.make_call(),
            3 => self.change_wishes(),
            4 => self.change_bus(),
            5 => self.pass_time(),
            6..=10 => self.client_writes(),
            11..=15 => self.bus_reads(),
            16 | 17 => self.services_run(),
            _ => self.client_reads(),
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn pass_time(&mut self) -> Check {
        let wait = match self.random.below(3) {
            0 => Duration::from_millis(self.random.below(20)),
            1 => Duration::from_millis(self.random.below(2000)),
            _ => self
                .session
                .deadline()
                .unwrap_or_default()
                .saturating_sub(self.now)
                .min(Duration::from_secs(40)),
        };
        self.advance(wait)
    }

    fn advance(&mut self, wait: Duration) -> Check {
        let until = self.now + wait;
        let mut rounds = 0;
        loop {
            let dial = self.dialing.map(|(_, at)| at);
            let next = [self.session.deadline(), dial].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else {
                break;
            };
            if next > self.now {
                rounds = 0;
            }
            rounds += 1;
            if rounds > 20 {
                return Err(format!(
                    "the session asks for the time over and over: {:?}",
                    self.session
                ));
            }
            self.now = self.now.max(next);
            if let Some((attempt, at)) = self.dialing
                && at <= self.now
            {
                self.dialing = None;
                self.dialled(attempt)?;
            }
            if self
                .session
                .deadline()
                .is_some_and(|deadline| deadline <= self.now)
            {
                self.tell(Event::Time)?;
            }
        }
        self.now = until;
        Ok(())
    }

    fn dialled(&mut self, attempt: u64) -> Check {
        match &mut self.bus {
            Some(bus) => {
                bus.accept();
                self.is_connected = true;
                let (fds, guid) = (true, None);
                self.tell(Event::Connected { attempt, fds, guid })
            }
            None => {
                let error = LinkError::Ended;
                self.tell(Event::DialFailed { attempt, error })
            }
        }
    }

    /// The client's socket takes some bytes.
    fn client_writes(&mut self) -> Check {
        if !self.is_connected || !self.session.wants_write() {
            return Ok(());
        }
        let mut slices = Vec::new();
        self.session.next_write(&mut slices, 16);
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let count = self.cut_length(all.len());
        self.to_bus.extend_from_slice(&all[..count]);
        let bytes = count as u64;
        self.count_bytes(bytes)?;
        if self.is_connected {
            self.tell(Event::Sent { bytes })?;
        }
        Ok(())
    }

    /// Mostly all of it, and any number of bytes otherwise; at least one.
    fn cut_length(&mut self, all: usize) -> usize {
        if self.random.percent(60) {
            all
        } else {
            1 + self.random.index(all.max(1))
        }
    }

    fn count_bytes(&mut self, bytes: u64) -> Check {
        let before = self.checker.stats.bytes;
        self.checker.stats.bytes += bytes;
        match self.options.death_at {
            Some(at) if at >= before && at < before + bytes => self.die(),
            _ => Ok(()),
        }
    }

    fn bus_reads(&mut self) -> Check {
        if self.to_bus.is_empty() {
            return Ok(());
        }
        let count = self.cut_length(self.to_bus.len());
        let bytes: Vec<u8> = self.to_bus.drain(..count).collect();
        let Some(bus) = &mut self.bus else { return Ok(()) };
        // More descriptors than a message claims are no matter here: the bus's end is only a model.
        let fds = (0..8).map(|_| Fd(-1)).collect();
        let happened = bus.read(&bytes, fds, &mut self.random);
        for what in happened {
            self.happened(what)?;
        }
        Ok(())
    }

    fn services_run(&mut self) -> Check {
        let most = self.random.index(5) + 1;
        let Some(bus) = &mut self.bus else { return Ok(()) };
        let happened = bus.run(most);
        happened.into_iter().try_for_each(|what| self.happened(what))
    }

    fn happened(&mut self, what: Happened) -> Check {
        let lies = self.options.lies > 0;
        match what {
            Happened::Ran { call, service } => self.checker.ran(call, service, lies),
            Happened::ForUnique { call, name } if !lies => {
                let learnt = self.checker.calls.get(&call).and_then(|call| call.learnt);
                match learnt {
                    Some(learnt) if learnt != self.session.epoch() => Err(format!(
                        "call {call} to {name} of epoch {learnt} reached a stranger"
                    )),
                    _ => Ok(()),
                }
            }
            Happened::Activated { name } if !lies && self.options.settles => {
                let settling = self
                    .up_at
                    .is_some_and(|up| Bus::is_settling(up, self.now, SETTLE));
                // Once it was back it may go again.
                let expected = self.answered_before.contains(&name) && !self.answered.contains(&name);
                match settling && expected && !self.was_back(&name) {
                    true => Err(format!("{name} is activated, though it is expected back")),
                    false => Ok(()),
                }
            }
            Happened::Activated { .. } | Happened::ForUnique { .. } => Ok(()),
            Happened::Invalid(what) => Err(format!("the client is wrong: {what}")),
        }
    }

    /// Whether the service has been there on this bus: then it went by itself.
    fn was_back(&self, name: &str) -> bool {
        self.bus.as_ref().is_some_and(|bus| bus.was_there(name))
    }

    fn client_reads(&mut self) -> Check {
        let Some(link) = self.bus.as_mut().and_then(|bus| bus.link.as_mut()) else {
            return Ok(());
        };
        if link.output.is_empty() || !self.is_connected {
            return Ok(());
        }
        let all = link.output.len();
        let count = self.cut_length(all);
        let Some(link) = self.bus.as_mut().and_then(|bus| bus.link.as_mut()) else {
            return Ok(());
        };
        let bytes: Bytes = link.output.drain(..count).collect::<Vec<u8>>().into();
        let mut fds = Vec::new();
        if self.options.lies > 0 && self.random.percent(10) {
            // Descriptors that nobody claims.
            fds = (0..self.random.below(200))
                .map(|_| Fd(self.next_id() as i32))
                .collect();
            self.checker.fds.extend(fds.iter().map(|fd| fd.0));
        }
        self.tell(Event::Received { bytes, fds })?;
        self.count_bytes(count as u64)
    }

    fn tell(&mut self, event: Event) -> Check {
        let mut actions = Vec::new();
        self.session.handle(self.now, event, &mut actions);
        for action in actions {
            self.act(action)?;
        }
        let census = self.session.census();
        if census.held > 50 || census.held_bytes > 8000 {
            return Err(format!("more waits than may: {census:?}"));
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Check {
        let lies = self.options.lies > 0;
        match action {
            Action::Dial { attempt } => {
                let wait = Duration::from_millis(self.random.below(30));
                self.dialing = Some((attempt, self.now + wait));
            }
            Action::HangUp => {
                self.checker.lost();
                self.is_connected = false;
                self.to_bus.clear();
                if let Some(bus) = &mut self.bus {
                    bus.link = None;
                }
            }
            Action::Ended { call, outcome } => {
                if let bus_client::session::Outcome::Reply { message, fds } = &outcome {
                    if message.error_name().is_none()
                        && let Some(call) = self.checker.calls.get(&call.0)
                        && !call.destination.starts_with(':')
                    {
                        self.answered.insert(call.destination.clone());
                    }
                    self.checker.fds_closed(fds.iter().map(|fd| fd.0))?;
                }
                if !lies {
                    self.checker.ended(call.0, &outcome, self.now)?;
                } else {
                    self.checker.ended_somehow(call.0, self.now)?;
                }
            }
            Action::Signal {
                streams,
                message,
                fds,
                ..
            } => {
                self.checker.fds_closed(fds.iter().map(|fd| fd.0))?;
                let number = message.body().read_u64().unwrap_or_default();
                for stream in streams {
                    self.checker.signal(stream.0, number, lies)?;
                }
            }
            Action::Ready(stream) => self.checker.ready(stream.0)?,
            Action::Missed { stream, missed } => self.checker.missed(stream.0, &missed)?,
            Action::OwnerChanged { watch, change } => self.checker.owner_changed(watch.0, &change)?,
            Action::Incoming { fds, .. } => self.checker.fds_closed(fds.iter().map(|fd| fd.0))?,
            Action::CloseFds(fds) => self.checker.fds_closed(fds.iter().map(|fd| fd.0))?,
            Action::State(State::Up) => {
                if self.session.epoch() != self.up_epoch {
                    self.up_at = Some(self.now);
                    self.up_epoch = self.session.epoch();
                }
                self.checker.stats.links += 1;
            }
            Action::Closed(_) => self.is_closed = true,
            // No session here has cookies.
            Action::Cookie { .. }
            | Action::State(_)
            | Action::StreamEnded(_)
            | Action::NameState { .. }
            | Action::Link(_) => {}
        }
        Ok(())
    }

    /// An honest bus comes, with all services, and stays.
    fn heal(&mut self) -> Check {
        self.options.death_at = None;
        if self.bus.is_some() {
            self.die()?;
        }
        self.start_bus(0, 0);
        self.drain(60)?;
        for service in SERVICES {
            if let Some(bus) = &mut self.bus {
                bus.come(service);
            }
        }
        self.drain(120)?;
        for topic in 0..TOPICS.len() {
            if let Some(bus) = &mut self.bus {
                bus.tick(topic);
            }
        }
        self.drain(5)
    }

    /// Everything that is on its way arrives.
    fn drain(&mut self, half_seconds: u32) -> Check {
        for _ in 0..half_seconds {
            self.step += 1;
            self.advance(Duration::from_millis(500))?;
            for _ in 0..200 {
                let before = self.checker.stats.bytes;
                self.client_writes()?;
                while !self.to_bus.is_empty() {
                    self.bus_reads()?;
                }
                self.services_run()?;
                self.client_reads()?;
                if self.checker.stats.bytes == before && !self.session.wants_write() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn check_healed(&mut self) -> Check {
        if self.session.state() != State::Up {
            return Err(format!(
                "the bus is back and the session is not up: {:?}",
                self.session
            ));
        }
        self.checker.all_ended()?;
        let Some(bus) = &self.bus else { return Ok(()) };
        self.checker.up_to_date(&bus.ticks)?;
        let Some(link) = &bus.link else {
            return Err("the session is up and has no link".to_owned());
        };
        let names: BTreeSet<&str> = link.names.iter().map(String::as_str).collect();
        let wanted: BTreeSet<&str> = self.names.values().copied().collect();
        if names != wanted || names.len() != link.names.len() {
            return Err(format!(
                "the bus has the names {:?}, wanted are {wanted:?}",
                link.names
            ));
        }
        for (watch, name) in &self.watches {
            let owner = self.checker.owners.get(watch).cloned().flatten();
            if owner != bus.owner(name) {
                return Err(format!(
                    "watch {watch} of {name} has {owner:?}, not {:?}",
                    bus.owner(name)
                ));
            }
        }
        let mut rules: BTreeMap<String, u32> = BTreeMap::new();
        for stream in self.checker.streams.values().filter(|stream| !stream.has_ended) {
            let plain = link.rules.keys().any(|rule| rule.contains(TOPICS[stream.topic]));
            if !plain {
                return Err(format!(
                    "the rule of {stream:?} is not on the bus: {:?}",
                    link.rules
                ));
            }
            rules.insert(TOPICS[stream.topic].to_owned(), 1);
        }
        match link.rules.values().all(|count| *count == 1) {
            true => Ok(()),
            false => Err(format!("a rule is on the bus twice: {:?}", link.rules)),
        }
    }

    /// Everything is dropped, and nothing stays.
    fn leave(&mut self) -> Check {
        for stream in std::mem::take(&mut self.checker.streams).into_keys() {
            self.tell(Event::Command(Command::Unsubscribe(StreamId(stream))))?;
        }
        for name in std::mem::take(&mut self.names).into_keys() {
            self.tell(Event::Command(Command::DropName(NameId(name))))?;
        }
        for watch in std::mem::take(&mut self.watches).into_keys() {
            self.tell(Event::Command(Command::Unwatch(WatchId(watch))))?;
        }
        self.drain(80)?;
        let census = self.session.census();
        if self.options.lies == 0 {
            let link = self.bus.as_ref().and_then(|bus| bus.link.as_ref());
            if link.is_none_or(|link| !link.rules.is_empty() || !link.names.is_empty()) {
                return Err(format!("nothing is wanted, and the bus has {link:?}"));
            }
        }
        let left = [
            census.calls,
            census.rules,
            census.streams,
            census.watched,
            census.own_names,
            census.requests,
        ];
        if left.iter().any(|count| *count > 0) {
            return Err(format!(
                "nothing is wanted, and the session has {census:?}: {:?}",
                self.session
            ));
        }
        self.tell(Event::Command(Command::Close))?;
        if !self.is_closed {
            return Err("the session is not closed".to_owned());
        }
        match self.checker.fds.is_empty() {
            true => Ok(()),
            false => Err(format!("descriptors were not closed: {:?}", self.checker.fds)),
        }
    }
}

pub(super) fn wake_ups(seed: u64, seconds: u64, streams: u64, callers: u64) -> u64 {
    let mut session = Session::new(Config {
        uid: Some(0),
        seed,
        waits_for_bus: true,
        ..Config::default()
    });
    let mut now = Duration::ZERO;
    let mut actions = Vec::new();
    session.handle(now, Event::Start, &mut actions);
    for stream in 0..streams {
        let rule = MatchRule::default();
        let stream = StreamId(stream);
        let rule = Box::new(rule);
        session.handle(
            now,
            Event::Command(Command::Subscribe { stream, rule }),
            &mut actions,
        );
    }
    for caller in 0..callers {
        let call = CallId(caller);
        let message = Outgoing {
            bytes: vec![0; 64],
            destination: None,
            epoch: None,
            fds: Vec::new(),
        };
        let options = CallOptions {
            expects_reply: true,
            timeout: None,
            idempotent: false,
            while_down: WhileDown::Wait,
        };
        session.handle(
            now,
            Event::Command(Command::Send {
                call,
                message,
                options,
            }),
            &mut actions,
        );
    }
    let mut woken = 0;
    while now < Duration::from_secs(seconds) {
        let dials: Vec<u64> = actions
            .drain(..)
            .filter_map(|action| {
                if let Action::Dial { attempt } = action {
                    return Some(attempt);
                }
                None
            })
            .collect();
        for attempt in dials {
            let error = LinkError::Ended;
            session.handle(now, Event::DialFailed { attempt, error }, &mut actions);
        }
        if actions.iter().any(|action| matches!(action, Action::Dial { .. })) {
            continue;
        }
        let Some(deadline) = session.deadline() else { break };
        now = now.max(deadline);
        woken += 1;
        session.handle(now, Event::Time, &mut actions);
    }
    woken
}
