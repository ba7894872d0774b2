use std::sync::{Arc, Weak};

use bus_daemon::broker::{Action, Event, Fds, Room};
use bus_daemon::config::Config;
use bus_wire::{Flags, MessageBuilder};
use bytes::Bytes;

use crate::bus::{Bus, Who, check, check_with, config};

/// A bus on which 4000 bytes may wait for a peer.
fn small() -> Config {
    let mut config = config();
    config.limits.max_outgoing_bytes = 4000;
    config
}

fn send_signal(bus: &mut Bus, who: Who, to: Option<&str>) {
    let text = "x".repeat(600);
    let signal = MessageBuilder::signal("/", "a.b", "S").body(|w| {
        w.str(&text);
    });
    bus.send(
        who,
        match to {
            Some(to) => signal.destination(to),
            None => signal,
        },
    );
}

/// Fills the queue of a peer: each of others sends one message, which is not refused as long as there is room.
fn fill(bus: &mut Bus, slow: Who, to: &str) {
    while bus.queued()[&slow] <= 4000 {
        let other = bus.connect();
        send_signal(bus, other, Some(to));
    }
}

#[test]
fn a_slow_subscriber_is_disconnected_and_nobody_else() {
    check_with(&small(), |bus| {
        let (sender, slow, quick) = (bus.connect(), bus.connect(), bus.connect());
        bus.add_match(slow, "member='S'");
        bus.add_match(quick, "member='S'");
        for _ in 0..20 {
            send_signal(bus, sender, None);
            assert_eq!(bus.read(quick).len(), 1);
        }
        let reason = bus.close_reason(slow).unwrap();
        assert!(reason.starts_with(":1.1: it does not read: "), "{reason}");
        assert!(bus.is_open(sender) && bus.is_open(quick));
    });
}

#[test]
fn calls_to_a_slow_peer_are_refused() {
    check_with(&small(), |bus| {
        let (caller, slow) = (bus.connect(), bus.connect());
        fill(bus, slow, ":1.1");
        let serial = bus.call(caller, ":1.1", "M");
        let text = "Rejected: destination has a full message queue";
        bus.expect(
            caller,
            &[&format!(
                "error LimitsExceeded({text}) from bus to :1.0 re {serial}"
            )],
        );
        // Signals to it are dropped, with one warning.
        let queued = bus.queued()[&slow];
        for _ in 0..3 {
            send_signal(bus, caller, Some(":1.1"));
        }
        assert_eq!(bus.queued()[&slow], queued);
        assert!(bus.is_open(slow));
        let warnings = bus
            .asked()
            .iter()
            .filter(|action| matches!(action, Action::Warn { .. }))
            .count();
        assert_eq!(warnings, 1);
        bus.read(slow);
        bus.call(caller, ":1.1", "M");
        bus.expect(slow, &["call M() from :1.0 to :1.1"]);
    });
}

#[test]
fn a_reply_passes_however_full_the_queue_is_of_what_others_sent() {
    check_with(&small(), |bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        let serial = bus.call(caller, ":1.1", "M");
        fill(bus, caller, ":1.0");
        bus.reply(callee, ":1.0", serial);
        assert!(bus.is_open(caller) && bus.is_open(callee));
        let got = bus.read(caller);
        assert_eq!(
            got.last().unwrap(),
            &format!("return () from :1.1 to :1.0 re {serial}")
        );
    });
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from() {
    check_with(&small(), |bus| {
        let who = bus.connect();
        while !bus.asked().contains(&Action::StopReading(bus.peer(who))) {
            bus.driver(who, "GetId", |_| {});
            assert!(bus.queued()[&who] < 4000);
        }
        bus.read(who);
        assert_eq!(bus.asked(), [Action::ResumeReading(bus.peer(who))]);
    });
}

#[test]
fn messages_are_limited_in_size() {
    let mut config = config();
    config.limits.max_message_size = 500;
    check_with(&config, |bus| {
        let who = bus.connect();
        send_signal(bus, who, None);
        assert!(!bus.is_open(who));
    });
}

#[test]
fn match_rules_are_limited_and_counted() {
    let mut config = config();
    config.limits.max_match_rules_per_connection = 2;
    check_with(&config, |bus| {
        let who = bus.connect();
        bus.add_match(who, "member='S'");
        bus.add_match(who, "member='S'");
        bus.driver(who, "AddMatch", |w| {
            w.str("member='T'");
        });
        assert!(bus.read(who)[0].starts_with("error LimitsExceeded"));
        for is_there in [true, true, false] {
            bus.signal(who, "S");
            bus.driver(who, "RemoveMatch", |w| {
                w.str("member='S'");
            });
            assert_eq!(bus.read(who)[0].starts_with("signal S"), is_there);
        }
    });
}

#[test]
fn one_peer_cannot_remove_anothers_rule() {
    check(|bus| {
        let (one, two) = (bus.connect(), bus.connect());
        bus.add_match(one, "member='S'");
        bus.driver(two, "RemoveMatch", |w| {
            w.str("member='S'");
        });
        assert!(bus.read(two)[0].starts_with("error MatchRuleNotFound"));
        bus.signal(two, "S");
        assert_eq!(bus.read(one).len(), 1);
    });
}

/// A client that watches each of those who come and go would end at its limit (dbus-daemon drops such rules as well).
#[test]
fn rules_that_name_a_peer_which_has_gone_do_not_count() {
    let mut config = config();
    config.limits.max_match_rules_per_connection = 3;
    check_with(&config, |bus| {
        let watcher = bus.connect();
        bus.add_match(watcher, "member='Mine'");
        for number in 1..20 {
            let peer = bus.connect();
            let rules = [
                format!("sender=':1.{number}'"),
                format!("destination=':1.{number}',eavesdrop='true'"),
            ];
            for rule in &rules {
                bus.add_match(watcher, rule);
            }
            bus.driver(watcher, "AddMatch", |w| {
                w.str("member='Other'");
            });
            assert!(bus.read(watcher)[0].starts_with("error LimitsExceeded"));
            if number % 2 == 0 {
                bus.close(peer);
            } else {
                bus.become_monitor(peer, &[]);
            }
            for rule in &rules {
                bus.driver(watcher, "RemoveMatch", |w| {
                    w.str(rule);
                });
                assert!(bus.read(watcher)[0].starts_with("error MatchRuleNotFound"));
            }
        }
        // Added afterwards, such a rule is one as any other.
        bus.add_match(watcher, "sender=':1.4'");
        bus.driver(watcher, "RemoveMatch", |w| {
            w.str("sender=':1.4'");
        });
        assert!(bus.read(watcher)[0].starts_with("return"));
    });
}

/// What a peer is charged is what it keeps in memory: of a long header that is not passed on nothing is left.
#[test]
fn a_header_that_is_not_passed_on_is_not_kept() {
    for (header, is_kept) in [(3000, true), (50_000, false)] {
        let mut bus = Bus::new(config(), false);
        let (sender, receiver) = (bus.connect(), bus.connect());
        let text = "x".repeat(2000);
        let signal = MessageBuilder::signal("/", "a.b", "S").destination(":1.1");
        let signal = signal.serial(77_u32).body(|w| {
            w.str(&text);
        });
        let bytes = with_unknown_field(&signal.build().unwrap(), header);
        let (received, lookers) = watched(bytes);
        let upto = bus.written(sender) + received.len() as u64;
        bus.event(Event::Received {
            peer: bus.peer(sender),
            upto,
            data: received,
            fds: Fds::new(),
        });
        assert_eq!(lookers.strong_count() > 0, is_kept, "{header}");
        assert!(bus.queued()[&receiver] < 2300);
        let got = bus.read(receiver);
        assert_eq!(got, [format!("signal S({text}) from :1.0 to :1.1")]);
        assert_eq!(lookers.strong_count(), 0);
    }
}

/// A long header is passed on as it lies in memory, to however many it goes.
#[test]
fn a_long_header_is_kept_once() {
    let mut bus = Bus::new(config(), false);
    let sender = bus.connect();
    let receivers: Vec<Who> = (0..3).map(|_| bus.connect()).collect();
    for who in &receivers {
        bus.add_match(*who, "type='signal'");
        bus.drain(*who);
    }
    let path = format!("/{}", "x".repeat(3 << 20));
    let signal = MessageBuilder::signal(&path, "a.b", "S")
        .serial(77_u32)
        .body(|w| {
            w.str("and a short body");
        });
    let (received, lookers) = watched(signal.build().unwrap());
    let upto = bus.written(sender) + received.len() as u64;
    bus.event(Event::Received {
        peer: bus.peer(sender),
        upto,
        data: received,
        fds: Fds::new(),
    });
    assert_eq!(lookers.strong_count(), 1);
    for who in &receivers {
        assert!(bus.queued()[who] > path.len() as u64);
        let messages = bus.read_messages(*who);
        let [(message, _)] = messages.as_slice() else {
            panic!("{} messages", messages.len())
        };
        assert_eq!((message.path(), message.sender()), (Some(&*path), Some(":1.0")));
        assert_eq!(message.body().read_str().unwrap(), "and a short body");
    }
    assert_eq!(lookers.strong_count(), 0);
}

/// To leave fields out is work, so there is a limit to it; the sender is told.
#[test]
fn a_very_long_header_that_is_not_passed_on_is_refused() {
    check(|bus| {
        let (sender, receiver) = (bus.connect(), bus.connect());
        let call = MessageBuilder::method_call("/", "M")
            .destination(":1.1")
            .serial(77_u32);
        let bytes = with_unknown_field(&call.build().unwrap(), 2 << 20);
        bus.bytes(sender, &bytes, &[]);
        let answer = bus.read(sender);
        assert!(
            answer[0].contains("LimitsExceeded") && answer[0].contains("not passed on"),
            "{answer:?}"
        );
        assert!(bus.is_open(sender) && bus.read(receiver).is_empty());
    });
}

/// Bytes, and what tells whether anybody keeps them.
fn watched(bytes: Vec<u8>) -> (Bytes, Weak<()>) {
    struct Watched(Vec<u8>, #[expect(dead_code, reason = "only counted")] Arc<()>);
    impl AsRef<[u8]> for Watched {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let looker = Arc::new(());
    let lookers = Arc::downgrade(&looker);
    (Bytes::from_owner(Watched(bytes, looker)), lookers)
}

#[test]
fn answers_before_begin_that_nobody_reads_are_limited() {
    check(|bus| {
        let who = bus.accept();
        bus.bytes(who, b"\0AUTH EXTERNAL 31303030\r\n", &[]);
        let line = b"NEGOTIATE_UNIX_FD\r\n";
        // Whoever reads may ask as often as that.
        for _ in 0..3 {
            bus.bytes(who, &line.repeat(1000), &[]);
            assert!(bus.is_open(who) && bus.queued()[&who] <= 16 * 1024);
            bus.drain(who);
        }
        let mut asked = 0;
        while bus.is_open(who) {
            bus.bytes(who, line, &[]);
            asked += 1;
            assert!(asked <= 16 * 1024 / 15 + 1, "{asked}");
        }
        assert_eq!(asked, 16 * 1024 / 15 + 1);
        let reason = bus.close_reason(who).unwrap();
        assert!(reason.starts_with("it does not read the answers"), "{reason}");
        // Nor are more made at once, however many commands a read brings.
        let who = bus.accept();
        bus.bytes(who, b"\0AUTH EXTERNAL 31303030\r\n", &[]);
        bus.bytes(who, &line.repeat(3000), &[]);
        let reason = bus.close_reason(who).unwrap();
        let unread = reason.split(|letter: char| !letter.is_ascii_digit());
        let unread = unread.filter_map(|digits| digits.parse::<usize>().ok()).max();
        assert!(unread.is_some_and(|unread| unread <= 17 * 1024), "{reason}");
    });
}

/// The message with one more header field, which nobody knows: an array of so many bytes.
fn with_unknown_field(message: &[u8], bytes: u32) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
    let fields_end = 16 + word(12) as usize;
    let mut out = message[..fields_end].to_vec();
    out.resize(out.len().next_multiple_of(8), 0);
    out.extend_from_slice(b"\xc8\x02ay\0");
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&bytes.to_le_bytes());
    out.resize(out.len() + bytes as usize, 0);
    let fields = out.len() as u32 - 16;
    out[12..16].copy_from_slice(&fields.to_le_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    out.extend_from_slice(&message[fields_end.next_multiple_of(8)..]);
    out
}

/// Each set of keys is a question that every message asks. A user has usual ones without end, and of others a number.
#[test]
fn sets_of_keys_of_match_rules_are_limited() {
    check(|bus| {
        let (one, other) = (bus.connect(), bus.connect());
        let various = |number: u32| {
            let keys = (1..13).filter(|bit| number & (1 << bit) != 0);
            keys.map(|index| format!("arg{index}='x',")).collect::<String>() + "member='S'"
        };
        for who in [one, other] {
            let mine = (1..2049).filter(|number| (number % 3 == 0) == (who == one));
            let calls = mine.flat_map(|number| {
                let call = MessageBuilder::method_call("/org/freedesktop/DBus", "AddMatch")
                    .interface("org.freedesktop.DBus")
                    .destination("org.freedesktop.DBus")
                    .flags(Flags::NO_REPLY_EXPECTED)
                    .serial(1_u32)
                    .body(|w| {
                        w.str(&various(2 * number));
                    });
                call.build().unwrap()
            });
            bus.bytes(who, &calls.collect::<Vec<u8>>(), &[]);
        }
        bus.driver(one, "AddMatch", |w| {
            w.str(&various(2 * 2049));
        });
        let got = bus.read(one);
        assert!(got[0].starts_with("error LimitsExceeded"), "{got:?}");
        bus.add_match(one, &various(4));
        bus.add_match(
            one,
            "sender='a.b',path_namespace='/a/b',member='S',interface='a.b'",
        );
        bus.driver(one, "RemoveMatch", |w| {
            w.str(&various(6));
        });
        assert!(bus.read(one)[0].starts_with("return"));
    });
}

const NO_ROOM: &str = "error LimitsExceeded(The bus has no room for another ";

/// At the number of names that there is room for, and one beyond; what is given back can be had again.
#[test]
fn the_bus_has_room_for_so_many_names() {
    check(|bus| {
        bus.set_room(Room {
            names: 2,
            ..Room::ENDLESS
        });
        let (one, other) = (bus.connect(), bus.connect());
        bus.request_name(one, "a.b", 0);
        bus.request_name(other, "a.c", 0);
        drop((bus.read(one), bus.read(other)));
        bus.request_name(other, "a.d", 0);
        let answer = bus.read(other);
        assert!(answer[0].starts_with(&format!("{NO_ROOM}name)")), "{answer:?}");
        // To wait for a name takes no room.
        bus.request_name(other, "a.b", 0);
        assert!(bus.read(other)[0].starts_with("return (2)"));
        bus.driver(other, "ReleaseName", |w| {
            w.str("a.c");
        });
        drop(bus.read(other));
        bus.request_name(other, "a.d", 0);
        let answer = bus.read(other);
        assert!(
            answer.iter().any(|line| line.starts_with("return (1)")),
            "{answer:?}"
        );
    });
}

#[test]
fn the_bus_has_room_for_so_many_match_rules() {
    check(|bus| {
        bus.set_room(Room {
            rules: 3,
            ..Room::ENDLESS
        });
        let (one, other, monitor) = (bus.connect(), bus.connect(), bus.connect());
        for who in [one, other, one] {
            bus.add_match(who, "member='S'");
        }
        drop((bus.read(one), bus.read(other)));
        bus.driver(other, "AddMatch", |w| {
            w.str("member='T'");
        });
        let answer = bus.read(other);
        assert!(
            answer[0].starts_with(&format!("{NO_ROOM}match rule)")),
            "{answer:?}"
        );
        bus.become_monitor(monitor, &[]);
        let answer = bus.read(monitor);
        assert!(
            answer[0].starts_with(&format!("{NO_ROOM}match rule)")),
            "{answer:?}"
        );
        bus.close(one);
        bus.driver(other, "AddMatch", |w| {
            w.str("member='T'");
        });
        assert!(bus.read(other)[0].starts_with("return ()"));
    });
}

#[test]
fn the_bus_has_room_for_so_many_open_calls() {
    check(|bus| {
        bus.set_room(Room {
            calls: 2,
            ..Room::ENDLESS
        });
        let (one, other) = (bus.connect(), bus.connect());
        let first = bus.call(one, ":1.1", "M");
        bus.call(one, ":1.1", "M");
        bus.call(other, ":1.0", "M");
        let answer = bus.read(other);
        let refused = answer
            .iter()
            .any(|line| line.starts_with(&format!("{NO_ROOM}pending reply)")));
        assert!(refused, "{answer:?}");
        bus.reply(other, ":1.0", first);
        drop(bus.read(one));
        bus.call(other, ":1.0", "M");
        assert!(bus.read(one)[0].starts_with("call "));
    });
}
