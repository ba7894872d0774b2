//! All segments are looked at: the log goes on in the spare ones, and a replay finds each record.

use super::*;

/// Bytes that one turn reads at most: see `runtime/worker/turn`.
const TURN: usize = (512 + 33) * 2048;

/// One read, all of it of this byte.
fn read(log: &mut Log, byte: u8) -> Bytes {
    let room = log.room();
    // SAFETY: the room is writable, and that long.
    unsafe { room.start.write_bytes(byte, room.len) };
    log.finish_read(Fields::new(7, u64::from(byte)), room.len, &[])
}

/// A log of which somebody looks at every segment but the spare ones.
fn pinned() -> (Log, Vec<Bytes>) {
    let (mut log, _) = Log::create().unwrap();
    let mut all = Vec::new();
    while !log.is_in_spare() {
        let before = log.current;
        let data = read(&mut log, 0);
        if log.current != before || all.is_empty() {
            all.push(data.slice(..1));
            log.checkpointed();
        }
    }
    assert_eq!(all.len(), MOST + 1, "the last one was copied");
    log.checkpointed();
    (log, all)
}

/// Reads until the turn is over, or the log says that no more may be read in it.
fn turn(log: &mut Log, next: &mut u8) {
    let mut bytes = 0;
    while bytes < TURN && !log.is_short_of_segments() {
        *next = next.wrapping_add(1);
        bytes += read(log, *next).len();
    }
}

#[test]
fn no_record_that_a_replay_needs_is_written_over() {
    for turns in 0..40 {
        let (mut log, looked_at) = pinned();
        let mut next = 0;
        for _ in 0..turns {
            turn(&mut log, &mut next);
            assert!(log.wants_checkpoint(1_000_000) && log.is_checkpoint_overdue());
            log.checkpointed();
        }
        // A turn whose checkpoint cannot be taken, and what it sends.
        let (from, first) = (log.end(), next);
        turn(&mut log, &mut next);
        turn(&mut log, &mut next);
        for peer in 0..10_000 {
            log.append(Kind::Sent, Fields::new(peer, 1), &[]);
        }
        assert!(!log.is_incomplete(), "after {turns} turns");
        let (region, end) = (log.region(), log.sequence());
        drop((log, looked_at));

        let (mut log, _) = Log::reopen(region);
        log.rewind(from);
        let mut byte = first;
        while log.has_more() {
            let record = log.read_next().unwrap();
            if record.kind == Kind::Received {
                byte = byte.wrapping_add(1);
                assert!(record.data.iter().all(|found| *found == byte));
                assert_eq!(record.header.number, u64::from(byte));
            }
        }
        assert_eq!((log.sequence(), byte), (end, next), "after {turns} turns");
        log.resume();
    }
}

#[test]
fn spare_segments_are_left_when_others_are_free() {
    let (mut log, looked_at) = pinned();
    let mut next = 0;
    turn(&mut log, &mut next);
    assert!(log.is_in_spare());
    log.checkpointed();
    drop(looked_at);
    turn(&mut log, &mut next);
    assert!(!log.is_in_spare() && !log.is_short_of_segments());
}

/// With more than any turn writes the worker must not go on as if a death cost nothing.
#[test]
fn a_log_without_any_room_asks_for_a_checkpoint_before_anything_is_sent() {
    let (mut log, _looked_at) = pinned();
    while !log.is_incomplete() {
        read(&mut log, 1);
        assert!(log.retained.len() <= SPARES + 1);
    }
    assert!(log.is_short_of_segments());
}
