//! The rule of fair shares (`docs/fair-shares.md`) tried on those who call each other: PID 1, polkit and its agents, and
//! users that flood. Each client is single-threaded: while its own socket is full it does not read. No wait is without end,
//! and nobody live is disconnected by another user; a bus that dies at any moment decides as the one before.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    unreachable_pub
)]

use std::collections::VecDeque;
use std::sync::Arc;

use bus_daemon::broker::{
    Action, Attested, Broker, Credentials, Event, Fds, Identity, ListenerIdentity, Millis, PeerId, System,
    Transport,
};
use bus_daemon::config::{Config, Limits, Simple};
use bus_wire::{Fd, Flags, Framer, Guid, Message, MessageBuilder, MessageType};
use bytes::Bytes;

/// Bytes that may wait for a peer, and that a socket holds in either direction.
const LIMIT: u64 = 400_000;
const SOCKET: usize = 30_000;
/// Milliseconds in one round.
const ROUND: u64 = 5;
/// No wait may be longer, in milliseconds: far more than all that is on its way takes at 4 MiB in a second.
const LONGEST: u64 = 4_000;
const BUS_UID: u32 = 81;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

struct Nothing;

impl System for Nothing {
    fn peer_pidfd(&mut self, _: Fd) -> Option<Fd> {
        None
    }

    fn duplicate(&mut self, _: Fd) -> Option<Fd> {
        None
    }
}

/// What a client does of itself, each time that it is its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// PID 1: broadcasts that units changed, and answers calls.
    Manager,
    /// polkit: calls an agent for each call, and broadcasts that something changed.
    Authority,
    /// Calls polkit and PID 1, and answers calls.
    Agent,
    /// Sends as much as it can: broadcasts, unicast to everybody.
    Flooder,
    /// Asks for names and gives them back, and does nothing else.
    Namer,
    /// Hears all, and says little.
    Listener,
}

struct Client {
    peer: PeerId,
    uid: u32,
    part: Part,
    /// Bytes in a second that it reads.
    rate: u64,
    /// What it wants to write, and what its socket holds on the way to the bus and back.
    to_write: VecDeque<Bytes>,
    outbound: Vec<u8>,
    inbound: usize,
    written: u64,
    taken: u64,
    framer: Framer,
    serial: u32,
    is_open: bool,
    is_read: bool,
    /// Since when the bus has not read from it.
    unread_since: Option<u64>,
    calls: u32,
    answers: u32,
}

struct World {
    broker: Broker,
    /// Another one that was restored from the same state, and hears the same.
    twin: Option<Broker>,
    clients: Vec<Client>,
    random: Random,
    now: u64,
    waits: u64,
    gone: Vec<usize>,
    refused: u64,
}

fn config() -> Config {
    let mut limits = Limits::session();
    limits.max_outgoing_bytes = LIMIT;
    Config {
        limits,
        policy: Arc::new(Simple::OPEN.into()),
        ..Config::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let identity = Identity {
            guid: Guid::from_bytes([7; 16]),
            listeners: vec![ListenerIdentity {
                guid: Guid::from_bytes([8; 16]),
                transport: Transport::Unix,
                nonce: None,
            }],
            machine_id: String::new(),
            keeper_pid: 1,
            own_uid: BUS_UID,
            hash_seed: seed,
        };
        let mut world = Self {
            broker: Broker::new(identity, Arc::new(config()), Millis(0)),
            twin: None,
            clients: Vec::new(),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            waits: 0,
            gone: Vec::new(),
            refused: 0,
        };
        world.connect(0, Part::Manager, 6_000_000);
        world.connect(87, Part::Authority, 5_000_000);
        for uid in [1001, 1002, 1003] {
            for _ in 0..=world.random.below(3) {
                let parts = [
                    Part::Agent,
                    Part::Flooder,
                    Part::Listener,
                    Part::Namer,
                    Part::Agent,
                ];
                let part = parts[world.random.below(5) as usize];
                // Just fast enough, or much faster.
                let rate = [4_400_000, 6_000_000, 40_000_000][world.random.below(3) as usize];
                world.connect(uid, part, rate);
            }
        }
        world
    }

    fn connect(&mut self, uid: u32, part: Part, rate: u64) {
        let index = self.clients.len();
        let peer = PeerId {
            index: index as u32,
            generation: 1,
        };
        self.clients.push(Client {
            peer,
            uid,
            part,
            rate,
            to_write: VecDeque::new(),
            outbound: Vec::new(),
            inbound: 0,
            written: 0,
            taken: 0,
            framer: Framer::new(1 << 27),
            serial: 0,
            is_open: true,
            is_read: true,
            unread_since: None,
            calls: 0,
            answers: 0,
        });
        let credentials = Credentials {
            uid: Some(uid),
            gid: Some(uid),
            pid: Some(1),
        };
        self.event(Event::Accepted {
            peer,
            listener: 0,
            socket: Fd(100 + index as i32),
            attested: Attested {
                credentials,
                ..Attested::default()
            },
        });
        let identity: String = uid
            .to_string()
            .bytes()
            .map(|digit| format!("{digit:02x}"))
            .collect();
        let lines = format!("\0AUTH EXTERNAL {identity}\r\nBEGIN\r\n");
        self.arrive(index, Bytes::from(lines.into_bytes()));
        let answer = self.broker.send_queue(peer).unwrap().len();
        self.clients[index].taken = answer;
        self.event(Event::Sent { peer, upto: answer });
        for (member, rule) in [("Hello", None), ("AddMatch", Some("type='signal'"))] {
            let call = MessageBuilder::method_call("/org/freedesktop/DBus", member)
                .interface("org.freedesktop.DBus")
                .destination("org.freedesktop.DBus")
                .body(|w| {
                    if let Some(rule) = rule {
                        w.str(rule);
                    }
                });
            let bytes = self.clients[index].next(call);
            self.arrive(index, bytes);
        }
    }

    /// One event and its steps, in both brokers; they must do the same.
    fn event(&mut self, event: Event) {
        self.single(event);
        let next = |broker: &Broker| broker.peer_ids().find(|id| broker.wants_step(*id));
        while let Some(peer) = next(&self.broker) {
            self.single(Event::Step { peer });
        }
    }

    fn single(&mut self, event: Event) {
        self.broker.handle(event.clone(), &mut Nothing);
        let actions: Vec<Action> = self.broker.actions().drain(..).collect();
        if let Some(twin) = &mut self.twin {
            twin.handle(event, &mut Nothing);
            let theirs: Vec<Action> = twin.actions().drain(..).collect();
            assert_eq!(theirs, actions, "a broker that was restored does something else");
            assert_eq!(twin.save_shares(), self.broker.save_shares());
        }
        for action in actions {
            match action {
                Action::Close { peer, reason, .. } => {
                    eprintln!("at {}: {reason}", self.now);
                    self.clients[peer.index as usize].is_open = false;
                    self.gone.push(peer.index as usize);
                }
                Action::StopReading(peer) => {
                    let client = &mut self.clients[peer.index as usize];
                    (client.is_read, client.unread_since) = (false, Some(self.now));
                    self.waits += u64::from(self.broker.is_paced(peer));
                }
                Action::ResumeReading(peer) => {
                    let client = &mut self.clients[peer.index as usize];
                    (client.is_read, client.unread_since) = (true, None);
                }
                _ => {}
            }
        }
    }

    fn arrive(&mut self, index: usize, bytes: Bytes) {
        let client = &mut self.clients[index];
        client.written += bytes.len() as u64;
        let (peer, upto) = (client.peer, client.written);
        self.event(Event::Received {
            peer,
            upto,
            data: bytes,
            fds: Fds::new(),
        });
    }

    /// What the client does of itself.
    fn act(&mut self, index: usize) {
        let part = self.clients[index].part;
        let others = self.clients.len() as u64;
        let busy = self.clients[index].to_write.len() > 20;
        let rounds = match part {
            Part::Flooder => 12,
            Part::Namer => 60,
            _ => 1,
        };
        for _ in 0..rounds {
            if busy {
                return;
            }
            let to = format!(":1.{}", self.random.below(others));
            let length = 200 + self.random.below(20_000) as usize;
            match (part, self.random.below(10)) {
                (Part::Flooder, 0..6) | (Part::Manager | Part::Authority, 0) => self.say(index, None, length),
                (Part::Flooder, _) => self.say(index, Some(&to), length),
                (Part::Agent, 0..3) => self.ask(index, if self.random.0 & 1 == 0 { ":1.0" } else { ":1.1" }),
                (Part::Authority, 1..4) => self.ask(index, &to),
                (Part::Namer, n) => self.claim(index, n % 2 == 0),
                _ => {}
            }
        }
    }

    fn say(&mut self, index: usize, to: Option<&str>, length: usize) {
        let text = "x".repeat(length);
        let signal = MessageBuilder::signal("/", "a.b", "S").body(|w| {
            w.str(&text);
        });
        let bytes = self.clients[index].next(match to {
            Some(to) => signal.destination(to),
            None => signal,
        });
        self.clients[index].to_write.push_back(bytes);
    }

    /// Asks for a long name, or gives it back; nobody answers that.
    fn claim(&mut self, index: usize, asks: bool) {
        let member = if asks { "RequestName" } else { "ReleaseName" };
        let name = format!("a{index}.{}", "b".repeat(240));
        let call = MessageBuilder::method_call("/org/freedesktop/DBus", member)
            .destination("org.freedesktop.DBus")
            .flags(Flags::NO_REPLY_EXPECTED)
            .body(|w| {
                w.str(&name);
                if asks {
                    w.u32(0);
                }
            });
        let bytes = self.clients[index].next(call);
        self.clients[index].to_write.push_back(bytes);
    }

    fn ask(&mut self, index: usize, to: &str) {
        let call = MessageBuilder::method_call("/", "M")
            .interface("a.b")
            .destination(to);
        let bytes = self.clients[index].next(call);
        self.clients[index].calls += 1;
        self.clients[index].to_write.push_back(bytes);
    }

    /// The client writes what its socket takes; only when nothing is left does it read.
    fn run(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while let Some(front) = client.to_write.front() {
            if client.outbound.len() + front.len() > SOCKET && !client.outbound.is_empty() {
                break;
            }
            client.outbound.extend_from_slice(front);
            client.to_write.pop_front();
        }
        if client.to_write.is_empty() {
            let most = client.rate * ROUND / 1000;
            client.inbound -= client.inbound.min(most as usize);
        }
    }

    /// The bus reads from the client, and writes to it.
    fn serve(&mut self, index: usize) {
        if !self.clients[index].is_open {
            return;
        }
        if self.clients[index].is_read && !self.clients[index].outbound.is_empty() {
            let bytes = std::mem::take(&mut self.clients[index].outbound);
            self.arrive(index, bytes.into());
        }
        // The socket is as full as it gets.
        let most = self.clients[index].rate * ROUND / 1000;
        loop {
            let client = &self.clients[index];
            let (peer, room) = (
                client.peer,
                (SOCKET.max(most as usize)).saturating_sub(client.inbound),
            );
            let Some(queue) = self
                .broker
                .send_queue(peer)
                .filter(|queue| !queue.is_empty() && room > 0)
            else {
                return;
            };
            let bytes = queue.to_bytes();
            let part = bytes.slice(..bytes.len().min(room));
            let client = &mut self.clients[index];
            client.inbound += part.len();
            client.taken += part.len() as u64;
            let upto = client.taken;
            client.framer.push(part, Fds::new());
            let mut got = Vec::new();
            while let Some(framed) = client.framer.next().unwrap() {
                got.push(framed.message);
            }
            for message in got {
                self.hear(index, &message);
            }
            self.event(Event::Sent { peer, upto });
        }
    }

    fn hear(&mut self, index: usize, message: &Message) {
        let client = &mut self.clients[index];
        match message.message_type() {
            MessageType::MethodCall => {
                let reply =
                    MessageBuilder::method_return(message.serial()).destination(message.sender().unwrap());
                let bytes = client.next(reply);
                client.to_write.push_back(bytes);
            }
            MessageType::MethodReturn | MessageType::Error
                if message.sender() != Some("org.freedesktop.DBus") =>
            {
                client.answers += 1;
            }
            MessageType::Error => {
                client.answers += 1;
                self.refused += 1;
            }
            _ => {}
        }
    }

    /// Sometimes another broker goes along, from what is saved now.
    fn perhaps_restart(&mut self) {
        if !self.random.percent(2) {
            return;
        }
        let (mut restored, dropped) = Broker::restore(self.broker.save()).unwrap();
        assert_eq!(dropped, []);
        restored.take_dirty(&mut Vec::new());
        if self.random.percent(50) {
            self.twin = Some(std::mem::replace(&mut self.broker, restored));
        } else {
            self.twin = Some(restored);
        }
    }

    fn tick(&mut self) {
        self.now += ROUND;
        let now = Millis(self.now);
        self.event(Event::Tick { now });
        while self.broker.next_deadline().is_some_and(|due| due <= now) {
            self.event(Event::Tick { now });
        }
        self.broker.check_invariants().unwrap();
        for client in &self.clients {
            // One that writes all the time and does not read has filled its own queue, and waits for itself.
            let waits = client.is_open && (!client.only_writes() || self.broker.is_paced(client.peer));
            let since = client.unread_since.filter(|_| waits).unwrap_or(self.now);
            assert!(
                self.now - since <= LONGEST,
                "at {}: {:?} of {} is not read since {since}",
                self.now,
                client.part,
                client.uid
            );
        }
    }

    fn round(&mut self, is_over: bool) {
        for index in 0..self.clients.len() {
            if !is_over {
                self.act(index);
            }
            self.run(index);
            self.serve(index);
        }
        self.perhaps_restart();
        self.tick();
    }
}

impl Client {
    /// Whether it writes all the time, and does not come to read.
    fn only_writes(&self) -> bool {
        matches!(self.part, Part::Flooder | Part::Namer)
    }

    fn next(&mut self, message: MessageBuilder<'_>) -> Bytes {
        self.serial += 1;
        Bytes::from(message.serial(self.serial).build().unwrap())
    }
}

struct Sum {
    waits: u64,
    refused: u64,
    answers: u64,
}

fn run(seed: u64, rounds: u64) -> Sum {
    let mut world = World::new(seed);
    for _ in 0..rounds {
        world.round(false);
    }
    // Those who only write leave: some of them are stuck, for they answer and read nothing while they cannot write.
    for index in 0..world.clients.len() {
        if world.clients[index].only_writes() && world.clients[index].is_open {
            let peer = world.clients[index].peer;
            world.event(Event::Closed {
                peer,
                reason: "end of file",
            });
        }
    }
    // They fall silent: all that is on its way arrives, and every call is answered.
    for _ in 0..2 * LONGEST / ROUND {
        world.round(true);
    }
    for (index, client) in world.clients.iter().enumerate() {
        // One that does not read may go.
        if client.only_writes() {
            continue;
        }
        assert!(
            client.is_open,
            "seed {seed}: {:?} {index} of {} was disconnected",
            client.part, client.uid
        );
        assert_eq!(
            client.answers, client.calls,
            "seed {seed}: {:?} {index} of {} misses answers",
            client.part, client.uid
        );
        assert!(
            client.to_write.is_empty() && client.outbound.is_empty(),
            "seed {seed}"
        );
    }
    Sum {
        waits: world.waits,
        refused: world.refused,
        answers: world.clients.iter().map(|client| u64::from(client.answers)).sum(),
    }
}

fn check(seeds: std::ops::Range<u64>, rounds: u64) -> Sum {
    let mut all = Sum {
        waits: 0,
        refused: 0,
        answers: 0,
    };
    for seed in seeds {
        let one = run(seed, rounds);
        all.waits += one.waits;
        all.refused += one.refused;
        all.answers += one.answers;
    }
    eprintln!(
        "{} waits, {} refused, {} answers",
        all.waits, all.refused, all.answers
    );
    all
}

#[test]
fn services_that_call_each_other_and_flooders_wait_for_nobody_without_end() {
    let all = check(0..30, 200);
    assert!(all.waits > 100 && all.refused > 0 && all.answers > 1000);
}

#[test]
#[ignore = "long campaign; see docs/testing.md"]
fn campaign() {
    check(1_000..4_000, 200);
}
