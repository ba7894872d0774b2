//! A peer without a bus, a process of its own, is killed and started again, over and over, under load.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a process test: nothing else waits for its clock"
)]

mod support;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus_client::{
    BoxFuture, Connection, Decision, Event, Incoming, Interface, Link, Listener, Missed, Reply, Rule, Signals,
};
use support::COUNTER;
use support::load::{Driver, Load, Runs, under_load};

/// Ticks of one life of the peer are fewer.
const LIFE: u64 = 1_000_000;
/// Which life it is, in the environment of the process that is the peer.
const IS_PEER: &str = "BUS_TEST_PEER";

/// Writes down what runs, where it outlives this process: first that, then the answer.
struct Recorder(File);

impl Interface for Recorder {
    fn name(&self) -> &str {
        COUNTER
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        let id: u64 = call.decode().unwrap();
        (&self.0).write_all(&id.to_le_bytes()).unwrap();
        Box::pin(std::future::ready(Reply::new(&id)))
    }
}

/// What the peer does until it is killed.
fn serve(directory: &Path, life: u64) -> ! {
    let path = directory.join("peer");
    let _ = std::fs::remove_file(&path);
    let record = OpenOptions::new()
        .append(true)
        .create(true)
        .open(directory.join("ran"));
    let object = Arc::new(Recorder(record.unwrap()));
    let listener = Listener::bind(&format!("unix:path={}", path.display())).unwrap();
    loop {
        let builder = listener.accept().wait().unwrap().unwrap();
        let Ok(client) = builder.object("/counter", object.clone()).connect_thread() else {
            continue;
        };
        std::thread::spawn(move || {
            let met = client.call::<u64>("", "/client", "com.example.Client.Met", &life);
            assert_eq!(met.wait().unwrap(), life);
            let ticks = life * LIFE..;
            for tick in ticks {
                if client
                    .emit("/counter", "com.example.Counter.Tick", &tick)
                    .wait()
                    .is_err()
                {
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
    }
}

/// What the lives of the peer have written down.
struct Record {
    file: Mutex<(File, HashMap<u64, u32>)>,
}

impl Record {
    fn look<R>(&self, look: impl FnOnce(&HashMap<u64, u32>) -> R) -> R {
        let mut held = self.file.lock().unwrap();
        let (file, runs) = &mut *held;
        let mut new = Vec::new();
        file.read_to_end(&mut new).unwrap();
        let (ids, rest) = new.as_chunks::<8>();
        assert!(rest.is_empty(), "half a number");
        for id in ids {
            *runs.entry(u64::from_le_bytes(*id)).or_default() += 1;
        }
        look(runs)
    }
}

impl Runs for Record {
    fn of(&self, id: u64) -> u32 {
        self.look(|runs| runs.get(&id).copied().unwrap_or_default())
    }

    fn total(&self) -> u64 {
        self.look(|runs| runs.values().map(|runs| u64::from(*runs)).sum())
    }

    fn all(&self) -> HashMap<u64, u32> {
        self.look(HashMap::clone)
    }
}

/// The process that is the peer.
struct Peer {
    child: Child,
    directory: PathBuf,
    test: &'static str,
}

impl Peer {
    fn start(directory: &Path, test: &'static str, life: u64) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--include-ignored", "--nocapture"])
            .env(IS_PEER, format!("{life} {}", directory.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let directory = directory.to_owned();
        Self {
            child,
            directory,
            test,
        }
    }

    fn start_again(&mut self, life: u64) {
        *self = Self::start(&self.directory.clone(), self.test, life);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An object of the client's, to which each life of the peer says once that it has met it.
#[derive(Default)]
struct Client(Mutex<Vec<u64>>);

impl Interface for Client {
    fn name(&self) -> &str {
        "com.example.Client"
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        let life: u64 = call.decode().unwrap();
        self.0.lock().unwrap().push(life);
        Box::pin(std::future::ready(Reply::new(&life)))
    }
}

/// What a stream has shown: each tick of a life, and a note between two lives.
#[derive(Default)]
struct Seen {
    last: Option<u64>,
    /// Of this life.
    ticks: u64,
    notes: u64,
}

impl Seen {
    fn look(&mut self, stream: &Signals<u64>, life: u64) {
        while let Some(event) = stream.try_next() {
            match event {
                Event::Signal(tick) => {
                    // Whoever was there before this life began misses nothing of it.
                    let expected = match self.last {
                        Some(last) => last + 1,
                        None if self.notes == 0 => tick,
                        None => life * LIFE,
                    };
                    assert_eq!(tick, expected, "{} notes", self.notes);
                    self.last = Some(tick);
                    self.ticks += u64::from(tick / LIFE == life);
                }
                Event::Missed(Missed::Outage { same_bus: false }) => {
                    self.notes += 1;
                    self.last = None;
                }
                Event::Missed(missed) => panic!("{missed:?}"),
            }
        }
    }
}

fn kill_over_and_over(peer: &mut Peer, load: &Load, client: &Connection, kills: u64) {
    let stream = client.signals(Rule::signal(COUNTER, "Tick")).unwrap();
    let mut seen = Seen::default();
    for life in 0..=kills {
        let began = Instant::now();
        let (before, long) = (load.total(), Duration::from_millis(60 + life % 7 * 20));
        seen.ticks = 0;
        // Each serves some calls, and is killed in the middle of others.
        while began.elapsed() < long || load.total() < before + 20 || seen.ticks < 3 {
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "nothing is served, {life} kills"
            );
            seen.look(&stream, life);
            std::thread::sleep(Duration::from_millis(1));
        }
        if life < kills {
            peer.child.kill().unwrap();
            peer.child.wait().unwrap();
            std::thread::sleep(Duration::from_millis(life % 3 * 15));
            // All that the last one said, before the next can say anything.
            seen.look(&stream, life);
            peer.start_again(life + 1);
        }
    }
    assert_eq!(seen.notes, kills, "a note for each that was killed");
    load.end_soon();
}

fn killed(test: &'static str, driver: Driver, kills: u32) {
    if let Ok(is_peer) = std::env::var(IS_PEER) {
        let (life, directory) = is_peer.split_once(' ').unwrap();
        serve(Path::new(directory), life.parse().unwrap());
    }
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}", directory.path().join("peer").display());
    let mut peer = Peer::start(directory.path(), test, 0);
    let until = Instant::now() + Duration::from_secs(20);
    while !directory.path().join("peer").exists() {
        assert!(Instant::now() < until, "no peer");
        std::thread::sleep(Duration::from_millis(5));
    }
    let record = Record {
        file: Mutex::new((File::open(directory.path().join("ran")).unwrap(), HashMap::new())),
    };
    let (lost, back) = (Arc::new(Mutex::new(0_u32)), Arc::new(Mutex::new(0_u32)));
    let counts = (lost.clone(), back.clone());
    let object = Arc::new(Client::default());
    let builder = Connection::peer(&address)
        .object("/client", object.clone())
        .on_link(move |link| {
            match link {
                Link::Lost(_) => *counts.0.lock().unwrap() += 1,
                Link::Back { same_bus, failed } => {
                    assert!(!same_bus && failed.is_empty());
                    *counts.1.lock().unwrap() += 1;
                }
                Link::Retry(..) | _ => {}
            }
            Decision::Replay
        });
    let load = Load::new("", Arc::new(record));
    under_load(driver, builder, &load, kills, |client| {
        kill_over_and_over(&mut peer, &load, client, u64::from(kills));
    });
    let met: Vec<u64> = (0..=u64::from(kills)).collect();
    assert_eq!(*object.0.lock().unwrap(), met, "each has met the client once");
    assert_eq!((*lost.lock().unwrap(), *back.lock().unwrap()), (kills, kills));
}

#[test]
fn killed_under_load_with_a_thread() {
    killed("killed_under_load_with_a_thread", Driver::Thread, 12);
}

#[test]
fn killed_under_load_with_a_task() {
    killed("killed_under_load_with_a_task", Driver::Task, 12);
}

/// `cargo test -p bus-client --test peers -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn killed_two_hundred_times_with_a_thread() {
    killed("killed_two_hundred_times_with_a_thread", Driver::Thread, 200);
}

#[test]
#[ignore = "takes a minute"]
fn killed_two_hundred_times_with_a_task() {
    killed("killed_two_hundred_times_with_a_task", Driver::Task, 200);
}
