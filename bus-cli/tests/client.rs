//! Our own client on our own bus, which is upgraded in place and whose worker is killed: no note, no error, no reconnect.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bus_client::{BoxFuture, Connection, Event, Incoming, Interface, Reply, Rule, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Bus, upgrade};

const NAME: &str = "com.example.Echo";

struct Echo(AtomicU64);

impl Interface for Echo {
    fn name(&self) -> &str {
        NAME
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let number: u64 = call.decode().unwrap();
        Box::pin(std::future::ready(Reply::new(&number)))
    }
}

#[test]
fn upgrades_and_deaths_of_our_daemon_are_not_noticed() {
    not_noticed(12);
}

/// `cargo test -p bus-cli --test client -- --ignored`
#[test]
#[ignore = "takes half a minute"]
fn two_hundred_upgrades_and_deaths_of_our_daemon_are_not_noticed() {
    not_noticed(200);
}

/// In each round an upgrade, or else the worker's death.
fn not_noticed(rounds: u64) {
    let bus = Bus::start();
    let echo = Arc::new(Echo(AtomicU64::new(0)));
    let builder = Connection::address(&bus.address)
        .name(NAME)
        .object("/echo", echo.clone());
    let service = builder.connect_thread().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let thread = Connection::address(&bus.address).connect_thread().unwrap();
    let task = runtime
        .block_on(Connection::address(&bus.address).connect())
        .unwrap();
    thread.wait_for_names(&[NAME]).wait().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    // Whose call was answered, its rule was there before.
    let ready = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = [thread.clone(), task.clone()]
        .into_iter()
        .map(|client| {
            let (is_over, ready) = (is_over.clone(), ready.clone());
            std::thread::spawn(move || {
                let ticks = client
                    .signals::<u64>(Rule::signal(NAME, "Tick").sender(NAME))
                    .unwrap();
                let states = client.states();
                assert_eq!(states.wait_next().unwrap(), Some(State::Up));
                let (mut calls, mut seen) = (0_u64, 0_u64);
                while !is_over.load(Ordering::SeqCst) {
                    let answer: u64 = client
                        .call(NAME, "/echo", "com.example.Echo.Echo", &calls)
                        .wait()
                        .unwrap();
                    assert_eq!(answer, calls);
                    calls += 1;
                    if calls == 1 {
                        ready.fetch_add(1, Ordering::SeqCst);
                    }
                    while let Some(event) = ticks.try_next() {
                        let Event::Signal(tick) = event else {
                            panic!("{event:?}")
                        };
                        assert_eq!(tick, seen);
                        seen += 1;
                    }
                }
                drop(client);
                (calls, seen, states)
            })
        })
        .collect();
    while ready.load(Ordering::SeqCst) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut control = bus.caller();
    let mut ticks = 0_u64;
    for round in 0..rounds {
        for _ in 0..20 {
            service
                .emit("/echo", "com.example.Echo.Tick", &ticks)
                .wait()
                .unwrap();
            ticks += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        if round % 2 == 0 {
            upgrade(&mut control, "").unwrap();
        } else if let Some(worker) = bus.worker() {
            kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    is_over.store(true, Ordering::SeqCst);
    let ends: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    thread.close();
    task.close();
    let mut calls = 0;
    for (made, seen, states) in ends {
        assert!(made > rounds * 10, "{made} calls");
        assert_eq!(seen, ticks);
        calls += made;
        // No other state than the first: it was up all the time.
        assert_eq!(states.wait_next().unwrap(), Some(State::Closed));
    }
    eprintln!("{rounds} upgrades and deaths: {calls} calls, {ticks} ticks");
    assert_eq!(echo.0.load(Ordering::SeqCst), calls);
    assert_eq!(service.state(), State::Up);
}
