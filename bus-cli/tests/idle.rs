//! While nothing happens, the bus does nothing; and it wakes up for whoever comes, also after its table of descriptors was
//! full.
//!
//! The observer never sends, so that nothing else wakes the bus.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use bus_load::{Handshake, fds, peers};
use nix::sys::socket::MsgFlags;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::observer::Observer;
use support::process::{self, Work, limit_descriptors, worker_pid};
use support::random::Random;
use support::raw::{Raw, call};
use support::{AT_ONCE, Bus, faulty};

/// How long an idle bus is watched.
const IDLE: Duration = Duration::from_secs(3);

/// One at a time: they measure, and count descriptors.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects, and sends all that a client sends before it is greeted.
fn knock(bus: &Bus) -> UnixStream {
    let mut socket = UnixStream::connect(bus.socket()).unwrap();
    greet(&mut socket);
    socket
}

/// Sends all that a client sends before it is greeted.
fn greet(socket: &mut UnixStream) {
    let mut all = Handshake::start().0;
    all.extend(call("Hello", |_| ()));
    let _ = socket.write_all(&all);
}

/// The time that a client has to say Hello passes while the bus stands still (a debugger, the freezer): nobody goes for that who
/// has said it meanwhile, however many they are.
fn after_standing_still(start: impl Fn(&str) -> Bus) {
    const CLIENTS: usize = 400;
    let _alone = alone();
    let bus = start(
        "<limit name='auth_timeout'>1000</limit><limit name='max_incomplete_connections'>1000</limit>\
         <limit name='max_connections_per_user'>1000</limit>",
    );
    let connect = |_| UnixStream::connect(bus.socket()).unwrap();
    let mut clients: Vec<UnixStream> = (0..CLIENTS).map(connect).collect();
    // All of them are let in by now.
    Raw::ready(&bus).expect_service();
    let worker = bus.worker().unwrap();
    process::stop(worker);
    clients.iter_mut().for_each(greet);
    std::thread::sleep(Duration::from_secs(2));
    process::resume(worker);
    let deadline = Deadline::after(Duration::from_secs(10));
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(outcome(client, deadline), Outcome::Greeted, "client {number}");
    }
}

#[test]
fn nobody_goes_for_time_in_which_the_bus_stood_still() {
    after_standing_still(Bus::start_with);
}

#[test]
fn nor_where_it_shares_its_runtime() {
    after_standing_still(|configuration| Bus::start_faulty(configuration, "shared-runtime"));
}

/// What became of somebody who knocked.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Greeted,
    TurnedAway,
    /// Neither, until the deadline.
    Waits,
}

fn outcome(socket: &UnixStream, deadline: Deadline) -> Outcome {
    let mut seen = 0;
    let mut bytes = [0; 4096];
    loop {
        let left = deadline.left().max(Duration::from_micros(1));
        socket.set_read_timeout(Some(left)).unwrap();
        // Without taking anything, so that it can be asked again.
        let flags = MsgFlags::MSG_PEEK;
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut bytes, flags) {
            Ok(0) => return Outcome::TurnedAway,
            Ok(length) => {
                // The lines of the handshake, and a message with the name in it.
                if bytes[..length].windows(3).any(|at| at == b":1.") {
                    return Outcome::Greeted;
                }
                if length == seen {
                    std::thread::sleep(Duration::from_millis(1));
                }
                seen = length;
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(_) => return Outcome::TurnedAway,
        }
        if deadline.passed() {
            return Outcome::Waits;
        }
    }
}

fn after_a_full_table(rounds: u32) {
    if peers::find("prlimit").unwrap().is_none() {
        return;
    }
    let _alone = alone();
    let bus = Bus::start();
    let mut random = Random::from_environment("BUS_IDLE_SEED");
    let mut observer = Observer::start(&bus);
    let room = fds::open_count(bus.pid()).unwrap() + 24;
    limit_descriptors(&bus, room);
    let mut inside: Vec<UnixStream> = Vec::new();
    let mut slow = Vec::new();
    for round in 0..rounds {
        // Until nobody else is let in.
        let mut outside = Vec::new();
        while outside.is_empty() {
            let socket = knock(&bus);
            match outcome(&socket, Deadline::after(AT_ONCE * 2)) {
                Outcome::Greeted => inside.push(socket),
                Outcome::Waits => outside.push(socket),
                Outcome::TurnedAway => panic!("round {round}: turned away instead of left waiting"),
            }
            assert!(inside.len() < room, "the table is never full");
        }
        // Several at once, and fewer than there will be room for.
        let more = random.below(1 + inside.len() as u64 / 2);
        outside.extend((0..more).map(|_| knock(&bus)));
        std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(20)));

        let leaving = outside.len() + 1 + random.below(3) as usize;
        let gone = observer.departures() + leaving.min(inside.len());
        inside.drain(..leaving.min(inside.len()));
        let relieved = Deadline::after(AT_ONCE);
        for socket in outside {
            match outcome(&socket, relieved) {
                Outcome::Greeted => inside.push(socket),
                other @ (Outcome::TurnedAway | Outcome::Waits) => {
                    slow.push(format!("round {round}: after there was room: {other:?}"));
                }
            }
        }
        let is_noticed = observer.listen_until(relieved, |observer| observer.departures() >= gone);
        if !is_noticed {
            slow.push(format!("round {round}: departures from the full table"));
        }
        if slow.is_empty() {
            // There is room for one, and nothing else happens.
            std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(5)));
            let socket = knock(&bus);
            match outcome(&socket, Deadline::after(AT_ONCE)) {
                Outcome::Greeted => inside.push(socket),
                other @ (Outcome::TurnedAway | Outcome::Waits) => {
                    slow.push(format!("round {round}: the next one: {other:?}"))
                }
            }
        }
        if slow.len() > 10 {
            break;
        }
    }
    assert!(slow.is_empty(), "within {AT_ONCE:?}: {slow:#?}");
    drop(inside.drain(..));
    let all_gone = Deadline::after(AT_ONCE);
    assert!(observer.listen_until(all_gone, |observer| observer.here().is_empty()));
    expect_idleness(&bus);
}

#[test]
fn after_a_full_table_whoever_comes_is_served_at_once() {
    after_a_full_table(15);
}

/// The bus does nothing while nothing happens.
#[track_caller]
fn expect_idleness(bus: &Bus) {
    // Whatever it still had to do.
    std::thread::sleep(Duration::from_millis(500));
    let before = Work::of(bus);
    std::thread::sleep(IDLE);
    let done = Work::of(bus).since(before);
    eprintln!("in {IDLE:?} of idleness: {done:?}");
    assert!(done.wake_ups <= 2, "{done:?} within {IDLE:?} of idleness");
    assert!(done.cpu_ticks <= 1, "{done:?} within {IDLE:?} of idleness");
}

#[test]
fn an_idle_bus_does_nothing() {
    idles(&Bus::start());
}

#[test]
fn an_idle_bus_does_nothing_where_its_runtime_has_other_tasks() {
    let directory = tempfile::tempdir().unwrap();
    idles(&Bus::start_binary(&faulty(directory.path(), "shared-runtime")));
}

#[track_caller]
fn idles(bus: &Bus) {
    let _alone = alone();
    let idle: Vec<Raw> = (0..50).map(|_| Raw::ready(bus)).collect();
    expect_idleness(bus);
    // And not after its worker was replaced either, or it was itself.
    let mut control = bus.caller();
    let worker = worker_pid(&mut control);
    assert!(process::strike(worker, nix::sys::signal::Signal::SIGKILL));
    support::wait_until("it has recovered", || worker_pid(&mut control) != worker);
    expect_idleness(bus);
    assert_eq!(support::upgrade(&mut control, "").unwrap(), 2);
    expect_idleness(bus);
    drop(idle);
}

#[test]
fn a_bus_whose_table_is_full_does_not_spin() {
    if peers::find("prlimit").unwrap().is_none() {
        return;
    }
    let _alone = alone();
    let bus = Bus::start();
    let room = fds::open_count(bus.pid()).unwrap() + 12;
    limit_descriptors(&bus, room);
    let sockets: Vec<UnixStream> = (0..32).map(|_| knock(&bus)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let before = Work::of(&bus);
    std::thread::sleep(IDLE);
    let done = Work::of(&bus).since(before);
    eprintln!("in {IDLE:?} with a full table: {done:?}");
    // A hundred ticks are a second.
    assert!(done.cpu_ticks <= 15, "{done:?} within {IDLE:?}");
    drop(sockets);
}

/// `cargo test --release -p bus-cli --test idle -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn after_a_hundred_full_tables_whoever_comes_is_served_at_once() {
    after_a_full_table(100);
}
