//! A new binary that cannot take over is refused before anything stops, with the reason, and nobody notices; of two
//! upgrades at once, the second is told so.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use bus_load::{CallError, Hook, Load, LoadPlan, fds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{Permissions, read, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::{Bus, binary, generation, upgrade, wait_until};

/// Asks for an upgrade that must be refused, and returns the reason.
fn refused(bus: &Bus, binary: &str) -> String {
    match upgrade(&mut bus.caller(), binary) {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.busdaemon.Error.UpgradeRefused", "{binary}: {message}");
            message
        }
        other => panic!("{binary}: {other:?}"),
    }
}

fn file(directory: &Path, name: &str, content: &[u8], mode: u32) -> String {
    let path = directory.join(name);
    write(&path, content).unwrap();
    set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_is_not_a_bus_is_refused_and_nobody_notices() {
    let bus = Bus::start();
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();
    load.hold(&Hook::ALL).unwrap();

    let directory = bus.directory.path();
    let whole = read(binary()).unwrap();
    let cases = [
        "/bin/true".to_owned(),
        "/bin/false".to_owned(),
        "/bin/cat".to_owned(),
        directory.to_str().unwrap().to_owned(),
        directory.join("missing").to_str().unwrap().to_owned(),
        file(directory, "text", b"hello\n", 0o755),
        file(directory, "not-executable", &whole, 0o644),
        file(directory, "cut", &whole[..64 << 10], 0o755),
        // It says much, and nothing that counts.
        file(directory, "chatty", b"#!/bin/sh\nseq 100000\necho ok\n", 0o755),
        // It dies of a signal.
        file(directory, "dying", b"#!/bin/sh\nkill -SEGV $$\n", 0o755),
        // It could take over, and says that it could not.
        file(
            directory,
            "failing",
            format!("#!/bin/sh\n'{}' \"$@\"\nexit 1\n", binary().display()).as_bytes(),
            0o755,
        ),
    ];
    for case in &cases {
        let reason = refused(&bus, case);
        assert!(
            reason.contains(case.as_str()),
            "{case}: the reason does not name the binary: {reason}"
        );
    }

    let mut caller = bus.caller();
    assert_eq!(generation(&mut caller), 1);
    load.release(&Hook::ALL).unwrap();
    // After all that, a proper one.
    assert_eq!(upgrade(&mut caller, "").unwrap(), 2);
    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn nothing_is_left_of_an_upgrade_that_was_refused() {
    let bus = Bus::start();
    let directory = bus.directory.path();
    let cases = [
        "/bin/false".to_owned(),
        directory.join("missing").to_str().unwrap().to_owned(),
        file(directory, "not-executable", b"#!/bin/sh\n", 0o644),
    ];
    // Whoever is answered finds the worker with all that it opens.
    assert_eq!(generation(&mut bus.caller()), 1);
    let before = fds::open_count(bus.pid()).unwrap();
    for case in &cases {
        refused(&bus, case);
    }
    wait_until("the daemon has no more descriptors than before", || {
        fds::open_count(bus.pid()).unwrap() <= before
    });
}

#[test]
fn a_daemon_that_stops_leaves_no_trial_behind() {
    let bus = Bus::start();
    let notes = tempfile::tempdir().unwrap();
    let asked = notes.path().join("asked");
    let script = format!(
        "#!/bin/sh\necho $$ > '{0}.new'\nmv '{0}.new' '{0}'\nexec sleep 600\n",
        asked.display()
    );
    let slow = file(notes.path(), "slow", script.as_bytes(), 0o755);
    let mut caller = bus.caller();
    caller.set_timeout(std::time::Duration::from_micros(1));
    let _ = caller.call(
        support::DRIVER,
        support::DRIVER_PATH,
        support::RESTART,
        "Upgrade",
        |body| {
            body.str(&slow);
        },
    );
    wait_until("the trial has begun", || asked.exists());
    let pid = std::fs::read_to_string(&asked).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    drop(bus);
    assert!(!process.exists());
}

#[test]
fn of_two_upgrades_at_once_the_second_is_told_so() {
    let bus = Bus::start();
    let directory = bus.directory.path();
    // The real binary, which takes its time to make up its mind.
    let script = format!(
        "#!/bin/sh\ntouch '{0}/asked'\nwhile [ ! -e '{0}/answer' ]; do sleep 0.01; done\nexec '{1}' \"$@\"\n",
        directory.display(),
        binary().display()
    );
    let slow = file(directory, "slow", script.as_bytes(), 0o755);
    let mut load = Load::start(&bus.address, LoadPlan::small()).unwrap();
    load.go().unwrap();

    let first = std::thread::scope(|scope| {
        let first = scope.spawn(|| upgrade(&mut bus.caller(), &slow));
        wait_until("the first upgrade is under way", || {
            directory.join("asked").exists()
        });
        match upgrade(&mut bus.caller(), "") {
            Err(CallError::Reply { name, .. }) => assert_eq!(name, "org.busdaemon.Error.UpgradeInProgress"),
            other => panic!("{other:?}"),
        }
        // The bus serves while it waits.
        bus.caller().list("ListNames", None).unwrap();
        write(directory.join("answer"), b"").unwrap();
        first.join().unwrap()
    });
    assert_eq!(first.unwrap(), 2);
    assert_eq!(upgrade(&mut bus.caller(), binary().to_str().unwrap()).unwrap(), 3);
    let report = load.finish().unwrap();
    assert!(report.is_clean(), "{report}");
}

/// The worker is killed with a verdict in its ear: the next one acts on it.
#[test]
fn a_verdict_that_was_not_heard_is_for_the_next_worker() {
    let bus = Bus::start();
    let directory = bus.directory.path();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--check-upgrade=*) ;; *) exec '{1}' \"$@\" ;; esac\n\
         touch '{0}/asked'\nwhile [ ! -e '{0}/answer' ]; do sleep 0.01; done\n\
         '{1}' \"$@\" && touch '{0}/approved'\n",
        directory.display(),
        binary().display()
    );
    let slow = file(directory, "slow", script.as_bytes(), 0o755);
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| upgrade(&mut bus.caller(), &slow));
        wait_until("the trial has begun", || directory.join("asked").exists());
        let worker = Pid::from_raw(bus.worker().unwrap() as i32);
        kill(worker, Signal::SIGSTOP).unwrap();
        write(directory.join("answer"), b"").unwrap();
        wait_until("the trial has ended", || directory.join("approved").exists());
        std::thread::sleep(std::time::Duration::from_millis(300));
        kill(worker, Signal::SIGKILL).unwrap();
        asked.join().unwrap()
    });
    assert_eq!(answer.unwrap(), 2);
    assert_eq!(upgrade(&mut bus.caller(), binary().to_str().unwrap()).unwrap(), 3);
    assert!(
        !bus.log().contains("after the worker had stopped"),
        "{}",
        bus.log()
    );
}

/// What others than the bus and root can change, or own, is not executed.
#[test]
fn a_binary_that_others_could_change_is_refused() {
    let bus = Bus::start();
    let directory = bus.directory.path();
    let whole = read(binary()).unwrap();
    let path = file(directory, "binary", &whole, 0o755);
    let mut control = bus.caller();
    assert_eq!(upgrade(&mut control, &path).unwrap(), 2);
    for (mode, who) in [(0o757, "everybody"), (0o777, "everybody")] {
        set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let reason = refused(&bus, &path);
        assert!(reason.contains(who) && reason.contains(&path), "{reason}");
    }
    let own = nix::unistd::geteuid();
    if own.is_root() {
        // A group that is not the owner's own, and another owner.
        let other = Some(nix::unistd::Gid::from_raw(12_345));
        nix::unistd::chown(path.as_str(), None, other).unwrap();
        set_permissions(&path, Permissions::from_mode(0o775)).unwrap();
        let reason = refused(&bus, &path);
        assert!(reason.contains("a group") && reason.contains(&path), "{reason}");
        set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let other = Some(nix::unistd::Uid::from_raw(12_345));
        nix::unistd::chown(path.as_str(), other, None).unwrap();
        let reason = refused(&bus, &path);
        assert!(reason.contains("12345") && reason.contains(&path), "{reason}");
        nix::unistd::chown(path.as_str(), Some(own), None).unwrap();
    }
    set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(upgrade(&mut control, &path).unwrap(), 3);
}

/// Nobody ever writes to a fifo, and a device may be anything.
#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let bus = Bus::start();
    let path = bus.directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
    let path = path.to_str().unwrap();
    let soon = Deadline::after(std::time::Duration::from_secs(5));
    for (path, what) in [
        (path, "a fifo"),
        ("/dev/null", "a device"),
        ("/tmp", "a directory"),
    ] {
        let reason = refused(&bus, path);
        assert!(reason.contains(path) && reason.contains(what), "{reason}");
    }
    assert!(!soon.passed());
    assert_eq!(upgrade(&mut bus.caller(), "").unwrap(), 2);
}

/// What a binary prints goes into the reason, whatever it is: a D-Bus string takes no NUL, and a log no escapes.
#[test]
fn a_binary_that_prints_anything_is_refused_with_a_reason_that_is_text() {
    let bus = Bus::start();
    let script =
        b"#!/bin/sh\nprintf 'one\\000two\\033[31m\\377\\n'\nhead -c 9000 /dev/zero | tr '\\000' x\nexit 3\n";
    let reason = refused(&bus, &file(bus.directory.path(), "odd", script, 0o755));
    assert!(reason.contains("exited with code 3"), "{reason}");
    assert!(reason.contains("one\u{fffd}two\u{fffd}[31m"), "{reason}");
    assert!(
        !reason.contains(char::is_control) && reason.ends_with("xxx..."),
        "{reason}"
    );
    assert!(reason.len() < 2000, "{}", reason.len());
    assert_eq!(upgrade(&mut bus.caller(), "").unwrap(), 2);
}

/// Paths of any length and kind are answered, and lock nothing.
#[test]
fn odd_paths_are_answered_and_upgrades_are_possible_afterwards() {
    let bus = Bus::start();
    let mut caller = bus.caller();
    let long = |len: usize| format!("/{}", "a".repeat(len - 1));
    for path in [&long(4096), &long(65_000), &long(1 << 20), "relative", "./x", "~"] {
        match upgrade(&mut caller, path) {
            Err(CallError::Reply { name, .. }) => {
                assert_eq!(
                    name,
                    "org.freedesktop.DBus.Error.InvalidArgs",
                    "{} bytes",
                    path.len()
                );
            }
            other => panic!("{} bytes: {other:?}", path.len()),
        }
    }
    refused(&bus, &long(4095));
    refused(&bus, "/\u{fffd}\n\u{7f}");
    assert_eq!(upgrade(&mut caller, "").unwrap(), 2);
}

#[test]
fn who_asks_and_leaves_does_not_stop_an_upgrade() {
    let bus = Bus::start();
    let mut caller = bus.caller();
    caller.set_timeout(std::time::Duration::from_micros(1));
    let asked = caller.call(
        support::DRIVER,
        support::DRIVER_PATH,
        support::RESTART,
        "Upgrade",
        |body| {
            body.str("");
        },
    );
    assert!(matches!(asked, Err(CallError::Broken(_))), "{asked:?}");
    drop(caller);
    let mut other = bus.caller();
    wait_until("the upgrade is done", || generation(&mut other) == 2);
}
