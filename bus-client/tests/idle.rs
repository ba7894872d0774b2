//! What a bus that is gone costs. In a process of its own, whose time, threads and log are measured.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_client::{Connection, Event, Missed, Rule};
use support::Bus;
use tracing::span;

/// So many instances of inotify has this process.
fn instances() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|to| to.to_str() == Some("anon_inode:inotify"))
        .count()
}

/// Where there are no instances of inotify to be had.
fn without_inotify(test: &str, driver: &Driver, seconds: u64) {
    if support::inside(test, "echo 0 > /proc/sys/user/max_inotify_instances") {
        assert!(nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).is_err());
        costs_nothing(driver, seconds, false);
    }
}

/// Counts the lines of the log that a program shows if it is told nothing: from INFO on.
static LINES: AtomicU64 = AtomicU64::new(0);
struct Log;

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        LINES.fetch_add(1, Ordering::SeqCst);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Memory of this process, in bytes.
fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Who drives the connection, and where: a runtime has to live as long as it.
enum Driver {
    Thread,
    Task(tokio::runtime::Runtime),
}

impl Driver {
    fn task() -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        Self::Task(runtime.worker_threads(1).enable_all().build().unwrap())
    }

    fn connect(&self, bus: &Bus) -> Connection {
        match self {
            Self::Thread => bus.builder().connect_thread().unwrap(),
            Self::Task(runtime) => runtime.block_on(bus.builder().connect()).unwrap(),
        }
    }
}

const STREAMS: u64 = 1000;
const CALLERS: usize = 100;

fn costs_nothing(driver: &Driver, seconds: u64, with_inotify: bool) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let _ = tracing::subscriber::set_global_default(Log);
    let Some(mut bus) = Bus::start() else { return };
    let client = driver.connect(&bus);
    let second = driver.connect(&bus);
    let streams: Vec<_> = (0..STREAMS)
        .map(|index| {
            client
                .messages(Rule::signal("com.example.Counter", &format!("Tick{index}")))
                .unwrap()
        })
        .collect();
    let id = || client.call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &());
    let old = id().wait().unwrap();
    let before = instances();
    let lines = LINES.load(Ordering::SeqCst);
    bus.kill();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            // Longer than any outage, as the default of 25 s is not.
            let call = id().no_timeout();
            std::thread::spawn(move || call.wait())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        instances() - before,
        usize::from(with_inotify),
        "one instance for both connections"
    );
    // The measured one is alone from here on.
    second.close();
    drop(second);
    std::thread::sleep(Duration::from_millis(200));
    let (cpu, woken, held) = (support::cpu(), support::wake_ups(), memory());
    std::thread::sleep(Duration::from_secs(seconds));
    let (cpu, woken) = (support::cpu() - cpu, support::wake_ups() - woken);
    let grown = memory().saturating_sub(held);
    let lines = LINES.load(Ordering::SeqCst) - lines;
    eprintln!(
        "{seconds} s without a bus: {cpu:?} of CPU, {woken} wake-ups, {grown} bytes more, {lines} lines of log"
    );
    assert!(cpu < Duration::from_millis(50) && woken < 60, "{cpu:?}, {woken}");
    assert!(grown <= 64 << 10, "memory has grown by {grown} bytes");
    assert_eq!(lines, 2, "one line of each connection");
    bus.start_again();
    let ids: BTreeSet<_> = callers
        .into_iter()
        .map(|caller| caller.join().unwrap().unwrap())
        .collect();
    assert!(
        ids.len() == 1 && !ids.contains(&old),
        "all by the new bus: {ids:?}"
    );
    for stream in streams {
        let missed = stream.wait_next().unwrap();
        assert!(
            matches!(missed, Some(Event::Missed(Missed::Outage { same_bus: false }))),
            "{missed:?}"
        );
    }
    // Who is back needs neither the instance nor the thread any more.
    assert!(
        (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            instances() == 0 && support::threads("bus-lookout") == 0
        }),
        "the look-out has not ended"
    );
}

#[test]
fn a_bus_that_is_gone_costs_nothing_with_a_thread() {
    costs_nothing(&Driver::Thread, 4, true);
}

#[test]
fn a_bus_that_is_gone_costs_nothing_with_a_task() {
    costs_nothing(&Driver::task(), 4, true);
}

#[test]
fn a_bus_that_is_gone_costs_nothing_without_inotify() {
    let test = "a_bus_that_is_gone_costs_nothing_without_inotify";
    without_inotify(test, &Driver::Thread, 4);
}

/// `cargo test -p bus-client --test idle -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn a_minute_without_a_bus_costs_nothing_with_a_thread() {
    costs_nothing(&Driver::Thread, 60, true);
}

#[test]
#[ignore = "takes a minute"]
fn a_minute_without_a_bus_costs_nothing_with_a_task() {
    costs_nothing(&Driver::task(), 60, true);
}

#[test]
#[ignore = "takes a minute"]
fn a_minute_without_a_bus_costs_nothing_without_inotify_with_a_thread() {
    let test = "a_minute_without_a_bus_costs_nothing_without_inotify_with_a_thread";
    without_inotify(test, &Driver::Thread, 60);
}

#[test]
#[ignore = "takes a minute"]
fn a_minute_without_a_bus_costs_nothing_without_inotify_with_a_task() {
    let test = "a_minute_without_a_bus_costs_nothing_without_inotify_with_a_task";
    without_inotify(test, &Driver::task(), 60);
}
