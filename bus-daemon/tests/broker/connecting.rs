use bus_daemon::broker::{Action, Attested, Credentials, Event, PeerId};
use bus_daemon::config::{Config, Simple};
use bus_wire::{Mechanism, MessageBuilder};

use crate::bus::{Bus, DRIVER, PATH, UNIX, check, check_with, config, policy};

#[test]
fn hello_is_answered_before_name_acquired() {
    check(|bus| {
        let watcher = bus.connect();
        bus.add_match(watcher, "member='NameOwnerChanged'");
        let who = bus.authenticate();
        bus.driver(who, "Hello", |_| {});
        bus.expect(
            who,
            &[
                "return (:1.1) from bus to :1.1 re 1",
                "signal NameAcquired(:1.1) from bus to :1.1",
            ],
        );
        bus.expect(watcher, &["signal NameOwnerChanged(:1.1, , :1.1) from bus"]);
        bus.close(who);
        bus.expect(watcher, &["signal NameOwnerChanged(:1.1, :1.1, ) from bus"]);
    });
}

#[test]
fn everything_may_come_at_once() {
    check(|bus| {
        let who = bus.accept();
        let mut bytes = b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n".to_vec();
        let hello = MessageBuilder::method_call(PATH, "Hello")
            .interface(DRIVER)
            .destination(DRIVER)
            .serial(9u32);
        bytes.extend(hello.build().unwrap());
        bus.bytes(who, &bytes, &[]);
        let (answer, _) = bus.drain(who);
        assert!(answer.starts_with(b"OK 0808"));
        assert!(answer.len() > 200);
    });
}

#[test]
fn a_second_hello_fails() {
    check(|bus| {
        let who = bus.connect();
        bus.driver(who, "Hello", |_| {});
        bus.expect(
            who,
            &["error Failed(Already handled an Hello message) from bus to :1.0 re 2"],
        );
    });
}

#[test]
fn unique_names_are_not_used_again() {
    check(|bus| {
        let first = bus.connect();
        bus.close(first);
        let second = bus.authenticate();
        bus.driver(second, "Hello", |_| {});
        assert!(bus.read(second)[0].contains(":1.1"));
    });
}

/// What a client sends after authentication, as its first message, ends its connection for this reason.
#[track_caller]
fn check_refused(first: impl Fn(&mut Bus, usize), reason: &str) {
    check(|bus| {
        let who = bus.authenticate();
        first(bus, who);
        let found = bus.close_reason(who).unwrap();
        assert!(found.contains(reason), "{found}");
    });
}

#[test]
fn the_first_message_must_be_hello() {
    let reason = "its first message was not Hello";
    check_refused(|bus, who| _ = bus.driver(who, "GetId", |_| {}), reason);
    check_refused(|bus, who| _ = bus.call(who, ":1.0", "M"), reason);
    check_refused(|bus, who| _ = bus.signal(who, "S"), reason);
}

#[test]
fn garbage_ends_the_connection() {
    check_refused(|bus, who| bus.bytes(who, &[b'x'; 32], &[]), "");
    check(|bus| {
        let who = bus.accept();
        bus.bytes(who, b"GET / HTTP/1.1\r\n", &[]);
        assert!(!bus.is_open(who));
    });
}

#[test]
fn messages_of_unknown_type_are_ignored() {
    check(|bus| {
        let who = bus.connect();
        let mut bytes = MessageBuilder::signal("/", "a.b", "S")
            .serial(7u32)
            .build()
            .unwrap();
        bytes[1] = 77;
        bus.bytes(who, &bytes, &[]);
        bus.expect(who, &[]);
        assert!(bus.is_open(who));
    });
}

/// Who may connect: a uid that the kernel vouches for, and whether BEGIN leads anywhere.
#[track_caller]
fn check_admission(config: &Config, uid: Option<u32>, auth: &str, is_admitted: bool) {
    check_with(config, |bus| {
        let who = bus.accept_as(Credentials {
            uid,
            gid: None,
            pid: None,
        });
        bus.bytes(who, format!("\0AUTH {auth}\r\nBEGIN\r\n").as_bytes(), &[]);
        assert_eq!(bus.is_open(who), is_admitted);
    });
}

#[test]
fn the_policy_says_who_may_connect() {
    let owner = config();
    let anyone = Config {
        policy: policy(Simple::OPEN),
        ..config()
    };
    let anonymous = Config {
        allow_anonymous: true,
        auth: vec![Mechanism::Anonymous],
        ..config()
    };
    let not_anonymous = Config {
        auth: vec![Mechanism::Anonymous],
        ..config()
    };
    check_admission(&owner, Some(1000), "EXTERNAL 31303030", true);
    check_admission(&owner, Some(1001), "EXTERNAL 31303031", false);
    check_admission(&owner, Some(0), "EXTERNAL 30", false);
    check_admission(&anyone, Some(1001), "EXTERNAL 31303031", true);
    check_admission(&anonymous, None, "ANONYMOUS", true);
    check_admission(&not_anonymous, None, "ANONYMOUS", false);
}

#[test]
fn a_peer_that_does_not_authenticate_is_disconnected() {
    check(|bus| {
        let (silent, slow, good) = (bus.accept(), bus.authenticate(), bus.connect());
        bus.wait(config().limits.auth_timeout - 1);
        assert!(bus.is_open(silent) && bus.is_open(slow));
        bus.wait(1);
        assert!(!bus.is_open(silent) && !bus.is_open(slow) && bus.is_open(good));
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

fn of_user(uid: Option<u32>) -> Credentials {
    Credentials {
        uid,
        gid: uid,
        pid: Some(42),
    }
}

#[test]
fn who_does_not_say_hello_waits_beside_peers_of_its_own_user_only() {
    let mut config = config();
    config.policy = policy(Simple::OPEN);
    config.limits.max_incomplete_connections = 2;
    check_with(&config, |bus| {
        let (mallory, alice) = (of_user(Some(1)), of_user(Some(2)));
        let silent = [bus.accept_as(mallory), bus.accept_as(mallory)];
        assert_eq!(bus.asked(), []);
        let waiting = [bus.accept_as(mallory), bus.accept_as(mallory)];
        let ids = waiting.map(|who| bus.peer(who));
        assert_eq!(bus.asked(), ids.map(Action::StopReading));
        assert!(ids.iter().all(|id| !bus.broker.may_read(*id)));
        // Of others none is in its way.
        for uid in [Some(2), Some(1000), Some(0), None] {
            let who = bus.accept_as(of_user(uid));
            assert_eq!(bus.asked(), []);
            assert!(bus.broker.may_read(bus.peer(who)));
        }
        let good = bus.accept_as(alice);
        bus.bytes(good, b"\0AUTH EXTERNAL 32\r\nBEGIN\r\n", &[]);
        bus.driver(good, "Hello", |_| {});
        assert!(bus.is_open(good));
        bus.asked();
        // Whoever came first gets the slot, and as much time as anybody had.
        bus.wait(config_timeout() - 1);
        bus.close(silent[0]);
        assert!(bus.asked().contains(&Action::ResumeReading(ids[0])));
        assert!(bus.broker.may_read(ids[0]) && !bus.broker.may_read(ids[1]));
        bus.wait(1);
        assert!(!bus.is_open(silent[1]));
        assert!(waiting.iter().all(|who| bus.is_open(*who)));
        assert!(bus.broker.may_read(ids[1]));
        bus.wait(config_timeout());
        assert!(waiting.iter().all(|who| !bus.is_open(*who)));
    });
}

#[test]
fn of_a_user_more_connections_than_it_may_ever_have_are_not_taken_in() {
    let mut config = config();
    config.policy = policy(Simple::OPEN);
    config.limits.max_incomplete_connections = 2;
    config.limits.max_connections_per_user = 3;
    check_with(&config, |bus| {
        let silent: Vec<_> = (0..5)
            .map(|_| {
                assert!(!bus.broker.has_too_many_newcomers(Some(1)));
                bus.accept_as(of_user(Some(1)))
            })
            .collect();
        assert!(bus.broker.has_too_many_newcomers(Some(1)));
        // Others are, and those of whom it is not known who they are, and root.
        for uid in [Some(2), Some(0), None] {
            for _ in 0..6 {
                bus.accept_as(of_user(uid));
            }
            assert_eq!(bus.broker.has_too_many_newcomers(uid), uid == Some(2), "{uid:?}");
        }
        bus.close(silent[3]);
        assert!(!bus.broker.has_too_many_newcomers(Some(1)));
    });
}

#[test]
fn a_long_list_of_groups_is_charged_to_whose_it_is() {
    check_with(&config(), |bus| {
        let held = bus.broker.held_outside();
        let accept = |bus: &mut Bus, groups: u32| {
            let attested = Attested {
                credentials: of_user(Some(1)),
                groups: Some((0..groups).collect()),
                label: None,
            };
            let who = bus.accept_from(UNIX, attested);
            (who, bus.broker.rewritten_of(bus.peer(who)))
        };
        let (_, few) = accept(bus, 20);
        assert_eq!(few, 0);
        let (who, many) = accept(bus, 4000);
        assert_eq!(many, 4 * 4000);
        assert_eq!(bus.broker.rewritten_bytes(), many);
        assert_eq!(bus.broker.held_outside(), held + many);
        bus.close(who);
        assert_eq!(bus.broker.held_outside(), held);
    });
}

fn config_timeout() -> u64 {
    config().limits.auth_timeout
}

#[test]
fn fewer_slots_after_a_reload_keep_those_who_came_first() {
    let mut config = config();
    config.limits.max_incomplete_connections = 3;
    check_with(&config, |bus| {
        let all: Vec<PeerId> = (0..5)
            .map(|_| {
                let who = bus.accept();
                bus.peer(who)
            })
            .collect();
        let heard = |bus: &Bus| all.iter().filter(|id| bus.broker.may_read(**id)).count();
        assert_eq!(heard(bus), 3);
        for slots in [1, 4, 0] {
            let mut next = config.clone();
            next.limits.max_incomplete_connections = slots;
            bus.event(Event::ReloadRequested);
            bus.wait(250);
            let (errand, _) = bus.errands()[0].clone();
            bus.end_reading(errand, Ok(next));
            assert_eq!(heard(bus), slots.max(1) as usize);
            assert!(bus.broker.may_read(all[0]));
        }
    });
}

#[test]
fn connections_are_limited() {
    let mut few = config();
    few.limits.max_completed_connections = 1;
    let mut few_per_user = config();
    few_per_user.limits.max_connections_per_user = 1;
    let texts = [
        "The maximum number of active connections has been reached",
        "The maximum number of active connections for UID 1000 has been reached",
    ];
    for (config, text) in [few, few_per_user].iter().zip(texts) {
        check_with(config, |bus| {
            let first = bus.connect();
            let second = bus.authenticate();
            bus.driver(second, "Hello", |_| {});
            bus.expect(
                second,
                &[&format!(
                    "error LimitsExceeded({text}) from bus to :not.active.yet re 1"
                )],
            );
            bus.close(first);
            bus.driver(second, "Hello", |_| {});
            assert!(bus.read(second)[0].starts_with("return (:1.1)"));
        });
    }
}

#[test]
fn without_a_rule_about_messages_nothing_passes() {
    check_with(
        &Config {
            policy: policy(Simple::default()),
            ..config()
        },
        |bus| {
            let who = bus.authenticate();
            bus.driver(who, "Hello", |_| {});
            bus.expect(who, &[]);
            assert!(bus.is_open(who));
        },
    );
}

#[test]
fn a_connection_at_an_index_that_is_in_use_is_closed_and_the_peer_there_stays() {
    check(|bus| {
        let first = bus.connect();
        let PeerId { index, generation } = bus.peer(first);
        let id = PeerId {
            index,
            generation: generation + 1,
        };
        let second = bus.accept_as_peer(id, UNIX, Attested::default());
        let reason = bus.close_reason(second).unwrap();
        assert!(reason.contains("the index 0, which is in use"), "{reason}");
        assert!(!bus.is_open(second) && bus.is_open(first));
        bus.driver(first, "GetId", |_| {});
        assert_eq!(bus.read(first).len(), 1);
    });
}

#[test]
fn a_connection_under_an_id_that_is_in_use_costs_nobody_a_link() {
    check(|bus| {
        let first = bus.connect();
        let peer = bus.peer(first);
        let own = bus.broker.socket(peer).unwrap();
        // Its own acceptance told again, and then another connection.
        for is_own in [true, false] {
            let socket = if is_own {
                own
            } else {
                bus.descriptors.make_socket()
            };
            bus.event(Event::Accepted {
                peer,
                listener: UNIX,
                socket,
                attested: Attested::default(),
            });
            assert!(bus.is_open(first));
            assert_eq!(bus.broker.socket(peer), Some(own));
        }
    });
}
