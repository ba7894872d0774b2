//! Odd headers and flags, messages to nobody, and messages before Hello.

use super::support::Bus;
use super::support::raw::{Raw, call};
use super::support::{DRIVER, DRIVER_PATH};
use super::wire::{
    DESTINATION, ERROR, ERROR_REPLY, INTERFACE, Letter, MEMBER, METHOD_CALL, METHOD_RETURN, PATH,
    REPLY_SERIAL, SENDER, SIGNAL, SIGNATURE, Transcript, UNIX_FDS, Value, answers, answers_to,
};
use bus_load::Handshake;
use std::io::Read;

type Played = Vec<(String, Transcript)>;

pub fn play(bus: &Bus) -> Played {
    let mut played = Vec::new();
    let owner = Raw::ready(bus);
    flags(bus, &owner.unique, &mut played);
    destinations(bus, &owner.unique, &mut played);
    headers(bus, &owner.unique, &mut played);
    texts(bus, &mut played);
    before_hello(bus, &mut played);
    played
}

fn call_to(destination: &str) -> Letter<'_> {
    Letter::new(
        METHOD_CALL,
        &[
            (PATH, Value::Path("/")),
            (INTERFACE, Value::Text("a.b")),
            (MEMBER, Value::Text("M")),
            (DESTINATION, Value::Text(destination)),
        ],
    )
}

fn flags(bus: &Bus, owner: &str, played: &mut Played) {
    for flags in [0, 1, 2, 3, 4, 5, 8, 0xf8, 0xff] {
        let kind = if flags & 1 == 1 { "no reply" } else { "reply" };
        let mut play = |name: &str, letter: Letter<'_>| {
            let bytes = letter.flags(flags).bytes();
            played.push((format!("{kind}: {name}, flags {flags:#x}"), answers(bus, &bytes)));
        };
        for (name, destination) in [
            ("an unowned name", "no.body"),
            ("a unique name of nobody", ":1.99999"),
            ("a peer", owner),
            ("the bus", DRIVER),
        ] {
            play(name, call_to(destination));
        }
        for member in ["Nope", "ListNames", "Hello", "GetId"] {
            play(member, Letter::call(member));
        }
        for (member, argument) in [
            ("GetNameOwner", "no.body"),
            ("NameHasOwner", DRIVER),
            ("AddMatch", "bad"),
            ("AddMatch", "type='error'"),
            ("RemoveMatch", "type='signal'"),
        ] {
            play(
                &format!("{member} {argument}"),
                Letter::call(member).body("s", |w| {
                    w.str(argument);
                }),
            );
        }
        for (member, name) in [
            ("RequestName", "bad"),
            ("RequestName", "good.name"),
            ("StartServiceByName", "no.body"),
        ] {
            play(
                &format!("{member} {name}"),
                Letter::call(member).body("su", |w| {
                    w.str(name).u32(0);
                }),
            );
        }
    }
}

fn destinations(bus: &Bus, owner: &str, played: &mut Played) {
    let of_kind = |kind: u8| {
        let fields: &[(u8, Value<'static>)] = match kind {
            METHOD_RETURN => &[(REPLY_SERIAL, Value::Number(77))],
            ERROR_REPLY => &[(REPLY_SERIAL, Value::Number(77)), (ERROR, Value::Text("a.b"))],
            _ => &[
                (PATH, Value::Path("/")),
                (INTERFACE, Value::Text("a.b")),
                (MEMBER, Value::Text("M")),
            ],
        };
        Letter::new(kind, fields)
    };
    for (name, kind) in [
        ("return", METHOD_RETURN),
        ("error", ERROR_REPLY),
        ("signal", SIGNAL),
        ("unknown type", 9),
        ("unknown type of 255,", 255),
        ("call", METHOD_CALL),
    ] {
        let is_answered = kind == METHOD_CALL;
        for (to, destination) in [
            ("everybody", None),
            ("the bus", Some(DRIVER)),
            ("a peer", Some(owner)),
            ("a name", Some("no.body")),
            ("a unique name", Some(":1.99999")),
        ] {
            let letter = match destination {
                None => of_kind(kind),
                Some(destination) => of_kind(kind).and(DESTINATION, Value::Text(destination)),
            };
            let is_nobody = to.contains("name") && !is_answered && kind <= SIGNAL;
            let prefix = if is_nobody { "to nobody: " } else { "" };
            played.push((format!("{prefix}{name} to {to}"), answers(bus, &letter.bytes())));
        }
    }
    // Calls without a destination are for the bus itself.
    for (interface, member) in [
        (Some("org.freedesktop.DBus.Peer"), "Ping"),
        (Some("org.freedesktop.DBus.Peer"), "GetMachineId"),
        (Some("org.freedesktop.DBus.Peer"), "Nope"),
        (Some(DRIVER), "GetId"),
        (None, "Ping"),
    ] {
        let letter = Letter::to_driver("/", interface, member).without(DESTINATION);
        played.push((
            format!("without a destination: {interface:?} {member}"),
            answers(bus, &letter.bytes()),
        ));
    }
}

fn headers(bus: &Bus, owner: &str, played: &mut Played) {
    let good = || Letter::call("GetId");
    let mut play = |name: &str, letter: Letter<'_>| {
        played.push((format!("header: {name}"), answers(bus, &letter.bytes())));
    };
    play("field 10 that is a string", good().and(10, Value::Text("x")));
    play("a field from the future", good().and(200, Value::Text("x")));
    play("field 255", good().and(255, Value::Number(7)));
    play("field 0", good().and(0, Value::Text("x")));
    for version in [0, 2] {
        let mut letter = good();
        letter.version = version;
        play(&format!("version {version}"), letter);
    }
    for serial in [0, u32::MAX] {
        let mut letter = good();
        letter.serial = serial;
        play(&format!("serial {serial}"), letter);
    }
    let mut letter = good();
    letter.kind = 0;
    play("type 0", letter);
    play(
        "a reply serial in a call",
        good().and(REPLY_SERIAL, Value::Number(5)),
    );
    play(
        "a reply serial of 0 in a call",
        good().and(REPLY_SERIAL, Value::Number(0)),
    );
    let reply = Letter::new(METHOD_RETURN, &[(DESTINATION, Value::Text(owner))]);
    play("a return without a reply serial", reply.clone());
    play("a return to serial 0", reply.and(REPLY_SERIAL, Value::Number(0)));
    play("an error name in a call", good().and(ERROR, Value::Text("a.b")));
    play(
        "a wrong error name in a call",
        good().and(ERROR, Value::Text("bad")),
    );
    play("an empty signature", good().and(SIGNATURE, Value::Signature("")));
    play(
        "a signature without a body",
        good().and(SIGNATURE, Value::Signature("s")),
    );
    play("a wrong signature", good().and(SIGNATURE, Value::Signature("a")));
    let mut letter = good();
    letter.body = vec![0; 8];
    play("a body without a signature", letter);
    play("no descriptors", good().and(UNIX_FDS, Value::Number(0)));
    play(
        "a descriptor that did not come",
        good().and(UNIX_FDS, Value::Number(1)),
    );
    play("a member twice", good().and(MEMBER, Value::Text("GetId")));
    play(
        "a member that is a path",
        good().with(MEMBER, Value::Path("/GetId")),
    );
    play(
        "a path that is a string",
        good().with(PATH, Value::Text(DRIVER_PATH)),
    );
    play(
        "the path that is reserved",
        good().with(PATH, Value::Path("/org/freedesktop/DBus/Local")),
    );
    play(
        "the interface that is reserved",
        good().with(INTERFACE, Value::Text("org.freedesktop.DBus.Local")),
    );
    play("a forged sender", good().and(SENDER, Value::Text(DRIVER)));
    for code in [PATH, MEMBER] {
        play(&format!("a call without field {code}"), good().without(code));
    }
    let signal = Letter::new(
        SIGNAL,
        &[
            (PATH, Value::Path("/")),
            (INTERFACE, Value::Text("a.b")),
            (MEMBER, Value::Text("M")),
        ],
    );
    for code in [PATH, INTERFACE, MEMBER] {
        play(
            &format!("a signal without field {code}"),
            signal.clone().without(code),
        );
    }
    for name in ["bad", "", ":a.b", "a.b-c"] {
        let error = Letter::new(
            ERROR_REPLY,
            &[
                (REPLY_SERIAL, Value::Number(77)),
                (ERROR, Value::Text(name)),
                (DESTINATION, Value::Text(owner)),
            ],
        );
        play(&format!("error name {name:?}"), error);
    }
}

fn texts(bus: &Bus, played: &mut Played) {
    let long = |length: usize| format!("a.{}", "b".repeat(length - 2));
    let (most, more) = (long(255), long(256));
    for name in [
        "a", "", ": ", ":", ":1", "a..b", "1a.b", "a.1b", "a.b-c", ":1.0", "é.a", &most, &more,
    ] {
        for (what, code) in [
            ("destination", DESTINATION),
            ("interface", INTERFACE),
            ("sender", SENDER),
        ] {
            let letter = Letter::call("GetId").with(code, Value::Text(name));
            // The blank ends the shortest name, so that the list can tell it from others.
            let label = format!("header: {what} {name} of {}", name.len());
            played.push((label, answers(bus, &letter.bytes())));
        }
    }
    let (most, more) = ("m".repeat(255), "m".repeat(256));
    for name in ["", "1a", "a.b", "a-b", "é", &most, &more] {
        let letter = Letter::call("GetId").with(MEMBER, Value::Text(name));
        let label = format!("header: member {name} of {}", name.len());
        played.push((label, answers(bus, &letter.bytes())));
    }
    let long = format!("/{}", "a".repeat(1000));
    for path in ["", "a", "/a/", "//", "/a//b", "/a-b", "/é", &long] {
        let letter = Letter::call("GetId").with(PATH, Value::Path(path));
        let label = format!("header: path {path} of {}", path.len());
        played.push((label, answers(bus, &letter.bytes())));
    }
}

/// Authenticated, and no more.
fn authenticated(bus: &Bus) -> Raw {
    let mut raw = Raw::connect(bus);
    raw.send(&Handshake::start().0);
    let (mut lines, mut byte) = (0, [0]);
    while lines < 2 {
        raw.stream.read_exact(&mut byte).unwrap();
        lines += usize::from(byte[0] == b'\n');
    }
    raw
}

fn before_hello(bus: &Bus, played: &mut Played) {
    let mut play = |name: &str, letter: Letter<'_>| {
        let transcript = answers_to(authenticated(bus), &letter.bytes(), "Hello");
        played.push((name.to_owned(), transcript));
    };
    let hello = || Letter::call("Hello");
    play("before Hello: GetId", Letter::call("GetId"));
    play(
        "before Hello: Hello of another interface",
        hello().with(INTERFACE, Value::Text("a.b")),
    );
    play(
        "before Hello: Hello to nobody in particular",
        hello().without(DESTINATION),
    );
    play(
        "before Hello: Ping",
        Letter::to_driver("/", Some("org.freedesktop.DBus.Peer"), "Ping"),
    );
    play(
        "a signal before Hello",
        Letter::new(
            SIGNAL,
            &[
                (PATH, Value::Path("/")),
                (INTERFACE, Value::Text("a.b")),
                (MEMBER, Value::Text("M")),
            ],
        ),
    );
    play("Hello of no interface", hello().without(INTERFACE));
    play("Hello at another path", hello().with(PATH, Value::Path("/")));
    play(
        "Hello with an argument",
        hello().body("s", |w| {
            w.str("x");
        }),
    );
    play("no reply: Hello, the first", hello().flags(1));
    let twice = [call("Hello", |_| ()), call("Hello", |_| ())].concat();
    played.push((
        "Hello twice in one write".to_owned(),
        answers_to(authenticated(bus), &twice, "GetId"),
    ));
}
