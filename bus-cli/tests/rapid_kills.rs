//! The worker is killed again before it can have done much, every millisecond for a while: it gets on nevertheless, slowly,
//! and exactly. Every message of the load is counted, calls are answered within a bound, and nobody is blamed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::{self, Deadline};
use bus_load::{Load, LoadPlan};
use nix::sys::signal::Signal;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::bystander::Bystander;
use support::process::{quarantine_files, quarantined, state, strike, worker_pid};
use support::random::Random;
use support::{Bus, DRIVER, recoveries};

/// One at a time: they measure.
static ALONE: Mutex<()> = Mutex::new(());

/// Calls answered in each second, at least.
const RATE: u64 = 10;
/// No call waits longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Both are promises of an optimized build: another one takes several milliseconds for a recovery, and so may get nowhere
/// between two kills. It is exact, too, and is held to the rate where it gets somewhere.
const IS_OPTIMIZED: bool = !cfg!(debug_assertions);
/// Pairs of which one calls the other.
const BYSTANDERS: usize = 4;

/// Kills the worker, by the clock, until `time` has passed. How many workers were killed.
fn kill_all(bus: &Bus, time: Duration, gap: &Range<Duration>, random: &mut Random) -> u32 {
    let end = Deadline::after(time);
    let (mut killed, mut last, mut due) = (0, None, clock::now());
    while !end.passed() {
        due = (due + random.duration(gap.clone())).max(clock::now());
        std::thread::sleep(due.saturating_duration_since(clock::now()));
        // The one killed last may still be dying.
        let worker = bus.worker().filter(|worker| Some(*worker) != last);
        if let Some(worker) = worker
            && state(worker).is_some_and(|state| state != 'Z')
            && strike(worker, Signal::SIGKILL)
        {
            last = Some(worker);
            killed += 1;
        }
    }
    killed
}

fn kills(time: Duration, gap: Range<Duration>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::from_environment("BUS_KILL_SEED");
    let bus = Bus::start();
    let mut control = bus.caller();
    let plan = LoadPlan::small();
    eprintln!("BUS_LOAD_SEED={}", plan.seed);
    let mut load = Load::start(&bus.address, plan).unwrap();
    load.go().unwrap();
    let bystanders: Vec<Bystander> = (0..BYSTANDERS)
        .map(|_| Bystander::start(&bus, Duration::from_millis(1)))
        .collect();
    let answered = || bystanders.iter().map(Bystander::answered).sum::<u64>();

    let (before, begun) = (answered(), clock::now());
    let killed = kill_all(&bus, time, &gap, &mut random);
    let (calls, lasted) = (answered() - before, clock::now() - begun);
    let survived = recoveries(&mut control);
    eprintln!("{killed} kills in {lasted:.2?}, {survived} recoveries, {calls} calls answered");
    let kept = quarantine_files(&bus);
    assert!(kept.is_empty(), "nobody sent anything deadly: {kept:?}");
    assert_eq!(quarantined(&mut control), 0, "nobody sent anything deadly");
    let waits: Vec<_> = bystanders.into_iter().map(Bystander::finish).collect();
    for waits in &waits {
        eprintln!("{waits}");
    }
    let longest = waits.iter().map(|waits| waits.longest()).max().unwrap();
    let report = load.finish().unwrap();
    eprintln!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(
        u128::from(killed) > lasted.as_millis() / 20,
        "{killed} kills are too few"
    );
    if IS_OPTIMIZED {
        assert!(longest <= PATIENCE, "a call waited for {longest:?}");
    }
    if IS_OPTIMIZED || gap.end > ONE.end {
        assert!(
            calls >= RATE * lasted.as_secs(),
            "{calls} calls answered in {lasted:?}"
        );
    }
    serves_normally(&bus);
}

/// As if nothing had been: newcomers are served by one and the same worker, which can be replaced.
fn serves_normally(bus: &Bus) {
    let mut caller = bus.caller();
    let worker = worker_pid(&mut caller);
    for _ in 0..50 {
        let mut other = bus.caller();
        assert_eq!(other.ask("GetNameOwner", DRIVER).unwrap(), DRIVER);
    }
    assert_eq!(worker_pid(&mut caller), worker);
    let waits = {
        let bystander = Bystander::start(bus, Duration::ZERO);
        std::thread::sleep(Duration::from_millis(300));
        bystander.finish()
    };
    eprintln!("afterwards: {waits}");
    assert!(waits.longest() < PATIENCE);
    assert_eq!(support::upgrade(&mut caller, "").unwrap(), 2);
}

const ONE: Range<Duration> = Duration::from_millis(1)..Duration::from_micros(1001);
const ONE_TO_FOUR: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(4);

#[test]
fn kills_one_millisecond_apart() {
    kills(Duration::from_secs(3), ONE);
}

#[test]
fn kills_one_to_four_milliseconds_apart() {
    kills(Duration::from_secs(3), ONE_TO_FOUR);
}

/// `cargo test --release -p bus-cli --test rapid_kills -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn kills_one_millisecond_apart_for_a_minute() {
    kills(Duration::from_secs(60), ONE);
}

#[test]
#[ignore = "takes a minute"]
fn kills_one_to_four_milliseconds_apart_for_a_minute() {
    kills(Duration::from_secs(60), ONE_TO_FOUR);
}
