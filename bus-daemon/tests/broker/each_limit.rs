//! Each `<limit>`: what it lets through and what not, that what is over counts no more, and that a reload changes it for
//! those who are there. The table in docs/limits.md says the same in words.

use bus_daemon::broker::Event;
use bus_daemon::config::{Config, Limits};
use bus_wire::MessageBuilder;

use crate::bus::{Bus, Who, check_with, config, one_way};

/// A bus with this limit set to `number`.
fn with(set: impl Fn(&mut Limits, u64), number: u64) -> Config {
    let mut config = config();
    set(&mut config.limits, number);
    config
}

/// The configuration is read again, and is this one.
fn reload(bus: &mut Bus, config: Config) {
    bus.event(Event::ReloadRequested);
    bus.wait(250);
    let errand = bus.errands().remove(0).0;
    bus.end_reading(errand, Ok(config));
}

fn is_error(lines: &[String], name: &str) -> bool {
    let [line] = lines else { panic!("{lines:?}") };
    line.starts_with(&format!("error {name}"))
}

/// `act` is tried until it is refused: so often it was done. `undo` takes the last back.
fn counted(bus: &mut Bus, mut act: impl FnMut(&mut Bus) -> bool) -> u64 {
    (0..).find(|_| !act(bus)).unwrap()
}

#[test]
fn max_message_size() {
    let set = |limits: &mut Limits, number| limits.max_message_size = number;
    let message = |size: usize| {
        let shortest = MessageBuilder::signal("/", "a.b", "S").serial(1_u32);
        let base = shortest.body(|w| _ = w.str("")).build().unwrap().len();
        let text = "x".repeat(size - base);
        let signal = MessageBuilder::signal("/", "a.b", "S").serial(1_u32);
        signal.body(|w| _ = w.str(&text)).build().unwrap()
    };
    check_with(&with(set, 500), |bus| {
        let (inside, outside) = (bus.connect(), bus.connect());
        let exact = message(500);
        assert_eq!(exact.len(), 500);
        bus.bytes(inside, &exact, &[]);
        assert!(bus.is_open(inside));
        bus.bytes(outside, &message(501), &[]);
        assert!(bus.close_reason(outside).is_some());
        reload(bus, with(set, 501));
        bus.bytes(inside, &message(501), &[]);
        assert!(bus.is_open(inside));
        reload(bus, with(set, 499));
        bus.bytes(inside, &message(500), &[]);
        assert!(!bus.is_open(inside));
    });
}

#[test]
fn max_message_unix_fds() {
    let set = |limits: &mut Limits, number| limits.max_message_unix_fds = number;
    let send = |bus: &mut Bus, who: Who, count: usize| {
        let fds: Vec<_> = (0..count).map(|_| bus.descriptors.make()).collect();
        bus.send_with_fds(who, one_way(":1.0", "Take"), &fds);
    };
    check_with(&with(set, 2), |bus| {
        let (receiver, sender) = (bus.connect(), bus.connect());
        send(bus, sender, 2);
        assert_eq!(bus.read(receiver).len(), 1);
        reload(bus, with(set, 3));
        send(bus, sender, 3);
        assert_eq!(bus.read(receiver).len(), 1);
        let before = bus.descriptors.open.len();
        send(bus, sender, 4);
        assert!(!bus.is_open(sender) && bus.is_open(receiver));
        assert_eq!(bus.descriptors.open.len(), before);
    });
}

/// Who gets a unique name. Whoever does not may ask again.
fn limit_of_peers(set: impl Fn(&mut Limits, u64) + Copy) {
    check_with(&with(set, 2), |bus| {
        let first = bus.connect();
        bus.connect();
        let late = bus.authenticate();
        for _ in 0..2 {
            bus.driver(late, "Hello", |_| {});
            assert!(is_error(&bus.read(late), "LimitsExceeded"));
        }
        bus.close(first);
        bus.driver(late, "Hello", |_| {});
        assert_eq!(bus.read(late).len(), 2);
        reload(bus, with(set, 3));
        bus.connect();
        let late = bus.authenticate();
        bus.driver(late, "Hello", |_| {});
        assert!(is_error(&bus.read(late), "LimitsExceeded"));
        // Fewer than there are: nobody goes, nobody comes.
        reload(bus, with(set, 1));
        assert!((1..4).all(|who| bus.is_open(who)));
        bus.driver(late, "Hello", |_| {});
        assert!(is_error(&bus.read(late), "LimitsExceeded"));
    });
}

#[test]
fn max_completed_connections() {
    limit_of_peers(|limits, number| limits.max_completed_connections = number);
}

#[test]
fn max_connections_per_user() {
    limit_of_peers(|limits, number| limits.max_connections_per_user = number);
}

#[test]
fn max_names_per_connection() {
    let set = |limits: &mut Limits, number| limits.max_names_per_connection = number;
    let request = |bus: &mut Bus, who: Who, name: &str| {
        bus.driver(who, "RequestName", |w| {
            w.str(name).u32(0);
        });
        !bus.read(who)
            .iter()
            .any(|line| line.starts_with("error LimitsExceeded"))
    };
    // The unique name counts: 0 and 1 leave none.
    for (limit, names) in [(0, 0), (1, 0), (2, 1), (5, 4)] {
        check_with(&with(set, limit), |bus| {
            let who = bus.connect();
            let mut number = 0;
            let count = counted(bus, |bus| {
                number += 1;
                request(bus, who, &format!("a.b{number}"))
            });
            assert_eq!(count, names, "{limit}");
        });
    }
    check_with(&with(set, 3), |bus| {
        let (who, other) = (bus.connect(), bus.connect());
        assert!(request(bus, other, "a.other"));
        // Waiting in a queue counts as well, and to ask again for what is there does not.
        assert!(request(bus, who, "a.other") && request(bus, who, "a.b") && request(bus, who, "a.b"));
        assert!(!request(bus, who, "a.c"));
        bus.driver(who, "ReleaseName", |w| {
            w.str("a.other");
        });
        bus.read(who);
        assert!(request(bus, who, "a.c") && !request(bus, who, "a.d"));
        reload(bus, with(set, 4));
        assert!(request(bus, who, "a.d") && !request(bus, who, "a.e"));
        reload(bus, with(set, 2));
        assert!(!request(bus, who, "a.e"));
    });
}

#[test]
fn max_match_rules_per_connection() {
    let set = |limits: &mut Limits, number| limits.max_match_rules_per_connection = number;
    let add = |bus: &mut Bus, who: Who, rule: &str| {
        bus.driver(who, "AddMatch", |w| {
            w.str(rule);
        });
        !is_error(&bus.read(who), "LimitsExceeded")
    };
    check_with(&with(set, 2), |bus| {
        let who = bus.connect();
        assert!(add(bus, who, "member='A'") && add(bus, who, "member='A'") && !add(bus, who, "member='B'"));
        bus.driver(who, "RemoveMatch", |w| {
            w.str("member='A'");
        });
        bus.read(who);
        assert!(add(bus, who, "member='B'") && !add(bus, who, "member='C'"));
        reload(bus, with(set, 3));
        assert!(add(bus, who, "member='C'") && !add(bus, who, "member='D'"));
        reload(bus, with(set, 1));
        assert!(!add(bus, who, "member='D'"));
    });
}

#[test]
fn max_replies_per_connection() {
    let set = |limits: &mut Limits, number| {
        limits.max_replies_per_connection = number;
        limits.reply_timeout = Some(1000);
    };
    check_with(&with(set, 2), |bus| {
        let (caller, callee) = (bus.connect(), bus.connect());
        let call = |bus: &mut Bus| {
            let serial = bus.call(caller, ":1.1", "M");
            let lines = bus.read(caller);
            if lines.is_empty() {
                bus.read(callee);
                return Some(serial);
            }
            assert!(is_error(&lines, "LimitsExceeded"), "{lines:?}");
            None
        };
        let first = call(bus).unwrap();
        call(bus).unwrap();
        assert_eq!(call(bus), None);
        // One that wants no answer waits for none.
        bus.send(caller, one_way(":1.1", "M"));
        assert_eq!(bus.read(callee).len(), 1);
        // Given back by an answer, ...
        bus.reply(callee, ":1.0", first);
        bus.read(caller);
        call(bus).unwrap();
        assert_eq!(call(bus), None);
        // ... by the time, ...
        bus.wait(1000);
        assert_eq!(bus.read(caller).len(), 2);
        call(bus).unwrap();
        reload(bus, with(set, 3));
        call(bus).unwrap();
        call(bus).unwrap();
        assert_eq!(call(bus), None);
        // ... and by the end of whoever was called.
        bus.close(callee);
        assert_eq!(bus.read(caller).len(), 3);
        let other = bus.connect();
        for _ in 0..3 {
            bus.call(caller, ":1.2", "M");
            assert_eq!(bus.read(caller), Vec::<String>::new());
        }
        bus.call(caller, ":1.2", "M");
        assert!(is_error(&bus.read(caller), "LimitsExceeded"));
        assert_eq!(bus.read(other).len(), 3);
    });
}

#[test]
fn reply_timeout() {
    let set = |limits: &mut Limits, number: u64| limits.reply_timeout = Some(number);
    check_with(&with(set, 700), |bus| {
        let (caller, _callee) = (bus.connect(), bus.connect());
        bus.call(caller, ":1.1", "M");
        bus.wait(699);
        assert_eq!(bus.read(caller), Vec::<String>::new());
        bus.wait(1);
        assert!(is_error(&bus.read(caller), "NoReply"));
        reload(bus, with(set, 50));
        bus.call(caller, ":1.1", "M");
        bus.wait(49);
        assert_eq!(bus.read(caller), Vec::<String>::new());
        bus.wait(1);
        assert!(is_error(&bus.read(caller), "NoReply"));
        let mut for_ever = config();
        for_ever.limits.reply_timeout = None;
        reload(bus, for_ever);
        bus.call(caller, ":1.1", "M");
        bus.wait(100_000_000);
        assert_eq!(bus.read(caller), Vec::<String>::new());
    });
}

#[test]
fn auth_timeout() {
    let set = |limits: &mut Limits, number| limits.auth_timeout = number;
    check_with(&with(set, 1000), |bus| {
        let (silent, greeted) = (bus.accept(), bus.connect());
        let half = bus.authenticate();
        bus.wait(999);
        assert!(bus.is_open(silent) && bus.is_open(half));
        bus.wait(1);
        assert!(!bus.is_open(silent) && !bus.is_open(half) && bus.is_open(greeted));
        // As it was when somebody connected.
        let before = bus.accept();
        reload(bus, with(set, 300));
        let after = bus.accept();
        bus.wait(299);
        assert!(bus.is_open(before) && bus.is_open(after));
        bus.wait(1);
        assert!(bus.is_open(before) && !bus.is_open(after));
        reload(bus, with(set, 0));
        let none = bus.accept();
        bus.wait(0);
        assert!(!bus.is_open(none));
    });
}

/// Half a message, of which the descriptors have arrived.
fn begin_with_fds(bus: &mut Bus, who: Who, count: usize) {
    let fds: Vec<_> = (0..count).map(|_| bus.descriptors.make()).collect();
    let call = one_way(":1.0", "Take").serial(9_u32).unix_fds(count as u32);
    let message = call.build().unwrap();
    bus.bytes(who, &message[..20], &fds);
}

#[test]
fn pending_fd_timeout() {
    let set = |limits: &mut Limits, number| limits.pending_fd_timeout = number;
    check_with(&with(set, 1000), |bus| {
        let (_receiver, sender) = (bus.connect(), bus.connect());
        begin_with_fds(bus, sender, 1);
        bus.wait(999);
        assert!(bus.is_open(sender));
        bus.wait(1);
        assert!(!bus.is_open(sender) && bus.descriptors.open.is_empty());
        reload(bus, with(set, 50));
        let sender = bus.connect();
        begin_with_fds(bus, sender, 1);
        bus.wait(49);
        assert!(bus.is_open(sender));
        bus.wait(1);
        assert!(!bus.is_open(sender));
    });
}

#[test]
fn max_incoming_unix_fds() {
    let set = |limits: &mut Limits, number| {
        limits.max_incoming_unix_fds = number;
        limits.max_message_unix_fds = 3;
    };
    check_with(&with(set, 5), |bus| {
        let (_receiver, sender, other) = (bus.connect(), bus.connect(), bus.connect());
        begin_with_fds(bus, sender, 5);
        assert!(bus.is_open(sender));
        begin_with_fds(bus, other, 6);
        assert!(!bus.is_open(other));
        reload(bus, with(set, 6));
        let other = bus.connect();
        begin_with_fds(bus, other, 6);
        assert!(bus.is_open(other));
        // No message is refused for it that may have so many.
        reload(bus, with(set, 1));
        let message = bus.connect();
        begin_with_fds(bus, message, 3);
        assert!(bus.is_open(message));
    });
}

#[test]
fn max_outgoing_unix_fds() {
    let set = |limits: &mut Limits, number| limits.max_outgoing_unix_fds = number;
    let call = |bus: &mut Bus, who: Who| {
        let fd = bus.descriptors.make();
        let call = MessageBuilder::method_call("/", "Take")
            .interface("a.b")
            .destination(":1.0");
        bus.send_with_fds(who, call, &[fd]);
        // A sender waits a moment before it is refused.
        bus.wait(2000);
        bus.read(who).is_empty()
    };
    check_with(&with(set, 2), |bus| {
        let (receiver, sender) = (bus.connect(), bus.connect());
        // One may pass it, as with the bytes.
        assert_eq!(counted(bus, |bus| call(bus, sender)), 3);
        bus.drain(receiver);
        assert_eq!(counted(bus, |bus| call(bus, sender)), 3);
        reload(bus, with(set, 4));
        assert_eq!(counted(bus, |bus| call(bus, sender)), 2);
        bus.drain(receiver);
    });
}
