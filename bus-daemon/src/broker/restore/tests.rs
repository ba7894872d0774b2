//! Records that make no sense, one contradiction at a time: what each costs.

use super::*;
use crate::broker::frozen::{PieceV1, UpgradeV1};
use crate::broker::{GlobalV1, Millis, PeerV1};
use crate::handoff::codec;
use crate::handoff::container::{IfUnknown, Reader, Writer};
use crate::handoff::image;

/// A bus with everything in it; see `tests/state_image/rich.rs`.
fn state() -> BrokerState {
    let bytes = include_bytes!("../../../tests/golden/image-v2.bin");
    image::load(bytes, NOW).unwrap().broker.save()
}

const NOW: Millis = Millis(50_000);

const WATCHER: usize = 0;
const OWNER: usize = 1;
const WAITER: usize = 2;
const MID_MESSAGE: usize = 3;
const RECEIVER: usize = 4;
const PARKED: usize = 9;
const NOBODY: usize = 11;
const NUL: usize = 12;

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
        state.peers[WATCHER]
            .rules
            .push("type='nonsense'".to_owned().into())
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
                name: name.to_owned().into(),
                owners: vec![(state.peers[NOBODY].id, 0)],
            });
        }
        names.push(NameV1 {
            name: "n.n".to_owned().into(),
            owners: vec![(state.peers[NUL].id, 0)],
        });
        state.peers[NOBODY].names = vec!["x.y".to_owned().into(), "never.heard".to_owned().into()];
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

#[test]
fn a_peer_without_a_socket_is_parked() {
    let broker = check(&[], |state| state.peers[NOBODY].socket = None);
    for (place, is_there) in [(PARKED, false), (NOBODY, false), (NUL, true)] {
        assert_eq!(broker.socket(state().peers[place].id).is_some(), is_there);
    }
    check(&[OWNER], |state| {
        state.peers[OWNER].socket = state.peers[WATCHER].socket;
    });
    check(&[MID_MESSAGE], |state| {
        state.peers[MID_MESSAGE].socket = Some(state.peers[MID_MESSAGE].input_fds[0]);
    });
}

/// What version 1 called the records.
const WORKER_RECORD: u16 = 10;
const GLOBAL_RECORD: u16 = 11;
const PEER_RECORD: u16 = 13;

/// The image of version 1, with received descriptors whose numbers are not those of sockets, as it was on a real bus.
fn version_1() -> (Vec<u8>, GlobalV1, Vec<PeerV1>) {
    let bytes = include_bytes!("../../../tests/golden/image-v1.bin");
    let mut writer = Writer::new(u32::from_le_bytes(bytes[12..16].try_into().unwrap()));
    let (mut global, mut peers) = (None, Vec::new());
    for record in Reader::new(bytes).unwrap() {
        let record = record.unwrap();
        let (kind, body) = (record.kind, record.body);
        let refuse = IfUnknown::Refuse;
        match kind {
            // Its record is put together again from what the broker knows.
            WORKER_RECORD => {}
            GLOBAL_RECORD => {
                let record: GlobalV1 = codec::decode(body).unwrap();
                writer.record(kind, 1, refuse, &record).unwrap();
                global = Some(record);
            }
            PEER_RECORD => {
                let mut record: PeerV1 = codec::decode(body).unwrap();
                let output = record.output_fds.iter_mut().flat_map(|(_, fds)| fds);
                for fd in record.input_fds.iter_mut().chain(output) {
                    fd.0 += 100;
                }
                writer.record(kind, 1, refuse, &record).unwrap();
                peers.push(record);
            }
            _ => {
                let body: (u32, Blob) = codec::decode(body).unwrap();
                writer.record(kind, 1, refuse, &body).unwrap();
            }
        }
    }
    (writer.finish(), global.unwrap(), peers)
}

#[test]
fn what_version_1_saved_is_all_there() {
    let (bytes, global, peers) = version_1();
    let restored = image::load(&bytes, NOW).unwrap();
    assert_eq!((restored.version, restored.dropped.as_slice()), (1, &[][..]));
    let broker = &restored.broker;
    broker.check_invariants().unwrap();
    let mut owned = broker.owned_fds();
    owned.sort_unstable();
    let received = (101..=105).map(Fd);
    let sockets = peers.iter().map(|peer| Fd(peer.id.index as i32));
    assert_eq!(owned, sockets.chain(received).collect::<Vec<_>>());
    assert!(
        restored
            .manifest
            .iter()
            .all(|(handle, number)| handle.0 == *number)
    );
    assert_eq!(restored.manifest.len(), owned.len());
    let state = broker.save();
    assert_eq!(state.global.now, NOW);
    let moved = |at: Millis| Millis(NOW.0 + at.0.saturating_sub(global.now.0));
    let mut deadlines = 0;
    for (old, new) in peers.iter().zip(&state.peers) {
        assert_eq!((old.id, old.unique, &old.input), (new.id, new.unique, &new.input));
        assert_eq!(
            (&old.input_fds, &old.output_fds),
            (&new.input_fds, &new.output_fds)
        );
        assert_eq!(
            (
                old.sent,
                old.names
                    .iter()
                    .cloned()
                    .map(NameTextV1::from)
                    .collect::<Vec<_>>(),
                old.rules.iter().cloned().map(RuleV1::from).collect::<Vec<_>>()
            ),
            (new.sent, new.names.clone(), new.rules.clone())
        );
        assert_eq!((&new.groups, &new.label), (&None, &None));
        assert_eq!(new.taken, old.input.0.len() as u64);
        for (old, new) in [
            (old.hello_deadline, new.hello_deadline),
            (old.fds_deadline, new.fds_deadline),
        ] {
            assert_eq!(old.map(moved), new);
            deadlines += usize::from(new.is_some());
        }
        assert_eq!(old.owed.len(), new.owed.len());
    }
    assert!(deadlines > 4, "{deadlines}");
    assert_eq!(state.global.names, global.names);
    // Version 1 saved itself for an upgrade, and that is where this one goes on.
    assert!(broker.is_handing_over());
    assert_eq!(state.global.reload.callers, global.reload_callers);
}
