//! What the keeper has done by children: a configuration that cannot be read in time stops nobody, and whoever asks is
//! answered.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use bus_load::{CallError, Caller};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use support::{Bus, DRIVER, DRIVER_PATH, generation, recoveries, restart_property, upgrade, wait_until};

fn signal(bus: &Bus, signal: Signal) {
    kill(Pid::from_raw(bus.pid() as i32), signal).unwrap();
}

/// The worker, and no other child of the keeper.
fn worker(caller: &mut Caller) -> Pid {
    let pid = restart_property(caller, "WorkerPID")
        .body()
        .read_variant(|value| value.read_u32())
        .unwrap();
    Pid::from_raw(pid as i32)
}

fn reload(caller: &mut Caller) -> Result<(), CallError> {
    caller.set_timeout(Duration::from_secs(30));
    caller
        .call(DRIVER, DRIVER_PATH, DRIVER, "ReloadConfig", |_| {})
        .map(drop)
}

fn configuration(bus: &Bus) -> PathBuf {
    bus.directory.path().join("bus.conf")
}

/// Puts another file in the place of the configuration at once.
fn replace(bus: &Bus, make: impl FnOnce(&Path)) {
    let new = bus.directory.path().join("new.conf");
    make(&new);
    std::fs::rename(new, configuration(bus)).unwrap();
}

/// Whether a name can be activated that only the configuration in a directory of services brings.
fn knows(caller: &mut Caller, name: &str) -> bool {
    caller
        .list("ListActivatableNames", None)
        .unwrap()
        .iter()
        .any(|known| known == name)
}

/// A bus whose configuration names a directory of service files.
fn with_services() -> (Bus, PathBuf) {
    let services = tempfile::Builder::new()
        .prefix("bus-test-")
        .tempdir()
        .unwrap()
        .keep();
    let bus = Bus::start_with(&format!("<servicedir>{}</servicedir>", services.display()));
    (bus, services)
}

fn add_service(services: &Path, name: &str) {
    let text = format!("[D-BUS Service]\nName={name}\nExec=/bin/true\n");
    std::fs::write(services.join(format!("{name}.service")), text).unwrap();
}

#[test]
fn a_configuration_that_cannot_be_read_in_time_stops_nobody() {
    // How long it may take is 10 s; here it is less.
    let bus = Bus::start_patient("", Duration::from_millis(1500));
    let whole = std::fs::read(configuration(&bus)).unwrap();
    replace(&bus, |path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    });
    let mut bystander = bus.caller();
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| reload(&mut bus.caller()));
        let deadline = Deadline::after(Duration::from_millis(1200));
        let mut calls = 0;
        while !deadline.passed() {
            let soon = Deadline::after(Duration::from_millis(500));
            assert_eq!(bystander.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
            assert!(!soon.passed());
            calls += 1;
        }
        assert!(calls > 100, "{calls}");
        asked.join().unwrap()
    });
    match answer {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.freedesktop.DBus.Error.Timeout");
            assert!(message.contains("took more than 2 s"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    // An upgrade reads it, too, and is refused; then all is well again.
    replace(&bus, |path| std::fs::write(path, &whole).unwrap());
    reload(&mut bystander).unwrap();
    assert_eq!(upgrade(&mut bystander, "").unwrap(), 2);
}

/// The memfd of an outcome belongs to the keeper's outbox, and then to the bus's state: whoever dies in between, it is
/// closed once.
#[test]
fn no_outcome_stays_open_whenever_the_worker_that_hears_of_it_is_killed() {
    let bus = Bus::start_faulty("", "kill:request=3");
    let mut caller = bus.caller();
    // The outcome of a reading that failed is kept by nobody.
    std::fs::write(configuration(&bus), "<busconfig><nonsense/></busconfig>").unwrap();
    let outcomes = || {
        let descriptors = bus.descriptors();
        descriptors
            .iter()
            .filter(|kind| kind.contains("bus-outcome"))
            .count()
    };
    for round in 0..40 {
        assert!(matches!(reload(&mut caller), Err(CallError::Reply { .. })));
        // Before the next death: its recovery would close what this one has left.
        wait_until("no outcome is open", || outcomes() == 0);
        if round % 2 == 1 {
            // Every other worker is to be killed as it hears; whoever is not gives way to the next.
            let _ = kill(worker(&mut caller), Signal::SIGKILL);
        }
    }
    assert!(bus.log().contains("killed in request"), "{}", bus.log());
}

#[test]
fn a_configuration_that_is_missing_or_wrong_is_an_error_with_its_name() {
    let bus = Bus::start_with("");
    let mut caller = bus.caller();
    let whole = std::fs::read(configuration(&bus)).unwrap();
    std::fs::remove_file(configuration(&bus)).unwrap();
    match reload(&mut caller) {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.freedesktop.DBus.Error.FileNotFound");
            assert!(message.contains("bus.conf"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    std::fs::write(configuration(&bus), "<busconfig><nonsense/></busconfig>").unwrap();
    match reload(&mut caller) {
        Err(CallError::Reply { name, message }) => {
            assert_eq!(name, "org.freedesktop.DBus.Error.Failed");
            assert!(
                message.contains("bus.conf") && message.contains("nonsense"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    std::fs::write(configuration(&bus), whole).unwrap();
    reload(&mut caller).unwrap();
}

/// Far beyond what one record of the journal can hold.
#[test]
fn a_large_configuration_is_taken_and_survives_a_death_and_an_upgrade() {
    let (bus, services) = with_services();
    let mut caller = bus.caller();
    for index in 0..4000 {
        let name = format!("org.example.{}.N{index}", "a".repeat(100));
        add_service(&services, &name);
    }
    let last = format!("org.example.{}.N3999", "a".repeat(100));
    assert!(!knows(&mut caller, &last));
    reload(&mut caller).unwrap();
    assert!(knows(&mut caller, &last));
    kill(worker(&mut caller), Signal::SIGKILL).unwrap();
    wait_until("the bus has recovered", || recoveries(&mut caller) == 1);
    assert!(knows(&mut caller, &last));
    assert_eq!(upgrade(&mut caller, "").unwrap(), 2);
    assert!(knows(&mut caller, &last));
    std::fs::remove_dir_all(services).unwrap();
}

#[test]
fn signals_to_a_bus_whose_worker_is_stopped_are_heard_once_it_goes_on_or_by_the_next() {
    let (bus, services) = with_services();
    let mut caller = bus.caller();
    for (index, ends) in [Signal::SIGCONT, Signal::SIGKILL].into_iter().enumerate() {
        let name = format!("org.example.Stopped{index}");
        let stopped = worker(&mut caller);
        kill(stopped, Signal::SIGSTOP).unwrap();
        add_service(&services, &name);
        for _ in 0..2000 {
            signal(&bus, Signal::SIGHUP);
        }
        std::thread::sleep(Duration::from_millis(100));
        kill(stopped, ends).unwrap();
        wait_until("the configuration is read", || knows(&mut caller, &name));
        let before = generation(&mut caller);
        let stopped = worker(&mut caller);
        kill(stopped, Signal::SIGSTOP).unwrap();
        for _ in 0..2000 {
            signal(&bus, Signal::SIGUSR2);
        }
        std::thread::sleep(Duration::from_millis(100));
        kill(stopped, ends).unwrap();
        wait_until("the bus is upgraded", || generation(&mut caller) > before);
    }
    std::fs::remove_dir_all(services).unwrap();
}

/// Requests by calls and by signals, odd ones among them, while the worker is killed all the time.
#[test]
fn a_flood_of_requests_with_kills_among_them_is_answered_call_by_call() {
    let bus = Bus::start_with("");
    let deadline = Deadline::after(Duration::from_secs(6));
    let (mut reloads, mut upgrades) = (0, 0);
    std::thread::scope(|scope| {
        let reloaders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut caller, mut answered) = (bus.caller(), 0);
                    while !deadline.passed() {
                        reload(&mut caller).unwrap();
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        let upgraders: Vec<_> = ["", "/nonexistent", "relative", "/bin/false"]
            .into_iter()
            .map(|path| {
                let (bus, deadline) = (&bus, &deadline);
                scope.spawn(move || {
                    let (mut caller, mut answered) = (bus.caller(), 0);
                    while !deadline.passed() {
                        match upgrade(&mut caller, path) {
                            Ok(_) | Err(CallError::Reply { .. }) => answered += 1,
                            Err(error) => panic!("{path}: {error}"),
                        }
                    }
                    answered
                })
            })
            .collect();
        while !deadline.passed() {
            signal(&bus, Signal::SIGHUP);
            signal(&bus, Signal::SIGUSR2);
            std::thread::sleep(Duration::from_millis(40));
            if let Some(worker) = bus.worker() {
                // A child of another kind may be the first: those that are killed are reported as such.
                let _ = kill(Pid::from_raw(worker as i32), Signal::SIGKILL);
            }
        }
        for answered in reloaders {
            reloads += answered.join().unwrap();
        }
        for answered in upgraders {
            upgrades += answered.join().unwrap();
        }
    });
    eprintln!("{reloads} reloads and {upgrades} upgrades were answered");
    assert!(reloads >= 4 && upgrades >= 4);
    let mut caller = bus.caller();
    let before = generation(&mut caller);
    wait_until("upgrades are possible", || upgrade(&mut caller, "").is_ok());
    assert!(generation(&mut caller) > before);
}

/// A daemon that was just started, and where it prints its address.
struct Fresh {
    child: Child,
    output: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Fresh {
    /// In so much address space, in units of 1024 bytes.
    fn start(limit: &str) -> Fresh {
        let directory = tempfile::Builder::new().prefix("bus-test-").tempdir().unwrap();
        let script = format!(
            "ulimit -v {limit} && exec '{}' daemon --address=unix:path='{}' --nofork --print-address",
            support::binary().display(),
            directory.path().join("bus").display()
        );
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Fresh {
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            _directory: directory,
        }
    }

    fn worker(&self) -> Option<Pid> {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(children).ok()?;
        children
            .split_whitespace()
            .next()?
            .parse()
            .ok()
            .map(Pid::from_raw)
    }

    /// What it prints; empty if it ends without.
    fn address(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[test]
fn half_a_gigabyte_of_address_space_is_enough_and_nothing_is_printed_where_there_is_too_little() {
    let mut bus = Fresh::start("524288");
    let mut caller = Caller::connect(&bus.address()).unwrap();
    assert_eq!(caller.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    kill(bus.worker().unwrap(), Signal::SIGKILL).unwrap();
    wait_until("the bus has recovered", || recoveries(&mut caller) == 1);
    assert_eq!(upgrade(&mut caller, "").unwrap(), 2);

    let mut bus = Fresh::start("131072");
    assert_eq!(bus.address(), "");
    assert!(!bus.child.wait().unwrap().success());
}

/// The first workers are killed before they serve: nothing is printed until one does, and then it is all there.
#[test]
fn the_address_is_printed_once_a_worker_serves_however_many_were_killed_before() {
    for _ in 0..10 {
        let mut bus = Fresh::start("unlimited");
        let mut killed = Vec::new();
        wait_until("three workers were killed", || {
            let new = bus.worker().filter(|worker| !killed.contains(worker));
            killed.extend(new.filter(|worker| kill(*worker, Signal::SIGKILL).is_ok()));
            killed.len() == 3
        });
        let address = bus.address();
        let mut caller = Caller::connect(&address).unwrap();
        assert_eq!(caller.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
        // One line, and the end only if it is closed: standard output stays open.
        assert!(
            address.starts_with("unix:path=") && address.contains(",guid="),
            "{address}"
        );
    }
}
