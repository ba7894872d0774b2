//! Upgrades: the state goes over whole, to the next binary or back to this one, wherever workers die that hand it over or
//! restore it.

use super::super::random;
use super::keeper::Verdict;
use super::life::order;
use super::play::{Step, play};
use super::stage::{Mistake, Stage};
use super::{end, in_own_process};

/// One upgrade, by a call or by a signal, with traffic before and after it.
fn upgrade(stage: &mut Stage, step: Step) -> Result<(), String> {
    let handed = stage.counts.handed;
    stage.step(step)?;
    for _ in 0..200 {
        if stage.counts.handed > handed {
            return stage.order(order::TURN);
        }
        stage.exchange()?;
    }
    Err("no upgrade has come".into())
}

fn walk(stage: &mut Stage, rounds: usize, kill_rate: usize) -> Result<(), String> {
    stage.keeper.verdict = Verdict::Approved;
    play(stage, 1, &[])?;
    for round in 0..rounds {
        stage.kill_a_few(if round == 0 { 0 } else { kill_rate });
        let step = if round % 2 == 0 { Step::Upgrade } else { Step::Usr2 };
        upgrade(stage, step)?;
        play(stage, 1, &[Step::ReloadConfig])?;
    }
    stage.kill_rate = 0;
    eprintln!("{:?} {:?}", stage.counts, stage.keeper.done);
    end(stage)
}

#[test]
fn an_upgrade_takes_everything_over_wherever_the_worker_dies() {
    in_own_process(
        "upgrade::an_upgrade_takes_everything_over_wherever_the_worker_dies",
        || {
            let mut stage = Stage::new(random()).unwrap();
            walk(&mut stage, 5, 150).unwrap();
            assert!(stage.counts.handed >= 5 && stage.counts.kills > 0);
        },
    );
}

#[test]
#[ignore = "a campaign: a minute"]
fn upgrades_take_everything_over_again_and_again() {
    in_own_process("upgrade::upgrades_take_everything_over_again_and_again", || {
        let mut stage = Stage::new(random()).unwrap();
        walk(&mut stage, 60, 150).unwrap();
        assert!(stage.counts.returned > 5 && stage.counts.kills_in_restore > 0);
    });
}

/// The test can fail: a worker that restores an older state is found out.
#[test]
fn an_image_that_is_not_the_newest_is_found_out() {
    in_own_process("upgrade::an_image_that_is_not_the_newest_is_found_out", || {
        let mut stage = Stage::new(random()).unwrap();
        stage.mistake = Some(Mistake::StaleImage);
        let error = walk(&mut stage, 3, 0).expect_err("nothing was noticed");
        eprintln!("{error}");
        // By whatever the look at the first stores of a worker that restores it meets first.
        assert!(error.contains(", after Report"), "{error}");
    });
}
