//! What the keeper told: when it is acknowledged, and what becomes of the descriptors that came with it.

use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::time::Duration;

use super::{Rig, session};
use crate::broker::ConfigV2;
use crate::control::{Outcome, Told};
use crate::handoff::codec;
use crate::os::descriptor::is_open;
use crate::os::memfd;

/// A rig with a client that may ask for the configuration to be read.
fn rig() -> Rig {
    let mut rig = Rig::new(true);
    rig.connect();
    write(&mut rig);
    rig
}

fn write(rig: &mut Rig) {
    let bytes = rig.clients[0].waiting.split_off(0);
    rig.clients[0].stream.write_all(&bytes).unwrap();
    rig.worker.turns();
}

/// The client calls ReloadConfig, and the worker asks for it: the errand's number.
fn begin_reading(rig: &mut Rig) -> u64 {
    rig.clients[0].call("ReloadConfig", |_| {});
    write(rig);
    std::thread::sleep(Duration::from_millis(300));
    rig.worker.turns();
    let open = rig.worker.broker().open_errands();
    assert_eq!(open.len(), 1, "{open:?}");
    open[0].0
}

/// The keeper tells that it is read: the memfd.
fn end_reading(rig: &mut Rig, errand: u64) -> RawFd {
    let config = codec::encode(&ConfigV2::from(&session())).unwrap();
    let outcome = codec::encode(&Outcome::Configuration(Ok(config))).unwrap();
    let payload = memfd::create(c"bus-outcome").unwrap();
    memfd::replace(payload, &outcome).unwrap();
    rig.outbox.post(Told::ErrandEnded { errand, payload });
    tell(rig);
    assert!(rig.worker.broker().open_errands().is_empty());
    payload
}

/// The worker hears what was posted.
fn tell(rig: &mut Rig) {
    rig.control.wake_worker();
    rig.worker.turns();
}

#[test]
fn what_a_replay_needs_is_closed_when_a_checkpoint_has_passed_it_and_not_before() {
    let mut rig = rig();
    let errand = begin_reading(&mut rig);
    let first = end_reading(&mut rig, errand);
    let errand = begin_reading(&mut rig);
    rig.worker.journal().pretend_full(true);
    let second = end_reading(&mut rig, errand);
    // The replay begins with the first configuration, and gives the second.
    assert!(is_open(first) && is_open(second));
    let recovered = rig.replay();
    assert!(!recovered.is_damaged && recovered.broker.config_source().is_some());
    rig.worker.journal().pretend_full(false);
    assert!(is_open(first));
    rig.worker.take_checkpoint_now();
    assert!(!is_open(first) && is_open(second));
}

#[test]
fn what_is_in_neither_log_nor_checkpoint_is_not_acknowledged() {
    let mut rig = rig();
    let inbox = rig.outbox.inbox();
    rig.worker.journal().pretend_full(true);
    rig.worker.journal().pretend_incomplete();
    rig.outbox.post(Told::ReloadWanted);
    tell(&mut rig);
    assert_eq!(inbox.heard(), 0);
    rig.worker.journal().pretend_full(false);
    // Without anybody's doing: at the next tick.
    assert!(rig.worker.next_tick().is_some());
    std::thread::sleep(Duration::from_millis(30));
    rig.worker.turns();
    rig.worker.turns();
    assert_eq!(inbox.heard(), 1);
}

#[test]
fn an_entry_that_does_not_fit_into_the_log_is_acknowledged_after_the_checkpoint() {
    let mut rig = rig();
    let inbox = rig.outbox.inbox();
    rig.worker.journal().pretend_full(true);
    rig.worker.hear_what_does_not_fit(1);
    assert_eq!(inbox.heard(), 0);
    rig.worker.journal().pretend_full(false);
    std::thread::sleep(Duration::from_millis(30));
    rig.worker.turns();
    rig.worker.turns();
    assert_eq!(inbox.heard(), 1);
}

#[test]
fn an_outcome_that_there_is_no_handle_for_ends_its_errand_with_an_error() {
    let mut rig = rig();
    let errand = begin_reading(&mut rig);
    let _ = rig.clients[0].stream.read(&mut [0; 4096]);
    // Any number: none of these is ever used.
    while rig.worker.journal().assign(0).is_some() {}
    let payload = end_reading(&mut rig, errand);
    let mut answer = [0; 4096];
    let len = rig.clients[0].stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..len]);
    assert!(
        answer.contains("org.freedesktop.DBus.Error.LimitsExceeded"),
        "{answer}"
    );
    assert!(answer.contains("there is no handle for the outcome"), "{answer}");
    assert!(!is_open(payload));
    assert_eq!(rig.outbox.inbox().heard(), 1);
    let recovered = rig.replay();
    assert!(!recovered.is_damaged && recovered.broker.open_errands().is_empty());
}
