//! A worker killed between any two stores to the journal's memory: recovery gives exactly what it must.
//!
//! The worker is a process of its own, as the keeper makes it, and [stops](watch) at each store and after each system
//! call that moves bytes or descriptors. The test then recovers from a copy of the memory: what a SIGKILL at this
//! instruction would leave. The state must be the one [before or after](judge) the event under way, as the kernel's counts
//! of bytes say, and every byte of output the one that was or will be sent. Now and then the kill is real, and a
//! successor goes on, watched from its first store.

mod answers;
mod client;
mod errands;
mod examine;
mod judge;
mod keeper;
mod life;
mod play;
mod quarantine;
mod stage;
mod succession;
mod upgrade;
mod watch;

use std::process::Command;

use super::random;
use super::told::Kind;
use crate::journal::Sabotage;
use life::order;
use play::{Step, play};
use stage::Stage;

/// Runs `body` in a process without other threads and with few descriptors: the worker shares their table.
fn in_own_process(name: &str, body: impl FnOnce()) {
    const INSIDE: &str = "BUS_EVERY_STORE_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        // Nothing is left running when the test is stopped.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
        return body();
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .arg(format!("runtime::tests::every_store::{name}"))
        // Copies of what is left out.
        .env("XDG_RUNTIME_DIR", directory.path())
        .args(["--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        // A copy goes in steps of a vector, not of a byte.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.x86_rep_movsb_threshold=0x10000000:glibc.cpu.x86_rep_stosb_threshold=0x10000000",
        )
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// To the end of the log's segment and beyond.
fn cross_segments(stage: &mut Stage) -> Result<(), String> {
    stage.order(order::LEAVE)?;
    while !stage.end().is_near_segment_end() {
        stage.step(Step::SendLong)?;
    }
    stage.order(order::WATCH)?;
    let segments = stage.counts.segments;
    for _ in 0..20 {
        if stage.counts.segments > segments {
            return Ok(());
        }
        stage.step(Step::SendLong)?;
    }
    Err("the log does not go on in another segment".into())
}

/// Until a checkpoint is taken because a replay would have to read many records.
fn wait_for_checkpoint(stage: &mut Stage) -> Result<(), String> {
    const RECORDS: u64 = 4096;
    /// More than one step brings about: the checkpoint must not come unwatched.
    const BEFORE: u64 = 60;
    stage.order(order::LEAVE)?;
    stage.order(order::CHECKPOINT)?;
    let start = stage.end().sequence;
    while stage.end().sequence < start + RECORDS - BEFORE {
        stage.step(Step::Signal)?;
    }
    let epoch = stage.epoch();
    stage.order(order::WATCH)?;
    // And each peer that has changed makes it later.
    for _ in 0..10 * BEFORE {
        if stage.epoch() > epoch {
            return Ok(());
        }
        stage.step(Step::Signal)?;
    }
    Err("no checkpoint is taken".into())
}

/// So many peers that change that a part of them is written before the checkpoint.
fn crowd(stage: &mut Stage) -> Result<(), String> {
    const MANY: usize = 170;
    stage.order(order::LEAVE)?;
    for _ in 0..MANY {
        stage.connect();
    }
    stage.settle()?;
    // A worker that is killed in its turn does not go on with it: until one is not.
    for _ in 0..200 {
        stage.order(order::LEAVE)?;
        for client in stage.clients.iter_mut().flatten() {
            client.signal(10);
        }
        stage.order(order::TURN)?;
        let (epoch, entries) = (stage.epoch(), stage.counts.entries);
        stage.order(order::WATCH)?;
        stage.order(order::WANT)?;
        if stage.epoch() == epoch && stage.counts.entries > entries {
            return stage.order(order::CHECKPOINT);
        }
    }
    Err("no peer was written ahead of the checkpoint".into())
}

/// Everybody leaves, and nothing is left behind.
fn end(stage: &mut Stage) -> Result<(), String> {
    stage.order(order::LEAVE)?;
    stage.answer_all()?;
    for client in &mut stage.clients {
        *client = None;
    }
    for _ in 0..3 {
        stage.order(order::TURN)?;
    }
    // The worker keeps one descriptor for when the table is full.
    stage.examine()?;
    let others = stage.others();
    if others.len() > 1 {
        return Err(format!("descriptors {others:?} are left"));
    }
    Ok(())
}

fn check(stage: &Stage, rounds: u64) {
    let counts = &stage.counts;
    eprintln!("{counts:?}");
    let events = |kind: Kind| counts.events.get(&kind).copied().unwrap_or(0);
    assert!(counts.stores > 500 * rounds && counts.calls > 25 * rounds);
    assert!(counts.checkpoints > rounds / 2 && counts.adopted > 0 && counts.ended > 0 && counts.fds > 0);
    assert!(
        events(Kind::Accepted) > 2
            && events(Kind::Closed) > 0
            && events(Kind::Step) > 0
            && events(Kind::Tick) > 5 * rounds
    );
    assert!(events(Kind::Received) > 5 * rounds && events(Kind::Sent) > 5 * rounds);
    assert!(events(Kind::ReceivedLarge) > 0 && counts.segments > 0 && counts.other_fds > 0);
}

#[test]
fn a_kill_between_any_two_stores_is_recovered_from_exactly() {
    in_own_process("a_kill_between_any_two_stores_is_recovered_from_exactly", || {
        let mut stage = Stage::new(random()).unwrap();
        play(&mut stage, 4, &[]).unwrap();
        cross_segments(&mut stage).unwrap();
        (stage.kill_rate, stage.most_kills) = (150, 20);
        play(&mut stage, 4, &[]).unwrap();
        check(&stage, 8);
        end(&mut stage).unwrap();
        assert!(stage.counts.kills > 2);
    });
}

#[test]
#[ignore = "a campaign: two minutes"]
fn kills_between_any_two_stores_are_recovered_from_again_and_again() {
    in_own_process(
        "kills_between_any_two_stores_are_recovered_from_again_and_again",
        || {
            let mut stage = Stage::new(random()).unwrap();
            play(&mut stage, 10, &[]).unwrap();
            for kill_rate in [0, 1_000, 200] {
                stage.kill_rate = kill_rate;
                play(&mut stage, 10, &[]).unwrap();
                cross_segments(&mut stage).unwrap();
            }
            // A successor notes each event that it replays: with kills it would not come to the end of so many.
            stage.kill_rate = 0;
            check(&stage, 40);
            wait_for_checkpoint(&mut stage).unwrap();
            crowd(&mut stage).unwrap();
            end(&mut stage).unwrap();
            assert!(stage.counts.kills > 20 && stage.counts.kills_in_recovery > 5);
        },
    );
}

/// A connection that was noted by a worker killed right after it is known as long as it lasts: once it is closed, no
/// successor takes it for a new one.
#[test]
fn a_kill_right_behind_an_accept_does_not_open_a_connection_twice() {
    in_own_process(
        "a_kill_right_behind_an_accept_does_not_open_a_connection_twice",
        || {
            let mut stage = Stage::new(random()).unwrap();
            stage.kills_at_accept = true;
            for index in 0..4 {
                stage.step(Step::Connect).unwrap();
                stage.exchange().unwrap();
                if index > 1 {
                    stage.clients[index] = None;
                    stage.exchange().unwrap();
                }
            }
            assert!(stage.counts.kills > 3 && stage.counts.ended > 0);
            end(&mut stage).unwrap();
        },
    );
}

/// The test can fail: what is spoiled in the memory is noticed.
#[test]
fn a_journal_that_lacks_something_is_found_out() {
    in_own_process("a_journal_that_lacks_something_is_found_out", || {
        for (how, found) in [
            (Sabotage::Disarm, "bytes of client"),
            (Sabotage::LoseCount, "after Report"),
            (Sabotage::ShiftOffset, "after Report"),
            (Sabotage::LoseNumbers, "a peer without a socket"),
            (Sabotage::TearCommit, "damaged"),
        ] {
            let mut stage = Stage::new(random()).unwrap();
            stage.sabotage = Some(how);
            let error = play(&mut stage, 1, &[]).expect_err("nothing was noticed");
            eprintln!("{how:?}: {error}");
            assert!(error.contains(found), "{how:?}: {error}");
        }
    });
}
