//! Whatever the pieces are that a message arrives in, the verdict is the one that it gets when it is parsed at once.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::body::validate::validate_by_recursion;
use common::{Source, arbitrary_body, build};

#[path = "../../tests/common/mod.rs"]
mod common;

/// The verdict of the recursive validator, which needs the whole message; `None` where that is not all there, or more.
fn at_once(bytes: &[u8]) -> Option<Result<String, MessageError>> {
    let lengths = Lengths::read(bytes).ok().flatten()?;
    if lengths.total() != bytes.len() {
        return None;
    }
    let header = match lengths.endian {
        Endian::Little => parse::<false>(bytes, lengths),
        Endian::Big => parse::<true>(bytes, lengths),
    };
    Some(header.map(|header| format!("{header:?}")))
}

fn parse<const BIG: bool>(bytes: &[u8], lengths: Lengths) -> Result<Header, MessageError> {
    let header = message::parse_header::<BIG, false>(bytes, lengths)?;
    validate_by_recursion::<BIG, true>(bytes, lengths.header(), header.signature(bytes))?;
    Ok(header)
}

fn in_pieces(
    bytes: &[u8],
    is_long: bool,
    cuts: impl IntoIterator<Item = usize>,
) -> Result<String, MessageError> {
    let lengths = Lengths::read(bytes).unwrap().unwrap();
    let mut arrival = Arrival::new(lengths);
    arrival.is_long = is_long;
    for cut in cuts {
        arrival.advance(&bytes[..cut]);
        assert_eq!(arrival.seen(), cut);
    }
    let message = arrival.finish(Bytes::copy_from_slice(bytes))?;
    assert_eq!(message.bytes(), bytes);
    Ok(format!("{:?}", message.header()))
}

/// Every cut, and all cuts together; the header in one go, and field by field.
#[track_caller]
fn check(bytes: &[u8]) {
    let Some(expected) = at_once(bytes) else { return };
    let whole = Message::parse(Bytes::copy_from_slice(bytes));
    assert_eq!(
        whole.map(|message| format!("{:?}", message.header())),
        expected,
        "{bytes:?}"
    );
    for is_long in [false, true] {
        for cut in 0..=bytes.len() {
            assert_eq!(
                in_pieces(bytes, is_long, [cut]),
                expected,
                "cut at {cut}: {bytes:?}"
            );
        }
        assert_eq!(in_pieces(bytes, is_long, 0..bytes.len()), expected, "{bytes:?}");
        assert_eq!(
            in_pieces(bytes, is_long, (0..bytes.len()).step_by(3)),
            expected,
            "{bytes:?}"
        );
    }
}

/// A method return with this body, right or wrong, in both byte orders.
#[track_caller]
fn check_body(signature: &[u8], body: impl Fn(&dyn Fn(u32) -> [u8; 4]) -> Vec<u8>) {
    for endian in [Endian::Little, Endian::Big] {
        check(&reply(
            endian,
            signature,
            &body(&|number| endian.u32_bytes(number)),
        ));
    }
}

fn reply(endian: Endian, signature: &[u8], body: &[u8]) -> Vec<u8> {
    let mut fields = vec![5, 1, b'u', 0];
    fields.extend(endian.u32_bytes(1));
    fields.extend([8, 1, b'g', 0, signature.len() as u8]);
    fields.extend(signature);
    fields.push(0);
    with_fields(endian, 2, &fields, body)
}

fn with_fields(endian: Endian, message_type: u8, fields: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![endian.flag(), message_type, 0, 1];
    bytes.extend(endian.u32_bytes(body.len() as u32));
    bytes.extend(endian.u32_bytes(1));
    bytes.extend(endian.u32_bytes(fields.len() as u32));
    bytes.extend(fields);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body);
    bytes
}

fn damage(bytes: &mut [u8], faults: &[(u16, u8)]) {
    for &(at, byte) in faults {
        let at = at as usize % bytes.len();
        bytes[at] = byte;
    }
}

/// Faults near the values that matter: small numbers, type codes, text.
fn faults() -> impl Strategy<Value = Vec<(u16, u8)>> {
    let byte = prop_oneof![
        4 => 0u8..12,
        2 => proptest::sample::select(b"yabsogv(){}/u".to_vec()),
        1 => any::<u8>(),
    ];
    proptest::collection::vec((any::<u16>(), byte), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn valid_and_damaged_messages(choices in proptest::collection::vec(any::<u8>(), 0..150), faults in faults()) {
        let mut source = Source(&choices);
        let values = arbitrary_body(&mut source);
        let Some(mut bytes) = build(&mut source, &values) else { return Ok(()) };
        damage(&mut bytes[16..], &faults);
        check(&bytes);
    }

    #[test]
    fn arbitrary_bodies(
        big in any::<bool>(),
        signature in "(a{0,3}[ybusogv]|a\\(v[ybos]a?[ysv]\\)|a\\{s(v|a[sy]|\\(vu\\))\\}|\\(a[yv](\\(as\\)|o)\\)){1,3}",
        body in proptest::collection::vec(prop_oneof![
            6 => Just(0u8),
            3 => 1u8..9,
            2 => proptest::sample::select(b"ybusogva(/".to_vec()),
            1 => any::<u8>(),
        ], 0..60),
    ) {
        prop_assume!(crate::signature::check(signature.as_bytes()).is_ok());
        let endian = if big { Endian::Big } else { Endian::Little };
        check(&reply(endian, signature.as_bytes(), &body));
    }

    #[test]
    fn texts(
        text in "([a-z]|ü|日|𐍈|/|\\x00){0,12}",
        is_path in any::<bool>(),
        faults in faults(),
        behind in 0u8..2,
        extra in 0usize..3,
    ) {
        let mut text = text.into_bytes();
        if is_path {
            text.insert(0, b'/');
        }
        if !text.is_empty() {
            damage(&mut text, &faults);
        }
        let signature: &[u8] = if is_path { b"o" } else { b"s" };
        check_body(signature, |number| {
            let mut body = number((text.len() + extra) as u32).to_vec();
            body.extend(&text);
            body.push(behind);
            body
        });
        check_body(b"v", |number| {
            let mut body = vec![1, signature[0], 0, 0];
            body.extend(number(text.len() as u32));
            body.extend(&text);
            body.push(behind);
            body
        });
    }

    #[test]
    fn arbitrary_fields(
        big in any::<bool>(),
        message_type in 0u8..6,
        fields in proptest::collection::vec((0u8..12, proptest::sample::select(vec!["o", "s", "u", "g", "v", "as", "(yv)"]),
            prop_oneof![4 => 0usize..6, 2 => 254usize..258, 1 => 505usize..520], 0u8..20), 0..5),
        faults in faults(),
        damaged in any::<bool>(),
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let mut bytes = Vec::new();
        for (code, type_code, length, flaw) in fields {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend([code, type_code.len() as u8]);
            bytes.extend(type_code.as_bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(if type_code == "(yv)" { 8 } else { 4 }), 0);
            match type_code {
                "g" => {
                    bytes.extend([1, b'y', 0]);
                }
                "v" => bytes.extend([1, b'y', 0, 7]),
                "(yv)" => bytes.extend([7, 1, b'y', 0, 7]),
                "u" => bytes.extend(endian.u32_bytes(length as u32)),
                "as" => {
                    bytes.extend(endian.u32_bytes(6));
                    bytes.extend(endian.u32_bytes(1));
                    bytes.extend([b'x', 0]);
                }
                _ => {
                    let mut text: Vec<u8> = "/a".bytes().cycle().take(length / 2 * 2).collect();
                    if type_code == "s" {
                        text = "a.".bytes().cycle().take(length).collect();
                    }
                    bytes.extend(endian.u32_bytes(text.len() as u32));
                    bytes.extend(&text);
                    bytes.push(u8::from(flaw == 0));
                }
            }
        }
        if damaged && !bytes.is_empty() {
            damage(&mut bytes, &faults);
        }
        let bytes = with_fields(endian, message_type, &bytes, &[]);
        let expected = at_once(&bytes).unwrap();
        let long = bytes.len() > 300;
        for cut in (0..bytes.len()).step_by(if long { 7 } else { 1 }) {
            prop_assert_eq!(in_pieces(&bytes, true, [cut]), expected.clone());
        }
        for step in [1, 2, 5, 100] {
            prop_assert_eq!(in_pieces(&bytes, true, (0..bytes.len()).step_by(step)), expected.clone());
        }
    }
}

/// What fuzzing has found, and its seeds.
#[test]
fn the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut checked = 0;
    for target in ["message", "body"] {
        for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            let bytes = match (target, &data[..]) {
                ("message", data) => data.to_vec(),
                (_, [order, length, rest @ ..]) if rest.len() >= usize::from(*length) => {
                    let (signature, body) = rest.split_at(usize::from(*length));
                    let endian = if order & 1 == 0 {
                        Endian::Little
                    } else {
                        Endian::Big
                    };
                    reply(endian, signature, body)
                }
                _ => continue,
            };
            if bytes.len() < 3000 && at_once(&bytes).is_some() {
                check(&bytes);
                checked += 1;
            }
        }
    }
    assert!(checked > 500, "{checked}");
}

#[test]
fn nested_to_the_limit() {
    for depth in 60..68u32 {
        // Variants within each other.
        check_body(b"v", |_| {
            let mut body = [1, b'v', 0].repeat(depth as usize - 1);
            body.extend([1, b'y', 0, 7]);
            body
        });
        // Structs in a variant in structs.
        let structs = |count: usize| {
            let mut text = vec![b'('; count];
            text.push(b'v');
            text.extend(vec![b')'; count]);
            text
        };
        let (outer, inner) = (structs(32), structs(depth as usize - 33));
        check_body(&outer, |_| {
            let mut body = vec![inner.len() as u8];
            body.extend(&inner);
            body.push(0);
            body.resize(body.len().next_multiple_of(8), 0);
            body.extend([1, b'y', 0, 7]);
            body
        });
    }
    // Arrays within each other, the innermost with elements and without.
    for element in [&b"y"[..], b"s", b"(y)", b"(a(yv)s)", b"{sa{sv}}"] {
        for (length, count) in [(0, 0), (4, 1), (8, 1), (8, 2), (12, 3)] {
            let mut signature = vec![b'a'; 4];
            signature.extend(element);
            check_body(&signature, |number| {
                let mut body = Vec::new();
                for level in 0..4 {
                    body.extend(number(length + 4 * (3 - level)));
                }
                for _ in 0..count {
                    body.extend(number(0));
                }
                body
            });
        }
    }
}

#[test]
fn arrays_of_arrays_of_long_types() {
    let element = format!("({})", "y".repeat(100));
    for signature in [
        format!("aa{element}"),
        format!("a(a{element}a{element}s)"),
        format!("aaa{element}"),
    ] {
        for length in [32, 36, 40] {
            check_body(signature.as_bytes(), |number| {
                let mut body = number(length).to_vec();
                body.extend(number(0).repeat(9));
                body
            });
        }
        // In a variant, which the recursive validator leaves to the other.
        check_body(b"v", |number| {
            let mut body = vec![signature.len() as u8];
            body.extend(signature.bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(8), 0);
            body.extend(number(32));
            body.extend(number(0).repeat(9));
            body
        });
    }
}
