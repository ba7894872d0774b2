//! A session of `bus-tcp` beside the same TLS connection without one, in one run: throughput in one direction, and the
//! time of a question and its answer. Once used by the two programs themselves, and once by relays, which programs reach
//! over a socket, as `bus carry` is.
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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, UnixStream};
use tokio::runtime::{Builder, Runtime};

/// Bytes that go one way before one comes back.
const BULK: usize = 8 << 20;
const QUESTION: usize = 64;
/// What a relay reads at a time.
const PIECE: usize = 64 * 1024;

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

/// What is between the programs: the carrier itself, or a relay at either end.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Direct,
    Relay,
}

/// The program's end of a socket whose other end is relayed.
fn relayed(mut carrier: impl Stream + 'static) -> UnixStream {
    let (program, mut relay) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let _ = copy_bidirectional_with_sizes(&mut relay, &mut carrier, PIECE, PIECE).await;
    });
    program
}

async fn serve_by(way: Way, carrier: impl Stream + 'static) {
    let served = match way {
        Way::Direct => tokio::spawn(serve(carrier)),
        Way::Relay => tokio::spawn(serve(relayed(carrier))),
    };
    served.await.unwrap();
}

fn client(way: Way, carrier: impl Stream + 'static) -> Client {
    Client(Some(match way {
        Way::Direct => Box::new(carrier),
        Way::Relay => Box::new(relayed(carrier)),
    }))
}

/// A host on a thread of its own; how to reach it.
fn host(way: Way, session: bool) -> TlsDial {
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
                serve_by(way, session).await;
            } else {
                let heard = door.hear(door.accept().await.unwrap()).await.unwrap();
                let (carrier, _): (BoxCarrier, _) = door.admit(heard).await.unwrap();
                serve_by(way, carrier).await;
            }
        });
    });
    let address = address.recv().unwrap().to_string();
    TlsDial::raw_key(provider(), address, &client_key, pins, &Terms::DEFAULT).unwrap()
}

fn paired(c: &mut Criterion) {
    both(c, Way::Direct, "");
    both(c, Way::Relay, ", relayed");
}

/// Both, in turns: what the machine does meanwhile it does to both.
fn both(c: &mut Criterion, way: Way, suffix: &str) {
    pin(0);
    let runtime = runtime();
    let (mut bare, mut session) = runtime.block_on(async {
        let bare = host(way, false).dial(None).await.unwrap();
        let session = connect(host(way, true), Terms::DEFAULT).unwrap();
        (client(way, bare), client(way, session))
    });
    let bulk: &'static [u8] = vec![7; BULK].leak();
    for (name, kind, bytes) in [("bulk 8 MiB", 1, bulk), ("question 64 B", 0, &bulk[..QUESTION])] {
        let name = &format!("{name}{suffix}");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("bare TLS", |b| {
            b.iter(|| bare.ask(&runtime, kind, bytes));
        });
        group.bench_function("session", |b| {
            b.iter(|| session.ask(&runtime, kind, bytes));
        });
        group.finish();
        let long = if std::env::args().any(|argument| argument == "--test") {
            Duration::ZERO
        } else {
            Duration::from_secs(8)
        };
        // So many at once that a turn of either kind takes milliseconds.
        let count = if kind == 0 { 50 } else { 1 };
        let turn = |client: &mut Client| {
            let (began, cpu) = (Instant::now(), cpu());
            for _ in 0..count {
                client.ask(&runtime, kind, bytes);
            }
            let time = began.elapsed();
            // What is done afterwards (acknowledgements, and what waits for them) is this kind's, too.
            thread::sleep(Duration::from_millis(2));
            (time.as_secs_f64() / f64::from(count), self::cpu() - cpu)
        };
        let mut turns = Vec::new();
        let until = Instant::now() + long;
        while turns.len() < 2 || Instant::now() < until {
            // Each is the first as often as the second.
            let (first, second) = if turns.len() % 2 == 0 {
                (turn(&mut bare), turn(&mut session))
            } else {
                let first = turn(&mut session);
                (turn(&mut bare), first)
            };
            turns.push((first, second));
        }
        report(name, &turns);
    }
}

/// Processor time of this process: both ends of both kinds.
fn cpu() -> Duration {
    nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID.now().unwrap().into()
}

/// Time and processor time of a turn of each kind.
type Turns = ((f64, Duration), (f64, Duration));

/// The median of the pairs, and between what half of them are: what one turn meets of the machine's moods, its pair meets as well.
fn report(name: &str, turns: &[Turns]) {
    let mut of_bare: Vec<f64> = turns.iter().map(|(bare, _)| bare.0).collect();
    let mut of_session: Vec<f64> = turns.iter().map(|(_, session)| session.0).collect();
    let ratios = turns
        .iter()
        .map(|(bare, session)| (session.0 / bare.0 - 1.0) * 100.0);
    let mut ratios: Vec<f64> = ratios.collect();
    for values in [&mut of_bare, &mut of_session, &mut ratios] {
        values.sort_by(f64::total_cmp);
    }
    let at = |values: &[f64], part: usize| values[values.len() * part / 4];
    let spent = |of: fn(&Turns) -> Duration| turns.iter().map(of).sum::<Duration>().as_secs_f64();
    let cpu = spent(|turn| turn.1.1) / spent(|turn| turn.0.1);
    eprintln!(
        "{name}, {} pairs in turns: bare {:.1} us, session {:.1} us; {:+.1} % ({:+.1} to {:+.1}); processor time {:+.1} %",
        turns.len(),
        at(&of_bare, 2) * 1e6,
        at(&of_session, 2) * 1e6,
        at(&ratios, 2),
        at(&ratios, 1),
        at(&ratios, 3),
        (cpu - 1.0) * 100.0
    );
}

criterion_group!(benches, paired);
criterion_main!(benches);
