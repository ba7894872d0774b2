//! A bus in memory, with clients that are numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::Arc;

use bus_daemon::broker::{
    Action, Attested, Broker, BrokerState, ConfigRefusal, Credentials, Errand, ErrandOutcome, Event, Fds,
    Identity, Keys, ListenerIdentity, Millis, PeerId, Room, Start, System, Transport,
};
use bus_daemon::config::policy::Policy;
use bus_daemon::config::{Config, Connect, Limits, Simple};
use bus_wire::{BodyWriter, Fd, Flags, Framer, Guid, Message, MessageBuilder, MessageType};
use bytes::Bytes;

pub const DRIVER: &str = "org.freedesktop.DBus";
pub const PATH: &str = "/org/freedesktop/DBus";
pub const UID: u32 = 1000;

/// The listeners, by their index.
pub const UNIX: u32 = 0;
pub const TCP: u32 = 1;
pub const NONCE: u32 = 2;

/// Handles of sockets are numbered from here on.
const SOCKETS: i32 = 1_000_000;

/// Plays the script on two buses, and compares what the clients got. One of the two is restarted all the time, does all in
/// the shortest steps, is told everything twice, and loses and gets back each link before anything arrives on it.
#[track_caller]
pub fn check(script: impl Fn(&mut Bus)) {
    check_with(&config(), script);
}

/// The same with another configuration.
#[track_caller]
pub fn check_with(config: &Config, script: impl Fn(&mut Bus)) {
    compare(|restarts| {
        let mut bus = Bus::new(config.clone(), restarts);
        script(&mut bus);
        bus.transcript
    });
}

/// The same with a listener more, which has a nonce.
#[track_caller]
pub fn check_with_nonce(config: &Config, nonce: [u8; 16], script: impl Fn(&mut Bus)) {
    let listeners = [
        (Transport::Unix, None),
        (Transport::Tcp, None),
        (Transport::Tcp, Some(nonce)),
    ];
    compare(|restarts| {
        let mut bus = Bus::listening(config.clone(), restarts, &listeners);
        script(&mut bus);
        bus.transcript
    });
}

#[track_caller]
fn compare(run: impl Fn(bool) -> Vec<String>) {
    let (through, restarted) = (run(false), run(true));
    for (n, (one, other)) in through.iter().zip(&restarted).enumerate() {
        assert_eq!(one, other, "line {n}: the restarted bus did something else");
    }
    assert_eq!(through.len(), restarted.len());
}

/// A session bus that lets everybody do everything but eavesdrop.
pub fn config() -> Config {
    Config {
        limits: Limits::session(),
        policy: policy(OWNER),
        ..Config::default()
    }
}

/// Only the bus's own user may connect, and may do everything but eavesdrop.
pub const OWNER: Simple = Simple {
    connect: Connect::OwnerOnly,
    ..Simple::OPEN
};

/// One of the simplest policies.
pub fn policy(simple: Simple) -> Arc<Policy> {
    Arc::new(simple.into())
}

/// Hands out descriptor numbers, and knows which of them are open.
#[derive(Debug, Default)]
pub struct Descriptors {
    next: i32,
    pub open: BTreeSet<Fd>,
    /// Those of sockets, apart from the others.
    pub sockets: BTreeSet<Fd>,
    pub is_exhausted: bool,
    /// Users who sit at the machine.
    pub at_console: BTreeSet<u32>,
}

impl Descriptors {
    pub fn make(&mut self) -> Fd {
        self.next += 1;
        self.open.insert(Fd(self.next));
        Fd(self.next)
    }

    pub fn make_socket(&mut self) -> Fd {
        self.next += 1;
        self.sockets.insert(Fd(SOCKETS + self.next));
        Fd(SOCKETS + self.next)
    }

    fn close(&mut self, fd: Fd) {
        let is_open = self.open.remove(&fd) || self.sockets.remove(&fd);
        assert!(is_open, "{fd:?} is closed twice");
    }
}

impl System for Descriptors {
    fn is_at_console(&mut self, uid: u32) -> bool {
        self.at_console.contains(&uid)
    }

    fn peer_pidfd(&mut self, socket: Fd) -> Option<Fd> {
        assert!(self.sockets.contains(&socket), "{socket:?} is not open");
        (!self.is_exhausted).then(|| self.make())
    }

    fn duplicate(&mut self, fd: Fd) -> Option<Fd> {
        assert!(self.open.contains(&fd), "{fd:?} is not open");
        (!self.is_exhausted).then(|| self.make())
    }
}

/// A client: its peer, what it has read, and the serial of its last message.
#[derive(Debug)]
struct Client {
    peer: PeerId,
    framer: Framer,
    serial: u32,
    is_open: bool,
    /// Its link; `None`: it is parked, or gone.
    socket: Option<Fd>,
    /// How many bytes the bus was given of what it wrote, and how many it was sent.
    written: u64,
    taken: u64,
}

pub struct Bus {
    pub broker: Broker,
    pub descriptors: Descriptors,
    clients: Vec<Client>,
    restarts: bool,
    now: u64,
    /// What was asked of the system, apart from closing descriptors; taken by `asked`.
    asked: Vec<Action>,
    /// Whom a step was asked for, in order.
    agenda: Vec<PeerId>,
    /// Steps are left to the test.
    pub hold_steps: bool,
    /// How much state there is room for.
    room: Room,
    /// Everything that came out.
    transcript: Vec<String>,
}

/// What a client is called in the scripts: the order of connecting. Those that said Hello have unique names in the
/// order of that.
pub type Who = usize;

impl Bus {
    pub fn new(config: Config, restarts: bool) -> Self {
        Self::listening(
            config,
            restarts,
            &[(Transport::Unix, None), (Transport::Tcp, None)],
        )
    }

    /// The same with these listeners.
    fn listening(config: Config, restarts: bool, listeners: &[(Transport, Option<[u8; 16]>)]) -> Self {
        let identity = Identity {
            guid: Guid::from_bytes([7; 16]),
            listeners: listeners
                .iter()
                .map(|(transport, nonce)| ListenerIdentity {
                    guid: Guid::from_bytes([8; 16]),
                    transport: *transport,
                    nonce: *nonce,
                })
                .collect(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            keeper_pid: 1,
            own_uid: UID,
            hash_seed: 5,
        };
        let mut bus = Self {
            broker: Broker::new(identity, Arc::new(config), Millis(0)),
            descriptors: Descriptors::default(),
            clients: Vec::new(),
            restarts,
            now: 0,
            asked: Vec::new(),
            agenda: Vec::new(),
            hold_steps: false,
            room: Room::ENDLESS,
            transcript: Vec::new(),
        };
        bus.set_step();
        bus.event(Event::Serving {
            worker_pid: 2,
            start: Start::Clean,
        });
        bus
    }

    /// One event, and all that is left for steps after it.
    pub fn event(&mut self, event: Event) {
        let now = match event {
            Event::Tick { now } => Some(now),
            _ => None,
        };
        self.single(event);
        if self.hold_steps {
            return;
        }
        self.finish();
        while let Some(now) = now.filter(|now| self.broker.next_deadline().is_some_and(|due| due <= *now)) {
            self.single(Event::Tick { now });
            self.finish();
        }
    }

    /// The steps that are left: those of peers that give up what they have come before others' input, as if all of it
    /// happened at once.
    pub fn finish(&mut self) {
        loop {
            self.agenda.retain(|peer| self.broker.wants_step(*peer));
            let is_shedding = |peer: &&PeerId| !self.broker.is_input_waiting(**peer);
            let next = self.agenda.iter().find(is_shedding).or(self.agenda.first());
            let Some(peer) = next.copied() else { return };
            self.single(Event::Step { peer });
        }
    }

    fn set_step(&mut self) {
        if self.restarts {
            self.broker.set_step(1);
        }
    }

    /// One event, with all that always has to hold after it.
    pub fn single(&mut self, event: Event) {
        self.broker.handle(event, &mut self.descriptors);
        while let Some(action) = self.broker.actions().pop_front() {
            match action {
                Action::CloseFds(fds) => {
                    for fd in fds {
                        self.descriptors.close(fd);
                    }
                }
                Action::ScheduleStep(peer) if self.agenda.contains(&peer) => {}
                Action::ScheduleStep(peer) => self.agenda.push(peer),
                Action::HangUp { peer, socket } => {
                    let client = self.clients.iter_mut().find(|client| client.peer == peer);
                    assert_eq!(client.unwrap().socket.take(), Some(socket));
                    self.descriptors.close(socket);
                }
                other => {
                    if let Action::Close { peer, .. } = &other {
                        let client = self.clients.iter_mut().find(|client| client.peer == *peer);
                        let client = client.unwrap();
                        client.is_open = false;
                        if let Some(socket) = client.socket.take() {
                            self.descriptors.close(socket);
                        }
                    }
                    // How a link ended is not known after a restart, when that takes more than a step.
                    let is_known = !matches!(&other, Action::Close { is_fault: false, .. });
                    let line = format!("{other:?}");
                    self.transcript.push(if is_known {
                        line
                    } else {
                        line.replace("end of file", "its link ended")
                    });
                    self.asked.push(other);
                }
            }
        }
        self.broker.check_invariants().unwrap();
        let owned: BTreeSet<Fd> = self.broker.owned_fds().into_iter().collect();
        let open = self.descriptors.open.union(&self.descriptors.sockets);
        assert_eq!(owned, open.copied().collect(), "descriptors leaked");
        if self.restarts {
            self.restart();
        }
    }

    /// Saves the broker, and goes on with what another process would make of the bytes.
    pub fn restart(&mut self) {
        let state = self.broker.save();
        let bytes = bincode::serde::encode_to_vec(&state, bincode::config::standard()).unwrap();
        let (read, used): (BrokerState, usize) =
            bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
        assert_eq!(used, bytes.len());
        let (mut restored, dropped) = Broker::restore(read).unwrap();
        assert_eq!(dropped, []);
        restored.set_config_source(self.broker.config_source());
        // As a checkpoint has it.
        let payers = self.broker.peer_ids().map(|id| (id, self.broker.payers_of(id)));
        restored.restore_payers(self.broker.save_table(), payers.collect());
        restored.check_invariants().unwrap();
        assert_eq!(restored.save(), state, "saved again it is something else");
        self.broker = restored;
        self.broker.set_room(self.room);
        self.set_step();
    }

    /// There is so much room for state from now on.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
        self.broker.set_room(room);
    }

    /// A connection that has said nothing.
    pub fn accept(&mut self) -> Who {
        self.accept_as(Credentials {
            uid: Some(UID),
            gid: Some(UID),
            pid: Some(42),
        })
    }

    pub fn accept_as(&mut self, credentials: Credentials) -> Who {
        let attested = Attested {
            credentials,
            ..Attested::default()
        };
        self.accept_from(UNIX, attested)
    }

    /// A connection through one of the listeners.
    pub fn accept_from(&mut self, listener: u32, attested: Attested) -> Who {
        let peer = PeerId {
            index: self.clients.len() as u32,
            generation: 1,
        };
        self.accept_as_peer(peer, listener, attested)
    }

    /// A connection that the runtime gives an id of the test's choice.
    pub fn accept_as_peer(&mut self, peer: PeerId, listener: u32, attested: Attested) -> Who {
        let who = self.clients.len();
        self.clients.push(Client {
            peer,
            framer: Framer::new(1 << 27),
            serial: 0,
            is_open: true,
            socket: None,
            written: 0,
            taken: 0,
        });
        let socket = self.descriptors.make_socket();
        self.clients[who].socket = Some(socket);
        self.event(Event::Accepted {
            peer,
            listener,
            socket,
            attested,
        });
        who
    }

    /// The client's link is gone, and the client stays.
    pub fn detach(&mut self, who: Who) {
        self.clients[who].socket = None;
        let peer = self.peer(who);
        self.event(Event::Detached { peer });
    }

    /// Whoever restored the bus has closed the link of a client that could not be restored.
    pub fn lose(&mut self, who: Who) {
        let client = &mut self.clients[who];
        client.is_open = false;
        if let Some(socket) = client.socket.take() {
            self.descriptors.close(socket);
        }
    }

    /// The client has a link again.
    pub fn attach(&mut self, who: Who) {
        let socket = self.descriptors.make_socket();
        if self.is_open(who) {
            self.clients[who].socket = Some(socket);
        }
        let peer = self.peer(who);
        self.event(Event::Attached { peer, socket });
    }

    /// A client that has authenticated, with descriptors negotiated, and not said Hello.
    pub fn authenticate(&mut self) -> Who {
        let who = self.accept();
        self.bytes(
            who,
            b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
            &[],
        );
        let answer = "OK 08080808080808080808080808080808\r\nAGREE_UNIX_FD\r\n";
        assert_eq!(String::from_utf8(self.drain(who).0).unwrap(), answer);
        who
    }

    /// A client that has said Hello and read the answer.
    pub fn connect(&mut self) -> Who {
        let who = self.authenticate();
        self.hello(who);
        who
    }

    /// The same without descriptors.
    pub fn connect_without_fds(&mut self) -> Who {
        let who = self.accept();
        self.bytes(who, b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n", &[]);
        self.drain(who);
        self.hello(who);
        who
    }

    fn hello(&mut self, who: Who) {
        self.driver(who, "Hello", |_| {});
        let got = self.read(who);
        assert_eq!(got.len(), 2, "{got:?}");
    }

    pub fn peer(&self, who: Who) -> PeerId {
        self.clients[who].peer
    }

    pub fn is_open(&self, who: Who) -> bool {
        self.clients[who].is_open
    }

    /// Bytes arrive from a client.
    pub fn bytes(&mut self, who: Who, bytes: &[u8], fds: &[Fd]) {
        let cut = if self.restarts { bytes.len() / 2 } else { 0 };
        let (first, rest) = bytes.split_at(cut);
        let mut fds: Fds = fds.iter().copied().collect();
        // They are on their way, and the bus has none of them.
        self.descriptors.open.retain(|fd| !fds.contains(fd));
        // Descriptors come with the first bytes after BEGIN at the earliest.
        if !first.is_empty() {
            let with_first = if first.starts_with(b"\0") {
                Fds::new()
            } else {
                std::mem::take(&mut fds)
            };
            self.arrive(who, first, with_first);
        }
        self.arrive(who, rest, fds);
    }

    /// One read.
    fn arrive(&mut self, who: Who, bytes: &[u8], fds: Fds) {
        if self.restarts {
            self.detach(who);
            self.attach(who);
        }
        self.descriptors.open.extend(fds.iter().copied());
        let client = &mut self.clients[who];
        let peer = client.peer;
        client.written += bytes.len() as u64;
        let upto = client.written;
        self.event(Event::Received {
            peer,
            upto,
            data: Bytes::copy_from_slice(bytes),
            fds,
        });
        if self.restarts {
            self.receive(who, upto, bytes);
        }
    }

    /// Bytes that end at this offset of the client's stream, whatever the bus was given before.
    pub fn receive(&mut self, who: Who, upto: u64, bytes: &[u8]) {
        self.event(Event::Received {
            peer: self.peer(who),
            upto,
            data: Bytes::copy_from_slice(bytes),
            fds: Fds::new(),
        });
    }

    /// The client's socket took so many bytes.
    pub fn take(&mut self, who: Who, bytes: u64) {
        let client = &mut self.clients[who];
        let peer = client.peer;
        client.taken += bytes;
        let upto = client.taken;
        self.event(Event::Sent { peer, upto });
        if self.restarts {
            self.event(Event::Sent { peer, upto });
            self.event(Event::Sent { peer, upto: upto / 2 });
        }
    }

    /// How many bytes the client was sent.
    pub fn taken(&self, who: Who) -> u64 {
        self.clients[who].taken
    }

    /// How many bytes the client has written.
    pub fn written(&self, who: Who) -> u64 {
        self.clients[who].written
    }

    /// Sends a message with the client's next serial, which is returned.
    pub fn send(&mut self, who: Who, message: MessageBuilder<'_>) -> u32 {
        self.send_with_fds(who, message, &[])
    }

    pub fn send_with_fds(&mut self, who: Who, message: MessageBuilder<'_>, fds: &[Fd]) -> u32 {
        self.clients[who].serial += 1;
        let serial = self.clients[who].serial;
        let bytes = message.serial(serial).unix_fds(fds.len() as u32).build().unwrap();
        self.bytes(who, &bytes, fds);
        serial
    }

    /// A call to the driver.
    pub fn driver(&mut self, who: Who, member: &str, body: impl FnOnce(&mut BodyWriter)) -> u32 {
        self.send(
            who,
            MessageBuilder::method_call(PATH, member)
                .interface(DRIVER)
                .destination(DRIVER)
                .body(body),
        )
    }

    /// A call to a peer, without arguments.
    pub fn call(&mut self, who: Who, to: &str, member: &str) -> u32 {
        self.send(
            who,
            MessageBuilder::method_call("/", member)
                .interface("a.b")
                .destination(to),
        )
    }

    /// The answer of a peer.
    pub fn reply(&mut self, who: Who, to: &str, reply_serial: u32) -> u32 {
        self.send(who, MessageBuilder::method_return(reply_serial).destination(to))
    }

    pub fn signal(&mut self, who: Who, member: &str) -> u32 {
        self.send(who, MessageBuilder::signal("/", "a.b", member))
    }

    pub fn add_match(&mut self, who: Who, rule: &str) {
        self.driver(who, "AddMatch", |w| {
            w.str(rule);
        });
        let got = self.read(who);
        assert!(got[0].starts_with("return"), "{got:?}");
    }

    pub fn become_monitor(&mut self, who: Who, rules: &[&str]) {
        let call = MessageBuilder::method_call(PATH, "BecomeMonitor")
            .interface("org.freedesktop.DBus.Monitoring")
            .destination(DRIVER)
            .body(|w| {
                w.str_array(rules.iter().copied()).u32(0);
            });
        self.send(who, call);
    }

    pub fn request_name(&mut self, who: Who, name: &str, flags: u32) {
        self.driver(who, "RequestName", |w| {
            w.str(name).u32(flags);
        });
    }

    pub fn close(&mut self, who: Who) {
        let peer = self.peer(who);
        self.event(Event::Closed {
            peer,
            reason: "end of file",
        });
    }

    pub fn wait(&mut self, millis: u64) {
        self.now += millis;
        self.event(Event::Tick {
            now: Millis(self.now),
        });
    }

    /// Takes all bytes that wait for a client, and the descriptors with them, which are the client's now.
    pub fn drain(&mut self, who: Who) -> (Vec<u8>, Vec<Fd>) {
        let peer = self.peer(who);
        let mut taken = (Vec::new(), Vec::new());
        loop {
            let mut iov: Vec<IoSlice<'_>> = Vec::new();
            let Some(queue) = self.broker.send_queue(peer) else {
                break;
            };
            taken.1.extend_from_slice(queue.next_write(&mut iov, 3));
            let length: usize = iov.iter().map(|slice| slice.len()).sum();
            if length == 0 {
                break;
            }
            taken.0.extend(iov.iter().flat_map(|slice| slice.iter().copied()));
            self.take(who, length as u64);
        }
        taken
    }

    /// Reads all that waits for a client: a line for each message.
    pub fn read(&mut self, who: Who) -> Vec<String> {
        self.read_messages(who)
            .iter()
            .map(|(message, fds)| describe(message, *fds))
            .collect()
    }

    pub fn read_messages(&mut self, who: Who) -> Vec<(Message, usize)> {
        let (bytes, fds) = self.drain(who);
        let framer = &mut self.clients[who].framer;
        framer.push(Bytes::from(bytes), fds);
        let mut messages = Vec::new();
        while let Some(framed) = framer.next().unwrap() {
            let line = describe(&framed.message, framed.fds.len());
            self.transcript
                .push(format!("{who} reads {line} {:?}", framed.message.serial()));
            messages.push((framed.message, framed.fds.len()));
        }
        messages
    }

    /// Compares what waits for a client with these lines.
    #[track_caller]
    pub fn expect(&mut self, who: Who, lines: &[&str]) {
        let got = self.read(who);
        assert_eq!(got, lines, "what client {who} got");
    }

    /// What was asked of the system since this was last called.
    pub fn asked(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.asked)
    }

    /// The errands that were asked for since this was last called; everything else that was asked is forgotten.
    pub fn errands(&mut self) -> Vec<(u64, Errand)> {
        let errand = |action| match action {
            Action::RunErrand { id, errand } => Some((id, errand)),
            _ => None,
        };
        self.asked().into_iter().filter_map(errand).collect()
    }

    /// An errand ends with a configuration, which comes in a memfd, or with the reason why there is none.
    pub fn end_reading(&mut self, errand: u64, result: Result<Config, &str>) {
        let payload = Some(self.descriptors.make());
        let result = result.map(Arc::new).map_err(|reason| ConfigRefusal {
            error: "org.freedesktop.DBus.Error.Failed".to_owned(),
            text: reason.to_owned(),
        });
        self.event(Event::ErrandEnded {
            errand,
            outcome: ErrandOutcome::Configuration(result),
            payload,
        });
    }

    /// An errand ends with what was found out about a binary.
    pub fn end_trial(&mut self, errand: u64, verdict: Result<(), &str>) {
        let payload = Some(self.descriptors.make());
        self.event(Event::ErrandEnded {
            errand,
            outcome: ErrandOutcome::Trial(verdict.map_err(str::to_owned)),
            payload,
        });
    }

    /// An errand ends with what was found in the keyring.
    pub fn end_keyring(&mut self, errand: u64, keys: Result<Keys, &str>) {
        let payload = Some(self.descriptors.make());
        self.event(Event::ErrandEnded {
            errand,
            outcome: ErrandOutcome::Keyring(keys.map_err(str::to_owned)),
            payload,
        });
    }

    /// The reason for which a client was disconnected, if it was since this was last asked.
    pub fn close_reason(&mut self, who: Who) -> Option<String> {
        let closed = self.peer(who);
        self.asked().into_iter().find_map(|action| match action {
            Action::Close { peer, reason, .. } if peer == closed => Some(reason.into_owned()),
            _ => None,
        })
    }

    /// How many bytes wait for each client.
    pub fn queued(&self) -> BTreeMap<Who, u64> {
        let length = |client: &Client| self.broker.send_queue(client.peer).map(|queue| queue.len());
        self.clients
            .iter()
            .enumerate()
            .filter_map(|(who, client)| Some((who, length(client)?)))
            .collect()
    }
}

/// `kind name(arguments) from S to D re N fds M`, without what is not there. Messages of the driver are from `bus`.
pub fn describe(message: &Message, fds: usize) -> String {
    let kind = match message.message_type() {
        MessageType::MethodCall => "call",
        MessageType::MethodReturn => "return",
        MessageType::Error => "error",
        MessageType::Signal => "signal",
        MessageType::Unknown(_) => "unknown",
    };
    let name = message.member().or(message.error_name()).unwrap_or_default();
    let name = name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or(name);
    let short = |name: &str| {
        if name == DRIVER {
            "bus".to_owned()
        } else {
            name.to_owned()
        }
    };
    let mut body = message.body();
    let mut arguments = Vec::new();
    while let Some(code) = body.peek() {
        arguments.push(match code {
            b's' => body.read_str().unwrap().to_owned(),
            b'u' => body.read_u32().unwrap().to_string(),
            _ => {
                body.skip().unwrap();
                "..".to_owned()
            }
        });
    }
    let mut line = format!("{kind} {name}({})", arguments.join(", "));
    if let Some(sender) = message.sender() {
        line += &format!(" from {}", short(sender));
    }
    if let Some(destination) = message.destination() {
        line += &format!(" to {}", short(destination));
    }
    if let Some(serial) = message.reply_serial() {
        line += &format!(" re {}", serial.get());
    }
    if fds > 0 {
        line += &format!(" fds {fds}");
    }
    assert_eq!(message.unix_fds() as usize, fds);
    line
}

/// A call that wants no reply.
pub fn one_way<'a>(to: &'a str, member: &'a str) -> MessageBuilder<'a> {
    MessageBuilder::method_call("/", member)
        .interface("a.b")
        .destination(to)
        .flags(Flags::NO_REPLY_EXPECTED)
}
