//! A bus of the reference implementation is killed and started again, over and over, under load.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a process test: nothing else waits for its clock"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bus_client::{Connection, Error, Event, Fate, Known, LinkError, Missed, Rule, State};
use support::load::{Driver, Load, under_load};
use support::{Bus, COUNTER, Counter};

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
        let before = load.total();
        // Each bus serves some calls and ticks, and then goes in the middle of them.
        let mut count = 0;
        while Instant::now() < until || load.total() < before + 20 || count < 3 {
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
    load.end_soon();
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
    server.wait_for_names(&[COUNTER]).wait().unwrap();
    (Load::new(COUNTER, counter), server)
}

fn killed(bus: Option<Bus>, driver: Driver, kills: u32) {
    let Some(mut bus) = bus else { return };
    let (load, server) = prepare(&bus);
    let builder = bus.builder();
    under_load(driver, builder, &load, kills, |client| {
        kill_over_and_over(&mut bus, &load, &server, client, kills);
    });
}

#[test]
fn killed_under_load_with_a_thread() {
    killed(Bus::start(), Driver::Thread, 12);
}

#[test]
fn killed_under_load_with_a_task() {
    killed(Bus::start(), Driver::Task, 12);
}

#[test]
fn dbus_broker_killed_under_load_with_a_thread() {
    killed(Bus::start_broker(), Driver::Thread, 12);
}

#[test]
fn dbus_broker_killed_under_load_with_a_task() {
    killed(Bus::start_broker(), Driver::Task, 12);
}

#[test]
#[ignore = "takes a minute"]
fn dbus_broker_killed_two_hundred_times_with_a_thread() {
    killed(Bus::start_broker(), Driver::Thread, 200);
}

#[test]
#[ignore = "takes a minute"]
fn dbus_broker_killed_two_hundred_times_with_a_task() {
    killed(Bus::start_broker(), Driver::Task, 200);
}

/// `cargo test -p bus-client --test outages -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn killed_two_hundred_times_with_a_thread() {
    killed(Bus::start(), Driver::Thread, 200);
}

#[test]
#[ignore = "takes a minute"]
fn killed_two_hundred_times_with_a_task() {
    killed(Bus::start(), Driver::Task, 200);
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
    let calls = load.total();
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
    assert_eq!(load.total(), calls);
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

fn id(client: &Connection) -> String {
    let id = client.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &());
    // The last bus may have got it, and have gone with it.
    id.idempotent().wait().unwrap()
}

/// What the bus says in the OK of its authentication, which is not what GetId says.
fn guid(bus: &Bus) -> String {
    let mut socket = UnixStream::connect(bus.directory.path().join("bus")).unwrap();
    socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\n").unwrap();
    let lines = BufReader::new(socket).lines().map(Result::unwrap);
    let mut ok = lines.filter_map(|line| line.strip_prefix("OK ").map(str::to_owned));
    ok.next().unwrap()
}

#[test]
fn an_address_with_a_guid_binds_the_first_link_only() {
    let Some(mut bus) = Bus::start() else { return };
    let guid = guid(&bus);
    let with = |guid: &str| Connection::address(&format!("{},guid={guid}", bus.address()));
    let error = with(&"0".repeat(32)).connect_thread().unwrap_err();
    assert!(matches!(error, Error::Connect(LinkError::OtherBus)), "{error:?}");
    let client = with(&guid).connect_thread().unwrap();
    let first = id(&client);
    // The bus that is started anew has another.
    bus.kill();
    bus.start_again();
    assert_ne!(id(&client), first);
    assert_eq!(client.state(), State::Up);
}

/// There is no path that could be looked at: the timer alone serves.
#[test]
fn a_bus_at_an_abstract_address_comes_back() {
    let listen = format!("unix:abstract=bus-client-outages-{}", std::process::id());
    let Some(mut bus) = Bus::start_with(&listen, "") else {
        return;
    };
    let client = Connection::address(bus.listens()).connect_thread().unwrap();
    let first = id(&client);
    bus.kill();
    std::thread::sleep(Duration::from_millis(200));
    bus.start_again();
    assert_ne!(id(&client), first);
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
