//! From the call of Upgrade to its answer.

use bus_daemon::broker::{Action, Errand, Event, Start};
use bus_wire::MessageBuilder;

use crate::bus::{Bus, DRIVER, PATH, check};

fn upgrade(bus: &mut Bus, who: usize) -> u32 {
    let call = MessageBuilder::method_call(PATH, "Upgrade")
        .interface("org.busdaemon.Restart1")
        .destination(DRIVER)
        .body(|w| {
            w.str("/new");
        });
    bus.send(who, call)
}

fn serve(bus: &mut Bus, start: &Start) {
    bus.restart();
    bus.event(Event::Serving {
        worker_pid: 3,
        start: start.clone(),
    });
}

/// The errand of a trial.
fn trial(id: u64, binary: &str) -> (u64, Errand) {
    let binary = binary.to_owned();
    (id, Errand::TryBinary { binary })
}

#[test]
fn whoever_serves_next_answers_the_upgrade_once() {
    let starts = [
        (Start::Upgraded { pause: 5 }, "return (2) from bus to :1.0 re 2"),
        (
            Start::RolledBack {
                reason: "it died".to_owned(),
                pause: 5,
            },
            "error org.busdaemon.Error.UpgradeRolledBack(it died) from bus to :1.0 re 2",
        ),
    ];
    for (start, answer) in starts {
        check(|bus| {
            let (who, other) = (bus.connect(), bus.connect());
            upgrade(bus, who);
            assert_eq!(bus.errands(), [trial(1, "/new")]);
            assert!(!bus.broker.is_handing_over());
            upgrade(bus, other);
            assert!(bus.read(other)[0].starts_with("error org.busdaemon.Error.UpgradeInProgress("));
            bus.end_trial(1, Ok(()));
            assert_eq!(bus.asked(), [Action::HandOver]);
            assert!(bus.broker.is_handing_over());
            upgrade(bus, other);
            assert!(bus.read(other)[0].starts_with("error org.busdaemon.Error.UpgradeInProgress("));
            bus.expect(who, &[]);
            serve(bus, &start);
            bus.expect(who, &[answer]);
            assert!(!bus.broker.is_handing_over());
            serve(bus, &start);
            bus.event(Event::UpgradeFailed {
                reason: "late".to_owned(),
            });
            bus.expect(who, &[]);
            assert!(bus.asked().is_empty());
        });
    }
}

#[test]
fn a_refused_upgrade_is_answered_once_and_another_may_begin() {
    // The binary cannot take over, or the state cannot be handed over to it.
    for is_trial in [true, false] {
        check(|bus| {
            let who = bus.connect();
            upgrade(bus, who);
            if is_trial {
                bus.end_trial(1, Err("no such file"));
            } else {
                bus.end_trial(1, Ok(()));
                bus.event(Event::UpgradeFailed {
                    reason: "no such file".to_owned(),
                });
            }
            bus.expect(
                who,
                &["error org.busdaemon.Error.UpgradeRefused(no such file) from bus to :1.0 re 2"],
            );
            assert!(!bus.broker.is_handing_over());
            // What is heard of it later says nothing new.
            bus.end_trial(1, Ok(()));
            bus.end_trial(1, Err("again"));
            assert!(!bus.broker.is_handing_over());
            bus.expect(who, &[]);
            bus.asked();
            upgrade(bus, who);
            assert_eq!(bus.errands(), [trial(2, "/new")]);
        });
    }
}

#[test]
fn trials_of_other_upgrades_are_not_heard() {
    check(|bus| {
        let who = bus.connect();
        upgrade(bus, who);
        bus.asked();
        for errand in [0, 2, u64::MAX] {
            bus.end_trial(errand, Ok(()));
            bus.end_trial(errand, Err("of another"));
        }
        assert!(bus.asked().is_empty() && bus.descriptors.open.is_empty());
        assert_eq!(bus.broker.open_errands(), [trial(1, "/new")]);
        bus.expect(who, &[]);
    });
}

#[test]
fn a_trial_whose_outcome_cannot_be_read_has_failed() {
    check(|bus| {
        let who = bus.connect();
        upgrade(bus, who);
        bus.end_reading(1, Err("the outcome cannot be read"));
        bus.expect(
            who,
            &["error org.busdaemon.Error.UpgradeRefused(the outcome cannot be read) from bus to :1.0 re 2"],
        );
        assert_eq!(bus.broker.open_errands(), []);
    });
}

#[test]
fn an_upgrade_by_a_signal_is_tried_alike_and_answers_nobody() {
    check(|bus| {
        let who = bus.connect();
        bus.event(Event::UpgradeRequested);
        assert_eq!(bus.errands(), [trial(1, "")]);
        // A further signal does not begin another, and neither does a call.
        bus.event(Event::UpgradeRequested);
        assert!(matches!(bus.asked()[..], [Action::Warn { .. }]));
        upgrade(bus, who);
        assert!(bus.read(who)[0].starts_with("error org.busdaemon.Error.UpgradeInProgress("));
        bus.end_trial(1, Ok(()));
        serve(bus, &Start::Upgraded { pause: 1 });
        bus.expect(who, &[]);
        bus.event(Event::UpgradeRequested);
        bus.end_trial(2, Err("no"));
        bus.expect(who, &[]);
        assert_eq!(bus.broker.open_errands(), []);
    });
}

#[test]
fn a_death_of_the_worker_does_not_end_an_upgrade() {
    check(|bus| {
        let who = bus.connect();
        upgrade(bus, who);
        let death = Start::Recovered {
            pause: 1,
            quarantined: 0,
        };
        serve(bus, &death);
        // Whoever goes on asks for the same errand again.
        assert_eq!(bus.broker.open_errands(), [trial(1, "/new")]);
        bus.end_trial(1, Ok(()));
        serve(bus, &death);
        assert!(bus.broker.is_handing_over());
        bus.expect(who, &[]);
        serve(bus, &Start::Upgraded { pause: 1 });
        bus.expect(who, &["return (2) from bus to :1.0 re 2"]);
    });
}

#[test]
fn a_caller_that_is_gone_is_not_answered_and_its_upgrade_goes_on() {
    check(|bus| {
        let (who, other) = (bus.connect(), bus.connect());
        upgrade(bus, who);
        bus.close(who);
        bus.asked();
        bus.end_trial(1, Ok(()));
        assert_eq!(bus.asked(), [Action::HandOver]);
        serve(bus, &Start::Upgraded { pause: 1 });
        bus.expect(other, &[]);
        assert_eq!(bus.broker.open_errands(), []);
    });
}
