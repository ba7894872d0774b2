//! Who is blamed for a worker's death: whoever sent what kills it twice by the worker's own fault, and nobody else. What
//! somebody took, somebody's departure and the time are never left out, however often a worker dies of them; kills from
//! outside blame nobody, however often they meet the same event.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use bus_load::{CallError, Caller, Load, LoadPlan};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;
use support::observer::{Observer, number_of, said};
use support::process::{quarantined, strike, worker_pid};
use support::raw::{Raw, call};
use support::{Bus, DRIVER, SOON, faulty, recoveries, wait_until};

/// A bus whose workers die at an event, when told to.
struct Rig {
    directory: tempfile::TempDir,
    bus: Bus,
    control: Caller,
    observer: Observer,
}

impl Rig {
    fn start() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let bus = Bus::start_binary(&faulty(directory.path(), "at-event"));
        Rig {
            control: bus.caller(),
            observer: Observer::start(&bus),
            directory,
            bus,
        }
    }

    fn orders(&self) -> std::path::PathBuf {
        self.directory.path().join("fault-at")
    }

    /// From now on the worker dies once for each letter, at the first event that contains this: `a` by its own fault,
    /// `k` by SIGKILL.
    fn arm(&self, deaths: &str, event: &str) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, format!("{deaths} {event}")).unwrap();
        std::fs::rename(&new, self.orders()).unwrap();
    }

    /// Waits until the worker has died as often as it was told to, and serves again.
    fn wait_for_deaths(&mut self) {
        wait_until("the worker has died as often as told", || {
            std::fs::read_to_string(self.orders()).unwrap().starts_with(' ')
        });
        assert_eq!(self.control.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
        // Several deaths before one worker serves may count as one.
        assert!(recoveries(&mut self.control) > 0);
    }

    /// Nobody was blamed, and newcomers are served.
    fn nobody_is_blamed(&mut self) {
        assert_eq!(quarantined(&mut self.control), 0);
        assert_eq!(copies(self.directory.path()), 0);
        let log = self.bus.log();
        assert!(!log.contains("left out"), "{log}");
        assert_eq!(
            self.bus.caller().ask("GetNameOwner", DRIVER).unwrap(),
            DRIVER,
            "somebody new is served"
        );
    }

    fn wait_for(&mut self, what: &str, is_so: impl Fn(&Observer) -> bool) {
        let heard = self.observer.listen_until(Deadline::after(SOON), is_so);
        assert!(heard, "not within {SOON:?}: {what}");
    }
}

/// How many copies of deadly input were kept.
fn copies(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().contains("bus-quarantine-")
        })
        .count()
}

/// A call that the worker dies of in these ways, one after the other.
fn asked(deaths: &str) -> (Rig, Caller, Result<String, CallError>) {
    let rig = Rig::start();
    let mut sender = rig.bus.caller();
    sender.set_timeout(SOON);
    rig.arm(deaths, "org.example.Deadly");
    let answer = sender.ask("GetNameOwner", "org.example.Deadly");
    (rig, sender, answer)
}

#[track_caller]
fn check_innocent(deaths: &str) {
    let (mut rig, mut sender, answer) = asked(deaths);
    match answer {
        Err(CallError::Reply { name, .. }) => {
            assert_eq!(name, "org.freedesktop.DBus.Error.NameHasNoOwner", "{deaths}")
        }
        other => panic!("{deaths}: {other:?}"),
    }
    rig.wait_for_deaths();
    assert_eq!(
        sender.ask("GetNameOwner", DRIVER).unwrap(),
        DRIVER,
        "it stays connected"
    );
    rig.nobody_is_blamed();
}

#[test]
fn ten_kills_from_outside_at_the_same_input_blame_nobody() {
    check_innocent("kkkkkkkkkk");
}

#[test]
fn one_fault_among_kills_from_outside_blames_nobody() {
    check_innocent("kkakk");
}

/// The bystanders of the same turn, and those whose input came before it, stay; only the sender goes.
#[test]
fn two_faults_at_the_same_input_blame_its_sender_kills_in_between_or_not() {
    for deaths in ["aa", "aka", "kaka"] {
        let (mut rig, mut sender, answer) = asked(deaths);
        match answer {
            Err(CallError::Reply { name, .. }) => {
                assert_eq!(name, "org.busdaemon.Error.Quarantined", "{deaths}")
            }
            other => panic!("{deaths}: {other:?}"),
        }
        let name = number_of(sender.unique_name());
        assert!(sender.ask("GetNameOwner", DRIVER).is_err(), "{deaths}");
        rig.wait_for_deaths();
        assert_eq!(quarantined(&mut rig.control), 1);
        assert_eq!(copies(rig.directory.path()), 1);
        rig.wait_for("the sender is announced as gone", |observer| {
            observer.is_gone(name)
        });
    }
}

/// Whoever's departure the worker dies of is gone all the same, once, and what it said before was heard.
#[track_caller]
fn check_departure(deaths: &str) {
    let mut rig = Rig::start();
    let mut load = Load::start(&rig.bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    let mut leaver = Raw::ready(&rig.bus);
    let name = number_of(&leaver.unique);
    rig.wait_for("somebody comes", |observer| observer.is_here(name));
    rig.arm(deaths, "Closed");
    leaver.send(&said(1, 0, false));
    drop(leaver);
    rig.wait_for("somebody leaves", |observer| observer.is_gone(name));
    assert!(rig.observer.said(1).is_some());
    rig.wait_for_deaths();
    rig.nobody_is_blamed();
    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_departure_that_kills_the_worker_is_applied_in_the_end() {
    check_departure("aaa");
}

#[test]
fn a_departure_that_meets_kills_is_applied_in_the_end() {
    check_departure("kkkkk");
}

/// What a receiver has taken is never sent to it again.
#[track_caller]
fn check_drain(deaths: &str) {
    let mut rig = Rig::start();
    let mut sender = Raw::ready(&rig.bus);
    for number in 1..=20 {
        if number == 10 {
            rig.arm(deaths, "Drained {\nSent {");
        }
        sender.send(&said(number, 64, false));
        rig.wait_for(&format!("signal {number}"), |observer| {
            // Each number is taken once by the observer's books, or the test ends there.
            observer.said(number).is_some()
        });
    }
    rig.wait_for_deaths();
    rig.nobody_is_blamed();
    sender.expect_service();
}

#[test]
fn a_drain_that_kills_the_worker_is_not_left_out() {
    check_drain("aaa");
}

#[test]
fn a_drain_that_meets_kills_is_not_left_out() {
    check_drain("kkkkk");
}

/// Time passes, however often it kills the worker.
#[test]
fn a_tick_that_kills_the_worker_is_not_left_out() {
    let mut rig = Rig::start();
    let mut bystander = Raw::ready(&rig.bus);
    rig.arm("aaa", "Tick");
    // The bus looks at its clock when something happens.
    for _ in 0..20 {
        bystander.send(&call("GetId", |_| ()));
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.wait_for_deaths();
    rig.nobody_is_blamed();
    bystander.expect_service();
}

/// Somebody comes, however often it kills the worker.
#[test]
fn an_arrival_that_kills_the_worker_is_not_left_out() {
    let mut rig = Rig::start();
    rig.arm("aaa", "Accepted");
    let guest = Raw::ready(&rig.bus);
    rig.wait_for_deaths();
    rig.nobody_is_blamed();
    guest.expect_service();
}

/// An event that no worker died of when it was new, and of which they die while they replay it.
#[track_caller]
fn check_replay(event: &str) {
    for deaths in ["aaa", "kkkkk"] {
        let mut rig = Rig::start();
        let (mut sender, leaver) = (Raw::ready(&rig.bus), Raw::ready(&rig.bus));
        let gone = number_of(&leaver.unique);
        drop(leaver);
        rig.wait_for("somebody leaves", |observer| observer.is_gone(gone));
        for number in 1..=20 {
            sender.send(&said(number, 64, false));
            std::thread::sleep(Duration::from_millis(3));
        }
        rig.wait_for("all signals", |observer| observer.said(20).is_some());
        let worker = worker_pid(&mut rig.control);
        rig.arm(deaths, event);
        assert!(strike(worker, Signal::SIGKILL));
        rig.wait_for_deaths();
        // Whatever would come twice is heard before this.
        sender.send(&said(21, 64, false));
        rig.wait_for("one more signal", |observer| observer.said(21).is_some());
        rig.nobody_is_blamed();
        sender.expect_service();
        assert!(!rig.observer.is_here(gone));
        let owner = rig.control.ask("GetNameOwner", &format!(":1.{gone}"));
        assert!(owner.is_err(), "somebody who had left is back: {owner:?}");
    }
}

#[test]
fn a_drain_is_replayed_however_often_workers_die_of_it() {
    check_replay("Drained {\nSent {");
}

#[test]
fn a_departure_is_replayed_however_often_workers_die_of_it() {
    check_replay("Closed {");
}

#[test]
fn an_arrival_is_replayed_however_often_workers_die_of_it() {
    check_replay("Accepted {");
}

#[test]
fn a_tick_is_replayed_however_often_workers_die_of_it() {
    check_replay("Tick {");
}

/// More calls in one write than one step deals with.
fn many_calls() -> Vec<u8> {
    let call = call("GetId", |_| ());
    call.repeat(60_000 / call.len())
}

fn check_step(deaths: &str) {
    let mut rig = Rig::start();
    let mut sender = Raw::ready(&rig.bus);
    rig.arm(deaths, "Step {");
    sender.send(&many_calls());
    wait_until("the input is left out", || quarantined(&mut rig.control) == 1);
    assert_eq!(copies(rig.directory.path()), 1);
    assert!(!rig.bus.log().contains("EVERY CONNECTION"), "{}", rig.bus.log());
    assert_eq!(rig.control.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    // Whatever came before that was answered, and then its connection ends.
    while sender.message().is_some() {}
}

#[test]
fn two_faults_in_a_step_blame_whose_input_it_deals_with() {
    check_step("aa");
}

/// However often a worker would die of it.
#[test]
fn input_that_is_deadly_in_each_step_is_left_out() {
    check_step(&"a".repeat(8));
}
