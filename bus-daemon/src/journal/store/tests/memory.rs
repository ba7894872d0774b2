//! A file in memory that counts, fails, dies, and is damaged.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};

use super::super::Medium;
use super::super::class::PAGE;

type Frame = Box<[u8; PAGE as usize]>;

#[derive(Default)]
pub(super) struct Memory {
    frames: RefCell<BTreeMap<u64, Frame>>,
    len: Cell<u64>,
    /// Calls and bytes so far.
    pub(super) writes: Cell<u64>,
    pub(super) written: Cell<u64>,
    pub(super) reads: Cell<u64>,
    pub(super) punches: Cell<u64>,
    /// The write or punch with this number fails, and those after it as long as it says.
    pub(super) fail_at: Cell<Option<u64>>,
    /// At the write or punch with this number the worker dies: half of it is done, and nothing after it.
    pub(super) die_at: Cell<Option<u64>>,
    pub(super) is_dead: Cell<bool>,
    changes: Cell<u64>,
}

impl Memory {
    /// Writes and punches so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes.get()
    }

    pub(super) fn reset_counts(&self) {
        for count in [&self.writes, &self.written, &self.reads, &self.punches] {
            count.set(0);
        }
    }

    /// What a successor finds.
    pub(super) fn survivor(&self) -> Self {
        let survivor = Self::default();
        survivor.frames.replace(self.frames.borrow().clone());
        survivor.len.set(self.len.get());
        survivor
    }

    pub(super) fn flip(&self, offset: u64, bits: u8) {
        if let Some(frame) = self.frames.borrow_mut().get_mut(&(offset / PAGE)) {
            frame[(offset % PAGE) as usize] ^= bits;
        }
    }

    /// The pages that take memory.
    pub(super) fn frames(&self) -> Vec<u64> {
        self.frames.borrow().keys().map(|frame| frame * PAGE).collect()
    }

    /// As if the caller had written to what it maps.
    pub(super) fn poke(&self, offset: u64, bytes: &[u8]) {
        let mut frames = self.frames.borrow_mut();
        Self::each(offset, bytes.len(), |frame, start, range| {
            let from = &bytes[range];
            let frame = frames
                .entry(frame)
                .or_insert_with(|| Box::new([0; PAGE as usize]));
            frame[start..start + from.len()].copy_from_slice(from);
        });
        self.grow(offset + bytes.len() as u64);
    }

    /// As if the caller had made the file that long.
    pub(super) fn grow(&self, len: u64) {
        self.len.set(self.len.get().max(len));
    }

    /// How much of a change of `len` bytes takes place.
    fn change(&self, len: u64) -> (u64, Result<()>) {
        let number = self.changes.get();
        self.changes.set(number + 1);
        if self.is_dead.get() {
            return (0, Err(Error::other("dead")));
        }
        if self.die_at.get() == Some(number) {
            self.is_dead.set(true);
            return (len / 2, Err(Error::other("dies")));
        }
        if self.fail_at.get() == Some(number) {
            return (len / 2, Err(ErrorKind::StorageFull.into()));
        }
        (len, Ok(()))
    }

    fn each(offset: u64, len: usize, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let start = (at % PAGE) as usize;
            let part = (PAGE as usize - start).min(len - done);
            visit(at / PAGE, start, done..done + part);
            done += part;
        }
    }
}

impl Medium for std::rc::Rc<Memory> {
    fn pread(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.reads.set(self.reads.get() + 1);
        if self.is_dead.get() {
            return Err(Error::other("dead"));
        }
        if offset + bytes.len() as u64 > self.len.get() && !bytes.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let frames = self.frames.borrow();
        Memory::each(offset, bytes.len(), |frame, start, range| {
            let to = &mut bytes[range];
            match frames.get(&frame) {
                Some(frame) => to.copy_from_slice(&frame[start..start + to.len()]),
                None => to.fill(0),
            }
        });
        Ok(())
    }

    fn pwrite(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (len, result) = self.change(bytes.len() as u64);
        self.writes.set(self.writes.get() + 1);
        self.written.set(self.written.get() + len);
        if len > 0 {
            self.poke(offset, &bytes[..len as usize]);
        }
        result
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        assert!(offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0);
        let (len, result) = self.change(len);
        self.punches.set(self.punches.get() + 1);
        let mut frames = self.frames.borrow_mut();
        let gone: Vec<u64> = frames
            .range(offset / PAGE..(offset + len) / PAGE)
            .map(|(frame, _)| *frame)
            .collect();
        gone.iter().for_each(|frame| drop(frames.remove(frame)));
        result
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len.get())
    }

    fn allocated(&self) -> Result<u64> {
        Ok(self.frames.borrow().len() as u64 * PAGE)
    }
}
