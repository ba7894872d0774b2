//! The worker is killed, over and over, at random moments, while hundreds of clients of five implementations use the
//! bus; and nobody notices: every message is counted.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::{Hook, fds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;
use support::load::attach;
use support::{Bus, recoveries, upgrade};

/// A small generator, so that a failure can be tried again with `BUS_KILL_SEED`.
struct Random(u64);

impl Random {
    fn from_environment() -> Random {
        let seed = std::env::var("BUS_KILL_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        eprintln!("BUS_KILL_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What is done to the worker.
#[derive(Clone, Copy)]
struct Plan {
    kills: u32,
    signals: &'static [Signal],
    /// Longest time between two kills.
    gap: Duration,
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

fn kills_under_load(plan: Plan) {
    let mut random = Random::from_environment();
    let bus = Bus::start();
    let mut control = bus.caller();
    let fds_before = fds::open_count(bus.pid()).unwrap();
    let mut load = attach(&bus);
    let mut killed = 0;
    let mut upgrades = 0;
    let mut last = None;
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
            upgrades += 1;
        }
        std::thread::sleep(Duration::from_micros(random.below(plan.gap.as_micros() as u64)));
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
    load.release(&Hook::ALL).unwrap();
    let survived = recoveries(&mut control);
    let report = load.finish().unwrap();
    eprintln!("{report}\n{killed} kills, {survived} recoveries, {upgrades} upgrades begun");
    assert!(report.is_clean(), "{report}");
    assert!(report.fds_passed > 0, "{report}");
    // Others hit a worker before it served, or a preflight: those show in the log only.
    let noticed = bus.log().matches("the worker was ended by").count() as u32;
    assert!(noticed >= killed * 8 / 10, "{noticed} deaths of {killed} kills");
    assert!(survived >= killed / 10, "{survived} recoveries of {killed} kills");
    support::wait_until("the daemon has no more descriptors than before", || {
        fds::open_count(bus.pid()).unwrap() <= fds_before
    });
    upgrade(&mut control, "").unwrap();
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
    let gap = Duration::from_millis(250);
    kills_under_load(Plan {
        kills: 50,
        signals: FAULTS,
        gap,
        upgrade_every: Some(17),
    });
}

/// `cargo test -p bus-cli --test kill_under_load -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_thousand_kills_under_load() {
    let gap = Duration::from_millis(120);
    kills_under_load(Plan {
        kills: 1000,
        signals: &[Signal::SIGKILL],
        gap,
        upgrade_every: None,
    });
}
