//! Pages of records, as they lie in the file. All numbers are little-endian, and frozen.
//!
//! ```text
//! page    next:u64  end:u32  crc:u32      records, 8-aligned, up to `end`
//! record  kind:4|length:28  crc:u32       payload, padded to 8
//! ```
//!
//! `length` is the bytes of the stream that a record stands for. Payloads: those bytes themselves; or a reference
//! `class:8|offset:56 len:u32 body_crc:u32` to a block, of which the last `length` bytes count; or
//! `class:8|offset:56 from:u32 0:u32` for `length` bytes of an extent. `next` and `end` mean something only in a page that is
//! not the last one of its chain. Every checksum begins with salt, owner, page and place.

use super::class::{CHUNK, Class, Item, PAGE};

/// Bytes before the first record.
pub(super) const PAGE_HEADER: usize = 16;
const RECORD_HEADER: usize = 8;
/// Bytes of a record that refers to something.
const REFERENCE: usize = RECORD_HEADER + 16;
/// No page.
pub(super) use crate::handoff::stored::NO_PAGE as NONE;
const KIND_SHIFT: u32 = 28;
/// The longest record's bytes of the stream, more than any message has.
const LONGEST: u32 = (1 << KIND_SHIFT) - 1;

const INLINE: u32 = 1;
const BLOCK: u32 = 2;
const EXTENT: u32 = 3;

/// A block with a body: immutable, shared by any number of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(super) item: Item,
    pub(super) len: u32,
    pub(super) crc: u32,
}

/// What a record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Bytes of the page, from this offset in it on.
    Inline(usize),
    /// The last bytes of a block.
    Block(Reference),
    /// Bytes of an extent.
    Extent { item: Item, from: u32 },
}

impl Body {
    /// What the record holds a reference to.
    pub(super) fn item(&self) -> Option<Item> {
        match self {
            Self::Inline(_) => None,
            Self::Block(reference) => Some(reference.item),
            Self::Extent { item, .. } => Some(*item),
        }
    }
}

/// A record as it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Bytes of the stream, at least 1.
    pub(super) len: u32,
    /// Where the next record begins in the page.
    pub(super) next: usize,
    pub(super) body: Body,
}

/// What a record is made of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fill<'a> {
    Inline(&'a [u8]),
    Block(Reference, u32),
    Extent { item: Item, from: u32, len: u32 },
}

impl Fill<'_> {
    /// Bytes of the page that the record takes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Inline(bytes) => (RECORD_HEADER + bytes.len()).next_multiple_of(8),
            Self::Block(..) | Self::Extent { .. } => REFERENCE,
        }
    }

    /// Bytes of the stream that it stands for.
    pub(super) fn len(&self) -> u32 {
        match self {
            Self::Inline(bytes) => bytes.len() as u32,
            Self::Block(_, len) | Self::Extent { len, .. } => *len,
        }
    }
}

/// Bytes of the stream that a record written there can hold itself.
pub(super) fn inline_room(at: usize) -> usize {
    (PAGE as usize).saturating_sub(at + RECORD_HEADER)
}

/// The beginning of the checksums of one page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    crc: u32,
    /// What the number of a record's kind is greater by than in layout 1.
    kinds: u32,
}

impl Seal {
    /// Of that peer's page there, in a store of this layout.
    pub(super) fn new(layout: u32, salt: u32, owner: u64, page: u64) -> Self {
        let crc = crc32c::crc32c_append(salt, &owner.to_le_bytes());
        Self {
            crc: crc32c::crc32c_append(crc, &page.to_le_bytes()),
            kinds: EXTENT * (layout - 1),
        }
    }

    fn at(self, place: usize) -> u32 {
        self.crc.wrapping_add(place as u32)
    }

    /// Appends a record that begins at `place` of the page.
    pub(super) fn write(self, place: usize, fill: Fill<'_>, to: &mut Vec<u8>) {
        let start = to.len();
        let kind = match fill {
            Fill::Inline(_) => INLINE,
            Fill::Block(..) => BLOCK,
            Fill::Extent { .. } => EXTENT,
        };
        let word = (kind + self.kinds) << KIND_SHIFT | fill.len().min(LONGEST);
        to.extend_from_slice(&word.to_le_bytes());
        to.extend_from_slice(&[0; 4]);
        match fill {
            Fill::Inline(bytes) => to.extend_from_slice(bytes),
            Fill::Block(reference, _) => {
                to.extend_from_slice(&reference.item.bits().to_le_bytes());
                to.extend_from_slice(&reference.len.to_le_bytes());
                to.extend_from_slice(&reference.crc.to_le_bytes());
            }
            Fill::Extent { item, from, .. } => {
                to.extend_from_slice(&item.bits().to_le_bytes());
                to.extend_from_slice(&from.to_le_bytes());
                to.extend_from_slice(&[0; 4]);
            }
        }
        let crc = crc32c::crc32c_append(self.at(place), &word.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &to[start + RECORD_HEADER..]);
        to[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        to.resize(start + fill.size(), 0);
    }

    /// The header of a page that is complete.
    pub(super) fn header(self, next: u64, end: usize) -> [u8; PAGE_HEADER] {
        let mut header = [0; PAGE_HEADER];
        header[..8].copy_from_slice(&next.to_le_bytes());
        header[8..12].copy_from_slice(&(end as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(self.at(0), &header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// The next page, and where the records of this one end. `None`: not what was written.
    pub(super) fn read_header(self, page: &[u8]) -> Option<(u64, usize)> {
        let next = word64(page, 0)?;
        let end = word32(page, 8)? as usize;
        let is_whole = word32(page, 12)? == crc32c::crc32c_append(self.at(0), page.get(..12)?);
        // A page without a record would be no step along the stream.
        let is_in_page = (PAGE_HEADER + 1..=PAGE as usize).contains(&end);
        (is_whole && is_in_page).then_some((next, end))
    }

    /// The record at `place` of a page whose records end at `end`. `None`: not what was written.
    pub(super) fn read(self, page: &[u8], place: usize, end: usize) -> Option<Record> {
        let page = page.get(..end)?;
        let word = word32(page, place)?;
        let (kind, len) = ((word >> KIND_SHIFT).checked_sub(self.kinds)?, word & LONGEST);
        let start = place + RECORD_HEADER;
        let payload = if kind == INLINE { len as usize } else { 16 };
        let bytes = page.get(start..start.checked_add(payload)?)?;
        let crc = crc32c::crc32c_append(self.at(place), &word.to_le_bytes());
        if len == 0 || crc32c::crc32c_append(crc, bytes) != word32(page, place + 4)? {
            return None;
        }
        let body = match kind {
            INLINE => Body::Inline(start),
            BLOCK => {
                let reference = Reference {
                    item: Item::from_bits(word64(bytes, 0)?)?,
                    len: word32(bytes, 8)?,
                    crc: word32(bytes, 12)?,
                };
                let class = reference.item.class();
                let is_sound =
                    class.is_block() && u64::from(reference.len) <= class.size() && len <= reference.len;
                is_sound.then_some(Body::Block(reference))?
            }
            EXTENT => {
                let item = Item::from_bits(word64(bytes, 0)?)?;
                let from = word32(bytes, 8)?;
                let end = u64::from(from) + u64::from(len);
                let is_sound = item.class().is_extent() && end <= item.class().size();
                is_sound.then_some(Body::Extent { item, from })?
            }
            _ => return None,
        };
        let next = (start + payload).next_multiple_of(8);
        (next <= end).then_some(Record { len, next, body })
    }
}

/// Whether a page can begin there.
pub(super) fn is_page(offset: u64) -> bool {
    offset.is_multiple_of(PAGE) && offset / CHUNK < u64::from(u32::MAX)
}

/// The page as an item.
pub(super) fn page_item(offset: u64) -> Item {
    Item::new(Class::RECORDS, offset)
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
