//! Extents: shared memory for one large message each, so that it stays contiguous without a copy.

#![allow(unsafe_code, reason = "maps memory and makes views of it")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use bytes::Bytes;

use super::view::{Lookers, view};
use crate::os::region::Region;

/// Smallest extent; each class is twice the one before.
const LEAST: usize = 128 * 1024;
/// Classes: 128 KiB to 128 MiB, the largest message there is.
const CLASSES: u8 = 11;
/// Bytes of free extents whose pages are kept, since fresh pages cost several times what resident ones do.
const RESIDENT: usize = 32 * 1024 * 1024;

/// Shared memory for one message, exclusively until it is given back.
#[derive(Debug)]
pub(crate) struct Extent {
    region: Region,
    /// Where it begins in the memfd.
    offset: u64,
    class: u8,
    lookers: Lookers,
}

impl Extent {
    /// Bytes it holds.
    pub(crate) fn len(&self) -> usize {
        LEAST << self.class
    }

    /// Where it begins in the memfd.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Its size class.
    pub(crate) fn class(&self) -> u8 {
        self.class
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
        // again only when nobody looks at it.
        unsafe { view(self.region.at(0, filled), filled, &self.lookers) }
    }

    fn address(&self) -> usize {
        self.region.at(0, 0) as usize
    }
}

/// Part of an extent, as it is named outside of the process that maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ExtentRange {
    /// Where the extent begins in the memfd.
    pub(crate) offset: u64,
    /// Its size class.
    pub(crate) class: u8,
    /// First byte, counted from the extent's beginning.
    pub(crate) start: u64,
    /// Number of bytes.
    pub(crate) len: u64,
}

/// All extents.
pub(crate) struct ExtentPool {
    fd: RawFd,
    end: u64,
    /// Given back since the last checkpoint, which may refer to them, or still looked at.
    back: Vec<Extent>,
    /// Free to be lent again.
    free: Vec<Extent>,
    /// Every extent that is mapped: address to offset and class, to find what bytes lie in.
    mapped: BTreeMap<usize, (u64, u8)>,
}

impl ExtentPool {
    /// An empty pool over a new memfd.
    pub(crate) fn create() -> io::Result<Self> {
        let region = Region::create(c"bus-extents", 4096)?;
        let pool = Self {
            fd: region.fd(),
            end: 0,
            back: Vec::new(),
            free: Vec::new(),
            mapped: BTreeMap::new(),
        };
        region.unmap();
        Ok(pool)
    }

    /// The memfd.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Bytes of extents that are mapped.
    pub(crate) fn memory(&self) -> usize {
        self.mapped.values().map(|(_, class)| LEAST << class).sum()
    }

    /// Whether a checkpoint would set extents free that are only kept for a replay.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.unused() >= RESIDENT / 2
    }

    /// Whether they have become many.
    pub(crate) fn is_checkpoint_overdue(&self) -> bool {
        self.unused() >= 2 * RESIDENT
    }

    /// Bytes of those that nobody needs any more, or will not once a checkpoint is taken.
    pub(crate) fn idle(&self) -> usize {
        self.unused() + self.free.iter().map(Extent::len).sum::<usize>()
    }

    fn unused(&self) -> usize {
        let unused = self.back.iter().filter(|extent| !extent.lookers.any());
        unused.map(Extent::len).sum()
    }

    /// A checkpoint has been taken: what nobody looks at now is not needed for a replay any more.
    pub(crate) fn checkpointed(&mut self) {
        for extent in std::mem::take(&mut self.back) {
            if extent.lookers.any() {
                self.back.push(extent)
            } else {
                self.free.push(extent)
            }
        }
        self.release_free(RESIDENT);
    }

    /// Gives free ones back to the system, until not more than so many bytes of them are left.
    pub(crate) fn release_free(&mut self, most: usize) {
        let mut kept: usize = self.free.iter().map(Extent::len).sum();
        while kept > most {
            // The largest one loses its pages and its address range.
            let Some(index) = (0..self.free.len()).max_by_key(|index| self.free[*index].class) else {
                return;
            };
            let extent = self.free.swap_remove(index);
            kept -= extent.len();
            self.mapped.remove(&extent.address());
            extent.region.release_range(extent.offset, extent.len());
            extent.region.unmap();
        }
    }

    /// An extent for a message of `len` bytes, at most 128 MiB. Pages come as they are written.
    pub(crate) fn lend(&mut self, len: usize) -> io::Result<Extent> {
        let class = (0..CLASSES).find(|class| LEAST << class >= len).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "message longer than the largest extent",
            )
        })?;
        if let Some(index) = self.free.iter().position(|extent| extent.class == class) {
            return Ok(self.free.swap_remove(index));
        }
        let offset = self.end;
        let extent = self.map(offset, class)?;
        self.end += extent.len() as u64;
        Ok(extent)
    }

    /// Takes an extent back; it is lent again after a checkpoint at which nobody looks at it.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        self.back.push(extent);
    }

    /// Where `bytes` lie, if in an extent.
    pub(crate) fn locate(&self, bytes: &[u8]) -> Option<ExtentRange> {
        let address = bytes.as_ptr() as usize;
        let (start, (offset, class)) = self.mapped.range(..=address).next_back()?;
        let at = address - start;
        (at + bytes.len() <= LEAST << class).then_some(ExtentRange {
            offset: *offset,
            class: *class,
            start: at as u64,
            len: bytes.len() as u64,
        })
    }

    fn map(&mut self, offset: u64, class: u8) -> io::Result<Extent> {
        let region = Region::map_range(self.fd, offset, LEAST << class)?;
        let extent = Extent {
            region,
            offset,
            class,
            lookers: Lookers::default(),
        };
        self.mapped.insert(extent.address(), (offset, class));
        Ok(extent)
    }

    // After the worker that lent the extents has died

    /// The pool of a worker that died; what is needed of it is to be adopted.
    pub(crate) fn reopen(fd: RawFd) -> io::Result<Self> {
        let end = Region::file_len(fd)?.next_multiple_of(LEAST as u64);
        Ok(Self {
            fd,
            end,
            back: Vec::new(),
            free: Vec::new(),
            mapped: BTreeMap::new(),
        })
    }

    /// The bytes that a checkpoint or the log names. `None`: there can be no such extent.
    pub(crate) fn adopt(&mut self, range: ExtentRange) -> Option<Bytes> {
        let size = LEAST
            .checked_shl(u32::from(range.class))
            .filter(|_| range.class < CLASSES)? as u64;
        let end = range.start.checked_add(range.len)?;
        if end > size || !range.offset.is_multiple_of(LEAST as u64) {
            return None;
        }
        let known = self.back.iter().position(|extent| extent.offset == range.offset);
        let index = match known {
            Some(index) if self.back[index].class == range.class => index,
            Some(_) => return None,
            None => {
                let overlaps = |extent: &Extent| {
                    range.offset < extent.offset + extent.len() as u64 && extent.offset < range.offset + size
                };
                // A file that is shorter was never that long: nothing of a claim sizes it.
                if self.back.iter().any(overlaps) || range.offset + size > Region::file_len(self.fd).ok()? {
                    return None;
                }
                let extent = self.map(range.offset, range.class).ok()?;
                self.back.push(extent);
                self.back.len() - 1
            }
        };
        let prefix = self.back[index].prefix(usize::try_from(end).ok()?);
        Some(prefix.slice(usize::try_from(range.start).ok()?..))
    }

    /// Takes out the extent at whose beginning `bytes` lie, to go on receiving into it.
    pub(crate) fn take_adopted(&mut self, bytes: &[u8]) -> Option<Extent> {
        let address = bytes.as_ptr() as usize;
        let index = self.back.iter().position(|extent| extent.address() == address)?;
        Some(self.back.swap_remove(index))
    }

    /// Undoes the mappings; nobody looks at what was adopted any more.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn unmap_all(self) {
        for extent in self.back.into_iter().chain(self.free) {
            extent.region.unmap();
        }
    }

    /// All that is needed has been adopted: the rest of the memfd is given back to the system.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        let end = Region::file_len(self.fd)?;
        let mut used: Vec<(u64, u64)> = self
            .mapped
            .values()
            .map(|(offset, class)| (*offset, (LEAST << class) as u64))
            .collect();
        used.sort_unstable();
        used.push((end, 0));
        let mut at = 0;
        for (offset, len) in used {
            if offset > at {
                Region::release(self.fd, at, offset - at);
            }
            at = offset + len;
        }
        self.end = end.next_multiple_of(LEAST as u64);
        Ok(())
    }
}
