//! Tests of the store, over memory that counts calls, fails, dies and is damaged on demand.

mod cost;
mod damage;
mod deaths;
mod layout;
mod memory;
mod model;

use std::rc::Rc;

use super::{BacklogV1, Medium, Store};
use memory::Memory;

const SALT: u32 = 0x5eed_0001;

type TestStore = Store<Rc<Memory>>;

/// Pseudo-random numbers from a seed.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

fn new_store() -> (Rc<Memory>, TestStore) {
    let memory = Rc::new(Memory::default());
    (memory.clone(), Store::create(memory, SALT))
}

/// All that a backlog holds, read in pieces of so many bytes.
fn read_all<M: Medium>(store: &mut Store<M>, backlog: &BacklogV1, piece: usize) -> super::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        let at = backlog.start + all.len() as u64;
        let filled = store.read(backlog, at, &mut buffer)?;
        if filled == 0 {
            assert_eq!(at, backlog.end, "a read ended early");
            return Ok(all);
        }
        all.extend_from_slice(&buffer[..filled]);
    }
}

/// Does all that was put off.
fn settle(store: &mut TestStore) {
    for _ in 0..3 {
        while store.step(500).unwrap() {}
        store.flush().unwrap();
        store.committed();
    }
    while store.step(500).unwrap() {}
}
