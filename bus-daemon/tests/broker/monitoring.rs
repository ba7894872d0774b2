use bus_daemon::broker::Event;
use bus_wire::MessageBuilder;

use crate::bus::{check, one_way};

#[test]
fn becoming_a_monitor_costs_the_names() {
    check(|bus| {
        let (monitor, watcher) = (bus.connect(), bus.connect());
        bus.add_match(watcher, "member='NameOwnerChanged'");
        bus.request_name(monitor, "x.y", 0);
        bus.read(monitor);
        bus.read(watcher);
        bus.become_monitor(monitor, &[]);
        bus.expect(
            monitor,
            &[
                "return () from bus to :1.0 re 3",
                "signal NameLost(x.y) from bus to :1.0",
                "signal NameLost(:1.0) from bus to :1.0",
            ],
        );
        bus.expect(
            watcher,
            &[
                "signal NameOwnerChanged(x.y, :1.0, ) from bus",
                "signal NameOwnerChanged(:1.0, :1.0, ) from bus",
            ],
        );
        bus.call(watcher, ":1.0", "M");
        assert!(bus.read(watcher)[0].starts_with("error ServiceUnknown"));
    });
}

#[test]
fn a_monitor_is_not_answered_any_more() {
    check(|bus| {
        let who = bus.connect();
        bus.driver(who, "ReloadConfig", |_| ());
        bus.become_monitor(who, &[]);
        bus.read(who);
        bus.event(Event::ConfigRefused {
            name: "org.freedesktop.DBus.Error.Failed".to_owned(),
            reason: "no".to_owned(),
        });
        bus.expect(who, &[]);
    });
}

#[test]
fn a_monitor_sees_everything_in_order() {
    check(|bus| {
        let (monitor, caller, callee) = (bus.connect(), bus.connect(), bus.connect());
        bus.become_monitor(monitor, &[]);
        bus.read(monitor);
        bus.request_name(callee, "x.y", 0);
        let serial = bus.call(caller, "x.y", "M");
        bus.reply(callee, ":1.1", serial);
        bus.send(caller, one_way("no.body", "N"));
        bus.call(caller, "no.body", "N");
        bus.send(caller, MessageBuilder::signal("/", "a.b", "S"));
        bus.reply(callee, ":1.1", 77);
        bus.call(caller, ":1.2", "Hang");
        bus.close(callee);
        bus.expect(
            monitor,
            &[
                "call RequestName(x.y, 0) from :1.2 to bus",
                "signal NameOwnerChanged(x.y, , :1.2) from bus",
                "signal NameAcquired(x.y) from bus to :1.2",
                "return (1) from bus to :1.2 re 2",
                "call M() from :1.1 to x.y",
                "return () from :1.2 to :1.1 re 2",
                "call N() from :1.1 to no.body",
                "call N() from :1.1 to no.body",
                "error ServiceUnknown(The name no.body was not provided by any .service files) from bus to :1.1 re 4",
                "signal S() from :1.1",
                "return () from :1.2 to :1.1 re 77",
                "call Hang() from :1.1 to :1.2",
                "signal NameLost(x.y) from bus to :1.2",
                "signal NameOwnerChanged(x.y, :1.2, ) from bus",
                "signal NameLost(:1.2) from bus to :1.2",
                "signal NameOwnerChanged(:1.2, :1.2, ) from bus",
                "error NoReply(Message recipient disconnected from message bus without replying) from bus to :1.1 re 6",
            ],
        );
    });
}

#[test]
fn a_monitor_sees_what_it_asked_for() {
    check(|bus| {
        let (monitor, caller, callee) = (bus.connect(), bus.connect(), bus.connect());
        bus.request_name(callee, "x.y", 0);
        bus.become_monitor(monitor, &["type='method_call',destination='x.y'", "member='S'"]);
        bus.read(monitor);
        bus.call(caller, "x.y", "M");
        bus.call(caller, ":1.2", "ByUniqueName");
        bus.call(caller, ":1.1", "Other");
        bus.signal(caller, "S");
        bus.expect(
            monitor,
            &[
                "call M() from :1.1 to x.y",
                "call ByUniqueName() from :1.1 to :1.2",
                "signal S() from :1.1",
            ],
        );
    });
}

#[test]
fn a_monitor_may_not_send() {
    check(|bus| {
        let monitor = bus.connect();
        bus.become_monitor(monitor, &[]);
        bus.driver(monitor, "GetId", |_| {});
        assert_eq!(
            bus.close_reason(monitor).unwrap(),
            ":1.0: it is a monitor, and sent a message"
        );
    });
}

#[test]
fn calls_that_a_monitor_owes_end() {
    check(|bus| {
        let (caller, monitor) = (bus.connect(), bus.connect());
        bus.call(caller, ":1.1", "M");
        bus.read(monitor);
        bus.become_monitor(monitor, &[]);
        assert!(bus.read(caller)[0].starts_with("error NoReply"));
    });
}

#[test]
fn a_monitor_sees_who_says_hello() {
    check(|bus| {
        let monitor = bus.connect();
        bus.become_monitor(monitor, &[]);
        bus.read(monitor);
        bus.connect();
        bus.expect(
            monitor,
            &[
                "call Hello() from :1.1 to bus",
                "return (:1.1) from bus to :1.1 re 1",
                "signal NameOwnerChanged(:1.1, , :1.1) from bus",
                "signal NameAcquired(:1.1) from bus to :1.1",
            ],
        );
    });
}
