//! Connections that do not authenticate, and those that want to.

use crate::foe::{War, silent};
use crate::support::bystander::{Bystander, Waits};
use crate::support::raw::Raw;
use crate::support::{Bus, wait_until};
use crate::user::{ALICE, Cpu, MALLORY, as_user, may_be_others};
use crate::{alone, expect_waits, public_bus};
use bus_load::clock;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// So many connections of one user that say nothing: more than `max_incomplete_connections`.
const SILENT: usize = 300;

/// Opens them, and opens each anew that the bus closes, until the war is over. How many were open at the same time.
fn be_silent(war: &War, count: usize) -> usize {
    let mut all: Vec<UnixStream> = Vec::new();
    let mut most = 0;
    while !war.is_over() {
        while all.len() < count {
            let Some(mut stream) = silent(&war.socket) else {
                break;
            };
            let _ = stream.write_all(b"\0AUTH");
            let _ = stream.set_nonblocking(true);
            all.push(stream);
        }
        most = most.max(all.len());
        war.attacks
            .store(all.len() as u64, std::sync::atomic::Ordering::Relaxed);
        all.retain_mut(|stream| {
            let read = stream.read(&mut [0; 64]);
            matches!(&read, Ok(1..)) || read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    most
}

/// How long it takes to be greeted, so many times.
fn greet(bus: &Bus, times: usize) -> Waits {
    let greeting = |_| {
        let begun = clock::now();
        Raw::ready(bus).expect_service();
        std::thread::sleep(Duration::from_millis(20));
        clock::now() - begun - Duration::from_millis(20)
    };
    Waits::of((0..times).map(greeting).collect())
}

#[test]
fn whoever_does_not_authenticate_keeps_nobody_else_out() {
    if !may_be_others() {
        return;
    }
    let _alone = alone();
    let bus = Arc::new(public_bus(""));
    let bystander = Bystander::start(&bus, Duration::from_millis(5));
    let war = War::on(&bus.socket());
    let mallory = {
        let war = war.clone();
        as_user(MALLORY, Cpu::Last, move || be_silent(&war, SILENT))
    };
    wait_until("the silent are there", || {
        war.attacks.load(std::sync::atomic::Ordering::Relaxed) >= SILENT as u64
    });
    let alice = {
        let bus = bus.clone();
        as_user(ALICE, Cpu::First, move || greet(&bus, 50))
    };
    let of_alice = alice.join().expect("another user is let in");
    let of_root = greet(&bus, 20);
    // A second worker knows who waits, and nobody else has to.
    let worker = bus.worker().unwrap();
    crate::support::process::strike(worker, nix::sys::signal::Signal::SIGKILL);
    let of_root_again = greet(&bus, 20);
    war.end();
    assert_eq!(mallory.join().unwrap(), SILENT);
    for waits in [of_alice, of_root, of_root_again] {
        eprintln!("greetings: {waits}");
        expect_waits(&waits, Duration::from_millis(100));
    }
    expect_waits(&bystander.finish(), Duration::from_millis(100));
}

/// Of one user alone: whoever waits behind silent connections of its own gets a slot when their time is over.
#[test]
fn behind_silent_connections_of_the_same_user_one_waits_for_their_time_only() {
    let _alone = alone();
    let limits = "<limit name='auth_timeout'>1500</limit><limit name='max_incomplete_connections'>8</limit>";
    let bus = Bus::start_with(limits);
    let silent: Vec<UnixStream> = (0..16).map(|_| silent(&bus.socket()).unwrap()).collect();
    let begun = clock::now();
    // All the silent ones came first: two times over, so two times as long.
    let waits = greet(&bus, 1);
    let waited = clock::now() - begun;
    eprintln!("greeted after {waits}");
    assert!(
        waited >= Duration::from_millis(1400),
        "they had no time: {waited:?}"
    );
    assert!(waited <= Duration::from_secs(15), "{waited:?}");
    expect_waits(&greet(&bus, 10), Duration::from_millis(100));
    drop(silent);
}

/// A flood of connections that are refused at once leaves others alone, and the log short.
#[test]
fn a_flood_of_bad_authentications_fills_no_log_and_keeps_nobody_out() {
    let _alone = alone();
    let bus = Bus::start();
    let bystander = Bystander::start(&bus, Duration::from_millis(5));
    for _ in 0..1000 {
        let mut bad = silent(&bus.socket()).unwrap();
        bad.write_all(b"X").unwrap();
        let _ = bad.read(&mut [0; 16]);
    }
    expect_waits(&greet(&bus, 10), Duration::from_millis(100));
    expect_waits(&bystander.finish(), Duration::from_millis(100));
    let lines = bus.log().lines().count();
    assert!(lines < 200, "{lines} lines in the log");
}
