//! Each rule of the specification that a message can break, one by one, in both byte orders.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_wire::limits::{MAX_ARRAY, MAX_MESSAGE};
use bus_wire::{Endian, Message, MessageError, MessageType, message_length};
use proptest::prelude::*;

/// Bytes as a careless or hostile client would write them.
#[derive(Clone)]
struct Raw {
    endian: Endian,
    bytes: Vec<u8>,
}

impl Raw {
    fn new(endian: Endian) -> Self {
        Self {
            endian,
            bytes: Vec::new(),
        }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn align(mut self, to: usize) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
        self
    }

    fn u32(self, value: u32) -> Self {
        let bytes = if self.endian == Endian::Big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        };
        self.align(4).bytes(&bytes)
    }

    fn text(self, text: &str) -> Self {
        self.u32(text.len() as u32).bytes(text.as_bytes()).bytes(&[0])
    }

    fn signature(self, text: &str) -> Self {
        self.bytes(&[text.len() as u8]).bytes(text.as_bytes()).bytes(&[0])
    }

    /// The beginning of a header field.
    fn field(self, code: u8, signature: &str) -> Self {
        self.align(8).bytes(&[code]).signature(signature)
    }

    fn text_field(self, code: u8, type_code: char, text: &str) -> Self {
        self.field(code, &type_code.to_string()).text(text)
    }
}

/// The fields of a call.
fn call(raw: Raw) -> Raw {
    raw.text_field(1, 'o', "/a").text_field(3, 's', "M")
}

fn message(
    endian: Endian,
    kind: u8,
    fields: impl FnOnce(Raw) -> Raw,
    body: impl FnOnce(Raw) -> Raw,
) -> Vec<u8> {
    let fields = fields(Raw::new(endian)).bytes;
    let body = body(Raw::new(endian)).bytes;
    Raw::new(endian)
        .bytes(&[endian.flag(), kind, 0, 1])
        .u32(body.len() as u32)
        .u32(9)
        .u32(fields.len() as u32)
        .bytes(&fields)
        .align(8)
        .bytes(&body)
        .bytes
}

fn nothing(raw: Raw) -> Raw {
    raw
}

/// What is said of the message, in both byte orders: `Ok`, or the name of the error.
#[track_caller]
fn check(expected: &str, bytes: impl Fn(Endian) -> Vec<u8>) {
    for endian in [Endian::Little, Endian::Big] {
        let bytes = bytes(endian);
        let result = Message::parse(bytes.clone().into());
        let said = match &result {
            Ok(_) => "Ok".to_owned(),
            Err(error) => format!("{error:?}"),
        };
        assert!(
            said.starts_with(expected),
            "{endian:?}: {expected} expected, not {said}"
        );
    }
}

#[track_caller]
fn check_fields(expected: &str, kind: u8, fields: impl Fn(Raw) -> Raw) {
    check(expected, |endian| message(endian, kind, &fields, nothing));
}

#[track_caller]
fn check_body(expected: &str, signature: &str, body: impl Fn(Raw) -> Raw) {
    check(expected, |endian| {
        message(
            endian,
            1,
            |raw| call(raw).field(8, "g").signature(signature),
            &body,
        )
    });
}

#[track_caller]
fn check_patched(expected: &str, at: usize, byte: u8) {
    check(expected, |endian| {
        let mut bytes = message(endian, 1, call, nothing);
        bytes[at] = byte;
        bytes
    });
}

#[test]
fn fixed_part() {
    check("Ok", |endian| message(endian, 1, call, nothing));
    check_patched("Endian { flag: 76 }", 0, b'L');
    check_patched("TypeZero", 1, 0);
    check_patched("Ok", 2, 0xff);
    check_patched("Version { version: 2 }", 3, 2);
    check("SerialZero { at: 8 }", |endian| {
        let mut bytes = message(endian, 1, call, nothing);
        bytes[8..12].fill(0);
        bytes
    });
    // Padding after the fields: "M\0" ends at 42.
    check_patched("Padding { at: 42 }", 42, 1);
    check_patched("Padding { at: 47 }", 47, 1);
    // Padding between the fields: "/a\0" ends at 27.
    check_patched("Padding { at: 27 }", 27, 1);
    check_patched("Padding { at: 31 }", 31, 1);
}

#[test]
fn lengths() {
    for endian in [Endian::Little, Endian::Big] {
        let bytes = message(endian, 1, call, nothing);
        for length in 0..bytes.len() {
            let given = bytes[..length].to_vec();
            assert_eq!(message_length(&given), Ok((length >= 16).then_some(bytes.len())));
            assert!(
                matches!(Message::parse(given.into()), Err(MessageError::Length { .. })),
                "{length}"
            );
        }
        let longer = [bytes.clone(), vec![0]].concat();
        assert!(matches!(
            Message::parse(longer.into()),
            Err(MessageError::Length { .. })
        ));
        let fixed = |body: usize, fields: usize| {
            Raw::new(endian)
                .bytes(&[endian.flag(), 1, 0, 1])
                .u32(body as u32)
                .u32(1)
                .u32(fields as u32)
                .bytes
        };
        assert_eq!(message_length(&fixed(MAX_MESSAGE - 16, 0)), Ok(Some(MAX_MESSAGE)));
        assert_eq!(message_length(&fixed(0, MAX_ARRAY)), Ok(Some(MAX_ARRAY + 16)));
        assert_eq!(
            message_length(&fixed(MAX_MESSAGE - MAX_ARRAY - 16, MAX_ARRAY)),
            Ok(Some(MAX_MESSAGE))
        );
        let too_long = |body, fields| {
            matches!(
                message_length(&fixed(body, fields)),
                Err(MessageError::TooLong { .. })
            )
        };
        assert!(too_long(MAX_MESSAGE - 15, 0));
        // The padding of the fields counts too.
        assert!(too_long(MAX_MESSAGE - 16, 1));
        assert!(too_long(u32::MAX as usize, 0));
        let array = MessageError::ArrayTooLong {
            at: 12,
            length: MAX_ARRAY + 1,
        };
        assert_eq!(message_length(&fixed(0, MAX_ARRAY + 1)), Err(array));
        assert!(message_length(&fixed(u32::MAX as usize, u32::MAX as usize)).is_err());
    }
}

#[test]
fn required_fields() {
    let path = |raw: Raw| raw.text_field(1, 'o', "/a");
    let interface = |raw: Raw| raw.text_field(2, 's', "a.b");
    let member = |raw: Raw| raw.text_field(3, 's', "M");
    let error = |raw: Raw| raw.text_field(4, 's', "a.b");
    let reply = |raw: Raw| raw.field(5, "u").u32(1);
    for kind in 1..=4 {
        check_fields("FieldMissing", kind, nothing);
    }
    check_fields("Ok", 1, |raw| member(path(raw)));
    check_fields("FieldMissing { field: \"PATH\" }", 1, member);
    check_fields("FieldMissing { field: \"MEMBER\" }", 1, path);
    check_fields("Ok", 2, reply);
    check_fields("Ok", 3, |raw| reply(error(raw)));
    check_fields("FieldMissing { field: \"ERROR_NAME\" }", 3, reply);
    check_fields("FieldMissing { field: \"REPLY_SERIAL\" }", 3, error);
    check_fields("Ok", 4, |raw| member(interface(path(raw))));
    check_fields("FieldMissing { field: \"PATH\" }", 4, |raw| {
        member(interface(raw))
    });
    check_fields("FieldMissing { field: \"INTERFACE\" }", 4, |raw| {
        member(path(raw))
    });
    check_fields("FieldMissing { field: \"MEMBER\" }", 4, |raw| {
        interface(path(raw))
    });
    check_fields("Ok", 5, nothing);
    let unknown = Message::parse(message(Endian::Little, 200, nothing, nothing).into()).unwrap();
    assert_eq!(unknown.message_type(), MessageType::Unknown(200));
}

#[test]
fn header_fields() {
    let with = |expected: &str, add: &dyn Fn(Raw) -> Raw| check_fields(expected, 1, |raw| add(call(raw)));
    with("FieldZero", &|raw| raw.field(0, "y").bytes(&[1]));
    // Of the wrong type.
    for code in 1..=9 {
        with("FieldType", &|raw| raw.field(code, "y").bytes(&[1]));
        with("FieldType", &|raw| raw.field(code, "ss").text("a.b").text("a.b"));
        with("FieldType", &|raw| raw.field(code, "").bytes(&[0]));
    }
    with("FieldType", &|raw| raw.field(5, "i").u32(1));
    with("FieldType", &|raw| raw.text_field(6, 'o', "/a"));
    // Twice.
    with("FieldTwice { at: 48, field: 1 }", &|raw| {
        raw.text_field(1, 'o', "/a")
    });
    with("FieldTwice { at: 48, field: 3 }", &|raw| {
        raw.text_field(3, 's', "M")
    });
    with("FieldTwice", &|raw| {
        raw.text_field(6, 's', "a.b").text_field(6, 's', "a.b")
    });
    with("FieldTwice", &|raw| raw.field(9, "u").u32(0).field(9, "u").u32(0));
    with("FieldTwice", &|raw| {
        raw.field(8, "g").signature("").field(8, "g").signature("")
    });
    // Names.
    for (code, bad) in [
        (2, "a"),
        (2, ""),
        (4, "a..b"),
        (6, ""),
        (6, "a"),
        (6, ":"),
        (6, "a.1b"),
        (7, "a/b.c"),
        (7, ":1\0.2"),
    ] {
        with("Name", &|raw| raw.text_field(code, 's', bad));
    }
    check_fields("Name", 1, |raw| {
        raw.text_field(1, 'o', "a").text_field(3, 's', "M")
    });
    check_fields("Name", 1, |raw| {
        raw.text_field(1, 'o', "").text_field(3, 's', "M")
    });
    check_fields("Name", 1, |raw| {
        raw.text_field(1, 'o', "/a/").text_field(3, 's', "M")
    });
    check_fields("Name", 1, |raw| {
        raw.text_field(1, 'o', "/a").text_field(3, 's', "a.b")
    });
    check_fields("Name", 1, |raw| {
        raw.text_field(1, 'o', "/a").text_field(3, 's', &"x".repeat(256))
    });
    check_fields("Ok", 1, |raw| {
        raw.text_field(1, 'o', "/a").text_field(3, 's', &"x".repeat(255))
    });
    // Reserved for messages that a library makes for its own program.
    check_fields("ReservedLocal", 1, |raw| {
        raw.text_field(1, 'o', "/org/freedesktop/DBus/Local")
            .text_field(3, 's', "M")
    });
    with("ReservedLocal", &|raw| {
        raw.text_field(2, 's', "org.freedesktop.DBus.Local")
    });
    // Values.
    with("SerialZero", &|raw| raw.field(5, "u").u32(0));
    with("Ok", &|raw| raw.field(5, "u").u32(1));
    with("Signature", &|raw| raw.field(8, "g").signature("a"));
    with("Signature", &|raw| raw.field(8, "g").signature("a{vs}"));
    with("NotTerminated", &|raw| raw.field(8, "g").bytes(&[1, b'y', 1]));
    with("NotTerminated", &|raw| raw.field(6, "s").u32(3).bytes(b"a.b!"));
    with("FieldType", &|raw| {
        raw.align(8).bytes(&[6, 1, b's', 1]).text("a.b")
    });
    // The array of fields ends within a field.
    with("Truncated", &|raw| raw.align(8).bytes(&[6]));
    with("Truncated", &|raw| raw.field(6, "s").bytes(&[0, 0]));
    with("Truncated", &|raw| raw.field(6, "s").u32(3).bytes(b"a.b"));
    with("Truncated", &|raw| {
        raw.field(6, "s").u32(u32::MAX).bytes(b"a.b\0")
    });
    with("Truncated", &|raw| raw.field(5, "u").bytes(&[1, 0, 0]));
    // Unknown ones are accepted, if they are valid.
    with("Ok", &|raw| raw.field(10, "y").bytes(&[1]));
    with("Ok", &|raw| raw.field(255, "a{sv}").u32(0).align(8));
    with("Ok", &|raw| {
        raw.field(10, "y").bytes(&[1]).field(10, "y").bytes(&[1])
    });
    with("Boolean", &|raw| raw.field(10, "b").u32(2));
    with("VariantSignature", &|raw| raw.field(10, "yy").bytes(&[1, 1]));
    with("VariantSignature", &|raw| raw.field(10, ""));
    with("Signature", &|raw| raw.field(10, "a").u32(0));
    with("Truncated", &|raw| raw.field(10, "s").u32(4).bytes(b"abc\0"));
}

#[test]
fn foreign_fields_are_seen() {
    let foreign = |add: &dyn Fn(Raw) -> Raw| {
        let bytes = message(Endian::Little, 1, |raw| add(call(raw)), nothing);
        Message::parse(bytes.into()).unwrap().has_foreign_fields()
    };
    assert!(!foreign(&nothing));
    assert!(!foreign(&|raw| raw.text_field(6, 's', "a.b")));
    assert!(foreign(&|raw| raw.text_field(7, 's', "a.b")));
    assert!(foreign(&|raw| raw.field(10, "y").bytes(&[1])));
}

#[test]
fn body_and_signature() {
    check("BodyWithoutSignature { at: 48 }", |endian| {
        message(endian, 1, call, |raw| raw.bytes(&[0]))
    });
    check_body("BodyWithoutSignature", "", |raw| raw.bytes(&[0]));
    check_body("Ok", "", nothing);
    check_body("Truncated", "y", nothing);
    check_body("TrailingBytes", "y", |raw| raw.bytes(&[0, 0]));
    check_body("TrailingBytes", "u", |raw| raw.u32(1).align(8));
}

#[test]
fn basic_values() {
    check_body("Ok", "bb", |raw| raw.u32(0).u32(1));
    check_body("Boolean", "b", |raw| raw.u32(2));
    check_body("Boolean", "b", |raw| raw.u32(1 << 24 | 1));
    check_body("Truncated", "b", |raw| raw.bytes(&[0, 0, 0]));
    for (code, size) in [
        ("y", 1),
        ("n", 2),
        ("q", 2),
        ("i", 4),
        ("u", 4),
        ("h", 4),
        ("x", 8),
        ("t", 8),
        ("d", 8),
    ] {
        check_body("Ok", code, |raw| raw.bytes(&[0xff; 8][..size]));
        check_body("Truncated", code, |raw| raw.bytes(&[0xff; 8][..size - 1]));
        if size > 1 {
            check_body("Ok", &format!("y{code}"), |raw| {
                raw.bytes(&[1]).align(size).bytes(&[0xff; 8][..size])
            });
            check_body("Padding", &format!("y{code}"), |raw| {
                raw.bytes(&[1; 16][..size]).bytes(&[0xff; 8][..size])
            });
        }
    }
}

#[test]
fn texts() {
    check_body("Ok", "s", |raw| raw.text(""));
    check_body("Ok", "s", |raw| raw.text("grüße 日本語 \u{10ffff}\u{fffe}"));
    check_body("Nul", "s", |raw| raw.text("a\0b"));
    check_body("Nul", "s", |raw| raw.text(&format!("{}\0", "a".repeat(100))));
    check_body("NotTerminated", "s", |raw| raw.u32(1).bytes(b"ab"));
    check_body("Truncated", "s", |raw| raw.u32(1).bytes(b"a"));
    check_body("Truncated", "s", |raw| raw.u32(u32::MAX).bytes(b"a\0"));
    // Lone continuation, overlong, surrogate, beyond Unicode, cut off.
    for bad in [
        &b"\x80"[..],
        b"\xc0\x80",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xff",
        b"\xe2\x82",
    ] {
        check_body("Utf8", "s", |raw| {
            raw.u32(bad.len() as u32).bytes(bad).bytes(&[0])
        });
        let long = [&[b'a'; 200][..], bad].concat();
        check_body("Utf8", "s", |raw| {
            raw.u32(long.len() as u32).bytes(&long).bytes(&[0])
        });
    }
    check_body("Ok", "o", |raw| raw.text("/"));
    for bad in ["", "a", "//", "/a/", "/a-b", "/\0"] {
        check_body("Name", "o", |raw| raw.text(bad));
    }
    check_body("Ok", "g", |raw| raw.signature(""));
    check_body("Ok", "g", |raw| raw.signature("a{sv}(ii)"));
    for bad in ["a", "(", "()", "a{s}", "{sv}", "z", "y\0", "a{vs}"] {
        check_body("Signature", "g", |raw| raw.signature(bad));
    }
    check_body("NotTerminated", "g", |raw| raw.bytes(&[1, b'y', 1]));
    check_body("Truncated", "g", |raw| raw.bytes(&[1, b'y']));
    check_body("Truncated", "g", |raw| raw.bytes(&[255, b'y', 0]));
}

#[test]
fn arrays() {
    check_body("Ok", "ay", |raw| raw.u32(3).bytes(&[1, 2, 3]));
    check_body("Truncated", "ay", |raw| raw.u32(4).bytes(&[1, 2, 3]));
    check_body("TrailingBytes", "ay", |raw| raw.u32(2).bytes(&[1, 2, 3]));
    // CVE-2022-42011: a length that is no multiple of the elements' size.
    for (signature, length) in [("aq", 3), ("au", 6), ("at", 12), ("ab", 6), ("ah", 3), ("ad", 7)] {
        check_body("Truncated", signature, |raw| {
            let start = if matches!(signature, "at" | "ad") { 8 } else { 4 };
            raw.u32(length).align(start).bytes(&vec![0; length as usize])
        });
    }
    check_body("Boolean", "ab", |raw| raw.u32(8).u32(1).u32(2));
    check_body("Ok", "as", |raw| raw.u32(14).text("a").text("b"));
    // The second element crosses the end of the array.
    check_body("Truncated", "as", |raw| raw.u32(13).text("a").text("b"));
    check_body("Truncated", "asu", |raw| raw.u32(12).text("a").u32(1).u32(0));
    check_body("Utf8", "as", |raw| raw.u32(6).u32(1).bytes(b"\xff\0"));
    // Padding before the first element is there also without one, and is not part of the length.
    check_body("Ok", "at", |raw| raw.u32(0).align(8));
    check_body("Truncated", "at", |raw| raw.u32(0));
    check_body("Padding", "at", |raw| raw.u32(0).bytes(&[0, 0, 1, 0]));
    check_body("Ok", "a(y)", |raw| {
        raw.u32(9).align(8).bytes(&[1]).align(8).bytes(&[2])
    });
    check_body("Padding", "a(y)", |raw| {
        raw.u32(9).align(8).bytes(&[1, 0, 0, 0, 0, 0, 1, 0, 2])
    });
    check_body("Ok", "a{sv}", |raw| {
        raw.u32(10).align(8).text("k").signature("y").bytes(&[1])
    });
    check_body("Truncated", "a{sv}", |raw| {
        raw.u32(9).align(8).text("k").signature("y").bytes(&[1])
    });
    check_body("ArrayTooLong", "ay", |raw| raw.u32(MAX_ARRAY as u32 + 1));
    check_body("ArrayTooLong", "aas", |raw| raw.u32(4).u32(u32::MAX));
    check_body("Truncated", "ay", |raw| raw.u32(MAX_ARRAY as u32));
    // An inner array that is longer than the outer one.
    check_body("Truncated", "aay", |raw| raw.u32(5).u32(2).bytes(&[1, 2]));
    check_body("Ok", "aay", |raw| raw.u32(6).u32(2).bytes(&[1, 2]));
}

#[test]
fn structs_and_variants() {
    check_body("Ok", "y(yu)", |raw| raw.bytes(&[1]).align(8).bytes(&[1]).u32(2));
    check_body("Padding", "y(y)", |raw| raw.bytes(&[1, 1, 1, 1, 1, 1, 1, 1, 1]));
    check_body("Truncated", "(yu)", |raw| raw.bytes(&[1]));
    check_body("Ok", "v", |raw| raw.signature("u").u32(1));
    check_body("Padding", "v", |raw| raw.signature("u").bytes(&[1]).u32(1));
    check_body("VariantSignature", "v", |raw| raw.signature(""));
    check_body("VariantSignature", "v", |raw| raw.signature("yy").bytes(&[1, 1]));
    check_body("VariantSignature", "v", |raw| {
        raw.signature("(y)y").align(8).bytes(&[1, 1])
    });
    for bad in ["a", "{sv}", "a{vs}", "a{sv", "()", "z", "r"] {
        check_body("Signature", "v", |raw| raw.signature(bad).align(8).u32(0).u32(0));
    }
    check_body("NotTerminated", "v", |raw| raw.bytes(&[1, b'y', 1, 1]));
    check_body("Truncated", "v", |raw| raw.signature("u"));
    check_body("Boolean", "v", |raw| raw.signature("v").signature("b").u32(7));
}

/// CVE-2010-4352, and the limits of "Valid Signatures".
#[test]
fn nesting() {
    let variants = |count: usize| {
        move |raw: Raw| {
            (1..count)
                .fold(raw, |raw, _| raw.signature("v"))
                .signature("y")
                .bytes(&[1])
        }
    };
    check_body("Ok", "v", variants(64));
    check_body("TooDeep", "v", variants(65));
    check_body("TooDeep", "v", variants(5000));
    check_body("TooDeep", "v", variants(500_000));
    // The array of fields and the field itself are around the value of an unknown field.
    let field = |count| {
        move |raw: Raw| {
            (1..count)
                .fold(call(raw).field(10, "v"), |raw, _| raw.signature("v"))
                .signature("y")
                .bytes(&[1])
        }
    };
    check_fields("Ok", 1, field(61));
    check_fields("TooDeep", 1, field(62));

    let structs = |count: usize| format!("{}y{}", "(".repeat(count), ")".repeat(count));
    check_body("Ok", &structs(32), |raw| raw.bytes(&[1]));
    check_body("Signature", &structs(33), |raw| raw.bytes(&[1]));
    // 32 arrays and 32 structs.
    let both = format!("{}{}", "a".repeat(32), structs(32));
    let nested = |raw: Raw| {
        let innermost = 31 * 4 + 4 + 1;
        (0..32)
            .fold(raw, |raw, level| raw.u32(innermost - 4 - 4 * level))
            .align(8)
            .bytes(&[1])
    };
    check_body("Ok", &both, nested);
    check_body("Signature", &format!("a{both}"), |raw| raw.u32(0));
    // A struct in a variant in them is one too many.
    let variant = both.replace('y', "v");
    let nested = |raw: Raw| {
        let innermost = 31 * 4 + 4 + 4;
        (0..32)
            .fold(raw, |raw, level| raw.u32(innermost - 4 - 4 * level))
            .align(8)
            .signature("y")
            .bytes(&[1])
    };
    check_body("TooDeep", &variant, nested);
}

proptest! {
    /// CVE-2022-42012: a message in the other byte order, with fds, is the same message.
    #[test]
    fn foreign_byte_order_with_fds(fds in 0u32..20, serial in 1u32..) {
        for endian in [Endian::Little, Endian::Big] {
            let mut bytes = message(
                endian,
                1,
                |raw| call(raw).field(9, "u").u32(fds).field(8, "g").signature("ha{sv}"),
                |raw| raw.u32(0).u32(0).align(8),
            );
            let number = if endian == Endian::Big { serial.to_be_bytes() } else { serial.to_le_bytes() };
            bytes[8..12].copy_from_slice(&number);
            let message = Message::parse(bytes.into()).unwrap();
            prop_assert_eq!(message.unix_fds(), fds);
            prop_assert_eq!(message.serial().get(), serial);
            prop_assert_eq!(message.endian(), endian);
        }
    }
}
