//! Extents: shared memory for one large message each, so that it stays contiguous without a copy.

#![allow(unsafe_code, reason = "maps memory and makes views of it")]

use std::io;
use std::os::fd::RawFd;

use bytes::Bytes;

use super::region::Region;
use super::view::{Lookers, view};

/// Smallest extent; each class is twice the one before.
const LEAST: usize = 128 * 1024;
/// Classes: 128 KiB to 128 MiB, the largest message there is.
const CLASSES: usize = 11;
/// Bytes of free extents whose pages are kept, since fresh pages cost several times what resident ones do.
const RESIDENT: usize = 32 * 1024 * 1024;

/// Shared memory for one message, exclusively until it is given back.
#[derive(Debug)]
pub(crate) struct Extent {
    region: Region,
    /// Where it begins in the memfd.
    offset: u64,
    class: usize,
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
        // SAFETY: extents are not unmapped; reads only append behind `filled`; the pool lends an extent again only
        // when nobody looks at it.
        unsafe { view(self.region.at(0, filled), filled, &self.lookers) }
    }
}

/// All extents.
pub(crate) struct ExtentPool {
    fd: RawFd,
    end: u64,
    /// Given back, and perhaps still looked at.
    back: Vec<Extent>,
    /// Bytes of `back` that have pages.
    kept: usize,
}

impl ExtentPool {
    /// An empty pool over a new memfd.
    pub(crate) fn create() -> io::Result<Self> {
        let region = Region::create(c"bus-extents", 4096)?;
        Ok(Self { fd: region.fd(), end: 0, back: Vec::new(), kept: 0 })
    }

    /// An extent for a message of `len` bytes, at most 128 MiB. Pages come as they are written.
    pub(crate) fn lend(&mut self, len: usize) -> io::Result<Extent> {
        let class = (0..CLASSES)
            .find(|class| LEAST << class >= len)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message longer than the largest extent"))?;
        if let Some(index) =
            self.back.iter().position(|extent| extent.class == class && !extent.lookers.any())
        {
            let extent = self.back.swap_remove(index);
            self.kept -= extent.len();
            return Ok(extent);
        }
        let size = LEAST << class;
        let offset = self.end;
        let region = Region::map_range(self.fd, offset, size)?;
        self.end += size as u64;
        Ok(Extent { region, offset, class, lookers: Lookers::default() })
    }

    /// Takes an extent back; it is lent again when nobody looks at it.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        self.kept += extent.len();
        self.back.push(extent);
        while self.kept > RESIDENT {
            // The largest one that nobody looks at loses its pages and its address range.
            let Some(index) = (0..self.back.len())
                .filter(|index| !self.back[*index].lookers.any())
                .max_by_key(|index| self.back[*index].class)
            else {
                return;
            };
            let extent = self.back.swap_remove(index);
            self.kept -= extent.len();
            extent.region.release_range(extent.offset, extent.len());
            extent.region.unmap();
        }
    }
}
