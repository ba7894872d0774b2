use bus_wire::{Fd, MessageBuilder};

use crate::bus::{Bus, check, check_with, config};

fn call(to: &str) -> MessageBuilder<'_> {
    MessageBuilder::method_call("/", "Take")
        .interface("a.b")
        .destination(to)
}

fn make(bus: &mut Bus, count: usize) -> Vec<Fd> {
    (0..count).map(|_| bus.descriptors.make()).collect()
}

#[test]
fn descriptors_go_with_their_message() {
    check(|bus| {
        let (sender, receiver) = (bus.connect(), bus.connect());
        for count in [1, 0, 3] {
            let fds = make(bus, count);
            bus.send_with_fds(sender, call(":1.1"), &fds);
        }
        let line = "call Take() from :1.0 to :1.1";
        bus.expect(
            receiver,
            &[&format!("{line} fds 1"), line, &format!("{line} fds 3")],
        );
        assert!(bus.descriptors.open.is_empty());
    });
}

#[test]
fn who_did_not_negotiate_gets_none() {
    check(|bus| {
        let (sender, receiver) = (bus.connect(), bus.connect_without_fds());
        bus.add_match(receiver, "member='S'");
        let fds = make(bus, 1);
        bus.send_with_fds(sender, call(":1.1"), &fds);
        assert!(bus.read(sender)[0].starts_with("error NotSupported"));
        let fds = make(bus, 1);
        bus.send_with_fds(sender, MessageBuilder::signal("/", "a.b", "S"), &fds);
        bus.expect(receiver, &[]);
        assert!(bus.descriptors.open.is_empty());
    });
}

#[test]
fn who_waits_for_an_answer_with_descriptors_and_takes_none_is_told() {
    check(|bus| {
        let (callee, caller) = (bus.connect(), bus.connect_without_fds());
        let serial = bus.send(caller, call(":1.0"));
        bus.read(callee);
        let fds = make(bus, 1);
        let reply = MessageBuilder::method_return(serial).destination(":1.1");
        bus.send_with_fds(callee, reply, &fds);
        let answers = bus.read(caller);
        assert!(
            answers.len() == 1 && answers[0].starts_with("error NotSupported"),
            "{answers:?}"
        );
        assert!(bus.descriptors.open.is_empty());
    });
}

#[test]
fn who_did_not_negotiate_may_send_none() {
    check(|bus| {
        let sender = bus.connect_without_fds();
        let fds = make(bus, 1);
        let message = call(":1.0").serial(5u32).unix_fds(1).build().unwrap();
        bus.event(bus_daemon::broker::Event::Received {
            peer: bus.peer(sender),
            upto: bus.written(sender) + message.len() as u64,
            data: message.into(),
            fds: fds.into(),
        });
        assert!(!bus.is_open(sender));
    });
}

#[test]
fn each_receiver_gets_its_own() {
    check(|bus| {
        let (monitor, sender, one, two) = (bus.connect(), bus.connect(), bus.connect(), bus.connect());
        bus.become_monitor(monitor, &[]);
        bus.read(monitor);
        for who in [one, two] {
            bus.add_match(who, "member='S'");
        }
        let fds = make(bus, 2);
        bus.send_with_fds(sender, MessageBuilder::signal("/", "a.b", "S"), &fds);
        assert_eq!(bus.descriptors.open.len(), 6);
        for who in [one, two] {
            bus.expect(who, &["signal S() from :1.1 fds 2"]);
        }
        assert!(
            bus.read(monitor)
                .contains(&"signal S() from :1.1 fds 2".to_owned())
        );
        assert!(bus.descriptors.open.is_empty());
    });
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    check(|bus| {
        let (sender, receiver) = (bus.connect(), bus.connect());
        for to in ["no.body", "org.freedesktop.DBus"] {
            let fds = make(bus, 1);
            bus.send_with_fds(sender, call(to), &fds);
            assert!(bus.descriptors.open.is_empty(), "{to}");
        }
        let fds = make(bus, 1);
        bus.send_with_fds(sender, call(":1.1"), &fds);
        assert_eq!(bus.descriptors.open.len(), 1);
        bus.close(receiver);
        assert!(bus.descriptors.open.is_empty());
    });
}

#[test]
fn descriptors_of_half_a_message_are_kept_for_a_while() {
    for is_waiting in [true, false] {
        check(|bus| {
            let (sender, receiver) = (bus.connect(), bus.connect());
            let message = call(":1.1").serial(5u32).unix_fds(1).build().unwrap();
            let (first, rest) = message.split_at(30);
            let fds = make(bus, 1);
            bus.bytes(sender, first, &fds);
            assert_eq!(bus.descriptors.open.len(), 1);
            if is_waiting {
                bus.wait(config().limits.pending_fd_timeout);
                assert!(!bus.is_open(sender));
            } else {
                bus.bytes(sender, rest, &[]);
                bus.wait(config().limits.pending_fd_timeout);
                bus.expect(receiver, &["call Take() from :1.0 to :1.1 fds 1"]);
            }
        });
    }
}

#[test]
fn descriptors_are_limited() {
    let mut config = config();
    config.limits.max_message_unix_fds = 2;
    config.limits.max_outgoing_unix_fds = 2;
    check_with(&config, |bus| {
        let (sender, receiver) = (bus.connect(), bus.connect());
        for _ in 0..3 {
            let fds = make(bus, 2);
            bus.send_with_fds(sender, call(":1.1"), &fds);
        }
        bus.expect(
            sender,
            &["error LimitsExceeded(Rejected: destination has a full message queue) from bus to :1.0 re 4"],
        );
        assert_eq!(bus.read(receiver).len(), 2);
        let fds = make(bus, 3);
        bus.send_with_fds(sender, call(":1.1"), &fds);
        assert!(!bus.is_open(sender));
    });
}

#[test]
fn a_monitor_for_which_no_descriptors_are_left_is_disconnected() {
    check(|bus| {
        let (monitor, sender, receiver) = (bus.connect(), bus.connect(), bus.connect());
        bus.become_monitor(monitor, &[]);
        bus.read(monitor);
        let fds = make(bus, 2);
        bus.descriptors.is_exhausted = true;
        bus.send_with_fds(sender, call(":1.2"), &fds);
        bus.expect(receiver, &["call Take() from :1.1 to :1.2 fds 2"]);
        assert!(!bus.is_open(monitor));
    });
}

#[test]
fn surplus_descriptors_are_closed_and_reach_nobody() {
    check(|bus| {
        let (sender, receiver) = (bus.connect(), bus.connect());
        let message = call(":1.1").serial(5u32).unix_fds(1).build().unwrap();
        let (first, rest) = message.split_at(16);
        let fds = make(bus, 1);
        bus.bytes(sender, first, &fds);
        let fds = make(bus, 2);
        bus.bytes(sender, rest, &fds);
        assert_eq!(bus.descriptors.open.len(), 1);
        bus.expect(receiver, &["call Take() from :1.0 to :1.1 fds 1"]);
        assert!(bus.descriptors.open.is_empty());
        // The deadline of descriptors without a message went with them.
        bus.wait(config().limits.pending_fd_timeout);
        assert!(bus.is_open(sender));
    });
}
