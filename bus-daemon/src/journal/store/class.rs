//! Size classes: what the chunks of the store are cut into.

/// Bytes of a chunk: the file is cut into these, and each holds items of one class.
pub(super) const CHUNK: u64 = 256 * 1024;
/// Bytes of a page of records, and of the system's pages.
pub(super) const PAGE: u64 = 4096;
/// System pages of a chunk; one bit each in a `u64`.
pub(super) const PAGES_PER_CHUNK: u64 = CHUNK / PAGE;
/// The longest body that one block holds.
pub(crate) const LARGEST_BLOCK: usize = 64 * 1024;

/// Smallest extent; each class is twice the one before.
const LEAST_EXTENT: u64 = 128 * 1024;
const FIRST_EXTENT: u8 = 64;
/// 128 KiB to 128 MiB, the largest message there is.
const EXTENT_CLASSES: u8 = 11;
const FINE: u64 = 256;
const FINE_CLASSES: u64 = PAGE / FINE;
const LAST_BLOCK: u8 = (FINE_CLASSES + LARGEST_BLOCK as u64 / PAGE - 1) as u8;

/// Class of an item. As a number it stands in every reference, so the numbers are frozen: 0 a page of records; 1 to 16
/// blocks in steps of 256 bytes; 17 to 31 blocks in steps of 4 KiB; 64 to 74 extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class(u8);

impl Class {
    /// A page of one peer's records.
    pub(super) const RECORDS: Self = Self(0);

    /// The class with this number; `None`: there is none.
    pub(super) fn new(number: u8) -> Option<Self> {
        let is_extent = (FIRST_EXTENT..FIRST_EXTENT + EXTENT_CLASSES).contains(&number);
        (number <= LAST_BLOCK || is_extent).then_some(Self(number))
    }

    /// Of a block for so many bytes, at most [`LARGEST_BLOCK`].
    pub(super) fn of_block(len: usize) -> Option<Self> {
        let len = (len as u64).max(1);
        let number = if len <= PAGE {
            len.div_ceil(FINE)
        } else {
            FINE_CLASSES + len.div_ceil(PAGE) - 1
        };
        u8::try_from(number)
            .ok()
            .filter(|number| *number <= LAST_BLOCK)
            .map(Self)
    }

    /// Of an extent for so many bytes, at most 128 MiB.
    pub(super) fn of_extent(len: usize) -> Option<Self> {
        (0..EXTENT_CLASSES)
            .find(|class| LEAST_EXTENT << class >= len as u64)
            .map(|class| Self(FIRST_EXTENT + class))
    }

    /// Its number.
    pub(super) fn number(self) -> u8 {
        self.0
    }

    /// Whether it is a block's.
    pub(super) fn is_block(self) -> bool {
        (1..=LAST_BLOCK).contains(&self.0)
    }

    /// Whether it is an extent's.
    pub(super) fn is_extent(self) -> bool {
        self.0 >= FIRST_EXTENT
    }

    /// Bytes of an item.
    pub(super) fn size(self) -> u64 {
        match u64::from(self.0) {
            0 => PAGE,
            number if number <= FINE_CLASSES => number * FINE,
            number if number < u64::from(FIRST_EXTENT) => (number + 1 - FINE_CLASSES) * PAGE,
            number => LEAST_EXTENT << (number - u64::from(FIRST_EXTENT)),
        }
    }

    /// Items of a chunk; `None`: an item takes whole chunks.
    pub(super) fn items(self) -> Option<usize> {
        let items = (CHUNK / self.size()) as usize;
        (items > 1).then_some(items)
    }

    /// Chunks of an item that takes whole chunks.
    pub(super) fn chunks(self) -> u32 {
        (self.size() / CHUNK) as u32
    }
}

/// An item's place: the class in the first byte, the offset in the file in the other seven, as references have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Item(u64);

const OFFSET_BITS: u32 = 56;

impl Item {
    /// The item of that class at that offset.
    pub(super) fn new(class: Class, offset: u64) -> Self {
        Self(u64::from(class.0) << OFFSET_BITS | offset)
    }

    /// From the number in a reference; `None`: there is no such class.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        Class::new((bits >> OFFSET_BITS) as u8).map(|_| Self(bits))
    }

    /// As it stands in a reference.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// Its class.
    pub(super) fn class(self) -> Class {
        Class((self.0 >> OFFSET_BITS) as u8)
    }

    /// Its offset in the file.
    pub(super) fn offset(self) -> u64 {
        self.0 & ((1 << OFFSET_BITS) - 1)
    }

    /// The chunk that it begins in.
    pub(super) fn chunk(self) -> u64 {
        self.offset() / CHUNK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_the_smallest_class_that_holds_it() {
        let blocks: Vec<Class> = (1..=LAST_BLOCK).filter_map(Class::new).collect();
        assert!(blocks.is_sorted_by_key(|class| class.size()));
        for len in 1..=LARGEST_BLOCK {
            let class = Class::of_block(len).unwrap();
            let expected = blocks.iter().find(|class| class.size() >= len as u64);
            assert_eq!(Some(&class), expected, "{len}");
        }
        assert_eq!(Class::of_block(LARGEST_BLOCK + 1), None);
        assert_eq!(Class::of_extent(1).unwrap().items(), Some(2));
        assert_eq!(Class::of_extent(128 << 20).unwrap().chunks(), 512);
        assert_eq!(Class::of_extent((128 << 20) + 1), None);
        assert_eq!(Class::new(32), None);
        assert_eq!(Class::new(75), None);
    }
}
