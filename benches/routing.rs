//! What the pure core makes of a message: from the bytes that came in to the bytes that wait in a send queue.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;

use bus_daemon::broker::{
    Attested, Broker, Credentials, Event, Fds, Identity, ListenerIdentity, Millis, PeerId, System, Transport,
};
use bus_daemon::config::{Config, Limits, Simple};
use bus_wire::{Fd, Guid, Message, MessageBuilder};
use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

criterion_group!(benches, unicast, fan_out, rules_of_others, driver, snapshot);
criterion_main!(benches);

const PATH: &str = "/org/example/Object";
const INTERFACE: &str = "org.example.Interface";
const BUS: &str = "org.freedesktop.DBus";
const OWN_UID: u32 = 1000;

/// Calls and their replies between two peers; one element is a call with its reply.
fn unicast(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unicast");
    for in_flight in [1, 64] {
        let mut bus = Bus::new();
        let (caller, callee) = (bus.connect(), bus.connect());
        let calls = numbered(1..=in_flight, |serial| {
            let call = MessageBuilder::method_call(PATH, "Method").interface(INTERFACE);
            call.destination(&callee.name).serial(serial)
        });
        let replies = numbered(1..=in_flight, |serial| {
            MessageBuilder::method_return(serial)
                .destination(&caller.name)
                .serial(serial)
        });
        group.throughput(Throughput::Elements(u64::from(in_flight)));
        group.bench_function(
            BenchmarkId::new("call and reply, in flight", in_flight),
            |bencher| {
                bencher.iter(|| {
                    bus.receive(caller.id, calls.clone());
                    bus.drain();
                    bus.receive(callee.id, replies.clone());
                    assert!(bus.drain() > 0, "nothing was answered");
                });
            },
        );
        bus.check();
    }
    group.finish();
}

/// A signal to all of its subscribers; one element is a delivery.
fn fan_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan-out");
    for subscribers in [1, 100, 1000] {
        let mut bus = Bus::new();
        let sender = bus.connect();
        for _ in 0..subscribers {
            let subscriber = bus.connect();
            bus.add_match(&subscriber, &format!("type='signal',interface='{INTERFACE}'"));
        }
        let tick = signal();
        group.throughput(Throughput::Elements(subscribers));
        group.bench_function(BenchmarkId::new("subscribers", subscribers), |bencher| {
            bencher.iter(|| {
                bus.receive(sender.id, tick.clone());
                assert!(bus.drain() > 0, "nothing was delivered");
            });
        });
        bus.check();
    }
    group.finish();
}

/// A signal to one subscriber, while others hold 10,000 rules of which none matches.
fn rules_of_others(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("signal to one, 10,000 rules of others differing in");
    type Condition = fn(usize) -> String;
    let kinds: [(&str, usize, Condition); 7] = [
        ("nothing (none held)", 0, |_| String::new()),
        ("path", 10_000, |number| {
            format!("path='/org/example/Other{number}'")
        }),
        ("path_namespace", 10_000, |number| {
            format!("path_namespace='/org/example/other{number}'")
        }),
        ("arg0", 10_000, |number| format!("arg0='other{number}'")),
        ("arg0namespace", 10_000, |number| {
            format!("arg0namespace='org.example.other{number}'")
        }),
        ("sender", 10_000, |number| {
            format!("sender='org.example.Other{number}'")
        }),
        ("interface", 10_000, |number| {
            format!("interface='org.example.Other{number}'")
        }),
    ];
    for (name, count, condition) in kinds {
        let mut bus = Bus::new();
        let (sender, subscriber) = (bus.connect(), bus.connect());
        bus.add_match(&subscriber, &format!("type='signal',interface='{INTERFACE}'"));
        let holders: Vec<Peer> = (0..10).map(|_| bus.connect()).collect();
        for number in 0..count {
            let holder = &holders[number % holders.len()];
            if name == "sender" {
                bus.request_name(holder, &format!("org.example.Other{number}"));
            }
            bus.add_match(
                holder,
                &format!("type='signal',member='Tick',{}", condition(number)),
            );
        }
        let tick = signal();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                bus.receive(sender.id, tick.clone());
                assert!(bus.drain() > 0, "nothing was delivered");
            });
        });
        bus.check();
    }
    group.finish();
}

/// Calls of the bus itself.
fn driver(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("driver");
    for (name, watchers) in [("no watchers", 0), ("10,000 watchers of other names", 10_000)] {
        let mut bus = Bus::new();
        let peer = bus.connect();
        let watcher = bus.connect();
        for number in 0..watchers {
            let rule = format!(
                "type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='org.example.Other{number}'"
            );
            bus.add_match(&watcher, &rule);
        }
        let both: Bytes = [request_name("org.example.Name"), release_name("org.example.Name")]
            .concat()
            .into();
        group.bench_function(BenchmarkId::new("RequestName and ReleaseName", name), |bencher| {
            bencher.iter(|| {
                bus.receive(peer.id, both.clone());
                assert!(bus.drain() > 0, "nothing was delivered");
            });
        });
    }
    let mut bus = Bus::new();
    let peer = bus.connect();
    let ping = driver_call("Ping").interface("org.freedesktop.DBus.Peer");
    let ping = Bytes::from(built(ping.serial(1u32)));
    group.bench_function("Ping", |bencher| {
        bencher.iter(|| {
            bus.receive(peer.id, ping.clone());
            assert!(bus.drain() > 0, "nothing was answered");
        });
    });
    group.bench_function("connect, authenticate, Hello, close", |bencher| {
        bencher.iter_batched(
            || (),
            |()| {
                let peer = bus.connect();
                bus.close(peer.id)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// What an upgrade saves and restores: 1,000 peers, each with a name and ten rules.
fn snapshot(criterion: &mut Criterion) {
    let mut bus = Bus::new();
    for number in 0..1000 {
        let peer = bus.connect();
        bus.request_name(&peer, &format!("org.example.Name{number}"));
        for rule in 0..10 {
            bus.add_match(
                &peer,
                &format!("type='signal',interface='org.example.I{rule}',path='/p{number}'"),
            );
        }
    }
    let mut group = criterion.benchmark_group("1,000 peers with a name and ten rules");
    group.sample_size(20);
    group.bench_function("save", |bencher| bencher.iter(|| black_box(bus.broker.save())));
    group.bench_function("restore", |bencher| {
        bencher.iter_batched(
            || bus.broker.save(),
            |state| black_box(Broker::restore(state)),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn signal() -> Bytes {
    let signal = MessageBuilder::signal(PATH, INTERFACE, "Tick")
        .serial(1u32)
        .body(|body| {
            body.str("an argument");
        });
    built(signal).into()
}

fn driver_call(member: &str) -> MessageBuilder<'_> {
    MessageBuilder::method_call("/org/freedesktop/DBus", member).destination(BUS)
}

fn request_name(name: &str) -> Vec<u8> {
    built(
        driver_call("RequestName")
            .interface(BUS)
            .serial(1u32)
            .body(|body| {
                body.str(name).u32(0);
            }),
    )
}

fn release_name(name: &str) -> Vec<u8> {
    built(
        driver_call("ReleaseName")
            .interface(BUS)
            .serial(2u32)
            .body(|body| {
                body.str(name);
            }),
    )
}

fn built(builder: MessageBuilder<'_>) -> Vec<u8> {
    builder.build().expect("a valid message")
}

/// Messages one behind the other, as one read may bring them.
fn numbered<'a>(
    serials: impl IntoIterator<Item = u32>,
    message: impl Fn(u32) -> MessageBuilder<'a>,
) -> Bytes {
    serials
        .into_iter()
        .flat_map(|serial| built(message(serial)))
        .collect::<Vec<u8>>()
        .into()
}

/// A peer that has said Hello.
struct Peer {
    id: PeerId,
    name: String,
}

/// The core with sockets that take everything at once.
struct Bus {
    broker: Broker,
    dirty: Vec<PeerId>,
    connections: u32,
}

impl Bus {
    fn new() -> Bus {
        let identity = Identity {
            guid: Guid::from_bytes([1; 16]),
            listeners: vec![ListenerIdentity {
                guid: Guid::from_bytes([2; 16]),
                transport: Transport::Unix,
                nonce: None,
            }],
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            keeper_pid: 1,
            own_uid: OWN_UID,
            hash_seed: 7,
        };
        let config = Config {
            limits: Limits::session(),
            policy: Arc::new(Simple::OPEN.into()),
            ..Config::default()
        };
        Bus {
            broker: Broker::new(identity, Arc::new(config), Millis(1)),
            dirty: Vec::new(),
            connections: 0,
        }
    }

    fn connect(&mut self) -> Peer {
        let id = PeerId {
            index: self.connections,
            generation: 1,
        };
        self.connections += 1;
        let credentials = Credentials {
            uid: Some(OWN_UID),
            gid: Some(OWN_UID),
            pid: Some(2),
        };
        self.handle(Event::Accepted {
            peer: id,
            listener: 0,
            socket: Fd(id.index as i32),
            attested: Attested {
                credentials,
                ..Attested::default()
            },
        });
        // The hexadecimal digits of "1000".
        let mut hello = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n".to_vec();
        hello.extend(built(driver_call("Hello").interface(BUS).serial(1u32)));
        self.receive(id, hello.into());
        let answer = self.queued(id);
        let lines = b"AGREE_UNIX_FD\r\n";
        let begin = answer
            .windows(lines.len())
            .position(|part| part == lines)
            .expect("authenticated")
            + lines.len();
        let length = bus_wire::message_length(&answer[begin..])
            .ok()
            .flatten()
            .expect("a reply to Hello");
        let reply =
            Message::parse(Bytes::copy_from_slice(&answer[begin..begin + length])).expect("a valid reply");
        let name = reply
            .destination()
            .expect("a reply to Hello has a destination")
            .to_owned();
        self.drain();
        Peer { id, name }
    }

    fn add_match(&mut self, peer: &Peer, rule: &str) {
        let call = driver_call("AddMatch").interface(BUS).serial(2u32).body(|body| {
            body.str(rule);
        });
        self.receive(peer.id, built(call).into());
        self.drain();
    }

    fn request_name(&mut self, peer: &Peer, name: &str) {
        self.receive(peer.id, request_name(name).into());
        self.drain();
    }

    fn close(&mut self, peer: PeerId) {
        self.handle(Event::Closed {
            peer,
            reason: "end of file",
        });
        self.drain();
        self.connections -= 1;
    }

    fn receive(&mut self, peer: PeerId, data: Bytes) {
        let upto = self.broker.taken(peer) + data.len() as u64;
        self.handle(Event::Received {
            peer,
            upto,
            data,
            fds: Fds::new(),
        });
    }

    /// Takes everything out of every send queue; gives the number of bytes.
    fn drain(&mut self) -> u64 {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.clear();
        self.broker.take_dirty(&mut dirty);
        let mut sum = 0;
        for &peer in &dirty {
            let Some(queue) = self.broker.send_queue(peer) else {
                continue;
            };
            let (bytes, upto) = (queue.len(), queue.end());
            if bytes > 0 {
                self.handle(Event::Sent { peer, upto });
                sum += bytes;
            }
        }
        self.dirty = dirty;
        self.broker.actions().clear();
        sum
    }

    fn queued(&self, peer: PeerId) -> Vec<u8> {
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        if let Some(queue) = self.broker.send_queue(peer) {
            queue.next_write(&mut slices, usize::MAX);
        }
        slices.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    fn handle(&mut self, event: Event) {
        self.broker.handle(event, &mut NoSystem);
    }

    /// What was measured was a bus in order.
    fn check(&self) {
        self.broker
            .check_invariants()
            .expect("the indexes agree with the peers");
    }
}

/// Nothing that is measured here needs to know more of a peer.
struct NoSystem;

impl System for NoSystem {
    fn peer_pidfd(&mut self, _socket: Fd) -> Option<Fd> {
        None
    }

    fn duplicate(&mut self, _fd: Fd) -> Option<Fd> {
        None
    }
}
