//! Floods of everything that makes the daemon look up from its work: SIGHUP, SIGUSR2, ReloadConfig and Upgrade, with every
//! odd argument, from many peers at once, with kills of the worker among them. Every caller is answered exactly once, a
//! bystander hardly notices, and upgrades are possible afterwards.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use bus_load::{CallError, Caller, peers};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, geteuid, mkfifo};
use std::collections::BTreeMap;
use std::fs::{Permissions, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::asker::{Asker, Request};
use support::bystander::{Bystander, Waits};
use support::process::{self, quarantine_files, quarantined, strike, worker_pid};
use support::random::Random;
use support::{Bus, DRIVER, DRIVER_PATH, RESTART, binary, generation, recoveries, upgrade, wait_until};

/// How long a call may wait that has to wait for others of its kind.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one alone may wait for its refusal.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);
const PATH_MAX: usize = 4096;

/// One at a time: they measure.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(directory: &Path, name: &str, content: &[u8], mode: u32) -> String {
    let path = directory.join(name);
    write(&path, content).unwrap();
    set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A path of this many bytes that leads nowhere.
fn long_path(length: usize) -> String {
    let mut path = "/nowhere".repeat(length.div_ceil(8));
    path.truncate(length);
    path
}

/// Arguments that no upgrade can come of.
fn odd_arguments(directory: &Path) -> Vec<String> {
    let whole = std::fs::read(binary()).unwrap();
    let fifo = directory.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let bus = binary().display();
    let mut arguments = vec![
        "bus".to_owned(),
        "./bus".to_owned(),
        "../../../../bin/true".to_owned(),
        " ".to_owned(),
        "\n".to_owned(),
        "/bin/true\n".to_owned(),
        "\u{1b}[31m/bin/true\r\n/bin/cat".to_owned(),
        "/".to_owned(),
        "/proc".to_owned(),
        "/dev/null".to_owned(),
        "/dev/zero".to_owned(),
        "/proc/self/exe/".to_owned(),
        "/proc/self/fd".to_owned(),
        "/bin/true".to_owned(),
        "/bin/cat".to_owned(),
        "/missing".to_owned(),
        directory.to_str().unwrap().to_owned(),
        fifo.to_str().unwrap().to_owned(),
        file(directory, "script", b"#!/bin/sh\nexit 0\n", 0o755),
        file(directory, "no-interpreter", b"#!/no/such/shell\n", 0o755),
        file(directory, "empty", b"", 0o755),
        file(directory, "not-executable", &whole, 0o644),
        // Good ones, but anybody could change them.
        file(directory, "for-the-world", &whole, 0o757),
        file(
            directory,
            "script-for-the-world",
            format!("#!/bin/sh\nexec '{bus}' \"$@\"\n").as_bytes(),
            0o777,
        ),
        "/nowhere/../".repeat(300),
    ];
    if geteuid().is_root() {
        // One that is neither root's nor, then, that of the bus's user.
        let of_nobody = file(directory, "of-nobody", &whole, 0o755);
        chown(of_nobody.as_str(), Some(Uid::from_raw(65534)), None).unwrap();
        arguments.push(of_nobody);
    }
    let lengths = [PATH_MAX - 1, PATH_MAX, PATH_MAX + 1, 65_500, 1 << 20];
    arguments.extend(lengths.map(long_path));
    arguments
}

/// Asks for an upgrade, within a bound.
fn ask(bus: &Bus, argument: &str) -> Result<(), CallError> {
    let mut caller = bus.caller();
    caller.set_timeout(REFUSED_WITHIN);
    let answer = caller.call(DRIVER, DRIVER_PATH, RESTART, "Upgrade", |body| {
        body.str(argument);
    });
    answer.map(|_| ())
}

/// An upgrade is possible, the bus hears its keeper, and newcomers are served.
fn upgrades(bus: &Bus, control: &mut Caller) {
    let before = generation(control);
    // One that was asked for by a signal may be under way.
    let deadline = Deadline::after(PATIENCE);
    let upgraded = loop {
        match upgrade(control, "") {
            Err(CallError::Reply { name, .. })
                if name.ends_with("UpgradeInProgress") && !deadline.passed() =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => break other.unwrap(),
        }
    };
    assert!(upgraded > before, "{before} and then {upgraded}");
    // Nothing of what was asked for before is left by now, so the next is the next.
    std::thread::sleep(Duration::from_millis(300));
    let before = generation(control);
    assert_eq!(upgrade(control, "").unwrap(), before + 1);
    assert_eq!(generation(control), before + 1);
    assert!(strike(bus.pid(), Signal::SIGUSR2));
    wait_until("an upgrade that was asked for by a signal", || {
        generation(control) == before + 2
    });
    assert_eq!(bus.caller().ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
}

#[test]
fn whatever_the_argument_of_an_upgrade_it_is_refused_and_the_next_one_works() {
    let _alone = alone();
    let bus = Bus::start();
    let directory = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for argument in odd_arguments(directory.path()) {
        let short: String = argument.chars().take(60).collect();
        let case = format!("{short:?} ({} bytes)", argument.len());
        match ask(&bus, &argument) {
            Err(CallError::Reply { name, .. })
                if name == "org.busdaemon.Error.UpgradeRefused"
                    || name == "org.freedesktop.DBus.Error.InvalidArgs" => {}
            Ok(()) => wrong.push(format!("{case}: the bus was upgraded to it")),
            Err(error) => wrong.push(format!("{case}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut control = bus.caller();
    assert_eq!(generation(&mut control), 1);
    upgrades(&bus, &mut control);
}

/// The longest path that the system takes is taken; one byte more is the caller's mistake.
#[test]
fn a_path_is_as_long_as_the_system_allows() {
    let _alone = alone();
    let bus = Bus::start();
    for length in [PATH_MAX, PATH_MAX + 1, 65_500, 100_000] {
        match ask(&bus, &long_path(length)) {
            Err(CallError::Reply { name, .. }) => {
                assert_eq!(name, "org.freedesktop.DBus.Error.InvalidArgs", "{length} bytes");
            }
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    // The same file by a path of 4,095 bytes: the terminating zero is the last byte that fits.
    let own = binary().to_str().unwrap();
    let room = PATH_MAX - 1 - own.len();
    let longest = format!("{}{}{own}", "/".repeat(room % 2), "/.".repeat(room / 2));
    assert_eq!(longest.len(), PATH_MAX - 1);
    assert_eq!(upgrade(&mut bus.caller(), &longest).unwrap(), 2);
}

/// How much of what.
#[derive(Clone, Copy)]
struct Flood {
    peers: usize,
    time: Duration,
    /// Signals to the keeper and kills of the worker come this far apart.
    signals_every: Duration,
    kills_every: Option<Duration>,
    /// The time within which 99 % of a bystander's calls are answered.
    p99: Duration,
}

fn flood(plan: Flood) {
    let _alone = alone();
    let mut random = Random::from_environment("BUS_FLOOD_SEED");
    let bus = Bus::start();
    let directory = tempfile::tempdir().unwrap();
    let mut arguments = odd_arguments(directory.path());
    // An upgrade that is possible, too.
    arguments.push(String::new());
    let mut control = bus.caller();
    let bystander = Bystander::start(&bus, Duration::from_millis(1));
    let end = Deadline::after(plan.time);
    let mut outcomes = BTreeMap::<String, u64>::new();
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..plan.peers)
            .map(|_| {
                let (mut random, arguments, bus) = (random.split(), &arguments, &bus);
                scope.spawn(move || {
                    let mut asker = Asker::ready(bus);
                    while !end.passed() {
                        let requests: Vec<Request> = (0..1 + random.below(8))
                            .map(|_| match random.below(3) {
                                0 => Request::Upgrade(random.pick(arguments).clone()),
                                _ => Request::ReloadConfig,
                            })
                            .collect();
                        asker.ask(&requests);
                        asker.wait_for_answers(PATIENCE);
                    }
                    asker.finish(PATIENCE)
                })
            })
            .collect();
        let (mut signaller, bus) = (random.split(), &bus);
        scope.spawn(move || {
            while !end.passed() {
                let signal = *signaller.pick(&[Signal::SIGHUP, Signal::SIGHUP, Signal::SIGUSR2]);
                strike(bus.pid(), signal);
                std::thread::sleep(plan.signals_every);
            }
        });
        if let Some(every) = plan.kills_every {
            let mut random = random.split();
            scope.spawn(move || {
                while !end.passed() {
                    std::thread::sleep(random.duration(every / 2..every * 2));
                    if let Some(worker) = worker_of(bus) {
                        strike(worker, Signal::SIGKILL);
                    }
                }
            });
        }
        for asker in askers {
            for (outcome, count) in asker.join().expect("every call is answered once") {
                *outcomes.entry(outcome).or_default() += count;
            }
        }
    });
    let waits = bystander.finish();
    eprintln!("bystander: {waits}\nanswers: {outcomes:?}");
    eprintln!(
        "{} recoveries, generation {}",
        recoveries(&mut control),
        generation(&mut control)
    );
    nobody_is_blamed(&bus, &mut control);
    upgrades(&bus, &mut control);
    if plan.kills_every.is_some() {
        assert!(bus.log().contains("SIGKILL"), "no worker was killed");
    }
    check_p99(&waits, plan.p99);
}

/// The worker. It has the daemon's own command line; a child that tries a new binary has another.
fn worker_of(bus: &Bus) -> Option<u32> {
    let pid = bus.pid();
    let own = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .find(|child: &u32| std::fs::read(format!("/proc/{child}/cmdline")).is_ok_and(|line| line == own))
}

#[track_caller]
fn check_p99(waits: &Waits, bound: Duration) {
    let p99 = waits.quantile(0.99);
    assert!(
        p99 <= bound,
        "p99 is {p99:.2?}, and not within {bound:?}: {waits}"
    );
}

fn nobody_is_blamed(bus: &Bus, control: &mut Caller) {
    assert_eq!(quarantined(control), 0);
    let kept = quarantine_files(bus);
    assert!(kept.is_empty(), "{kept:?}");
}

/// With room for what else the machine does; the campaign's bound is the promise.
const GENEROUS: Duration = Duration::from_millis(50);
const PROMISED: Duration = Duration::from_millis(10);

const SHORT: Flood = Flood {
    peers: 20,
    time: Duration::from_secs(4),
    signals_every: Duration::from_millis(2),
    kills_every: None,
    p99: GENEROUS,
};

#[test]
fn a_flood_from_twenty_peers_is_answered_and_hardly_noticed() {
    flood(SHORT);
}

#[test]
fn a_flood_from_twenty_peers_with_kills_among_it_is_answered_and_hardly_noticed() {
    flood(Flood {
        kills_every: Some(Duration::from_millis(400)),
        ..SHORT
    });
}

/// Each peer asks in one write, and the configuration is one that takes a while.
#[track_caller]
fn reloads_in_one_write(peers: usize, each: usize, p99: Duration) {
    let _alone = alone();
    let directories = |number| format!("<servicedir>/nowhere/{number}/{}</servicedir>\n", "d".repeat(200));
    let bus = Bus::start_with(&(0..1000).map(directories).collect::<String>());
    let bystander = Bystander::start(&bus, Duration::from_millis(1));
    std::thread::sleep(Duration::from_millis(200));
    let mut askers: Vec<Asker> = (0..peers).map(|_| Asker::ready(&bus)).collect();
    for asker in &mut askers {
        asker.ask(&vec![Request::ReloadConfig; each]);
    }
    for asker in askers {
        let outcomes = asker.finish(PATIENCE);
        assert_eq!(outcomes, BTreeMap::from([(String::new(), each as u64 + 1)]));
    }
    let waits = bystander.finish();
    eprintln!("bystander: {waits}");
    check_p99(&waits, p99);
    assert!(waits.longest() <= GENEROUS * 4, "{waits}");
    let mut control = bus.caller();
    nobody_is_blamed(&bus, &mut control);
    upgrades(&bus, &mut control);
}

#[test]
fn two_thousand_reloads_in_one_write_are_answered_and_hardly_noticed() {
    reloads_in_one_write(1, 2000, GENEROUS);
}

/// For this long, as many of this signal as the keeper hears.
fn signals(bus: &Bus, signal: Signal, time: Duration) {
    let end = Deadline::after(time);
    while !end.passed() {
        assert!(strike(bus.pid(), signal));
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// The worker is stopped, and the keeper is asked to tell it more than any channel holds.
#[test]
fn a_stopped_worker_that_goes_on_after_a_flood_of_signals_still_hears_the_keeper() {
    let _alone = alone();
    let bus = Bus::start();
    let mut control = bus.caller();
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        let before = generation(&mut control);
        let worker = worker_pid(&mut control);
        process::stop(worker);
        signals(&bus, signal, Duration::from_millis(1500));
        process::resume(worker);
        if signal == Signal::SIGUSR2 {
            wait_until("an upgrade", || generation(&mut control) > before);
        }
        assert_eq!(control.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
        upgrades(&bus, &mut control);
    }
}

/// A binary that tells when it is asked, and answers when it is told to.
fn slow(directory: &Path) -> String {
    let script = format!(
        "#!/bin/sh\ntouch '{0}/asked'\nwhile [ ! -e '{0}/answer' ]; do sleep 0.01; done\n\
         exec '{1}' \"$@\"\n",
        directory.display(),
        binary().display()
    );
    file(directory, "slow", script.as_bytes(), 0o755)
}

/// The keeper has an answer for a worker that is stopped, and more to tell it than any channel holds.
#[track_caller]
fn check_verdict(argument: impl Fn(&Path) -> String, is_good: bool) {
    let _alone = alone();
    let bus = Bus::start();
    let directory = tempfile::tempdir().unwrap();
    let binary = argument(directory.path());
    let mut control = bus.caller();
    let worker = worker_pid(&mut control);
    let mut asker = Asker::ready(&bus);
    asker.ask(&[Request::Upgrade(binary)]);
    wait_until("the new binary is asked", || {
        directory.path().join("asked").exists()
    });
    process::stop(worker);
    signals(&bus, Signal::SIGHUP, Duration::from_millis(700));
    write(directory.path().join("answer"), b"").unwrap();
    signals(&bus, Signal::SIGHUP, Duration::from_millis(700));
    process::resume(worker);
    // Others are served while the verdict is on its way.
    assert_eq!(bus.caller().ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    asker.wait_for_answers(REFUSED_WITHIN);
    let outcomes = asker.finish(REFUSED_WITHIN);
    let expected = if is_good {
        ""
    } else {
        "org.busdaemon.Error.UpgradeRefused"
    };
    assert!(outcomes.contains_key(expected), "{outcomes:?}");
    upgrades(&bus, &mut control);
}

#[test]
fn a_refusal_is_not_lost_in_a_flood_of_signals() {
    let refusing = |directory: &Path| {
        let script = format!(
            "#!/bin/sh\ntouch '{0}/asked'\nwhile [ ! -e '{0}/answer' ]; do sleep 0.01; done\nexit 3\n",
            directory.display()
        );
        file(directory, "refusing", script.as_bytes(), 0o755)
    };
    check_verdict(refusing, false);
}

#[test]
fn a_consent_is_not_lost_in_a_flood_of_signals() {
    check_verdict(slow, true);
}

/// An unmodified client that asks for reloads is answered in the flood of others.
#[test]
fn a_reload_by_dbus_send_is_answered_in_a_flood() {
    let Some(program) = peers::find("dbus-send").unwrap() else {
        return;
    };
    let _alone = alone();
    let bus = Bus::start();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                signals(&bus, Signal::SIGHUP, Duration::from_millis(20));
            }
        });
        for _ in 0..3 {
            let mut command = std::process::Command::new(&program);
            command.arg(format!("--bus={}", bus.address)).args([
                "--print-reply",
                "--reply-timeout=10000",
                "--dest=org.freedesktop.DBus",
                DRIVER_PATH,
                "org.freedesktop.DBus.ReloadConfig",
            ]);
            let printed = support::run(&mut command);
            assert!(printed.contains("method return"), "{printed}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// `cargo test --release -p bus-cli --test floods -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn a_minute_of_floods_with_kills_is_answered_within_the_promised_time() {
    flood(Flood {
        time: Duration::from_secs(60),
        signals_every: Duration::from_millis(1),
        kills_every: Some(Duration::from_millis(300)),
        p99: PROMISED,
        ..SHORT
    });
}

#[test]
#[ignore = "takes a minute"]
fn a_minute_of_floods_is_answered_within_the_promised_time() {
    flood(Flood {
        time: Duration::from_secs(60),
        signals_every: Duration::from_millis(1),
        p99: PROMISED,
        ..SHORT
    });
}

#[test]
#[ignore = "takes a while"]
fn forty_thousand_reloads_from_twenty_peers_are_answered_within_the_promised_time() {
    reloads_in_one_write(20, 2000, PROMISED);
}
