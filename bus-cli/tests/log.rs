//! The log: whoever does not read it loses lines, and nobody can fill it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::{CallError, Caller};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use support::raw::Raw;
use support::{Bus, DRIVER, DRIVER_PATH, generation, recoveries, upgrade, wait_until};

/// Lines that a flood makes, many times what a terminal, a pipe or a socket holds.
const LINES: u32 = 20_000;

/// Connects and says what nobody says: the bus hangs up, and complains as far as it may.
fn be_bad(bus: &Bus) {
    let mut bad = Raw::connect(bus);
    bad.send(b"X");
    bad.expect_end();
}

/// Makes `LINES` lines of level debug, which have no limit, while an innocent calls, and each call is answered.
fn flood(bus: &Bus, innocent: &mut Caller) {
    for number in 0..LINES {
        if number % 100 == 0 {
            be_bad(bus);
            call(innocent);
        } else {
            drop(UnixStream::connect(bus.socket()).unwrap());
        }
    }
    call(innocent);
}

fn call(innocent: &mut Caller) {
    let id = innocent
        .call(DRIVER, DRIVER_PATH, DRIVER, "GetId", |_| ())
        .expect("the innocent is not answered");
    assert_eq!(id.body().read_str().unwrap().len(), 32);
}

/// A bus whose log nobody reads serves on: over a flood of lines, by the same worker, and over a killed worker, a
/// panicking one and an upgrade. At last somebody reads, and gets the log.
fn check_unread(stderr: impl Into<Stdio>, reader: impl Read + Send + 'static) {
    // What is quarantined is kept there.
    let directory = tempfile::tempdir().unwrap();
    let environment = [
        ("BUS_LOG", "debug"),
        ("BUS_TEST_FAULT", "poison"),
        ("XDG_RUNTIME_DIR", directory.path().to_str().unwrap()),
    ];
    let bus = Bus::start_with_stderr(stderr, &environment);
    let mut innocent = bus.caller();
    let worker = bus.worker();
    flood(&bus, &mut innocent);
    assert_eq!(bus.worker(), worker);

    kill(Pid::from_raw(worker.unwrap() as i32), Signal::SIGKILL).unwrap();
    wait_until("the worker is replaced", || recoveries(&mut innocent) == 1);
    flood(&bus, &mut innocent);

    let mut poisoner = bus.caller();
    let poisoned = poisoner.ask("GetNameOwner", "POISON-PANIC");
    match poisoned {
        Err(CallError::Reply { name, .. }) => assert_eq!(name, "org.busdaemon.Error.Quarantined"),
        other => panic!("{other:?}"),
    }
    assert!(recoveries(&mut innocent) >= 2);
    call(&mut innocent);

    let before = generation(&mut innocent);
    upgrade(&mut innocent, "").unwrap();
    assert_eq!(generation(&mut innocent), before + 1);
    flood(&bus, &mut innocent);

    // The descriptor of the log is still the log.
    let log = Log::read(reader);
    wait_until("the number of lines that were left out", || {
        be_bad(&bus);
        log.text().contains(" log lines were left out: nobody read them")
    });
    kill(Pid::from_raw(bus.worker().unwrap() as i32), Signal::SIGKILL).unwrap();
    wait_until("lines of the next worker", || {
        be_bad(&bus);
        let text = log.text();
        let next = text.rsplit_once("going on where it was").map(|(_, next)| next);
        next.is_some_and(|next| next.contains("is disconnected"))
    });
    call(&mut innocent);
}

/// What somebody reads who reads all the time.
struct Log(Arc<Mutex<String>>);

impl Log {
    fn read(mut reader: impl Read + Send + 'static) -> Log {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = text.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut chunk) {
                let part = String::from_utf8_lossy(&chunk[..length]);
                sink.lock().unwrap().push_str(&part);
            }
        });
        Log(text)
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_terminal_that_nobody_reads() {
    let pty = nix::pty::openpty(None, None).unwrap();
    check_unread(pty.slave, File::from(pty.master));
}

#[test]
fn a_pipe_that_nobody_reads() {
    let (output, input) = std::io::pipe().unwrap();
    check_unread(input, output);
}

#[test]
fn a_socket_that_nobody_reads() {
    let (reader, writer) = UnixStream::pair().unwrap();
    check_unread(OwnedFd::from(writer), reader);
}

#[test]
fn a_terminal_that_was_stopped_holds_up_nobody() {
    use nix::sys::termios::{FlowArg, tcflow};
    let pty = nix::pty::openpty(None, None).unwrap();
    tcflow(&pty.slave, FlowArg::TCOOFF).unwrap();
    let bus = Bus::start_with_stderr(pty.slave, &[("BUS_LOG", "debug")]);
    flood(&bus, &mut bus.caller());
}

#[test]
fn a_full_disk_holds_up_nobody() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let bus = Bus::start_with_stderr(full, &[("BUS_LOG", "debug")]);
    flood(&bus, &mut bus.caller());
}

#[test]
fn a_user_whose_peers_are_bad_does_not_fill_the_log() {
    const BAD: u64 = 5_000;
    let bus = Bus::start();
    let mut innocent = bus.caller();
    for number in 0..BAD {
        be_bad(&bus);
        if number % 100 == 0 {
            call(&mut innocent);
        }
    }
    // Each line that was left out is counted in one that was not.
    let complaint = "is disconnected: ";
    wait_until("a line after the flood", || {
        std::thread::sleep(std::time::Duration::from_millis(1_100));
        be_bad(&bus);
        bus.log()
            .lines()
            .last()
            .is_some_and(|line| !line.contains(" more line"))
    });
    let log = bus.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(complaint)).collect();
    assert!(lines.len() < 200, "{} lines", lines.len());
    let uid = nix::unistd::getuid();
    let left_out: u64 = lines
        .iter()
        .filter_map(|line| {
            let (_, note) = line.rsplit_once(" (")?;
            let (count, what) = note.split_once(' ')?;
            let is_note = what == format!("more lines about user {uid} were left out)")
                || what == format!("more line about user {uid} was left out)");
            is_note.then(|| count.parse::<u64>().unwrap())
        })
        .sum();
    assert!(left_out > BAD - 200, "{left_out} were left out");
    let said = lines.len() as u64 + left_out;
    assert!(
        (BAD + 1..BAD + 20).contains(&said),
        "{said} complaints of {BAD} and a few"
    );
}
