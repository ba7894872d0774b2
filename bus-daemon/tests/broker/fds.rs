use bus_wire::{Fd, Message, MessageBuilder};

use crate::bus::{Bus, Who, check, check_with, config};

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
        // It waits for the receiver to read, and not for long.
        bus.expect(sender, &[]);
        wait_by_milliseconds(bus, sender);
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

/// As long as the next message of a client waits. How long that was, in milliseconds.
fn wait_by_milliseconds(bus: &mut Bus, who: Who) -> u64 {
    let mut waited = 0;
    while bus.broker.is_paced(bus.peer(who)) {
        bus.wait(1);
        waited += 1;
        assert!(waited < 1000, "no end in sight");
    }
    waited
}

/// Sends a signal with this number and a descriptor, on the path `/N`.
fn send_numbered(bus: &mut Bus, from: Who, to: Option<&str>, number: usize) {
    let fds = make(bus, 1);
    let path = format!("/{number}");
    let signal = MessageBuilder::signal(&path, "a.b", "S");
    bus.send_with_fds(
        from,
        to.iter().fold(signal, |signal, to| signal.destination(to)),
        &fds,
    );
}

/// The numbers of the signals that a client reads, each with its descriptor.
fn read_numbers(bus: &mut Bus, who: Who) -> Vec<usize> {
    let messages = bus.read_messages(who);
    let number = |(message, fds): &(Message, usize)| {
        assert_eq!(*fds, 1, "{message:?}");
        message.path().unwrap()[1..].parse().unwrap()
    };
    messages.iter().map(number).collect()
}

/// Whatever a turn routes before it sends: who reads whenever something is sent gets everything, in order.
#[test]
fn whoever_reads_gets_all_descriptors_however_many_are_routed_before_any_is_sent() {
    for is_for_all in [false, true] {
        let mut config = config();
        config.limits.max_outgoing_unix_fds = 2;
        check_with(&config, |bus| {
            let (sender, reader, other) = (bus.connect(), bus.connect(), bus.connect());
            bus.add_match(reader, "member='S'");
            let (mut got, mut sent) = (Vec::new(), 0);
            while sent < 60 {
                // So many reads of a turn; none of the sender while it waits.
                for _ in 0..5 {
                    if bus.broker.may_read(bus.peer(sender)) {
                        send_numbered(bus, sender, (!is_for_all).then_some(":1.1"), sent);
                        sent += 1;
                    }
                }
                // Nobody else waits.
                bus.driver(other, "GetId", |_| {});
                assert_eq!(bus.read(other).len(), 1);
                got.extend(read_numbers(bus, reader));
                bus.wait(1);
            }
            wait_by_milliseconds(bus, sender);
            got.extend(read_numbers(bus, reader));
            assert_eq!(got, (0..sent).collect::<Vec<_>>());
            assert!(bus.descriptors.open.is_empty());
        });
    }
}

/// Who does not read makes a sender wait for half a second, and once that is known not at all. What waits for it is bounded.
#[test]
fn who_does_not_read_makes_nobody_wait_for_long() {
    let mut config = config();
    config.limits.max_outgoing_unix_fds = 2;
    check_with(&config, |bus| {
        let (sender, stalled, other) = (bus.connect(), bus.connect(), bus.connect());
        let mut waits = Vec::new();
        for number in 0..10 {
            send_numbered(bus, sender, Some(":1.1"), number);
            waits.push(wait_by_milliseconds(bus, sender));
        }
        assert!((300..600).contains(&waits[3]), "{waits:?}");
        assert!(
            waits[4] < 600 && waits[5..].iter().all(|wait| *wait == 0),
            "{waits:?}"
        );
        // What has none is not refused, nor what is for others.
        bus.send(
            sender,
            MessageBuilder::signal("/10", "a.b", "S").destination(":1.2"),
        );
        assert_eq!(bus.read(other).len(), 1);
        assert_eq!(read_numbers(bus, stalled), [0, 1, 2]);
    });
}

/// A callee is never made to wait by a caller that does not read, but for as long as a look at its socket takes.
#[test]
fn replies_wait_for_no_reader() {
    let mut config = config();
    config.limits.max_outgoing_unix_fds = 2;
    check_with(&config, |bus| {
        let (callee, caller) = (bus.connect(), bus.connect());
        let serials: Vec<u32> = (0..20).map(|_| bus.send(caller, call(":1.0"))).collect();
        bus.read(callee);
        let mut waits = Vec::new();
        for serial in serials {
            let fds = make(bus, 1);
            let reply = MessageBuilder::method_return(serial).destination(":1.1");
            bus.send_with_fds(callee, reply, &fds);
            waits.push(wait_by_milliseconds(bus, callee));
        }
        assert!(waits[3] > 0 && waits.iter().sum::<u64>() < 150, "{waits:?}");
        assert_eq!(waits.last(), Some(&0));
        assert_eq!(bus.read(caller).len(), 20, "each has an answer");
    });
}
