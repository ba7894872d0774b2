//! Shares of the table of descriptors.

use bus_daemon::broker::{Action, Credentials, Event};
use bus_daemon::config::{Config, Simple};
use bus_wire::{Flags, Message, MessageBuilder};

use crate::bus::{Bus, UID, check, config, policy};

/// What peers may have of a table of so many: a quarter is for the daemon.
const LIMIT: u64 = 400;
const TABLE: usize = 300;

fn limit(bus: &mut Bus, limit: u64) {
    bus.event(Event::DescriptorLimit { limit });
}

fn anyone() -> Config {
    Config {
        policy: policy(Simple::OPEN),
        ..config()
    }
}

fn accept(bus: &mut Bus, uid: Option<u32>) -> usize {
    bus.accept_as(Credentials {
        uid,
        gid: uid,
        pid: Some(42),
    })
}

fn connect(bus: &mut Bus, uid: u32) -> usize {
    let who = accept(bus, Some(uid));
    let digits: String = uid
        .to_string()
        .bytes()
        .map(|digit| format!("{digit:x}"))
        .collect();
    let lines = format!("\0AUTH EXTERNAL {digits}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
    bus.bytes(who, lines.as_bytes(), &[]);
    bus.drain(who);
    bus.driver(who, "Hello", |_| {});
    bus.read(who);
    who
}

/// Without restarts: where links come and go between any two events, accepting stops and goes on more often.
fn check_once(config: &Config, script: impl Fn(&mut Bus)) {
    script(&mut Bus::new(config.clone(), false));
}

/// The name of the client that connected as the nth.
fn name(n: usize) -> String {
    format!(":1.{n}")
}

/// A call, or a signal to one, with so many descriptors.
fn pass(bus: &mut Bus, from: usize, to: &str, count: usize, is_call: bool) {
    let fds: Vec<_> = (0..count).map(|_| bus.descriptors.make()).collect();
    let message = if is_call {
        MessageBuilder::method_call("/", "Take")
            .interface("a.b")
            .destination(to)
            .flags(Flags::default())
    } else {
        MessageBuilder::signal("/", "a.b", "S").destination(to)
    };
    bus.send_with_fds(from, message, &fds);
}

#[test]
fn who_fills_the_table_is_refused_and_nobody_else() {
    check(|bus| {
        limit(bus, LIMIT);
        let (mallory, stalled, alice, bob) = (bus.connect(), bus.connect(), bus.connect(), bus.connect());
        let mut passed = 0;
        while bus.read(mallory).is_empty() {
            pass(bus, mallory, &name(1), 4, true);
            passed += 4;
            assert!(passed < TABLE, "nothing is refused");
        }
        // Four links, and half of the rest.
        assert_eq!(passed - 4, (TABLE - 4) / 2);
        // One and the other half of it, and so on: there is room for everybody.
        pass(bus, alice, &name(3), 16, true);
        assert_eq!(bus.read(alice), [""; 0]);
        assert_eq!(bus.read(bob), ["call Take() from :1.2 to :1.3 fds 16"]);
        // Of a signal nobody tells the sender.
        pass(bus, mallory, &name(1), 4, false);
        assert!(!bus.is_open(mallory));
        assert!([stalled, alice, bob].iter().all(|who| bus.is_open(*who)));
        // What still waits is charged to the one who sent it, and given back when it is read.
        let waiting = bus.read(stalled).len();
        assert_eq!(waiting, passed / 4 - 1);
        assert!(bus.descriptors.open.is_empty());
        for _ in 0..8 {
            pass(bus, alice, &name(1), 16, true);
        }
        assert_eq!(bus.read(alice), [""; 0]);
    });
}

#[test]
fn a_signal_to_many_costs_its_sender_and_no_subscriber() {
    check(|bus| {
        limit(bus, LIMIT);
        let mallory = bus.connect();
        let innocents: Vec<usize> = (0..20).map(|_| bus.connect()).collect();
        for who in &innocents {
            bus.add_match(*who, "interface='a.b'");
        }
        let signal = || MessageBuilder::signal("/", "a.b", "S");
        let few = [bus.descriptors.make()];
        bus.send_with_fds(mallory, signal(), &few);
        for who in &innocents {
            bus.expect(*who, &["signal S() from :1.0 fds 1"]);
        }
        let many: Vec<_> = (0..12).map(|_| bus.descriptors.make()).collect();
        bus.send_with_fds(mallory, signal(), &many);
        assert!(!bus.is_open(mallory));
        assert!(innocents.iter().all(|who| bus.is_open(*who)));
        assert!(bus.descriptors.open.is_empty());
    });
}

/// Subscribers of another user that do not read fill what that user may hold, and cost the sender of signals nothing: it
/// stays, and so do all who read, who get each signal.
#[test]
fn subscribers_of_another_user_that_do_not_read_cost_a_sender_nothing() {
    for is_restarted in [false, true] {
        let bus = &mut Bus::new(anyone(), is_restarted);
        limit(bus, LIMIT);
        let (mallory, alice) = (2001, 2002);
        let stalled: Vec<usize> = (0..10).map(|_| connect(bus, mallory)).collect();
        let (sender, own, other) = (connect(bus, alice), connect(bus, alice), connect(bus, 2003));
        for who in stalled.iter().chain([&own, &other]) {
            bus.add_match(*who, "interface='a.b'");
        }
        let line = "signal S() from :1.10 fds 10";
        for n in 0..30 {
            let fds: Vec<_> = (0..10).map(|_| bus.descriptors.make()).collect();
            bus.send_with_fds(sender, MessageBuilder::signal("/", "a.b", "S"), &fds);
            assert!(bus.is_open(sender), "after {n}");
            bus.expect(own, &[line]);
            bus.expect(other, &[line]);
        }
        assert!(stalled.iter().all(|who| bus.is_open(*who)));
        let warnings = bus.asked();
        let warnings = warnings
            .iter()
            .filter(|action| matches!(action, Action::Warn { .. }));
        assert!(warnings.count() <= stalled.len());
        // Users share fifteen sixteenths of the table, and of what is left of its share each sender's user has a half.
        let held: usize = stalled.iter().map(|who| bus.read_messages(*who).len() * 10).sum();
        assert!((20..=60).contains(&held), "{held}");
        // What was read is room again.
        let fds: Vec<_> = (0..2).map(|_| bus.descriptors.make()).collect();
        bus.send_with_fds(sender, MessageBuilder::signal("/", "a.b", "S"), &fds);
        for who in &stalled {
            bus.expect(*who, &["signal S() from :1.10 fds 2"]);
        }
        bus.broker.check_invariants().unwrap();
    }
}

/// A flood of descriptors of another user takes a part of what a reader's user may hold, and leaves one for who comes next.
#[test]
fn a_flood_of_descriptors_in_signals_leaves_room_for_others_signals() {
    let bus = &mut Bus::new(anyone(), false);
    limit(bus, LIMIT);
    let reader = connect(bus, 2001);
    let flooders: Vec<usize> = (0..5).map(|_| connect(bus, 2002)).collect();
    let other = connect(bus, 2003);
    bus.add_match(reader, "interface='a.b'");
    let signal = |bus: &mut Bus, who: usize, count: usize| {
        let fds: Vec<_> = (0..count).map(|_| bus.descriptors.make()).collect();
        bus.send_with_fds(who, MessageBuilder::signal("/", "a.b", "S"), &fds);
    };
    for _ in 0..20 {
        for who in &flooders {
            signal(bus, *who, 4);
            assert!(bus.is_open(*who) && bus.is_open(reader));
        }
    }
    signal(bus, other, 8);
    let got = bus.read(reader);
    assert_eq!(got.last().unwrap(), "signal S() from :1.6 fds 8");
    assert!(got.len() > 5 && got.len() < 40, "{}", got.len());
}

#[test]
fn a_descriptor_that_cannot_be_copied_costs_the_sender_of_the_signal() {
    check(|bus| {
        let (mallory, alice) = (bus.connect(), bus.connect());
        bus.add_match(alice, "interface='a.b'");
        let fds = [bus.descriptors.make()];
        bus.descriptors.is_exhausted = true;
        bus.send_with_fds(mallory, MessageBuilder::signal("/", "a.b", "S"), &fds);
        assert!(!bus.is_open(mallory) && bus.is_open(alice));
    });
}

#[test]
fn descriptors_of_an_answer_are_charged_to_who_awaits_it() {
    check(|bus| {
        limit(bus, LIMIT);
        let (service, mallory, alice) = (bus.connect(), bus.connect(), bus.connect());
        for _ in 0..TABLE / 8 {
            let serial = bus.call(mallory, ":1.0", "Open");
            let fds: Vec<_> = (0..8).map(|_| bus.descriptors.make()).collect();
            let reply = MessageBuilder::method_return(serial).destination(":1.1");
            bus.send_with_fds(service, reply, &fds);
        }
        assert!(bus.is_open(mallory));
        pass(bus, service, ":1.2", 16, true);
        assert_eq!(bus.read(alice).len(), 1);
        assert!(bus.is_open(service) && bus.is_open(alice));
        // Beyond its share the bus answers, and each call has an answer.
        let got = bus.read_messages(mallory);
        let passed: usize = got.iter().map(|(_, fds)| *fds).sum();
        assert_eq!(passed, (TABLE - 3) / 2 / 8 * 8);
        let is_refused = |message: &Message| {
            message
                .error_name()
                .is_some_and(|name| name.ends_with("LimitsExceeded"))
        };
        let refused = got.iter().filter(|(message, _)| is_refused(message)).count();
        assert_eq!((got.len(), refused), (TABLE / 8, TABLE / 8 - passed / 8));
    });
}

#[test]
fn descriptors_of_half_a_message_are_charged() {
    check(|bus| {
        limit(bus, 40);
        let (mallory, alice, bob) = (bus.connect(), bus.connect(), bus.connect());
        let message = MessageBuilder::method_call("/", "Take").interface("a.b");
        let half = message
            .destination(":1.1")
            .serial(9u32)
            .unix_fds(16)
            .build()
            .unwrap();
        let fds: Vec<_> = (0..16).map(|_| bus.descriptors.make()).collect();
        bus.bytes(mallory, &half[..30], &fds);
        assert!(!bus.is_open(mallory));
        assert!(bus.descriptors.open.is_empty());
        pass(bus, alice, ":1.2", 4, true);
        assert_eq!(bus.read(bob), ["call Take() from :1.1 to :1.2 fds 4"]);
    });
}

#[test]
fn each_user_has_a_share_of_links_and_root_what_is_left() {
    check_once(&anyone(), |bus| {
        limit(bus, LIMIT);
        let (mallory, alice, root) = (1, 2, 0);
        let innocent = connect(bus, alice);
        let fill = |bus: &mut Bus, uid| {
            let mut links = 0;
            while {
                let who = accept(bus, Some(uid));
                bus.is_open(who)
            } {
                links += 1;
                assert!(links < TABLE);
            }
            links
        };
        let shared = TABLE - TABLE / 16;
        assert_eq!(fill(bus, mallory), (shared - 1) / 3);
        assert!(fill(bus, 3) > 20);
        let late = connect(bus, 4);
        pass(bus, innocent, &name(1), 2, true);
        assert_eq!(bus.read(late).len(), 1);
        assert!(bus.broker.may_accept());
        // Root and the bus's own may have all there is; then nobody is let in until somebody leaves.
        let mut last = 0;
        while bus.broker.may_accept() {
            last = accept(bus, Some([root, UID][last % 2]));
            assert!(bus.is_open(last));
        }
        assert_eq!(bus.descriptors.sockets.len(), TABLE);
        assert!(bus.asked().contains(&Action::StopAccepting));
        bus.close(last);
        assert!(bus.asked().contains(&Action::ResumeAccepting));
    });
}

#[test]
fn descriptors_that_are_sent_on_make_room_for_connections() {
    check_once(&config(), |bus| {
        limit(bus, 40);
        let (sender, receiver) = (bus.connect(), bus.connect());
        pass(bus, sender, &name(receiver), 14, true);
        while bus.broker.may_accept() {
            accept(bus, Some(UID));
        }
        assert_eq!(bus.descriptors.sockets.len() + bus.descriptors.open.len(), 30);
        bus.asked();
        assert_eq!(bus.read(receiver).len(), 1);
        assert!(bus.asked().contains(&Action::ResumeAccepting));
    });
}
