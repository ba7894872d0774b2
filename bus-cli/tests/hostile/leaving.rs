//! Peers that have much leave, and others hardly notice; and what others have makes nobody's signals dear.

use crate::foe::{Foe, driver};
use crate::support::Bus;
use crate::support::bystander::{Bystander, Waits};
use crate::{alone, expect_waits};
use bus_wire::Flags;
use std::time::Duration;

/// A session bus, where each peer may have 50,000 of anything, in the build for tests a tenth of it.
const MANY: usize = if cfg!(debug_assertions) { 5_000 } else { 49_800 };

fn session() -> Bus {
    Bus::start()
}

fn foe(bus: &Bus) -> Foe {
    let foe = Foe::connect(&bus.socket()).unwrap();
    foe.stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    foe.stream
        .set_write_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    foe
}

/// Calls of one member with a string that has a number in it, in batches.
fn call_often(foe: &mut Foe, member: &str, count: usize, text: impl Fn(usize) -> String, is_name: bool) {
    let mut batch = Vec::new();
    for n in 0..count {
        batch.extend(driver(member, Flags::NO_REPLY_EXPECTED, |body| {
            let body = body.str(&text(n));
            if is_name {
                body.u32(0);
            }
        }));
        if n % 300 == 299 || n + 1 == count {
            foe.send(&batch).unwrap();
            foe.settle().unwrap();
            batch.clear();
        }
    }
}

/// How long a bystander waits while these go.
fn leave(bus: &Bus, foes: Vec<Foe>) -> Waits {
    let bystander = Bystander::start(bus, Duration::from_millis(1));
    drop(foes);
    std::thread::sleep(Duration::from_secs(1));
    bystander.finish()
}

#[test]
fn whoever_leaves_with_many_names_keeps_nobody_waiting() {
    let _alone = alone();
    let bus = session();
    let mut mallory = foe(&bus);
    call_often(&mut mallory, "RequestName", MANY, |n| format!("n.a{n}"), true);
    let waits = leave(&bus, vec![mallory]);
    eprintln!("{MANY} names: {waits}");
    expect_waits(&waits, Duration::from_millis(50));
    assert!(bus.caller().ask("GetNameOwner", "n.a1").is_err());
    assert!(
        bus.caller()
            .ask("GetNameOwner", &format!("n.a{}", MANY - 1))
            .is_err()
    );
}

#[test]
fn whoever_leaves_with_many_rules_keeps_nobody_waiting() {
    let _alone = alone();
    let bus = session();
    let foes: Vec<Foe> = (0..4)
        .map(|of| {
            let mut mallory = foe(&bus);
            call_often(
                &mut mallory,
                "AddMatch",
                MANY,
                |n| format!("arg1='x{}'", of * MANY + n),
                false,
            );
            mallory
        })
        .collect();
    let waits = leave(&bus, foes);
    eprintln!("4 times {MANY} rules: {waits}");
    expect_waits(&waits, Duration::from_millis(50));
}

/// `session 10 49999`: rules of others, which look at arguments that a signal has, cost its sender nothing.
#[test]
fn rules_of_others_make_no_signal_dear() {
    let _alone = alone();
    let bus = session();
    let mut foes: Vec<Foe> = (0..4).map(|_| foe(&bus)).collect();
    let before = signals(&bus);
    for (of, mallory) in foes.iter_mut().enumerate() {
        call_often(mallory, "AddMatch", MANY, |n| format!("arg1='{of}x{n}'"), false);
    }
    let after = signals(&bus);
    eprintln!("without {before}, with {}", after);
    // As `performance.md` counts it, it is the same; here, an order of magnitude.
    let bound = 10 * before.quantile(0.5) + Duration::from_millis(2);
    assert!(after.quantile(0.5) <= bound, "{after}, and before that {before}");
    for mut mallory in foes {
        mallory.settle().expect("whoever has many rules stays");
    }
}

/// How long the bus takes for each of some batches of signals.
fn signals(bus: &Bus) -> Waits {
    let mut alice = foe(bus);
    let batch = crate::foe::signal(None, 10, 0).repeat(20);
    let mut waits = Vec::new();
    for _ in 0..30 {
        let begun = bus_load::clock::now();
        alice.send(&batch).unwrap();
        alice.settle().expect("whoever sends signals stays");
        waits.push(bus_load::clock::now() - begun);
    }
    Waits::of(waits)
}

/// 500 questions of 68 kB in one write, three times, after an upgrade: the new binary stays, nobody is blamed.
#[test]
fn a_flood_of_questions_keeps_nobody_waiting_and_rolls_nothing_back() {
    let _alone = alone();
    let bus = session();
    let mut control = bus.caller();
    let mut owner = foe(&bus);
    call_often(&mut owner, "RequestName", MANY, |n| format!("n.a{n}"), true);
    assert_eq!(crate::support::upgrade(&mut control, "").unwrap(), 2);
    let bystander = Bystander::start(&bus, Duration::from_millis(1));
    let flood = driver("ListNames", Flags::NO_REPLY_EXPECTED, |_| ()).repeat(470);
    for _ in 0..3 {
        let mut mallory = foe(&bus);
        mallory.send(&flood).unwrap();
        mallory.settle().unwrap();
    }
    // The same, with answers that are read.
    let mut trudy = foe(&bus);
    let asked = driver("ListNames", Flags::NONE, |_| ()).repeat(20);
    trudy.send(&asked).unwrap();
    trudy.drain();
    std::thread::sleep(Duration::from_millis(300));
    let waits = bystander.finish();
    eprintln!("{waits}");
    expect_waits(&waits, Duration::from_millis(50));
    assert_eq!(crate::support::generation(&mut control), 2);
    assert_eq!(crate::support::recoveries(&mut control), 0);
    assert!(!bus.log().contains("quarantine"), "somebody was blamed");
    owner.settle().unwrap();
}
