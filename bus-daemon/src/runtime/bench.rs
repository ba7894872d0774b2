//! For benchmarks and tests of cost: a bus with its journal and without sockets, whose peers send as they are told to.

#![cfg_attr(
    not(feature = "bench-hooks"),
    allow(unreachable_pub, reason = "for benchmarks")
)]

use std::sync::Arc;

use bus_wire::MessageBuilder;

use super::recover;
use super::system::Kernel;
use crate::broker::{
    Attested, Broker, Credentials, Event, Fds, Identity, ListenerIdentity, Millis, PeerId, Transport,
};
use crate::config::{Config, Limits, Simple};
use crate::journal::{Journal, RareEvent, Remains};

const BUS: &str = "org.freedesktop.DBus";

/// A bus with so many peers, each of which has a name and a match rule, and read all that was sent to it.
pub struct JournaledBus {
    broker: Broker,
    journal: Journal,
    remains: Remains,
    peers: Vec<PeerId>,
    /// Who sends next.
    next: usize,
}

impl JournaledBus {
    /// All of it is in a checkpoint.
    ///
    /// # Panics
    /// Where there is no memory for a journal.
    pub fn new(peers: u32) -> Self {
        let journal = Journal::create().unwrap_or_else(|error| panic!("no memory for a journal: {error}"));
        let guid = bus_wire::Guid::from_bytes([7; 16]);
        let identity = Identity {
            guid,
            listeners: vec![ListenerIdentity {
                guid,
                transport: Transport::Unix,
                nonce: None,
            }],
            machine_id: guid.to_string(),
            keeper_pid: 1,
            own_uid: 0,
            hash_seed: 5,
        };
        let limits = Limits::session();
        let config = Config {
            policy: Arc::new(Simple::OPEN.into()),
            limits: Limits {
                max_completed_connections: u64::MAX,
                max_connections_per_user: u64::MAX,
                ..limits
            },
            ..Config::default()
        };
        let broker = Broker::new(identity, Arc::new(config), Millis(0));
        let remains = journal.remains();
        let mut bus = Self {
            broker,
            journal,
            remains,
            peers: Vec::new(),
            next: 0,
        };
        for number in 0..peers {
            bus.connect(number);
            if number % 512 == 0 {
                bus.checkpoint();
            }
        }
        bus.checkpoint();
        bus
    }

    /// So many peers, one after the other, call the bus and read the answer; the next time it is the turn of those after
    /// them.
    pub fn change(&mut self, peers: usize) {
        for _ in 0..peers {
            let peer = self.peers[self.next];
            self.next = (self.next + 1) % self.peers.len();
            let call = call("GetId", |_| ());
            self.receive(peer, &call);
        }
    }

    /// Takes a checkpoint.
    ///
    /// # Panics
    /// Where that fails.
    pub fn checkpoint(&mut self) {
        if let Err(error) = self.journal.checkpoint(&mut self.broker, self.peers.len() as u32) {
            panic!("no checkpoint: {error}");
        }
    }

    /// Recovers, as the next worker does after a death, from the newest checkpoint and the events since. The number of
    /// peers that are there.
    ///
    /// # Panics
    /// Where that fails, or somebody is lost.
    pub fn recover(&self) -> usize {
        let journal = Journal::reopen(self.remains).map_err(|error| error.to_string());
        let recovered = journal.and_then(|mut journal| recover::replay(&mut journal, -1, None));
        match recovered {
            Ok(recovered) if recovered.in_doubt.is_empty() && !recovered.is_damaged => {
                recovered.broker.peer_ids().count()
            }
            Ok(recovered) => panic!("in doubt: {:?}", recovered.in_doubt),
            Err(error) => panic!("no recovery: {error}"),
        }
    }

    fn connect(&mut self, number: u32) {
        let peer = PeerId {
            index: number,
            generation: number + 1,
        };
        let attested = Attested {
            credentials: Credentials {
                uid: Some(0),
                gid: Some(0),
                pid: Some(1),
            },
            ..Attested::default()
        };
        // The number of no descriptor: it is never looked at.
        let Some(socket) = self.journal.assign(1 << 20) else {
            panic!("no handle for a socket")
        };
        self.journal.note(
            Some(peer),
            &RareEvent::Accepted {
                listener: 0,
                socket,
                attested: attested.clone(),
            },
        );
        self.handle(Event::Accepted {
            peer,
            listener: 0,
            socket,
            attested,
        });
        let mut input = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n".to_vec();
        input.extend(call("Hello", |_| ()));
        input.extend(call("RequestName", |body| {
            body.str(&format!("org.example.Name{number}")).u32(0);
        }));
        input.extend(call("AddMatch", |body| {
            body.str(&format!("path='/org/example/{number}'"));
        }));
        self.receive(peer, &input);
        self.peers.push(peer);
    }

    /// The peer has sent this, and reads what is there for it.
    fn receive(&mut self, peer: PeerId, input: &[u8]) {
        let taken = self.broker.taken(peer);
        let data = self.journal.pretend_received(peer, taken, input);
        assert_eq!(data.len(), input.len(), "a read is longer than the room for it");
        self.handle(Event::Received {
            peer,
            upto: taken + data.len() as u64,
            data,
            fds: Fds::new(),
        });
        let upto = self.broker.send_queue(peer).map_or(0, bus_wire::SendQueue::end);
        self.journal.pretend_sent(peer, upto);
        self.handle(Event::Sent { peer, upto });
        self.broker.actions().clear();
    }

    fn handle(&mut self, event: Event) {
        self.broker.handle(
            event,
            &mut Kernel {
                journal: &mut self.journal,
            },
        );
    }
}

fn call(member: &str, body: impl FnOnce(&mut bus_wire::BodyWriter)) -> Vec<u8> {
    let call = MessageBuilder::method_call("/org/freedesktop/DBus", member)
        .destination(BUS)
        .serial(1u32)
        .body(body);
    match call.build() {
        Ok(bytes) => bytes,
        Err(error) => panic!("a call cannot be built: {error}"),
    }
}
