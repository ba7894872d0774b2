//! The manifest: which descriptor number each handle of the broker's state and of the log stands for.
//!
//! State and log name descriptors by handles, and only this table knows numbers: whoever comes to have the same
//! descriptors under other numbers rewrites the table, and nothing else. An entry tells with which record it came, so
//! that one whose record was never written is known for what it is.
//!
//! ```text
//! free ──assign──> announced ──its record is in the log──> owned ──the descriptor is closed, forget──> free
//! ```

#![allow(unsafe_code, reason = "reads and writes entries in mapped memory")]

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bus_wire::Fd;

use crate::os::build;
use crate::os::region::Region;

/// Handles there may be: more than any process has descriptors by default.
const MOST: u32 = 1 << 20;
const ENTRY: usize = size_of::<Entry>();
/// The first entry's place holds the count of entries that were ever used.
const LEN: usize = (MOST as usize + 1) * ENTRY;

#[repr(C)]
struct Entry {
    /// The number of the record that the handle came with, plus 1; 0 = it was there before the log's first record.
    born: AtomicU64,
    /// The descriptor's number, plus 1; 0 = the handle is free.
    number: AtomicU32,
    /// CRC-32C of handle, birth and number. In the first place: the count.
    check: AtomicU32,
}

/// The table, in shared memory that outlives the worker.
pub(crate) struct Manifest {
    region: Region,
    /// Handles that are free again; the smallest is used next. `None`: not known yet, after a death.
    free: Option<BinaryHeap<Reverse<u32>>>,
}

impl Manifest {
    /// An empty table in a new region.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self {
            region: Region::create(c"bus-manifest", LEN)?,
            free: Some(BinaryHeap::new()),
        })
    }

    /// The table of a worker that died.
    pub(crate) fn reopen(region: Region) -> Self {
        Self { region, free: None }
    }

    /// Its memory.
    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// A handle for a descriptor that comes with the record of this number. `None`: there are no more handles.
    pub(crate) fn assign(&mut self, number: RawFd, record: u64) -> Option<Fd> {
        let index = match self.free(record).pop() {
            Some(Reverse(index)) => index,
            None => {
                let index = self.count().load(Ordering::Relaxed);
                if index >= MOST {
                    return None;
                }
                self.count().store(index + 1, Ordering::Relaxed);
                index
            }
        };
        self.write(index, number, record + 1);
        Some(Fd(index.cast_signed()))
    }

    /// The free handles. After a death they are those that are empty, or came with records that were never written: what
    /// the dead worker would have used next is used next.
    fn free(&mut self, records: u64) -> &mut BinaryHeap<Reverse<u32>> {
        let is_free = |entry: &Entry| {
            entry.number.load(Ordering::Acquire) == 0 || entry.born.load(Ordering::Acquire) > records
        };
        let used = 0..self.used();
        let region = self.region;
        self.free.get_or_insert_with(|| {
            let free = used.filter(|index| is_free(entry_at(region, *index as usize + 1)));
            free.map(Reverse).collect()
        })
    }

    /// A handle for a descriptor that was there before the log's first record.
    pub(crate) fn restore(&mut self, handle: Fd, number: RawFd) -> bool {
        let Some(index) = u32::try_from(handle.0).ok().filter(|index| *index < MOST) else {
            return false;
        };
        self.count().fetch_max(index + 1, Ordering::Relaxed);
        self.write(index, number, 0);
        true
    }

    fn write(&self, index: u32, number: RawFd, born: u64) {
        let entry = self.entry(index);
        // In this order: a number is never seen with the birth of another.
        entry.born.store(born, Ordering::Release);
        entry.number.store(number.cast_unsigned() + 1, Ordering::Release);
        entry.check.store(
            checksum(index, born, number.cast_unsigned() + 1),
            Ordering::Release,
        );
    }

    /// The number that a handle stands for, if the entry is as it was written.
    pub(crate) fn verified(&self, handle: Fd) -> Option<RawFd> {
        let number = self.number(handle)?;
        let index = handle.0.cast_unsigned();
        let entry = self.entry(index);
        let born = entry.born.load(Ordering::Acquire);
        let check = checksum(index, born, number.cast_unsigned() + 1);
        (entry.check.load(Ordering::Acquire) == check).then_some(number)
    }

    /// The number that a handle stands for.
    pub(crate) fn number(&self, handle: Fd) -> Option<RawFd> {
        let index = u32::try_from(handle.0)
            .ok()
            .filter(|index| *index < self.used())?;
        let number = self.entry(index).number.load(Ordering::Acquire);
        number.checked_sub(1).map(u32::cast_signed)
    }

    /// The descriptor of this handle is closed.
    pub(crate) fn forget(&mut self, handle: Fd) {
        if let Ok(index) = u32::try_from(handle.0)
            && index < self.used()
        {
            self.entry(index).number.store(0, Ordering::Release);
            if let Some(free) = &mut self.free {
                free.push(Reverse(index));
            }
        }
    }

    /// The numbers whose records are among the first `records` of the log.
    pub(crate) fn known(&self, records: u64) -> BTreeSet<RawFd> {
        let entries = (0..self.used()).map(|index| self.entry(index));
        entries
            .filter(|entry| entry.born.load(Ordering::Acquire) <= records)
            .filter_map(|entry| entry.number.load(Ordering::Acquire).checked_sub(1))
            .map(u32::cast_signed)
            .collect()
    }

    /// Only `owned` handles are in use, after a replay; all others are free.
    pub(crate) fn settle(&mut self, owned: &BTreeSet<Fd>) {
        let unowned = (0..self.used()).filter(|index| !owned.contains(&Fd(index.cast_signed())));
        let mut free = BinaryHeap::new();
        for index in unowned {
            self.entry(index).number.store(0, Ordering::Release);
            free.push(Reverse(index));
        }
        self.free = Some(free);
    }

    fn used(&self) -> u32 {
        self.count().load(Ordering::Relaxed).min(MOST)
    }

    /// How many entries were ever used.
    fn count(&self) -> &'static AtomicU32 {
        &entry_at(self.region, 0).check
    }

    fn entry(&self, index: u32) -> &'static Entry {
        entry_at(self.region, index as usize + 1)
    }
}

fn entry_at(region: Region, place: usize) -> &'static Entry {
    // SAFETY: in range (asserted by `at`), aligned, any bits are a value of its atomics, mapped for the life of the
    // process.
    unsafe { &*region.at(place * ENTRY, ENTRY).cast::<Entry>() }
}

fn checksum(index: u32, born: u64, number: u32) -> u32 {
    /// Aligned, for the sake of the checksum.
    #[repr(align(8))]
    struct Words([u8; 16]);
    let Words(fields) = &mut Words([0; 16]);
    fields[..8].copy_from_slice(&born.to_ne_bytes());
    fields[8..12].copy_from_slice(&index.to_ne_bytes());
    fields[12..].copy_from_slice(&number.to_ne_bytes());
    crc32c::crc32c_append(build::id(), fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_stands_for_a_number_until_it_is_forgotten() {
        let mut manifest = Manifest::create().unwrap();
        let first = manifest.assign(17, 0).unwrap();
        let second = manifest.assign(0, 1).unwrap();
        assert_ne!(first, second);
        assert_eq!(manifest.number(first), Some(17));
        assert_eq!(manifest.number(second), Some(0));
        manifest.forget(first);
        assert_eq!(manifest.number(first), None);
        assert_eq!(manifest.assign(18, 2), Some(first));
        assert_eq!(manifest.number(Fd(-1)), None);
        assert_eq!(manifest.number(Fd(i32::MAX)), None);
    }

    #[test]
    fn what_came_with_a_record_that_was_never_written_is_not_known() {
        let mut manifest = Manifest::create().unwrap();
        manifest.restore(Fd(3), 30);
        let owned = manifest.assign(31, 0).unwrap();
        manifest.assign(32, 1).unwrap();
        assert_eq!(manifest.known(0), BTreeSet::from([30]));
        assert_eq!(manifest.known(1), BTreeSet::from([30, 31]));
        let mut next = Manifest::reopen(manifest.region());
        next.settle(&BTreeSet::from([Fd(3), owned]));
        assert_eq!(next.known(u64::MAX), BTreeSet::from([30, 31]));
        let again: BTreeSet<Fd> = (0..4).filter_map(|n| next.assign(40 + n, 1)).collect();
        assert!(!again.contains(&owned) && !again.contains(&Fd(3)));
    }
}
