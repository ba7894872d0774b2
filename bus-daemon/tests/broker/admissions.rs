//! Who comes in behind a nonce, or with a cookie.

use bus_daemon::broker::{Attested, Credentials, Errand, Keys};
use bus_daemon::config::{Config, Simple};
use bus_wire::Mechanism;
use bus_wire::sasl::cookie::{Cookie, CookieChallenge, CookieContext};

use crate::bus::{Bus, NONCE, TCP, UID, UNIX, check_with, check_with_nonce, config, policy};

fn with(auth: &[Mechanism]) -> Config {
    Config {
        policy: policy(Simple::OPEN),
        allow_anonymous: true,
        auth: auth.to_vec(),
        ..config()
    }
}

fn cookies() -> Config {
    with(&[Mechanism::External, Mechanism::CookieSha1])
}

fn keys() -> Keys {
    Keys {
        user: "me".into(),
        cookie: Cookie {
            id: "17".into(),
            created: 5,
            secret: "c0ffee".into(),
        },
        seed: [3; 16],
    }
}

fn say(bus: &mut Bus, who: usize, line: &str) -> String {
    bus.bytes(who, line.as_bytes(), &[]);
    heard(bus, who)
}

fn heard(bus: &mut Bus, who: usize) -> String {
    String::from_utf8(bus.drain(who).0).unwrap()
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Says who it wants to be; nothing is answered yet.
fn ask(bus: &mut Bus, listener: u32, user: &str) -> usize {
    let who = bus.accept_from(listener, Attested::default());
    assert_eq!(
        say(bus, who, &format!("\0AUTH DBUS_COOKIE_SHA1 {}\r\n", hex(user))),
        ""
    );
    who
}

fn challenge(line: &str) -> CookieChallenge {
    let data = line.strip_prefix("DATA ").unwrap_or_else(|| panic!("{line:?}"));
    let digits: Vec<char> = data.trim().chars().collect();
    let bytes = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap());
    let text = String::from_utf8(bytes.collect()).unwrap();
    let words: Vec<&str> = text.split(' ').collect();
    let &[context, id, challenge] = words.as_slice() else {
        panic!("{text}")
    };
    CookieChallenge {
        context: CookieContext::new(context).unwrap(),
        id: id.into(),
        challenge: challenge.into(),
    }
}

fn prove(bus: &mut Bus, who: usize, challenge: &CookieChallenge) -> String {
    let answer = challenge.answer(&keys().cookie, [9; 16]);
    say(bus, who, &format!("DATA {}\r\n", hex(&answer)))
}

const OK: &str = "OK 08080808080808080808080808080808\r\n";
const REJECTED: &str = "REJECTED EXTERNAL DBUS_COOKIE_SHA1\r\n";

#[test]
fn one_reading_answers_all_who_wait_with_challenges_of_their_own() {
    check_with(&cookies(), |bus| {
        let first = ask(bus, TCP, "me");
        assert_eq!(bus.errands(), [(1, Errand::ReadKeyring)]);
        let (second, other) = (ask(bus, UNIX, "1000"), ask(bus, TCP, "somebody"));
        assert_eq!(bus.errands(), []);
        bus.end_keyring(1, Ok(keys()));
        let (one, two) = (heard(bus, first), heard(bus, second));
        assert_ne!(challenge(&one).challenge, challenge(&two).challenge);
        assert_eq!(heard(bus, other), REJECTED);
        for (who, line) in [(second, two), (first, one)] {
            assert_eq!(prove(bus, who, &challenge(&line)), OK);
            bus.bytes(who, b"BEGIN\r\n", &[]);
            bus.driver(who, "Hello", |_| {});
            let name = format!(":1.{}", usize::from(who == first));
            bus.read(who);
            let serial = bus.driver(who, "GetConnectionUnixUser", |w| {
                w.str(&name);
            });
            bus.expect(who, &[&format!("return ({UID}) from bus to {name} re {serial}")]);
        }
    });
}

#[test]
fn other_users_are_rejected_without_a_look_at_any_file() {
    check_with(&cookies(), |bus| {
        let who = bus.accept_from(TCP, Attested::default());
        assert_eq!(
            say(bus, who, &format!("\0AUTH DBUS_COOKIE_SHA1 {}\r\n", hex("1001"))),
            REJECTED
        );
        assert_eq!(bus.errands(), []);
        // Six times, and it is over: as with any mechanism.
        for _ in 0..4 {
            assert_eq!(
                say(bus, who, &format!("AUTH DBUS_COOKIE_SHA1 {}\r\n", hex("0"))),
                REJECTED
            );
        }
        bus.bytes(
            who,
            format!("AUTH DBUS_COOKIE_SHA1 {}\r\n", hex("0")).as_bytes(),
            &[],
        );
        assert!(!bus.is_open(who));
    });
}

#[test]
fn readings_are_a_tenth_of_a_second_apart() {
    check_with(&cookies(), |bus| {
        let first = ask(bus, TCP, "me");
        assert_eq!(bus.errands(), [(1, Errand::ReadKeyring)]);
        bus.end_keyring(1, Err("no home"));
        assert_eq!(heard(bus, first), REJECTED);
        let line = format!("AUTH DBUS_COOKIE_SHA1 {}\r\n", hex("me"));
        assert_eq!(say(bus, first, &line), "");
        bus.wait(99);
        assert_eq!(bus.errands(), []);
        bus.wait(1);
        assert_eq!(bus.errands(), [(2, Errand::ReadKeyring)]);
        // Whoever leaves meanwhile is not asked, and nothing is read for nobody.
        bus.close(first);
        bus.end_keyring(2, Ok(keys()));
        bus.wait(1000);
        assert_eq!(bus.errands(), []);
        let second = ask(bus, TCP, "me");
        bus.close(second);
        assert_eq!(bus.errands(), [(3, Errand::ReadKeyring)]);
        bus.end_keyring(3, Ok(keys()));
        let third = ask(bus, TCP, "me");
        bus.close(third);
        bus.wait(1000);
        assert_eq!(bus.errands(), []);
        assert_eq!(bus.broker.next_deadline(), None);
    });
}

#[test]
fn a_reading_answers_so_many_and_the_next_the_others() {
    let mut bus = Bus::new(cookies(), false);
    let all: Vec<usize> = (0..300).map(|_| ask(&mut bus, TCP, "me")).collect();
    assert_eq!(bus.errands(), [(1, Errand::ReadKeyring)]);
    bus.end_keyring(1, Ok(keys()));
    let answered = all
        .iter()
        .filter(|who| !heard(&mut bus, **who).is_empty())
        .count();
    assert_eq!(answered, 256);
    bus.wait(100);
    assert_eq!(bus.errands(), [(2, Errand::ReadKeyring)]);
    bus.end_keyring(2, Ok(keys()));
    let answered = all
        .iter()
        .filter(|who| !heard(&mut bus, **who).is_empty())
        .count();
    assert_eq!(answered, 44);
}

#[test]
fn what_is_said_while_the_cookie_is_looked_up_counts_afterwards() {
    check_with(&cookies(), |bus| {
        let who = ask(bus, TCP, "me");
        assert_eq!(say(bus, who, "CANCEL\r\n"), "");
        bus.end_keyring(1, Ok(keys()));
        let lines = heard(bus, who);
        assert!(lines.starts_with("DATA ") && lines.ends_with(REJECTED), "{lines}");
        bus.errands();
        // More than a line is too much.
        let who = ask(bus, TCP, "me");
        bus.bytes(who, &[b'x'; 17 * 1024], &[]);
        assert!(!bus.is_open(who));
    });
}

/// The process that shows the cookie is another user's: what the kernel says of its groups says nothing of the bus's user.
#[test]
fn groups_of_a_process_of_another_user_are_not_those_of_the_user_it_proves_to_be() {
    check_with(&cookies(), |bus| {
        let attested = Attested {
            credentials: Credentials {
                uid: Some(0),
                gid: Some(0),
                pid: Some(77),
            },
            groups: Some(vec![0, 4]),
            label: None,
        };
        let who = bus.accept_from(UNIX, attested);
        say(bus, who, &format!("\0AUTH DBUS_COOKIE_SHA1 {}\r\n", hex("me")));
        bus.end_keyring(1, Ok(keys()));
        let asked = heard(bus, who);
        assert_eq!(prove(bus, who, &challenge(&asked)), OK);
        bus.bytes(who, b"BEGIN\r\n", &[]);
        bus.driver(who, "Hello", |_| {});
        bus.read(who);
        let (_, credentials) = bus.broker.identity_of(bus.peer(who)).unwrap();
        let expected = Credentials {
            uid: Some(UID),
            gid: None,
            pid: Some(77),
        };
        assert_eq!(credentials, expected);
        bus.driver(who, "GetConnectionCredentials", |w| {
            w.str(":1.0");
        });
        let (message, _) = bus.read_messages(who).remove(0);
        let body = String::from_utf8_lossy(message.body_bytes()).into_owned();
        assert!(
            body.contains("UnixUserID") && !body.contains("UnixGroupIDs"),
            "{body:?}"
        );
    });
}

#[test]
fn a_nonce_is_asked_for_where_the_listener_has_one() {
    let anybody = with(&[Mechanism::Anonymous]);
    check_with_nonce(&anybody, *b"the right nonce!", |bus| {
        let who = bus.accept_from(NONCE, Attested::default());
        assert_eq!(say(bus, who, "the right "), "");
        assert_eq!(say(bus, who, "nonce!\0AUTH ANONYMOUS\r\n"), OK);
        assert!(bus.is_open(who));
        for wrong in ["the wrong nonce!", "\0AUTH ANONYMOUS\r\n", "the right nonce?\0"] {
            let who = bus.accept_from(NONCE, Attested::default());
            bus.bytes(who, wrong.as_bytes(), &[]);
            let reason = bus.close_reason(who).unwrap();
            assert_eq!(reason, "the nonce is wrong");
        }
        // Who says nothing goes when its time is over.
        let who = bus.accept_from(NONCE, Attested::default());
        bus.bytes(who, b"the right", &[]);
        bus.wait(anybody.limits.auth_timeout);
        assert!(!bus.is_open(who));
    });
}
