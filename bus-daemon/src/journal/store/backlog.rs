//! What a checkpoint says about the bytes that wait for one peer.

pub(crate) use crate::handoff::stored::BacklogV1;

use super::class::PAGE;
use super::page::{NONE, PAGE_HEADER, is_page};

/// Offsets of streams are smaller: no stream gets this far, and beyond it counting could overflow.
const MAX_OFFSET: u64 = 1 << 62;

impl BacklogV1 {
    /// Whether it can be one that a store wrote. Whatever else it says wrongly is damage that its pages show.
    pub(crate) fn is_sound(&self) -> bool {
        let is_in_page =
            |at: u32| (PAGE_HEADER..=PAGE as usize).contains(&(at as usize)) && at.is_multiple_of(8);
        let are_pages = if self.is_empty() {
            self.tail_page == NONE && self.start == self.end
        } else {
            is_page(self.head_page)
                && is_page(self.tail_page)
                && is_in_page(self.head_at)
                && is_in_page(self.tail_at)
                && self.tail_at as usize > PAGE_HEADER
        };
        are_pages && self.start <= self.end && self.end <= MAX_OFFSET
    }

    /// Where the records of `page` end, if it is the last one.
    pub(super) fn end_of(&self, page: u64) -> Option<u32> {
        (page == self.tail_page).then_some(self.tail_at)
    }
}
