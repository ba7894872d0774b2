//! The daemon at fault: a message that kills the worker, a worker that hangs, a new binary that dies while it restores.
//! Everybody else goes on.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::{CallError, Caller, Hook, Load, LoadPlan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{Permissions, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::stalled::{Role, Sender, Stalled, To};
use support::{
    Bus, DRIVER, DRIVER_PATH, binary, check_descriptors, descriptors_after_upgrade, faulty, generation,
    recoveries, upgrade, wait_until,
};

fn quarantined_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.to_str().unwrap().contains("bus-quarantine-"))
        .collect()
}

#[track_caller]
fn check_poison(word: &str) {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start_binary(&faulty(directory.path(), "poison"));
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    let mut bystander = bus.caller();
    let mut sender = Caller::connect(&bus.address).unwrap();
    sender.set_timeout(Duration::from_secs(90));
    let name = sender.unique_name().to_owned();

    match sender.ask("GetNameOwner", &format!("org.example.{}", word.replace('-', "_"))) {
        Err(CallError::Reply { name, .. }) => assert_eq!(name, "org.freedesktop.DBus.Error.NameHasNoOwner"),
        other => panic!("harmless: {other:?}"),
    }
    match sender.ask("GetNameOwner", word) {
        Err(CallError::Reply { name, .. }) => assert_eq!(name, "org.busdaemon.Error.Quarantined"),
        other => panic!("{word}: {other:?}"),
    }
    // It is disconnected, and only it.
    assert!(sender.ask("GetNameOwner", DRIVER).is_err());
    assert_eq!(bystander.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    assert!(bystander.ask("GetNameOwner", &name).is_err());
    let survived = recoveries(&mut bystander);
    assert!((1..=3).contains(&survived), "{survived} recoveries");
    let kept = quarantined_files(directory.path());
    let [copy] = kept.as_slice() else {
        panic!("{kept:?}")
    };
    assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(copy).unwrap();
    assert!(bytes.windows(word.len()).any(|window| window == word.as_bytes()));

    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_message_that_kills_the_worker_is_quarantined() {
    check_poison("POISON-ABORT");
}

#[test]
fn a_message_that_makes_the_worker_panic_is_quarantined() {
    check_poison("POISON-PANIC");
}

#[test]
fn a_message_that_makes_the_worker_hang_is_quarantined() {
    check_poison("POISON-HANG");
}

/// A signal that has no name, and so is easily no signal to those who look for names.
#[test]
fn a_worker_that_is_ended_by_a_real_time_signal_is_replaced() {
    let bus = Bus::start();
    let mut caller = bus.caller();
    for death in 1..=3 {
        let kill = format!("kill -{} {}", 34 + 10 * (death - 1), bus.worker().unwrap());
        let sent = std::process::Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.unwrap().success());
        wait_until("the bus has recovered", || recoveries(&mut caller) == death);
    }
    assert_eq!(caller.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
}

#[test]
fn a_new_binary_that_dies_while_restoring_is_rolled_back_and_nobody_notices() {
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("old");
    std::fs::copy(binary(), &old).unwrap();
    let bus = Bus::start_binary(&old);
    let mut control = bus.caller();
    let descriptors = descriptors_after_upgrade(&bus, &mut control);
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    for _ in 0..3 {
        load.hold(&Hook::ALL).unwrap();
        match upgrade(
            &mut control,
            faulty(directory.path(), "restore:PATH").to_str().unwrap(),
        ) {
            Err(CallError::Reply { name, message }) => {
                assert_eq!(name, "org.busdaemon.Error.UpgradeRolledBack", "{message}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(generation(&mut control), 2);
        assert_eq!(bus.executable(), old);
        load.release(&Hook::ALL).unwrap();
    }
    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
    // The path that it was started from is the old one again.
    let upgrades = check_descriptors(&bus, &mut control, &descriptors);
    assert_eq!(generation(&mut control), 2 + upgrades);
    assert_eq!(bus.executable(), old);
    assert!(
        control
            .call(DRIVER, DRIVER_PATH, "org.freedesktop.DBus.Peer", "Ping", |_| {})
            .is_ok()
    );
}

/// A binary that is changed once it has been checked.
fn changing(directory: &Path) -> String {
    let path = directory.join("changing");
    let binary = binary().display();
    write(
        &path,
        format!("#!/bin/sh\n'{binary}' \"$@\" || exit\ntouch \"$0\"\n"),
    )
    .unwrap();
    set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_upgrade_that_fails_after_the_worker_has_stopped_leaves_nothing_behind() {
    let bus = Bus::start();
    let mut control = bus.caller();
    let journals = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", bus.pid())).unwrap();
        maps.matches("memfd:bus-journal").count()
    };
    let mut seen = Vec::new();
    for _ in 0..4 {
        assert!(upgrade(&mut control, &changing(bus.directory.path())).is_err());
        seen.push((bus.descriptors(), journals()));
    }
    assert_eq!(generation(&mut control), 1);
    // The first finds nothing of an upgrade before it.
    assert_eq!(seen[1], seen[2]);
    assert_eq!(seen[2], seen[3]);
}

/// The new binary is changed once it has been checked, so that the old one has to go on; and its worker dies in the
/// middle of that.
#[test]
fn an_upgrade_that_fails_and_then_a_death_cost_nobody_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start_binary(&faulty(directory.path(), "restore:any"));
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    let mut control = bus.caller();
    assert!(upgrade(&mut control, &changing(directory.path())).is_err());
    bus.wait_for_log("was changed after it had been tried");
    assert_eq!(generation(&mut control), 1);
    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
}

/// The address has been printed, so the bus is there, and stays.
#[test]
fn a_worker_killed_as_soon_as_it_serves_is_started_again() {
    for _ in 0..10 {
        let bus = Bus::start();
        for _ in 0..3 {
            if let Some(worker) = bus.worker() {
                let _ = kill(Pid::from_raw(worker as i32), Signal::SIGKILL);
            }
        }
        assert_eq!(bus.caller().ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    }
}

#[test]
fn a_request_is_fulfilled_even_if_the_worker_that_heard_it_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start_binary(&faulty(directory.path(), "kill:request=2"));
    let mut control = bus.caller();
    for index in 1..=12 {
        let before = generation(&mut control);
        kill(Pid::from_raw(bus.pid() as i32), Signal::SIGUSR2).unwrap();
        support::wait_until(&format!("upgrade {index} is done"), || {
            generation(&mut control) > before
        });
    }
    assert!(bus.log().contains("killed in request"), "{}", bus.log());
}

#[test]
fn a_new_binary_that_keeps_dying_gives_way_to_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("old");
    std::fs::copy(binary(), &old).unwrap();
    let bus = Bus::start_binary(&old);
    let mut control = bus.caller();
    let descriptors = descriptors_after_upgrade(&bus, &mut control);
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    let new = faulty(directory.path(), "poison");
    assert_eq!(upgrade(&mut control, new.to_str().unwrap()).unwrap(), 3);
    assert!(!bus.command_line().contains("--rolled-back"));
    assert_eq!(bus.executable(), binary());
    for _ in 0..2 {
        // Each is deadly twice, and then left out.
        let mut sender = bus.caller();
        let _ = sender.ask("GetNameOwner", "POISON-ABORT");
    }
    support::wait_until("the old binary is back", || {
        bus.command_line().contains("--rolled-back")
    });
    assert_eq!(bus.executable(), old);
    assert_eq!(control.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
    check_descriptors(&bus, &mut control, &descriptors);
    assert_eq!(bus.executable(), old);
}

/// The death that makes the old binary come back is the one after which a message is left out.
#[test]
fn who_is_quarantined_while_the_old_binary_comes_back_is_disconnected() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start();
    let mut control = bus.caller();
    let new = faulty(directory.path(), "poison");
    assert_eq!(upgrade(&mut control, new.to_str().unwrap()).unwrap(), 2);
    let mut sender = bus.caller();
    kill(Pid::from_raw(bus.worker().unwrap() as i32), Signal::SIGABRT).unwrap();
    support::wait_until("it has recovered", || recoveries(&mut control) == 1);
    match sender.ask("GetNameOwner", "POISON-ABORT") {
        Err(CallError::Reply { name, .. }) => assert_eq!(name, "org.busdaemon.Error.Quarantined"),
        other => panic!("{other:?}"),
    }
    assert!(sender.ask("GetNameOwner", DRIVER).is_err());
    support::wait_until("the old binary is back", || {
        bus.command_line().contains("--rolled-back")
    });
    assert_eq!(control.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
}

#[test]
fn a_daemon_that_cannot_go_on_begins_anew_at_the_same_address() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start();
    let mut client = bus.caller();
    let mut control = bus.caller();
    assert!(
        upgrade(
            &mut control,
            faulty(directory.path(), "restore:any").to_str().unwrap()
        )
        .is_err()
    );
    // It is known to have lost its connection, and finds a bus where the old one was.
    assert!(client.ask("GetNameOwner", DRIVER).is_err());
    let mut again = bus.caller();
    assert_eq!(again.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    assert_eq!(generation(&mut again), 1);
    bus.wait_for_log("EVERY CONNECTION IS LOST");
}

/// Where what waits is, nobody knows any more: it costs those who wait for it the connection, and nobody else, and no memory.
#[test]
fn a_store_that_no_record_names_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::start_binary(&faulty(directory.path(), "damaged-worker"));
    let mut control = bus.caller();
    let mut receivers = [
        Stalled::start(&bus, Role::Addressee),
        Stalled::start(&bus, Role::Addressee),
    ];
    let mut sender = Sender::start(&bus);
    for _ in 0..20 {
        sender.send(&mut receivers, To::One(0), 60_000, true);
    }
    sender.settle();
    let stores = || {
        let files = bus.descriptors();
        files
            .iter()
            .filter(|file| file.starts_with("/memfd:bus-store"))
            .count()
    };
    assert_eq!(stores(), 1);
    // Whoever serves then has no faults.
    upgrade(&mut control, binary().to_str().unwrap()).unwrap();
    bus.wait_for_log("the state is damaged");
    wait_until("there is one store", || stores() == 1);
    let [lost, kept] = receivers;
    assert!(control.list("ListNames", None).unwrap().contains(&kept.unique));
    assert!(!control.list("ListNames", None).unwrap().contains(&lost.unique));
    // Nor are the descriptors there that waited with it.
    let waited = |file: &String| file.contains("bus-load");
    wait_until("its descriptors are closed", || {
        !bus.descriptors().iter().any(waited)
    });
}
