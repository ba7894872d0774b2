//! Whole runs, by their seeds.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_sim::{Options, Stats, run};

/// Runs these seeds, or the one in `BUS_SIM_SEED`.
fn check(seeds: std::ops::Range<u64>, options: impl Fn(u64) -> Options) -> Stats {
    let chosen = std::env::var("BUS_SIM_SEED").ok();
    let seeds: Vec<u64> = match &chosen {
        Some(seed) => vec![seed.parse().expect("BUS_SIM_SEED must be a number")],
        None => seeds.collect(),
    };
    let mut sum = Stats::default();
    for (count, seed) in seeds.into_iter().enumerate() {
        if count > 0 && count % 1000 == 0 {
            eprintln!("{count} runs");
        }
        match run(seed, options(seed)) {
            Ok(stats) => sum.add(&stats),
            Err(failure) => panic!("{failure}"),
        }
    }
    eprintln!("{sum:?}");
    sum
}

/// What a seed means: mostly a bit of everything, sometimes a restart at every step, or nearly as many checkpoints.
fn everything(seed: u64) -> Options {
    let usual = Options::default();
    match seed % 10 {
        0 => Options {
            upgrades: 1000,
            deaths: 0,
            steps: 300,
            ..usual
        },
        1 => Options {
            upgrades: 0,
            deaths: 1000,
            steps: 300,
            ..usual
        },
        2 => Options {
            clients: 14,
            steps: 1500,
            ..usual
        },
        3 => Options {
            checkpoints: 400,
            ..usual
        },
        4 => Options {
            shortages: 150,
            ..usual
        },
        _ => usual,
    }
}

#[test]
fn nothing_is_lost_doubled_or_reordered() {
    let stats = check(0..200, everything);
    if std::env::var_os("BUS_SIM_SEED").is_none() {
        assert!(
            stats.read > 5_000 && stats.large > 30 && stats.descriptors > 1000,
            "{stats:?}"
        );
        assert!(
            stats.told_again > 2_000 && stats.parked > 1_000 && stats.hand_overs > 50,
            "{stats:?}"
        );
        assert!(stats.stored > 3_000 && stats.forgotten > 100_000, "{stats:?}");
        assert!(stats.unknowable < 10, "{stats:?}");
        assert!(stats.held_back > 200 && stats.dismissed > 40, "{stats:?}");
    }
}

/// Everybody is held back time and again, and many must go: nobody waits without end, and a death changes nothing.
#[test]
fn memory_that_is_short_all_the_time_stops_nobody_for_good() {
    let options = |seed| Options {
        shortages: [100, 400][seed as usize % 2],
        upgrades: 20,
        clients: 10,
        ..Options::default()
    };
    let stats = check(0..60, options);
    if std::env::var_os("BUS_SIM_SEED").is_none() {
        assert!(stats.held_back > 5_000 && stats.read > 500, "{stats:?}");
    }
}

#[test]
#[ignore = "long campaign; see docs/testing.md"]
fn campaign() {
    check(0..20_000, everything);
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7, everything(7)), run(7, everything(7)));
}
