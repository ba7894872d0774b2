//! A model beside the store: plain queues of bytes, and what they refer to.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::class::Item;
use super::super::page::{NONE, page_item};
use super::super::walk::Page;
use super::super::{BacklogV1, ExtentPlace, Medium, Store, StoreError};
use super::memory::Memory;
use super::{Dice, SALT, TestStore, new_store, read_all, settle};

/// One peer: what the store has of it, and the bytes that must be.
#[derive(Clone)]
struct Peer {
    backlog: BacklogV1,
    bytes: Vec<u8>,
}

impl Peer {
    fn new(number: u64) -> Self {
        Self {
            backlog: BacklogV1::empty(number, number * 1000),
            bytes: Vec::new(),
        }
    }

    /// Drops bytes that are sent.
    fn advance(&mut self, store: &mut TestStore, count: usize) -> Result<(), StoreError> {
        let before = self.backlog.start;
        let result = store.advance(&mut self.backlog, before + count as u64);
        self.bytes.drain(..(self.backlog.start - before) as usize);
        result?;
        let again = self.backlog;
        store.advance(&mut self.backlog, before + count as u64)?;
        assert_eq!(self.backlog, again, "the second time does something");
        Ok(())
    }
}

/// An extent that the caller holds, and what it has written there.
#[derive(Clone)]
struct Held {
    place: ExtentPlace,
    bytes: Vec<u8>,
}

/// A store and the model beside it.
pub(super) struct Bus {
    pub(super) memory: Rc<Memory>,
    store: TestStore,
    peers: Vec<Peer>,
    extents: Vec<Held>,
    committed: (Vec<Peer>, Vec<Held>),
    next_peer: u64,
    dice: Dice,
}

impl Bus {
    pub(super) fn new(seed: u64) -> Self {
        let (memory, store) = new_store();
        let peers: Vec<Peer> = (1..6).map(Peer::new).collect();
        Self {
            memory,
            store,
            committed: (peers.clone(), Vec::new()),
            peers,
            extents: Vec::new(),
            next_peer: 6,
            dice: Dice(seed),
        }
    }

    /// One random thing. Errors: the medium's.
    pub(super) fn act(&mut self) -> Result<(), StoreError> {
        let result = match self.dice.below(14) {
            0..6 => self.checkpoint(true),
            6..9 => self.drain(),
            9 => self.leave(),
            10 => self.checkpoint(false),
            11 => self.lend_or_release(),
            _ => {
                let budget = self.dice.below(400);
                self.store.step(budget).map(|_| ())
            }
        };
        let (held, allocated) = (self.store.held(), self.memory.allocated().unwrap());
        assert!(held >= allocated, "{allocated} bytes taken, {held} told");
        result
    }

    /// Appends to some peers and commits; or fails, and goes back to the peers as they were before the appends.
    fn checkpoint(&mut self, is_committed: bool) -> Result<(), StoreError> {
        self.store.begin_checkpoint();
        for index in 0..self.peers.len() {
            if self.dice.below(3) == 0 {
                let count = self.dice.below(self.peers[index].bytes.len() + 1);
                self.peers[index].advance(&mut self.store, count)?;
            }
        }
        let before = self.peers.clone();
        let mut bodies = Vec::new();
        let mut result = (0..self.dice.below(30)).try_for_each(|_| self.append(&mut bodies));
        if self.dice.below(4) == 0 {
            // Readers see what is not written yet, too.
            result = result.and_then(|()| self.drain_some(0));
        }
        if is_committed && result.is_ok() {
            result = self.store.flush();
        }
        if is_committed && result.is_ok() {
            self.committed = (self.peers.clone(), self.extents.clone());
            self.store.committed();
            return Ok(());
        }
        for (peer, old) in self.peers.iter_mut().zip(before) {
            if self.memory.is_dead.get() {
                break;
            }
            self.store
                .revert(&mut peer.backlog, old.backlog)
                .expect("nothing is damaged");
            *peer = old;
        }
        result
    }

    fn len(&mut self) -> usize {
        match self.dice.below(20) {
            0..12 => 1 + self.dice.below(300),
            12..17 => 1 + self.dice.below(6000),
            17..19 => 1 + self.dice.below(70_000),
            _ => 1 + self.dice.below(200_000),
        }
    }

    /// One message for some peers: shared bytes, or their own, or part of an extent.
    fn append(&mut self, bodies: &mut Vec<Vec<u8>>) -> Result<(), StoreError> {
        let len = self.len();
        let body = self.dice.bytes(len);
        let end = body.as_ptr() as usize + len;
        let readers = self.dice.next();
        let kind = self.dice.below(6);
        for index in 0..self.peers.len() {
            if readers >> index & 1 == 0 {
                continue;
            }
            let peer = &mut self.peers[index];
            if kind == 0 && !self.extents.is_empty() {
                let held = &self.extents[self.dice.below(self.extents.len())];
                let from = self.dice.below(held.bytes.len());
                let count = 1 + self.dice.below(held.bytes.len() - from);
                self.store
                    .append_extent(&mut peer.backlog, held.place, from as u32, count as u32)?;
                peer.bytes.extend_from_slice(&held.bytes[from..from + count]);
                continue;
            }
            // A reader whose socket has taken part of it waits for the rest only.
            let from = if kind == 1 { self.dice.below(len) } else { 0 };
            if kind == 2 {
                self.store.append_inline(&mut peer.backlog, &body[from..])?;
            } else {
                self.store.append_body(&mut peer.backlog, end, &body[from..])?;
            }
            peer.bytes.extend_from_slice(&body[from..]);
        }
        bodies.push(body);
        Ok(())
    }

    /// A peer's socket takes some bytes.
    fn drain(&mut self) -> Result<(), StoreError> {
        let chance = self.dice.below(2);
        self.drain_some(chance)
    }

    fn drain_some(&mut self, advances: usize) -> Result<(), StoreError> {
        let index = self.dice.below(self.peers.len());
        let peer = &mut self.peers[index];
        let mut sent = self.dice.below(peer.bytes.len() + 1);
        let mut buffer = vec![0; 1 + self.dice.below(100_000)];
        for _ in 0..self.dice.below(8) {
            let filled = self
                .store
                .read(&peer.backlog, peer.backlog.start + sent as u64, &mut buffer)?;
            assert_eq!(filled, buffer.len().min(peer.bytes.len() - sent));
            assert!(buffer[..filled] == peer.bytes[sent..sent + filled], "other bytes");
            sent += if self.dice.below(3) == 0 {
                self.dice.below(filled + 1)
            } else {
                filled
            };
        }
        if advances > 0 {
            peer.advance(&mut self.store, sent)?;
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), StoreError> {
        let index = self.dice.below(self.peers.len());
        let peer = std::mem::replace(&mut self.peers[index], Peer::new(self.next_peer));
        self.next_peer += 1;
        self.store.abandon(peer.backlog);
        Ok(())
    }

    fn lend_or_release(&mut self) -> Result<(), StoreError> {
        if self.extents.len() > self.dice.below(4) {
            let held = self.extents.swap_remove(self.dice.below(self.extents.len()));
            return self.store.release_extent(held.place);
        }
        let place = self.store.lend_extent(1 + self.dice.below(1 << 20))?;
        self.memory.grow(place.offset + place.len());
        let len = 1 + self.dice.below(place.len() as usize);
        let bytes = self.dice.bytes(len);
        self.memory.poke(place.offset, &bytes);
        self.extents.push(Held { place, bytes });
        Ok(())
    }

    /// The worker has died: its successor goes on from the last commit.
    pub(super) fn recover(&mut self) {
        self.memory = Rc::new(self.memory.survivor());
        self.store = Store::reopen(self.memory.clone(), SALT).unwrap();
        (self.peers, self.extents) = self.committed.clone();
        let backlogs = self.peers.iter().map(|peer| peer.backlog);
        self.store.begin_rebuild(backlogs);
        for held in &self.extents {
            self.store.hold_extent(held.place).unwrap();
        }
        self.store.end_naming();
    }

    /// Everything is there, byte for byte.
    pub(super) fn check(&mut self) {
        let piece = 1 + self.dice.below(50_000);
        for peer in &self.peers {
            assert_eq!(peer.backlog.len(), peer.bytes.len() as u64);
            let all = read_all(&mut self.store, &peer.backlog, piece).unwrap();
            assert!(all == peer.bytes, "peer {} has other bytes", peer.backlog.owner);
        }
        for held in &self.extents {
            let mut bytes = vec![0; held.bytes.len()];
            self.memory.pread(held.place.offset, &mut bytes).unwrap();
            assert!(bytes == held.bytes, "an extent was written to");
        }
        assert!(self.store.take_damaged().is_empty());
    }

    /// References are exactly those that can be reached.
    pub(super) fn check_counts(&mut self) {
        while self.store.step(300).unwrap() {}
        self.store.begin_checkpoint();
        assert!(!self.store.is_rebuilding());
        let mut expected: BTreeMap<Item, u32> = BTreeMap::new();
        for held in &self.extents {
            *expected.entry(held.place.item().unwrap()).or_default() += 1;
        }
        for peer in &self.peers {
            let mut page = Page::default();
            let (mut offset, mut at) = (peer.backlog.head_page, peer.backlog.head_at as usize);
            while offset != NONE {
                self.store.load(&peer.backlog, offset, &mut page).unwrap();
                *expected.entry(page_item(offset)).or_default() += 1;
                while at < page.end {
                    let record = page.record(at).unwrap();
                    if let Some(item) = record.body.item() {
                        *expected.entry(item).or_default() += 1;
                    }
                    at = record.next;
                }
                (offset, at) = (page.next, 16);
            }
        }
        assert_eq!(self.store.space.counts(), expected);
    }

    /// All are gone: so is the memory, but for what is kept for the next.
    pub(super) fn check_nothing_leaks(&mut self) {
        for peer in self.peers.drain(..) {
            self.store.abandon(peer.backlog);
        }
        for held in self.extents.drain(..) {
            self.store.release_extent(held.place).unwrap();
        }
        settle(&mut self.store);
        assert!(self.store.space.counts().is_empty());
        assert!(self.store.held() <= 1 << 20, "{} bytes held", self.store.held());
        assert!(self.memory.allocated().unwrap() <= 1 << 20);
        self.peers = (self.next_peer..self.next_peer + 5).map(Peer::new).collect();
        self.next_peer += 5;
    }
}
