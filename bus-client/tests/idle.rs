//! What a bus that is gone costs. In a process of its own, whose time is measured.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use bus_client::{Event, Missed, Rule};
use support::Bus;

/// Takes all instances of inotify that this user may have, until they are dropped.
fn exhaust_inotify() -> Vec<nix::sys::inotify::Inotify> {
    let take = |_| nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).ok();
    (0..10_000).map_while(take).collect()
}

fn costs_nothing(seconds: u64) {
    let Some(mut bus) = Bus::start() else { return };
    let client = bus.builder().connect_thread().unwrap();
    let streams: Vec<_> = (0..1000)
        .map(|index| {
            client
                .messages(Rule::signal("com.example.Counter", &format!("Tick{index}")))
                .unwrap()
        })
        .collect();
    client
        .call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &())
        .wait()
        .unwrap();
    bus.kill();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let call = client.call::<String>("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", &());
            std::thread::spawn(move || call.wait())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let (cpu, woken) = (support::cpu(), support::wake_ups("bus-client"));
    std::thread::sleep(Duration::from_secs(seconds));
    let (cpu, woken) = (support::cpu() - cpu, support::wake_ups("bus-client") - woken);
    eprintln!("{seconds} s without a bus: {cpu:?} of CPU, {woken} wake-ups");
    assert!(cpu < Duration::from_millis(50) && woken < 60, "{cpu:?}, {woken}");
    bus.start_again();
    for caller in callers {
        caller.join().unwrap().unwrap();
    }
    for stream in streams {
        let missed = stream.wait_next().unwrap();
        assert!(
            matches!(missed, Some(Event::Missed(Missed::Outage { same_bus: false }))),
            "{missed:?}"
        );
    }
}

#[test]
fn a_bus_that_is_gone_costs_nothing_with_inotify_and_without() {
    costs_nothing(5);
    let taken = exhaust_inotify();
    assert!(!taken.is_empty());
    costs_nothing(5);
}

/// `cargo test -p bus-client --test idle -- --ignored`
#[test]
#[ignore = "takes a minute"]
fn a_bus_that_is_gone_for_a_minute_costs_nothing() {
    costs_nothing(60);
}
