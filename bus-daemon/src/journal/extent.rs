//! Extents: shared memory for one large message each, so that it stays contiguous without a copy.
//!
//! They are part of the [store](super::store): an extent is lent there, and mapped only while its message is received,
//! parsed or sent. A message that waits at a checkpoint becomes a reference in the backlogs of its receivers, without a
//! copy, and the mapping ends.
//!
//! ```text
//! lend ──> lent ──give_back──> back ──checkpoint, nobody looks──> free ──> lent
//!                               │ ^                                └────────> the store's again: there are too many
//!                               │ └─ somebody looks
//!                               └──checkpoint, backlogs refer to it──> the store's
//! ```

#![allow(unsafe_code, reason = "maps memory and makes views of it")]

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::store::ExtentPlace;
use super::view::{Lookers, view};
use super::waiting::Waiting;
use crate::os::region::Region;

/// Bytes of free extents that stay mapped at most, since fresh pages cost several times what resident ones do.
const RESIDENT: usize = 32 * 1024 * 1024;
/// The same as a part of what the bus may hold.
const RESIDENT_PART: u64 = 8;
/// Bytes of a message that has not arrived whole whose pages this process keeps where there are [many](is_many): messages
/// that stand still must not make its end take long.
const MAPPED: usize = 2 << 20;
/// Bytes of a page.
const PAGE: usize = 4096;

/// Shared memory for one message, exclusively until it is given back.
#[derive(Debug)]
pub(crate) struct Extent {
    region: Region,
    place: ExtentPlace,
    lookers: Lookers,
    /// This process keeps no pages of the message before this one.
    kept_from: usize,
    /// Bytes whose pages may be in memory, from the first on.
    touched: usize,
    /// Bytes whose pages were not in memory when it was lent.
    untouched: usize,
}

impl Extent {
    /// Bytes it holds.
    pub(crate) fn len(&self) -> usize {
        self.region.len()
    }

    /// Where it is in the store.
    pub(crate) fn place(&self) -> ExtentPlace {
        self.place
    }

    /// Bytes of it that took no memory when it was lent. How much of them does by now the broker knows, which has what
    /// arrived.
    pub(crate) fn untouched(&self) -> usize {
        self.untouched
    }

    /// It is lent, and this much of it may be in memory from an earlier message.
    fn lent(mut self, touched: usize) -> Self {
        self.touched = touched;
        self.untouched = self.len() - touched;
        self.kept_from = 0;
        self
    }

    /// The bytes from `at` on, to be written by nobody else; at least `len` of them.
    pub(crate) fn room(&self, at: usize, len: usize) -> *mut u8 {
        self.region.at(at, len)
    }

    /// Copies `bytes` to its beginning, before anything was handed out.
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
        self.touched = self.touched.max(bytes.len());
        let place = self.region.at(0, bytes.len());
        // SAFETY: the range is in the mapping, and `&mut self` before the first view means nobody reads it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// The first `filled` bytes, which are not written again while a slice of them is alive.
    pub(crate) fn prefix(&self, filled: usize) -> Bytes {
        // SAFETY: extents are not unmapped while looked at; reads only append behind `filled`; the pool lends an extent
        // again only when nobody looks at it and no backlog refers to it.
        unsafe { view(self.region.at(0, filled), filled, &self.lookers) }
    }

    /// So many bytes have arrived. Where there are many such messages, the pages of what came long ago are left to the store
    /// until they are read.
    pub(crate) fn note_filled(&mut self, filled: usize, are_many: bool) {
        self.touched = self.touched.max(filled);
        let end = filled / PAGE * PAGE;
        if are_many && end >= self.kept_from + MAPPED {
            self.region.forget(self.kept_from, end);
            self.kept_from = end;
        }
    }

    fn address(&self) -> usize {
        self.region.at(0, 0) as usize
    }
}

/// Part of an extent, as it is named outside of the process that maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ExtentRange {
    /// Where the extent begins in the store.
    pub(crate) offset: u64,
    /// Its size class, as the store numbers them.
    pub(crate) class: u8,
    /// First byte, counted from the extent's beginning.
    pub(crate) start: u64,
    /// Number of bytes.
    pub(crate) len: u64,
}

impl ExtentRange {
    /// The first bytes of an extent.
    pub(crate) fn first(place: ExtentPlace, len: u64) -> Self {
        let ExtentPlace { offset, class } = place;
        Self {
            offset,
            class,
            start: 0,
            len,
        }
    }

    /// The extent.
    pub(crate) fn place(&self) -> ExtentPlace {
        ExtentPlace {
            offset: self.offset,
            class: self.class,
        }
    }
}

/// Whether extents of so many bytes, lent at the same time, are many.
pub(super) fn is_many(lent: usize) -> bool {
    lent > RESIDENT
}

/// Of an extent that was given back.
#[derive(Debug)]
struct Back {
    extent: Extent,
    /// There was a checkpoint since, at which somebody looked at it: another may not change that.
    has_outlasted: bool,
}

/// The extents that this process has mapped. Each is held in the store.
pub(crate) struct ExtentPool {
    /// Given back since the last checkpoint, which may refer to them, or still looked at.
    back: Vec<Back>,
    /// Free to be lent again.
    free: Vec<Extent>,
    /// Every extent that is mapped, by its address, to find what bytes lie in.
    mapped: BTreeMap<usize, ExtentPlace>,
    /// Bytes of free ones that are kept.
    kept: usize,
}

impl Default for ExtentPool {
    fn default() -> Self {
        Self {
            back: Vec::new(),
            free: Vec::new(),
            mapped: BTreeMap::new(),
            kept: RESIDENT,
        }
    }
}

impl ExtentPool {
    /// Where the bus may hold so much, it keeps a part of that at most to be used again.
    pub(crate) fn set_cap(&mut self, cap: u64) {
        let part = usize::try_from(cap / RESIDENT_PART).unwrap_or(usize::MAX);
        self.kept = part.min(RESIDENT);
    }

    /// Bytes of extents that are mapped.
    pub(crate) fn memory(&self) -> u64 {
        self.mapped.values().map(|place| place.len()).sum()
    }

    /// Whether a checkpoint would set many extents free that are only kept for a replay, or give many to the store that
    /// wait for somebody: this process is not to have too much mapped when it ends.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.unused() >= self.kept / 2 || self.waiting() >= 2 * RESIDENT
    }

    /// Whether they have become too many.
    pub(crate) fn is_checkpoint_overdue(&self) -> bool {
        self.unused() >= 2 * self.kept || self.waiting() >= 4 * RESIDENT
    }

    /// Bytes of those that nobody needs any more, or will not once a checkpoint is taken.
    pub(crate) fn idle(&self) -> usize {
        self.unused() + self.free.iter().map(Extent::len).sum::<usize>()
    }

    fn unused(&self) -> usize {
        let unused = self.back.iter().filter(|back| !back.extent.lookers.any());
        unused.map(|back| back.extent.len()).sum()
    }

    fn waiting(&self) -> usize {
        let fresh = self.back.iter().filter(|back| !back.has_outlasted);
        fresh.map(|back| back.extent.len()).sum()
    }

    /// A checkpoint has been taken: what nobody looks at now is not needed for a replay any more. What waits for somebody is
    /// the store's.
    pub(crate) fn checkpointed(&mut self, waiting: &mut Waiting) {
        for back in std::mem::take(&mut self.back) {
            if back.extent.lookers.any() {
                self.back.push(Back {
                    has_outlasted: true,
                    ..back
                });
            } else if waiting.is_shared(back.extent.place) {
                self.release(waiting, back.extent);
            } else {
                self.free.push(back.extent);
            }
        }
        self.release_free(waiting, self.kept);
    }

    /// Gives free ones back to the system, until not more than so many bytes of them are left.
    pub(crate) fn release_free(&mut self, waiting: &mut Waiting, most: usize) {
        let mut kept: usize = self.free.iter().map(Extent::len).sum();
        while kept > most {
            // The largest one loses its pages and its address range.
            let Some(index) = (0..self.free.len()).max_by_key(|index| self.free[*index].len()) else {
                return;
            };
            let extent = self.free.swap_remove(index);
            kept -= extent.len();
            self.release(waiting, extent);
        }
    }

    fn release(&mut self, waiting: &mut Waiting, extent: Extent) {
        self.mapped.remove(&extent.address());
        extent.region.unmap();
        waiting.release_extent(extent.place);
    }

    /// An extent for a message of `len` bytes, at most 128 MiB. Pages come as they are written.
    pub(crate) fn lend(&mut self, waiting: &mut Waiting, len: usize) -> io::Result<Extent> {
        let class = ExtentPlace::class_of(len);
        let fits = |extent: &Extent| Some(extent.place.class) == class;
        if let Some(index) = self.free.iter().position(fits) {
            let extent = self.free.swap_remove(index);
            let touched = extent.touched;
            return Ok(extent.lent(touched));
        }
        let place = waiting.lend_extent(len)?;
        let mapped = self.map(waiting, place);
        let extent = mapped.inspect_err(|_| waiting.release_extent(place))?;
        Ok(extent.lent(0))
    }

    /// Takes an extent back; it is lent again after a checkpoint at which nobody needs it.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        self.back.push(Back {
            extent,
            has_outlasted: false,
        });
    }

    /// Where `bytes` lie, if in an extent.
    pub(crate) fn locate(&self, bytes: &[u8]) -> Option<ExtentRange> {
        let address = bytes.as_ptr() as usize;
        let (start, place) = self.mapped.range(..=address).next_back()?;
        let at = (address - start) as u64;
        (at + bytes.len() as u64 <= place.len()).then_some(ExtentRange {
            start: at,
            ..ExtentRange::first(*place, bytes.len() as u64)
        })
    }

    fn map(&mut self, waiting: &Waiting, place: ExtentPlace) -> io::Result<Extent> {
        let len = usize::try_from(place.len()).map_err(io::Error::other)?;
        let extent = Extent {
            region: Region::map_range(waiting.fd(), place.offset, len)?,
            place,
            lookers: Lookers::default(),
            kept_from: 0,
            touched: len,
            untouched: 0,
        };
        self.mapped.insert(extent.address(), place);
        Ok(extent)
    }

    // After the worker that lent the extents has died, or has handed them over

    /// The bytes that a checkpoint, the log or an image names. `None`: there can be no such extent.
    pub(crate) fn adopt(&mut self, waiting: &mut Waiting, range: ExtentRange) -> Option<Bytes> {
        let place = range.place();
        let end = range.start.checked_add(range.len)?;
        if end > place.len() {
            return None;
        }
        let known = self.back.iter().position(|back| back.extent.place == place);
        let index = match known {
            Some(index) => index,
            None => {
                // A file that is shorter was never that long: nothing of a claim sizes it.
                let file_end = place.offset.checked_add(place.len())?;
                if file_end > Region::file_len(waiting.fd()).ok()? || !waiting.hold_extent(place) {
                    return None;
                }
                let mapped = self.map(waiting, place);
                let extent = mapped.inspect_err(|_| waiting.release_extent(place)).ok()?;
                self.give_back(extent);
                self.back.len() - 1
            }
        };
        let prefix = self.back[index].extent.prefix(usize::try_from(end).ok()?);
        Some(prefix.slice(usize::try_from(range.start).ok()?..))
    }

    /// Takes out the extent at whose beginning `bytes` lie, to go on receiving into it.
    pub(crate) fn take_adopted(&mut self, bytes: &[u8]) -> Option<Extent> {
        let address = bytes.as_ptr() as usize;
        let index = self
            .back
            .iter()
            .position(|back| back.extent.address() == address)?;
        let extent = self.back.swap_remove(index).extent;
        // What an earlier message has left behind this one is nobody's.
        let end = bytes.len().next_multiple_of(PAGE).min(extent.len());
        let rest = extent.place.offset + end as u64;
        extent.region.release_range(rest, extent.len() - end);
        let mut extent = extent.lent(0);
        extent.touched = end;
        Some(extent)
    }

    /// Undoes the mappings; nobody looks at what was adopted any more.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn unmap_all(self) {
        for extent in self.back.into_iter().map(|back| back.extent).chain(self.free) {
            extent.region.unmap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 8 << 20;

    /// What the store has in memory but for what took none when it was lent.
    fn resident(waiting: &Waiting, lent: &[&Extent]) -> u64 {
        let untouched: usize = lent.iter().map(|extent| extent.untouched()).sum();
        waiting.memory() - untouched as u64
    }

    #[test]
    fn what_an_earlier_message_left_in_an_extent_counts() {
        let (mut waiting, mut pool) = (Waiting::create(1).unwrap(), ExtentPool::default());
        let mut extent = pool.lend(&mut waiting, LEN).unwrap();
        assert_eq!(extent.len(), LEN);
        assert_eq!(resident(&waiting, &[&extent]), 0);
        extent.fill(&vec![1; 5000]);
        extent.note_filled(6 << 20, false);
        pool.give_back(extent);
        pool.checkpointed(&mut waiting);
        // Lent again, for a message that does not get far.
        let again = pool.lend(&mut waiting, LEN).unwrap();
        let fresh = pool.lend(&mut waiting, LEN).unwrap();
        assert_eq!(resident(&waiting, &[&again, &fresh]), 6 << 20);
        pool.give_back(again);
        pool.give_back(fresh);
        assert_eq!(resident(&waiting, &[]), 2 * LEN as u64);
    }

    #[test]
    fn of_little_memory_little_is_kept() {
        let (mut waiting, mut pool) = (Waiting::create(1).unwrap(), ExtentPool::default());
        pool.set_cap(8 * 2 * LEN as u64);
        for _ in 0..4 {
            let lent = [(); 3].map(|()| pool.lend(&mut waiting, LEN).unwrap());
            assert!(!pool.wants_checkpoint());
            lent.into_iter().for_each(|extent| pool.give_back(extent));
            assert!(pool.wants_checkpoint());
            pool.checkpointed(&mut waiting);
            assert_eq!(pool.idle(), 2 * LEN);
        }
    }

    #[test]
    fn after_a_death_a_message_keeps_its_own_bytes_only() {
        let (mut waiting, mut pool) = (Waiting::create(1).unwrap(), ExtentPool::default());
        let mut extent = pool.lend(&mut waiting, LEN).unwrap();
        extent.fill(&vec![7; LEN]);
        let place = extent.place();
        let mut next = ExtentPool::default();
        let bytes = next.adopt(&mut waiting, ExtentRange::first(place, 5000)).unwrap();
        let adopted = next.take_adopted(&bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        let all = crate::os::memfd::read_at(waiting.fd(), place.offset, LEN).unwrap();
        assert!(
            all[..2 * PAGE].iter().all(|byte| *byte == 7) && all[2 * PAGE..].iter().all(|byte| *byte == 0)
        );
        assert_eq!(adopted.untouched(), LEN);
    }
}
