//! Requests to read the configuration again, and their answers.

use bus_daemon::broker::{Errand, Event, Millis};
use bus_daemon::config::Config;
use bus_wire::MessageBuilder;

use crate::bus::{Bus, DRIVER, PATH, check, check_with, config};

fn reload(bus: &mut Bus, who: usize) -> u32 {
    bus.driver(who, "ReloadConfig", |_| {})
}

/// The errand of a reading.
fn reading(id: u64) -> (u64, Errand) {
    (id, Errand::LoadConfiguration)
}

/// The answers of a reading that succeeded.
fn answers(who: usize, serials: impl IntoIterator<Item = u32>) -> Vec<String> {
    let answer = |serial| format!("return () from bus to :1.{who} re {serial}");
    serials.into_iter().map(answer).collect()
}

#[test]
fn a_reading_answers_whoever_asked_for_it() {
    check(|bus| {
        let who = bus.connect();
        reload(bus, who);
        bus.wait(249);
        assert_eq!(bus.errands(), []);
        bus.wait(1);
        assert_eq!(bus.errands(), [reading(1)]);
        bus.expect(who, &[]);
        bus.end_reading(1, Ok(config()));
        bus.expect(who, &["return () from bus to :1.0 re 2"]);
        reload(bus, who);
        bus.wait(250);
        bus.end_reading(2, Err("line 3"));
        bus.expect(who, &["error Failed(line 3) from bus to :1.0 re 3"]);
        assert_eq!(bus.broker.next_deadline(), None);
        // Whatever the reason is made of, the caller is answered.
        reload(bus, who);
        bus.wait(250);
        bus.end_reading(3, Err("a NUL: \0"));
        bus.expect(who, &["error Failed(a NUL: \u{fffd}) from bus to :1.0 re 4"]);
    });
}

#[test]
fn two_thousand_requests_in_one_read_are_two_readings_at_most() {
    let mut config = config();
    config.limits.max_replies_per_connection = 3_000;
    let mut bus = Bus::new(config.clone(), false);
    let who = bus.connect();
    let serials = 2..2_002;
    let mut bytes = Vec::new();
    for serial in serials.clone() {
        MessageBuilder::method_call(PATH, "ReloadConfig")
            .interface(DRIVER)
            .destination(DRIVER)
            .serial(serial)
            .build_into(&mut bytes)
            .unwrap();
    }
    bus.bytes(who, &bytes, &[]);
    let mut errands = Vec::new();
    for _ in 0..100 {
        for (errand, _) in bus.errands() {
            errands.push(errand);
            bus.end_reading(errand, Ok(config.clone()));
        }
        bus.wait(100);
    }
    assert!(matches!(errands.len(), 1 | 2), "{errands:?}");
    assert_eq!(bus.read(who), answers(who, serials));
}

#[test]
fn a_reading_begins_when_nobody_asks_for_a_while_or_somebody_has_waited_long() {
    check(|bus| {
        let who = bus.connect();
        let mut asked = 0;
        while bus.errands().is_empty() {
            reload(bus, who);
            asked += 1;
            bus.wait(100);
        }
        assert_eq!(asked, 20, "2 s after the first of them");
        bus.end_reading(1, Ok(config()));
        assert_eq!(bus.read(who).len(), asked);
    });
}

#[test]
fn whoever_asks_during_a_reading_waits_for_the_next() {
    check(|bus| {
        let (one, two) = (bus.connect(), bus.connect());
        reload(bus, one);
        bus.wait(250);
        assert_eq!(bus.errands(), [reading(1)]);
        reload(bus, two);
        bus.wait(5_000);
        assert_eq!(bus.errands(), [], "one at a time");
        bus.end_reading(1, Ok(config()));
        bus.expect(one, &["return () from bus to :1.0 re 2"]);
        bus.expect(two, &[]);
        bus.wait(0);
        assert_eq!(bus.errands(), [reading(2)]);
        // Of the first again: nobody waits for that any more.
        bus.end_reading(1, Err("stale"));
        bus.expect(two, &[]);
        bus.end_reading(2, Ok(config()));
        bus.expect(two, &["return () from bus to :1.1 re 2"]);
        bus.expect(one, &[]);
    });
}

#[test]
fn a_signal_has_the_configuration_read_too() {
    check(|bus| {
        let who = bus.connect();
        bus.event(Event::ReloadRequested);
        bus.event(Event::ReloadRequested);
        bus.wait(100);
        reload(bus, who);
        assert_eq!(bus.broker.next_deadline(), Some(Millis(350)));
        bus.wait(250);
        assert_eq!(bus.errands(), [reading(1)]);
        bus.end_reading(1, Ok(config()));
        bus.expect(who, &["return () from bus to :1.0 re 2"]);
        bus.wait(10_000);
        assert_eq!(bus.errands(), []);
    });
}

#[test]
fn a_peer_may_wait_for_so_many_answers() {
    let mut config = config();
    config.limits.max_replies_per_connection = 2;
    check_with(&config, |bus| {
        let (who, other) = (bus.connect(), bus.connect());
        reload(bus, who);
        bus.wait(250);
        reload(bus, who);
        // One waits for the reading, one for the next, and as many more as there is room for.
        let more: Vec<u32> = (2..4096).map(|_| reload(bus, who)).collect();
        bus.expect(who, &[]);
        let refused = reload(bus, who);
        let text = "The maximum number of pending replies per connection has been reached";
        bus.expect(
            who,
            &[&format!(
                "error LimitsExceeded({text}) from bus to :1.0 re {refused}"
            )],
        );
        reload(bus, other);
        bus.end_reading(1, Ok(config.clone()));
        bus.expect(who, &["return () from bus to :1.0 re 2"]);
        let again = reload(bus, who);
        bus.wait(250);
        bus.end_reading(2, Ok(config.clone()));
        let answered = [3].into_iter().chain(more).chain([again]);
        assert_eq!(bus.read(who), answers(who, answered));
        assert_eq!(bus.read(other), answers(other, [2]));
    });
}

#[test]
fn whoever_is_gone_is_not_answered() {
    check(|bus| {
        let (one, two, three) = (bus.connect(), bus.connect(), bus.connect());
        reload(bus, one);
        reload(bus, two);
        bus.close(one);
        bus.wait(250);
        reload(bus, three);
        bus.close(three);
        bus.end_reading(1, Ok(config()));
        bus.expect(two, &["return () from bus to :1.1 re 2"]);
        bus.wait(250);
        bus.end_reading(2, Ok(config()));
        bus.expect(two, &[]);
    });
}

#[test]
fn the_memfd_of_the_configuration_in_force_is_kept_and_no_other() {
    check(|bus| {
        bus.connect();
        let source = |bus: &Bus| bus.broker.config_source().into_iter().collect();
        for errand in 1..4 {
            bus.event(Event::ReloadRequested);
            bus.wait(250);
            bus.end_reading(errand, Ok(config()));
            assert_eq!(bus.descriptors.open, source(bus));
            assert_eq!(bus.descriptors.open.len(), 1);
        }
        let before = bus.broker.config_source();
        bus.event(Event::ReloadRequested);
        bus.wait(250);
        bus.end_reading(4, Err("no"));
        bus.end_reading(99, Ok(config()));
        assert_eq!(bus.broker.config_source(), before);
        assert_eq!(bus.descriptors.open, source(bus));
    });
}

#[test]
fn the_limits_of_the_new_configuration_hold() {
    check(|bus| {
        let who = bus.connect();
        reload(bus, who);
        bus.wait(250);
        let mut less = Config { ..config() };
        less.limits.max_match_rules_per_connection = 0;
        bus.end_reading(1, Ok(less));
        bus.expect(who, &["return () from bus to :1.0 re 2"]);
        bus.driver(who, "AddMatch", |w| {
            w.str("member='S'");
        });
        assert!(bus.read(who)[0].starts_with("error LimitsExceeded"));
    });
}

#[test]
fn a_reading_that_ends_as_something_else_is_refused() {
    check(|bus| {
        let who = bus.connect();
        reload(bus, who);
        bus.wait(250);
        bus.end_trial(1, Ok(()));
        assert!(bus.read(who)[0].starts_with("error Failed("));
        assert_eq!(bus.broker.open_errands(), []);
    });
}
