//! Writing: bodies into blocks, records behind the tails of backlogs.
//!
//! Nothing is written before there is much of it: small blocks gather in a run per class, records in an image per peer,
//! which [`Store::flush`] writes. An append that fails leaves the backlog and all counts as they were.

use super::backlog::BacklogV1;
use super::class::{Class, Item, LARGEST_BLOCK, PAGE};
use super::medium::Medium;
use super::page::{Fill, NONE, PAGE_HEADER, Reference, inline_room, page_item};
use super::{ExtentPlace, Result, Store, StoreError};

/// Bytes that are written at once.
const WRITE: usize = 64 * 1024;
/// A longer body is written at once by itself, without a copy.
const COPIED: usize = 32 * 1024;
/// Inline bytes do not begin at the end of a page where only fewer fit.
const LEAST_INLINE: usize = 64;

/// Blocks that follow each other in the file.
#[derive(Debug, Default)]
pub(super) struct Run {
    start: u64,
    bytes: Vec<u8>,
}

/// Records of one peer, from some place in one page up to its tail; further pages follow without a gap.
#[derive(Debug)]
pub(super) struct Image {
    start: u64,
    bytes: Vec<u8>,
    /// The header of the first page, which is complete now, where the image begins behind it.
    header: Option<(u64, [u8; PAGE_HEADER])>,
}

impl Image {
    fn at(start: u64) -> Self {
        Self {
            start,
            bytes: Vec::new(),
            header: None,
        }
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Whether the next record of that tail continues it.
    fn continues(&self, place: u64) -> bool {
        self.end() == place
    }

    /// Puts what it has of a page where it belongs.
    pub(super) fn lay_over(&self, offset: u64, page: &mut [u8]) {
        let from = self.start.max(offset);
        let to = self.end().min(offset + page.len() as u64);
        if from < to {
            page[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&self.bytes[(from - self.start) as usize..(to - self.start) as usize]);
        }
        if let Some((_, header)) = self.header.filter(|(place, _)| *place == offset) {
            page[..PAGE_HEADER].copy_from_slice(&header);
        }
    }

    fn write(&self, medium: &impl Medium) -> std::io::Result<()> {
        if let Some((place, header)) = &self.header {
            medium.pwrite(*place, header)?;
        }
        if self.bytes.is_empty() {
            return Ok(());
        }
        medium.pwrite(self.start, &self.bytes)
    }
}

impl<M: Medium> Store<M> {
    /// A block with these bytes, at most [`LARGEST_BLOCK`]. `key` tells shared bytes of one checkpoint: the address of their
    /// end, where no others may come to lie until the checkpoint is [complete](Store::committed) or the next one
    /// [begins](Store::begin_checkpoint). Where more bytes with that end were put before, the reference is to those, and
    /// only its last `bytes.len()` are these.
    pub(crate) fn put_body(&mut self, key: usize, bytes: &[u8]) -> Result<Reference> {
        let known = self.bodies.get(&key).copied();
        if let Some(known) = known.filter(|known| known.len as usize >= bytes.len()) {
            return Ok(known);
        }
        let class =
            Class::of_block(bytes.len()).ok_or(StoreError::Caller("longer than the largest block"))?;
        let item = self.allocate(class)?;
        if let Err(error) = self.write_block(item, bytes) {
            self.space.undo(item);
            return Err(error);
        }
        let reference = Reference {
            item,
            len: bytes.len() as u32,
            crc: self.body_crc(item, bytes),
        };
        if let Some(shorter) = self.bodies.insert(key, reference) {
            let _ = self.space.drop(shorter.item);
        }
        Ok(reference)
    }

    /// Appends bytes of any length that others may share: pieces of them, cut from their end on, which `key` is the address
    /// of. On an error the backlog may have got some of the pieces.
    pub(crate) fn append_body(&mut self, backlog: &mut BacklogV1, key: usize, bytes: &[u8]) -> Result<()> {
        let mut from = 0;
        while from < bytes.len() {
            let len = (bytes.len() - from - 1) % LARGEST_BLOCK + 1;
            let piece = &bytes[from..from + len];
            let key = key.wrapping_sub(bytes.len() - from - len);
            let reference = self.put_body(key, piece)?;
            self.append_reference(backlog, reference, reference.len - len as u32)?;
            from += len;
        }
        Ok(())
    }

    /// Appends the body in a block, but for the first `skip` bytes of it.
    pub(crate) fn append_reference(
        &mut self,
        backlog: &mut BacklogV1,
        reference: Reference,
        skip: u32,
    ) -> Result<()> {
        let len = reference.len.saturating_sub(skip);
        self.append_holding(backlog, reference.item, Fill::Block(reference, len))
    }

    /// Appends part of an extent.
    pub(crate) fn append_extent(
        &mut self,
        backlog: &mut BacklogV1,
        place: ExtentPlace,
        from: u32,
        len: u32,
    ) -> Result<()> {
        let item = place.item()?;
        if u64::from(from) + u64::from(len) > place.len() {
            return Err(StoreError::Caller("not in the extent"));
        }
        self.append_holding(backlog, item, Fill::Extent { item, from, len })
    }

    /// Appends bytes of the peer's own. On an error the backlog may have got the first of them.
    pub(crate) fn append_inline(&mut self, backlog: &mut BacklogV1, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let at = if backlog.tail_page == NONE {
                PAGE as usize
            } else {
                backlog.tail_at as usize
            };
            let here = inline_room(at);
            let room = if here >= bytes.len().min(LEAST_INLINE) {
                here
            } else {
                inline_room(PAGE_HEADER)
            };
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.append(backlog, Fill::Inline(now))?;
            bytes = later;
        }
        Ok(())
    }

    /// Undoes appends: `backlog` is as it was when `to` was copied from it, with no `advance` in between.
    pub(crate) fn revert(&mut self, backlog: &mut BacklogV1, to: BacklogV1) -> Result<()> {
        self.cursors.remove(&backlog.owner);
        if to.is_empty() {
            self.abandon_now(*backlog)?;
        } else if to.tail_page != backlog.tail_page || to.tail_at != backlog.tail_at {
            self.drop_behind(*backlog, to)?;
        }
        *backlog = to;
        Ok(())
    }

    /// Writes everything that is not written yet. On an error the rest is kept, and may be flushed again.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while let Some((class, run)) = self.runs.pop_first() {
            if let Err(source) = self.medium.pwrite(run.start, &run.bytes) {
                self.runs.insert(class, run);
                return Err(StoreError::system("write blocks")(source));
            }
        }
        let mut images: Vec<(u64, Image)> = self.images.drain().collect();
        // In the order of the file: neighbours share pages of the system's tables.
        images.sort_unstable_by_key(|(_, image)| std::cmp::Reverse(image.start));
        while let Some((owner, image)) = images.pop() {
            if let Err(source) = image.write(&self.medium) {
                self.images.insert(owner, image);
                self.images.extend(images);
                return Err(StoreError::system("write records")(source));
            }
        }
        self.images = super::Map::default();
        Ok(())
    }

    /// Whether everything is written.
    pub(super) fn is_flushed(&self) -> bool {
        self.runs.is_empty() && self.images.is_empty()
    }

    fn write_block(&mut self, item: Item, bytes: &[u8]) -> Result<()> {
        let failed = StoreError::system("write a block");
        if bytes.len() > COPIED {
            return self.medium.pwrite(item.offset(), bytes).map_err(failed);
        }
        let run = self.runs.entry(item.class()).or_default();
        // The run ends with the last block's bytes; the next block's place may be a little behind.
        let end = run.start + (run.bytes.len() as u64).next_multiple_of(item.class().size());
        let fits = run.bytes.len() + bytes.len() <= WRITE && end == item.offset();
        if !fits && !run.bytes.is_empty() {
            self.medium.pwrite(run.start, &run.bytes).map_err(failed)?;
            run.bytes.clear();
        }
        if run.bytes.is_empty() {
            run.start = item.offset();
        }
        run.bytes.resize((item.offset() - run.start) as usize, 0);
        run.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn append_holding(&mut self, backlog: &mut BacklogV1, item: Item, fill: Fill<'_>) -> Result<()> {
        if fill.len() == 0 {
            return Ok(());
        }
        self.space
            .add(item)
            .map_err(|_| StoreError::Caller("nobody holds what is referred to"))?;
        self.append(backlog, fill).inspect_err(|_| {
            let _ = self.space.drop(item);
        })
    }

    fn append(&mut self, backlog: &mut BacklogV1, fill: Fill<'_>) -> Result<()> {
        let (page, at) = self.room(backlog, fill.size())?;
        let seal = self.seal(backlog.owner, page);
        let place = page + at as u64;
        let image = match self.images.get_mut(&backlog.owner) {
            Some(image) if image.continues(place) => image,
            Some(_) | None => self
                .images
                .entry(backlog.owner)
                .insert(Image::at(place))
                .into_mut(),
        };
        seal.write(at, fill, &mut image.bytes);
        if backlog.is_empty() {
            backlog.head_page = page;
            backlog.head_at = at as u32;
            backlog.head_sent = 0;
        }
        backlog.tail_page = page;
        backlog.tail_at = (at + fill.size()) as u32;
        backlog.end += u64::from(fill.len());
        Ok(())
    }

    /// Where a record of that size goes; the image of the peer's records ends there, or is not begun.
    fn room(&mut self, backlog: &BacklogV1, size: usize) -> Result<(u64, usize)> {
        let owner = backlog.owner;
        let (page, at) = (backlog.tail_page, backlog.tail_at as usize);
        if page == NONE {
            let new = self.allocate(Class::RECORDS)?;
            self.write_out(owner).inspect_err(|_| self.space.undo(new))?;
            self.begin_page(owner, new.offset());
            return Ok((new.offset(), PAGE_HEADER));
        }
        self.prove_tail(backlog)?;
        self.continue_image(owner, page, page + at as u64);
        if at + size <= PAGE as usize {
            return Ok((page, at));
        }
        let new = self.allocate(Class::RECORDS)?;
        self.complete_page(owner, page, at, new.offset())
            .inspect_err(|_| self.space.undo(new))?;
        self.begin_page(owner, new.offset());
        Ok((new.offset(), PAGE_HEADER))
    }

    /// Sees to it that the peer's image ends where its backlog does: an older copy of the backlog may be the valid one.
    fn continue_image(&mut self, owner: u64, page: u64, place: u64) {
        match self.images.get_mut(&owner) {
            Some(image) if image.continues(place) => {}
            Some(image) => {
                self.cursors.remove(&owner);
                if (image.start..image.end()).contains(&place) {
                    image.bytes.truncate((place - image.start) as usize);
                    image.header = image.header.filter(|(first, _)| *first != page);
                } else {
                    *image = Image::at(place);
                }
            }
            None => {
                self.cursors.remove(&owner);
                self.images.insert(owner, Image::at(place));
            }
        }
    }

    /// Ends the last page of the image, and writes the image out unless `next` follows it and there is little.
    fn complete_page(&mut self, owner: u64, page: u64, at: usize, next: u64) -> Result<()> {
        let header = self.seal(owner, page).header(next, at);
        let Some(image) = self.images.get_mut(&owner) else {
            return Err(StoreError::Caller("a page is completed that is not begun"));
        };
        if image.start <= page {
            let place = (page - image.start) as usize;
            image.bytes[place..place + PAGE_HEADER].copy_from_slice(&header);
        } else {
            image.header = Some((page, header));
        }
        let follows = page + PAGE == next && image.bytes.len() + PAGE as usize <= WRITE;
        if follows { Ok(()) } else { self.write_out(owner) }
    }

    fn write_out(&mut self, owner: u64) -> Result<()> {
        if let Some(image) = self.images.get(&owner) {
            image
                .write(&self.medium)
                .map_err(StoreError::system("write records"))?;
            self.images.remove(&owner);
        }
        Ok(())
    }

    /// Room for a header at the beginning of a page, behind the page before where that is in the image.
    fn begin_page(&mut self, owner: u64, page: u64) {
        let image = self.images.entry(owner).or_insert_with(|| Image::at(page));
        image.bytes.resize((page - image.start) as usize + PAGE_HEADER, 0);
    }

    /// One page of a backlog is referred to no more.
    pub(super) fn drop_page(&mut self, owner: u64, page: u64) {
        // A page that was read is an item.
        let _ = self.space.drop(page_item(page));
        if let Some(cursor) = self.cursors.get_mut(&owner) {
            cursor.forget(page);
        }
    }
}
