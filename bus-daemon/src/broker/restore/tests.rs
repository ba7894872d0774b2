//! Records that make no sense, one contradiction at a time: what each costs.

use super::*;
use crate::broker::Millis;

/// A bus with everything in it; see `tests/state_image/rich.rs`.
fn state() -> BrokerState {
    let bytes = include_bytes!("../../../tests/golden/image-v1.bin");
    crate::handoff::image::load(bytes, Millis(5_000)).unwrap().broker.save()
}

const WATCHER: usize = 0;
const OWNER: usize = 1;
const WAITER: usize = 2;
const MID_MESSAGE: usize = 3;
const RECEIVER: usize = 4;
const NOBODY: usize = 10;
const NUL: usize = 11;

/// Changes the state; these peers must be lost and no others, and what is left must be whole.
#[track_caller]
fn check(lost: &[usize], change: impl FnOnce(&mut BrokerState)) -> Broker {
    let mut changed = state();
    let ids: Vec<PeerId> = lost.iter().map(|index| changed.peers[*index].id).collect();
    let count = changed.peers.len();
    change(&mut changed);
    let (broker, dropped) = Broker::restore(changed).unwrap();
    assert_eq!(
        dropped.iter().map(|one| one.peer).collect::<Vec<_>>(),
        ids,
        "{dropped:?}"
    );
    assert_eq!(broker.peer_ids().count(), count - lost.len());
    broker.check_invariants().unwrap();
    broker
}

#[test]
fn a_record_that_contradicts_itself_costs_its_peer() {
    check(&[], |_| {});
    check(&[WATCHER], |state| state.peers[WATCHER].unique = None);
    check(&[NUL], |state| state.peers[NUL].unique = Some(3));
    check(&[WATCHER], |state| state.peers[WATCHER].phase = PhaseV1::Greeting);
    check(&[WATCHER], |state| state.peers[WATCHER].unique = Some(u64::MAX));
    check(&[WATCHER], |state| state.peers[WATCHER].sent = u64::MAX);
    check(&[WATCHER], |state| {
        state.peers[WATCHER].rules.push("type='nonsense'".to_owned())
    });
    check(&[MID_MESSAGE], |state| state.peers[MID_MESSAGE].takes_fds = false);
    check(&[NOBODY], |state| {
        state.peers[NOBODY].input_fds = vec![Fd(77), Fd(77)]
    });
    check(&[NOBODY], |state| {
        state.peers[NOBODY].output_fds = vec![(0, vec![Fd(77)])]
    });
    check(&[RECEIVER], |state| {
        state.peers[RECEIVER].output_fds[0].0 = u64::MAX
    });
    check(&[NOBODY], |state| {
        state.peers[NOBODY].input = Blob(vec![0; 200 << 20].into());
    });
    for (index, length) in [(99, 1024), (0, u64::MAX), (0, 1 << 40), (0, 1)] {
        check(&[NOBODY], |state| {
            state.peers[NOBODY].output = vec![PieceV1::Shared { index, length }];
        });
    }
}

#[test]
fn a_record_that_contradicts_another_costs_the_later_one() {
    check(&[OWNER], |state| {
        state.peers[OWNER].unique = state.peers[WATCHER].unique
    });
    check(&[NOBODY], |state| {
        state.peers[NOBODY].input_fds = state.peers[MID_MESSAGE].input_fds.clone()
    });
    check(&[WATCHER, OWNER], |state| {
        state.shared.clear();
        // Nobody else waits for bodies but these.
        for peer in [WATCHER, OWNER] {
            state.peers[peer].output = vec![PieceV1::Shared {
                index: 0,
                length: 2000,
            }];
        }
        state.peers.iter_mut().skip(WAITER).for_each(|peer| {
            peer.output.clear();
            peer.output_fds.clear();
        });
    });
    // Its own id then belongs to nobody, and what claims to be somebody else is not.
    let broker = check(&[], |state| {
        let mut again = state.peers[NOBODY].clone();
        again.unique = None;
        state.peers.insert(0, again);
        state.peers.remove(0);
    });
    assert!(broker.roster.get(state().peers[NOBODY].id).is_some());
}

#[test]
fn names_belong_to_those_who_are_there() {
    let stranger = PeerId {
        index: 4000,
        generation: 9,
    };
    let broker = check(&[], |state| {
        let names = &mut state.global.names;
        names[0].owners.insert(0, (stranger, u32::MAX));
        let twice = names[0].owners[1];
        names[0].owners.push(twice);
        let again = names[1].clone();
        names.push(again);
        for name in ["", ":1.2", "no dots", "a.b\0"] {
            names.push(NameV1 {
                name: name.to_owned(),
                owners: vec![(state.peers[NOBODY].id, 0)],
            });
        }
        names.push(NameV1 {
            name: "n.n".to_owned(),
            owners: vec![(state.peers[NUL].id, 0)],
        });
        state.peers[NOBODY].names = vec!["x.y".to_owned(), "never.heard".to_owned()];
        state.peers[OWNER].names.clear();
    });
    assert_eq!(broker.names.owner("x.y"), Some(state().peers[OWNER].id));
    assert_eq!(broker.names.len(), 2);
}

#[test]
fn calls_are_open_where_both_ends_say_so() {
    let stranger = PeerId {
        index: 4000,
        generation: 9,
    };
    let broker = check(&[], |state| {
        state.peers[NOBODY].owed = vec![
            (stranger, 1, Some(Millis(u64::MAX))),
            (state.peers[WATCHER].id, 2, None),
        ];
        state.peers[NOBODY].awaited = vec![(stranger, 1), (state.peers[NUL].id, 3)];
        state.peers[NUL].owed = vec![(state.peers[NUL].id, 5, Some(Millis(0)))];
    });
    assert_eq!(broker.calls.awaited_count(state().peers[NOBODY].id), 0);
}

#[test]
fn a_roster_of_strangers_costs_nobody() {
    let mut changed = state();
    let count = changed.peers.len();
    let stranger = PeerId {
        index: u32::MAX,
        generation: 9,
    };
    changed
        .global
        .roster
        .extend([(stranger, Some(u64::MAX)), (stranger, None)]);
    changed.global.reload.callers.push((stranger, 0));
    changed.global.reload.reading = Some((7, vec![(stranger, 3)]));
    changed.global.restart.upgrade = UpgradeV1::HandingOver {
        caller: Some((stranger, 0)),
    };
    let (broker, dropped) = Broker::restore(changed).unwrap();
    assert_eq!((broker.peer_ids().count(), dropped.len()), (count, 1));
}

#[test]
fn without_numbers_for_names_there_is_no_bus() {
    let mut changed = state();
    changed.global.next_unique = u64::MAX;
    assert!(Broker::restore(changed).is_err());
}
