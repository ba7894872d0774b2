//! What a link can do depends on the listener that it came through.

use bus_daemon::broker::{Attested, Credentials};
use bus_daemon::config::{Config, Simple};
use bus_wire::{Mechanism, MessageBuilder};

use crate::bus::{Bus, DRIVER, PATH, TCP, UID, UNIX, check_with, config, policy};

/// A bus that lets anonymous peers in.
fn open() -> Config {
    Config {
        policy: policy(Simple::OPEN),
        allow_anonymous: true,
        auth: vec![Mechanism::External, Mechanism::Anonymous],
        ..config()
    }
}

/// What the kernel would tell of a local process.
fn local() -> Attested {
    Attested {
        credentials: Credentials {
            uid: Some(UID),
            gid: Some(UID),
            pid: Some(42),
        },
        groups: Some(vec![UID]),
        label: Some(b"label".to_vec()),
    }
}

/// What a client is told that says these lines.
fn dialogue(bus: &mut Bus, listener: u32, lines: &str) -> (usize, String) {
    let who = bus.accept_from(listener, local());
    bus.bytes(who, lines.as_bytes(), &[]);
    let answer = String::from_utf8(bus.drain(who).0).unwrap();
    (who, answer)
}

#[test]
fn descriptors_are_negotiated_where_the_transport_passes_them() {
    for (listener, agrees) in [(UNIX, true), (TCP, false)] {
        check_with(&open(), |bus| {
            let (who, answer) = dialogue(bus, listener, "\0AUTH ANONYMOUS\r\nNEGOTIATE_UNIX_FD\r\n");
            let lines: Vec<&str> = answer.lines().collect();
            assert!(lines[0].starts_with("OK "), "{answer}");
            assert_eq!(lines[1].starts_with("AGREE_UNIX_FD"), agrees, "{answer}");
            assert_eq!(lines[1].starts_with("ERROR"), !agrees, "{answer}");
            assert!(bus.is_open(who));
        });
    }
}

#[test]
fn descriptors_through_a_transport_that_passes_none_end_the_connection() {
    for (listener, is_open) in [(UNIX, true), (TCP, false)] {
        check_with(&open(), |bus| {
            let lines = "\0AUTH ANONYMOUS\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";
            let (who, _) = dialogue(bus, listener, lines);
            bus.driver(who, "Hello", |_| {});
            bus.read(who);
            let fd = bus.descriptors.make();
            bus.send_with_fds(who, MessageBuilder::signal("/", "a.b", "S"), &[fd]);
            assert_eq!(bus.is_open(who), is_open);
            assert!(bus.descriptors.open.is_empty());
        });
    }
}

#[test]
fn what_is_attested_counts_where_the_transport_attests() {
    for (listener, is_believed) in [(UNIX, true), (TCP, false)] {
        check_with(&open(), |bus| {
            // EXTERNAL is as good as what the kernel says.
            let (who, answer) = dialogue(bus, listener, "\0AUTH EXTERNAL 31303030\r\n");
            assert_eq!(answer.starts_with("OK "), is_believed, "{answer}");
            assert_eq!(answer.starts_with("REJECTED"), !is_believed, "{answer}");
            assert_eq!(bus.broker.uid(bus.peer(who)), is_believed.then_some(UID));
        });
    }
}

#[test]
fn nothing_is_told_of_a_peer_that_nobody_attests() {
    for (listener, is_told) in [(UNIX, true), (TCP, false)] {
        check_with(&open(), |bus| {
            let asker = bus.connect();
            let (who, _) = dialogue(bus, listener, "\0AUTH ANONYMOUS\r\nBEGIN\r\n");
            bus.driver(who, "Hello", |_| {});
            bus.read(who);
            let serial = bus.driver(asker, "GetConnectionUnixProcessID", |w| {
                w.str(":1.1");
            });
            let answer = bus.read(asker);
            let expected = if is_told {
                format!("return (42) from bus to :1.0 re {serial}")
            } else {
                "error UnixProcessIdUnknown(Could not determine PID for ':1.1') from bus to :1.0 re "
                    .to_owned()
                    + &serial.to_string()
            };
            assert_eq!(answer, [expected]);
            bus.driver(asker, "GetConnectionCredentials", |w| {
                w.str(":1.1");
            });
            let got = bus.read_messages(asker);
            let mut keys = Vec::new();
            let read = got[0].0.body().read_array(|element| {
                element.read_dict_entry(|entry| {
                    keys.push(entry.read_str()?.to_owned());
                    entry.skip()
                })
            });
            read.unwrap();
            let has = |key: &str| keys.iter().any(|found| found == key);
            // Whoever is here as nobody in particular is told of by its process at most.
            assert_eq!(has("ProcessID"), is_told, "listener {listener}: {keys:?}");
            assert_eq!(keys.len(), usize::from(is_told), "listener {listener}: {keys:?}");
            assert_eq!(got[0].1, 0);
        });
    }
}

#[test]
fn upgrades_are_not_for_those_who_came_over_tcp() {
    check_with(&open(), |bus| {
        let lines = "\0AUTH ANONYMOUS\r\nBEGIN\r\n";
        let (who, _) = dialogue(bus, TCP, lines);
        bus.driver(who, "Hello", |_| {});
        bus.read(who);
        let call = MessageBuilder::method_call(PATH, "Upgrade")
            .interface("org.busdaemon.Restart1")
            .destination(DRIVER)
            .body(|w| {
                w.str("");
            });
        bus.send(who, call);
        assert!(bus.read(who)[0].starts_with("error AccessDenied"));
        assert_eq!(bus.errands(), []);
    });
}
