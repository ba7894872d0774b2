//! The client's session core against a bus that dies, comes back, refuses, is slow and lies.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_sim::session::{SessionOptions, SessionStats, run_session, wake_ups_without_a_bus};

/// Runs these seeds, or the one in `BUS_SIM_SEED`.
fn check(seeds: std::ops::Range<u64>, options: impl Fn(u64) -> SessionOptions) -> SessionStats {
    let chosen = std::env::var("BUS_SIM_SEED").ok();
    let seeds: Vec<u64> = match &chosen {
        Some(seed) => vec![seed.parse().expect("BUS_SIM_SEED must be a number")],
        None => seeds.collect(),
    };
    let mut sum = SessionStats::default();
    for seed in seeds {
        match run_session(seed, options(seed)) {
            Ok(stats) => sum.add(&stats),
            Err(failure) => panic!("{failure}"),
        }
    }
    eprintln!("{sum:?}");
    sum
}

fn usual(seed: u64) -> SessionOptions {
    let usual = SessionOptions::default();
    match seed % 5 {
        0 => SessionOptions {
            refuses: 200,
            ..usual
        },
        1 => SessionOptions { deaths: 60, ..usual },
        2 => SessionOptions {
            cuts: 25,
            deaths: 2,
            ..usual
        },
        3 => SessionOptions {
            settles: false,
            ..usual
        },
        _ => usual,
    }
}

fn buses_that_die(seeds: std::ops::Range<u64>) {
    let sum = check(seeds, usual);
    // A run in which nothing of this happens shows nothing.
    assert!(
        sum.answered > 0 && sum.not_sent > 0 && sum.unknown_ran > 0,
        "{sum:?}"
    );
    assert!(sum.unknown > sum.unknown_ran, "{sum:?}");
    assert!(sum.signals > 0 && sum.notes > 0 && sum.inferred > 0, "{sum:?}");
}

#[test]
fn every_call_has_its_fate_and_every_gap_its_note() {
    buses_that_die(0..800);
}

/// `cargo test -p bus-sim --test client -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn every_call_has_its_fate_and_every_gap_its_note_for_long() {
    buses_that_die(10_000..60_000);
}

/// The same beginning of a session, over and over, with a bus that dies at each byte of it in turn.
#[test]
fn a_bus_dies_at_every_byte() {
    for seed in 0..3 {
        let options = |death_at| SessionOptions {
            steps: 200,
            deaths: 0,
            cuts: 0,
            death_at,
            ..SessionOptions::default()
        };
        let whole = run_session(seed, options(None)).unwrap();
        let mut deaths = 0;
        for at in 0..whole.bytes.min(4000) {
            match run_session(seed, options(Some(at))) {
                Ok(stats) => deaths += stats.deaths,
                Err(failure) => panic!("death at byte {at}: {failure}"),
            }
        }
        assert!(deaths > 1000, "{deaths}");
    }
}

#[test]
fn a_bus_that_lies_costs_no_hang_and_no_memory() {
    let sum = check(100_000..100_600, |seed| SessionOptions {
        lies: if seed % 2 == 0 { 30 } else { 300 },
        refuses: 100,
        ..SessionOptions::default()
    });
    assert!(sum.links > 600, "{sum:?}");
}

#[test]
fn without_a_bus_a_session_hardly_wakes() {
    for seed in 0..200 {
        let woken = wake_ups_without_a_bus(seed, 60, 1000, 100);
        assert!((6..60).contains(&woken), "seed {seed}: {woken}");
    }
}
