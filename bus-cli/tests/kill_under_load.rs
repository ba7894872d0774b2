//! The worker is killed, over and over, at random moments and at the worst ones, while hundreds of clients of five
//! implementations use the bus; and nobody notices: every message and every descriptor is counted.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::{self, Deadline};
use bus_load::{Hook, Load, fds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::load::attach;
use support::random::Random;
use support::{Bus, check_descriptors, descriptors_after_upgrade, recoveries};

/// One at a time: each has the machine to itself, and counts the descriptors of this process.
static ALONE: Mutex<()> = Mutex::new(());

/// The time between two kills.
#[derive(Clone, Copy)]
enum Gap {
    /// Drawn, up to this.
    UpTo(Duration),
    /// Exactly this, by the clock.
    Every(Duration),
    /// One kill, and a second one while its recovery is under way, before this; then a random time up to the other.
    Double(Duration, Duration),
}

/// What is done to the worker.
#[derive(Clone, Copy)]
struct Plan {
    kills: u32,
    signals: &'static [Signal],
    gap: Gap,
    /// Every so many kills, an upgrade is begun as well.
    upgrade_every: Option<u32>,
}

/// Sends a deadly signal. The first SIGSEGV that comes from outside only takes away the runtime's handler, which waits
/// for the faulty access to be tried again.
fn strike(worker: u32, signal: Signal) -> bool {
    let worker = Pid::from_raw(worker as i32);
    let is_hit = kill(worker, signal).is_ok();
    let mut tries = 0;
    // Two that come at once count as one, so it is sent until the process is gone.
    while signal == Signal::SIGSEGV && is_alive(worker) && tries < 1000 {
        let _ = kill(worker, signal);
        std::thread::sleep(Duration::from_millis(1));
        tries += 1;
    }
    is_hit
}

fn is_alive(process: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The worker, as soon as there is another than `last`.
fn next_worker(bus: &Bus, last: Option<u32>) -> u32 {
    let deadline = Deadline::after(support::SOON);
    loop {
        match bus.worker().filter(|worker| Some(*worker) != last) {
            Some(worker) => return worker,
            None => assert!(!deadline.passed(), "no worker comes"),
        }
        std::hint::spin_loop();
    }
}

/// The load under which something is done to the worker, and the books before and after.
fn under_load(bus: &Bus, act: impl FnOnce(&mut Load) -> u32) {
    let mut control = bus.caller();
    let descriptors = descriptors_after_upgrade(bus, &mut control);
    // The first runtime of a process opens a pair of sockets for signals, for good.
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build());
    let own_before = fds::open_count(std::process::id()).unwrap();
    let mut load = attach(bus);
    let killed = act(&mut load);
    load.release(&Hook::ALL).unwrap();
    let survived = recoveries(&mut control);
    let report = load.finish().unwrap();
    eprintln!("{report}\n{killed} kills, {survived} recoveries");
    assert!(report.is_clean(), "{report}");
    // One message in ten has a descriptor; those of clients that send text only are few.
    let received = report.total().received;
    assert!(report.fds_passed * 12 > received, "{report}");
    // Others hit a worker before it served, or a trial: those show in the log only.
    let noticed = bus.log().matches("the worker was ended by").count() as u32;
    assert!(noticed >= killed * 8 / 10, "{noticed} deaths of {killed} kills");
    assert!(survived >= killed / 10, "{survived} recoveries of {killed} kills");
    let quarantined = bus.log().matches("kill the worker").count();
    assert_eq!(quarantined, 0, "nobody sent anything deadly");
    check_descriptors(bus, &mut control, &descriptors);
    let own = || fds::open_count(std::process::id()).unwrap();
    let soon = Deadline::after(support::SOON);
    while own() > own_before {
        let open = open_here();
        assert!(
            !soon.passed(),
            "clients have not closed all of {own_before}: {open:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What this process has open, each as the system names it.
fn open_here() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets.map(|target| target.display().to_string()).collect()
}

fn kills_under_load(plan: Plan) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::from_environment("BUS_KILL_SEED");
    let bus = Bus::start();
    under_load(&bus, |load| {
        let mut killed = 0;
        let mut last = None;
        let mut due = clock::now();
        while killed < plan.kills {
            if killed % 40 == 0 {
                load.release(&Hook::ALL).unwrap();
            } else if killed % 40 == 20 {
                load.hold(&Hook::ALL).unwrap();
            }
            if plan
                .upgrade_every
                .is_some_and(|every| killed % every == every - 1)
            {
                // Begun by signal, so that nobody waits: it succeeds, or the kill makes an end of it.
                kill(Pid::from_raw(bus.pid() as i32), Signal::SIGUSR2).unwrap();
            }
            let mut pause = |longest: Duration| {
                std::thread::sleep(Duration::from_micros(random.below(longest.as_micros() as u64)));
            };
            match plan.gap {
                Gap::UpTo(longest) => pause(longest),
                Gap::Every(time) => {
                    due = (due + time).max(clock::now());
                    std::thread::sleep(due.saturating_duration_since(clock::now()));
                }
                Gap::Double(recovery, _) if killed % 2 == 1 => {
                    next_worker(&bus, last);
                    pause(recovery);
                }
                Gap::Double(_, longest) => pause(longest),
            }
            let signal = plan.signals[random.below(plan.signals.len() as u64) as usize];
            // The one killed last may still be dying.
            let worker = bus.worker().filter(|worker| Some(*worker) != last);
            if let Some(worker) = worker
                && strike(worker, signal)
            {
                last = Some(worker);
                killed += 1;
            }
        }
        killed
    });
}

const FAULTS: &[Signal] = &[
    Signal::SIGKILL,
    Signal::SIGKILL,
    Signal::SIGSEGV,
    Signal::SIGKILL,
    Signal::SIGABRT,
];

#[test]
fn fifty_kills_under_load() {
    kills_under_load(Plan {
        kills: 50,
        signals: FAULTS,
        gap: Gap::UpTo(Duration::from_millis(250)),
        upgrade_every: Some(17),
    });
}

#[test]
fn kills_fifty_milliseconds_apart() {
    kills_under_load(Plan {
        kills: 100,
        signals: &[Signal::SIGKILL],
        gap: Gap::Every(Duration::from_millis(50)),
        upgrade_every: None,
    });
}

#[test]
fn kills_during_recovery() {
    kills_under_load(Plan {
        kills: 60,
        signals: &[Signal::SIGKILL],
        gap: Gap::Double(Duration::from_millis(8), Duration::from_millis(100)),
        upgrade_every: None,
    });
}

/// The worker kills itself, by SIGKILL, in the middle of checkpoints, of recoveries and of handing over for an upgrade,
/// until it has done so this often in each of them.
fn kills_at_the_worst_moments(each: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let places = "kill:checkpoint=4000,recovery=8000,hand-over=6";
    let bus = Bus::start_binary(&support::faulty(directory.path(), places));
    under_load(&bus, |load| {
        let count = |place: &str| bus.log().matches(&format!("killed in {place}")).count();
        let mut rounds = 0;
        while ["checkpoint", "recovery", "hand-over"]
            .iter()
            .any(|place| count(place) < each)
        {
            if rounds % 8 == 0 {
                load.release(&Hook::ALL).unwrap();
            } else if rounds % 8 == 4 {
                load.hold(&Hook::ALL).unwrap();
            }
            rounds += 1;
            let counts = ["checkpoint", "recovery", "hand-over"].map(count);
            assert!(
                rounds < 100 * each,
                "too seldom: {counts:?} after {rounds} rounds"
            );
            kill(Pid::from_raw(bus.pid() as i32), Signal::SIGUSR2).unwrap();
            std::thread::sleep(Duration::from_millis(150));
        }
        let counts = ["checkpoint", "recovery", "hand-over"].map(count);
        eprintln!("killed in checkpoints, recoveries and hand-overs: {counts:?}");
        counts.iter().sum::<usize>() as u32
    });
}

#[test]
fn kills_in_checkpoints_recoveries_and_upgrades() {
    kills_at_the_worst_moments(5);
}

/// `cargo test --release -p bus-cli --test kill_under_load -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_thousand_kills_under_load() {
    kills_under_load(Plan {
        kills: 1000,
        signals: &[Signal::SIGKILL],
        gap: Gap::UpTo(Duration::from_millis(120)),
        upgrade_every: None,
    });
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_deaths_of_every_kind_among_upgrades() {
    kills_under_load(Plan {
        kills: 1000,
        signals: FAULTS,
        gap: Gap::UpTo(Duration::from_millis(250)),
        upgrade_every: Some(7),
    });
}

#[test]
#[ignore = "takes a minute"]
fn kills_fifty_milliseconds_apart_for_a_minute() {
    kills_under_load(Plan {
        kills: 1200,
        signals: &[Signal::SIGKILL],
        gap: Gap::Every(Duration::from_millis(50)),
        upgrade_every: None,
    });
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_kills_half_of_them_during_recovery() {
    kills_under_load(Plan {
        kills: 1000,
        signals: &[Signal::SIGKILL],
        gap: Gap::Double(Duration::from_millis(8), Duration::from_millis(100)),
        upgrade_every: None,
    });
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_kills_each_in_checkpoints_recoveries_and_upgrades() {
    kills_at_the_worst_moments(100);
}
