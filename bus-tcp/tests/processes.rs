//! Two hosts, each in a network namespace, whose ends of a session are processes of their own: one that is stopped, and one that
//! is started anew with the state that the last one has saved. `--ignored` takes the real times.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

#[path = "support/cable.rs"]
mod cable;
mod support;

use bus_tcp::limits::Terms;
use bus_tcp::tls::{Identities, Key, TlsDial, TlsDoor, provider};
use bus_tcp::{Listener, Session, connect};
use cable::Cable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use support::{byte, hear, options, over, pattern, say};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpListener;

/// Each side says so many bytes.
const COUNT: u64 = 300_000;
const PIECE: usize = 1_000;
/// What a process of this program is, and where it finds all else: in its environment.
const PART: &str = "BUS_TEST_PART";

/// What both sides know, as files of one directory.
struct Scene {
    directory: PathBuf,
    /// By how much the usual times are divided.
    divisor: u32,
    /// How long a host lives that is to be followed by another.
    life: Duration,
}

impl Scene {
    fn new(directory: &Path, divisor: u32, life: Duration) -> Self {
        for name in ["host", "client"] {
            Key::generate_files(&provider(), &directory.join(name)).unwrap();
        }
        let directory = directory.to_owned();
        Self {
            directory,
            divisor,
            life,
        }
    }

    fn from(text: &str) -> (String, Self) {
        let words: Vec<_> = text.splitn(4, ' ').collect();
        let scene = Self {
            directory: words[3].into(),
            divisor: words[1].parse().unwrap(),
            life: Duration::from_millis(words[2].parse().unwrap()),
        };
        (words[0].to_owned(), scene)
    }

    fn text(&self, part: &str) -> String {
        let life = self.life.as_millis();
        format!("{part} {} {life} {}", self.divisor, self.directory.display())
    }

    fn terms(&self) -> Terms {
        Terms::DEFAULT.divided(self.divisor)
    }

    fn key(&self, name: &str) -> Key {
        Key::read(&provider(), &self.directory.join(name)).unwrap()
    }

    /// Runs this test again, as one of its parts, in this namespace.
    fn start(&self, part: &str, test: &str, namespace: &str) -> Child {
        Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--include-ignored", "--nocapture"])
            .env(PART, self.text(part))
            .spawn()
            .unwrap()
    }

    async fn listener(&self, saved: Option<&[u8]>, address: &str) -> Listener {
        let listener = match saved {
            Some(saved) => Listener::restore(saved, options()).unwrap(),
            None => Listener::new(options()).unwrap(),
        };
        let socket = TcpListener::bind(address).await.unwrap();
        let identities = Identities::default().pin(self.key("client").pin(), "robot");
        listener.open(TlsDoor::raw_key(provider(), socket, &self.key("host"), identities).unwrap());
        listener
    }

    fn client(&self, address: &str) -> Session {
        let pins = vec![self.key("host").pin()];
        let dial = TlsDial::raw_key(provider(), address, &self.key("client"), pins, &self.terms());
        connect(dial.unwrap(), self.terms()).unwrap()
    }

    fn address(&self) -> String {
        std::fs::read_to_string(self.directory.join("address")).unwrap()
    }
}

fn run(part: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(part);
}

/// If this process is a part of a test, it plays it, and that is all. Its end is the process's.
fn plays_a_part() -> bool {
    let Ok(text) = std::env::var(PART) else {
        return false;
    };
    let (part, scene) = Scene::from(&text);
    match &*part {
        "client" => run(play_client(&scene)),
        "host" => run(play_host(&scene)),
        part => panic!("{part}"),
    }
    true
}

async fn play_client(scene: &Scene) {
    let session = scene.client(&scene.address());
    let watch = session.watch();
    let (read, write) = split(session);
    tokio::join!(
        say(write, COUNT, PIECE, Duration::from_millis(10)),
        hear(read, COUNT)
    );
    over(&watch).await;
    let stats = watch.stats();
    eprintln!("{stats:?}");
    assert_eq!(stats.received, COUNT);
    assert!(stats.resumptions > 0, "{stats:?}");
}

/// Where a host stands in its two streams, and what its listener has saved.
#[derive(Default)]
struct Place {
    read: u64,
    wrote: u64,
    saved: Option<Vec<u8>>,
}

impl Place {
    fn read(path: &Path) -> Self {
        let Ok(bytes) = std::fs::read(path) else {
            return Self::default();
        };
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            read: number(0),
            wrote: number(8),
            saved: Some(bytes[16..].to_vec()),
        }
    }

    fn write(&self, path: &Path) {
        let numbers = [self.read.to_le_bytes(), self.wrote.to_le_bytes()].concat();
        let new = path.with_extension("new");
        std::fs::write(&new, [numbers, self.saved.clone().unwrap()].concat()).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

/// A host that goes on where the last one was. After its life it saves, and is gone; the last one sees the end of both streams.
async fn play_host(scene: &Scene) {
    let path = scene.directory.join("state");
    let mut place = Place::read(&path);
    let listener = scene.listener(place.saved.as_deref(), &scene.address()).await;
    let mut session = listener.accept().await.unwrap();
    assert_eq!(session.peer(), Some("robot"));
    let began = Instant::now();
    let mut buf = vec![0; 20_000];
    let mut has_ended = false;
    while !(has_ended && place.wrote == COUNT) {
        if began.elapsed() > scene.life {
            place.saved = Some(listener.save().unwrap());
            place.write(&path);
            std::process::exit(FOLLOWED);
        }
        if place.wrote < COUNT {
            session.write_all(&pattern(place.wrote, PIECE)).await.unwrap();
            place.wrote += PIECE as u64;
        }
        let count = tokio::time::timeout(Duration::from_millis(10), session.read(&mut buf)).await;
        let Ok(count) = count else { continue };
        let count = count.unwrap();
        has_ended |= count == 0;
        for got in &buf[..count] {
            assert_eq!(*got, byte(place.read), "byte {}", place.read);
            place.read += 1;
        }
    }
    assert_eq!(place.read, COUNT);
    session.shutdown().await.unwrap();
    over(&session.watch()).await;
}

/// With this a host leaves that wants another one to go on.
const FOLLOWED: i32 = 77;

/// A host that is started anew, `dead` after the last one's end, until both streams have ended.
fn restarted(test: &str, divisor: u32, dead: Duration) {
    if plays_a_part() {
        return;
    }
    let Some(cable) = Cable::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(directory.path(), divisor, Duration::from_millis(700));
    let address = format!("10.77.{}.2:7777", cable.subnet);
    std::fs::write(directory.path().join("address"), &address).unwrap();
    let mut host = scene.start("host", test, &cable.far);
    let mut client = scene.start("client", test, &cable.near);
    let mut restarts = 0;
    loop {
        let status = host.wait().unwrap();
        if status.success() {
            break;
        }
        assert_eq!(status.code(), Some(FOLLOWED), "after {restarts} restarts");
        std::thread::sleep(dead);
        restarts += 1;
        host = scene.start("host", test, &cable.far);
    }
    assert!(client.wait().unwrap().success());
    eprintln!("{restarts} restarts, {dead:?} apart");
    assert!(restarts >= 2, "{restarts}");
}

#[test]
fn a_host_that_is_started_anew_goes_on_with_what_it_saved() {
    let test = "a_host_that_is_started_anew_goes_on_with_what_it_saved";
    restarted(test, 10, Duration::from_millis(500));
}

#[test]
#[ignore = "the real times: a minute"]
fn a_host_that_is_started_anew_after_15_seconds_goes_on() {
    let test = "a_host_that_is_started_anew_after_15_seconds_goes_on";
    restarted(test, 1, Duration::from_secs(15));
}

/// The client's process is stopped for so long.
fn stopped(test: &str, divisor: u32, long: Duration) {
    if plays_a_part() {
        return;
    }
    let Some(cable) = Cable::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    // Its life is longer than the test.
    let scene = Scene::new(directory.path(), divisor, Duration::from_secs(600));
    let address = format!("10.77.{}.2:7777", cable.subnet);
    std::fs::write(directory.path().join("address"), &address).unwrap();
    let mut host = scene.start("host", test, &cable.far);
    let mut client = scene.start("client", test, &cable.near);
    std::thread::sleep(Duration::from_millis(800));
    let pid = Pid::from_raw(client.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    std::thread::sleep(long);
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(client.wait().unwrap().success());
    assert!(host.wait().unwrap().success());
}

#[test]
fn a_stopped_host_is_parked_and_goes_on() {
    let test = "a_stopped_host_is_parked_and_goes_on";
    stopped(test, 10, Duration::from_secs(3));
}

#[test]
#[ignore = "the real time: half a minute"]
fn a_host_that_is_stopped_for_30_seconds_goes_on() {
    let test = "a_host_that_is_stopped_for_30_seconds_goes_on";
    stopped(test, 1, Duration::from_secs(30));
}
