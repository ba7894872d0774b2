//! Damage to any byte costs those who wait for it, and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::super::class::PAGE;
use super::super::page::{Body, NONE};
use super::super::walk::Page;
use super::super::{BacklogV1, Medium, Store, StoreError};
use super::memory::Memory;
use super::{Dice, SALT, TestStore, new_store, read_all, settle};

type Peers = Vec<(BacklogV1, Vec<u8>)>;

/// Three peers; each has pages of its own, bodies of its own, and some that it shares.
fn three_peers() -> (Rc<Memory>, TestStore, Peers) {
    let (memory, mut store) = new_store();
    let mut dice = Dice(7);
    let mut peers: Peers = (1..4)
        .map(|number| (BacklogV1::empty(number, 10), Vec::new()))
        .collect();
    let mut bodies = Vec::new();
    for number in 0..230 {
        let len = if number % 50 == 10 {
            5000
        } else {
            20 + dice.below(8)
        };
        let body = dice.bytes(len);
        for (index, (backlog, bytes)) in peers.iter_mut().enumerate() {
            let is_shared = number % 5 == 0 || number % 5 == 1 && index != 0;
            if is_shared || number % 3 == index {
                if number % 2 == 0 {
                    let key = body.as_ptr() as usize + len;
                    store.append_body(backlog, key, &body).unwrap();
                } else {
                    store.append_inline(backlog, &body).unwrap();
                }
                bytes.extend_from_slice(&body);
            }
        }
        bodies.push(body);
    }
    store.flush().unwrap();
    store.committed();
    (memory, store, peers)
}

/// Who needs each byte of the file.
fn needed_by(store: &TestStore, peers: &[(BacklogV1, Vec<u8>)]) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut needs: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (backlog, _) in peers {
        let mut need = |range: std::ops::Range<u64>| {
            range.for_each(|at| {
                needs.entry(at).or_default().insert(backlog.owner);
            });
        };
        let mut page = Page::default();
        let (mut offset, mut at) = (backlog.head_page, backlog.head_at as usize);
        while offset != NONE {
            store.load(backlog, offset, &mut page).unwrap();
            if page.next != NONE {
                need(offset..offset + 16);
            }
            while at < page.end {
                let record = page.record(at).unwrap();
                let payload = match record.body {
                    Body::Inline(_) => record.len as usize,
                    Body::Block(_) | Body::Extent { .. } => 16,
                };
                need(offset + at as u64..offset + (at + 8 + payload) as u64);
                if let Body::Block(block) = record.body {
                    need(block.item.offset()..block.item.offset() + u64::from(block.len));
                }
                at = record.next;
            }
            (offset, at) = (page.next, 16);
        }
    }
    needs
}

#[test]
fn a_damaged_byte_costs_those_who_wait_for_it() {
    let (memory, store, peers) = three_peers();
    let needs = needed_by(&store, &peers);
    let none = BTreeSet::new();
    let mut costs = [0_usize; 4];
    for frame in memory.frames() {
        for offset in frame..frame + PAGE {
            let expected = needs.get(&offset).unwrap_or(&none);
            if expected.is_empty() && offset % 16 != 3 {
                continue;
            }
            let bit = 1 << (offset % 8);
            memory.flip(offset, bit);
            let mut store = Store::reopen(memory.clone(), SALT).unwrap();
            costs[expected.len()] += 1;
            for (backlog, bytes) in &peers {
                let read = read_all(&mut store, backlog, 3000);
                match read {
                    Ok(all) => {
                        assert!(all == *bytes, "other bytes by damage at {offset}");
                        assert!(!expected.contains(&backlog.owner), "unseen damage at {offset}");
                    }
                    Err(StoreError::Damaged { owner, .. }) => {
                        assert_eq!(owner, backlog.owner);
                        assert!(expected.contains(&owner), "{owner} pays for damage at {offset}");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            memory.flip(offset, bit);
        }
    }
    assert!(
        costs.iter().all(|bytes| *bytes > 300),
        "not all was damaged: {costs:?}"
    );
}

#[test]
fn bytes_before_damage_are_given_first() {
    let (memory, mut store, peers) = three_peers();
    let (backlog, bytes) = &peers[0];
    let needs = needed_by(&store, &peers[..1]);
    for (offset, _) in needs.iter().step_by(97) {
        memory.flip(*offset, 4);
        let mut got = Vec::new();
        let mut buffer = [0; 700];
        let mut store = Store::reopen(memory.clone(), SALT).unwrap();
        while let Ok(filled) = store.read(backlog, backlog.start + got.len() as u64, &mut buffer) {
            assert!(filled > 0, "the damage at {offset} was read over");
            got.extend_from_slice(&buffer[..filled]);
        }
        assert!(bytes.starts_with(&got), "other bytes");
        memory.flip(*offset, 4);
    }
    assert!(read_all(&mut store, backlog, 700).unwrap() == *bytes);
}

#[test]
fn a_damaged_chain_is_told_and_does_not_stop_the_others() {
    let (memory, store, mut peers) = three_peers();
    let needs = needed_by(&store, &peers);
    let own = |(_, who): &(&u64, &BTreeSet<u64>)| **who == BTreeSet::from([2]);
    let offsets: Vec<u64> = needs
        .iter()
        .filter(own)
        .map(|(offset, _)| *offset)
        .step_by(131)
        .collect();
    for offset in offsets {
        let memory = Rc::new(memory.survivor());
        memory.flip(offset, 0x81);
        let mut store = Store::reopen(memory.clone(), SALT).unwrap();
        store.begin_rebuild(peers.iter().map(|(backlog, _)| *backlog));
        store.end_naming();
        settle(&mut store);
        let told = store.take_damaged();
        assert!(
            told.iter()
                .all(|error| matches!(error, StoreError::Damaged { owner: 2, .. }))
        );
        for (backlog, bytes) in [&peers[0], &peers[2]] {
            assert!(read_all(&mut store, backlog, 4000).unwrap() == *bytes);
        }
        for (backlog, _) in &peers {
            store.abandon(*backlog);
        }
        settle(&mut store);
        assert!(store.space.counts().is_empty(), "damage at {offset} leaks");
    }
    // What a checkpoint says of a backlog may be anything.
    let mut dice = Dice(3);
    for _ in 0..3000 {
        let (backlog, bytes) = &mut peers[1];
        let mut other = *backlog;
        match dice.below(7) {
            0 => other.start = dice.next() >> dice.below(64),
            1 => other.end = dice.next() >> dice.below(64),
            2 => other.head_page = dice.next() >> dice.below(64) & !4095,
            3 => other.tail_page = dice.next() >> dice.below(64) & !4095,
            4 => other.head_at = dice.below(5000) as u32,
            5 => other.head_sent = dice.below(5000) as u32,
            _ => other.tail_at = dice.next() as u32 >> dice.below(32),
        }
        let mut store = Store::reopen(memory.clone(), SALT).unwrap();
        store.begin_rebuild([other]);
        store.end_naming();
        while store.step(1000).unwrap() {}
        if let Ok(all) = store.read(&other, other.start, &mut [0; 100]) {
            assert!(all <= bytes.len());
        }
        let upto = other.start.saturating_add(5000);
        let _ = store.advance(&mut other, upto);
        store.abandon(other);
        while store.step(1000).unwrap() {}
    }
}

#[test]
fn a_page_of_anothers_is_not_taken_for_ones_own() {
    let (memory, _, peers) = three_peers();
    let mut stranger = peers[0].0;
    stranger.owner = 9;
    let mut store = Store::reopen(memory.clone(), SALT).unwrap();
    assert!(read_all(&mut store, &stranger, 100).is_err());
    let mut store = Store::create(memory.clone(), SALT + 1);
    assert!(read_all(&mut store, &peers[0].0, 100).is_err());
    assert!(memory.len().unwrap() > 0);
}

#[test]
fn what_is_only_said_of_a_backlog_takes_no_place_of_anothers() {
    let (memory, _, peers) = three_peers();
    let len = memory.len().unwrap();
    let (mut refused, mut claims) = (0, 0);
    for page in (0..len.next_multiple_of(PAGE)).step_by(PAGE as usize) {
        for (head_at, tail_page) in [(16, page), (16, peers[0].0.tail_page), (40, page)] {
            let memory = Rc::new(memory.survivor());
            let mut store = Store::reopen(memory.clone(), SALT).unwrap();
            let mut claimed = BacklogV1 {
                owner: 9,
                start: 0,
                end: 100,
                head_page: page,
                tail_page,
                head_at,
                head_sent: 0,
                tail_at: 64,
            };
            assert!(claimed.is_sound());
            claims += 1;
            // It comes first.
            store.begin_rebuild(
                [claimed]
                    .into_iter()
                    .chain(peers.iter().map(|(backlog, _)| *backlog)),
            );
            store.end_naming();
            if page % (2 * PAGE) == 0 {
                settle(&mut store);
            }
            let before = claimed;
            // It would be written over what lies there.
            let appended = store.append_inline(&mut claimed, &[0xff; 3000]);
            refused += usize::from(matches!(appended, Err(StoreError::Damaged { owner: 9, .. })));
            assert_eq!(claimed, before);
            settle(&mut store);
            for damage in store.take_damaged() {
                assert!(matches!(damage, StoreError::Damaged { owner: 9, .. }), "{damage}");
            }
            for (backlog, bytes) in &peers {
                assert!(read_all(&mut store, backlog, 4000).unwrap() == *bytes);
            }
            store.abandon(claimed);
            settle(&mut store);
            for (backlog, bytes) in &peers {
                assert!(read_all(&mut store, backlog, 4000).unwrap() == *bytes);
                store.abandon(*backlog);
            }
            settle(&mut store);
            assert!(store.space.counts().is_empty(), "{:?}", store.space.counts());
        }
    }
    assert!(refused == claims && claims > 30, "{refused} of {claims}");
}

#[test]
fn nothing_is_appended_behind_damage_and_nobodys_bytes_are_written_over() {
    let (memory, mut store, mut peers) = three_peers();
    store.append_inline(&mut peers[0].0, &[7; 9000]).unwrap();
    store.flush().unwrap();
    store.committed();
    drop(store);
    // The header of the first page, which others follow.
    let (damaged, _) = peers[0];
    assert_ne!(damaged.head_page, damaged.tail_page);
    memory.flip(damaged.head_page + 3, 0x10);
    let mut store = Store::reopen(memory.clone(), SALT).unwrap();
    store.begin_rebuild(peers.iter().map(|(backlog, _)| *backlog));
    store.end_naming();
    // Before it is known, it goes on.
    let mut early = damaged;
    store.append_inline(&mut early, b"early").unwrap();
    settle(&mut store);
    assert_eq!(store.take_damaged().len(), 1);
    // The pages behind the damage are others' from now on.
    let mut dice = Dice(5);
    for (backlog, bytes) in &mut peers[1..] {
        for _ in 0..40 {
            let more = dice.bytes(3000);
            store.append_inline(backlog, &more).unwrap();
            bytes.extend_from_slice(&more);
        }
    }
    let before = early;
    let late = store.append_inline(&mut early, &[0xff; 3000]);
    assert!(
        matches!(late, Err(StoreError::Damaged { owner: 1, .. })),
        "{late:?}"
    );
    assert_eq!(early, before);
    settle(&mut store);
    for (backlog, bytes) in &peers[1..] {
        assert!(read_all(&mut store, backlog, 4000).unwrap() == *bytes);
    }
    assert!(!store.has_lost_items());
    store.abandon(early);
    settle(&mut store);
    assert!(store.has_lost_items());
    for (backlog, bytes) in &peers[1..] {
        assert!(read_all(&mut store, backlog, 4000).unwrap() == *bytes);
    }
}
