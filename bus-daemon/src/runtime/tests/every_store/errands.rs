//! What the keeper tells, and errands: each entry is heard once, each caller answered once, and no descriptor is left,
//! wherever workers die.

use super::super::random;
use super::keeper::Verdict;
use super::play::{Step, play};
use super::stage::{Mistake, Stage};
use super::{end, in_own_process};

const STEPS: [Step; 6] = [
    Step::ReloadConfig,
    Step::ReloadConfig,
    Step::ReloadConfig,
    Step::Hangup,
    Step::Upgrade,
    Step::Usr2,
];

/// With kills wherever something is told, until errands were under way over deaths, and asked for again.
fn walk(stage: &mut Stage, rounds: usize) {
    assert_eq!(stage.keeper.verdict, Verdict::Refused);
    play(stage, 1, &STEPS).unwrap();
    stage.answer_all().unwrap();
    stage.kills_at_told = true;
    play(stage, rounds, &STEPS).unwrap();
    for _ in 0..rounds {
        stage.kill_a_few(200);
        play(stage, 1, &STEPS).unwrap();
    }
    for _ in 0..20 {
        let done = &stage.keeper.done;
        if done.deaths_in_errands > 0 && done.deaths_unheard > 0 && done.repeated > 0 && done.large > 0 {
            break;
        }
        stage.kill_a_few(200);
        play(stage, 1, &STEPS).unwrap();
    }
    (stage.kill_rate, stage.kills_at_told) = (0, false);
    stage.answer_all().unwrap();
    eprintln!("{:?} {:?}", stage.counts, stage.keeper.done);
    let done = &stage.keeper.done;
    assert!(done.readings > 2 && done.trials > 1 && done.refused > 1 && done.large > 0);
    assert!(done.repeated > 0 && done.deaths_in_errands > 0 && done.deaths_unheard > 0);
    end(stage).unwrap();
}

#[test]
fn what_the_keeper_tells_is_heard_once_wherever_the_worker_dies() {
    in_own_process(
        "errands::what_the_keeper_tells_is_heard_once_wherever_the_worker_dies",
        || walk(&mut Stage::new(random()).unwrap(), 1),
    );
}

#[test]
#[ignore = "a campaign: a minute"]
fn what_the_keeper_tells_is_heard_once_again_and_again() {
    in_own_process(
        "errands::what_the_keeper_tells_is_heard_once_again_and_again",
        || walk(&mut Stage::new(random()).unwrap(), 15),
    );
}

/// The test can fail: an entry that is acknowledged before it is in the journal would be lost.
#[test]
fn an_entry_that_is_acknowledged_too_early_is_found_out() {
    in_own_process(
        "errands::an_entry_that_is_acknowledged_too_early_is_found_out",
        || {
            let mut stage = Stage::new(random()).unwrap();
            stage.mistake = Some(Mistake::AcknowledgeFirst);
            let error = play(&mut stage, 2, &STEPS).expect_err("nothing was noticed");
            eprintln!("{error}");
            assert!(error.contains("is acknowledged, and the journal has"), "{error}");
        },
    );
}
