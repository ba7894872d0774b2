//! What each operation costs the core, in instructions, at one size of the bus and at eight times that: counted by callgrind,
//! so that it is the same on any machine. No operation costs more than ten times as much at the larger size, whatever grows:
//! one thing alone, or all together. `docs/performance.md` has the table.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod counted;
mod operations;
mod relief;
mod rig;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use counted::{Counts, count};
use operations::{OPERATIONS, Operation};
use rig::{Grows, Rig, Size};

/// What an operation at eight times the size may cost, as a multiple.
const MOST: u64 = 10;

/// Instructions that are noise: what a table or a queue costs that happens to grow just then.
const NOISE: u64 = 3_000;

/// Counts everything at `size` and at eight times that, and compares.
fn compare(size: u32) {
    let mut wrong = Vec::new();
    let mut table: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for grows in Grows::ALL {
        let [small, large] = [size, 8 * size].map(|most| count(Size { grows, most }));
        let (Some(small), Some(large)) = (small, large) else {
            return;
        };
        for (operation, before, after) in pairs(&small, &large) {
            let name = operation.name;
            // Where names and subscribers grow together, their product is the output.
            let is_product = operation.tells_each && grows == Grows::Together;
            let most = if is_product { 8 * MOST } else { MOST };
            let times = after as f64 / before as f64;
            table
                .entry(name)
                .or_default()
                .push(format!("{before:>11} {after:>11} {times:>5.2}"));
            if after > most * before + NOISE {
                wrong.push(format!("{name}, {grows:?}: {before} and {after} instructions"));
            }
        }
    }
    eprintln!("size {size} and {}; instructions, and their ratio", 8 * size);
    for (column, grows) in Grows::ALL.iter().enumerate() {
        eprintln!("\n{grows:?}");
        for (name, columns) in &table {
            eprintln!("{name:48} {}", columns[column]);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn pairs<'a>(
    small: &'a Counts,
    large: &'a Counts,
) -> impl Iterator<Item = (&'static Operation, u64, u64)> + 'a {
    assert_eq!(small.len(), OPERATIONS.len());
    assert_eq!(large.len(), OPERATIONS.len());
    let counts = small.iter().zip(large);
    OPERATIONS
        .iter()
        .zip(counts)
        .map(|(operation, (small, large))| (operation, *small, *large))
}

#[test]
fn no_operation_costs_more_than_ten_times_as_much_where_eight_times_as_much_is_there() {
    compare(128);
}

/// `cargo test -p bus-daemon --test cost -- --ignored --nocapture`: at the limits of a session bus.
#[test]
#[ignore = "takes many minutes"]
fn no_operation_costs_more_than_ten_times_as_much_at_its_limit() {
    compare(6_200);
}

/// Run by the tests, under callgrind.
#[test]
#[ignore = "to be run under callgrind"]
fn measured() {
    let size = Size::from_environment();
    let mut rig = Rig::build(size);
    for operation in OPERATIONS {
        let events = (operation.prepare)(&mut rig);
        rig.measure(events);
        rig.check(operation.name);
    }
}

/// Each operation does what it says, which the counting could not see: at a small size, without callgrind.
#[test]
fn each_operation_can_be_carried_out() {
    for grows in Grows::ALL {
        let mut rig = Rig::build(Size { grows, most: 5 });
        for operation in OPERATIONS {
            let before = rig.bus.broker.work();
            let events = (operation.prepare)(&mut rig);
            rig.measure(events);
            rig.check(operation.name);
            assert!(
                rig.bus.broker.work() > before || operation.is_quiet,
                "{}: nothing was done",
                operation.name
            );
        }
    }
}
