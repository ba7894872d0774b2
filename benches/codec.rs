//! What one message costs on the wire's side: parse (with its complete validation), build, stitch, frame.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::io::IoSlice;

use bus_wire::{BodyWriter, Framer, Message, MessageBuilder, SendQueue, stitch_header};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

criterion_group!(benches, parse, validate, build, stitch, frame, queue);
criterion_main!(benches);

const PATH: &str = "/org/example/Object";
const INTERFACE: &str = "org.example.Interface";

/// A method call such as most are: a destination, an interface, two strings.
fn call() -> MessageBuilder<'static> {
    MessageBuilder::method_call(PATH, "Method")
        .interface(INTERFACE)
        .destination("org.example.Service")
        .serial(7u32)
        .body(|body| {
            body.str("a string").str("and another one");
        })
}

fn bytes(builder: MessageBuilder<'_>) -> Bytes {
    builder.build().expect("a valid message").into()
}

fn with_body(write: impl FnOnce(&mut BodyWriter)) -> Bytes {
    bytes(
        MessageBuilder::signal(PATH, INTERFACE, "Signal")
            .serial(7u32)
            .body(write),
    )
}

fn parse(criterion: &mut Criterion) {
    let small = bytes(
        MessageBuilder::method_call(PATH, "Method")
            .destination(":1.42")
            .serial(7u32),
    );
    let reply = bytes(
        MessageBuilder::method_return(7u32)
            .destination(":1.42")
            .serial(8u32),
    );
    let call = bytes(call());
    let mut group = criterion.benchmark_group("parse");
    for (name, message) in [
        ("call without a body", small),
        ("call with two strings", call),
        ("reply", reply),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| Message::parse(black_box(message.clone())))
        });
    }
}

/// Bodies whose validation is work.
fn validate(criterion: &mut Criterion) {
    let properties = with_body(|body| {
        body.array("{sv}", |entries| {
            for number in 0..32 {
                entries.dict_entry(|entry| {
                    entry.str(&format!("Property{number}")).variant("s", |value| {
                        value.str("the value of a property");
                    });
                });
            }
        });
    });
    let structures = with_body(|body| {
        body.array("(isau)", |entries| {
            for number in 0..64 {
                entries.structure(|entry| {
                    entry.i32(number).str("name").array("u", |numbers| {
                        numbers.u32(1).u32(2).u32(3);
                    });
                });
            }
        });
    });
    let strings = with_body(|body| {
        body.str_array(std::iter::repeat_n("org.example.SomeName", 256));
    });
    let doubles = with_body(|body| {
        body.array("d", |numbers| {
            for number in 0..1024 {
                numbers.f64(f64::from(number));
            }
        });
    });
    let blob = with_body(|body| {
        body.byte_slice(&[0; 64 * 1024]);
    });
    let text = with_body(|body| {
        body.str(&"gr\u{fc}\u{df}e ".repeat(8 * 1024));
    });
    let mut group = criterion.benchmark_group("validate");
    for (name, message) in [
        ("a{sv} of 32", properties),
        ("a(isau) of 64", structures),
        ("as of 256", strings),
        ("ad of 1024", doubles),
        ("ay of 64 KiB", blob),
        ("s of 64 KiB", text),
    ] {
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| Message::parse(black_box(message.clone())))
        });
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    let mut out = Vec::new();
    group.bench_function("call with two strings", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(call()).build_into(&mut out)
        });
    });
    group.bench_function("reply", |bencher| {
        bencher.iter(|| {
            out.clear();
            MessageBuilder::method_return(black_box(7u32))
                .destination(":1.42")
                .serial(8u32)
                .build_into(&mut out)
        });
    });
}

fn stitch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stitch");
    let plain = Message::parse(bytes(call())).expect("a valid message");
    let forged = Message::parse(bytes(call().sender(":1.666"))).expect("a valid message");
    let mut out = Vec::new();
    for (name, message) in [("sender appended", plain), ("sender replaced", forged)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                stitch_header(black_box(&message), ":1.42", &mut out)
            });
        });
    }
}

/// A read that brought 64 calls.
fn frame(criterion: &mut Criterion) {
    let one = bytes(call());
    let chunk = Bytes::from(one.repeat(64));
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 calls in one chunk", |bencher| {
        let mut framer = Framer::new(1 << 20);
        bencher.iter(|| {
            framer.push(chunk.clone(), []);
            let mut count = 0;
            while let Ok(Some(framed)) = framer.next() {
                black_box(framed);
                count += 1;
            }
            assert_eq!(count, 64);
        });
    });
}

/// 64 messages queued and written at once.
fn queue(criterion: &mut Criterion) {
    let one = bytes(call());
    let body = Bytes::from(vec![0; 4096]);
    let mut group = criterion.benchmark_group("send queue");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 small messages", |bencher| {
        let mut queue = SendQueue::new();
        bencher.iter(|| {
            for _ in 0..64 {
                queue.push(&one);
            }
            write_out(&mut queue)
        });
    });
    group.bench_function("64 messages with a shared body of 4 KiB", |bencher| {
        let mut queue = SendQueue::new();
        bencher.iter(|| {
            for _ in 0..64 {
                queue.push(&one);
                queue.push_shared(body.clone());
            }
            write_out(&mut queue)
        });
    });
}

fn write_out(queue: &mut SendQueue) -> u64 {
    let mut written = 0;
    while !queue.is_empty() {
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(64);
        queue.next_write(&mut slices, 64);
        let length = slices.iter().map(|slice| slice.len() as u64).sum();
        drop(slices);
        queue.advance(length);
        written += length;
    }
    written
}
