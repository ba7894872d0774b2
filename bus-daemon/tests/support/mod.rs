//! A bus without sockets, and peers that talk to it in whole messages.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod driver;

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;

use bus_daemon::broker::{
    Action, Attested, Broker, Credentials, Event, Fds, Identity, ListenerIdentity, MachineId, Millis, PeerId,
    System, Transport,
};
use bus_daemon::config::{BusType, Config, Limits, Simple};
use bus_wire::{BodyWriter, Fd, Framer, Guid, Message, MessageBuilder};
use bytes::Bytes;

/// Path, name and main interface of the driver.
pub const PATH: &str = "/org/freedesktop/DBus";
pub const DRIVER: &str = "org.freedesktop.DBus";

/// The user that the bus runs as.
pub const OWN_UID: u32 = 1000;

/// A bus that allows everything, unless it is told otherwise.
pub fn session() -> Config {
    Config {
        bus_type: BusType::Session,
        policy: Arc::new(Simple::OPEN.into()),
        limits: Limits::session(),
        ..Config::default()
    }
}

/// The broker, what it is told of the system, and one end of each link.
pub struct Bus {
    pub broker: Broker,
    pub system: Machine,
    links: HashMap<PeerId, Link>,
    next_peer: u32,
}

struct Link {
    framer: Framer,
    serial: u32,
    fds: Vec<Fd>,
    written: u64,
}

/// What the system would say.
#[derive(Default)]
pub struct Machine {
    pub pidfd: Option<Fd>,
    pub machine_id: MachineId,
    pub asked: u32,
}

impl System for Machine {
    fn peer_pidfd(&mut self, _: Fd) -> Option<Fd> {
        self.asked += 1;
        self.pidfd
    }

    fn machine_id(&mut self) -> MachineId {
        self.asked += 1;
        self.machine_id.clone()
    }

    fn duplicate(&mut self, fd: Fd) -> Option<Fd> {
        Some(Fd(fd.0 + 1000))
    }
}

impl Bus {
    pub fn new() -> Self {
        Self::with_config(session())
    }

    pub fn with_config(config: Config) -> Self {
        Self::on_machine("0123456789abcdef0123456789abcdef", config)
    }

    /// On a machine of this id; the empty one if it had none when the bus was started.
    pub fn on_machine(id: &str, config: Config) -> Self {
        let guid = Guid::from_bytes([0xab; 16]);
        let identity = Identity {
            guid,
            listeners: vec![ListenerIdentity {
                guid: Guid::from_bytes([0xcd; 16]),
                transport: Transport::Unix,
                nonce: None,
            }],
            machine_id: id.to_owned(),
            keeper_pid: 42,
            own_uid: OWN_UID,
            hash_seed: 7,
        };
        let broker = Broker::new(identity, Arc::new(config), Millis(1000));
        Self {
            broker,
            system: Machine::default(),
            links: HashMap::new(),
            next_peer: 0,
        }
    }

    pub fn handle(&mut self, event: Event) {
        self.broker.handle(event, &mut self.system);
    }

    /// A peer of the bus's own user that has authenticated and not said Hello.
    pub fn connect(&mut self) -> PeerId {
        self.connect_as(Credentials {
            uid: Some(OWN_UID),
            gid: Some(100),
            pid: Some(4711),
        })
    }

    pub fn connect_as(&mut self, credentials: Credentials) -> PeerId {
        self.connect_attested(Attested {
            credentials,
            ..Attested::default()
        })
    }

    pub fn connect_attested(&mut self, attested: Attested) -> PeerId {
        let uid: String = attested
            .credentials
            .uid
            .unwrap_or(0)
            .to_string()
            .bytes()
            .map(|digit| format!("{digit:02x}"))
            .collect();
        self.connect_with(attested, &format!("EXTERNAL {uid}"))
    }

    /// A peer that authenticates so.
    pub fn connect_with(&mut self, attested: Attested, auth: &str) -> PeerId {
        let peer = PeerId {
            index: self.next_peer,
            generation: 1,
        };
        self.next_peer += 1;
        self.links.insert(
            peer,
            Link {
                framer: Framer::new(1 << 27),
                serial: 0,
                fds: Vec::new(),
                written: 0,
            },
        );
        self.handle(Event::Accepted {
            peer,
            listener: 0,
            socket: Fd(1_000_000 + peer.index as i32),
            attested,
        });
        let hello = format!("\0AUTH {auth}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        self.send_bytes(peer, hello.as_bytes());
        let answer = String::from_utf8(self.take_bytes(peer)).unwrap();
        assert!(
            answer.starts_with("OK ") && answer.ends_with("AGREE_UNIX_FD\r\n"),
            "{answer:?}"
        );
        peer
    }

    /// A peer with a unique name, which has read all that Hello brings.
    pub fn join(&mut self) -> PeerId {
        let peer = self.connect();
        self.greet(peer);
        peer
    }

    /// Says Hello. The unique name.
    pub fn greet(&mut self, peer: PeerId) -> String {
        let reply = self.call(peer, DRIVER, "Hello", |_| ());
        assert_eq!(reply.error_name(), None);
        self.read(peer);
        reply.body().read_str().unwrap().to_owned()
    }

    pub fn send_bytes(&mut self, peer: PeerId, bytes: &[u8]) {
        let link = self.links.get_mut(&peer).unwrap();
        link.written += bytes.len() as u64;
        let upto = link.written;
        self.handle(Event::Received {
            peer,
            upto,
            data: Bytes::copy_from_slice(bytes),
            fds: Fds::new(),
        });
    }

    /// The bus will be given so many bytes of a peer's in another way.
    pub fn note_written(&mut self, peer: PeerId, bytes: &[u8]) {
        self.links.get_mut(&peer).unwrap().written += bytes.len() as u64;
    }

    /// Sends a message under the next serial, which is returned.
    pub fn send(&mut self, peer: PeerId, message: MessageBuilder<'_>) -> u32 {
        let serial = self.next_serial(peer);
        let bytes = message.serial(serial).build().unwrap();
        self.send_bytes(peer, &bytes);
        serial
    }

    fn next_serial(&mut self, peer: PeerId) -> u32 {
        let link = self.links.get_mut(&peer).unwrap();
        link.serial += 1;
        link.serial
    }

    /// Calls the driver at its own path, and reads until the reply: what comes before it is put away, what comes after
    /// it is still to be read.
    pub fn call(
        &mut self,
        peer: PeerId,
        interface: &str,
        member: &str,
        body: impl FnOnce(&mut BodyWriter),
    ) -> Message {
        let call = MessageBuilder::method_call(PATH, member)
            .interface(interface)
            .destination(DRIVER)
            .body(body);
        self.call_with(peer, call)
    }

    /// Sends a call, and gives its reply out of all that was sent to the peer by then.
    pub fn call_with(&mut self, peer: PeerId, call: MessageBuilder<'_>) -> Message {
        let serial = self.send(peer, call);
        let all = self.read(peer);
        let reply = all
            .iter()
            .find(|message| message.reply_serial().is_some_and(|found| found.get() == serial));
        reply.unwrap_or_else(|| panic!("no reply among {all:?}")).clone()
    }

    /// Everything that was sent to the peer since it was last asked.
    pub fn read(&mut self, peer: PeerId) -> Vec<Message> {
        let bytes = self.take_bytes(peer);
        let link = self.links.get_mut(&peer).unwrap();
        let fds = std::mem::take(&mut link.fds);
        link.framer.push(Bytes::from(bytes), fds);
        std::iter::from_fn(|| link.framer.next().unwrap())
            .map(|framed| framed.message)
            .collect()
    }

    /// Takes what is queued, as the peer's socket would.
    pub fn take_bytes(&mut self, peer: PeerId) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(queue) = self.broker.send_queue(peer).filter(|queue| !queue.is_empty()) {
            let mut slices: Vec<IoSlice<'_>> = Vec::new();
            let fds = queue.next_write(&mut slices, 16).to_vec();
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            all.extend_from_slice(&bytes);
            let upto = queue.sent() + bytes.len() as u64;
            self.links.get_mut(&peer).unwrap().fds.extend(fds);
            self.handle(Event::Sent { peer, upto });
        }
        all
    }

    /// What the broker asked of the system since it was last asked.
    pub fn actions(&mut self) -> Vec<Action> {
        self.broker.actions().drain(..).collect()
    }

    /// Whether the broker has given a peer up.
    pub fn is_gone(&self, peer: PeerId) -> bool {
        self.broker.send_queue(peer).is_none()
    }
}

/// A message in short: `"NameOwnerChanged x.y '' :1.0"`, `"reply 2 1"`, `"error 2 Failed"`.
pub fn short(message: &Message) -> String {
    use bus_wire::MessageType;
    let mut body = message.body();
    let mut words = match message.message_type() {
        MessageType::MethodReturn => format!("reply {}", message.reply_serial().unwrap().get()),
        MessageType::Error => {
            let name = message.error_name().unwrap().rsplit('.').next().unwrap();
            return format!("error {} {name}", message.reply_serial().unwrap().get());
        }
        MessageType::MethodCall | MessageType::Signal | MessageType::Unknown(_) => {
            message.member().unwrap().to_owned()
        }
    };
    while let Some(code) = body.peek() {
        match code {
            b's' => match body.read_str().unwrap() {
                "" => words.push_str(" ''"),
                text => words.push_str(&format!(" {text}")),
            },
            b'u' => words.push_str(&format!(" {}", body.read_u32().unwrap())),
            b'b' => words.push_str(&format!(" {}", body.read_bool().unwrap())),
            _ => {
                words.push_str(&format!(" <{}>", body.peek_signature()));
                body.skip().unwrap();
            }
        }
    }
    words
}

pub fn shorts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(short).collect()
}
