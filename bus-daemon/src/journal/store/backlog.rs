//! What a checkpoint says about the bytes that wait for one peer.

pub(crate) use crate::handoff::stored::BacklogV1;

impl BacklogV1 {
    /// Where the records of `page` end, if it is the last one.
    pub(super) fn end_of(&self, page: u64) -> Option<u32> {
        (page == self.tail_page).then_some(self.tail_at)
    }
}
