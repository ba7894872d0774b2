//! For tests: a second memory that is kept equal to a living worker's, to be replayed while that worker stands still.
//! A replay writes, so it cannot be tried on the memory itself.

#![allow(unsafe_code, reason = "copies between mapped memories")]

use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use bus_wire::Fd;

use super::Journal;
use super::header::{Commit, HEADER_LEN, Header, Slot};
use super::log::{LEAST_READ, Position, SEGMENT};
use super::manifest::Manifest;
use super::replay::Remains;
use crate::os::region::Region;

/// More than any one instruction stores.
const WIDEST_STORE: usize = 64;

/// A worker's memory and its copy.
pub(crate) struct Mirror {
    live: Remains,
    copy: Remains,
}

/// Something to spoil in the copy, to see whether that is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// The in-flight slot tells of no call.
    Disarm,
    /// The in-flight slot lacks the kernel's count.
    LoseCount,
    /// The in-flight slot tells of an offset that is one too high.
    ShiftOffset,
    /// The manifest has lost every number.
    LoseNumbers,
    /// The newest checkpoint's description is not whole.
    TearCommit,
}

impl Mirror {
    /// Of the memory that `live` tells of.
    pub(crate) fn of(live: Remains) -> Result<Self> {
        let copy = Journal::create()?.remains();
        let mut mirror = Self { live, copy };
        mirror.copy_all()?;
        Ok(mirror)
    }

    /// The copy, to be replayed.
    pub(crate) fn copy(&self) -> Remains {
        // A replay only reads the store, so that is the same memory. The worker may have taken over another.
        let shared = crate::os::descriptor::replace(self.live.store, self.copy.store);
        debug_assert!(shared.is_ok(), "{shared:?}");
        self.copy
    }

    /// Makes all of the copy equal.
    pub(crate) fn copy_all(&mut self) -> Result<()> {
        for (live, copy) in self.pairs() {
            copy.release_range(0, copy.len());
            for range in data_ranges(live.fd())? {
                copy_range(live, copy, range);
            }
        }
        Ok(())
    }

    /// An instruction has stored at this address of the worker, or the system `len` bytes from there on.
    pub(crate) fn copy_written(&mut self, address: usize, len: usize) {
        for (live, copy) in self.pairs() {
            if let Some(offset) = live.offset_of(address) {
                let end = (offset + len.max(WIDEST_STORE)).min(live.len());
                copy_range(live, copy, offset..end);
            }
        }
    }

    /// The system has written into the in-flight slot.
    pub(crate) fn copy_called(&mut self) {
        copy_range(self.live.log, self.copy.log, 0..HEADER_LEN);
    }

    /// Takes back what a replay of the copy wrote.
    pub(crate) fn undo_replay(&mut self, journal: Journal) -> Result<()> {
        copy_range(self.live.log, self.copy.log, 0..HEADER_LEN);
        for range in journal.log.visited() {
            copy_range(self.live.log, self.copy.log, range);
        }
        self.copy.manifest.release_range(0, self.copy.manifest.len());
        for range in data_ranges(self.live.manifest.fd())? {
            copy_range(self.live.manifest, self.copy.manifest, range);
        }
        journal.extents.unmap_all();
        Ok(())
    }

    /// Whether the copy is equal: whether everything that wrote was told of.
    pub(crate) fn is_equal(&self) -> Result<bool> {
        for (live, copy) in self.pairs() {
            let mut ranges = data_ranges(live.fd())?;
            ranges.extend(data_ranges(copy.fd())?);
            for range in ranges {
                // SAFETY: in both mappings; the worker stands still.
                let (live, copy) = unsafe {
                    (
                        std::slice::from_raw_parts(live.at(range.start, range.len()), range.len()),
                        std::slice::from_raw_parts(copy.at(range.start, range.len()), range.len()),
                    )
                };
                if live != copy {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Spoils the copy, until the next replay is undone.
    pub(crate) fn sabotage(&mut self, how: Sabotage) {
        let header = self.copy.header;
        let at = |offset: usize, len: usize| self.copy.log.at(offset, len);
        match how {
            Sabotage::Disarm => header.slot.disarm(),
            Sabotage::LoseCount => {
                let offset =
                    offset_of!(Header, slot) + offset_of!(Slot, message) + offset_of!(libc::mmsghdr, msg_len);
                // SAFETY: a field of the header, which nothing refers to now.
                unsafe { at(offset, 4).cast::<u32>().write(0) };
            }
            Sabotage::ShiftOffset => {
                header.slot.offset.fetch_add(1, Ordering::Relaxed);
            }
            Sabotage::LoseNumbers => Manifest::reopen(self.copy.manifest).settle(&BTreeSet::new()),
            Sabotage::TearCommit => {
                let newest = header.committed.load(Ordering::Relaxed) % 2;
                let offset = offset_of!(Header, commits)
                    + size_of::<Commit>() * newest as usize
                    + offset_of!(Commit, crc);
                // SAFETY: as above.
                unsafe { *at(offset, 1) ^= 1 };
            }
        }
    }

    fn pairs(&self) -> [(Region, Region); 3] {
        [
            (self.live.log, self.copy.log),
            (self.live.checkpoints, self.copy.checkpoints),
            (self.live.manifest, self.copy.manifest),
        ]
    }
}

impl Remains {
    /// The descriptor number that a handle stands for.
    pub(crate) fn number(&self, handle: Fd) -> Option<RawFd> {
        Manifest::reopen(self.manifest).number(handle)
    }

    /// Of the newest complete checkpoint.
    pub(crate) fn epoch(&self) -> u64 {
        self.header.committed.load(Ordering::Acquire)
    }

    /// Whether an event is being applied, so that it is in the log.
    pub(crate) fn is_applying(&self) -> bool {
        self.header.applying.load(Ordering::Acquire) != 0
    }

    /// Whether this address is in the checkpoints' memory.
    pub(crate) fn is_checkpoint(&self, address: usize) -> bool {
        self.checkpoints.offset_of(address).is_some()
    }

    /// The mappings that every worker has from its beginning: address and length.
    pub(crate) fn mappings(&self) -> [(usize, usize); 3] {
        [self.log, self.checkpoints, self.manifest].map(|region| (region.at(0, 0) as usize, region.len()))
    }
}

impl Position {
    /// Whether a read of some size would still be put into this segment, and the second one after it no more.
    pub(crate) fn is_near_segment_end(&self) -> bool {
        self.offset as usize > SEGMENT - 2 * LEAST_READ
    }
}

impl Journal {
    /// Where the log ends.
    pub(crate) fn end(&self) -> Position {
        self.log.end()
    }
}

fn copy_range(live: Region, copy: Region, range: Range<usize>) {
    // SAFETY: in both mappings, which are two; the worker stands still, and nothing looks at the copy.
    unsafe {
        std::ptr::copy_nonoverlapping(
            live.at(range.start, range.len()),
            copy.at(range.start, range.len()),
            range.len(),
        );
    }
}

/// Where a memfd has pages.
fn data_ranges(fd: RawFd) -> Result<Vec<Range<usize>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        // SAFETY: plain system calls; the daemon uses no file offset of its memory.
        let start = unsafe { libc::lseek(fd, at, libc::SEEK_DATA) };
        if start < 0 {
            let error = Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENXIO) {
                Ok(ranges)
            } else {
                Err(error)
            };
        }
        // SAFETY: as above.
        at = unsafe { libc::lseek(fd, start, libc::SEEK_HOLE) };
        if at < 0 {
            return Err(Error::last_os_error());
        }
        ranges.push(start as usize..at as usize);
    }
}
