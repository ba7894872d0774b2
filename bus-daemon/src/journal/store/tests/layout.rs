//! The layout of the store is frozen: what a build wrote, every later one reads.
//!
//! The golden file is written once, by the build that begins a layout, and never again:
//! `cargo test -p bus-daemon --lib -- --ignored write_golden_store`

use std::path::PathBuf;
use std::rc::Rc;

use bus_wire::PieceState;
use serde::{Deserialize, Serialize};

use super::super::class::PAGE;
use super::super::{Exported, Medium};
use super::memory::Memory;
use super::{BacklogV1, Dice, SALT, Store, new_store};
use crate::handoff::codec;

/// Pages of a store that are not all zeros, and the backlogs in it.
#[derive(Serialize, Deserialize)]
struct Golden {
    pages: Vec<(u64, Vec<u8>)>,
    backlogs: Vec<BacklogV1>,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store-layout-1.bin")
}

/// For each of two peers what waits for it: short messages of its own, bodies that both wait for, parts of these, and more
/// than one page of records.
fn contents() -> [Vec<Vec<u8>>; 2] {
    let mut dice = Dice(1);
    let shared: Vec<Vec<u8>> = [100, 4_000, 5_000, 9_000].map(|len| dice.bytes(len)).into();
    [1, 2].map(|peer| {
        let own = (0..20 * peer).map(|index| dice.bytes(1 + 37 * index % 250));
        own.chain(shared.iter().cloned()).collect()
    })
}

#[test]
#[ignore = "writes the golden file of a new layout; never for one that was released"]
fn write_golden_store() {
    let (memory, mut store) = new_store();
    store.begin_checkpoint();
    let backlogs = [(7, 0), (1 << 32 | 8, 1)].map(|(owner, place): (u64, usize)| {
        let mut backlog = BacklogV1::empty(owner, 1_000);
        for (index, bytes) in contents()[place].iter().enumerate() {
            match bytes.len() {
                0..=250 => store.append_inline(&mut backlog, bytes).unwrap(),
                // The same body for both, known by its length here.
                len => store.append_body(&mut backlog, len, bytes).unwrap(),
            }
            if index == 2 {
                store.advance(&mut backlog, 1_010).unwrap();
            }
        }
        backlog
    });
    store.flush().unwrap();
    let page = |offset: u64| {
        let mut bytes = vec![0; PAGE as usize];
        let len = PAGE.min(memory.len().unwrap() - offset) as usize;
        memory.pread(offset, &mut bytes[..len]).unwrap();
        (offset, bytes)
    };
    let golden = Golden {
        pages: memory.frames().into_iter().map(page).collect(),
        backlogs: backlogs.to_vec(),
    };
    std::fs::write(path(), codec::encode(&golden).unwrap()).unwrap();
}

#[test]
fn layout_1_is_read() {
    let golden: Golden = codec::decode(&std::fs::read(path()).unwrap()).unwrap();
    let memory = Rc::new(Memory::default());
    for (offset, bytes) in &golden.pages {
        memory.poke(*offset, bytes);
    }
    let mut store = Store::reopen_older(memory, SALT, 1).unwrap();
    let mut known = Exported::default();
    for (backlog, contents) in golden.backlogs.iter().zip(contents()) {
        let expected = contents.concat();
        assert_eq!(
            (backlog.start, backlog.end),
            (1_010, 1_000 + expected.len() as u64)
        );
        let pieces = store.export(backlog, 1_010, &mut known).unwrap();
        let bytes = pieces.iter().flat_map(|piece| match piece {
            PieceState::Inline(bytes) => bytes.as_slice(),
            PieceState::Shared(bytes) => &bytes[..],
        });
        assert!(bytes.eq(&expected[10..]));
    }
    // What both wait for is read once.
    assert_eq!(known.len(), 3);
}

/// An export begins anywhere, and gives what a read gives.
#[test]
fn an_export_is_what_is_read() {
    let (_, mut store) = new_store();
    let mut dice = Dice(2);
    let mut backlog = BacklogV1::empty(3, 50);
    store.begin_checkpoint();
    let mut all = Vec::new();
    for index in 0..200 {
        let bytes = dice.bytes(1 + dice.clone().below(3_000));
        match index % 2 {
            0 => store.append_inline(&mut backlog, &bytes).unwrap(),
            _ => store
                .append_body(&mut backlog, 1_000_000 * index, &bytes)
                .unwrap(),
        }
        all.extend_from_slice(&bytes);
    }
    let mut sent = 0;
    for round in 0..40 {
        let from = sent + dice.below(all.len() - sent);
        let at = 50 + from as u64;
        let pieces = store.export(&backlog, at, &mut Exported::default()).unwrap();
        let bytes: Vec<u8> = pieces
            .into_iter()
            .flat_map(|piece| match piece {
                PieceState::Inline(bytes) => bytes,
                PieceState::Shared(bytes) => bytes.to_vec(),
            })
            .collect();
        assert!(bytes == all[from..], "from {from}");
        if round % 10 == 9 {
            sent = from;
            store.advance(&mut backlog, at).unwrap();
        }
    }
}
