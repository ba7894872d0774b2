use bus_wire::MessageBuilder;

use bus_daemon::config::Simple;

use crate::bus::{OWNER, check, check_with, config, policy};

#[test]
fn a_broadcast_reaches_each_subscriber_once() {
    check(|bus| {
        let (sender, twice, other) = (bus.connect(), bus.connect(), bus.connect());
        bus.add_match(twice, "type='signal',interface='a.b'");
        bus.add_match(twice, "type='signal',member='S'");
        bus.add_match(other, "type='signal',member='T'");
        bus.signal(sender, "S");
        bus.expect(twice, &["signal S() from :1.0"]);
        bus.expect(other, &[]);
        bus.expect(sender, &[]);
    });
}

#[test]
fn rules_name_the_sender_by_any_of_its_names() {
    check(|bus| {
        let (sender, by_name, by_other) = (bus.connect(), bus.connect(), bus.connect());
        bus.request_name(sender, "x.y", 0);
        bus.add_match(by_name, "sender='x.y',member='S'");
        bus.add_match(by_other, "sender='x.z',member='S'");
        bus.signal(sender, "S");
        bus.request_name(sender, "x.z", 0);
        bus.driver(sender, "ReleaseName", |w| {
            w.str("x.y");
        });
        bus.signal(sender, "S");
        bus.expect(by_name, &["signal S() from :1.0"]);
        bus.expect(by_other, &["signal S() from :1.0"]);
    });
}

#[test]
fn a_long_body_is_shared() {
    check(|bus| {
        let (sender, one, two) = (bus.connect(), bus.connect(), bus.connect());
        bus.add_match(one, "member='S'");
        bus.add_match(two, "member='S'");
        let text = "x".repeat(5000);
        let signal = MessageBuilder::signal("/", "a.b", "S").body(|w| {
            w.str(&text);
        });
        bus.send(sender, signal);
        let state = bus.broker.save();
        assert_eq!(state.shared.len(), 1);
        for who in [one, two] {
            let got = bus.read(who);
            assert!(got[0].contains(&text));
        }
    });
}

#[test]
fn a_signal_to_one_peer_needs_no_rule() {
    check(|bus| {
        let (sender, receiver, other) = (bus.connect(), bus.connect(), bus.connect());
        bus.add_match(other, "member='S'");
        bus.send(
            sender,
            MessageBuilder::signal("/", "a.b", "S").destination(":1.1"),
        );
        bus.expect(receiver, &["signal S() from :1.0 to :1.1"]);
        bus.expect(other, &[]);
    });
}

#[test]
fn eavesdropping_needs_the_policy() {
    for is_allowed in [false, true] {
        let mut config = config();
        config.policy = policy(Simple {
            eavesdrop_allowed: is_allowed,
            ..OWNER
        });
        check_with(&config, |bus| {
            let (caller, callee, curious) = (bus.connect(), bus.connect(), bus.connect());
            bus.add_match(curious, "eavesdrop='true',interface='a.b'");
            bus.add_match(callee, "eavesdrop='true',interface='a.b'");
            bus.call(caller, ":1.1", "M");
            bus.signal(caller, "S");
            let call = "call M() from :1.0 to :1.1";
            let signal = "signal S() from :1.0";
            bus.expect(callee, &[call, signal]);
            if is_allowed {
                bus.expect(curious, &[call, signal]);
            } else {
                bus.expect(curious, &[signal]);
            }
            bus.driver(curious, "RemoveMatch", |w| {
                w.str("interface='a.b',eavesdrop='true'");
            });
            bus.read(curious);
            bus.call(caller, ":1.1", "M");
            bus.expect(curious, &[]);
        });
    }
}

#[test]
fn calls_to_the_driver_can_be_overheard() {
    let mut config = config();
    config.policy = policy(Simple {
        eavesdrop_allowed: true,
        ..OWNER
    });
    check_with(&config, |bus| {
        let (caller, curious) = (bus.connect(), bus.connect());
        bus.add_match(curious, "eavesdrop='true',type='method_call'");
        bus.driver(caller, "GetId", |_| {});
        bus.expect(curious, &["call GetId() from :1.0 to bus"]);
    });
}
