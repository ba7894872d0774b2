//! Types of a program's own, with their D-Bus types derived.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use bus_wire::{
    Decode, DecodeError, DecodeFault, DecodeOwned, Encode, Endian, Message, MessageBuilder, OwnedObjectPath,
    Type, Value, Variant, body_signature_of, signature_of,
};

fn message<T: Encode + ?Sized>(endian: Endian, value: &T) -> Message {
    let bytes = MessageBuilder::method_call("/", "M")
        .endian(endian)
        .encode(value)
        .unwrap();
    Message::parse(bytes.into()).unwrap()
}

#[track_caller]
fn check<T: Encode + DecodeOwned + PartialEq + Debug>(signature: &str, value: T) {
    assert_eq!(signature_of::<T>().as_str(), signature);
    for endian in [Endian::Little, Endian::Big] {
        let message = message(endian, &value);
        assert_eq!(message.signature(), signature);
        assert_eq!(message.decode::<T>().unwrap(), value);
    }
}

#[derive(Debug, Clone, PartialEq, Type, Encode, Decode)]
struct Point {
    x: i32,
    r#type: String,
    more: Vec<(u8, Variant<u64>)>,
}

#[derive(Debug, Clone, PartialEq, Type, Encode, Decode)]
struct Pair(u8, Point);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Type, Encode, Decode)]
struct Id(u64);

#[derive(Debug, Clone, PartialEq, Type, Encode, Decode)]
struct One {
    only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Type, Encode, Decode)]
#[repr(u8)]
enum Level {
    Low = 1,
    High = 200,
}

#[derive(Debug, Clone, Copy, PartialEq, Type, Encode, Decode)]
#[repr(i32)]
enum Sign {
    Minus = -1,
    Plus,
}

#[derive(Debug, Clone, Copy, PartialEq, Type, Encode, Decode)]
#[bus(rename_all = "kebab-case")]
enum Colour {
    DarkRed,
    #[bus(rename = "light blue")]
    Blue,
}

fn point() -> Point {
    Point {
        x: -1,
        r#type: "a".to_owned(),
        more: vec![(1, Variant(2))],
    }
}

#[test]
fn structs_and_enums() {
    check("(isa(yv))", point());
    check("(y(isa(yv)))", Pair(7, point()));
    check("t", Id(7));
    check("a{tt}", BTreeMap::from([(Id(1), Id(2))]));
    check("(b)", One { only: true });
    check("y", Level::High);
    check("ay", vec![Level::Low, Level::High]);
    check("ai", vec![Sign::Minus, Sign::Plus]);
    check("as", vec![Colour::DarkRed, Colour::Blue]);
    assert_eq!(message(Endian::Little, &Level::High).body_bytes(), [200]);
    assert_eq!(
        message(Endian::Little, &Colour::DarkRed)
            .decode::<&str>()
            .unwrap(),
        "dark-red"
    );
    // Its fields may also be the arguments.
    let arguments = message(Endian::Little, &(7u8, (-1i32, "a", vec![(1u8, Variant(2u64))])));
    assert_eq!(arguments.decode::<Pair>().unwrap(), Pair(7, point()));
    assert_eq!(body_signature_of::<Pair>(), signature_of::<Pair>());
}

#[derive(Debug, Clone, PartialEq, Default, Type, Encode, Decode)]
#[bus(dict, rename_all = "PascalCase")]
struct Options {
    name: String,
    max_level: Option<u32>,
    #[bus(default)]
    items: Vec<String>,
    #[bus(rename = "other-name")]
    any: Option<Value>,
    wrapped: Option<Variant<u8>>,
}

#[derive(Debug, Clone, PartialEq, Default, Type, Encode, Decode)]
#[bus(dict, default)]
struct Rest {
    id: u32,
    name: String,
    #[bus(rest)]
    rest: HashMap<String, Value>,
}

type Entries = BTreeMap<String, Value>;

#[track_caller]
fn entries<T: Encode>(value: &T) -> Entries {
    message(Endian::Little, value).decode().unwrap()
}

fn dict(entries: &[(&str, Value)]) -> Entries {
    entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

#[test]
fn dicts() {
    let all = Options {
        name: "a".to_owned(),
        max_level: Some(3),
        items: vec!["b".to_owned()],
        any: Some(Value::from(1u8)),
        wrapped: Some(Variant(2)),
    };
    check("a{sv}", all.clone());
    check("a{sv}", Options::default());
    check(
        "a{sa{sv}}",
        BTreeMap::from([
            ("a".to_owned(), all.clone()),
            ("b".to_owned(), Options::default()),
        ]),
    );
    let items = Value::of(&vec!["b"]).unwrap();
    assert_eq!(
        entries(&all),
        dict(&[
            ("Name", "a".into()),
            ("MaxLevel", 3u32.into()),
            ("Items", items.clone()),
            ("other-name", 1u8.into()),
            ("Wrapped", 2u8.into()),
        ])
    );
    // What is `None` is left out; what is not there is `None`, or the default.
    let least = Options {
        name: "a".to_owned(),
        ..Options::default()
    };
    let no_items = Value::of(&Vec::<String>::new()).unwrap();
    assert_eq!(
        entries(&least),
        dict(&[("Name", "a".into()), ("Items", no_items)])
    );
    let read = |entries: &[(&str, Value)]| message(Endian::Big, &dict(entries)).decode::<Options>();
    assert_eq!(read(&[("Name", "a".into())]).unwrap(), least);
    // Unknown keys are passed over, with whatever they hold.
    let unknown = Value::of(&(1u8, BTreeMap::from([("a", Variant(1u64))]))).unwrap();
    assert_eq!(
        read(&[("A", unknown.clone()), ("Name", "a".into()), ("Z", unknown)]).unwrap(),
        least
    );
    // What must be there, and of which type.
    let missing = read(&[("Items", items.clone())]).unwrap_err();
    assert!(
        matches!(missing.fault(), DecodeFault::Missing { key: "Name", .. }),
        "{missing}"
    );
    let wrong = read(&[("Items", items), ("Name", 1u8.into())]).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "[\"Name\"]<variant>: byte 52 of the body: the type is 'y', not 's'"
    );
}

#[test]
fn the_rest_of_a_dict() {
    let rest = Rest {
        id: 1,
        name: "a".to_owned(),
        rest: HashMap::from([
            ("b".to_owned(), Value::from(true)),
            ("c".to_owned(), Value::from("d")),
        ]),
    };
    check("a{sv}", rest.clone());
    assert_eq!(entries(&rest).len(), 4);
    check("a{sv}", Rest::default());
    assert_eq!(
        message(Endian::Little, &Entries::new()).decode::<Rest>().unwrap(),
        Rest::default()
    );
}

#[derive(Debug, PartialEq, Type, Encode, Decode)]
struct Borrowed<'a, T> {
    text: &'a str,
    bytes: &'a [u8],
    value: T,
}

#[derive(Debug, PartialEq, Type, Encode, Decode)]
#[bus(dict)]
struct BorrowedDict<'a> {
    text: &'a str,
    path: Option<OwnedObjectPath>,
}

#[test]
fn borrowed_and_generic() {
    let message = self::message(Endian::Little, &("a", &[1u8][..], (1u8, "b")));
    let borrowed: Borrowed<'_, (u8, &str)> = message.decode().unwrap();
    assert_eq!(
        borrowed,
        Borrowed {
            text: "a",
            bytes: &[1],
            value: (1, "b")
        }
    );
    let message = self::message(
        Endian::Little,
        &BorrowedDict {
            text: "a",
            path: None,
        },
    );
    assert_eq!(message.decode::<BorrowedDict<'_>>().unwrap().text, "a");
}

#[test]
fn errors_name_the_field() {
    let error = |message: &Message| message.decode::<Vec<(Pair, Level)>>().unwrap_err();
    let value = |level: u8| {
        message(
            Endian::Little,
            &vec![((1u8, (1i32, "a", vec![(1u8, Variant(level))])), level)],
        )
    };
    let wrong: DecodeError = error(&value(1));
    assert_eq!(
        wrong.to_string(),
        "[0].0.1.more[0].1<variant>: byte 36 of the body: the type is 'y', not 't'"
    );
    let wrong = message(Endian::Little, &vec![(1u8, 3u8)]);
    assert_eq!(
        wrong.decode::<Vec<(u8, Level)>>().unwrap_err().to_string(),
        "[0].1: byte 10 of the body: Level has no variant 3"
    );
    let wrong = message(Endian::Little, &"red");
    assert_eq!(
        wrong.decode::<Colour>().unwrap_err().to_string(),
        "byte 8 of the body: Colour has no variant \"red\""
    );
}

/// A crate that has its own notions of what common names mean.
mod shadowed {
    #![allow(dead_code, non_camel_case_types, unused_macros)]

    mod std {}
    mod core {}
    mod alloc {}
    mod bus_wire {}
    struct Result;
    struct Option;
    struct String;
    struct Vec;
    struct Box;
    struct Ok;
    struct Err;
    struct Some;
    struct None;
    trait Default {}
    trait From {}
    macro_rules! matches {
        () => {};
    }

    use ::bus_wire as wire;

    #[derive(wire::Type, wire::Encode, wire::Decode)]
    pub(super) struct Plain<'a> {
        pub(super) reader: u8,
        pub(super) encoder: &'a str,
    }

    #[derive(wire::Type, wire::Encode, wire::Decode)]
    #[bus(dict, crate = "wire")]
    pub(super) struct Dict {
        pub(super) key: u8,
        pub(super) entry: ::std::option::Option<u8>,
        #[bus(default)]
        pub(super) reader: u8,
        #[bus(rest)]
        pub(super) rest: ::std::collections::HashMap<::std::string::String, wire::Value>,
    }

    #[derive(wire::Type, wire::Encode, wire::Decode)]
    #[repr(u32)]
    pub(super) enum Number {
        Ok,
        Err,
    }

    #[derive(wire::Type, wire::Encode, wire::Decode)]
    pub(super) enum Text {
        Some,
        None,
    }
}

#[test]
fn names_that_mean_something_else() {
    let message = self::message(
        Endian::Little,
        &shadowed::Plain {
            reader: 1,
            encoder: "a",
        },
    );
    let plain: shadowed::Plain<'_> = message.decode().unwrap();
    assert_eq!((plain.reader, plain.encoder), (1, "a"));
    let message = self::message(
        Endian::Little,
        &shadowed::Dict {
            key: 1,
            entry: Some(2),
            reader: 3,
            rest: HashMap::new(),
        },
    );
    let dict: shadowed::Dict = message.decode().unwrap();
    assert_eq!(
        (dict.key, dict.entry, dict.reader, dict.rest.len()),
        (1, Some(2), 3, 0)
    );
    let message = self::message(Endian::Little, &(shadowed::Number::Err, shadowed::Text::None));
    let both: (shadowed::Number, shadowed::Text) = message.decode().unwrap();
    assert!(matches!(both, (shadowed::Number::Err, shadowed::Text::None)));
}

/// What cannot be, and what the compiler says to it.
#[test]
fn mistakes() {
    trybuild::TestCases::new().compile_fail("tests/derive/*.rs");
}
