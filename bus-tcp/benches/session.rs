//! A session of `bus-tcp` beside the same TLS connection without one, in one run: throughput in one direction, and the
//! time of a question and its answer.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

use bus_tcp::carrier::{BoxCarrier, Dial, Door};
use bus_tcp::limits::Terms;
use bus_tcp::tls::{Identities, Key, TlsDial, TlsDoor, provider};
use bus_tcp::{ListenOptions, Listener, connect};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// Bytes that go one way before one comes back.
const BULK: usize = 8 << 20;
const QUESTION: usize = 64;

/// Client and hosts have a processor each, the same for both kinds: where the scheduler puts a thread changes the time of a
/// question and its answer by a factor of two.
fn pin(processor: usize) {
    let mut set = CpuSet::new();
    if set.set(processor).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One end, used by a task, as programs do: what runs right under `block_on` is woken by way of the kernel.
struct Client(Option<Box<dyn Stream>>);

impl Client {
    fn ask(&mut self, runtime: &Runtime, kind: u8, bytes: &'static [u8]) {
        let mut stream = self.0.take().unwrap();
        self.0 = runtime
            .block_on(runtime.spawn(async move {
                ask(&mut *stream, kind, bytes).await;
                Some(stream)
            }))
            .unwrap();
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The far end: answers each byte of a kind. 0: a question follows. 1: much follows.
async fn serve(mut stream: impl Stream) {
    let mut buf = vec![0; 64 * 1024];
    while let Ok(kind) = stream.read_u8().await {
        let mut left = if kind == 0 { QUESTION } else { BULK };
        while left > 0 {
            let most = left.min(buf.len());
            left -= stream.read(&mut buf[..most]).await.unwrap();
        }
        stream.write_all(&buf[..QUESTION]).await.unwrap();
        stream.flush().await.unwrap();
    }
}

async fn ask(stream: &mut (impl Stream + ?Sized), kind: u8, bytes: &[u8]) {
    stream.write_u8(kind).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream.read_exact(&mut [0; QUESTION]).await.unwrap();
}

/// A host on a thread of its own; how to reach it.
fn host(session: bool) -> TlsDial {
    let (ready, address) = mpsc::channel();
    let (host_key, client_key) = (
        Key::generate(&provider()).unwrap().0,
        Key::generate(&provider()).unwrap().0,
    );
    let pins = vec![host_key.pin()];
    let identities = Identities::default().pin(client_key.pin(), "client");
    thread::spawn(move || {
        pin(1);
        runtime().block_on(async {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ready.send(socket.local_addr().unwrap()).unwrap();
            let door = TlsDoor::raw_key(provider(), socket, &host_key, identities).unwrap();
            if session {
                let listener = Listener::new(ListenOptions::default()).unwrap();
                listener.open(door);
                let session = listener.accept().await.unwrap();
                tokio::spawn(serve(session)).await.unwrap();
            } else {
                let heard = door.hear(door.accept().await.unwrap()).await.unwrap();
                let (carrier, _): (BoxCarrier, _) = door.admit(heard).await.unwrap();
                tokio::spawn(serve(carrier)).await.unwrap();
            }
        });
    });
    let address = address.recv().unwrap().to_string();
    TlsDial::raw_key(provider(), address, &client_key, pins, &Terms::DEFAULT).unwrap()
}

/// Both, in turns: what the machine does meanwhile it does to both.
fn paired(c: &mut Criterion) {
    pin(0);
    let runtime = runtime();
    let (mut bare, mut session) = runtime.block_on(async {
        let bare = host(false).dial(None).await.unwrap();
        (
            Client(Some(Box::new(bare))),
            Client(Some(Box::new(connect(host(true), Terms::DEFAULT).unwrap()))),
        )
    });
    let bulk: &'static [u8] = vec![7; BULK].leak();
    for (name, kind, bytes) in [("bulk 8 MiB", 1, bulk), ("question 64 B", 0, &bulk[..QUESTION])] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("bare TLS", |b| {
            b.iter(|| bare.ask(&runtime, kind, bytes));
        });
        group.bench_function("session", |b| {
            b.iter(|| session.ask(&runtime, kind, bytes));
        });
        group.finish();
        let (mut of_bare, mut of_session) = (Vec::new(), Vec::new());
        let long = if std::env::args().any(|argument| argument == "--test") {
            0
        } else {
            4
        };
        let until = Instant::now() + Duration::from_secs(long);
        while of_bare.is_empty() || Instant::now() < until {
            let began = Instant::now();
            bare.ask(&runtime, kind, bytes);
            let middle = Instant::now();
            session.ask(&runtime, kind, bytes);
            of_bare.push(middle - began);
            of_session.push(middle.elapsed());
        }
        of_bare.sort();
        of_session.sort();
        let median = |times: &[Duration]| times[times.len() / 2];
        eprintln!(
            "{name}, in turns: bare {:?}, session {:?}: {:+.1} %",
            median(&of_bare),
            median(&of_session),
            (median(&of_session).as_secs_f64() / median(&of_bare).as_secs_f64() - 1.0) * 100.0
        );
    }
}

criterion_group!(benches, paired);
criterion_main!(benches);
