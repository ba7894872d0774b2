//! The run itself.

use super::attacker::Attacker;
use super::machine::Machine;
use super::stream::{SavedStream, Stream};
use super::wire::Wire;
use super::{Failure, Options, Sabotage, Stats};
use crate::random::Random;
use bus_tcp::frame::Reason;
use bus_tcp::host::{Host, HostAction, HostConfig};
use bus_tcp::limits::{Budget, Terms};
use bus_tcp::resume::{Secret, SessionId};
use bus_tcp::saved::{Kind, decode, encode};
use bus_tcp::session::{Action, CarrierId, Grant, Session, Wish};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const TERMS: Terms = Terms {
    heartbeat: Duration::from_millis(500),
    dead_after: Duration::from_millis(1500),
    window: Duration::from_millis(6000),
    credit: 64 * 1024,
};
/// What an end says at most ahead of what the other has.
const BACKLOG: usize = 200_000;
/// How long a network that is good again may need, in microseconds.
const PATIENCE: u64 = 120_000_000;
/// How long a link that lives a while at a time does not, in milliseconds.
const DOWN: u64 = 700;
const GREETINGS: usize = 40;

pub(super) struct World {
    seed: u64,
    options: Options,
    random: Random,
    stats: Stats,
    trace: VecDeque<String>,
    now: u64,
    link_up: bool,
    good: bool,
    wires: BTreeMap<CarrierId, Wire>,
    next_wire: u64,
    near: Near,
    far: Far,
    attacker: Attacker,
}

/// The client's machine.
struct Near {
    machine: Machine,
    session: Session,
    stream: Stream,
    salt: u64,
    journal: (Vec<u8>, SavedStream),
    /// When a connection that cannot come about is given up.
    fails_at: Option<u64>,
    finishing: bool,
    /// The host has given the session up while the client slept: what its clock has to say when it wakes.
    must_be_fenced: bool,
}

/// The host's machine.
struct Far {
    machine: Machine,
    host: Host,
    streams: BTreeMap<SessionId, Stream>,
    journal: (Vec<u8>, BTreeMap<SessionId, SavedStream>),
    next_session: u64,
    /// Of sessions that are over: bytes that were taken for good.
    finals: BTreeMap<SessionId, u64>,
}

type Checked = Result<(), String>;

fn host_config() -> HostConfig {
    let mut config = HostConfig::new(1);
    config.bounds.credit = TERMS.credit;
    config.greetings = GREETINGS;
    config
}

impl World {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let (near_machine, far_machine) = (Machine::new(&mut random), Machine::new(&mut random));
        let session = Session::client(
            near_machine.clock(0),
            Wish {
                terms: TERMS,
                incarnation: 0,
            },
            random.next(),
        );
        let stream = Stream::new(0, 1);
        let host = Host::new(host_config(), random.next());
        let mut world = Self {
            near: Near {
                machine: near_machine,
                journal: (Vec::new(), stream.save()),
                session,
                stream,
                salt: 0,
                fails_at: None,
                finishing: false,
                must_be_fenced: false,
            },
            far: Far {
                machine: far_machine,
                host,
                streams: BTreeMap::new(),
                journal: (Vec::new(), BTreeMap::new()),
                next_session: 0,
                finals: BTreeMap::new(),
            },
            seed,
            options,
            random,
            stats: Stats::default(),
            trace: VecDeque::new(),
            now: 0,
            link_up: true,
            good: false,
            wires: BTreeMap::new(),
            next_wire: 0,
            attacker: Attacker::default(),
        };
        world.journal_near();
        world.journal_far();
        world
    }

    pub(super) fn run(mut self) -> Result<Stats, Failure> {
        let done = self.bad_times().and_then(|()| self.good_times());
        match done {
            Ok(()) => Ok(self.stats),
            Err(what) => Err(Failure {
                seed: self.seed,
                time: self.now / 1000,
                what,
                trace: self.trace.make_contiguous().join("\n"),
            }),
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == 60 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>9} us  {}", self.now, what()));
    }

    fn bad_times(&mut self) -> Checked {
        for _ in 0..self.options.steps {
            self.pass_time(40_000);
            self.happen()?;
            self.step()?;
        }
        Ok(())
    }

    /// From here on nothing goes wrong any more, and all has to end well.
    fn good_times(&mut self) -> Checked {
        self.good = true;
        self.link_up = true;
        self.options = Options {
            cuts: 0,
            outages: 0,
            sleeps: 0,
            deaths: 0,
            attacks: 0,
            lives: None,
            ..self.options
        };
        self.note(|| "all is well from here on".into());
        let deadline = self.now + PATIENCE;
        while !self.near.session.ending().is_some_and(|ending| ending.clean()) {
            if self.now > deadline {
                return Err(format!(
                    "the network is good, and yet: client {:?}, {:?} received and committed, {:?} acked, sent and produced, \
                     host {:?}",
                    self.near.session.parked(),
                    self.near.session.received_and_committed(),
                    self.near.session.acked_sent_and_produced(),
                    self.near.session.id().and_then(|id| self.far.host.session(id)),
                ));
            }
            self.pass_time(20_000);
            if self.near.session.is_live() && !self.near.finishing {
                self.near.finishing = true;
                self.near.stream.say(1000);
                self.journal_near();
                self.near.session.finish();
            }
            self.step()?;
        }
        Ok(())
    }

    fn pass_time(&mut self, most: u64) {
        self.now += match self.random.below(20) {
            0 => 0,
            _ if self.options.lives.is_some() => self.random.below(10_000),
            1 if !self.good => self.random.below(900_000),
            _ => self.random.below(most),
        };
    }

    /// Something goes wrong, or somebody has something to say.
    fn happen(&mut self) -> Checked {
        let options = self.options;
        if let Some(lives) = options.lives {
            self.link_up = self.now / 1000 % (lives + DOWN) < lives;
            if !self.link_up {
                self.cut_all();
            }
        }
        if self.random.permille(options.cuts) {
            self.cut();
        }
        if self.random.permille(options.outages) {
            self.link_up = !self.link_up;
            let up = self.link_up;
            self.note(|| format!("link up: {up}"));
            if !up {
                for wire in self.wires.values_mut() {
                    (wire.to_host.silent, wire.to_client.silent) = (true, true);
                }
            }
        }
        if self.random.permille(options.sleeps) {
            self.sleep();
        }
        if self.random.permille(options.deaths) {
            self.near_dies()?;
        }
        if self.random.permille(options.deaths) {
            self.far_dies()?;
        }
        if self.random.permille(options.attacks) {
            self.attack();
        }
        self.say();
        Ok(())
    }

    fn say(&mut self) {
        let some = |random: &mut Random| match random.below(4) {
            0 => random.below(40_000),
            1 => random.below(20),
            _ => 0,
        };
        let count = some(&mut self.random);
        if !self.near.finishing
            && self.near.machine.awake(self.now)
            && self.near.stream.replay.len() < BACKLOG
        {
            self.near.stream.say(count);
        }
        let count = some(&mut self.random);
        if let Some(stream) = self
            .near
            .session
            .id()
            .and_then(|id| self.far.streams.get_mut(&id))
            && self.far.machine.awake(self.now)
            && stream.replay.len() < BACKLOG
        {
            stream.say(count);
        }
    }

    fn cut(&mut self) {
        let ids: Vec<_> = self.wires.keys().copied().collect();
        let Some(id) = self.random.pick(&ids).copied() else {
            return;
        };
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let how = self.random.below(4);
        match how {
            // Both are told, at different times, perhaps long after: the bytes that fly are lost from any one on.
            0 | 1 => {
                for way in [&mut wire.to_host, &mut wire.to_client] {
                    let keep = self.random.index(way.flying() + 1);
                    let told = if self.random.percent(20) {
                        20_000_000
                    } else {
                        30_000
                    };
                    way.cut(keep, self.now + self.random.below(told));
                }
            }
            2 => wire.to_host.silent = true,
            _ => wire.to_client.silent = true,
        }
        self.note(|| format!("carrier {} is cut ({how})", id.0));
    }

    fn cut_all(&mut self) {
        for wire in self.wires.values_mut().filter(|wire| wire.accept_at.is_none()) {
            for way in [&mut wire.to_host, &mut wire.to_client] {
                if way.has_room() {
                    let keep = self.random.index(way.flying() + 1);
                    way.cut(keep, self.now);
                }
            }
        }
    }

    fn sleep(&mut self) {
        let long = self.random.below(12_000_000);
        let near = self.random.percent(50);
        let machine = if near {
            &mut self.near.machine
        } else {
            &mut self.far.machine
        };
        if !machine.awake(self.now) {
            return;
        }
        machine.sleep(self.now + long);
        if near && self.options.sabotage == Some(Sabotage::ClockStops) {
            machine.miss(long.min(self.now));
        }
        self.stats.sleeps += 1;
        self.note(|| {
            format!(
                "{} sleeps for {} ms",
                if near { "client" } else { "host" },
                long / 1000
            )
        });
    }

    /// Only what was journalled is left.
    fn near_dies(&mut self) -> Checked {
        if self.near.finishing {
            return Ok(());
        }
        self.stats.deaths += 1;
        self.note(|| "the client dies".into());
        let broken: Vec<_> = self
            .wires
            .values()
            .filter(|wire| wire.who == CLIENT)
            .map(|wire| wire.id)
            .collect();
        for id in broken {
            self.client_closes(id);
        }
        self.near.machine.restart(&mut self.random);
        let (session, stream) = &self.near.journal;
        let saved = decode(Kind::Session, session).map_err(|error| error.to_string())?;
        let now = self.near.machine.clock(self.now);
        self.near.session =
            Session::restore(&saved, now, self.random.next()).map_err(|error| error.to_string())?;
        self.near.stream = Stream::restore(stream);
        self.near.fails_at = None;
        Ok(())
    }

    fn far_dies(&mut self) -> Checked {
        self.stats.deaths += 1;
        self.note(|| "the host dies".into());
        let ids: Vec<_> = self.wires.keys().copied().collect();
        for id in ids {
            self.host_closes(id);
        }
        self.far.machine.restart(&mut self.random);
        let (host, streams) = &self.far.journal;
        let saved = decode(Kind::Host, host).map_err(|error| error.to_string())?;
        let now = self.far.machine.clock(self.now);
        self.far.host = Host::restore(&saved, host_config(), now, self.random.next())
            .map_err(|error| error.to_string())?;
        self.far.streams = streams
            .iter()
            .map(|(id, saved)| (*id, Stream::restore(saved)))
            .collect();
        Ok(())
    }

    fn attack(&mut self) {
        self.stats.attacks += 1;
        let speech = self.attacker.speech(self.near.session.id(), &mut self.random);
        self.next_wire += 1;
        // On a carrier without TLS it is whoever it wants to be; with TLS it has a key of its own.
        let mut wire = Wire::new(self.next_wire, self.now, MALLORY, &mut self.random);
        if !wire.tls && self.random.percent(50) {
            wire.who = MASK;
        }
        wire.attach_at = None;
        wire.to_client.done = true;
        wire.to_host.send(self.now + 2 * wire.latency(), speech);
        let close = self.now + self.random.below(20_000_000);
        wire.to_host.close(close);
        self.wires.insert(wire.id, wire);
    }

    /// Everybody does what there is to do.
    fn step(&mut self) -> Checked {
        let (near_awake, far_awake) = (
            self.near.machine.awake(self.now),
            self.far.machine.awake(self.now),
        );
        if near_awake {
            self.wake_near()?;
        }
        let mut ids: Vec<_> = self.wires.keys().copied().collect();
        let turn = self.random.index(ids.len());
        if !ids.is_empty() {
            ids.rotate_left(turn);
        }
        for id in ids {
            if far_awake {
                self.arrive_at_host(id)?;
            }
            if near_awake {
                self.arrive_at_client(id)?;
            }
        }
        if far_awake {
            let now = self.far.machine.clock(self.now);
            if self.far.host.deadline().is_some_and(|at| at <= now) {
                self.far.host.tick(now);
            }
            self.drain_far()?;
            if self.good || self.random.percent(40) {
                self.journal_far();
            }
        }
        if near_awake {
            let now = self.near.machine.clock(self.now);
            if self.near.session.deadline().is_some_and(|at| at <= now) {
                self.near.session.tick(now);
            }
            if self.near.fails_at.is_some_and(|at| at <= self.now) {
                self.near.fails_at = None;
                self.near.session.connect_failed(now);
            }
            self.drain_near()?;
            if self.good || self.random.percent(40) {
                self.journal_near();
            }
        }
        self.transmit(near_awake, far_awake)?;
        self.wires.retain(|_, wire| !wire.over());
        self.check_bounds()
    }

    fn wake_near(&mut self) -> Checked {
        if self.near.must_be_fenced {
            let now = self.near.machine.clock(self.now);
            if !self.near.session.is_fenced(now) {
                return Err("the client wakes and relies on a session that the host has given up".into());
            }
            self.near.must_be_fenced = false;
        }
        Ok(())
    }

    fn arrive_at_host(&mut self, id: CarrierId) -> Checked {
        let now = self.far.machine.clock(self.now);
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.accept_at.is_some_and(|at| at <= self.now) {
            wire.accept_at = None;
            let who = if wire.who == MALLORY { MALLORY } else { CLIENT };
            if wire.tls {
                self.far.host.accepted(now, id, who.into(), wire.binding());
            } else {
                self.far.host.accepted_plain(now, id, who.into(), wire.nonce());
            }
        }
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.accept_at.is_some() || wire.to_host.done {
            return Ok(());
        }
        if let Some(bytes) = wire.to_host.arrived(self.now, &mut self.random) {
            let current = self
                .near
                .session
                .id()
                .and_then(|id| self.far.host.session(id)?.carrier());
            if wire.who == CLIENT && current.is_some_and(|current| current > id) {
                self.stats.late += bytes.len() as u64;
            }
            self.far.host.received(now, id, bytes);
            self.drain_far()?;
        } else if wire.to_host.ended(self.now) {
            wire.to_host.done = true;
            wire.to_client.close(self.now + wire.latency());
            self.far.host.carrier_lost(now, id);
            self.drain_far()?;
        }
        Ok(())
    }

    fn arrive_at_client(&mut self, id: CarrierId) -> Checked {
        let now = self.near.machine.clock(self.now);
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.who != CLIENT {
            return Ok(());
        }
        if wire.attach_at.is_some_and(|at| at <= self.now) {
            wire.attach_at = None;
            let binding = wire.tls.then(|| wire.binding());
            self.near.session.attach(now, id, binding);
            self.drain_near()?;
        }
        let Some(wire) = self.wires.get_mut(&id) else {
            return Ok(());
        };
        if wire.attach_at.is_some() || wire.to_client.done {
            return Ok(());
        }
        if let Some(bytes) = wire.to_client.arrived(self.now, &mut self.random) {
            if self.options.sabotage == Some(Sabotage::DeliversTwice) && self.random.percent(1) {
                self.near.session.received(now, id, bytes.clone());
            }
            self.near.session.received(now, id, bytes);
            self.drain_near()?;
        } else if wire.to_client.ended(self.now) {
            wire.to_client.done = true;
            self.near.session.carrier_lost(now, id);
            self.drain_near()?;
            self.client_closes(id);
        }
        Ok(())
    }

    fn drain_near(&mut self) -> Checked {
        while let Some(action) = self.near.session.action() {
            match action {
                Action::Connect { .. } => self.connect(),
                Action::Deliver { offset, bytes } => {
                    self.stats.bytes += bytes.len() as u64;
                    self.near
                        .stream
                        .take(offset, &bytes)
                        .map_err(|what| format!("at the client: {what}"))?;
                }
                Action::Acked { upto } => self.near.stream.replay.forget(upto),
                Action::Close { carrier, .. } => self.client_closes(carrier),
                Action::Opened => {
                    self.stats.sessions += 1;
                    self.note(|| "the client has a session".into());
                    self.journal_near();
                }
                Action::Parked { .. } => self.note(|| "the client is parked".into()),
                Action::Resumed { again, fenced } => {
                    self.stats.resumptions += 1;
                    self.stats.again += again;
                    self.stats.fenced += u64::from(fenced);
                    self.note(|| format!("the client is resumed, {again} bytes again"));
                }
                Action::Fenced => self.note(|| "the client is fenced".into()),
                Action::Finished { offset } => {
                    if offset != self.near.stream.taken {
                        return Err("the client hears of an end before the last byte".into());
                    }
                }
                Action::Ended(ending) => self.near_ended(&ending)?,
            }
        }
        Ok(())
    }

    /// A session may end for its window, and well.
    fn near_ended(&mut self, ending: &bus_tcp::session::Ending) -> Checked {
        self.note(|| format!("the client's session is over: {ending:?}"));
        let id = self.near.session.id();
        match ending.reason {
            Reason::Ended if ending.clean() && self.near.finishing => return Ok(()),
            Reason::Expired => {}
            Reason::Unknown
            | Reason::Ended
            | Reason::RolledBack
            | Reason::Overflow
            | Reason::Refused
            | Reason::Dropped
            | Reason::Violation(_) => return Err(format!("a session ended like this: {ending:?}")),
        }
        self.stats.expired += 1;
        let taken = id.and_then(|id| self.far.finals.get(&id));
        if taken != ending.taken.as_ref() {
            return Err(format!(
                "the host took {taken:?} bytes, and the client was told {:?}",
                ending.taken
            ));
        }
        self.near.salt += 2;
        self.near.stream = Stream::new(self.near.salt, self.near.salt + 1);
        self.near.finishing = false;
        let now = self.near.machine.clock(self.now);
        let wish = Wish {
            terms: TERMS,
            incarnation: self.near.salt,
        };
        self.near.session = Session::client(now, wish, self.random.next());
        self.journal_near();
        Ok(())
    }

    fn connect(&mut self) {
        if !self.link_up && self.options.lives.is_none() {
            self.near.fails_at = Some(self.now + self.random.below(500_000));
            return;
        }
        self.stats.carriers += 1;
        self.next_wire += 1;
        let mut wire = Wire::new(self.next_wire, self.now, CLIENT, &mut self.random);
        if self.good || self.options.lives.is_some() {
            // A connection that is asked for while the link is down comes about as soon as it is up: SYN is sent again.
            let period = self.options.lives.map_or(1, |lives| (lives + DOWN) * 1000);
            let up = if self.link_up {
                self.now
            } else {
                self.now.next_multiple_of(period)
            };
            wire.hurry(up);
        }
        let id = wire.id.0;
        self.note(|| format!("carrier {id}"));
        self.wires.insert(wire.id, wire);
    }

    fn drain_far(&mut self) -> Checked {
        while let Some(action) = self.far.host.action() {
            let now = self.far.machine.clock(self.now);
            match action {
                HostAction::AskNew { carrier, who, .. } => {
                    self.far.next_session += 1;
                    let mut id = [0; 16];
                    id[..8].copy_from_slice(&self.far.next_session.to_be_bytes());
                    let grant = Grant {
                        session: SessionId(id),
                        secret: Secret([self.random.next() as u8; 32]),
                    };
                    self.far.host.grant(now, carrier, grant);
                    let salt = if &*who == CLIENT { self.near.salt } else { u64::MAX };
                    self.far.streams.insert(
                        grant.session,
                        Stream::new(salt + u64::from(salt < u64::MAX), salt),
                    );
                    self.journal_grant();
                }
                HostAction::AskResume { carrier, .. } => {
                    self.far.host.grant_resume(now, carrier);
                    self.journal_grant();
                }
                HostAction::Session { session, action } => self.far_action(session, action)?,
                HostAction::Close { carrier, .. } => self.host_closes(carrier),
                HostAction::Trouble { trouble, .. } => {
                    self.stats.turned_away += 1;
                    self.note(|| format!("turned away: {trouble}"));
                }
                HostAction::Writable { .. }
                | HostAction::WritableCarrier { .. }
                | HostAction::Buried { .. } => {}
            }
        }
        Ok(())
    }

    fn far_action(&mut self, id: SessionId, action: Action) -> Checked {
        let ours = Some(id) == self.near.session.id();
        match action {
            Action::Deliver { offset, bytes } => {
                self.stats.bytes += bytes.len() as u64;
                if let Some(stream) = self.far.streams.get_mut(&id) {
                    stream
                        .take(offset, &bytes)
                        .map_err(|what| format!("at the host: {what}"))?;
                }
            }
            Action::Acked { upto } => {
                if let Some(stream) = self.far.streams.get_mut(&id) {
                    stream.replay.forget(upto);
                }
            }
            Action::Finished { .. } => self.far.host.finish(id),
            Action::Ended(ending) => {
                self.note(|| format!("the host's session {id} is over: {ending:?}"));
                let taken = self
                    .far
                    .host
                    .session(id)
                    .map(|session| session.received_and_committed().1);
                let journalled = self.far.streams.remove(&id).map(|stream| stream.taken);
                self.far.finals.insert(id, taken.or(journalled).unwrap_or(0));
                if ours && ending.reason == Reason::Expired {
                    self.given_up()?;
                }
                self.journal_far();
            }
            Action::Opened
            | Action::Parked { .. }
            | Action::Resumed { .. }
            | Action::Fenced
            | Action::Connect { .. }
            | Action::Close { .. } => {}
        }
        Ok(())
    }

    /// The host has let go: from now on others may have what this session had.
    fn given_up(&mut self) -> Checked {
        let now = self.near.machine.clock(self.now);
        if !self.near.machine.awake(self.now) {
            self.near.must_be_fenced = true;
        } else if !self.near.session.is_fenced(now) {
            return Err(format!(
                "two holders: the host has given up a session on which the client relies until {:?}, and it is {now:?}",
                self.near.session.valid_until()
            ));
        }
        Ok(())
    }

    fn client_closes(&mut self, id: CarrierId) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.attach_at = None;
            wire.to_client.done = true;
            // The host may learn of it late.
            let late = if self.random.percent(20) && !self.good {
                15_000_000
            } else {
                50_000
            };
            wire.to_host.close(self.now + self.random.below(late));
        }
    }

    fn host_closes(&mut self, id: CarrierId) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.accept_at = None;
            wire.to_host.done = true;
            wire.to_client.close(self.now + wire.latency());
        }
    }

    fn transmit(&mut self, near_awake: bool, far_awake: bool) -> Checked {
        let ids: Vec<_> = self.wires.keys().copied().collect();
        for id in ids {
            let (near, far) = (
                self.near.machine.clock(self.now),
                self.far.machine.clock(self.now),
            );
            while near_awake
                && let Some(wire) = self.wires.get_mut(&id)
                && wire.who == CLIENT
                && wire.to_host.has_room()
                && let Some(transmit) = self.near.session.transmit(near, id)
            {
                let bytes = self
                    .near
                    .stream
                    .bytes(transmit)
                    .map_err(|what| format!("the client: {what}"))?;
                if bytes.first() != Some(&3) {
                    self.attacker.capture(&bytes, &mut self.random);
                }
                wire.to_host.send(self.now + wire.latency(), bytes);
                self.drain_near()?;
            }
            while far_awake
                && let Some(wire) = self.wires.get_mut(&id)
                && wire.accept_at.is_none()
                && wire.to_client.has_room()
                && let Some(transmit) = self.far.host.transmit(far, id)
            {
                let session = self.near.session.id().and_then(|id| self.far.streams.get(&id));
                let bytes = match (session, &transmit) {
                    (Some(stream), _) => stream.bytes(transmit),
                    (None, bus_tcp::session::Transmit::Control(bytes)) => Ok(bytes.clone()),
                    (None, other) => Err(format!("{other:?} for nobody")),
                };
                wire.to_client.send(
                    self.now + wire.latency(),
                    bytes.map_err(|what| format!("the host: {what}"))?,
                );
                self.drain_far()?;
            }
        }
        Ok(())
    }

    /// The journal of the client: what it has said and heard is safe now, and only now the session is told.
    fn journal_near(&mut self) {
        let now = self.near.machine.clock(self.now);
        self.near.session.produced(self.near.stream.replay.end());
        self.near.session.committed(now, self.near.stream.taken);
        if let Ok(bytes) = encode(Kind::Session, &self.near.session.save()) {
            self.near.journal = (bytes, self.near.stream.save());
        }
    }

    fn journal_grant(&mut self) {
        if self.options.sabotage == Some(Sabotage::GrantsEarly) {
            return;
        }
        self.journal_far();
    }

    fn journal_far(&mut self) {
        let now = self.far.machine.clock(self.now);
        for (id, stream) in &self.far.streams {
            self.far.host.produced(*id, stream.replay.end());
            self.far.host.committed(now, *id, stream.taken);
        }
        if self.options.sabotage == Some(Sabotage::AcksEarly) && self.random.percent(90) {
            return;
        }
        if let Ok(bytes) = encode(Kind::Host, &self.far.host.save()) {
            let streams = self
                .far
                .streams
                .iter()
                .map(|(id, stream)| (*id, stream.save()))
                .collect();
            self.far.journal = (bytes, streams);
        }
    }

    fn check_bounds(&mut self) -> Checked {
        if self.far.host.greetings() > GREETINGS {
            return Err("too many carriers wait for a first frame".into());
        }
        for (session, _) in self.far.host.sessions() {
            let (received, committed) = session.received_and_committed();
            if received - committed > u64::from(TERMS.credit) {
                return Err("more has come than there was credit for".into());
            }
        }
        let (acked, sent, produced) = self.near.session.acked_sent_and_produced();
        if acked > sent || sent > produced.max(acked) || sent > self.near.session.credit() {
            return Err(format!("acked {acked}, sent {sent}, produced {produced}"));
        }
        let mut budget = Budget::new((BACKLOG + 100_000) as u64);
        if !budget.charge(self.near.stream.replay.len() as u64) {
            return Err("more is kept than was said ahead".into());
        }
        Ok(())
    }
}

const CLIENT: &str = "client";
/// Somebody else on a carrier without TLS, who says that it is the client.
const MASK: &str = "mask";
const MALLORY: &str = "mallory";
