//! A reload: what the file said when it was asked for, or something newer, is in force when it is answered; and a file that
//! is wrong changes nothing, and is named with its line.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::{self, Deadline};
use bus_load::{CallError, Caller};
use nix::fcntl::{OFlag, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use support::asker::{Asker, Request};
use support::bystander::Bystander;
use support::process::{strike, worker_pid};
use support::random::Random;
use support::raw::Raw;
use support::{Bus, wait_until};

const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
/// How long anybody waits for the answer of a reload, others under way or not.
const PATIENCE: Duration = Duration::from_secs(30);

/// A limit that is easily seen: this many well-known names. The unique name counts as one more.
fn names(limit: u32) -> String {
    let all = limit + 1;
    format!("<limit name='max_names_per_connection'>{all}</limit>")
}

/// The limit in force: how many names a newcomer can have.
fn limit_in_force(bus: &Bus) -> u32 {
    let mut caller = bus.caller();
    for count in 0.. {
        let asked = caller.call_bus("RequestName", |body| {
            body.str(&format!("org.example.Name{count}")).u32(4);
        });
        match asked {
            Ok(_) => {}
            Err(CallError::Reply { name, .. }) => {
                assert_eq!(name, LIMITS_EXCEEDED);
                return count;
            }
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

fn reload(caller: &mut Caller) -> Result<(), CallError> {
    caller.set_timeout(PATIENCE);
    caller.call_bus("ReloadConfig", |_| ()).map(|_| ())
}

fn bus_with_limit(limit: u32) -> Bus {
    let bus = Bus::start_with(&names(limit));
    assert_eq!(limit_in_force(&bus), limit);
    bus
}

#[test]
fn a_reload_is_in_force_when_it_is_answered() {
    let bus = bus_with_limit(3);
    let mut caller = bus.caller();
    for limit in [5, 2, 7, 1, 4] {
        bus.configure(&names(limit));
        reload(&mut caller).unwrap();
        assert_eq!(limit_in_force(&bus), limit);
    }
}

#[test]
fn a_reload_by_signal_comes_into_force() {
    let bus = bus_with_limit(3);
    bus.configure(&names(5));
    assert!(strike(bus.pid(), Signal::SIGHUP));
    wait_until("the new limit is in force", || limit_in_force(&bus) == 5);
    // And so does the one that a stopped worker was told of.
    let worker = worker_pid(&mut bus.caller());
    support::process::stop(worker);
    bus.configure(&names(6));
    assert!(strike(bus.pid(), Signal::SIGHUP));
    std::thread::sleep(Duration::from_millis(100));
    support::process::resume(worker);
    wait_until("the new limit is in force", || limit_in_force(&bus) == 6);
}

/// Others ask all the time; who asks after the file was changed gets what it says now.
fn reloads_among_reloads(rounds: u32) {
    let mut random = Random::from_environment("BUS_RELOAD_SEED");
    let bus = bus_with_limit(1);
    let (mut caller, mut other) = (bus.caller(), Asker::ready(&bus));
    for round in 0..rounds {
        let limit = 1 + (round + 1) % 7;
        let before = vec![Request::ReloadConfig; 1 + random.below(20) as usize];
        other.ask(&before);
        if random.below(2) == 0 {
            assert!(strike(bus.pid(), Signal::SIGHUP));
        }
        std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(4)));
        bus.configure(&names(limit));
        reload(&mut caller).unwrap();
        assert_eq!(limit_in_force(&bus), limit, "round {round}");
        other.wait_for_answers(PATIENCE);
    }
    let outcomes = other.finish(PATIENCE);
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), [""], "{outcomes:?}");
}

#[test]
fn a_reload_that_is_asked_for_during_another_is_in_force_when_it_is_answered() {
    reloads_among_reloads(8);
}

/// `cargo test --release -p bus-cli --test reload -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_thousand_reloads_during_others_are_in_force_when_they_are_answered() {
    reloads_among_reloads(1000);
}

/// A part of the configuration comes from a pipe that nobody writes to: a disk, or a network file system, that takes its
/// time. The bus serves everybody meanwhile.
#[test]
fn a_reload_that_hangs_holds_nobody_up_and_the_next_one_is_in_force_when_it_is_answered() {
    let bus = bus_with_limit(3);
    let slow = bus.directory.path().join("slow.conf");
    mkfifo(&slow, Mode::S_IRWXU).unwrap();
    let bystander = Bystander::start(&bus, Duration::from_millis(1));
    let mut first = Asker::ready(&bus);
    bus.configure(&format!("{}<include>{}</include>", names(4), slow.display()));
    first.ask(&[Request::ReloadConfig]);
    std::thread::sleep(Duration::from_millis(500));

    // Everybody is served.
    let begun = clock::now();
    Raw::ready(&bus).expect_service();
    assert!(clock::now() - begun < Duration::from_secs(1));

    // Whoever asks now means the file as it is now.
    bus.configure(&names(5));
    let mut second = Asker::ready(&bus);
    second.ask(&[Request::ReloadConfig]);
    std::thread::sleep(Duration::from_millis(500));
    feed(&slow);
    second.wait_for_answers(PATIENCE);
    assert_eq!(limit_in_force(&bus), 5);
    let outcomes = second.finish(PATIENCE);
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), [""], "{outcomes:?}");
    // The first has its answer as well, whatever came of it, and does not bring the older file back.
    first.finish(PATIENCE);
    assert_eq!(limit_in_force(&bus), 5);
    let waits = bystander.finish();
    eprintln!("bystander: {waits}");
    assert!(waits.longest() < Duration::from_secs(1), "{waits}");
}

/// The pipe says something to whoever reads it, if anybody does.
fn feed(pipe: &Path) {
    if let Ok(fd) = open(pipe, OFlag::O_WRONLY | OFlag::O_NONBLOCK, Mode::empty()) {
        let _ = File::from(fd).write_all(b"<busconfig/>");
    }
}

/// The file and the line of a mistake are in the answer, and nothing has changed.
#[track_caller]
fn check_refused(bus: &Bus, caller: &mut Caller, line: u32) {
    let place = format!("{}:{line}", bus.directory.path().join("bus.conf").display());
    match reload(caller) {
        Err(CallError::Reply { name, message }) => {
            assert!(message.contains(&place), "{name}: {message}, and not {place}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(limit_in_force(bus), 3);
}

#[test]
fn a_file_with_a_mistake_is_named_with_its_line_and_changes_nothing() {
    let bus = bus_with_limit(3);
    let mut caller = bus.caller();
    // The configuration begins with four lines of its own.
    bus.configure("\n\n<limit name='no_such_limit'>1</limit>");
    check_refused(&bus, &mut caller, 7);
    bus.configure(&format!("\n{}\n<nonsense/>", names(9)));
    check_refused(&bus, &mut caller, 7);
    bus.configure(&format!("\n{}\n\n<policy>", names(9)));
    assert!(reload(&mut caller).is_err());
    assert_eq!(limit_in_force(&bus), 3);
    // By signal, too, and with a worker that dies.
    assert!(strike(bus.pid(), Signal::SIGHUP));
    let worker = worker_pid(&mut caller);
    assert!(strike(worker, Signal::SIGKILL));
    wait_until("another worker serves", || worker_pid(&mut caller) != worker);
    assert_eq!(limit_in_force(&bus), 3);
    bus.configure(&names(6));
    reload(&mut caller).unwrap();
    assert_eq!(limit_in_force(&bus), 6);
}

#[test]
fn a_file_that_is_not_there_changes_nothing() {
    let bus = bus_with_limit(3);
    let mut caller = bus.caller();
    let file = bus.directory.path().join("bus.conf");
    std::fs::remove_file(&file).unwrap();
    match reload(&mut caller) {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.freedesktop.DBus.Error.FileNotFound", "{message}");
            assert!(message.contains(file.to_str().unwrap()), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(limit_in_force(&bus), 3);
}

/// Configurations of more than any one record or channel holds.
#[test]
fn a_configuration_of_two_megabytes_is_loaded_as_any_other() {
    let bus = bus_with_limit(3);
    let mut caller = bus.caller();
    let long = "d".repeat(250);
    let directories: String = (0..8_000)
        .map(|number| format!("<servicedir>/nowhere/{number}/{long}</servicedir>\n"))
        .collect();
    assert!(directories.len() > 2 << 20);
    for limit in [4, 5, 6] {
        bus.configure(&format!("{directories}{}", names(limit)));
        reload(&mut caller).unwrap();
        assert_eq!(limit_in_force(&bus), limit);
        let worker = worker_pid(&mut caller);
        assert!(strike(worker, Signal::SIGKILL));
        assert_eq!(limit_in_force(&bus), limit, "after a death of the worker");
    }
}

/// The worker is killed at random moments while many ask; all are answered once, and the newest file is in force.
#[test]
fn reloads_among_kills_are_answered_once_and_in_force() {
    let mut random = Random::from_environment("BUS_RELOAD_SEED");
    let bus = bus_with_limit(3);
    let mut caller = bus.caller();
    let mut askers: Vec<Asker> = (0..5).map(|_| Asker::ready(&bus)).collect();
    let deadline = Deadline::after(PATIENCE * 2);
    for round in 0..8 {
        let limit = 1 + (round + 3) % 7;
        bus.configure(&names(limit));
        for asker in &mut askers {
            asker.ask(&vec![Request::ReloadConfig; 1 + random.below(5) as usize]);
        }
        for _ in 0..=random.below(3) {
            std::thread::sleep(random.duration(Duration::ZERO..Duration::from_millis(8)));
            if let Some(worker) = bus.worker() {
                strike(worker, Signal::SIGKILL);
            }
        }
        reload(&mut caller).unwrap();
        assert_eq!(limit_in_force(&bus), limit, "round {round}");
        assert!(!deadline.passed(), "only {round} rounds");
    }
    for asker in askers {
        let outcomes = asker.finish(PATIENCE);
        assert_eq!(outcomes.keys().collect::<Vec<_>>(), [""], "{outcomes:?}");
    }
    assert_eq!(support::process::quarantined(&mut caller), 0);
}
