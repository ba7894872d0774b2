//! The run itself.

mod ends;
mod faults;

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
