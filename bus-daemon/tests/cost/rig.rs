//! A bus of some size, on which operations are measured.

use bus_daemon::broker::{Action, Broker, Event, PeerId};
use bus_wire::{Flags, MessageBuilder};
use bytes::Bytes;

use crate::support::driver::drop_ref;
use crate::support::{Bus, DRIVER, Machine, PATH};

/// What there is much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grows {
    /// Idle connections.
    Peers,
    /// Names of one connection.
    Names,
    /// Match rules of one connection, of every kind of key.
    Rules,
    /// Open calls, from one connection to another.
    Calls,
    /// Connections that wait for one name.
    Queue,
    /// Connections that subscribe to NameOwnerChanged.
    Subscribers,
    /// All of these.
    Together,
}

impl Grows {
    pub const ALL: [Self; 7] = [
        Self::Peers,
        Self::Names,
        Self::Rules,
        Self::Calls,
        Self::Queue,
        Self::Subscribers,
        Self::Together,
    ];

    fn is(self, one: Self) -> bool {
        self == one || self == Self::Together
    }
}

/// How much of it: everything else there is one or two of.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub grows: Grows,
    pub most: u32,
}

impl Size {
    pub fn from_environment() -> Self {
        let number = |name: &str| -> u32 { std::env::var(name).unwrap().parse().unwrap() };
        Self {
            grows: Grows::ALL[number("COST_GROWS") as usize],
            most: number("COST_MOST"),
        }
    }

    pub fn environment(self) -> [(&'static str, String); 2] {
        let place = Grows::ALL.iter().position(|grows| *grows == self.grows);
        [
            ("COST_GROWS", place.unwrap().to_string()),
            ("COST_MOST", self.most.to_string()),
        ]
    }

    fn of(self, what: Grows) -> u32 {
        if self.grows.is(what) { self.most } else { 1 }
    }
}

/// Kinds of keys, with the number of a rule in them.
const KEYS: [fn(u32) -> String; 12] = [
    |n| format!("sender='org.example.N{n}'"),
    |n| format!("interface='org.example.I{n}'"),
    |n| format!("member='M{n}'"),
    |n| format!("path='/own/{n}'"),
    |n| format!("path_namespace='/own/n{n}'"),
    |n| format!("arg0='a{n}'"),
    |n| format!("arg0namespace='own.n{n}'"),
    |n| format!("arg1='a{n}'"),
    |n| format!("arg63='a{n}'"),
    |n| format!("arg2path='/own/n{n}/'"),
    |n| format!("path_namespace='/own/n{n}',arg1='b{n}'"),
    |n| format!("type='signal',sender='org.example.N{n}',arg0namespace='own.n{n}'"),
];

/// A connection that has much of everything, and will leave.
pub struct Loaded {
    pub id: PeerId,
    pub unique: String,
    /// The connection that awaits its answers.
    pub caller: PeerId,
}

pub struct Rig {
    pub bus: Bus,
    size: Size,
    /// Asks for everything, and has nothing.
    pub alice: PeerId,
    /// Hears signals by one rule, and answers calls.
    pub bob: PeerId,
    pub bob_name: String,
    /// Those who will leave, the last first.
    pub loaded: Vec<Loaded>,
    /// How many times names were made up.
    made_up: u32,
}

/// The name that many wait for.
pub const QUEUED: &str = "org.example.Queued";

impl Rig {
    pub fn build(size: Size) -> Self {
        let mut bus = Bus::new();
        let (alice, bob) = (bus.join(), bus.connect());
        let bob_name = bus.greet(bob);
        let mut rig = Self {
            bus,
            size,
            alice,
            bob,
            bob_name,
            loaded: Vec::new(),
            made_up: 0,
        };
        rig.ask(bob, "AddMatch", |w| {
            drop_ref(w.str("interface='org.example.Heard'"))
        });
        for _ in 0..size.of(Grows::Peers) {
            rig.bus.join();
        }
        // One for each way to leave, and one to be asked about.
        for _ in 0..5 {
            let loaded = rig.load();
            rig.loaded.push(loaded);
        }
        for _ in 0..1 + size.of(Grows::Queue) {
            let waiting = rig.bus.join();
            rig.ask(waiting, "RequestName", |w| drop_ref(w.str(QUEUED).u32(0)));
        }
        for _ in 0..size.of(Grows::Subscribers) {
            let subscriber = rig.bus.join();
            rig.ask(subscriber, "AddMatch", |w| {
                drop_ref(w.str("member='NameOwnerChanged'"))
            });
        }
        rig.drain_all();
        rig
    }

    /// Somebody who has as much as the size says.
    pub fn load(&mut self) -> Loaded {
        let id = self.bus.connect();
        let unique = self.bus.greet(id);
        for _ in 0..self.size.of(Grows::Names) {
            let name = self.new_name();
            self.ask(id, "RequestName", |w| drop_ref(w.str(&name).u32(0)));
        }
        for n in 0..self.size.of(Grows::Rules) {
            let rule = KEYS[n as usize % KEYS.len()](n);
            self.ask(id, "AddMatch", |w| drop_ref(w.str(&rule)));
        }
        let caller = self.bus.join();
        for _ in 0..self.size.of(Grows::Calls) {
            let call = MessageBuilder::method_call("/", "M").destination(&unique);
            self.bus.send(caller, call);
        }
        self.drain(id);
        Loaded { id, unique, caller }
    }

    /// A well-known name that nobody has.
    pub fn new_name(&mut self) -> String {
        self.made_up += 1;
        format!("org.example.Made.N{}", self.made_up)
    }

    /// Who has this unique name.
    pub fn by_unique(&self, unique: &str) -> PeerId {
        let of = |id: &PeerId| {
            let (name, _) = self.bus.broker.identity_of(*id).unwrap();
            name.as_deref() == Some(unique)
        };
        self.bus.broker.peer_ids().find(of).unwrap()
    }

    /// Calls the driver, and forgets the answer.
    pub fn ask(&mut self, peer: PeerId, member: &str, body: impl FnOnce(&mut bus_wire::BodyWriter)) {
        let reply = self.bus.call(peer, DRIVER, member, body);
        assert_eq!(reply.error_name(), None, "{member}");
        self.settle();
    }

    /// Everybody reads everything.
    fn drain_all(&mut self) {
        let all: Vec<PeerId> = self.bus.broker.peer_ids().collect();
        for peer in all {
            self.drain(peer);
        }
    }

    /// All that waits for a peer is sent.
    pub fn drain(&mut self, peer: PeerId) {
        if let Some(queue) = self.bus.broker.send_queue(peer) {
            let upto = queue.end();
            self.bus.handle(Event::Sent { peer, upto });
        }
    }

    /// The steps that are left.
    pub fn settle(&mut self) {
        finish(&mut self.bus.broker, &mut self.bus.system);
    }

    /// A message of a peer, as the runtime would have read it.
    pub fn message(&mut self, from: PeerId, message: MessageBuilder<'_>) -> Event {
        let serial = 1_000_000 + self.made_up;
        self.made_up += 1;
        self.bytes(from, &message.serial(serial).build().unwrap())
    }

    pub fn bytes(&mut self, from: PeerId, bytes: &[u8]) -> Event {
        self.bus.note_written(from, bytes);
        Event::Received {
            peer: from,
            upto: self.bus.broker.taken(from) + bytes.len() as u64,
            data: Bytes::copy_from_slice(bytes),
            fds: Default::default(),
        }
    }

    /// A call of the driver by somebody.
    pub fn call_as(
        &mut self,
        from: PeerId,
        interface: &str,
        member: &str,
        body: impl FnOnce(&mut bus_wire::BodyWriter),
    ) -> Vec<Event> {
        let call = MessageBuilder::method_call(PATH, member)
            .interface(interface)
            .destination(DRIVER)
            .flags(Flags::NONE)
            .body(body);
        vec![self.message(from, call)]
    }

    /// Applies the events, which are what is counted, with the steps that they leave.
    pub fn measure(&mut self, events: Vec<Event>) {
        measured_operation(&mut self.bus.broker, &mut self.bus.system, events);
    }

    /// The bus is in order, and everybody has read what came.
    pub fn check(&mut self, after: &str) {
        if self.size.most < 100 {
            self.bus
                .broker
                .check_invariants()
                .unwrap_or_else(|violation| panic!("{after}: {violation}"));
        }
        self.drain_all();
    }
}

/// What callgrind counts.
#[inline(never)]
fn measured_operation(broker: &mut Broker, system: &mut Machine, events: Vec<Event>) {
    for event in events {
        broker.handle(event, system);
    }
    finish(broker, system);
}

fn finish(broker: &mut Broker, system: &mut Machine) {
    while let Some(action) = broker.actions().pop_front() {
        if let Action::ScheduleStep(peer) = action {
            while broker.wants_step(peer) {
                broker.handle(Event::Step { peer }, system);
            }
        }
    }
}
