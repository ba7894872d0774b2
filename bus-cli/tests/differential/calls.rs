//! Odd calls to the bus: arguments, names, flags, interfaces and paths.

use super::support::raw::Raw;
use super::support::{Bus, DRIVER, DRIVER_PATH};
use super::wire::{Letter, SIGNATURE, Transcript, Value, answers, in_short};
use bus_wire::BodyWriter;

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const STATS: &str = "org.freedesktop.DBus.Debug.Stats";
const MONITORING: &str = "org.freedesktop.DBus.Monitoring";
const PEER: &str = "org.freedesktop.DBus.Peer";
const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";

pub fn play(bus: &Bus) -> Vec<(String, Transcript)> {
    let mut played = Vec::new();
    names(bus, &mut played);
    flags(bus, &mut played);
    places(bus, &mut played);
    arguments(bus, &mut played);
    reloads(bus, &mut played);
    played
}

type Played = Vec<(String, Transcript)>;

fn names(bus: &Bus, played: &mut Played) {
    let names = [
        String::new(),
        "a".into(),
        "a.b".into(),
        ".a".into(),
        "a.".into(),
        "a..b".into(),
        "1a.b".into(),
        "a.1b".into(),
        "a-b.c".into(),
        "a.b-c".into(),
        ":1.999".into(),
        ":1".into(),
        ":".into(),
        "org.freedesktop.DBus.x".into(),
        format!("a.{}", "b".repeat(253)),
        format!("a.{}", "b".repeat(254)),
        "a.é".into(),
        "a b.c".into(),
        "a/b.c".into(),
        "_a.b".into(),
        "a.b:c".into(),
    ];
    for name in names.iter().map(String::as_str).chain([DRIVER]) {
        for member in ["RequestName", "StartServiceByName"] {
            if name == DRIVER && member == "StartServiceByName" {
                continue;
            }
            let letter = Letter::call(member).body("su", |w| {
                w.str(name).u32(0);
            });
            played.push((format!("name: {member} {name:?}"), answers(bus, &letter.bytes())));
        }
        for member in [
            "ReleaseName",
            "NameHasOwner",
            "GetNameOwner",
            "ListQueuedOwners",
            "GetConnectionCredentials",
            "GetAdtAuditSessionData",
            "GetConnectionSELinuxSecurityContext",
        ] {
            let letter = Letter::call(member).body("s", |w| {
                w.str(name);
            });
            played.push((format!("name: {member} {name:?}"), answers(bus, &letter.bytes())));
        }
    }
}

fn flags(bus: &Bus, played: &mut Played) {
    let owner = Raw::ready(bus);
    for flags in [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 1 << 31, u32::MAX] {
        let request = |serial: u32| {
            let name = format!("fl.ag{flags}");
            let mut letter = Letter::call("RequestName").body("su", |w| {
                w.str(&name).u32(flags);
            });
            letter.serial = serial;
            letter.bytes()
        };
        let bytes = [request(2), request(3)].concat();
        played.push((format!("RequestName with flags {flags}"), answers(bus, &bytes)));
        for name in [DRIVER, owner.unique.as_str()] {
            let letter = Letter::call("StartServiceByName").body("su", |w| {
                w.str(name).u32(flags);
            });
            let name = if name == DRIVER { name } else { "a unique name" };
            played.push((
                format!("start an owned name: {name} with flags {flags}"),
                answers(bus, &letter.bytes()),
            ));
        }
    }
    let both = [
        Letter::call("RequestName").body("su", |w| {
            w.str("own.ed").u32(0);
        }),
        Letter::call("StartServiceByName").body("su", |w| {
            w.str("own.ed").u32(0);
        }),
    ];
    let bytes = both.map(|letter| letter.bytes()).concat();
    played.push(("start an owned name: well-known".into(), answers(bus, &bytes)));
}

fn places(bus: &Bus, played: &mut Played) {
    type Write = fn(&mut BodyWriter);
    let members: [(&str, &str, Write); 12] = [
        ("GetId", "", |_| ()),
        ("Ping", "", |_| ()),
        ("GetMachineId", "", |_| ()),
        ("Introspect", "", |_| ()),
        ("Get", "ss", |w| {
            w.str(DRIVER).str("Features");
        }),
        ("GetAll", "s", |w| {
            w.str(DRIVER);
        }),
        ("ListNames", "", |_| ()),
        ("Nope", "", |_| ()),
        ("AddMatch", "s", |w| {
            w.str("");
        }),
        ("UpdateActivationEnvironment", "a{ss}", |w| {
            w.array("{ss}", |_| ());
        }),
        ("Hello", "", |_| ()),
        ("GetAllMatchRules", "", |_| ()),
    ];
    let interfaces = [
        Some(DRIVER),
        None,
        Some(PROPERTIES),
        Some(STATS),
        Some(PEER),
        Some(INTROSPECTABLE),
        Some(MONITORING),
        Some("x.y"),
    ];
    for path in [DRIVER_PATH, "/", "/org", "/a/b"] {
        for interface in interfaces {
            for (member, signature, write) in members {
                let letter = Letter::to_driver(path, interface, member).body(signature, write);
                played.push((
                    format!("place: {member} at {path} of {interface:?}"),
                    answers(bus, &letter.bytes()),
                ));
            }
        }
    }
}

fn arguments(bus: &Bus, played: &mut Played) {
    let mut play = |name: &str, letter: Letter<'_>| {
        played.push((name.to_owned(), answers(bus, &letter.bytes())));
    };
    for (interface, member) in [
        (DRIVER, "GetId"),
        (DRIVER, "Hello"),
        (DRIVER, "ListNames"),
        (DRIVER, "RequestName"),
        (DRIVER, "AddMatch"),
        (DRIVER, "GetNameOwner"),
        (MONITORING, "BecomeMonitor"),
        (PROPERTIES, "Get"),
        (PROPERTIES, "Set"),
        (PROPERTIES, "GetAll"),
        (PEER, "Ping"),
        (PEER, "GetMachineId"),
        (INTROSPECTABLE, "Introspect"),
        (STATS, "GetStats"),
    ] {
        let letter = || Letter::to_driver(DRIVER_PATH, Some(interface), member);
        play(
            &format!("arguments: {member} u"),
            letter().body("u", |w| {
                w.u32(7);
            }),
        );
        play(
            &format!("arguments: {member} ass"),
            letter().body("ass", |w| {
                w.str_array([]).str("x");
            }),
        );
        play(
            &format!("arguments: {member} with an empty signature"),
            letter().with(SIGNATURE, Value::Signature("")),
        );
    }
    for (interface, property) in [
        ("", ""),
        (DRIVER, ""),
        (DRIVER, "nope"),
        ("a.b", "x"),
        ("bad", "x"),
    ] {
        let letter = |member| Letter::to_driver(DRIVER_PATH, Some(PROPERTIES), member);
        let name = format!("property: {interface:?} {property:?}");
        play(
            &format!("{name} Get"),
            letter("Get").body("ss", |w| {
                w.str(interface).str(property);
            }),
        );
        play(
            &format!("{name} Set"),
            letter("Set").body("ssv", |w| {
                w.str(interface).str(property).variant("s", |w| {
                    w.str("x");
                });
            }),
        );
    }
    for interface in ["", "a.b", "bad", PEER] {
        let letter = Letter::to_driver(DRIVER_PATH, Some(PROPERTIES), "GetAll").body("s", |w| {
            w.str(interface);
        });
        play(&format!("property: {interface:?} GetAll"), letter);
    }
    for (rule, flags) in [("bogus", 0), ("", 1), ("", u32::MAX)] {
        let letter = Letter::to_driver(DRIVER_PATH, Some(MONITORING), "BecomeMonitor").body("asu", |w| {
            w.str_array([rule]).u32(flags);
        });
        play(&format!("BecomeMonitor: {rule:?} {flags}"), letter);
    }
    for (what, variable) in [
        ("environment: empty", ""),
        ("environment: with =", "a=b"),
        ("a variable of one letter", "a"),
        ("a variable that is not ASCII", "é"),
    ] {
        let letter = Letter::call("UpdateActivationEnvironment").body("a{ss}", |w| {
            w.array("{ss}", |w| {
                w.dict_entry(|w| {
                    w.str(variable).str("x");
                });
            });
        });
        play(what, letter);
    }
}

/// ReloadConfig is answered when it is done.
fn reloads(bus: &Bus, played: &mut Played) {
    let mut raw = Raw::ready(bus);
    let mut answer = |name: &str, letter: Letter<'_>| {
        raw.send(&letter.bytes());
        let answer = loop {
            let message = raw.message().expect("the bus closed the connection");
            if message.reply_serial().is_some() {
                break in_short(&message);
            }
        };
        played.push((format!("ReloadConfig: {name}"), vec![answer]));
    };
    let file = bus.directory.path().join("bus.conf");
    let good = std::fs::read_to_string(&file).unwrap();
    let reload = || Letter::call("ReloadConfig");
    answer("as it is", reload());
    answer("at another path", Letter::to_driver("/a", None, "ReloadConfig"));
    answer(
        "of another interface",
        Letter::to_driver(DRIVER_PATH, Some(PEER), "ReloadConfig"),
    );
    std::fs::remove_file(&file).unwrap();
    answer("the file is missing", reload());
    std::fs::create_dir(&file).unwrap();
    answer("the file is a directory", reload());
    std::fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    answer("the file is a loop", reload());
    std::fs::remove_file(&file).unwrap();
    for (name, text) in [
        ("it is empty", String::new()),
        ("it is no XML", "hello".to_owned()),
        ("it ends early", good[..good.len() - 10].to_owned()),
        ("another root", "<foo/>".to_owned()),
        (
            "an unknown element",
            good.replace("</busconfig>", "<foo/></busconfig>"),
        ),
        (
            "a missing include",
            good.replace("</busconfig>", "<include>/no/such/file</include></busconfig>"),
        ),
        (
            "an include that may be missing",
            good.replace(
                "</busconfig>",
                "<include ignore_missing='yes'>/no/such/file</include></busconfig>",
            ),
        ),
        (
            "a missing directory of includes",
            good.replace("</busconfig>", "<includedir>/no/such</includedir></busconfig>"),
        ),
        (
            "an include of itself",
            good.replace("</busconfig>", "<include>bus.conf</include></busconfig>"),
        ),
        (
            "an unknown limit",
            good.replace("</busconfig>", "<limit name='bogus'>1</limit></busconfig>"),
        ),
        (
            "a limit that is no number",
            good.replace(
                "</busconfig>",
                "<limit name='max_names_per_connection'>x</limit></busconfig>",
            ),
        ),
        (
            "text behind the number of a limit",
            good.replace(
                "</busconfig>",
                "<limit name='max_names_per_connection'>600abc</limit></busconfig>",
            ),
        ),
        ("good again", good.clone()),
    ] {
        std::fs::write(&file, text).unwrap();
        answer(name, reload());
    }
}
