//! Bodies as Rust types.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::fmt::Debug;

use bus_wire::serde_body::{Variant, from_body, to_body_in};
use bus_wire::{Endian, Message, MessageBuilder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

fn message<T: Serialize + ?Sized>(endian: Endian, signature: &str, value: &T) -> Message {
    let (written, body) = to_body_in(endian, signature, value).unwrap();
    assert_eq!(written, signature);
    let bytes = MessageBuilder::method_call("/", "M")
        .endian(endian)
        .body_parts(signature, &body)
        .build()
        .unwrap();
    Message::parse(bytes.into()).unwrap()
}

/// In both byte orders.
#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(signature: &str, value: T) {
    for endian in [Endian::Little, Endian::Big] {
        let message = message(endian, signature, &value);
        assert_eq!(from_body::<T>(&message).unwrap(), value);
    }
}

#[track_caller]
fn check_refused<T: Serialize>(signature: &str, value: T) {
    let result = to_body_in(Endian::Little, signature, &value);
    assert!(result.is_err(), "{signature}: {result:?}");
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Point {
    x: i32,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Options {
    level: Option<u32>,
    text: String,
    extra: Option<Variant<Vec<u8>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Colour {
    Red,
    #[serde(rename = "light blue")]
    Blue,
}

#[test]
fn values_round_trip() {
    check("", ());
    check("s", "text".to_owned());
    check("s", ("text".to_owned(),));
    check(
        "ybnqiuxtd",
        (1u8, true, -2i16, 3u16, -4i32, 5u32, -6i64, 7u64, 0.5f64),
    );
    check(
        "sogh",
        ("a".to_owned(), "/a".to_owned(), "a{sv}".to_owned(), 2u32),
    );
    check(
        "(is)",
        Point {
            x: -1,
            name: "a".to_owned(),
        },
    );
    check(
        "is",
        Point {
            x: -1,
            name: "a".to_owned(),
        },
    );
    check("(is)", (1, "a".to_owned()));
    check("((is)u)", (Point::default(), 1u32));
    check(
        "a(is)",
        vec![
            Point::default(),
            Point {
                x: 1,
                name: "b".to_owned(),
            },
        ],
    );
    check("aas", vec![vec![], vec!["a".to_owned(), "b".to_owned()], vec![]]);
    check("ay", vec![1u8, 2, 3]);
    check("at", [1u64, 2, 3]);
    check(
        "a{su}",
        BTreeMap::from([("a".to_owned(), 1u32), ("b".to_owned(), 2)]),
    );
    check(
        "a{ya{sas}}",
        BTreeMap::from([(1u8, BTreeMap::from([("b".to_owned(), vec!["c".to_owned()])]))]),
    );
    check("v", Variant::new("as".to_owned(), vec!["a".to_owned()]));
    check("uv", (1u32, Variant::new("(is)".to_owned(), Point::default())));
    check("vvv", (1u8, "text".to_owned(), true));
    check("asas", (vec!["a".to_owned()], vec!["b".to_owned()]));
    check("s", Colour::Blue);
    check("yuiv", (Colour::Red, Colour::Blue, Colour::Blue, Colour::Red));
}

#[test]
fn a_struct_is_a_dict() {
    let all = Options {
        level: Some(3),
        text: "a".to_owned(),
        extra: Some(Variant::new("ay".to_owned(), vec![1, 2])),
    };
    check("a{sv}", all.clone());
    check("a{sv}", Options::default());
    check(
        "a{sv}u",
        (
            Options {
                level: Some(1),
                ..Options::default()
            },
            5u32,
        ),
    );
    check(
        "a{sa{sv}}",
        BTreeMap::from([("a".to_owned(), all), ("b".to_owned(), Options::default())]),
    );
    // Unknown keys are passed over, with whatever they hold.
    let more = BTreeMap::from([
        (
            "unknown",
            Variant::new("(ia{sv})", (1, BTreeMap::<String, Variant<u8>>::new())),
        ),
        ("also", Variant::new("(ia{sv})", (2, BTreeMap::new()))),
    ]);
    let message = message(Endian::Little, "a{sv}", &more);
    assert_eq!(from_body::<Options>(&message).unwrap(), Options::default());
}

#[test]
fn borrowed_from_the_message() {
    let message = message(
        Endian::Little,
        "saya{ss}",
        &("text", &[1u8, 2, 3][..], BTreeMap::from([("a", "b")])),
    );
    let (text, bytes, map): (&str, &[u8], BTreeMap<&str, &str>) = from_body(&message).unwrap();
    assert_eq!((text, bytes, map["a"]), ("text", &[1u8, 2, 3][..], "b"));
    assert!(message.body_bytes().as_ptr_range().contains(&text.as_ptr()));
}

#[test]
fn what_does_not_fit_is_refused() {
    check_refused("s", 1u32);
    check_refused("u", "a");
    check_refused("i", 1u32);
    check_refused("y", 1u32);
    check_refused("s", ());
    check_refused("su", ("a",));
    check_refused("s", ("a", 1u32));
    check_refused("as", vec![1u32]);
    check_refused("(is)", (1,));
    check_refused("o", "not a path");
    check_refused("g", "(");
    check_refused("s", "a\0b");
    check_refused("a", vec![1u8]);
    check_refused("a{us}", BTreeMap::from([("a", "b")]));
    check_refused(
        "a{su}",
        Options {
            level: Some(1),
            text: "a".to_owned(),
            extra: None,
        },
    );
    check_refused("s", None::<String>);
    check_refused("as", vec![None::<String>]);
    check_refused("v", vec![1u8]);
    check_refused("s", Variant::new("s", "a"));
    check_refused("v", Variant::new("u", "a"));
    check_refused("v", Variant::new("ss", "a"));
    check_refused("n", 1i8);
}

#[test]
fn what_is_asked_for_must_be_there() {
    let message = message(Endian::Little, "su", &("a", 300u32));
    assert_eq!(
        from_body::<(String, u32)>(&message).unwrap(),
        ("a".to_owned(), 300)
    );
    assert_eq!(
        from_body::<(String, u64)>(&message).unwrap(),
        ("a".to_owned(), 300)
    );
    for error in [
        from_body::<(u32, u32)>(&message).map(|_| ()).unwrap_err(),
        from_body::<(String, u8)>(&message).map(|_| ()).unwrap_err(),
        from_body::<(String, u32, u32)>(&message).map(|_| ()).unwrap_err(),
        from_body::<(String,)>(&message).map(|_| ()).unwrap_err(),
        from_body::<String>(&message).map(|_| ()).unwrap_err(),
        from_body::<()>(&message).unwrap_err(),
    ] {
        assert!(!error.to_string().is_empty());
    }
}
