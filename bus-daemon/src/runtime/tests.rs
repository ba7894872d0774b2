//! A real worker in the process of the test, on real sockets: what a replay of its journal gives is what it had.

mod ahead;
mod cost;
mod damaged_store;
mod entries;
#[cfg(target_arch = "x86_64")]
mod every_store;
mod full_table;
#[cfg(target_arch = "x86_64")]
mod groups;
#[cfg(target_arch = "x86_64")]
mod half;
mod heard;
mod in_flight;
mod lost_fds;
mod short;
mod sparse;
mod told;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use bus_wire::MessageBuilder;
use nix::sys::epoll::{Epoll, EpollCreateFlags};

pub(super) use told::{Told, meet};

use super::worker::Worker;
use super::{identity, recover};
use crate::broker::{Broker, PeerId, SharedBodies, Start};
use crate::config::{Config, Limits, Simple};
use crate::control::{Control, Outbox};
use crate::handoff::codec;
use crate::handoff::keeper::{KeeperV1, Listener};
use crate::journal::{Journal, Remains};

/// A record with one listener at this path.
fn record_of(socket: &Path, epoll: RawFd) -> KeeperV1 {
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let guid = "0123456789abcdef0123456789abcdef".to_owned();
    let listener = Listener {
        fd: listener.into_raw_fd(),
        address: format!("unix:path={}", socket.display()),
        guid: guid.clone(),
        path: None,
    };
    KeeperV1::new(
        &[],
        Path::new("/proc/self/exe"),
        vec![listener],
        guid.clone(),
        guid,
        epoll,
        crate::control::Control::create().unwrap(),
        None,
    )
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// The seed: `BUS_JOURNAL_SEED`, or this process's id.
fn random() -> Random {
    let seed = std::env::var("BUS_JOURNAL_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("BUS_JOURNAL_SEED={seed}");
    Random(seed)
}

/// A worker, and clients that write whatever comes to their minds.
struct Rig {
    worker: Worker,
    outbox: Outbox,
    control: Control,
    remains: Remains,
    /// Every read is short enough to be under a checksum.
    small: bool,
    clients: Vec<Client>,
    path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

struct Client {
    stream: UnixStream,
    /// What it still has to write.
    waiting: Vec<u8>,
    serial: u32,
}

fn session() -> Config {
    Config {
        policy: Arc::new(Simple::OPEN.into()),
        limits: Limits::session(),
        ..Config::default()
    }
}

fn record(socket: &Path) -> KeeperV1 {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    record_of(socket, epoll.0.into_raw_fd())
}

impl Rig {
    fn new(small: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let record = record(&path);
        let control = record.control;
        let journal = Journal::create().unwrap();
        let remains = journal.remains();
        let broker = Broker::new(
            identity(&record).unwrap(),
            Arc::new(session()),
            crate::runtime::now(),
        );
        let outbox = Outbox::create().unwrap();
        let mut worker = Worker::new(broker, journal, record, outbox.inbox(), 0);
        worker.first_checkpoint().unwrap();
        worker.register().unwrap();
        worker.begin(Start::Clean);
        Self {
            worker,
            outbox,
            control,
            remains,
            small,
            clients: Vec::new(),
            path,
            _directory: directory,
        }
    }

    fn connect(&mut self) {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        let uid: String = nix::unistd::getuid()
            .to_string()
            .bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut waiting = format!("\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").into_bytes();
        let hello = MessageBuilder::method_call("/org/freedesktop/DBus", "Hello")
            .destination("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .serial(1u32);
        hello.build_into(&mut waiting).unwrap();
        self.clients.push(Client {
            stream,
            waiting,
            serial: 1,
        });
    }

    /// One step of one client.
    fn step(&mut self, random: &mut Random) {
        if self.clients.len() < 3 || (self.clients.len() < 12 && random.below(20) == 0) {
            self.connect();
        }
        let count = self.clients.len();
        let index = random.below(count);
        let client = &mut self.clients[index];
        match random.below(12) {
            0 => client.call("RequestName", |w| {
                w.str("org.example.Shared").u32(4);
            }),
            1 => client.call("ReleaseName", |w| {
                w.str("org.example.Shared");
            }),
            2 => client.call("AddMatch", |w| {
                w.str("type='signal',interface='org.example.Signals'");
            }),
            3 => {
                let len = if self.small {
                    900
                } else if random.below(3) == 0 {
                    200_000
                } else {
                    3_000
                };
                client.send(&format!(":1.{}", random.below(count)), "Take", len);
            }
            4 if random.below(8) == 0 => {
                drop(self.clients.swap_remove(index));
                return;
            }
            5 => client.signal(random.below(2_000)),
            6..8 => client.send("org.example.Shared", "Take", random.below(600)),
            _ => client.send(&format!(":1.{}", random.below(count)), "Take", random.below(600)),
        }
        // A part of what waits, and perhaps the reader stops for a while.
        for client in &mut self.clients {
            let len = client
                .waiting
                .len()
                .min(1 + random.below(if self.small { 2_000 } else { 100_000 }));
            match client.stream.write(&client.waiting[..len]) {
                Ok(written) => drop(client.waiting.drain(..written)),
                Err(error) => {
                    assert!(error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::BrokenPipe)
                }
            }
            if random.below(3) > 0 {
                let _ = client.stream.read(&mut vec![0; 150_000]);
            }
        }
        self.worker.turns();
    }

    /// Has a client write everything that it wants to.
    fn write_all(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.stream.write_all(&client.waiting).unwrap();
        client.waiting.clear();
        self.worker.turns();
    }

    /// The state that the worker has, and the one that its journal gives.
    fn replay(&self) -> recover::Recovered {
        self.replay_with_output().0
    }

    /// Also all output.
    fn replay_with_output(&self) -> (recover::Recovered, Vec<(PeerId, Vec<u8>)>) {
        let mut journal = Journal::reopen(self.remains).unwrap();
        let recovered = recover::replay(&mut journal, -1, None).unwrap();
        let output = output(&recovered.broker, &mut journal);
        (recovered, output)
    }

    /// All output of the worker.
    fn output(&mut self) -> Vec<(PeerId, Vec<u8>)> {
        let (broker, journal) = self.worker.parts();
        output(broker, journal)
    }
}

impl Client {
    fn call(&mut self, member: &str, body: impl FnOnce(&mut bus_wire::BodyWriter)) {
        self.serial += 1;
        MessageBuilder::method_call("/org/freedesktop/DBus", member)
            .destination("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .serial(self.serial)
            .body(body)
            .build_into(&mut self.waiting)
            .unwrap();
    }

    fn send(&mut self, destination: &str, member: &str, len: usize) {
        self.serial += 1;
        MessageBuilder::method_call("/org/example", member)
            .destination(destination)
            .serial(self.serial)
            .body(|w| {
                w.str(&"x".repeat(len));
            })
            .build_into(&mut self.waiting)
            .unwrap();
    }

    fn signal(&mut self, len: usize) {
        self.serial += 1;
        MessageBuilder::signal("/org/example", "org.example.Signals", "Happened")
            .serial(self.serial)
            .body(|w| {
                w.str(&"y".repeat(len));
            })
            .build_into(&mut self.waiting)
            .unwrap();
    }
}

/// The broker's whole state, as bytes, but for what its output says and where that is kept.
fn state(broker: &Broker) -> Vec<u8> {
    let mut shared = SharedBodies::new();
    let mut state = codec::encode(&broker.save_global()).unwrap();
    for peer in broker.peer_ids() {
        let mut record = broker.save_peer(peer, &mut shared).unwrap();
        record.take_output();
        let end = broker.send_queue(peer).unwrap().end();
        codec::encode_into(&(record, end), &mut state).unwrap();
    }
    state
}

/// All that waits for the peers, in the store or not.
fn output(broker: &Broker, journal: &mut Journal) -> Vec<(PeerId, Vec<u8>)> {
    let peers = broker.peer_ids();
    peers
        .map(|peer| (peer, journal.output_of(peer, broker.send_queue(peer).unwrap())))
        .collect()
}

#[test]
fn a_replay_gives_what_the_worker_had() {
    let mut random = random();
    for _ in 0..3 {
        let mut rig = Rig::new(false);
        for round in 0..150 {
            for _ in 0..1 + random.below(20) {
                rig.step(&mut random);
            }
            let (recovered, output) = rig.replay_with_output();
            assert!(
                output == rig.output(),
                "round {round}: the output that the journal gives is another"
            );
            assert!(recovered.in_doubt.is_empty(), "round {round}");
            assert!(recovered.quarantined.is_empty());
            assert!(
                state(&recovered.broker) == state(rig.worker.broker()),
                "round {round}: the state that the journal gives is another"
            );
        }
    }
}

#[test]
fn a_replay_that_is_cut_short_again_and_again_is_gone_on_with() {
    let mut random = random();
    for _ in 0..3 {
        let mut rig = Rig::new(false);
        for _ in 0..300 {
            rig.step(&mut random);
        }
        let mut left = 0;
        while left <= 100 {
            rig.step(&mut random);
            left = rig.remains.since_checkpoint();
        }
        let whole = state(rig.worker.broker());
        let whole_output = rig.output();
        // Each begins where the one before has come to, and the steps become shorter.
        for attempt in 0..12 {
            let mut journal = Journal::reopen(rig.remains).unwrap();
            let recovered = recover::replay_in_steps(&mut journal, -1, None, attempt).unwrap();
            assert!(recovered.in_doubt.is_empty() && !recovered.is_damaged);
            assert!(state(&recovered.broker) == whole, "attempt {attempt}");
            assert!(
                output(&recovered.broker, &mut journal) == whole_output,
                "attempt {attempt}"
            );
            let now_left = rig.remains.since_checkpoint();
            assert!(now_left <= left);
            left = now_left;
        }
        assert!(left <= 16, "{left} records are read by every attempt");
    }
}

#[test]
fn checkpoints_come_however_many_peers_change_all_the_time() {
    let mut rig = Rig::new(false);
    for _ in 0..200 {
        rig.connect();
    }
    let mut longest = 0;
    for _ in 0..400 {
        for client in &mut rig.clients {
            client.call("GetId", |_| {});
            client.stream.write_all(&client.waiting).unwrap();
            client.waiting.clear();
        }
        rig.worker.turns();
        longest = longest.max(rig.remains.since_checkpoint());
        for client in &mut rig.clients {
            let _ = client.stream.read(&mut [0; 4096]);
        }
    }
    assert!(longest < 100_000, "a replay would read {longest} records");
}

/// An event may kill the worker after it asked the system something.
#[test]
fn an_event_is_left_out_with_what_the_system_answered_to_it() {
    let mut rig = Rig::new(false);
    rig.connect();
    let hello = rig.clients[0].waiting.split_off(0);
    rig.clients[0].stream.write_all(&hello).unwrap();
    rig.worker.turns();
    rig.clients[0].call("GetConnectionCredentials", |w| {
        w.str(":1.0");
    });
    let call = rig.clients[0].waiting.split_off(0);
    rig.clients[0].stream.write_all(&call).unwrap();
    // The answer is not taken, so that the call is the newest event but for the time.
    rig.clients[0].stream.shutdown(std::net::Shutdown::Read).unwrap();
    rig.worker.turns();
    let left_out = (0..rig.remains.records()).rev().find_map(|sequence| {
        let mut journal = Journal::reopen(rig.remains).unwrap();
        let recovered = recover::replay(&mut journal, -1, Some(sequence)).unwrap();
        (!recovered.quarantined.is_empty()).then_some((sequence, recovered))
    });
    let (sequence, recovered) = left_out.unwrap();
    let _ = std::fs::remove_file(recover::copy_path(sequence));
    assert!(!recovered.is_damaged && recovered.in_doubt.is_empty());
}

/// A rig whose journal has something to damage, and the state that it gives as long as nothing is.
fn used_rig(random: &mut Random) -> (Rig, Vec<u8>) {
    let mut rig = Rig::new(true);
    for _ in 0..400 {
        rig.step(random);
    }
    let whole = state(rig.worker.broker());
    (rig, whole)
}

/// What replays of a damaged journal came to.
#[derive(Debug, Default)]
struct Outcomes {
    unharmed: u32,
    costly: u32,
    refused: u32,
}

impl Outcomes {
    /// Replays it as it is: the state is `whole`, or somebody is in doubt, or it is refused.
    fn replay(&mut self, rig: &Rig, whole: &[u8], damage: &str) {
        let mut journal = Journal::reopen(rig.remains).unwrap();
        match recover::replay(&mut journal, -1, None) {
            Err(_) => self.refused += 1,
            Ok(recovered) => {
                recovered.broker.check_invariants().unwrap();
                if recovered.in_doubt.is_empty() && !recovered.is_damaged {
                    let same = state(&recovered.broker) == whole;
                    assert!(same, "{damage}: wrong, and not in doubt");
                    self.unharmed += 1;
                } else {
                    self.costly += 1;
                }
            }
        }
    }
}

#[test]
fn what_is_cut_off_at_any_byte_is_in_doubt_and_another_build_is_refused() {
    let mut random = random();
    let (rig, whole) = used_rig(&mut random);
    let mut outcomes = Outcomes::default();
    for round in 0..1_500 {
        let is_log = random.below(2) == 0;
        let at = match (is_log, random.below(4)) {
            (true, 0) => random.below(4096),
            (true, _) => 4096 + random.below(512 << 10),
            (false, 0) => rig.remains.table_byte(random.below(4), random.below(128 * 80)),
            (false, _) => rig.remains.arena_start() + random.below(64 << 10),
        };
        let old = rig.remains.cut(is_log, at);
        let what = if is_log { "log" } else { "checkpoints" };
        outcomes.replay(&rig, &whole, &format!("round {round}: {what} cut at {at}"));
        rig.remains.mend(is_log, at, &old);
    }
    eprintln!("{outcomes:?}");
    assert!(outcomes.unharmed > 0 && outcomes.costly > 0 && outcomes.refused > 0);
    assert!(state(&rig.replay().broker) == whole);
    rig.remains.change_build();
    let mut journal = Journal::reopen(rig.remains).unwrap();
    assert!(recover::replay(&mut journal, -1, None).is_err());
    rig.remains.change_build();
    assert!(state(&rig.replay().broker) == whole);
}

#[test]
fn damage_never_panics_and_what_is_not_in_doubt_is_right() {
    let mut random = random();
    let (rig, whole) = used_rig(&mut random);
    let mut outcomes = Outcomes::default();
    for round in 0..3_000 {
        // One bit, in what the log, the slot or the checkpoint really use.
        let undo = rig.remains.flip_a_bit(|limit| random.below(limit));
        outcomes.replay(&rig, &whole, &format!("round {round}: {undo:?}"));
        rig.remains.undo(&undo);
        assert!(
            state(&rig.replay().broker) == whole,
            "round {round}: {undo:?} left something behind"
        );
    }
    eprintln!("{outcomes:?}");
    assert!(outcomes.unharmed > 0 && outcomes.costly > 0);
    // And nothing of it was kept.
    assert!(state(&rig.replay().broker) == whole);
}
