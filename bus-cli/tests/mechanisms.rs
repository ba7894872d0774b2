//! DBUS_COOKIE_SHA1 and ANONYMOUS: who gets in, what the bus does with keyrings that are not as they should be, and that nobody
//! else waits for them.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::listening::{ANYBODY, Listening};
use support::speaker::{Speaker, hex};
use support::wait_until;

const EACH: &str = "<listen>unix:path=D/bus</listen><listen>tcp:host=127.0.0.1</listen>\
                    <listen>nonce-tcp:host=127.0.0.1</listen>";
const COOKIES: &str = "<auth>DBUS_COOKIE_SHA1</auth><auth>EXTERNAL</auth>";
const REJECTED: &str = "REJECTED EXTERNAL DBUS_COOKIE_SHA1";

fn with_cookies() -> Listening {
    Listening::start(&format!("{EACH}{COOKIES}"))
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn home(bus: &Listening) -> &Path {
    bus.directory.path()
}

fn keyrings(bus: &Listening) -> PathBuf {
    home(bus).join(".dbus-keyrings")
}

fn file(bus: &Listening) -> PathBuf {
    keyrings(bus).join("org_freedesktop_general")
}

fn lock(bus: &Listening) -> PathBuf {
    keyrings(bus).join("org_freedesktop_general.lock")
}

/// A keyring that only this user can reach.
fn make_keyring(bus: &Listening, text: &str) {
    fs::DirBuilder::new().mode(0o700).create(keyrings(bus)).unwrap();
    fs::write(file(bus), text).unwrap();
    fs::set_permissions(file(bus), Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn who_can_read_the_keyring_is_the_bus_s_user_over_each_transport() {
    let bus = with_cookies();
    let uid = own_uid().to_string();
    let name = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .map(|user| user.name);
    for address in &bus.addresses {
        for user in [Some(uid.clone()), name.clone()].into_iter().flatten() {
            let mut speaker = Speaker::connect(address);
            let challenge = speaker.challenge(&user).unwrap();
            assert_eq!(challenge.context.as_str(), "org_freedesktop_general");
            let ok = speaker.prove(&challenge, home(&bus));
            assert_eq!(ok, format!("OK {}", address.get_str("guid").unwrap()));
            speaker.begin();
            assert_eq!(speaker.user(), Ok(own_uid()));
        }
    }
}

#[test]
fn who_cannot_is_rejected_and_may_try_something_else() {
    let bus = with_cookies();
    let address = &bus.addresses[0];
    let uid = own_uid().to_string();
    let mut speaker = Speaker::connect(address);
    let first = speaker.challenge(&uid).unwrap();
    let second = Speaker::connect(address).challenge(&uid).unwrap();
    assert_ne!(first.challenge, second.challenge, "a challenge comes once");
    assert_eq!(
        speaker.say(&format!("DATA {}", hex(format!("00 {}", "0".repeat(40))))),
        REJECTED
    );
    // The bus's user has a keyring here, and nobody else.
    for other in ["1", "4294967295", "nobody", "", "../root"] {
        let outcome = Speaker::connect(address).challenge(other);
        assert!(
            outcome.is_err_and(|line| line == REJECTED || line == "DATA"),
            "{other:?}"
        );
    }
    assert!(
        speaker
            .say(&format!("AUTH EXTERNAL {}", hex(&uid)))
            .starts_with("OK ")
    );
    speaker.begin();
    assert_eq!(speaker.user(), Ok(own_uid()));
}

#[test]
fn a_mechanism_is_offered_only_where_it_is_configured() {
    for (auth, offered) in [
        ("EXTERNAL", "EXTERNAL"),
        ("DBUS_COOKIE_SHA1", "DBUS_COOKIE_SHA1"),
        ("ANONYMOUS", "ANONYMOUS"),
        ("", "EXTERNAL DBUS_COOKIE_SHA1 ANONYMOUS"),
    ] {
        let auth = if auth.is_empty() {
            String::new()
        } else {
            format!("<auth>{auth}</auth>")
        };
        let bus = Listening::start(&format!("{EACH}{auth}"));
        for address in &bus.addresses {
            let rejected = format!("REJECTED {offered}");
            assert_eq!(Speaker::connect(address).say("AUTH"), rejected);
            for mechanism in [
                "EXTERNAL",
                "DBUS_COOKIE_SHA1",
                "ANONYMOUS",
                "KERBEROS_V4",
                "external",
            ] {
                if !offered.split(' ').any(|one| one == mechanism) {
                    let line = Speaker::connect(address).say(&format!("AUTH {mechanism} 30"));
                    assert_eq!(line, rejected, "{mechanism} where {offered} is offered");
                }
            }
        }
    }
}

#[test]
fn anonymous_gets_in_where_it_is_allowed() {
    let bus = Listening::start(&format!("{EACH}{ANYBODY}"));
    for address in &bus.addresses {
        let mut speaker = Speaker::anonymous(address);
        assert_eq!(speaker.user(), Err("org.freedesktop.DBus.Error.Failed".into()));
    }
    let bus = Listening::start(&format!("{EACH}<auth>ANONYMOUS</auth><auth>EXTERNAL</auth>"));
    for address in &bus.addresses {
        let mut speaker = Speaker::connect(address);
        // As by the reference implementation: BEGIN ends it.
        assert!(speaker.say("AUTH ANONYMOUS").starts_with("OK "));
        assert_eq!(speaker.say("BEGIN"), "");
    }
}

#[test]
fn a_keyring_that_is_not_as_it_should_be_lets_nobody_in_and_is_named_in_the_log() {
    let huge = "1 2 3\n".repeat(1_000_000);
    type Spoil<'a> = (&'a str, &'a dyn Fn(&Listening));
    let spoil: [Spoil<'_>; 4] = [
        ("can be reached by others: its mode is 755 and not 700", &|bus| {
            fs::set_permissions(keyrings(bus), Permissions::from_mode(0o755)).unwrap();
        }),
        ("can be reached by others: its mode is 644 and not 600", &|bus| {
            fs::set_permissions(file(bus), Permissions::from_mode(0o644)).unwrap();
        }),
        ("is longer than 1048576 bytes", &|bus| {
            fs::write(file(bus), &huge).unwrap()
        }),
        ("is not what it should be: a file", &|bus| {
            fs::remove_file(file(bus)).unwrap();
            fs::create_dir(file(bus)).unwrap();
        }),
    ];
    for (text, spoil) in spoil {
        let bus = with_cookies();
        make_keyring(&bus, "");
        spoil(&bus);
        let mut speaker = Speaker::connect(&bus.addresses[0]);
        let outcome = speaker.challenge(&own_uid().to_string());
        assert_eq!(outcome, Err(REJECTED.to_owned()), "{text}");
        let path = keyrings(&bus).display().to_string();
        wait_until("the log says why", || {
            bus.log().contains(text) && bus.log().contains(&path)
        });
        assert!(
            speaker
                .say(&format!("AUTH EXTERNAL {}", hex(own_uid().to_string())))
                .starts_with("OK ")
        );
    }
    // Truncated lines are none, and nothing else is wrong with the file.
    let bus = with_cookies();
    make_keyring(&bus, "1 1\n2\n\n3 17000");
    let mut speaker = Speaker::connect(&bus.addresses[0]);
    let challenge = speaker.challenge(&own_uid().to_string()).unwrap();
    assert!(speaker.prove(&challenge, home(&bus)).starts_with("OK "));
}

#[test]
fn a_lock_that_was_left_behind_holds_up_nobody_else() {
    let bus = with_cookies();
    make_keyring(&bus, "");
    fs::write(lock(&bus), "").unwrap();
    let mut waiting = Speaker::connect(&bus.addresses[0]);
    waiting.send(format!(
        "AUTH DBUS_COOKIE_SHA1 {}\r\n",
        hex(own_uid().to_string())
    ));
    for _ in 0..10 {
        let asked = Deadline::after(Duration::from_millis(500));
        bus.caller().ask("GetNameOwner", support::DRIVER).unwrap();
        assert!(!asked.passed(), "somebody waited for a lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Its owner does not come back: it is removed after a while.
    let challenge = Speaker::challenge_in(waiting.line()).unwrap();
    assert!(waiting.prove(&challenge, home(&bus)).starts_with("OK "));
    assert!(!lock(&bus).exists());
}

/// In each step of the exchange the worker is killed, or an upgrade comes.
#[test]
fn an_exchange_goes_on_over_kills_and_upgrades() {
    let bus = with_cookies();
    let uid = own_uid().to_string();
    let interrupt: [&dyn Fn(); 2] = [&|| bus.kill_worker(), &|| bus.upgrade()];
    for (round, interrupt) in interrupt.into_iter().cycle().take(4).enumerate() {
        for address in &bus.addresses {
            // While the cookie is looked up.
            let _ = fs::remove_dir_all(keyrings(&bus));
            make_keyring(&bus, "");
            fs::write(lock(&bus), "").unwrap();
            let mut speaker = Speaker::connect(address);
            speaker.send(format!("AUTH DBUS_COOKIE_SHA1 {}\r\n", hex(&uid)));
            // One more, of which the end is missing.
            let mut other = Speaker::connect(address);
            other.send(format!("AUTH DBUS_COOKIE_SHA1 {}", hex(&uid)));
            std::thread::sleep(Duration::from_millis(30));
            interrupt();
            fs::remove_file(lock(&bus)).unwrap();
            let challenge = Speaker::challenge_in(speaker.line()).unwrap();
            let challenges = [
                Speaker::challenge_in(other.say("")).unwrap(),
                Speaker::connect(address).challenge(&uid).unwrap(),
            ];
            assert!(
                challenges
                    .iter()
                    .all(|other| other.challenge != challenge.challenge)
            );
            // Between question and answer.
            interrupt();
            assert!(
                speaker.prove(&challenge, home(&bus)).starts_with("OK "),
                "{round}"
            );
            let wrong = other.say(&format!("DATA {}", hex("00 00")));
            assert_eq!(wrong, REJECTED);
            // Between OK and BEGIN.
            interrupt();
            speaker.begin();
            assert_eq!(speaker.user(), Ok(own_uid()));
        }
    }
}

/// However many strangers never come to an end, on each mechanism: others get in, and the bus goes on.
#[test]
fn those_who_never_finish_to_authenticate_hold_up_nobody() {
    let bus = Listening::start(&format!(
        "{EACH}{COOKIES}<auth>ANONYMOUS</auth><allow_anonymous/><limit name='auth_timeout'>4000</limit>\
         <limit name='max_incomplete_connections'>60</limit>"
    ));
    let uid = hex(own_uid().to_string());
    let mut left = Vec::new();
    for round in 0..60 {
        for address in &bus.addresses[1..] {
            for line in [
                String::new(),
                format!("AUTH DBUS_COOKIE_SHA1 {uid}\r\n"),
                "AUTH ANONYMOUS\r\n".to_owned(),
                "AUTH EXTERNAL\r\n".to_owned(),
            ] {
                let mut speaker = Speaker::connect(address);
                speaker.send(line);
                left.push(speaker);
            }
        }
        let asked = Deadline::after(Duration::from_secs(2));
        // Strangers share what there is for those of whom nothing is known.
        bus.caller().ask("GetNameOwner", support::DRIVER).unwrap();
        assert!(!asked.passed(), "round {round}");
    }
    assert_eq!(left.len(), 480);
    drop(left);
    let mut speaker = Speaker::connect(&bus.addresses[2]);
    let challenge = speaker.challenge(&own_uid().to_string()).unwrap();
    assert!(speaker.prove(&challenge, home(&bus)).starts_with("OK "));
}
