//! Whatever a client sends, it costs that client alone: the others are served by the same process as before.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::{Handshake, fds};
use bus_wire::{BodyWriter, Endian, Flags, MessageBuilder};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use support::raw::{Raw, call};
use support::{Bus, DRIVER, DRIVER_PATH, restart_property, wait_until};

/// A good call with some of its bytes overwritten.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = call("GetNameOwner", |body| {
        body.str("a.b");
    });
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message
}

/// A good call in which one text is replaced by another of the same length.
fn replaced(text: &[u8], by: &[u8]) -> Vec<u8> {
    let mut message = call("GetNameOwner", |body| {
        body.str("a.b");
    });
    let at = message
        .windows(text.len())
        .position(|window| window == text)
        .unwrap();
    message[at..at + by.len()].copy_from_slice(by);
    message
}

/// A call with this body, right or wrong.
fn with_body(signature: &str, body: &[u8]) -> Vec<u8> {
    let mut message = with_fields(1, |array| {
        field(array, 1, "o", |value| {
            value.object_path(DRIVER_PATH);
        });
        field(array, 3, "s", |value| {
            value.str("GetId");
        });
        field(array, 6, "s", |value| {
            value.str(DRIVER);
        });
        field(array, 8, "g", |value| {
            value.signature(signature);
        });
    });
    message[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    message.extend_from_slice(body);
    message
}

/// A header with these fields, right or wrong: type, flags, and the content of the array.
fn with_fields(kind: u8, fields: impl FnOnce(&mut BodyWriter)) -> Vec<u8> {
    let mut writer = BodyWriter::new(Endian::Little);
    writer
        .u8(b'l')
        .u8(kind)
        .u8(0)
        .u8(1)
        .u32(0)
        .u32(1)
        .array("(yv)", fields);
    let (_, mut bytes) = writer.finish().unwrap();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn field(array: &mut BodyWriter, code: u8, signature: &str, value: impl FnOnce(&mut BodyWriter)) {
    array.structure(|field| {
        field.u8(code).variant(signature, value);
    });
}

/// What a client does to the bus.
type Case = Box<dyn FnOnce(&Bus)>;

/// Runs the cases one after the other, each on a connection of its own. After each, somebody else is still served; at
/// the end, by the same worker, which has nothing left of them.
fn each_costs_only_its_sender(cases: Vec<(&str, Case)>) {
    let mut bus = Bus::start();
    let mut bystander = bus.caller();
    let worker = |bus: &Bus| {
        let reply = restart_property(&mut bus.caller(), "WorkerPID");
        reply.body().read_variant(|value| value.read_u32()).unwrap()
    };
    let (before, descriptors) = (worker(&bus), fds::open_count(bus.pid()).unwrap());
    for (name, case) in cases {
        eprintln!("case: {name}");
        case(&bus);
        bystander.list("ListNames", None).unwrap();
    }
    assert!(bus.is_alive());
    assert_eq!(worker(&bus), before, "the worker died");
    wait_until("every descriptor is let go", || {
        fds::open_count(bus.pid()).unwrap() <= descriptors
    });
}

/// A case in which the bus hangs up.
fn hangs_up(bytes: Vec<u8>) -> Case {
    Box::new(move |bus| {
        let mut raw = Raw::ready(bus);
        raw.send(&bytes);
        raw.expect_end();
    })
}

/// A case in which the bus goes on.
fn goes_on(bytes: Vec<u8>) -> Case {
    Box::new(move |bus| {
        let mut raw = Raw::ready(bus);
        raw.send(&bytes);
        raw.expect_service();
    })
}

/// A case before the handshake is through.
fn greeted_with(bytes: impl Into<Vec<u8>>) -> Case {
    let bytes = bytes.into();
    Box::new(move |bus| {
        let mut raw = Raw::connect(bus);
        raw.send(&bytes);
        raw.expect_end();
    })
}

#[test]
fn handshakes() {
    let uid: String = nix::unistd::getuid()
        .to_string()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let wrong = "AUTH EXTERNAL 39393939\r\n".repeat(20);
    each_costs_only_its_sender(vec![
        ("no leading zero byte", greeted_with("AUTH EXTERNAL\r\n")),
        (
            "a web browser",
            greeted_with("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ),
        (
            "a line without an end",
            greeted_with([b"\0AUTH ".to_vec(), vec![b'a'; 1 << 20]].concat()),
        ),
        ("zeroes", greeted_with(vec![0; 1 << 20])),
        ("one failed try after another", greeted_with(format!("\0{wrong}"))),
        (
            "tries that are answered before the end, at once as they came",
            Box::new(move |bus| {
                let mut raw = Raw::connect(bus);
                raw.send(format!("\0{wrong}").as_bytes());
                let answers = raw.read_to_end();
                assert_eq!(answers.matches("REJECTED EXTERNAL\r\n").count(), 6, "{answers}");
            }),
        ),
        ("BEGIN before anything", greeted_with("\0BEGIN\r\n")),
        (
            "BEGIN after a failed try",
            greeted_with("\0AUTH EXTERNAL 39393939\r\nBEGIN\r\n"),
        ),
        (
            "a message that is not Hello first",
            greeted_with([Handshake::start().0, call("GetId", |_| ())].concat()),
        ),
        (
            "garbage after BEGIN",
            greeted_with(
                [
                    format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes(),
                    vec![0xff; 64],
                ]
                .concat(),
            ),
        ),
        (
            "it leaves in the middle of a line",
            Box::new(|bus| Raw::connect(bus).send(b"\0AUTH EXT")),
        ),
        (
            "nonsense in between is answered, and does no harm",
            Box::new(move |bus| {
                let mut raw = Raw::connect(bus);
                raw.send(
                    format!("\0HELLO\r\nAUTH\r\nAUTH NOTHING\r\nDATA zz\r\nAUTH EXTERNAL {uid}\r\n")
                        .as_bytes(),
                );
                let mut answers = String::new();
                let mut byte = [0];
                while !answers.contains("OK ") {
                    raw.stream.read_exact(&mut byte).unwrap();
                    answers.push(byte[0].into());
                }
                assert!(
                    answers.contains("ERROR") && answers.contains("REJECTED"),
                    "{answers}"
                );
            }),
        ),
    ]);
}

#[test]
fn headers() {
    let path = |array: &mut BodyWriter| {
        field(array, 1, "o", |value| {
            value.object_path("/a");
        });
    };
    let member = |array: &mut BodyWriter| {
        field(array, 3, "s", |value| {
            value.str("M");
        });
    };
    each_costs_only_its_sender(vec![
        ("an unknown byte order", hangs_up(patched(0, b"x"))),
        ("version 2", hangs_up(patched(3, &[2]))),
        ("type 0", hangs_up(patched(1, &[0]))),
        ("serial 0", hangs_up(patched(8, &[0; 4]))),
        ("a body of 4 GiB", hangs_up(patched(4, &[0xff; 4]))),
        (
            "a body of just over 128 MiB",
            hangs_up(patched(4, &(1u32 << 27).to_le_bytes())),
        ),
        ("fields of 4 GiB", hangs_up(patched(12, &[0xff; 4]))),
        (
            "fields of just over 64 MiB",
            hangs_up(patched(12, &((1u32 << 26) + 1).to_le_bytes())),
        ),
        (
            "a path that is none",
            hangs_up(replaced(b"/org/freedesktop/DBus\0", b"/org//reedesktop/DBus\0")),
        ),
        (
            "a member that is none",
            hangs_up(replaced(b"GetNameOwner\0", b"Get.ameOwner\0")),
        ),
        (
            "an interface that is none",
            hangs_up(replaced(b"org.freedesktop.DBus\0", b"org..reedesktop.DBus\0")),
        ),
        (
            "a string without its zero",
            hangs_up(replaced(b"GetNameOwner\0", b"GetNameOwner!")),
        ),
        ("a call without a path", hangs_up(with_fields(1, member))),
        ("a call without a member", hangs_up(with_fields(1, path))),
        (
            "a signal without an interface",
            hangs_up(with_fields(4, |array| {
                path(array);
                member(array);
            })),
        ),
        ("a reply to nothing in particular", hangs_up(with_fields(2, path))),
        (
            "an error without a name",
            hangs_up(with_fields(3, |array| {
                field(array, 5, "u", |value| {
                    value.u32(1);
                });
            })),
        ),
        (
            "a field of the wrong type",
            hangs_up(with_fields(1, |array| {
                path(array);
                field(array, 3, "u", |value| {
                    value.u32(1);
                });
            })),
        ),
        (
            "a field twice",
            hangs_up(with_fields(1, |array| {
                path(array);
                member(array);
                member(array);
            })),
        ),
        (
            "descriptors that did not come",
            hangs_up(with_fields(1, |array| {
                path(array);
                member(array);
                field(array, 9, "u", |value| {
                    value.u32(3);
                });
            })),
        ),
        (
            "the path that is reserved",
            hangs_up(with_fields(4, |array| {
                field(array, 1, "o", |value| {
                    value.object_path("/org/freedesktop/DBus/Local");
                });
                field(array, 2, "s", |value| {
                    value.str("org.freedesktop.DBus.Local");
                });
                member(array);
            })),
        ),
        // What the specification asks to ignore is ignored.
        ("an unknown type", goes_on(patched(1, &[9]))),
        (
            "an unknown field",
            goes_on(with_fields(1, |array| {
                path(array);
                member(array);
                field(array, 200, "s", |value| {
                    value.str("from the future");
                });
            })),
        ),
        ("unknown flags", goes_on(patched(2, &[0xf8]))),
    ]);
}

#[test]
fn bodies() {
    let nested = |depth: usize| {
        // A variant in a variant in a variant: each is the signature "v", the innermost holds a byte.
        let mut body = b"\x01v\0".repeat(depth - 1);
        body.extend_from_slice(b"\x01y\0\x07");
        body
    };
    each_costs_only_its_sender(vec![
        (
            "text that is not UTF-8",
            hangs_up(with_body("s", b"\x02\0\0\0\xff\xfe\0")),
        ),
        (
            "text with a zero in it",
            hangs_up(with_body("s", b"\x03\0\0\0a\0b\0")),
        ),
        (
            "text longer than the body",
            hangs_up(with_body("s", b"\xff\0\0\0abc\0")),
        ),
        ("a boolean of 2", hangs_up(with_body("b", &[2, 0, 0, 0]))),
        (
            "padding that is not zero",
            hangs_up(with_body("yu", &[1, 9, 9, 9, 1, 0, 0, 0])),
        ),
        (
            "an array beyond the body",
            hangs_up(with_body("ay", &[0xff, 0xff, 0, 0, 1])),
        ),
        (
            "an array that ends within an element",
            hangs_up(with_body("au", &[6, 0, 0, 0, 1, 0, 0, 0, 2, 0])),
        ),
        ("bytes left over", hangs_up(with_body("y", &[1, 2]))),
        ("too few bytes", hangs_up(with_body("uu", &[1, 0, 0, 0]))),
        ("a path that is none", hangs_up(with_body("o", b"\x02\0\0\0a/\0"))),
        ("a signature that is none", hangs_up(with_body("g", b"\x02a{\0"))),
        (
            "a variant of two values",
            hangs_up(with_body("v", b"\x02yy\0\x01\x02")),
        ),
        ("a variant of nothing", hangs_up(with_body("v", b"\0\0"))),
        (
            // Whoever reads it finds that there is none; the bus never looks at it (nor does dbus-daemon).
            "a descriptor that did not come",
            goes_on(with_body("h", &[0, 0, 0, 0])),
        ),
        ("variants nested 65 deep", hangs_up(with_body("v", &nested(65)))),
        ("variants nested 64 deep", goes_on(with_body("v", &nested(64)))),
        (
            "no argument where one is needed",
            goes_on(call("GetNameOwner", |_| ())),
        ),
        (
            "a match rule that is none",
            goes_on(call("AddMatch", |body| {
                body.str("type='nothing',,=");
            })),
        ),
        (
            "a match rule of 1 MiB",
            goes_on(call("AddMatch", |body| {
                body.str(&format!("arg0='{}'", "a".repeat(1 << 20)));
            })),
        ),
        (
            "a name that is none",
            goes_on(call("RequestName", |body| {
                body.str("..").u32(0);
            })),
        ),
        (
            "the name of the bus",
            goes_on(call("RequestName", |body| {
                body.str(DRIVER).u32(0);
            })),
        ),
        (
            "a unique name",
            goes_on(call("RequestName", |body| {
                body.str(":1.1").u32(0);
            })),
        ),
        (
            "unknown flags of RequestName",
            goes_on(call("RequestName", |body| {
                body.str("a.b").u32(0xffff_ffff);
            })),
        ),
        ("a second Hello", goes_on(call("Hello", |_| ()))),
        (
            "no reply wanted to nonsense",
            goes_on({
                let builder = MessageBuilder::method_call("/", "Nonsense")
                    .destination(DRIVER)
                    .serial(1u32);
                builder.flags(Flags::NO_REPLY_EXPECTED).build().unwrap()
            }),
        ),
    ]);
}

/// Sends bytes with so many copies of a descriptor.
fn send_fds(raw: &Raw, bytes: &[u8], fd: impl AsFd, count: usize) {
    let fds = vec![fd.as_fd().as_raw_fd(); count];
    let rights = [ControlMessage::ScmRights(&fds)];
    let _ = sendmsg::<()>(
        raw.stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
}

#[test]
fn a_connection_that_keeps_itself_alive_is_ended_after_a_while() {
    let bus = Bus::start_with("<limit name='pending_fd_timeout'>300</limit>");
    let mut caller = bus.caller();
    let raw = Raw::ready(&bus);
    let before = fds::open_count(bus.pid()).unwrap();
    let message = call("GetId", |_| ());
    send_fds(&raw, &message[..20], &raw.stream, 1);
    // The bus now holds the other end of its own connection: it will never see the end of it.
    drop(raw);
    wait_until("the bus has ended it", || {
        fds::open_count(bus.pid()).unwrap() < before
    });
    caller.list("ListNames", None).unwrap();
}

#[test]
fn descriptors_and_departures() {
    each_costs_only_its_sender(vec![
        (
            "more descriptors than a message may carry",
            Box::new(move |bus| {
                let raw = Raw::ready(bus);
                let message = MessageBuilder::method_call("/", "M")
                    .destination(DRIVER)
                    .unix_fds(100)
                    .serial(1u32);
                send_fds(&raw, &message.build().unwrap(), fds::numbered(7).unwrap(), 100);
                raw.expect_end();
            }),
        ),
        (
            "descriptors with every byte, of a message that never ends",
            Box::new(move |bus| {
                let mut raw = Raw::ready(bus);
                let message = call("GetId", |_| ());
                let fd = fds::numbered(7).unwrap();
                for byte in &message[..message.len() - 1] {
                    send_fds(&raw, &[*byte], &fd, 16);
                }
                raw.send(&message[message.len() - 1..]);
                // Whether it is served or not, it keeps nothing: the count at the end tells.
            }),
        ),
        (
            "it leaves in the middle of a large message",
            Box::new(|bus| {
                let mut raw = Raw::ready(bus);
                let large = call("GetNameOwner", |body| {
                    body.byte_slice(&vec![7; 16 << 20]);
                });
                raw.send(&large[..5 << 20]);
            }),
        ),
        (
            "a header of 128 MiB, and no more",
            Box::new(|bus| {
                for _ in 0..50 {
                    let mut raw = Raw::ready(bus);
                    let mut header = patched(4, &((1u32 << 27) - 4096).to_le_bytes());
                    header.truncate(16);
                    raw.send(&header);
                }
            }),
        ),
        (
            "it never reads",
            Box::new(|bus| {
                let mut raw = Raw::ready(bus);
                raw.stream
                    .set_write_timeout(Some(std::time::Duration::from_millis(500)))
                    .unwrap();
                for _ in 0..200 {
                    let many = call("ListNames", |_| ()).repeat(500);
                    if raw.stream.write_all(&many).is_err() {
                        break;
                    }
                }
            }),
        ),
    ]);
}
