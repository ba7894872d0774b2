//! Large messages with many values: each part is validated when it arrives, so that the last one makes nobody wait; the
//! verdict is the same whatever happens to the bus meanwhile.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_wire::MessageBuilder;
use nix::sys::signal::Signal;
use std::time::Duration;
use support::process::{Work, strike, worker_pid};
use support::raw::Raw;
use support::{Bus, recoveries, upgrade, wait_until};

/// Bytes of the one that is measured.
const LARGE: usize = 33_000_000;

/// A signal that nobody waits for, with an array of variants of this many bytes.
fn variants(length: usize) -> Vec<u8> {
    let values = [1, b'y', 0, 7].repeat(length / 4);
    let signal = MessageBuilder::signal("/", "a.b", "Large").serial(1u32);
    let mut bytes = signal
        .body(|body| {
            body.byte_slice(&values);
        })
        .build()
        .unwrap();
    // An array of variants begins as one of bytes does.
    let signature = bytes.windows(4).position(|four| four == b"\x02ay\0").unwrap();
    bytes[signature + 2] = b'v';
    bytes
}

/// Waits until the daemon has nothing to do. What it has done since `then`.
fn work_until_idle(bus: &Bus, then: Work) -> u64 {
    let mut before = then;
    wait_until("the daemon to be idle", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = Work::of(bus);
        let is_idle = now == before;
        before = now;
        is_idle
    });
    before.since(then).cpu_ticks
}

#[test]
fn the_last_byte_costs_no_more_than_others() {
    let bus = Bus::start();
    let mut sender = Raw::ready(&bus);
    let message = variants(LARGE);
    let (most, last) = message.split_at(message.len() - 100);
    let begin = Work::of(&bus);
    sender.send(most);
    let arriving = work_until_idle(&bus, begin);
    let begin = Work::of(&bus);
    sender.send(last);
    let at_last = work_until_idle(&bus, begin);
    eprintln!("ticks of CPU time: {arriving} while it arrived, {at_last} with its last bytes");
    assert!(at_last * 8 <= arriving, "{at_last} ticks against {arriving}");
    sender.expect_service();
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Upgrade,
}

/// Sends a message in parts, with these faults among them; it is valid, or wrong at this place.
#[track_caller]
fn check(faults: &[Fault], wrong_at: Option<usize>) {
    let bus = Bus::start();
    let mut control = bus.caller();
    let mut sender = Raw::ready(&bus);
    let mut message = variants(4_000_000);
    if let Some(at) = wrong_at {
        // No variant has an empty signature.
        let start = message.len() - 4_000_000 + at / 4 * 4;
        message[start] = 0;
    }
    let (most, last) = message.split_at(message.len() - 1);
    let mut kills = 0;
    let parts = most.chunks(most.len().div_ceil(faults.len() + 1));
    for (index, part) in parts.enumerate() {
        sender.send(part);
        match faults.get(index) {
            Some(Fault::Kill) => {
                kills += 1;
                assert!(strike(worker_pid(&mut control), Signal::SIGKILL));
                wait_until("the worker to be replaced", || recoveries(&mut control) == kills);
            }
            Some(Fault::Upgrade) => drop(upgrade(&mut control, "").unwrap()),
            None => {}
        }
    }
    // A verdict before the end is none.
    sender
        .stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let early = sender.try_message();
    assert!(early.is_err(), "{faults:?}, {wrong_at:?}: {early:?}");
    sender.stream.set_read_timeout(Some(support::SOON)).unwrap();
    sender.send(last);
    match wrong_at {
        None => sender.expect_service(),
        Some(_) => sender.expect_end(),
    }
}

#[test]
fn the_verdict_is_the_same_through_kills_and_upgrades() {
    use Fault::{Kill, Upgrade};
    for faults in [&[][..], &[Kill], &[Upgrade], &[Kill, Upgrade, Kill]] {
        for wrong_at in [None, Some(0), Some(2_500_000), Some(3_999_999)] {
            check(faults, wrong_at);
        }
    }
}
