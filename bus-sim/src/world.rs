//! The run: who does what next.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bus_daemon::broker::{Attested, Credentials, Errand, Event, PeerId};
use bus_daemon::config::Limits;
use bus_wire::Message;

use crate::authentication;
use crate::bus::{Bus, config};
use crate::client::Client;
use crate::files::File;
use crate::letter::Letter;
use crate::link::Link;
use crate::model::{Check, Meaning, OWN_UID, Phase, Piece, Trouble, wrong};
use crate::operation::Scene;
use crate::random::Random;
use crate::sabotage::Saboteur;
use crate::{Failure, Options, Stats};

/// How many of the last things are told in a failure.
const TRACE: usize = 80;
/// A client with more than this under way writes nothing more for now.
const PATIENCE: usize = 400_000;

/// Everything there is in a run.
pub(crate) struct World {
    seed: u64,
    step: u32,
    pub(crate) options: Options,
    pub(crate) random: Random,
    pub(crate) bus: Bus,
    pub(crate) links: BTreeMap<PeerId, Link>,
    pub(crate) clients: BTreeMap<PeerId, Client>,
    pub(crate) generation: u32,
    pub(crate) number: u64,
    pub(crate) now: u64,
    pub(crate) is_accepting: bool,
    /// Errands that were asked for and are not done.
    pub(crate) errands: BTreeMap<u64, Errand>,
    /// The next thing that happens to the bus is the end of an upgrade.
    pub(crate) is_handing_over: bool,
    pub(crate) stats: Stats,
    trace: VecDeque<String>,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let limits = limits(&mut random);
        let now = 1000;
        let config = config(limits, random.percent(40));
        let bus = Bus::new(config, random.next(), now, Saboteur::new(options.sabotage));
        let mut world = Self {
            seed,
            step: 0,
            options,
            random,
            bus,
            links: BTreeMap::new(),
            clients: BTreeMap::new(),
            generation: 0,
            number: 0,
            now,
            is_accepting: true,
            errands: BTreeMap::new(),
            is_handing_over: false,
            stats: Stats::default(),
            trace: VecDeque::new(),
        };
        world.bus.deaths_within = options.deaths;
        world.bus.store.chance = [0, 50, 90, 100][world.random.index(4)];
        world.bus.step = [512, 20, 3, 1][world.random.index(4)];
        world.bus.shortage = if world.random.percent(15) { 20 } else { 0 };
        world
    }

    pub(crate) fn run(mut self) -> Result<Stats, Failure> {
        let outcome = self
            .bus
            .take_checkpoint(&mut self.random)
            .and_then(|()| self.steps())
            .and_then(|()| self.finish());
        self.stats.queued = self.bus.model.matched;
        self.stats.recoveries += self.bus.ends_within;
        self.stats.steps = self.bus.steps;
        self.stats.descriptors = self.bus.files.opened;
        self.stats.forgotten = self.bus.store.forgotten;
        self.stats.sabotaged = u64::from(self.bus.saboteur.has_struck);
        match outcome {
            Ok(()) => Ok(self.stats),
            Err(Trouble::Unknowable) => {
                self.stats.unknowable = 1;
                Ok(self.stats)
            }
            Err(Trouble::Wrong(what)) => {
                let trace = Vec::from(self.trace).join("\n");
                Err(Failure {
                    seed: self.seed,
                    step: self.step,
                    what,
                    trace,
                })
            }
        }
    }

    fn steps(&mut self) -> Check {
        for step in 0..self.options.steps {
            self.step = step;
            if self.random.permille(self.options.upgrades) {
                self.upgrade()?;
            }
            if self.random.permille(self.options.checkpoints) {
                self.bus.take_checkpoint(&mut self.random)?;
            } else if self.random.permille(self.options.checkpoints) {
                self.bus.write_ahead(&mut self.random)?;
            }
            if self.random.permille(self.options.deaths) {
                self.die()?;
            }
            if self.options.shortages > 0 && self.random.permille(self.options.shortages) {
                self.run_short()?;
            }
            if self.is_handing_over {
                self.end_upgrade()?;
            } else {
                self.one_thing()?;
            }
        }
        self.step = self.options.steps;
        Ok(())
    }

    pub(crate) fn one_thing(&mut self) -> Check {
        match self.random.below(100) {
            0..4 => self.connect(),
            4..34 => self.write_something(),
            34..58 => self.read_from_someone(),
            58..74 => self.send_to_someone(),
            74..90 => self.client_reads(),
            90..92 => self.detach_or_attach(),
            92..94 => {
                self.sleep_or_wake();
                Ok(())
            }
            94 if self.random.percent(60) => {
                self.hang_up();
                Ok(())
            }
            94..96 => self.client_reads(),
            96..98 => {
                self.now += self.random.below(250);
                self.tick()
            }
            _ => self.errand(),
        }
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("  step {}: {}", self.step, what()));
    }

    // Clients

    fn connect(&mut self) -> Check {
        let connected = self
            .clients
            .values()
            .filter(|client| !self.links[&client.id].is_hung_up)
            .count();
        if !self.is_accepting || connected >= self.options.clients {
            return Ok(());
        }
        self.generation += 1;
        let index = (0..)
            .find(|index| self.bus.broker.peer_ids().all(|id| id.index != *index))
            .unwrap_or(0);
        let id = PeerId {
            index,
            generation: self.generation,
        };
        let uid = if self.random.percent(80) {
            OWN_UID
        } else {
            OWN_UID + 1
        };
        let pid = 5000 + self.generation;
        self.note(|| format!("{id:?} connects as {uid}"));
        let capacity = if self.random.percent(50) {
            212_992
        } else {
            200 + self.random.index(20_000)
        };
        let mut client = Client::new(id);
        client.script = authentication::script(&mut self.random, uid);
        client.is_hasty = self.random.percent(50);
        self.clients.insert(id, client);
        let file = self.bus.files.create();
        let socket = self.bus.files.open(file);
        self.links.insert(id, Link::new(id, capacity, socket));
        self.stats.clients += 1;
        let credentials = Credentials {
            uid: Some(uid),
            gid: Some(100),
            pid: Some(pid),
        };
        let event = Event::Accepted {
            peer: id,
            listener: 0,
            socket,
            attested: Attested {
                credentials,
                groups: Some(vec![7, 100, index]),
                label: Some(b"unconfined".to_vec()),
            },
        };
        self.apply(event, |model| {
            model.accepted(id, uid, pid);
            Ok(())
        })
    }

    fn some_client(&mut self) -> Option<PeerId> {
        let ids: Vec<PeerId> = self.clients.keys().copied().collect();
        self.random.pick(&ids).copied()
    }

    pub(crate) fn some_link(&mut self, wanted: impl Fn(&Link) -> bool) -> Option<PeerId> {
        let ids: Vec<PeerId> = self
            .links
            .values()
            .filter(|link| wanted(link))
            .map(|link| link.id)
            .collect();
        self.random.pick(&ids).copied()
    }

    fn write_something(&mut self) -> Check {
        let Some(id) = self.some_client() else {
            return Ok(());
        };
        let (Some(client), Some(link)) = (self.clients.get_mut(&id), self.links.get(&id)) else {
            return Ok(());
        };
        if link.is_hung_up || link.is_closed || client.is_done || link.unread() > PATIENCE {
            return Ok(());
        }
        if !client.script.is_empty() {
            return self.authenticate(id);
        }
        if client.has_said_hello && client.unique.is_none() && !client.is_hasty {
            return Ok(());
        }
        let what = self.random.below(1000);
        let names = self.names();
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        let is_first = !client.has_said_hello;
        let takes_fds = client.takes_fds;
        let mut scene = Scene {
            random: &mut self.random,
            client,
            files: &mut self.bus.files,
            names: &names,
            number: &mut self.number,
        };
        if is_first {
            let letter = scene.greeting();
            return self.post(id, letter);
        }
        match what {
            0..4 => {
                let (bytes, meaning) = scene.malformed();
                self.write(id, &bytes, Vec::new(), meaning)
            }
            4..8 => {
                // "Unknown types must be ignored."
                let letter = scene.signal(None);
                let Ok(mut bytes) = letter.encode(None) else {
                    return Ok(());
                };
                bytes[1] = 7;
                let count = letter.files.len();
                self.write(id, &bytes, letter.files, Meaning::Ignored(count))
            }
            8..10 if !takes_fds => {
                // Descriptors that were not agreed upon: at the first byte that comes with them it is over.
                let file = self.bus.files.create();
                self.write(id, b"l", vec![file], Meaning::Malformed)
            }
            _ => {
                let letter = scene.letter();
                self.post(id, letter)
            }
        }
    }

    /// Unique names, and those of the driver and of nobody.
    fn names(&self) -> Vec<String> {
        let peers = self
            .bus
            .model
            .peers
            .values()
            .filter(|peer| peer.phase == Phase::Active);
        peers.map(crate::model::Peer::name).collect()
    }

    /// The next lines of the authentication; one at a time, or all at once.
    fn authenticate(&mut self, id: PeerId) -> Check {
        loop {
            let Some(client) = self.clients.get_mut(&id) else {
                return Ok(());
            };
            if !client.is_hasty && client.lines_due > 0 {
                return Ok(());
            }
            let Some((bytes, meaning)) = client.script.pop_front() else {
                return Ok(());
            };
            match &meaning {
                Meaning::Line(expected) => client.lines_due += usize::from(!expected.is_empty()),
                Meaning::Begin { takes_fds, .. } => client.takes_fds = *takes_fds,
                Meaning::Kick => client.is_done = true,
                Meaning::Letter(_) | Meaning::Ignored(_) | Meaning::Malformed => {}
            }
            let is_hasty = client.is_hasty;
            self.write(id, &bytes, Vec::new(), meaning)?;
            if !is_hasty {
                return Ok(());
            }
        }
    }

    /// A message is sent.
    pub(crate) fn post(&mut self, id: PeerId, letter: Letter) -> Check {
        let claimed = self.random.percent(5).then_some("com.example.Liar");
        let bytes = letter.encode(claimed)?;
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        if letter.expects_reply() {
            client.expect(letter.serial);
        }
        self.note(|| {
            format!(
                "{id:?} writes {}",
                letter.short().chars().take(300).collect::<String>()
            )
        });
        let files = letter.files.clone();
        self.write(id, &bytes, files, Meaning::Letter(Rc::new(letter)))
    }

    fn write(&mut self, id: PeerId, bytes: &[u8], files: Vec<File>, meaning: Meaning) -> Check {
        let (Some(client), Some(link)) = (self.clients.get_mut(&id), self.links.get_mut(&id)) else {
            return Ok(());
        };
        let start = client.written;
        client.written += bytes.len() as u64;
        let piece = Piece {
            start,
            end: client.written,
            meaning,
        };
        link.write(bytes, files, &mut self.random);
        if !matches!(piece.meaning, Meaning::Letter(_)) {
            let piece = piece.clone();
            self.note(|| format!("{id:?} writes {piece:?}"));
        }
        self.bus.model.written(id, piece);
        Ok(())
    }

    fn sleep_or_wake(&mut self) {
        let Some(id) = self.some_client() else { return };
        if let Some(client) = self.clients.get_mut(&id) {
            client.is_asleep = !client.is_asleep;
        }
    }

    fn hang_up(&mut self) {
        let Some(id) = self.some_link(|link| !link.is_hung_up && !link.is_closed) else {
            return;
        };
        self.note(|| format!("{id:?} hangs up"));
        if let Some(link) = self.links.get_mut(&id) {
            link.is_hung_up = true;
        }
    }

    fn client_reads(&mut self) -> Check {
        let Some(id) = self.some_client() else {
            return Ok(());
        };
        let max = match self.random.below(4) {
            0 => 1 + self.random.index(20),
            1 => 1 + self.random.index(500),
            _ => 1 << 20,
        };
        self.let_read(id, max)
    }

    /// A client reads about so many bytes.
    pub(crate) fn let_read(&mut self, id: PeerId, max: usize) -> Check {
        let (Some(client), Some(link)) = (self.clients.get_mut(&id), self.links.get_mut(&id)) else {
            return Ok(());
        };
        if client.is_asleep {
            return Ok(());
        }
        if link.is_hung_up {
            if link.is_closed {
                self.forget(id);
            }
            return Ok(());
        }
        let (bytes, files) = link.take(max);
        let is_over = link.is_closed && link.is_drained();
        for (message, files) in client.take(&bytes, files)? {
            for _ in 0..self.bus.saboteur.arrivals() {
                let due = self.bus.due.get_mut(&id).and_then(VecDeque::pop_front);
                let is_due = due
                    .as_ref()
                    .is_some_and(|(bytes, due)| bytes == message.bytes() && *due == files);
                if !is_due {
                    let due = due.map(|(bytes, _)| Message::parse(bytes));
                    return wrong(format!("{id:?} reads {message:?}, and should read {due:?}"));
                }
                client.read(&message)?;
                self.stats.read += 1;
            }
        }
        if is_over {
            self.forget(id);
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self, id: PeerId) {
        self.links.remove(&id);
        self.clients.remove(&id);
        self.bus.due.remove(&id);
    }
}

/// Sometimes those of a session bus, sometimes such that clients meet them all the time.
fn limits(random: &mut Random) -> Limits {
    let mut limits = Limits::session();
    limits.auth_timeout = 1500 + random.below(3000);
    if random.percent(50) {
        limits.reply_timeout = Some(300 + random.below(2000));
    }
    limits.pending_fd_timeout = 300 + random.below(2000);
    if random.percent(50) {
        return limits;
    }
    limits.max_outgoing_bytes = 4000 + random.below(200_000);
    limits.max_outgoing_unix_fds = 2 + random.below(12);
    limits.max_incoming_unix_fds = 2 + random.below(4);
    limits.max_message_size = 70_000 + random.below(100_000);
    limits.max_message_unix_fds = 2 + random.below(3);
    limits.max_names_per_connection = 2 + random.below(3);
    limits.max_match_rules_per_connection = 1 + random.below(6);
    limits.max_replies_per_connection = 1 + random.below(5);
    limits.max_completed_connections = 3 + random.below(5);
    limits.max_connections_per_user = 2 + random.below(5);
    limits.max_incomplete_connections = 1 + random.below(4);
    limits
}
