//! Bodies as Rust types, through `Encode` and `Decode`.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use bus_wire::{
    Array, BodyReader, Decode, DecodeFault, DecodeOwned, Dict, Encode, Endian, FdIndex, Message,
    MessageBuilder, MessageError, ObjectPath, OwnedObjectPath, OwnedSignature, OwnedWellKnownName, Signature,
    Step, Structure, Value, ValueError, Variant, body_signature_of, signature_of,
};
use bytes::Bytes;
use common::{Source, arbitrary_body, build};
use proptest::prelude::*;

fn message_in<T: Encode + ?Sized>(endian: Endian, value: &T) -> Message {
    let bytes = MessageBuilder::signal("/a", "a.b", "C")
        .endian(endian)
        .encode(value)
        .unwrap();
    Message::parse(bytes.into()).unwrap()
}

fn message<T: Encode + ?Sized>(value: &T) -> Message {
    message_in(Endian::Little, value)
}

/// In both byte orders, with this signature; and as values of any type.
#[track_caller]
fn check<T: Encode + DecodeOwned + PartialEq + Debug>(signature: &str, value: T) {
    assert_eq!(body_signature_of::<T>().as_str(), signature);
    for endian in [Endian::Little, Endian::Big] {
        let message = message_in(endian, &value);
        assert_eq!(message.signature(), signature);
        assert_eq!(message.decode::<T>().unwrap(), value, "{endian:?}");
        let values = message.values().unwrap();
        let again = MessageBuilder::signal("/a", "a.b", "C")
            .endian(endian)
            .body(|body| values.iter().for_each(|value| value.write(body)))
            .build()
            .unwrap();
        assert_eq!(again, &message.bytes()[..], "{endian:?}");
    }
}

/// Also as a variant, alone and in a dict.
#[track_caller]
fn check_single<T: Encode + DecodeOwned + PartialEq + Debug + Clone>(signature: &str, value: T) {
    check(signature, (value.clone(),));
    check("v", (Variant(value.clone()),));
    check(
        "a{sv}",
        (BTreeMap::from([("a".to_owned(), Variant(value.clone()))]),),
    );
    check(&format!("a{signature}"), (vec![value.clone(), value.clone()],));
    let any = Value::of(&value).unwrap();
    assert_eq!(any.signature().as_str(), signature);
    assert_eq!(any.to::<T>().unwrap(), value);
    if signature != "v" {
        let within = Value::Variant(Box::new(any.clone()));
        assert_eq!(within.to::<T>().unwrap(), value);
    }
    assert_eq!(message(&Variant(value)).decode::<Value>().unwrap(), any);
}

fn text(text: &str) -> String {
    text.to_owned()
}

#[test]
fn values_round_trip() {
    check("", ());
    check("s", text("a"));
    check(
        "ybnqiuxtdh",
        (
            1u8,
            true,
            -2i16,
            3u16,
            -4i32,
            5u32,
            -6i64,
            7u64,
            0.5f64,
            FdIndex(1),
        ),
    );
    check_single("y", 1u8);
    check_single("b", true);
    check_single("n", i16::MIN);
    check_single("q", u16::MAX);
    check_single("i", i32::MIN);
    check_single("u", u32::MAX);
    check_single("x", i64::MIN);
    check_single("t", u64::MAX);
    check_single("d", -0.25f64);
    check_single("h", FdIndex(3));
    check_single("s", text("gr\u{fc}\u{df}e"));
    check_single("s", text(""));
    check_single("s", OwnedWellKnownName::new("a.b").unwrap());
    check_single("o", OwnedObjectPath::new("/a/b").unwrap());
    check_single("g", OwnedSignature::new(text("a{sv}")).unwrap());
    check_single("ay", vec![1u8, 2, 3]);
    check_single("ay", Vec::<u8>::new());
    check_single("ab", vec![true, false]);
    check_single("at", vec![1u64, u64::MAX]);
    check_single("at", [1u64, 2, 3]);
    check_single("as", vec![text("a"), text(""), text("b")]);
    check_single("aas", vec![vec![], vec![text("a")], vec![]]);
    check_single("a{su}", BTreeMap::from([(text("a"), 1u32), (text("b"), 2)]));
    check_single("a{su}", HashMap::from([(text("a"), 1u32)]));
    check_single(
        "a{ya{sas}}",
        BTreeMap::from([(1u8, BTreeMap::from([(text("b"), vec![text("c")])]))]),
    );
    check_single("(yt)", (1u8, 2u64));
    check_single("((yt)s)", ((1u8, 2u64), text("a")));
    check_single("a(yt)", vec![(1u8, 2u64), (3, 4)]);
    check_single("v", Value::from(1u8));
    check_single("v", Variant(text("a")));
    check_single("av", vec![Value::from(1u8), Value::from("a")]);
    check_single("v", Variant(Variant(Variant(1u8))));
}

#[test]
fn signatures_are_constants() {
    const SIGNATURE: Signature<'static> = signature_of::<HashMap<OwnedObjectPath, HashMap<String, Value>>>();
    assert_eq!(SIGNATURE.as_str(), "a{oa{sv}}");
    assert_eq!(signature_of::<&[&(u8, Cow<'_, str>)]>().as_str(), "a(ys)");
    type Sixteen = (u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8);
    assert_eq!(body_signature_of::<Sixteen>().as_str(), "y".repeat(16));
}

#[test]
fn borrowed_from_the_message() {
    let message = message(&("text", &[1u8, 2, 3][..], ObjectPath::from_static("/a")));
    let (text, bytes, path): (&str, &[u8], ObjectPath<'_>) = message.decode().unwrap();
    assert_eq!((text, bytes, path.as_str()), ("text", &[1u8, 2, 3][..], "/a"));
    let range = message.body_bytes().as_ptr_range();
    assert!(
        range.contains(&text.as_ptr()) && range.contains(&bytes.as_ptr()) && range.contains(&path.as_ptr())
    );
}

/// Borrowed where it can be, copied where the byte order or the address is another.
#[test]
fn arrays_of_numbers() {
    let numbers: Vec<u64> = (0..1000).map(|number| number << 32 | 7).collect();
    for endian in [Endian::Little, Endian::Big] {
        let message = message_in(endian, &(&numbers, true));
        for shift in 0..8 {
            let mut bytes = vec![0; message.bytes().len() + 16];
            let start = bytes.as_ptr().align_offset(8) + shift;
            bytes[start..start + message.bytes().len()].copy_from_slice(message.bytes());
            let bytes = Bytes::from(bytes).slice(start..start + message.bytes().len());
            let message = Message::parse(bytes).unwrap();
            let (read, last) = message.decode::<(Cow<'_, [u64]>, bool)>().unwrap();
            assert_eq!((&*read, last), (&*numbers, true));
            let as_is = endian == Endian::NATIVE && shift == 0;
            assert_eq!(matches!(read, Cow::Borrowed(_)), as_is, "{endian:?} {shift}");
            assert_eq!(message.decode::<(Vec<u64>, bool)>().unwrap().0, numbers);
        }
    }
}

#[track_caller]
fn check_error<T: DecodeOwned + Debug>(message: &Message, expected: &str) {
    assert_eq!(message.decode::<T>().unwrap_err().to_string(), expected);
}

#[test]
fn errors_say_where() {
    let map = BTreeMap::from([("a", vec![(Variant(1u8), "/a")]), ("b", vec![(Variant(2), "b")])]);
    let map = message(&(1u8, map));
    check_error::<(u8, u8)>(
        &map,
        "argument 1: byte 4 of the body: the type is 'a{sa(vs)}', not 'y'",
    );
    check_error::<u8>(&map, "byte 0 of the body: the type is 'ya{sa(vs)}', not 'y'");
    check_error::<(u8,)>(
        &map,
        "argument 1: byte 4 of the body: the type is 'a{sa(vs)}', not ''",
    );
    check_error::<(u8, BTreeMap<String, Vec<(Variant<u8>, String)>>, u8)>(
        &map,
        "argument 2: byte 66 of the body: the type is '', not 'y'",
    );
    check_error::<(u8, BTreeMap<String, Vec<(Variant<u16>, String)>>)>(
        &map,
        "argument 1[\"a\"][0].0<variant>: byte 27 of the body: the type is 'y', not 'q'",
    );
    let error = map
        .decode::<(u8, BTreeMap<String, Vec<(Variant<u8>, OwnedWellKnownName)>>)>()
        .unwrap_err();
    let path: Vec<_> = error.path().cloned().collect();
    let key = |key: &str| Step::Key(key.to_owned());
    assert_eq!(
        path,
        [Step::Argument(1), key("a"), Step::Index(0), Step::Position(1)]
    );
    assert!(matches!(error.fault(), DecodeFault::Value { .. }), "{error}");
    let array = message(&[1u8, 2].as_slice());
    check_error::<([u8; 3],)>(
        &array,
        "argument 0: byte 6 of the body: an array has 2 elements, not 3",
    );
    check_error::<Vec<u16>>(&array, "byte 0 of the body: the type is 'ay', not 'aq'");
    check_error::<u8>(&message(&()), "byte 0 of the body: the type is '', not 'y'");
}

#[test]
fn a_struct_may_be_the_arguments() {
    let one = message(&((1u8, 2u32),));
    let two = message(&(1u8, 2u32));
    assert_eq!((one.signature(), two.signature()), ("(yu)", "yu"));
    for message in [&one, &two] {
        assert_eq!(message.decode::<(u8, u32)>().unwrap(), (1, 2));
    }
    assert_eq!(one.decode::<((u8, u32),)>().unwrap(), ((1, 2),));
    assert!(two.decode::<((u8, u32),)>().is_err());
}

/// A value in so many variants.
fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::from(1u8), |value, _| Value::Variant(Box::new(value)))
}

#[test]
fn limits() {
    let encode = |value: &Value| MessageBuilder::signal("/a", "a.b", "C").encode(value);
    // The value itself is a variant too.
    assert_eq!(message(&nested(63)).decode::<Value>().unwrap(), nested(63));
    let error = encode(&nested(64)).unwrap_err();
    assert!(matches!(error, MessageError::TooDeep { .. }), "{error}");
    // Arguments are in no struct.
    message(&(nested(63), 1u8));
    let long = vec![0u8; 64 * 1024 * 1024];
    assert_eq!(message(&long).decode::<&[u8]>().unwrap().len(), long.len());
    let longer = vec![0u8; long.len() + 1];
    let mut out = vec![7];
    let builder = || MessageBuilder::signal("/a", "a.b", "C");
    let error = builder().encode_into(&longer, &mut out).unwrap_err();
    assert!(matches!(error, MessageError::ArrayTooLong { .. }), "{error}");
    let error = builder().encode_into(&(&long, &long), &mut out).unwrap_err();
    assert!(matches!(error, MessageError::TooLong { .. }), "{error}");
    let error = builder().encode_into(&"a\0", &mut out).unwrap_err();
    assert!(matches!(error, MessageError::Nul { .. }), "{error}");
    assert_eq!(out, [7]);
    let signature = format!("({})", "y".repeat(255));
    assert!(OwnedSignature::new(signature).is_err());
    let wide = Structure::new(vec![Value::from(1u8); 254]);
    assert!(matches!(wide, Err(ValueError::Signature(_))));
    let mut deep = Value::from(1u8);
    for _ in 0..32 {
        deep = Structure::new(vec![deep]).unwrap().into();
    }
    assert!(matches!(
        Structure::new(vec![deep]),
        Err(ValueError::Signature(_))
    ));
}

/// Bytes that are no message's, in which anything might be: what is read is valid, and not deeper than a message may be.
#[test]
fn what_was_not_validated() {
    let deep = b"\x01v\0".repeat(100_000);
    assert!(Value::decode(&mut BodyReader::new(&deep, "v", Endian::Little)).is_err());
    let structs = [b"\x03(v)\0\0\0\0".repeat(10_000), vec![0; 8]].concat();
    assert!(Value::decode(&mut BodyReader::new(&structs, "v", Endian::Little)).is_err());
    for signature in ["a!", "a()", "()", "a{vs}", "(", "a"] {
        let body = [&[signature.len() as u8], signature.as_bytes(), &[0; 32]].concat();
        let value = Value::decode(&mut BodyReader::new(&body, "v", Endian::Little));
        assert!(value.is_err(), "{signature}: {value:?}");
    }
    let many: Vec<Vec<(Variant<u8>, (u8,))>> = vec![vec![(Variant(1), (2,)); 200]; 200];
    assert_eq!(
        message(&many).decode::<Vec<Vec<(Variant<u8>, (u8,))>>>().unwrap(),
        many
    );
    assert_eq!(message(&many).values().unwrap().len(), 1);
}

#[test]
fn containers_hold_one_type() {
    let mixed = Array::try_from(vec![Value::from(1u16), Value::from("a")]).unwrap_err();
    assert_eq!(
        mixed,
        ValueError::Type {
            index: 1,
            expected: text("q"),
            found: text("s")
        }
    );
    assert_eq!(Array::try_from(vec![]), Err(ValueError::Empty));
    assert_eq!(Array::try_from(vec![Value::from(1u8)]), Err(ValueError::Bytes));
    assert_eq!(Structure::new(vec![]), Err(ValueError::Empty));
    let signature = |text| Signature::new(text).unwrap();
    let dict = |key, value, entries| Dict::new(signature(key), signature(value), entries);
    assert!(dict("v", "s", vec![]).is_err());
    assert!(dict("s", "ss", vec![]).is_err());
    assert!(dict("s", "s", vec![(Value::from("a"), Value::from(1u8))]).is_err());
    let good = dict("s", "v", vec![(Value::from("a"), nested(1))]).unwrap();
    assert_eq!(good.get("a"), Some(&nested(1)));
    assert_eq!((good.key().as_str(), good.value().as_str()), ("s", "v"));
    check("v", (Value::from(good),));
}

/// A cursor that is lent and comes back as another one reads nothing that is not there.
#[test]
fn exchanged_cursors() {
    let message = message(&(vec![((1u8, 2u64), "ab"), ((3, 4), "cd")], Variant(("x", 1u32))));
    let mut reader = message.body();
    let mut array = reader.enter_array().unwrap();
    let mut stolen = None;
    let element = array.next().unwrap().unwrap();
    element
        .decode_struct(|fields| {
            fields.decode_struct(|inner| {
                stolen = Some(inner.clone());
                Ok(())
            })
        })
        .unwrap();
    *element = stolen.unwrap();
    assert!(array.next().is_err());
    // Out of a variant.
    let mut other = message.body();
    other.skip().unwrap();
    let start = message.body();
    let result = other.decode_variant(|inside| {
        *inside = start.clone();
        Ok(())
    });
    assert!(result.is_err());
    assert_eq!(other.peek(), None);
    // An error within a variant: nothing can be read after it.
    let mut failed = message.body();
    failed.skip().unwrap();
    let result =
        failed.decode_variant(|inside| inside.decode_struct(|fields| Ok(fields.read_u32()?)).map(|_| ()));
    assert!(result.is_err() && failed.read_str().is_err());
}

/// Reads every argument as a value of any type, and writes it.
fn again(message: &Message) -> Vec<u8> {
    let values = message.values().unwrap();
    let mut builder = MessageBuilder::method_return(1u32).endian(message.endian());
    builder = builder.body(|body| values.iter().for_each(|value| value.write(body)));
    let bytes = builder.build().unwrap();
    let again = Message::parse(bytes.into()).unwrap();
    // The same through variants, which `Encode` writes.
    let wrapped = message_in(message.endian(), &values);
    assert_eq!(wrapped.decode::<Vec<Value>>().unwrap().len(), values.len());
    assert_eq!(again.signature(), message.signature());
    again.body_bytes().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is in a body, it is read as values and written again with the same bytes.
    #[test]
    fn any_body_is_read_and_written(choices in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut source = Source(&choices);
        let values = arbitrary_body(&mut source);
        let Some(bytes) = build(&mut source, &values) else { return Ok(()) };
        let message = Message::parse(bytes.into()).unwrap();
        prop_assert_eq!(again(&message), message.body_bytes());
    }

    /// What `Encode` writes, the other writer writes too.
    #[test]
    fn both_writers_agree(
        text in "[a-zA-Z\u{e4}]{0,9}", number in any::<(u8, i16, u64, f64)>(), flag in any::<bool>(),
        list in proptest::collection::vec(("[a-z]{0,5}", any::<u32>()), 0..5), big in any::<bool>(),
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let message = message_in(endian, &(&text, number, flag, &list, Variant(&list)));
        let write_list = |body: &mut bus_wire::BodyWriter| {
            body.array("(su)", |body| for (text, number) in &list {
                body.structure(|body| { body.str(text).u32(*number); });
            });
        };
        let mut writer = bus_wire::BodyWriter::new(endian);
        writer.str(&text).structure(|body| {
            body.u8(number.0).i16(number.1).u64(number.2).f64(number.3);
        }).bool(flag);
        write_list(&mut writer);
        writer.variant("a(su)", write_list);
        let (signature, bytes) = writer.finish().unwrap();
        prop_assert_eq!(message.signature(), signature);
        prop_assert_eq!(message.body_bytes(), bytes);
    }

    /// Unvalidated bytes never make it panic.
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        signature in "[ybnqiuxtdhsogv(){}a]{0,12}",
    ) {
        let mut reader = BodyReader::new(&bytes, &signature, Endian::Little);
        let _ = Value::decode(&mut reader);
        let _ = Vec::<Value>::decode(&mut BodyReader::new(&bytes, "av", Endian::Big));
        let _ = HashMap::<String, (u8, Vec<u64>)>::decode(&mut BodyReader::new(&bytes, &signature, Endian::Big));
    }
}
