//! The simulator finds faults: each of these is put in on purpose, and must not go unnoticed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_sim::{Options, Sabotage, run};

/// Runs seeds with a fault in each. Of those in which it struck, so many of 100 must be found: all, unless what is lost
/// may be something that nobody asks for in the rest of the run. `twin_events` 0: without the help of the broker that was
/// replaced.
fn check(fault: impl Fn(u64) -> Sabotage, twin_events: u64, share: u32) {
    let (mut struck, mut found) = (0, 0);
    for seed in 0..60 {
        let options = Options {
            sabotage: Some(fault(seed % 17)),
            deaths: 0,
            twin_events,
            ..Options::default()
        };
        match run(seed, options) {
            Err(_) => {
                struck += 1;
                found += 1;
            }
            Ok(stats) => struck += stats.sabotaged as u32,
        }
    }
    assert!(struck > 15, "{struck} faults");
    assert!(found * 100 >= struck * share, "{found} found of {struck}");
}

#[test]
fn a_lost_message() {
    check(|at| Sabotage::Lose(3 * at), 20, 100);
}

#[test]
fn a_doubled_message() {
    check(|at| Sabotage::Double(3 * at), 20, 100);
}

#[test]
fn two_messages_in_the_wrong_order() {
    check(Sabotage::Swap, 20, 100);
}

#[test]
fn a_message_lost_on_the_way() {
    check(|at| Sabotage::LoseOnTheWay(3 * at), 20, 90);
}

#[test]
fn a_message_doubled_on_the_way() {
    check(|at| Sabotage::DoubleOnTheWay(3 * at), 20, 100);
}

#[test]
fn a_leaked_descriptor() {
    check(Sabotage::LeakFd, 20, 100);
}

#[test]
fn a_name_lost_in_a_restart() {
    check(Sabotage::LoseName, 0, 70);
}

#[test]
fn a_rule_lost_in_a_restart() {
    check(Sabotage::LoseRule, 20, 90);
}

#[test]
fn a_rule_lost_in_a_restart_by_its_effect_alone() {
    check(Sabotage::LoseRule, 0, 25);
}

#[test]
fn input_taken_twice() {
    check(Sabotage::TakeTwice, 20, 90);
}

#[test]
fn output_taken_for_sent_twice() {
    check(|at| Sabotage::SendTwice(at % 3), 20, 90);
}

#[test]
fn output_lost_while_parked() {
    check(|at| Sabotage::LoseParked(at % 3), 20, 90);
}

#[test]
fn a_lost_end_of_an_errand() {
    check(|at| Sabotage::LoseErrand(at % 3), 20, 100);
}

#[test]
fn a_lost_end_of_an_upgrade() {
    check(|_| Sabotage::LoseServing(0), 20, 100);
}

#[test]
fn a_checkpoint_that_forgets_what_is_stored() {
    check(Sabotage::ForgetStored, 0, 100);
}

#[test]
fn a_checkpoint_that_is_wrong_by_one_about_what_is_stored() {
    check(Sabotage::ShiftStored, 0, 100);
}

#[test]
fn an_upgrade_that_forgets_what_is_stored() {
    check(|at| Sabotage::ForgetCarried(at % 5), 20, 90);
}

#[test]
fn an_upgrade_that_is_wrong_by_one_about_what_is_stored() {
    check(|at| Sabotage::ShiftCarried(at % 5), 20, 90);
}
