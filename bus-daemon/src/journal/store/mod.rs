//! The store: what waits for slow readers, written once.
//!
//! What a turn sends never comes here. What still waits at a checkpoint is written then, shared bytes once for all, into
//! one memfd that is used by `pread` and `pwrite` only: no page tables, no address space, nothing to reap when the
//! worker dies with gigabytes waiting.
//!
//! - A *block* holds a body, immutable, for any number of readers. A *page* belongs to one peer and holds [records](page):
//!   24 bytes for a delivery that refers to a block. An *extent* is lent to the caller, who maps it himself. The file is
//!   cut into chunks of 256 KiB with [one class](class) of item each, so that an offset and a class say all about a place,
//!   and freed memory goes back in whole runs.
//! - A [`BacklogV1`] is all that a checkpoint has to say about a peer. Whatever a *committed* backlog reaches is not written
//!   again until the next commit: that alone makes a death at any instruction harmless. Appends go behind the committed
//!   tail, over what an epoch without a commit left there; a page's `next` counts only up to the committed last page.
//! - *References are counted in memory only*. Counts in the file would be a second truth, with versions of its own, that a
//!   death can leave behind the first; and each delivery would cost a write to a place of its own. After a death or an
//!   upgrade they are counted again from the backlogs, [in steps](walk); until then new items go behind the old end of
//!   the file, so nobody waits for that. A format of the file that nobody counts in is also easier to freeze.
//! - Checksums begin with a salt, owner and place: a page or block of another's is never taken for one's own, and a damaged
//!   byte costs those who wait for it.
//!
//! Life of a checkpoint: [`begin_checkpoint`](Store::begin_checkpoint); per changed peer
//! [`advance`](Store::advance), then appends; [`flush`](Store::flush); the caller commits his backlogs;
//! [`committed`](Store::committed). Cost: appending a reference makes no system call; a checkpoint makes about
//! one `pwrite` for each 64 KiB of bodies, one per peer and one per run of pages that filled up. [`Store::step`] does what is
//! left over, in steps.

mod backlog;
mod class;
mod export;
#[cfg(any(test, feature = "test-hooks"))]
pub(crate) mod fuzz;
mod medium;
mod page;
mod reader;
mod space;
#[cfg(test)]
mod tests;
mod walk;
mod writer;

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::handoff::stored::LAYOUT;

pub(crate) use backlog::BacklogV1;
pub(crate) use class::LARGEST_BLOCK;
use class::{Class, Item};
pub(crate) use export::Exported;
pub(crate) use medium::{Medium, Memfd};
pub(crate) use page::Reference;
use page::Seal;
use reader::Cursor;
use space::Space;
use walk::{Page, Proof, Walk};
use writer::{Image, Run};

/// What the store cannot do, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Memory is not as it was written. It costs its owner.
    #[error("what waits for peer {owner:#x} is damaged at offset {offset} of the store: {what}")]
    Damaged {
        /// The backlog's owner.
        owner: u64,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The system refuses.
    #[error("the system refuses to {call}: {source}")]
    System {
        /// To do what.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// More than the caller's limit would be held.
    #[error("the store holds {held} of {limit} bytes")]
    Full {
        /// Bytes held.
        held: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// The caller asks for what there cannot be: a longer body than fits, a reference that is not held.
    #[error("the store is used wrongly: {0}")]
    Caller(&'static str),
}

impl StoreError {
    fn system(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}

/// No store's file is longer, 1 TiB: what is known of each part of it would take more than the memory there is.
const LONGEST: u64 = 1 << 40;

type Result<T> = std::result::Result<T, StoreError>;
type Map<K, V> = HashMap<K, V, FixedState>;

/// Part of the file that is lent to the caller, who maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtentPlace {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// The number of its class: 64 for 128 KiB, and one more for each doubling.
    pub(crate) class: u8,
}

impl ExtentPlace {
    /// The class of an extent for so many bytes; `None`: they are more than any holds.
    pub(crate) fn class_of(len: usize) -> Option<u8> {
        Class::of_extent(len).map(Class::number)
    }

    /// Bytes it holds; 0: there is no such class.
    pub(crate) fn len(self) -> u64 {
        Class::new(self.class).map_or(0, Class::size)
    }

    fn item(self) -> Result<Item> {
        Class::new(self.class)
            .filter(|class| class.is_extent())
            .map(|class| Item::new(class, self.offset))
            .ok_or(StoreError::Caller("there is no such extent"))
    }
}

/// Everything that waits for slow readers.
pub(crate) struct Store<M> {
    medium: M,
    layout: u32,
    /// Begins every checksum.
    salt: u32,
    /// Bytes that may be held, besides extents that are lent.
    limit: u64,
    /// Bytes of extents that are lent: address space. How much of them is in memory their users know, who are charged for it.
    lent: u64,
    space: Space,
    /// Bodies of this checkpoint, by the identity that the caller gave them; each holds a reference.
    bodies: Map<usize, Reference>,
    /// Blocks that are not written yet, by class.
    runs: BTreeMap<Class, Run>,
    /// Records that are not written yet, by owner.
    images: Map<u64, Image>,
    /// Where readers are, by owner.
    cursors: Map<u64, Cursor>,
    /// Room for a page, and for blocks, being read.
    spare: Page,
    scratch: Vec<u8>,
    walks: VecDeque<Walk>,
    /// After a reopen: the caller may still name extents that he holds.
    is_naming: bool,
    /// Owners of backlogs of the reopened store that are not counted to their ends.
    unproved: Map<u64, Proof>,
    /// See [`has_lost_items`](Self::has_lost_items).
    has_lost_items: bool,
    damaged: Vec<StoreError>,
}

impl<M: Medium> Store<M> {
    /// An empty store over an empty file.
    pub(crate) fn create(medium: M, salt: u32) -> Self {
        Self::over(medium, salt, Space::new(0, 0))
    }

    /// The store of a worker that died, or of the binary before. What it holds is told of by
    /// [`begin_rebuild`](Self::begin_rebuild), [`hold_extent`](Self::hold_extent) and [`end_naming`](Self::end_naming).
    pub(crate) fn reopen(medium: M, salt: u32) -> Result<Self> {
        let ask = || Ok((medium.len()?, medium.allocated()?));
        let (len, allocated) = ask().map_err(StoreError::system("tell the size of the store"))?;
        if len > LONGEST {
            return Err(StoreError::Full {
                held: len,
                limit: LONGEST,
            });
        }
        let mut store = Self::over(medium, salt, Space::new(len, allocated));
        store.is_naming = true;
        Ok(store)
    }

    /// A store of another layout that this build reads, to be exported.
    pub(crate) fn reopen_older(medium: M, salt: u32, layout: u32) -> Result<Self> {
        let store = Self::reopen(medium, salt)?;
        Ok(Self { layout, ..store })
    }

    fn over(medium: M, salt: u32, space: Space) -> Self {
        Self {
            medium,
            layout: LAYOUT,
            salt,
            limit: u64::MAX,
            lent: 0,
            space,
            bodies: Map::default(),
            runs: BTreeMap::new(),
            images: Map::default(),
            cursors: Map::default(),
            spare: Page::default(),
            scratch: Vec::new(),
            walks: VecDeque::new(),
            is_naming: false,
            unproved: Map::default(),
            has_lost_items: false,
            damaged: Vec::new(),
        }
    }

    /// What its bytes lie in.
    pub(crate) fn medium(&self) -> &M {
        &self.medium
    }

    /// Refuses, from now on, to hold more bytes than that.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Bytes of memory that the file takes, at most: pages, blocks, extents, and what is free and kept.
    pub(crate) fn held(&self) -> u64 {
        self.space.held()
    }

    /// Bytes of what is needed: without what is free and kept, and what is freed by the next commit.
    pub(crate) fn used(&self) -> u64 {
        self.space.used()
    }

    /// Bodies that are known by their addresses: all bytes of this checkpoint at which one ends.
    pub(crate) fn shared_bodies(&self) -> usize {
        self.bodies.len()
    }

    /// A checkpoint begins: what the last one put, if it was given up, is shared no more.
    pub(crate) fn begin_checkpoint(&mut self) {
        for (_, body) in std::mem::take(&mut self.bodies) {
            // Held since it was put, so there is such an item.
            let _ = self.space.drop(body.item);
        }
    }

    /// The caller's commit is complete: what was dying is free, which [`step`](Self::step) sees to. Everything was flushed
    /// before; if not, nothing is freed.
    pub(crate) fn committed(&mut self) {
        self.begin_checkpoint();
        if self.is_flushed() {
            self.space.committed();
        }
    }

    /// Bytes that are freed by the next [`committed`](Self::committed), about.
    pub(crate) fn freed_by_commit(&self) -> u64 {
        self.space.freed_by_commit()
    }

    /// What is free and kept is given back, too, by the steps to come; until then.
    pub(crate) fn return_idle(&mut self) {
        self.space.return_idle();
    }

    /// Does about so many units of work that was put off, a unit being about a record: frees what is not needed, walks
    /// the backlogs of peers that are gone, counts references after a reopen, gives memory back. Whether there is more.
    ///
    /// # Errors
    /// The system's; what was to be done is still to be done.
    pub(crate) fn step(&mut self, budget: usize) -> Result<bool> {
        let left = self
            .space
            .work(&self.medium, budget)
            .map_err(StoreError::system("give memory back"))?;
        self.walk(left)?;
        Ok(self.space.has_work() || !self.walks.is_empty())
    }

    // Extents

    /// An extent for so many bytes, at most 128 MiB, which the caller holds until he releases it.
    pub(crate) fn lend_extent(&mut self, len: usize) -> Result<ExtentPlace> {
        let class = Class::of_extent(len).ok_or(StoreError::Caller("longer than the largest extent"))?;
        let item = self.space.allocate(class);
        self.lent += class.size();
        Ok(ExtentPlace {
            offset: item.offset(),
            class: class.number(),
        })
    }

    /// After a reopen: the caller holds an extent that was lent before. Until [all are named](Self::end_naming) nothing that
    /// the file held is freed.
    pub(crate) fn hold_extent(&mut self, place: ExtentPlace) -> Result<()> {
        let item = place.item()?;
        let added = self.space.add(item);
        added.map_err(|_| StoreError::Caller("there is no such extent"))?;
        self.lent += item.class().size();
        Ok(())
    }

    /// Whether anybody but the caller, who holds it, may refer to an extent.
    pub(crate) fn is_shared(&mut self, place: ExtentPlace) -> bool {
        place.item().is_ok_and(|item| self.space.is_shared(item))
    }

    /// The caller holds it no more; backlogs that refer to it may.
    pub(crate) fn release_extent(&mut self, place: ExtentPlace) -> Result<()> {
        let item = place.item()?;
        let dropped = self.space.drop(item);
        dropped.map_err(|_| StoreError::Caller("the extent is not lent"))?;
        self.lent = self.lent.saturating_sub(item.class().size());
        Ok(())
    }

    fn allocate(&mut self, class: Class) -> Result<Item> {
        // Each new item frees some old ones, so that a caller who makes no steps still gets on.
        self.space.free_some(8);
        let held = self.space.held().saturating_sub(self.lent);
        if held.saturating_add(Space::cost(class)) > self.limit {
            return Err(StoreError::Full {
                held,
                limit: self.limit,
            });
        }
        Ok(self.space.allocate(class))
    }

    fn seal(&self, owner: u64, page: u64) -> Seal {
        Seal::new(self.layout, self.salt, owner, page)
    }

    /// The checksum of a body in a block.
    fn body_crc(&self, item: Item, body: &[u8]) -> u32 {
        crc32c::crc32c_append(self.salt ^ (item.offset() / 256) as u32, body)
    }
}
