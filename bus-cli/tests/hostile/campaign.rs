//! Everything at once: fifty hostile peers of two users on one processor, the bus and the innocent of a third user on the
//! other.

use crate::foe::{ATTACKS, War, fight};
use crate::support::bystander::{Bystander, Waits};
use crate::support::process::{strike, worker_pid};
use crate::support::random::Random;
use crate::support::raw::Raw;
use crate::support::{Bus, generation, recoveries, upgrade, wait_until};
use crate::user::{ALICE, Cpu, MALLORY, TRUDY, as_user, may_be_others, pin};
use crate::{alone, public_bus};
use bus_load::clock::{self, Deadline};
use bus_load::{Load, LoadPlan};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long, and what happens to the bus meanwhile.
struct Plan {
    time: Duration,
    foes: u32,
    kills_every: Option<Duration>,
    upgrades_every: Option<Duration>,
    bounds: Bounds,
}

/// How long the innocent may wait.
struct Bounds {
    /// 99.9 % of calls; with kills and upgrades, which are pauses of their own, 99 %.
    call: Duration,
    /// Being connected and greeted.
    greeting: Duration,
}

/// Those of an optimized build with two processors for itself.
const PROMISED: Bounds = Bounds {
    call: Duration::from_millis(20),
    greeting: Duration::from_millis(100),
};
/// Those of a build for tests, which shares its processors.
const LOOSE: Bounds = Bounds {
    call: Duration::from_secs(2),
    greeting: Duration::from_secs(5),
};

/// A caller and its partner each.
const PAIRS: usize = 5;

fn campaign(plan: &Plan) {
    if !may_be_others() {
        return;
    }
    let _alone = alone();
    let mut random = Random::from_environment("BUS_HOSTILE_SEED");
    // A thread of its own, so that no other test stays pinned.
    let scene = std::thread::scope(|scope| {
        let scene = scope.spawn(|| {
            pin(Cpu::First);
            let bus = Arc::new(public_bus(""));
            run(plan, &bus, &mut random);
        });
        scene.join()
    });
    if let Err(panic) = scene {
        std::panic::resume_unwind(panic);
    }
}

fn run(plan: &Plan, bus: &Arc<Bus>, random: &mut Random) {
    let war = War::on(&bus.socket());
    let innocents = Innocents::start(bus, &war);
    // Every kind of message, each numbered and each number checked: of a fourth user, since a monitor is among them.
    let plan_of_load = LoadPlan::small();
    eprintln!("BUS_LOAD_SEED={}", plan_of_load.seed);
    let mut load = Load::start(&bus.address, plan_of_load).unwrap();
    load.go().unwrap();
    let foes: Vec<_> = (0..plan.foes)
        .map(|n| {
            let (war, random) = (war.clone(), random.split());
            let uid = [MALLORY, TRUDY][n as usize % 2];
            let first = ATTACKS[n as usize / 2 % ATTACKS.len()];
            as_user(uid, Cpu::Last, move || fight(&war, first, random))
        })
        .collect();
    let faults = afflict(plan, bus);
    war.end();
    let outcome = innocents.finish();
    let report = load.finish().unwrap();
    for foe in foes {
        foe.join().expect("a foe goes on whatever the bus does");
    }
    let attacks = war.attacks.load(Ordering::Relaxed);
    eprintln!(
        "{attacks} attacks, {} kills, {} upgrades",
        faults.kills, faults.upgrades
    );
    eprintln!("calls:     {}", outcome.calls);
    eprintln!("greetings: {}", outcome.greetings);
    eprintln!("the floor: {}", outcome.floor);
    eprintln!("{report}");
    assert!(attacks > u64::from(plan.foes), "hardly anybody attacked");
    assert!(report.is_clean(), "{report}");
    let share = if faults.kills + faults.upgrades > 0 {
        0.99
    } else {
        0.999
    };
    let wait = outcome.calls.quantile(share);
    assert!(
        wait <= plan.bounds.call,
        "{share} of the calls waited up to {wait:?}"
    );
    let wait = outcome.greetings.quantile(share);
    assert!(
        wait <= plan.bounds.greeting,
        "{share} of newcomers waited up to {wait:?}"
    );
    // Nothing of it is left, and nobody was blamed.
    let mut control = bus.caller();
    assert!(bus.caller().ask("GetNameOwner", crate::support::DRIVER).is_ok());
    assert!(recoveries(&mut control) >= faults.kills);
    assert!(!bus.log().contains("quarantine"), "somebody was blamed");
    let before = generation(&mut control);
    assert_eq!(upgrade(&mut control, "").unwrap(), before + 1);
}

#[derive(Default)]
struct Faults {
    kills: u32,
    upgrades: u32,
}

/// What happens to the bus until the time is over.
fn afflict(plan: &Plan, bus: &Bus) -> Faults {
    let mut control = bus.caller();
    let end = Deadline::after(plan.time);
    let begun = clock::now();
    let mut faults = Faults::default();
    while !end.passed() {
        std::thread::sleep(Duration::from_millis(20));
        let passed = clock::now() - begun;
        let is_due =
            |every: Option<Duration>, done: u32| every.is_some_and(|every| passed >= every * (done + 1));
        if is_due(plan.kills_every, faults.kills) {
            let before = recoveries(&mut control);
            strike(worker_pid(&mut control), Signal::SIGKILL);
            wait_until("the bus has recovered", || recoveries(&mut control) > before);
            faults.kills += 1;
        }
        if is_due(plan.upgrades_every, faults.upgrades) {
            let before = generation(&mut control);
            assert_eq!(upgrade(&mut control, "").unwrap(), before + 1);
            faults.upgrades += 1;
        }
    }
    faults
}

/// Those who must not notice, all of one user: callers and their partners, and newcomers; and a pair that talks past the bus,
/// for the floor.
struct Innocents {
    work: std::thread::JoinHandle<Outcome>,
}

struct Outcome {
    calls: Waits,
    greetings: Waits,
    floor: Waits,
}

impl Innocents {
    /// All are connected when this returns.
    fn start(bus: &Arc<Bus>, war: &War) -> Innocents {
        let (bus, war) = (bus.clone(), war.clone());
        let (ready, is_ready) = channel();
        let work = as_user(ALICE, Cpu::First, move || {
            let pause = Duration::from_millis(5);
            let pairs: Vec<Bystander> = (0..PAIRS).map(|_| Bystander::start(&bus, pause)).collect();
            let floor = {
                let war = war.clone();
                std::thread::spawn(move || floor(&war, pause))
            };
            ready.send(()).unwrap();
            let mut greetings = Vec::new();
            while !war.is_over() {
                let begun = clock::now();
                drop(Raw::ready(&bus));
                greetings.push(clock::now() - begun);
                std::thread::sleep(Duration::from_millis(50));
            }
            let calls = pairs.into_iter().map(Bystander::finish);
            Outcome {
                calls: Waits::of_all(calls.collect()),
                greetings: Waits::of(greetings),
                floor: floor.join().unwrap(),
            }
        });
        is_ready.recv().expect("the innocent are connected");
        Innocents { work }
    }

    fn finish(self) -> Outcome {
        self.work.join().expect("no innocent lost anything")
    }
}

/// Calls over a pair of sockets, with no bus between.
fn floor(war: &War, pause: Duration) -> Waits {
    let (mut one, mut other) = UnixStream::pair().unwrap();
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while other.read_exact(&mut bytes).is_ok() && other.write_all(&bytes).is_ok() {}
    });
    let mut waits = Vec::new();
    while !war.is_over() {
        let begun = clock::now();
        let mut bytes = [0; 64];
        one.write_all(&bytes).unwrap();
        one.read_exact(&mut bytes).unwrap();
        waits.push(clock::now() - begun);
        std::thread::sleep(pause);
    }
    drop(one);
    echo.join().unwrap();
    Waits::of(waits)
}

#[test]
fn fifty_hostile_peers_cost_the_innocent_nothing() {
    campaign(&Plan {
        time: Duration::from_secs(6),
        foes: 50,
        kills_every: None,
        upgrades_every: None,
        bounds: LOOSE,
    });
}

#[test]
fn fifty_hostile_peers_and_kills_and_upgrades_cost_the_innocent_nothing() {
    campaign(&Plan {
        time: Duration::from_secs(8),
        foes: 50,
        kills_every: Some(Duration::from_secs(2)),
        upgrades_every: Some(Duration::from_secs(5)),
        bounds: LOOSE,
    });
}

/// How long a campaign takes: ten minutes, or as many seconds as `BUS_HOSTILE_SECONDS` says.
fn campaign_time() -> Duration {
    let seconds = std::env::var("BUS_HOSTILE_SECONDS").map_or(600, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// `cargo test --release -p bus-cli --test hostile -- --ignored --nocapture`
#[test]
#[ignore = "takes ten minutes"]
fn ten_minutes_of_fifty_hostile_peers() {
    campaign(&Plan {
        time: campaign_time(),
        foes: 50,
        kills_every: None,
        upgrades_every: None,
        bounds: PROMISED,
    });
}

#[test]
#[ignore = "takes ten minutes"]
fn ten_minutes_of_fifty_hostile_peers_with_a_kill_each_second_and_an_upgrade_every_ten() {
    campaign(&Plan {
        time: campaign_time(),
        foes: 50,
        kills_every: Some(Duration::from_secs(1)),
        upgrades_every: Some(Duration::from_secs(10)),
        bounds: PROMISED,
    });
}
