//! What a client costs, beside zbus, in turns: both are tasks of the same tokio runtime, talk with the same dbus-daemon, and end
//! with the same Rust value. The bus answers the calls itself, and signals come from a socket that writes what was built before,
//! so that no library but the one that is measured has a part in it.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a bench ends where something fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use bus_client::{Connection, Event, Rule};
use bus_wire::MessageBuilder;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_core::Stream;
use tokio::runtime::Runtime;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = calls, signals, memory
}
criterion_main!(benches);

const DRIVER: &str = "org.freedesktop.DBus";
const PATH: &str = "/org/freedesktop/DBus";

/// Counts what is allocated.
struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

#[allow(unsafe_code, reason = "an allocator")]
// SAFETY: it is the system's; only the sizes are counted besides.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A dbus-daemon of our own.
struct Bus {
    child: Child,
    directory: tempfile::TempDir,
}

impl Bus {
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .arg(format!(
                "--address=unix:path={}",
                directory.path().join("bus").display()
            ))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: dbus-daemon not found");
            return None;
        };
        let mut address = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut address).unwrap();
        Some(Self { child, directory })
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.directory.path().join("bus").display())
    }

    async fn ours(&self) -> Connection {
        Connection::address(&self.address()).connect().await.unwrap()
    }

    async fn zbus(&self) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(&*self.address());
        builder.build().await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

async fn call_ours(client: &Connection) -> String {
    let call = client.call(DRIVER, PATH, "org.freedesktop.DBus.GetNameOwner", &DRIVER);
    call.await.unwrap()
}

async fn call_zbus(client: &zbus::Connection) -> String {
    let reply = client.call_method(Some(DRIVER), PATH, Some(DRIVER), "GetNameOwner", &DRIVER);
    reply.await.unwrap().body().deserialize().unwrap()
}

fn calls(criterion: &mut Criterion) {
    let Some(bus) = Bus::start() else { return };
    let runtime = runtime();
    let (ours, theirs) = runtime.block_on(async { (bus.ours().await, bus.zbus().await) });
    let mut group = criterion.benchmark_group("one call at a time");
    group.bench_function("bus-client", |bencher| {
        bencher.iter(|| runtime.block_on(call_ours(&ours)));
    });
    group.bench_function("zbus", |bencher| {
        bencher.iter(|| runtime.block_on(call_zbus(&theirs)));
    });
    group.finish();
    let mut group = criterion.benchmark_group("64 in flight");
    group.throughput(Throughput::Elements(64));
    group.bench_function("bus-client", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let tasks = [(); 64].map(|()| {
                    let client = ours.clone();
                    tokio::spawn(async move { call_ours(&client).await })
                });
                for task in tasks {
                    task.await.unwrap();
                }
            });
        });
    });
    group.bench_function("zbus", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let tasks = [(); 64].map(|()| {
                    let client = theirs.clone();
                    tokio::spawn(async move { call_zbus(&client).await })
                });
                for task in tasks {
                    task.await.unwrap();
                }
            });
        });
    });
    group.finish();
}

/// So many signals are one stream.
const SIGNALS: u64 = 2000;

/// A peer of the bus that sends what was built before, and knows nothing else.
fn sender(bus: &Bus) -> UnixStream {
    let mut socket = UnixStream::connect(bus.directory.path().join("bus")).unwrap();
    let uid: String = nix::unistd::geteuid()
        .to_string()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    socket
        .write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())
        .unwrap();
    let mut answer = [0; 256];
    let _ = socket.read(&mut answer).unwrap();
    let hello = MessageBuilder::method_call(PATH, "Hello")
        .destination(DRIVER)
        .interface(DRIVER)
        .serial(1_u32)
        .build()
        .unwrap();
    socket.write_all(b"BEGIN\r\n").unwrap();
    socket.write_all(&hello).unwrap();
    socket
}

fn built() -> Vec<u8> {
    let signals = (0..SIGNALS).flat_map(|number| {
        MessageBuilder::signal("/ticker", "com.example.Ticker", "Tick")
            .serial(number as u32 + 2)
            .encode(&number)
            .unwrap()
    });
    signals.collect()
}

fn signals(criterion: &mut Criterion) {
    let Some(bus) = Bus::start() else { return };
    let runtime = runtime();
    let bytes = built();
    let mut group = criterion.benchmark_group("a stream of signals");
    group.throughput(Throughput::Elements(SIGNALS));
    {
        let ours = runtime.block_on(bus.ours());
        let ticks = ours
            .signals::<u64>(Rule::signal("com.example.Ticker", "Tick"))
            .unwrap();
        runtime.block_on(call_ours(&ours));
        let mut sender = sender(&bus);
        group.bench_function("bus-client", |bencher| {
            bencher.iter(|| {
                sender.write_all(&bytes).unwrap();
                runtime.block_on(async {
                    for number in 0..SIGNALS {
                        match ticks.next().await {
                            Some(Event::Signal(tick)) => assert_eq!(tick, number),
                            missed => panic!("{missed:?}"),
                        }
                    }
                });
            });
        });
    }
    let theirs = runtime.block_on(bus.zbus());
    let rule = "type='signal',interface='com.example.Ticker',member='Tick'";
    let most = std::num::NonZeroUsize::new(10_000);
    let stream = zbus::MessageStream::for_match_rule(rule, &theirs, most);
    let mut stream = runtime.block_on(stream).unwrap();
    let mut sender = sender(&bus);
    group.bench_function("zbus", |bencher| {
        bencher.iter(|| {
            sender.write_all(&bytes).unwrap();
            runtime.block_on(async {
                for number in 0..SIGNALS {
                    let next =
                        std::future::poll_fn(|context| std::pin::Pin::new(&mut stream).poll_next(context));
                    let message = next.await.unwrap().unwrap();
                    let tick: u64 = message.body().deserialize().unwrap();
                    assert_eq!(tick, number);
                }
            });
        });
    });
    group.finish();
}

/// Not a time: what the heap holds for each connection that has made a call and listens for a signal, printed.
fn memory(_: &mut Criterion) {
    const CONNECTIONS: usize = 100;
    let Some(bus) = Bus::start() else { return };
    let runtime = runtime();
    runtime.block_on(async {
        let rule = || Rule::signal("com.example.Ticker", "Tick");
        // What comes with the first of them is not theirs.
        let _first = (bus.ours().await, bus.zbus().await);
        let before = HELD.load(Ordering::SeqCst);
        let mut ours = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = bus.ours().await;
            let stream = client.signals::<u64>(rule()).unwrap();
            call_ours(&client).await;
            ours.push((client, stream));
        }
        let of_ours = (HELD.load(Ordering::SeqCst) - before) / CONNECTIONS as isize;
        drop(ours);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = HELD.load(Ordering::SeqCst);
        let mut theirs = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = bus.zbus().await;
            let rule = "type='signal',interface='com.example.Ticker',member='Tick'";
            let stream = zbus::MessageStream::for_match_rule(rule, &client, None)
                .await
                .unwrap();
            call_zbus(&client).await;
            theirs.push((client, stream));
        }
        let of_theirs = (HELD.load(Ordering::SeqCst) - before) / CONNECTIONS as isize;
        eprintln!("memory per connection: bus-client {of_ours} bytes, zbus {of_theirs} bytes of heap");
    });
}
