//! Rust values to messages and back, beside zbus and rustbus: the same bytes, the same Rust value in the end, the same checks
//! (all of a body is validated: zbus does that only when asked, with `Body::validate`, and so does rustbus).
//!
//! Where a library has nothing for a row, the row is without it: rustbus builds no struct out of a dict.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::borrow::Cow;
use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use bus_wire::{
    DecodeOwned, Encode, Endian, InterfaceName, Message, MessageBuilder, ObjectPath, OwnedObjectPath, Value,
};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rustbus::message_builder::MarshalledMessage;
use rustbus::wire::unmarshal::{unmarshal_dynamic_header, unmarshal_header, unmarshal_next_message};
use zbus::wire::serialized::{Context, Data};

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .sample_size(20);
    targets = build, header, small, numbers, texts, dicts, objects
}
criterion_main!(benches);

const PATH: &str = "/org/freedesktop/Notifications";
const NAME: &str = "org.freedesktop.Notifications";
const MEMBER: &str = "Notify";

fn message<T: Encode + ?Sized>(endian: Endian, body: &T) -> Bytes {
    let bytes = MessageBuilder::method_call(PATH, MEMBER)
        .destination(NAME)
        .interface(NAME)
        .endian(endian)
        .serial(7u32)
        .encode(body);
    bytes.expect("a valid message").into()
}

/// The same bytes at this distance from an address that is a multiple of 8: the memory, and where in it.
fn placed(bytes: &[u8], shift: usize) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut memory = vec![0; bytes.len() + 16];
    let start = memory.as_ptr().align_offset(8) + shift;
    let place = start..start + bytes.len();
    memory[place.clone()].copy_from_slice(bytes);
    (memory, place)
}

/// A message as each library receives it.
struct Received {
    ours: Bytes,
    zbus: Data<'static, 'static>,
    rustbus: Vec<u8>,
}

impl Received {
    fn new(endian: Endian, bytes: &[u8], shift: usize) -> Self {
        let (ours, place) = placed(bytes, shift);
        let ours = Bytes::from(ours).slice(place);
        let order = match endian {
            Endian::Little => zbus::wire::Endian::Little,
            Endian::Big => zbus::wire::Endian::Big,
        };
        let (memory, place) = placed(bytes, shift);
        // Its alignment counts from where the memory begins, unless it is told otherwise.
        let position = place.start.wrapping_neg() % 8;
        let zbus = Data::new(memory, Context::new(order, position)).slice(place);
        Self {
            ours,
            zbus,
            rustbus: bytes.to_vec(),
        }
    }

    fn zbus(&self) -> zbus::message::Message {
        zbus_message(self.zbus.clone())
    }
}

#[expect(unsafe_code, reason = "zbus has no other way to make a message of bytes")]
fn zbus_message(data: Data<'static, 'static>) -> zbus::message::Message {
    // SAFETY: the bytes are a valid message, as `Message::parse` has found.
    unsafe { zbus::message::Message::from_bytes(data) }.expect("a valid message")
}

fn rustbus_message(bytes: &[u8]) -> MarshalledMessage {
    let (fixed, header) = unmarshal_header(bytes, 0).expect("a valid header");
    let (length, fields) = unmarshal_dynamic_header(&header, bytes, fixed).expect("valid fields");
    let (_, message) =
        unmarshal_next_message(&header, fields, bytes, fixed + length).expect("a valid message");
    message
}

fn ours<T: DecodeOwned>(received: &Received) -> T {
    let message = Message::parse(received.ours.clone()).expect("a valid message");
    message.decode().expect("the body is of this type")
}

macro_rules! zbus {
    ($received:expr, $rust:ty) => {{
        let message = $received.zbus();
        let body = message.body();
        body.validate().expect("a valid body");
        body.deserialize::<$rust>().expect("the body is of this type")
    }};
}

macro_rules! rustbus {
    ($received:expr, $rust:ty) => {{
        let message = rustbus_message(&$received.rustbus);
        message.body.validate().expect("a valid body");
        message
            .body
            .parser()
            .get::<$rust>()
            .expect("the body is of this type")
    }};
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build a call");
    let actions = ["default", "Open", "later", "Later"];
    let (path, name) = (
        ObjectPath::from_static(PATH),
        bus_wire::WellKnownName::from_static(NAME),
    );
    let interface = InterfaceName::from_static(NAME);
    let member = bus_wire::MemberName::from_static(MEMBER);
    let ours = |out: &mut Vec<u8>| {
        let builder = MessageBuilder::method_call(path, member)
            .destination(name)
            .interface(interface);
        let body = black_box(("mail", 7u32, "A new message", &actions, true, -1i32));
        builder
            .serial(7u32)
            .encode_into(&body, out)
            .expect("a valid message");
    };
    group.bench_function(BenchmarkId::new("fresh buffer", "bus-wire"), |bencher| {
        bencher.iter(|| {
            let mut out = Vec::new();
            ours(&mut out);
            out
        });
    });
    let mut out = Vec::new();
    group.bench_function(BenchmarkId::new("reused buffer", "bus-wire"), |bencher| {
        bencher.iter(|| {
            out.clear();
            ours(&mut out);
            black_box(out.len())
        });
    });
    // It has no way to use a buffer again.
    group.bench_function(BenchmarkId::new("fresh buffer", "zbus"), |bencher| {
        let path = zbus::ObjectPath::from_static_str_unchecked(PATH);
        let name = zbus::names::WellKnownName::from_static_str(NAME).expect("a valid name");
        let interface = zbus::names::InterfaceName::from_static_str(NAME).expect("a valid name");
        let member = zbus::names::MemberName::from_static_str(MEMBER).expect("a valid name");
        bencher.iter(|| {
            zbus::message::Message::method_call(path.as_ref(), member.as_ref())
                .destination(name.as_ref())
                .interface(interface.as_ref())
                .build(&black_box((
                    "mail",
                    7u32,
                    "A new message",
                    &actions[..],
                    true,
                    -1i32,
                )))
                .expect("a valid message")
        });
    });
    let rustbus_call = || {
        rustbus::MessageBuilder::new()
            .call(MEMBER)
            .on(PATH)
            .with_interface(NAME)
            .at(NAME)
            .build()
    };
    let push = |message: &mut MarshalledMessage| {
        let body = &mut message.body;
        let (app, id, text, actions, flag, last) =
            black_box(("mail", 7u32, "A new message", &actions[..], true, -1i32));
        body.push_param5(app, id, text, actions, flag)
            .expect("valid values");
        body.push_param(last).expect("a valid value");
    };
    group.bench_function(BenchmarkId::new("fresh buffer", "rustbus"), |bencher| {
        bencher.iter(|| {
            let mut message = rustbus_call();
            push(&mut message);
            let mut out = Vec::new();
            rustbus::wire::marshal::marshal(&message, 7, &mut out).expect("a valid message");
            out.extend_from_slice(message.get_buf());
            out
        });
    });
    let mut out = Vec::new();
    let mut message = rustbus_call();
    group.bench_function(BenchmarkId::new("reused buffer", "rustbus"), |bencher| {
        bencher.iter(|| {
            out.clear();
            message.body.reset();
            push(&mut message);
            rustbus::wire::marshal::marshal(&message, 7, &mut out).expect("a valid message");
            out.extend_from_slice(message.get_buf());
            black_box(out.len())
        });
    });
}

/// A message without a body, and who it is for.
fn header(criterion: &mut Criterion) {
    let received = Received::new(Endian::Little, &message(Endian::Little, &()), 0);
    let mut group = criterion.benchmark_group("header only");
    group.bench_function("bus-wire", |bencher| {
        bencher.iter(|| {
            let message = Message::parse(received.ours.clone()).expect("a valid message");
            let texts = (
                message.path(),
                message.interface(),
                message.member(),
                message.destination(),
            );
            black_box(texts);
        });
    });
    group.bench_function("zbus", |bencher| {
        bencher.iter(|| {
            let message = received.zbus();
            let header = message.header();
            black_box((
                header.path(),
                header.interface(),
                header.member(),
                header.destination(),
            ));
        });
    });
    group.bench_function("rustbus", |bencher| {
        bencher.iter(|| {
            let header = rustbus_message(&received.rustbus).dynheader;
            black_box((
                &header.object,
                &header.interface,
                &header.member,
                &header.destination,
            ));
        });
    });
}

/// One row: from bytes to this value, with three functions that must return the same.
fn row<T: PartialEq>(
    criterion: &mut Criterion,
    name: &str,
    received: &Received,
    ours: fn(&Received) -> T,
    zbus: fn(&Received) -> T,
    rustbus: Option<fn(&Received) -> T>,
) {
    assert!(ours(received) == zbus(received), "{name}");
    let mut group = criterion.benchmark_group(format!("decode {name}"));
    group.bench_function("bus-wire", |bencher| bencher.iter(|| ours(black_box(received))));
    group.bench_function("zbus", |bencher| bencher.iter(|| zbus(black_box(received))));
    if let Some(rustbus) = rustbus {
        assert!(ours(received) == rustbus(received), "{name}");
        group.bench_function("rustbus", |bencher| bencher.iter(|| rustbus(black_box(received))));
    }
    group.finish();
}

fn small(criterion: &mut Criterion) {
    type Reply = (String, u32, String, Vec<String>, i32);
    let values = (
        "mail",
        7u32,
        "A new message",
        ["default", "Open", "later", "Later"],
        -1i32,
    );
    let received = Received::new(Endian::Little, &message(Endian::Little, &values), 0);
    row::<Reply>(
        criterion,
        "five arguments",
        &received,
        ours,
        |received| zbus!(received, Reply),
        Some(|received| {
            let message = rustbus_message(&received.rustbus);
            message.body.validate().expect("a valid body");
            message.body.parser().get5().expect("the body is of this type")
        }),
    );
}

fn numbers(criterion: &mut Criterion) {
    let bytes = vec![7u8; 64 * 1024];
    let received = Received::new(Endian::Little, &message(Endian::Little, &bytes), 0);
    row::<usize>(
        criterion,
        "ay of 64 KiB, borrowed",
        &received,
        |received| {
            let message = Message::parse(received.ours.clone()).expect("a valid message");
            let bytes: &[u8] = message.decode().expect("the body is of this type");
            black_box(bytes).len()
        },
        |received| {
            let message = received.zbus();
            let body = message.body();
            body.validate().expect("a valid body");
            let bytes: &[u8] = body.deserialize().expect("the body is of this type");
            black_box(bytes).len()
        },
        Some(|received| {
            let message = rustbus_message(&received.rustbus);
            message.body.validate().expect("a valid body");
            let bytes: &[u8] = message.body.parser().get().expect("the body is of this type");
            black_box(bytes).len()
        }),
    );
    let numbers: Vec<u64> = (0..10_240).collect();
    for (name, endian, shift) in [
        ("at of 10,240", Endian::Little, 0),
        ("at of 10,240, misaligned", Endian::Little, 3),
        ("at of 10,240, big endian", Endian::Big, 0),
    ] {
        let received = Received::new(endian, &message(endian, &numbers), shift);
        row::<Vec<u64>>(
            criterion,
            name,
            &received,
            ours,
            |received| zbus!(received, Vec<u64>),
            Some(|received| rustbus!(received, Vec<u64>)),
        );
    }
    // Without a copy, where that can be.
    let received = Received::new(Endian::Little, &message(Endian::Little, &numbers), 0);
    row::<usize>(
        criterion,
        "at of 10,240, borrowed if it can be",
        &received,
        |received| {
            let message = Message::parse(received.ours.clone()).expect("a valid message");
            let numbers: Cow<'_, [u64]> = message.decode().expect("the body is of this type");
            black_box(numbers).len()
        },
        |received| black_box(zbus!(received, Vec<u64>)).len(),
        Some(|received| {
            let message = rustbus_message(&received.rustbus);
            message.body.validate().expect("a valid body");
            let numbers: Cow<'_, [u64]> = message.body.parser().get().expect("the body is of this type");
            black_box(numbers).len()
        }),
    );
}

fn texts(criterion: &mut Criterion) {
    let texts: Vec<String> = (0..1024)
        .map(|number| format!("org.example.Name{number}"))
        .collect();
    let received = Received::new(Endian::Little, &message(Endian::Little, &texts), 0);
    row::<Vec<String>>(
        criterion,
        "as of 1,024",
        &received,
        ours,
        |received| zbus!(received, Vec<String>),
        Some(|received| rustbus!(received, Vec<String>)),
    );
}

/// What a program reads out of a dict.
#[derive(Debug, PartialEq, Default, bus_wire::Type, bus_wire::Encode, bus_wire::Decode)]
#[bus(dict, rename_all = "PascalCase")]
struct Few {
    property0: Option<String>,
    property10: Option<u32>,
    property20: Option<bool>,
    property30: Option<String>,
    property40: Option<u32>,
    property50: Option<bool>,
    property60: Option<String>,
    property70: Option<u32>,
    property80: Option<bool>,
    property90: Option<String>,
    missing: Option<u64>,
}

/// The same for zbus.
#[derive(Debug, Default, zbus::DeserializeDict, zbus::wire::Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
struct ZbusFew {
    property0: Option<String>,
    property10: Option<u32>,
    property20: Option<bool>,
    property30: Option<String>,
    property40: Option<u32>,
    property50: Option<bool>,
    property60: Option<String>,
    property70: Option<u32>,
    property80: Option<bool>,
    property90: Option<String>,
    missing: Option<u64>,
}

impl From<ZbusFew> for Few {
    fn from(few: ZbusFew) -> Self {
        Self {
            property0: few.property0,
            property10: few.property10,
            property20: few.property20,
            property30: few.property30,
            property40: few.property40,
            property50: few.property50,
            property60: few.property60,
            property70: few.property70,
            property80: few.property80,
            property90: few.property90,
            missing: few.missing,
        }
    }
}

/// The value of a property of that number.
fn property(number: u32) -> Value {
    match (number / 10) % 3 {
        0 => Value::from("the value of a property"),
        1 => Value::from(number),
        _ => Value::from(true),
    }
}

fn properties(from: u32, count: u32) -> HashMap<String, Value> {
    (from..from + count)
        .map(|number| (format!("Property{number}"), property(number)))
        .collect()
}

/// How many there are: values of different libraries cannot be compared.
fn dicts(criterion: &mut Criterion) {
    let received = Received::new(Endian::Little, &message(Endian::Little, &properties(0, 100)), 0);
    row::<usize>(
        criterion,
        "a{sv} of 100 to a map",
        &received,
        |received| black_box(ours::<HashMap<String, Value>>(received)).len(),
        |received| black_box(zbus!(received, HashMap<String, zbus::OwnedVariant>)).len(),
        Some(|received| {
            let message = rustbus_message(&received.rustbus);
            message.body.validate().expect("a valid body");
            entries(black_box(
                &message.body.parser().get_param().expect("a valid value"),
            ))
        }),
    );
    row::<Few>(
        criterion,
        "a{sv} of 100 to a struct",
        &received,
        ours,
        |received| zbus!(received, ZbusFew).into(),
        None,
    );
}

/// The reply to GetManagedObjects.
fn objects(criterion: &mut Criterion) {
    type Objects = HashMap<OwnedObjectPath, HashMap<String, HashMap<String, Value>>>;
    let objects: Objects = (0..500)
        .map(|number| {
            let path = OwnedObjectPath::new(format!("/org/example/object/{number}")).expect("a valid path");
            let interfaces = ["org.example.Interface", "org.example.Other"];
            let interfaces = interfaces.map(|name| (name.to_owned(), properties(number, 5)));
            (path, HashMap::from(interfaces))
        })
        .collect();
    let received = Received::new(Endian::Little, &message(Endian::Little, &objects), 0);
    row::<usize>(
        criterion,
        "a{oa{sa{sv}}} of 500 objects",
        &received,
        |received| black_box(ours::<Objects>(received)).len(),
        |received| {
            type Objects =
                HashMap<zbus::OwnedObjectPath, HashMap<String, HashMap<String, zbus::OwnedVariant>>>;
            black_box(zbus!(received, Objects)).len()
        },
        Some(|received| {
            let message = rustbus_message(&received.rustbus);
            message.body.validate().expect("a valid body");
            entries(black_box(
                &message.body.parser().get_param().expect("a valid value"),
            ))
        }),
    );
}

fn entries(value: &rustbus::params::Param<'_, '_>) -> usize {
    use rustbus::params::{Container, Param};

    match value {
        Param::Container(Container::Dict(dict)) => dict.map.len(),
        Param::Container(_) | Param::Base(_) => 0,
    }
}
