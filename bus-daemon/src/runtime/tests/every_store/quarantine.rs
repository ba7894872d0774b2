//! Input that kills the worker: it alone is left out, once, its sender is told and disconnected, and nobody else notices,
//! wherever the workers die that deal with it.

use std::os::fd::AsRawFd;

use super::super::random;
use super::answers::answers;
use super::life::order;
use super::play::{Step, play};
use super::stage::{Mistake, Stage};
use super::{end, in_own_process};

const STEPS: [Step; 2] = [Step::ReloadConfig, Step::Hangup];

/// A client that is connected, and has nothing waiting.
fn poisoner(stage: &mut Stage) -> Result<usize, String> {
    let index = stage.clients.len();
    stage.connect();
    stage.settle()?;
    Ok(index)
}

/// A client sends poison, in one piece or behind half a message; two workers die of it, and others are killed meanwhile.
fn poison(stage: &mut Stage, in_pieces: bool) -> Result<(), String> {
    let index = poisoner(stage)?;
    stage.doomed = Some((index, None));
    let (faults, left_out) = (stage.counts.faults, stage.keeper.done.left_out);
    let passed = stage.passed.as_raw_fd();
    // Somebody else's input comes before it.
    let neighbour = stage
        .clients
        .iter_mut()
        .flatten()
        .next()
        .ok_or("nobody is there")?;
    neighbour.call("GetId", |_| {});
    neighbour.write(usize::MAX, passed);
    stage.whole_turn()?;
    let client = stage.clients[index].as_mut().ok_or("nobody is there")?;
    let call = client.poison();
    if in_pieces {
        assert!(client.write(20, passed));
        stage.whole_turn()?;
    }
    let client = stage.clients[index].as_mut().ok_or("nobody is there")?;
    while client.write(usize::MAX, passed) {}
    for _ in 0..50 {
        stage.order(order::TURN)?;
        if stage.keeper.done.left_out > left_out {
            break;
        }
    }
    if stage.counts.faults != faults + 2 || stage.keeper.done.left_out != left_out + 1 {
        return Err(format!(
            "{} workers died of it, {} units were left out",
            stage.counts.faults - faults,
            stage.keeper.done.left_out - left_out
        ));
    }
    while stage.read(index, 64 << 10)? > 0 {}
    let client = stage.clients[index].take().ok_or("nobody is there")?;
    if !client.is_at_end() {
        return Err("the sender of poison is not disconnected".into());
    }
    let told: Vec<_> = answers(&stage.streams[index], client.lines)?
        .into_iter()
        .filter(|answer| answer.to == call)
        .collect();
    let is_right = match told.as_slice() {
        [] => in_pieces,
        [one] => !in_pieces && one.error.as_deref() == Some("org.busdaemon.Error.Quarantined"),
        _ => false,
    };
    if !is_right {
        return Err(format!("the sender of poison was told {told:?}"));
    }
    drop(client);
    stage.doomed = None;
    stage.order(order::TURN)
}

/// Poison among everything else.
fn walk(stage: &mut Stage, rounds: usize) -> Result<(), String> {
    play(stage, 1, &STEPS)?;
    for round in 0..rounds {
        stage.kill_a_few(if round == 0 { 0 } else { 120 });
        poison(stage, round % 3 == 2)?;
        stage.kill_rate = 0;
        play(stage, 1, &STEPS)?;
    }
    eprintln!("{:?} {:?}", stage.counts, stage.keeper.done);
    end(stage)
}

#[test]
fn poison_is_left_out_once_wherever_the_worker_dies() {
    in_own_process(
        "quarantine::poison_is_left_out_once_wherever_the_worker_dies",
        || {
            let mut stage = Stage::new(random()).unwrap();
            walk(&mut stage, 4).unwrap();
            assert!(stage.counts.faults == 8 && stage.keeper.done.left_out == 4);
            assert!(stage.counts.kills > 0);
        },
    );
}

#[test]
#[ignore = "a campaign: a minute"]
fn poison_is_left_out_once_again_and_again() {
    in_own_process("quarantine::poison_is_left_out_once_again_and_again", || {
        let mut stage = Stage::new(random()).unwrap();
        walk(&mut stage, 40).unwrap();
        assert!(stage.counts.faults == 80 && stage.keeper.done.left_out == 40);
        assert!(stage.counts.kills > 20 && stage.counts.kills_in_recovery > 10);
    });
}

/// The test can fail: a worker that leaves another unit out is found out.
#[test]
fn an_innocent_unit_that_is_left_out_is_found_out() {
    in_own_process(
        "quarantine::an_innocent_unit_that_is_left_out_is_found_out",
        || {
            let mut stage = Stage::new(random()).unwrap();
            stage.mistake = Some(Mistake::LeaveOutAnother);
            let error = walk(&mut stage, 1).expect_err("nothing was noticed");
            eprintln!("{error}");
            assert!(error.contains("is left out, and is innocent"), "{error}");
        },
    );
}
