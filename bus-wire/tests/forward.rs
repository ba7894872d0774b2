//! The header under which a bus forwards a message, and the messages that are made here.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use bus_wire::limits::{FIXED_HEADER, MAX_FOREIGN_HEADER, MAX_MESSAGE};
use bus_wire::{
    BodyWriter, Endian, Flags, Message, MessageBuilder, MessageError, stitch_header, stitch_long_header,
};

/// Ends a chain of writes.
fn done(_: &mut BodyWriter) {}

fn forwarded(message: &Message, sender: &str) -> Message {
    let mut bytes = Vec::new();
    stitch_header(message, sender, &mut bytes).unwrap();
    assert_eq!(bytes.len() % 8, 0);
    // However it is put together.
    let mut long = vec![7];
    let rest = stitch_long_header(message, sender, &mut long).unwrap();
    assert_eq!(long.len(), 1 + FIXED_HEADER);
    assert_eq!([&long[1..], &rest.concat()].concat(), bytes);
    bytes.extend_from_slice(message.body_bytes());
    Message::parse(bytes.into()).unwrap()
}

fn call(endian: Endian) -> MessageBuilder<'static> {
    MessageBuilder::method_call("/a", "M")
        .endian(endian)
        .interface("a.b")
        .destination(":1.1")
        .serial(77u32)
        .body(|body| {
            body.str("hello").u32(7);
        })
}

/// The message with these bytes as a further field, at the end.
fn with_field(message: &[u8], endian: Endian, field: &[u8]) -> Message {
    let message = Message::parse(message.to_vec().into()).unwrap();
    let number = |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap();
        if endian == Endian::Big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    let mut bytes = message.bytes()[..FIXED_HEADER + number(&message.bytes()[12..16]) as usize].to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(field);
    let length = (bytes.len() - FIXED_HEADER) as u32;
    bytes[12..16].copy_from_slice(&if endian == Endian::Big {
        length.to_be_bytes()
    } else {
        length.to_le_bytes()
    });
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(message.body_bytes());
    Message::parse(bytes.into()).unwrap()
}

#[test]
fn the_sender_is_stamped() {
    for endian in [Endian::Little, Endian::Big] {
        let original = Message::parse(call(endian).build().unwrap().into()).unwrap();
        for sender in [":1.0", ":1.1234567", "org.freedesktop.DBus"] {
            let message = forwarded(&original, sender);
            assert_eq!(message.sender(), Some(sender));
            assert_eq!(message.endian(), endian);
            assert_eq!(message.destination(), Some(":1.1"));
            assert_eq!(message.body().read_str().unwrap(), "hello");
            // It has a sender now, so it could come from a client that claims to be someone.
            assert!(message.has_foreign_fields());
            assert_eq!(
                forwarded(&message, ":1.5").bytes(),
                forwarded(&original, ":1.5").bytes()
            );
        }
    }
}

#[test]
fn foreign_fields_are_dropped() {
    for endian in [Endian::Little, Endian::Big] {
        let plain = call(endian).build().unwrap();
        let expected = forwarded(&Message::parse(plain.clone().into()).unwrap(), ":1.42");
        let spoofed = Message::parse(
            call(endian)
                .sender("org.freedesktop.DBus")
                .build()
                .unwrap()
                .into(),
        )
        .unwrap();
        assert_eq!(forwarded(&spoofed, ":1.42").bytes(), expected.bytes());
        for field in [
            &[10, 1, b'y', 0, 1][..],
            &[200, 1, b's', 0, 0, 0, 0, 0, 0],
            &[11, 2, b'a', b'y', 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let message = with_field(&plain, endian, field);
            assert!(message.has_foreign_fields());
            assert_eq!(forwarded(&message, ":1.42").bytes(), expected.bytes());
        }
    }
}

#[test]
fn long_headers_share_what_was_received() {
    for length in 1..40 {
        let path = format!("/{}", "x".repeat(length));
        let original = MessageBuilder::signal(&path, "a.b", "S").build().unwrap();
        let message = forwarded(&Message::parse(original.into()).unwrap(), ":1.7");
        assert_eq!(message.path(), Some(&*path));
    }
    let path = format!("/{}", "x".repeat(2 << 20));
    let original = MessageBuilder::signal(&path, "a.b", "S").build().unwrap();
    let original = Message::parse(original.into()).unwrap();
    assert_eq!(forwarded(&original, ":1.7").path(), Some(&*path));
    let rest = stitch_long_header(&original, ":1.7", &mut Vec::new()).unwrap();
    let place = original.bytes().as_ptr_range();
    assert!(place.contains(&rest[0].as_ptr()) && rest[0].len() > path.len());
    assert!(rest[1].len() < 32);
}

/// To leave fields out is work for each of them.
#[test]
fn a_long_header_with_fields_to_be_left_out_is_refused() {
    let filler = |length: usize| {
        let mut field = vec![200, 1, b's', 0];
        field.extend((length as u32).to_le_bytes());
        field.resize(field.len() + length + 1, b'x');
        field[8 + length] = 0;
        with_field(&call(Endian::Little).build().unwrap(), Endian::Little, &field)
    };
    let message = filler(MAX_FOREIGN_HEADER);
    let mut out = vec![1];
    let error = stitch_long_header(&message, ":1.7", &mut out).unwrap_err();
    assert!(
        matches!(error, MessageError::ForeignHeaderTooLong { length, limit }
        if length > limit && limit == MAX_FOREIGN_HEADER)
    );
    assert_eq!(out, [1]);
    assert_eq!(
        forwarded(&filler(MAX_FOREIGN_HEADER - 1000), ":1.7").path(),
        Some("/a")
    );
}

/// Both peers forward a message that is longer than allowed once it has a sender.
#[test]
fn a_message_that_would_be_too_long_is_refused() {
    let length = |body: usize| {
        let bytes = MessageBuilder::signal("/a", "a.b", "S").body(|writer| {
            writer
                .byte_slice(&vec![0; body / 2])
                .byte_slice(&vec![0; body - body / 2]);
        });
        bytes.build()
    };
    let overhead = length(0).unwrap().len();
    assert!(matches!(
        length(MAX_MESSAGE - overhead + 8),
        Err(MessageError::TooLong { .. })
    ));
    let message = Message::parse(length(MAX_MESSAGE - overhead - 8).unwrap().into()).unwrap();
    let mut out = vec![1, 2, 3];
    let error = stitch_header(&message, ":1.42", &mut out).unwrap_err();
    assert!(
        matches!(
            error,
            MessageError::TooLong {
                limit: MAX_MESSAGE,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn the_builder_refuses_what_is_not_valid() {
    let call = || MessageBuilder::method_call("/a", "M");
    let cases: Vec<(&str, MessageBuilder<'_>)> = vec![
        ("SerialZero", call().serial(0u32)),
        ("SerialZero", MessageBuilder::method_return(0u32)),
        ("Name", MessageBuilder::method_call("a", "M")),
        ("Name", MessageBuilder::method_call("/a", "M.M")),
        ("Name", call().interface("a")),
        ("Name", call().destination("")),
        ("Name", call().sender(":")),
        ("Name", MessageBuilder::error("Failed", 1u32)),
        ("Nul", call().body(|body| done(body.str("a\0")))),
        ("Name", call().body(|body| done(body.object_path("a")))),
        ("Signature", call().body(|body| done(body.signature("a")))),
        ("Signature", call().body(|body| done(body.structure(|_| {})))),
        ("Signature", call().body(|body| done(body.array("", |_| {})))),
        ("Signature", call().body(|body| done(body.array("a", |_| {})))),
        (
            "Signature",
            call().body(|body| done(body.variant("yy", |body| done(body.u8(1).u8(1))))),
        ),
        (
            "Signature",
            call().body(|body| done(body.dict_entry(|body| done(body.u8(1).u8(1))))),
        ),
        (
            "WrongType",
            call().body(|body| done(body.array("u", |body| done(body.i32(1))))),
        ),
        (
            "WrongType",
            call().body(|body| done(body.variant("y", |body| done(body.u8(1).u8(1))))),
        ),
        (
            "WrongType",
            call()
                .body(|body| done(body.array("(yy)", |body| done(body.structure(|body| done(body.u8(1))))))),
        ),
        (
            "WrongType",
            call().body(|body| done(body.array("as", |body| done(body.array("o", |_| {}))))),
        ),
        (
            "WrongType",
            call().body(|body| done(body.array("as", |body| done(body.array("", |_| {}))))),
        ),
        ("Incomplete", call().body(|body| done(body.variant("y", |_| {})))),
        ("BodyWithoutSignature", call().body_parts("", &[1])),
        ("TrailingBytes", call().body_parts("y", &[1, 1])),
        ("Signature", call().body_parts("a", &[1, 1])),
    ];
    for (index, (expected, builder)) in cases.into_iter().enumerate() {
        let mut out = vec![9];
        let error = builder.build_into(&mut out).unwrap_err();
        let said = format!("{error:?}");
        let trailing = expected == "BodyWithoutSignature" && said.starts_with("TrailingBytes");
        assert!(said.starts_with(expected) || trailing, "case {index}: {said}");
        assert_eq!(out, [9], "case {index}");
    }
}

#[test]
fn all_parts_are_there() {
    let flags = Flags::NO_REPLY_EXPECTED | Flags::NO_AUTO_START;
    let (signature, body) = {
        let mut writer = BodyWriter::new(Endian::Big);
        writer.array("{sv}", |writer| {
            writer.dict_entry(|writer| {
                writer
                    .str("key")
                    .variant("as", |writer| done(writer.str_array(["a", "b"])));
            });
        });
        writer.finish().unwrap()
    };
    let mut out = vec![1; 5];
    MessageBuilder::error("a.b.C", 9u32)
        .endian(Endian::Big)
        .serial(8u32)
        .flags(flags)
        .destination(":1.1")
        .sender(":1.2")
        .unix_fds(3)
        .body_parts(&signature, &body)
        .build_into(&mut out)
        .unwrap();
    let message = Message::parse(bytes::Bytes::from(out).slice(5..)).unwrap();
    assert_eq!(
        format!("{message:?}"),
        "Message { type: Error, serial: 8, flags: Flags(0x03), reply_serial: 9, sender: \":1.2\", destination: \":1.1\", \
         error_name: \"a.b.C\", unix_fds: 3, signature: \"a{sv}\", body_length: 38 }"
    );
    assert!(message.flags().contains(Flags::NO_AUTO_START));
    assert!(!message.flags().contains(Flags::ALLOW_INTERACTIVE_AUTHORIZATION));
    assert_eq!((message.path(), message.member()), (None, None));
    assert_eq!(message.body_slice(), body);
}
