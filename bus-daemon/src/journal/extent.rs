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

/// Bytes of free extents that stay mapped, since fresh pages cost several times what resident ones do.
const RESIDENT: usize = 32 * 1024 * 1024;
/// Bytes of a message that has not arrived whole whose pages this process keeps: many that stand still must not make its
/// end take long.
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

    /// The bytes from `at` on, to be written by nobody else; at least `len` of them.
    pub(crate) fn room(&self, at: usize, len: usize) -> *mut u8 {
        self.region.at(at, len)
    }

    /// Copies `bytes` to its beginning, before anything was handed out.
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
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

    /// So many bytes have arrived: the pages of those that came long ago are left to the store, until they are read.
    pub(crate) fn note_filled(&mut self, filled: usize) {
        let end = filled / PAGE * PAGE;
        if end >= self.kept_from + MAPPED {
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

/// Of an extent that was given back.
#[derive(Debug)]
struct Back {
    extent: Extent,
    /// There was a checkpoint since, at which somebody looked at it: another may not change that.
    has_outlasted: bool,
}

/// The extents that this process has mapped. Each is held in the store.
#[derive(Default)]
pub(crate) struct ExtentPool {
    /// Given back since the last checkpoint, which may refer to them, or still looked at.
    back: Vec<Back>,
    /// Free to be lent again.
    free: Vec<Extent>,
    /// Every extent that is mapped, by its address, to find what bytes lie in.
    mapped: BTreeMap<usize, ExtentPlace>,
}

impl ExtentPool {
    /// Bytes of extents that are mapped.
    pub(crate) fn memory(&self) -> u64 {
        self.mapped.values().map(|place| place.len()).sum()
    }

    /// Where each of them is in the store.
    pub(crate) fn places(&self) -> impl Iterator<Item = ExtentPlace> {
        self.mapped.values().copied()
    }

    /// Whether a checkpoint would set many extents free that are only kept for a replay, or give many to the store that
    /// wait for somebody: this process is not to have too much mapped when it ends.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.unused() >= RESIDENT / 2 || self.waiting() >= 2 * RESIDENT
    }

    /// Whether they have become too many.
    pub(crate) fn is_checkpoint_overdue(&self) -> bool {
        self.unused() >= 2 * RESIDENT || self.waiting() >= 4 * RESIDENT
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
        self.release_free(waiting, RESIDENT);
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
            let mut extent = self.free.swap_remove(index);
            extent.kept_from = 0;
            return Ok(extent);
        }
        let place = waiting.lend_extent(len)?;
        self.map(waiting, place)
            .inspect_err(|_| waiting.release_extent(place))
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
        Some(self.back.swap_remove(index).extent)
    }

    /// Undoes the mappings; nobody looks at what was adopted any more.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn unmap_all(self) {
        for extent in self.back.into_iter().map(|back| back.extent).chain(self.free) {
            extent.region.unmap();
        }
    }
}
