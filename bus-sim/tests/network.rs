//! Two machines and a bad network, by seeds.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_sim::network::{Options, Sabotage, Stats, run};

fn check(seeds: std::ops::Range<u64>, options: impl Fn(u64) -> Options) -> Stats {
    let chosen = std::env::var("BUS_SIM_SEED").ok();
    let seeds: Vec<u64> = match &chosen {
        Some(seed) => vec![seed.parse().expect("BUS_SIM_SEED must be a number")],
        None => seeds.collect(),
    };
    let mut sum = Stats::default();
    for seed in seeds {
        match run(seed, options(seed)) {
            Ok(stats) => sum.add(&stats),
            Err(failure) => panic!("{failure}"),
        }
    }
    eprintln!("{sum:?}");
    sum
}

/// What a seed means: mostly a bit of everything, sometimes much of one thing.
fn everything(seed: u64) -> Options {
    let usual = Options::default();
    match seed % 8 {
        0 => Options { cuts: 150, ..usual },
        1 => Options { deaths: 60, ..usual },
        2 => Options {
            attacks: 200,
            ..usual
        },
        3 => Options {
            sleeps: 20,
            outages: 15,
            ..usual
        },
        _ => usual,
    }
}

#[test]
fn every_byte_comes_once_and_in_order_whatever_happens_to_the_network() {
    let stats = check(0..160, everything);
    if std::env::var("BUS_SIM_SEED").is_err() {
        assert!(
            stats.resumptions > 1000 && stats.expired > 20 && stats.fenced > 20 && stats.again > 10_000,
            "{stats:?}"
        );
        assert!(
            stats.late > 100 && stats.turned_away > 1000 && stats.deaths > 500 && stats.sleeps > 100,
            "{stats:?}"
        );
    }
}

#[test]
fn a_link_that_lives_just_long_enough_makes_progress() {
    // 5 ms one way at most: three times that to resume, and once for a record.
    let stats = check(0..30, |_| Options {
        lives: Some(150),
        steps: 6000,
        cuts: 0,
        outages: 0,
        deaths: 0,
        sleeps: 0,
        attacks: 0,
        ..Options::default()
    });
    assert!(
        stats.bytes > 5_000_000 && stats.resumptions > 300 && stats.expired == 0,
        "{stats:?}"
    );
}

#[test]
fn faults_of_the_owner_are_found() {
    for sabotage in [
        Sabotage::AcksEarly,
        Sabotage::GrantsEarly,
        Sabotage::ClockStops,
        Sabotage::DeliversTwice,
    ] {
        let usual = Options {
            sabotage: Some(sabotage),
            deaths: 30,
            sleeps: 20,
            outages: 15,
            ..Options::default()
        };
        let found = (0..200).find_map(|seed| run(seed, usual).err());
        let failure = found.unwrap_or_else(|| panic!("nobody notices {sabotage:?}"));
        eprintln!("{sabotage:?}: {}", failure.what);
    }
}

#[test]
#[ignore = "thousands of seeds: minutes"]
fn campaign() {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |number| number.parse().expect("a number"));
    let first: u64 = number("BUS_SIM_FIRST", 1000);
    check(first..first + number("BUS_SIM_SEEDS", 10_000), everything);
}
