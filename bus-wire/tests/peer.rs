//! The same values, written and read by zbus: the same bytes, in both byte orders.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    unreachable_pub
)]

use std::collections::BTreeMap;
use std::fmt::Debug;

use bus_wire::{
    DecodeOwned, Encode, Endian, Message, MessageBuilder, OwnedObjectPath, Value, Variant, encode_body,
};
use proptest::prelude::*;
use serde::Serialize;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{DynamicType, to_bytes};

const ORDERS: [(Endian, zbus::wire::Endian); 2] = [
    (Endian::Little, zbus::wire::Endian::Little),
    (Endian::Big, zbus::wire::Endian::Big),
];

/// Both write `ours` and `theirs` alike, and what zbus has written is read.
fn check<T, Z>(ours: &T, theirs: &Z)
where
    T: Encode + DecodeOwned + PartialEq + Debug,
    Z: Serialize + DynamicType,
{
    for (endian, their_endian) in ORDERS {
        let mut bytes = Vec::new();
        let signature = encode_body(ours, endian, &mut bytes).unwrap();
        let data: Data<'_, '_> = to_bytes(Context::new(their_endian, 0), theirs).unwrap();
        assert_eq!(bytes, data.bytes());
        let message = MessageBuilder::method_return(1u32)
            .endian(endian)
            .body_parts(signature.as_str(), data.bytes())
            .build()
            .unwrap();
        let message = Message::parse(message.into()).unwrap();
        assert_eq!(&message.decode::<T>().unwrap(), ours);
    }
}

fn variant(value: &Value) -> zbus::Variant<'_> {
    match value {
        Value::Byte(value) => (*value).into(),
        Value::Bool(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::F64(value) => (*value).into(),
        Value::Str(text) => text.as_str().into(),
        other => panic!("{other:?} is not made here"),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|number| Value::from(f64::from(number))),
        "[a-z\u{e4}]{0,9}".prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn basic_values(
        numbers in any::<(u8, bool, i16, u16, i32, u32, i64, u64)>(),
        float in any::<i32>(), text in "[ -~\u{e4}]{0,20}", path in "(/[a-z0-9_]{1,4}){1,3}",
    ) {
        let (a, b, c, d, e, f, g, h) = numbers;
        let float = f64::from(float);
        let ours = OwnedObjectPath::new(path.as_str()).unwrap();
        let theirs = zbus::ObjectPath::try_from(path.as_str()).unwrap();
        check(
            &(a, b, c, d, e, f, g, h, float, text.clone(), ours),
            &(a, b, c, d, e, f, g, h, float, text, theirs),
        );
    }

    #[test]
    fn containers(
        bytes in proptest::collection::vec(any::<u8>(), 0..9),
        numbers in proptest::collection::vec(any::<u64>(), 0..5),
        texts in proptest::collection::vec("[a-z]{0,5}", 0..5),
        structs in proptest::collection::vec(("[a-z]{0,5}", any::<u8>(), any::<u64>()), 0..4),
        map in proptest::collection::btree_map("[a-z]{0,5}", proptest::collection::vec(any::<i16>(), 0..4), 0..4),
    ) {
        let value = (bytes, numbers, texts, structs, map);
        check(&value, &value);
    }

    #[test]
    fn variants(map in proptest::collection::btree_map("[a-z]{0,5}", any_value(), 0..5), number in any::<u32>()) {
        let theirs: BTreeMap<&str, zbus::Variant<'_>> =
            map.iter().map(|(key, value)| (key.as_str(), variant(value))).collect();
        check(&(map.clone(), Variant(number)), &(theirs, zbus::Variant::from(number)));
    }
}
