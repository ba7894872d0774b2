//! A state in the forms that other builds read: what an older version has no place for is put where it has, or refused with
//! whose it is.

use bus_daemon::broker::{Blob, Broker, PeerId};
use bus_daemon::handoff::container::{IfUnknown, Writer};
use bus_daemon::handoff::form::{Form, Output, Reads, VERSION};
use bus_daemon::handoff::image::{self, ForeignRecord, Restored, SaveError, Whose};
use bus_daemon::handoff::stored::{BacklogV1, Backlogs, LAYOUT, StandIn, Stored};
use bus_wire::PieceState;
use bytes::Bytes;

use crate::image::{load, number, worker};
use crate::rich::rich;

/// A bus of which every peer, those with descriptors on their way too, has this many bytes in the store and more behind them.
fn with_store(waiting: u64) -> Restored {
    let mut rich = rich();
    let end = |broker: &Broker, peer: PeerId| broker.send_queue(peer).unwrap().end();
    let peers: Vec<PeerId> = rich.bus.broker.peer_ids().collect();
    let backlogs = peers.iter().map(|peer| {
        let end = end(&rich.bus.broker, *peer);
        BacklogV1::without_pages(peer.to_u64(), end.saturating_sub(waiting), end)
    });
    let backlogs: Vec<BacklogV1> = backlogs.filter(|backlog| !backlog.is_empty()).collect();
    for backlog in &backlogs {
        rich.bus
            .broker
            .note_output_kept(PeerId::from_u64(backlog.owner()).index);
    }
    let worker = image::WorkerState {
        stored: Some(Stored {
            backlogs,
            ..Stored::default()
        }),
        ..worker(&rich.bus.broker)
    };
    let saved = image::save(&rich.bus.broker, &worker, |handle| Some(number(handle)));
    load(&saved.unwrap()).unwrap()
}

fn save_as(form: Form, restored: &Restored, output: &mut dyn Backlogs) -> Result<Vec<u8>, SaveError> {
    image::save_as(
        form,
        &restored.broker,
        &restored.worker,
        |handle| Some(number(handle)),
        output,
    )
}

fn whole(bytes: &[u8]) -> Restored {
    let restored = load(bytes).unwrap();
    assert_eq!(
        (restored.dropped.as_slice(), restored.damage.as_slice()),
        (&[][..], &[][..])
    );
    restored.broker.check_invariants().unwrap();
    restored
}

fn without_store() -> [Form; 2] {
    [Form::new(2, None).unwrap(), Form::INLINE]
}

#[test]
fn whoever_has_no_store_gets_what_waits_in_the_state_itself() {
    let given = with_store(u64::MAX);
    let queue = |broker: &Broker, peer| {
        let queue = broker.send_queue(peer).unwrap();
        let fds: Vec<_> = queue.fds().zip(queue.fd_positions()).collect();
        (queue.sent(), queue.end(), fds)
    };
    for form in without_store() {
        let bytes = save_as(form, &given, &mut StandIn).unwrap();
        let read = whole(&bytes);
        assert_eq!(read.version, form.version());
        assert_eq!(
            (read.worker.stored.as_ref(), read.broker.stored_offsets()),
            (None, vec![])
        );
        for peer in given.broker.peer_ids() {
            assert_eq!(queue(&read.broker, peer), queue(&given.broker, peer));
        }
        // Whoever reads it writes the same: so a trial can compare.
        assert!(save_as(form, &read, &mut StandIn).unwrap() == bytes);
    }
    assert_eq!(Form::new(2, Some(LAYOUT)).unwrap().output(), Output::Inline);
    assert_eq!(Form::new(1, None), None);
}

/// Bytes that tell their place in the stream, in pieces of uneven lengths.
struct Places;

impl Backlogs for Places {
    fn pieces(&mut self, backlog: &BacklogV1, from: u64, _: &[u64]) -> Result<Vec<PieceState>, String> {
        let bytes: Vec<u8> = (from..backlog.end()).map(|at| at as u8).collect();
        let pieces = bytes
            .chunks(1500)
            .enumerate()
            .map(|(index, chunk)| match index % 2 {
                0 => PieceState::Shared(Bytes::copy_from_slice(chunk)),
                _ => PieceState::Inline(chunk.to_vec()),
            });
        Ok(pieces.collect())
    }
}

#[test]
fn the_bytes_that_waited_come_first_and_in_order() {
    let given = with_store(u64::MAX);
    for form in without_store() {
        let read = whole(&save_as(form, &given, &mut Places).unwrap());
        let mut bytes = 0;
        for peer in read.broker.peer_ids() {
            let queue = read.broker.send_queue(peer).unwrap();
            let expected: Vec<u8> = (queue.sent()..queue.end()).map(|at| at as u8).collect();
            assert_eq!(queue.to_bytes(), expected);
            bytes += expected.len();
        }
        assert!(bytes > 5_000, "{bytes}");
    }
}

#[test]
fn zeros_that_stand_in_cost_next_to_nothing() {
    let backlog = BacklogV1::without_pages(7, 1_000, 1_000 + (1 << 30));
    let cuts = [500_000, 500_001, 900_000, u64::MAX];
    let pieces = StandIn.pieces(&backlog, 2_000, &cuts).unwrap();
    let mut at = 2_000;
    let mut starts = Vec::new();
    for piece in &pieces {
        let PieceState::Shared(bytes) = piece else {
            panic!("{piece:?}")
        };
        assert!(bytes.iter().all(|byte| *byte == 0));
        starts.push(at);
        at += bytes.len() as u64;
    }
    assert_eq!(at, backlog.end());
    assert!(cuts[..3].iter().all(|cut| starts.contains(cut)));
    assert!(pieces.len() < 20_000, "{}", pieces.len());
}

#[test]
fn more_than_a_record_holds_is_refused_and_it_is_told_whose_it_is() {
    let mut restored = with_store(100);
    let stored = restored.worker.stored.as_mut().unwrap();
    let peer = PeerId::from_u64(stored.backlogs[0].owner());
    let sent = restored.broker.send_queue(peer).unwrap().sent();
    stored.backlogs[0] = BacklogV1::without_pages(peer.to_u64(), sent, sent + (1 << 30) + 1);
    for form in without_store() {
        let error = save_as(form, &restored, &mut StandIn).unwrap_err();
        let SaveError::Inexpressible { whose, version, .. } = &error else {
            panic!("{error}")
        };
        assert!(matches!(whose, Whose::Peer { index, .. } if *index == peer.index));
        assert_eq!(*version, form.version());
        let text = error.to_string();
        assert!(text.starts_with("peer :1.0 (user 1000, process"), "{text}");
        assert!(text.contains("a gigabyte"), "{text}");
    }
}

/// An image of this build with a record that it does not know.
fn with_record(if_unknown: IfUnknown) -> Vec<u8> {
    let restored = with_store(0);
    let bytes = save_as(Form::OWN, &restored, &mut StandIn).unwrap();
    let mut writer = Writer::new(u32::from_le_bytes(bytes[12..16].try_into().unwrap()));
    for record in bus_daemon::handoff::container::Reader::new(&bytes).unwrap() {
        writer.encoded(record.unwrap());
    }
    writer.record(777, 9, if_unknown, &"from a later build").unwrap();
    writer.finish()
}

#[test]
fn records_of_later_builds_are_refused_skipped_or_carried_along() {
    let refused = load(&with_record(IfUnknown::Refuse)).unwrap_err();
    assert!(refused.to_string().contains("type 777 version 9"), "{refused}");
    let skipped = whole(&with_record(IfUnknown::Skip));
    assert_eq!(skipped.worker.foreign, []);

    let given = with_record(IfUnknown::Carry);
    let carried = whole(&given);
    assert!(matches!(
        carried.worker.foreign.as_slice(),
        [ForeignRecord {
            kind: 777,
            version: 9,
            body: Blob(_)
        }]
    ));
    assert!(save_as(Form::OWN, &carried, &mut StandIn).unwrap() == given);
    let inline = whole(&save_as(Form::INLINE, &carried, &mut StandIn).unwrap());
    assert_eq!(inline.worker.foreign, carried.worker.foreign);
    // Version 2 knows nothing of that.
    let error = save_as(Form::new(2, None).unwrap(), &carried, &mut StandIn).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("the bus has a record of a later version") && text.contains("version 2"),
        "{text}"
    );
}

#[test]
fn this_build_reads_what_it_writes() {
    let reads = Reads::own();
    assert!(reads.versions.contains(&VERSION) && reads.layouts.contains(&LAYOUT));
    for version in reads.versions.clone().filter(|version| *version > 1) {
        assert!(Form::new(version, Some(LAYOUT)).is_some(), "{version}");
    }
}
