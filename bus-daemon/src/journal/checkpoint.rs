//! Checkpoints: the state from which a replay begins, in shared memory: an entry for each peer, name, match rule and open
//! call.
//!
//! A checkpoint writes only what changed since the one before. Each entry has two versions; the newer complete one
//! counts, so that a worker that dies in the middle of a checkpoint leaves the one before whole. Bodies live in an
//! arena of blocks; a block is used again when no complete checkpoint refers to it.

#![allow(unsafe_code, reason = "reads and writes entries in mapped memory")]

use std::io;

use super::arena::{Arena, Block};
use super::header::{Commit, Header};
use super::log::Position;
use crate::os::region::Region;
use crate::os::{build, memory};

const ENTRY: usize = size_of::<Entry>();
/// Entries in the smallest table.
const UNIT: usize = 1 << 20;
/// The same where the address space is limited.
const LIMITED_UNIT: usize = 1 << 17;
/// Where each table begins, and at last where they end, in units.
const TABLES: [usize; 5] = [0, 1, 2, 6, 8];
/// Bytes of the arena's address space, where that is not limited. Pages come as they are written.
const ARENA_LEN: u64 = 8 << 30;
/// Bytes of it at least.
const LEAST_ARENA_LEN: u64 = 32 << 20;
/// The size of the file at most, the largest of the journal's.
pub(crate) const LARGEST_FILE: u64 = arena_start(UNIT) + ARENA_LEN;

/// What has entries of one kind, numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Some for what belongs to no peer, and one for each peer.
    Peers,
    /// One for each well-known name.
    Names,
    /// One for each match rule or filter.
    Rules,
    /// One for each open call.
    Calls,
}

impl Table {
    pub(crate) const ALL: [Self; 4] = [Self::Peers, Self::Names, Self::Rules, Self::Calls];
}

/// One version of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
struct Version {
    /// Of the checkpoint that wrote it; 0 = never.
    epoch: u64,
    /// Where its body is in the region.
    offset: u64,
    /// Whose it is, as the caller numbers them; tells something even where the body is damaged.
    owner: [u64; 2],
    /// Bytes of the body; 0 = there is nothing any more.
    len: u32,
    /// CRC-32C of the fields above and the body.
    crc: u32,
}

impl Version {
    fn checksum(&self, body: &[u8]) -> u32 {
        let fields = [
            self.epoch,
            self.offset,
            self.owner[0],
            self.owner[1],
            u64::from(self.len),
        ];
        let mut bytes = [0; size_of::<[u64; 5]>()];
        for (place, field) in bytes.chunks_exact_mut(size_of::<u64>()).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        let crc = crc32c::crc32c_append(build::id(), &bytes);
        crc32c::crc32c_append(crc, body)
    }
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Entry {
    versions: [Version; 2],
}

/// What the caller keeps of a used entry.
#[derive(Debug, Clone, Copy, Default)]
struct Current {
    /// Which version counts, or will.
    is_second: bool,
    /// The epoch in which it was written.
    epoch: u64,
    block: Option<Block>,
    /// Its part of the digest.
    digest: u64,
}

/// The version of an entry that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// It counted once, or there never was one.
    Older,
    /// Written for a checkpoint that was not completed.
    Unfinished,
    /// It is not whole: half written when the worker died, or damaged.
    Torn,
}

/// An entry as it is read back.
#[derive(Debug)]
pub(crate) struct Saved<'a, T> {
    /// Where it is.
    pub(crate) table: Table,
    /// Its index.
    pub(crate) index: usize,
    /// What the writer gave as its owner; only to be trusted with a body.
    pub(crate) owner: [u64; 2],
    /// Its body; `None` where it is damaged.
    pub(crate) body: Option<&'a [u8]>,
    /// What the reader has made of that.
    pub(crate) value: Option<T>,
}

/// Writes and reads checkpoints.
pub(crate) struct Checkpoints {
    region: Region,
    epoch: u64,
    /// Entries in the smallest table.
    unit: usize,
    /// For each entry that has been used, from the first of each table on, what counts.
    current: [Vec<Current>; 4],
    /// All of their parts: shows an entry that was lost without a trace.
    digest: u64,
    arena: Arena,
    /// Blocks of the checkpoint before, free once the one in the making is complete.
    superseded: Vec<Block>,
    /// Blocks that are superseded and may still be looked at: see [`end_lending`](Self::end_lending).
    lent: Option<Vec<Block>>,
    /// Whether there is to be no room, as a test has it.
    #[cfg(test)]
    pub(super) is_full: bool,
    /// Entries with a version that the worker before wrote for a checkpoint it did not complete. It may never be written
    /// over, and must not count with the next.
    unfinished: Vec<usize>,
}

impl Checkpoints {
    /// No checkpoint yet, in a new region.
    pub(crate) fn create() -> io::Result<Self> {
        let limit = memory::address_space();
        let unit = if limit.is_none() { UNIT } else { LIMITED_UNIT };
        let len = arena_start(unit) + arena_len(limit);
        let region = Region::create(c"bus-checkpoint", usize::try_from(len).map_err(io::Error::other)?)?;
        Ok(Self::reopen(region))
    }

    /// The checkpoints of a worker that died, to be [read](Self::read).
    pub(crate) fn reopen(region: Region) -> Self {
        let unit = unit_of(&region);
        Self {
            region,
            epoch: 0,
            unit,
            current: [const { Vec::new() }; 4],
            digest: 0,
            arena: Arena::new(region, arena_start(unit)),
            superseded: Vec::new(),
            lent: None,
            unfinished: Vec::new(),
            #[cfg(test)]
            is_full: false,
        }
    }

    /// Its memory.
    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// Bytes of the arena that may be in memory, and of the tables.
    pub(crate) fn memory(&self) -> u64 {
        self.arena.resident() + self.tables()
    }

    /// The same without what is free and kept.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.arena.used() + self.tables()
    }

    fn tables(&self) -> u64 {
        let entries: usize = self.current.iter().map(Vec::len).sum();
        (entries * ENTRY) as u64
    }

    /// For how many slots of a table there are entries.
    pub(crate) fn used(&self, table: Table) -> usize {
        self.current[table as usize].len()
    }

    /// Begins a checkpoint. Entries that are not written keep what they have.
    pub(crate) fn begin(&mut self) {
        for number in std::mem::take(&mut self.unfinished) {
            self.forget_after(number, self.epoch);
        }
        self.epoch += 1;
    }

    /// An entry has no version any more that is newer than the checkpoint of this epoch.
    fn forget_after(&self, number: usize, epoch: u64) {
        let place = self.entry(number);
        for version in 0..2 {
            // SAFETY: an entry in the table, aligned; any bytes are a value.
            let version = unsafe { &mut (*place).versions[version] };
            if version.epoch > epoch {
                *version = Version::default();
            }
        }
    }

    /// Writes an entry; an empty body takes it away.
    pub(crate) fn put(
        &mut self,
        table: Table,
        index: usize,
        owner: [u64; 2],
        body: &[u8],
    ) -> Result<(), String> {
        if index >= self.room(table) {
            return Err(format!("there is no checkpoint entry {index} of {table:?}"));
        }
        #[cfg(test)]
        if self.is_full {
            return Err("the checkpoint's arena is full, as a test has it".into());
        }
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("checkpoint");
        #[cfg(test)]
        WRITTEN.set(WRITTEN.get().and(table, body.len()));
        let used = self.used(table);
        if index >= used {
            for unused in used..=index {
                self.forget_after(self.number(table, unused), 0);
            }
            self.current[table as usize].resize(index + 1, Current::default());
        }
        let block = if body.is_empty() {
            None
        } else {
            Some(self.arena.allocate(body.len())?)
        };
        if let Some(block) = block {
            let place = self.region.at(block.offset as usize, body.len());
            // SAFETY: a block that nothing refers to.
            unsafe { std::ptr::copy_nonoverlapping(body.as_ptr(), place, body.len()) };
        }
        let mut version = Version {
            epoch: self.epoch,
            offset: block.map_or(0, |block| block.offset),
            owner,
            len: body.len() as u32,
            crc: 0,
        };
        version.crc = version.checksum(body);
        let old = self.current[table as usize][index];
        // Written in this epoch already: that version does not count yet, and is written over.
        let again = old.epoch == self.epoch;
        let is_second = if again { old.is_second } else { !old.is_second };
        let number = self.number(table, index);
        let place = self.entry(number);
        // SAFETY: an entry in the table, aligned; the version that does not count is written.
        unsafe { (*place).versions[usize::from(is_second)] = version };
        let digest = digest_of(number, version.crc);
        self.digest ^= old.digest ^ digest;
        self.current[table as usize][index] = Current {
            is_second,
            epoch: self.epoch,
            block,
            digest,
        };
        match old.block {
            Some(block) if again => self.arena.set_free(block),
            Some(block) => self.superseded.push(block),
            None => {}
        }
        Ok(())
    }

    /// Completes the checkpoint: from here on it is what a replay begins with, at this place in the log.
    pub(crate) fn commit(&mut self, header: &mut Header, at: Position) {
        header.commit(Commit {
            epoch: self.epoch,
            sequence: at.sequence,
            segment: at.segment,
            offset: at.offset,
            entries: self.current.each_ref().map(|used| used.len() as u64),
            arena_end: self.arena.end(),
            digest: self.digest,
            crc: 0,
            reserved: 0,
        });
        #[cfg(feature = "test-hooks")]
        crate::fault::kill_in("checkpoint");
        let superseded = std::mem::take(&mut self.superseded);
        match &mut self.lent {
            Some(lent) => lent.extend(superseded),
            None => superseded
                .into_iter()
                .for_each(|block| self.arena.set_free(block)),
        }
    }

    /// Nobody looks at the bodies any more that were [read](Self::read): what was superseded meanwhile is free.
    pub(crate) fn end_lending(&mut self) {
        for block in self.lent.take().into_iter().flatten() {
            self.arena.set_free(block);
        }
    }

    /// Whether memory without anything in it is to be given back; `keeps_some`: but for a little.
    pub(crate) fn wants_trim(&self, keeps_some: bool) -> bool {
        self.arena.wants_trim(keeps_some)
    }

    /// Gives some of it back.
    pub(crate) fn trim(&mut self, keeps_some: bool) {
        self.arena.trim(keeps_some);
    }

    /// Reads what a complete checkpoint holds, and goes on from it. Blocks that it does not use are free. `decode` makes a value
    /// of a body as soon as that is known to be whole: then the processor has it at hand, and tens of megabytes later it has not.
    /// What it makes may refer to the body until [lending ends](Self::end_lending): until then no block of these is used again.
    pub(crate) fn read<T>(
        &mut self,
        commit: &Commit,
        decode: impl Fn(Table, &'static [u8]) -> Option<T>,
    ) -> Vec<Saved<'static, T>> {
        self.epoch = commit.epoch;
        let start = arena_start(self.unit);
        let end = commit.arena_end.clamp(start, self.region.len() as u64);
        self.digest = 0;
        self.unfinished.clear();
        let most: usize = Table::ALL.into_iter().map(|table| self.room(table)).sum();
        let expected = commit.entries.iter().sum::<u64>().min(most as u64) as usize;
        let mut blocks: Vec<Block> = Vec::with_capacity(expected);
        let mut all = Vec::with_capacity(expected);
        // Entries whose other version is half written or damaged.
        let mut unsure: Vec<usize> = Vec::new();
        for (table, used) in Table::ALL.into_iter().zip(commit.entries) {
            let used = usize::try_from(used).unwrap_or(0).min(self.room(table));
            self.current[table as usize] = Vec::with_capacity(used);
            for index in 0..used {
                let (mut saved, current, other) = self.read_one(table, index, commit.epoch, end);
                saved.value =
                    (saved.body.filter(|body| !body.is_empty())).and_then(|body| decode(table, body));
                if other != Other::Older {
                    self.unfinished.push(self.number(table, index));
                }
                if other == Other::Torn {
                    unsure.push(all.len());
                }
                self.digest ^= current.digest;
                blocks.extend(current.block);
                self.current[table as usize].push(current);
                all.push(saved);
            }
        }
        if self.digest != commit.digest && all.iter().all(|saved| saved.body.is_some()) {
            // Something was lost without a trace. Where nothing is under suspicion, nothing can be proved.
            let suspects = if unsure.is_empty() {
                (0..all.len()).collect()
            } else {
                unsure
            };
            for suspect in suspects {
                all[suspect].body = None;
                all[suspect].value = None;
            }
        }
        all.retain(|saved| saved.body.is_none_or(|body| !body.is_empty()));
        self.arena = Arena::reclaim(self.region, start, end, blocks);
        self.lent = Some(Vec::new());
        all
    }

    /// One entry as the checkpoint of this epoch has it, and what its other version is.
    fn read_one<T>(
        &self,
        table: Table,
        index: usize,
        epoch: u64,
        end: u64,
    ) -> (Saved<'static, T>, Current, Other) {
        let number = self.number(table, index);
        // SAFETY: an entry in the table, aligned; any bytes are a value.
        let entry = unsafe { self.entry(number).read() };
        let counts = |version: &Version| version.epoch <= epoch;
        let [first, second] = entry.versions;
        let is_second = counts(&second) && (!counts(&first) || second.epoch > first.epoch);
        let (version, other) = if is_second {
            (second, first)
        } else {
            (first, second)
        };
        let other = if counts(&other) {
            Other::Older
        } else if self.body(&other, end).is_some() {
            Other::Unfinished
        } else {
            Other::Torn
        };
        let is_absent = version.epoch == 0;
        let body = self.body(&version, end);
        let block = body
            .filter(|body| !body.is_empty())
            .map(|body| Block::holding(body.len(), version.offset));
        let current = Current {
            is_second,
            epoch: version.epoch,
            block,
            digest: if is_absent {
                0
            } else {
                digest_of(number, version.crc)
            },
        };
        let saved = Saved {
            table,
            index,
            owner: version.owner,
            body: if is_absent { Some(&[]) } else { body },
            value: None,
        };
        (saved, current, other)
    }

    /// The body of a version, if all of it is as it was written, before the arena's `end`.
    fn body(&self, version: &Version, end: u64) -> Option<&'static [u8]> {
        let len = version.len as usize;
        let body: &'static [u8] = if len == 0 {
            &[]
        } else {
            let is_in_arena = version.offset >= arena_start(self.unit)
                && version
                    .offset
                    .checked_add(len as u64)
                    .is_some_and(|behind| behind <= end);
            if !is_in_arena {
                return None;
            }
            // SAFETY: in the mapping, which is never undone; not written again before lending ends.
            unsafe { std::slice::from_raw_parts(self.region.at(version.offset as usize, len), len) }
        };
        (version.crc == version.checksum(body)).then_some(body)
    }

    /// How many entries a table has room for.
    /// How many entries of this kind there may be.
    pub(crate) fn room(&self, table: Table) -> usize {
        let table = table as usize;
        (TABLES[table + 1] - TABLES[table]) * self.unit
    }

    /// The number of an entry among those of all tables.
    fn number(&self, table: Table, index: usize) -> usize {
        TABLES[table as usize] * self.unit + index
    }

    fn entry(&self, number: usize) -> *mut Entry {
        self.region.at(number * ENTRY, ENTRY).cast()
    }
}

/// What the checkpoints of a thread have written.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    /// Entries of peers, and of what belongs to none.
    pub(crate) peers: usize,
    /// Entries of names, match rules and open calls.
    pub(crate) entries: usize,
    /// Bytes of all bodies.
    pub(crate) bytes: usize,
}

#[cfg(test)]
thread_local! {
    static WRITTEN: std::cell::Cell<Written> = std::cell::Cell::default();
}

#[cfg(test)]
impl Written {
    /// What has been written since this was last called.
    pub(crate) fn take() -> Self {
        WRITTEN.take()
    }

    fn and(self, table: Table, bytes: usize) -> Self {
        let is_peer = table == Table::Peers;
        Self {
            peers: self.peers + usize::from(is_peer),
            entries: self.entries + usize::from(!is_peer),
            bytes: self.bytes + bytes,
        }
    }
}

/// Where a table begins in a region of checkpoints.
#[cfg(any(test, feature = "test-hooks", feature = "bench-hooks"))]
pub(super) fn table_start(region: &Region, table: usize) -> usize {
    TABLES[table] * unit_of(region) * ENTRY
}

/// Where the arena begins.
const fn arena_start(unit: usize) -> u64 {
    (TABLES[4] * unit * ENTRY) as u64
}

/// Entries in the smallest table of a region, as its length tells.
fn unit_of(region: &Region) -> usize {
    if region.len() as u64 == LARGEST_FILE {
        UNIT
    } else {
        LIMITED_UNIT
    }
}

/// How much of it the arena gets: a quarter of what is limited. The length of the region says it to those who come after.
fn arena_len(address_space: Option<u64>) -> u64 {
    let share = address_space.map_or(ARENA_LEN, |limit| limit / 4 / 4096 * 4096);
    share.clamp(LEAST_ARENA_LEN, ARENA_LEN)
}

/// An entry's part of the digest.
fn digest_of(index: usize, crc: u32) -> u64 {
    (u64::from(crc) << 32 | index as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arena_takes_a_quarter_of_a_limited_address_space() {
        assert_eq!(arena_len(None), 8 << 30);
        assert_eq!(arena_len(Some(1 << 40)), 8 << 30);
        assert_eq!(arena_len(Some(512 << 20)), 128 << 20);
        assert_eq!(arena_len(Some(1)), 32 << 20);
    }
}
