//! A bus of the reference implementation is killed and started again, over and over, under load.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a process test: nothing else waits for its clock"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bus_client::{Call, Connection, Error, Event, Fate, Known, Missed, Rule, State, WhileDown};
use support::{Bus, COUNTER, Counter};

/// What became of the calls of one caller.
#[derive(Debug, Default, Clone, Copy)]
struct Fates {
    answered: u64,
    not_sent: u64,
    unknown: u64,
    unknown_ran: u64,
}

struct Load {
    counter: Arc<Counter>,
    next: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    fn begin(&self, connection: &Connection) -> (u64, Call<u64>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let call = connection.call(COUNTER, "/counter", "com.example.Counter.Run", &id);
        // Some would rather fail than wait.
        let while_down = if id.is_multiple_of(3) {
            WhileDown::FailFast
        } else {
            WhileDown::Wait
        };
        (id, call.while_down(while_down))
    }

    fn end(&self, id: u64, result: Result<u64, Error>, fates: &mut Fates) {
        let runs = self.counter.runs(id);
        match result {
            Ok(answer) => {
                assert_eq!((answer, runs), (id, 1), "call {id}");
                fates.answered += 1;
            }
            Err(error) => match error.fate() {
                Some(Fate::NotSent) => {
                    assert_eq!(runs, 0, "call {id} was not sent, and ran: {error}");
                    fates.not_sent += 1;
                }
                Some(_) => {
                    assert!(runs <= 1, "call {id} ran {runs} times");
                    fates.unknown += 1;
                    fates.unknown_ran += u64::from(runs);
                }
                None => panic!("call {id}: {error}"),
            },
        }
    }
}

/// Who kills the bus, and who watches that the stream misses nothing without a note.
fn kill_over_and_over(bus: &mut Bus, load: &Load, server: &Connection, client: &Connection, kills: u32) {
    let ticks = client
        .signals::<(u64,)>(Rule::signal("com.example.Counter", "Tick").sender(COUNTER))
        .unwrap();
    let mut names = 0;
    let watch = client.watch_name(COUNTER).unwrap();
    let mut owner: Option<Box<str>> = None;
    let (mut last, mut received, mut notes) = (None, 0_u64, 0);
    for kill in 0..=kills {
        let until = Instant::now() + Duration::from_millis(60 + u64::from(kill % 7) * 20);
        let before = load.counter.total.load(Ordering::Relaxed);
        // Each bus serves some calls and ticks, and then goes in the middle of them.
        let mut count = 0;
        while Instant::now() < until || load.counter.total.load(Ordering::Relaxed) < before + 20 || count < 3
        {
            assert!(
                Instant::now() < until + Duration::from_secs(30),
                "nothing is served, {kill} kills"
            );
            if server
                .emit(
                    "/counter",
                    "com.example.Counter.Tick",
                    &(u64::from(kill) * 1000 + count),
                )
                .wait()
                .is_ok()
            {
                count += 1;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        if kill < kills {
            bus.kill();
            std::thread::sleep(Duration::from_millis(u64::from(kill % 3) * 15));
            bus.start_again();
        }
        while let Some(event) = ticks.try_next() {
            match event {
                Event::Signal((tick,)) => {
                    received += 1;
                    let follows = last.is_none_or(|last| tick == last + 1);
                    assert!(follows, "tick {tick} after {last:?} without a note");
                    last = Some(tick);
                }
                Event::Missed(Missed::Outage { same_bus }) => {
                    assert!(!same_bus);
                    notes += 1;
                    last = None;
                }
                Event::Missed(missed) => panic!("{missed:?}"),
            }
        }
    }
    // One kill may come before the stream is told of the last.
    assert!(
        notes > kills / 2 && notes <= kills,
        "{notes} notes of {kills} outages"
    );
    assert!(received > u64::from(kills), "{received} ticks");
    load.is_over.store(true, Ordering::Relaxed);
    client
        .wait_for_names(&[COUNTER])
        .timeout(Duration::from_secs(20))
        .wait()
        .unwrap();
    while owner.is_none() || names < kills {
        let Some(change) = watch.wait_next().unwrap() else {
            panic!("the watch has ended")
        };
        assert!(
            change.how == Known::First || change.old == owner,
            "{owner:?}, {change:?}"
        );
        names += u32::from(change.old.is_some());
        owner = change.new;
    }
}

fn prepare(bus: &Bus) -> (Arc<Load>, Connection) {
    let counter = Arc::new(Counter::default());
    let server = bus
        .builder()
        .name(COUNTER)
        .object("/counter", counter.clone())
        .connect_thread()
        .unwrap();
    let load = Load {
        counter,
        next: AtomicU64::new(1),
        is_over: AtomicBool::new(false),
    };
    server.wait_for_names(&[COUNTER]).wait().unwrap();
    (Arc::new(load), server)
}

fn check(all: Fates, kills: u32) {
    eprintln!("{kills} kills: {all:?}");
    assert!(all.answered > u64::from(kills) * 10, "{all:?}");
    assert!(all.unknown > 0 && all.not_sent > 0, "{all:?}");
}

fn sum(fates: impl Iterator<Item = Fates>) -> Fates {
    fates.fold(Fates::default(), |sum, one| Fates {
        answered: sum.answered + one.answered,
        not_sent: sum.not_sent + one.not_sent,
        unknown: sum.unknown + one.unknown,
        unknown_ran: sum.unknown_ran + one.unknown_ran,
    })
}

fn with_a_thread(bus: Option<Bus>, kills: u32) {
    let Some(mut bus) = bus else { return };
    let (load, server) = prepare(&bus);
    let client = bus.builder().connect_thread().unwrap();
    let callers = (0..8).map(|_| {
        let (load, client) = (load.clone(), client.clone());
        std::thread::spawn(move || {
            let mut fates = Fates::default();
            while !load.is_over.load(Ordering::Relaxed) {
                let (id, call) = load.begin(&client);
                let result = call.wait();
                if result.is_err() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                load.end(id, result, &mut fates);
            }
            fates
        })
    });
    let callers: Vec<_> = callers.collect();
    kill_over_and_over(&mut bus, &load, &server, &client, kills);
    check(
        sum(callers.into_iter().map(|caller| caller.join().unwrap())),
        kills,
    );
}

fn with_a_task(bus: Option<Bus>, kills: u32) {
    let Some(mut bus) = bus else { return };
    let (load, server) = prepare(&bus);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let client = runtime.block_on(bus.builder().connect()).unwrap();
    let callers = (0..8).map(|_| {
        let (load, client) = (load.clone(), client.clone());
        runtime.spawn(async move {
            let mut fates = Fates::default();
            while !load.is_over.load(Ordering::Relaxed) {
                let (id, call) = load.begin(&client);
                let result = call.await;
                if result.is_err() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                load.end(id, result, &mut fates);
            }
            fates
        })
    });
    let callers: Vec<_> = callers.collect();
    kill_over_and_over(&mut bus, &load, &server, &client, kills);
    check(
        sum(callers
            .into_iter()
            .map(|caller| runtime.block_on(caller).unwrap())),
        kills,
    );
}

#[test]
fn killed_under_load_with_a_thread() {
    with_a_thread(Bus::start(), 12);
}

#[test]
fn killed_under_load_with_a_task() {
    with_a_task(Bus::start(), 12);
}

#[test]
fn dbus_broker_killed_under_load_with_a_thread() {
    with_a_thread(Bus::start_broker(), 12);
}

#[test]
fn dbus_broker_killed_under_load_with_a_task() {
    with_a_task(Bus::start_broker(), 12);
}

#[test]
#[ignore = "takes a minute"]
fn dbus_broker_killed_two_hundred_times_with_a_thread() {
    with_a_thread(Bus::start_broker(), 200);
}

#[test]
#[ignore = "takes a minute"]
fn dbus_broker_killed_two_hundred_times_with_a_task() {
    with_a_task(Bus::start_broker(), 200);
}

/// `cargo test -p bus-client --test outages -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn killed_two_hundred_times_with_a_thread() {
    with_a_thread(Bus::start(), 200);
}

#[test]
#[ignore = "takes a minute"]
fn killed_two_hundred_times_with_a_task() {
    with_a_task(Bus::start(), 200);
}

#[test]
fn a_unique_name_of_the_bus_that_is_gone_reaches_no_stranger() {
    let Some(mut bus) = Bus::start() else { return };
    let (load, server) = prepare(&bus);
    let client = bus.builder().connect_thread().unwrap();
    let id = client.call::<u64>(COUNTER, "/counter", "Run", &1_u64).wait();
    assert_eq!(id.unwrap(), 1);
    let old = server.unique_name().unwrap();
    let stream = client.messages(Rule::all().sender(&old)).unwrap();
    let reply = client
        .call_raw(COUNTER, "/counter", "Run", &2_u64, Vec::new())
        .wait()
        .unwrap();
    let states = client.states();
    bus.kill();
    bus.start_again();
    while states.wait_next().unwrap() != Some(State::Down) {}
    while states.wait_next().unwrap() != Some(State::Up) {}
    // Strangers take up all the numbers, the old one too.
    let heard = Arc::new(AtomicU64::new(0));
    let strangers: Vec<Connection> = (0..8)
        .map(|_| {
            let heard = heard.clone();
            let hears = move |_: &bus_client::Message| {
                heard.fetch_add(1, Ordering::SeqCst);
                false
            };
            bus.builder().filter(hears).connect_thread().unwrap()
        })
        .collect();
    let names: Vec<_> = strangers.iter().filter_map(Connection::unique_name).collect();
    let all = [server.unique_name(), client.unique_name()];
    assert!(
        names.iter().chain(all.iter().flatten()).any(|name| *name == old),
        "{old} is nobody's: {names:?}"
    );
    let calls = load.counter.total.load(Ordering::Relaxed);
    for error in [
        client
            .call::<u64>(&old, "/counter", "Run", &3_u64)
            .wait()
            .unwrap_err(),
        client
            .call_back::<u64>(&reply, "/counter", "Run", &4_u64)
            .wait()
            .unwrap_err(),
    ] {
        assert_eq!(error.fate(), Some(Fate::NotSent), "{error}");
        assert_eq!(error.cause(), Some(&bus_client::Cause::StaleName), "{error}");
    }
    assert_eq!(load.counter.total.load(Ordering::Relaxed), calls);
    let missed = stream.wait_next().unwrap();
    assert!(matches!(missed, Some(Event::Missed(Missed::Epoch))), "{missed:?}");
    assert!(stream.wait_next().unwrap().is_none());
    // What went to the bus before this has arrived before it.
    for stranger in &strangers {
        let name = stranger.unique_name().unwrap();
        let ping = client.call_raw(&name, "/", "org.freedesktop.DBus.Peer.Ping", &(), Vec::new());
        if *name != *old {
            ping.wait().unwrap();
        }
    }
    let others = names.iter().filter(|name| ***name != *old).count() as u64;
    assert_eq!(
        heard.load(Ordering::SeqCst),
        others,
        "a stranger has got something"
    );
}

#[test]
fn without_its_directory_the_bus_is_given_up() {
    let Some(mut bus) = Bus::start() else { return };
    let client = bus.builder().connect_thread().unwrap();
    let states = client.states();
    bus.kill();
    std::fs::remove_dir_all(bus.directory.path()).unwrap();
    while let Some(state) = states.wait_next().unwrap() {
        if state == State::Closed {
            break;
        }
    }
    let error = client.emit("/a", "a.b.C", &()).wait().unwrap_err();
    assert_eq!(error.fate(), Some(Fate::NotSent));
}
