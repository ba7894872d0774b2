//! A worker that is short of memory.

use super::{Rig, random, state};

/// So little that there is a shortage as soon as somebody adds to what the log takes.
const CAP: u64 = 512 << 10;

#[test]
fn what_is_done_for_want_of_memory_is_done_again_in_a_replay() {
    let mut random = random();
    let mut rig = Rig::new(false);
    rig.worker.journal().set_cap(CAP);
    for round in 0..120 {
        for _ in 0..1 + random.below(20) {
            rig.step(&mut random);
        }
        let (recovered, output) = rig.replay_with_output();
        assert!(output == rig.output(), "round {round}: other output");
        assert!(recovered.in_doubt.is_empty(), "round {round}");
        let (theirs, ours) = (&recovered.broker, rig.worker.broker());
        assert!(state(theirs) == state(ours), "round {round}: another state");
        assert_eq!(theirs.save_shortage(), ours.save_shortage(), "round {round}");
        for peer in ours.peer_ids() {
            assert_eq!(theirs.may_read(peer), ours.may_read(peer), "round {round}");
        }
        assert_eq!(theirs.next_deadline(), ours.next_deadline(), "round {round}");
    }
    let held = rig.worker.broker().holdings();
    assert!(held.paced > 0, "{held:?}");
}
