//! What a checkpoint says about the bytes that wait for one peer.

use serde::{Deserialize, Serialize};

use super::page::NONE;

/// The stored part of a peer's stream. Frozen: it stands in checkpoints and in the image of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BacklogV1 {
    /// The peer, as [`PeerId::to_u64`](crate::broker::PeerId::to_u64) numbers it.
    pub(crate) owner: u64,
    /// Absolute offset in the stream of the first byte that is stored and not sent.
    pub(crate) start: u64,
    /// Absolute offset of the byte behind the last one stored.
    pub(crate) end: u64,
    /// Page of the record that holds `start`; `u64::MAX` = nothing is stored.
    pub(crate) head_page: u64,
    /// Page that the next record goes to.
    pub(crate) tail_page: u64,
    /// Where in its page that first record begins.
    pub(crate) head_at: u32,
    /// Bytes of it that are sent.
    pub(crate) head_sent: u32,
    /// Where in its page the next record goes.
    pub(crate) tail_at: u32,
}

impl BacklogV1 {
    /// Nothing, from this offset of the peer's stream on.
    pub(crate) const fn empty(owner: u64, at: u64) -> Self {
        Self {
            owner,
            start: at,
            end: at,
            head_page: NONE,
            tail_page: NONE,
            head_at: 0,
            head_sent: 0,
            tail_at: 0,
        }
    }

    /// Bytes that wait.
    pub(crate) const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether nothing waits.
    pub(crate) const fn is_empty(&self) -> bool {
        self.head_page == NONE
    }

    /// Where the records of `page` end, if it is the last one.
    pub(super) fn end_of(&self, page: u64) -> Option<u32> {
        (page == self.tail_page).then_some(self.tail_at)
    }
}
