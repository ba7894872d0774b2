//! The bus is upgraded in place, over and over, while hundreds of clients of five implementations use it and are in the
//! middle of everything that a client can be in the middle of; and nobody notices.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::Hook;
use support::load::attach;
use support::{Bus, check_descriptors, descriptors_after_upgrade, generation, last_pause, upgrade};

fn upgrades_under_load(count: u32) {
    let bus = Bus::start();
    let mut control = bus.caller();
    let descriptors = descriptors_after_upgrade(&bus, &mut control);
    let begun = generation(&mut control);
    let mut load = attach(&bus);
    let mut pauses = Vec::new();
    for index in 1..=count {
        // Every other upgrade finds the clients where the one before it found them, still in the middle.
        if index % 2 == 1 {
            load.hold(&Hook::ALL).unwrap();
        }
        assert_eq!(upgrade(&mut control, "").unwrap(), begun + index);
        pauses.push(last_pause(&mut control));
        if index % 2 == 0 || index == count {
            load.release(&Hook::ALL).unwrap();
        }
    }
    assert_eq!(generation(&mut control), begun + count);
    let report = load.finish().unwrap();
    pauses.sort_unstable();
    eprintln!(
        "{report}\npause: median {} us, longest {} us",
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1]
    );
    assert!(report.is_clean(), "{report}");
    assert!(report.fds_passed > 0, "{report}");
    // Everybody has left, and the daemon has let go of every descriptor.
    check_descriptors(&bus, &mut control, &descriptors);
}

#[test]
fn twenty_upgrades_under_load() {
    upgrades_under_load(20);
}

/// `cargo test -p bus-cli --test upgrade_under_load -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn a_hundred_upgrades_in_a_row_under_load() {
    upgrades_under_load(100);
}
