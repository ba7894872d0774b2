//! What waits for slow readers, as a state names it: places in a store, whose memory goes on with the connections.

use std::ops::RangeInclusive;

use bus_wire::PieceState;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The layout of pages and blocks that this build writes.
pub const LAYOUT: u32 = if cfg!(feature = "next-version") {
    CURRENT_LAYOUT + 1
} else {
    CURRENT_LAYOUT
};
/// Those that it reads. A store in another one than [`LAYOUT`] is rewritten.
pub const LAYOUTS: RangeInclusive<u32> = CURRENT_LAYOUT..=LAYOUT;
/// The newest that is in use.
const CURRENT_LAYOUT: u32 = 1;

/// No page.
pub(crate) const NO_PAGE: u64 = u64::MAX;

/// The stored part of a peer's stream. Frozen: it stands in checkpoints and in the image of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BacklogV1 {
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
    pub const fn empty(owner: u64, at: u64) -> Self {
        Self {
            owner,
            start: at,
            end: at,
            head_page: NO_PAGE,
            tail_page: NO_PAGE,
            head_at: 0,
            head_sent: 0,
            tail_at: 0,
        }
    }

    /// From one offset of a peer's stream to another, in a store that needs no pages: a simulated one.
    pub const fn without_pages(owner: u64, start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            head_page: if start < end { 0 } else { NO_PAGE },
            ..Self::empty(owner, end)
        }
    }

    /// The peer, as [`PeerId::to_u64`](crate::broker::PeerId::to_u64) numbers it.
    pub const fn owner(&self) -> u64 {
        self.owner
    }

    /// Absolute offset in the stream of the first byte that is stored and not sent.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Absolute offset of the byte behind the last one stored.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that wait.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.head_page == NO_PAGE
    }
}

/// The beginning of a large message of which the rest is still to come: it lies in an extent of the store. Frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputV1 {
    /// Who sends it, as [`PeerId::to_u64`](crate::broker::PeerId::to_u64) numbers it.
    pub(crate) owner: u64,
    /// Where the extent begins in the store.
    pub(crate) offset: u64,
    /// The extent's class, as the store numbers them.
    pub(crate) class: u8,
    /// Bytes that have arrived.
    pub(crate) len: u64,
}

impl InputV1 {
    /// So many bytes in the first extent of a store that is only made up.
    pub const fn made_up(owner: u64, len: u64) -> Self {
        Self {
            owner,
            offset: 0,
            class: 64,
            len,
        }
    }

    /// Who sends it, as [`PeerId::to_u64`](crate::broker::PeerId::to_u64) numbers it.
    pub const fn owner(&self) -> u64 {
        self.owner
    }
}

/// A store, and what each peer has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The number of its memfd.
    pub number: i32,
    /// What its checksums begin with.
    pub salt: u32,
    /// The layout of its pages and blocks.
    pub layout: u32,
    /// The part of each peer for which something waits.
    pub backlogs: Vec<BacklogV1>,
    /// The part of each peer that is in the middle of a large message.
    pub inputs: Vec<InputV1>,
}

impl Default for Stored {
    fn default() -> Self {
        Self {
            number: 0,
            salt: 0,
            layout: LAYOUT,
            backlogs: Vec::new(),
            inputs: Vec::new(),
        }
    }
}

/// Gives the output that waits in a store, for a state that is to hold it itself.
pub trait Backlogs {
    /// The bytes of a peer's stream from the absolute offset `from` to the end of its backlog, in order. Where one of the
    /// offsets `cuts` lies among them, which are in order, a piece begins.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn pieces(&mut self, backlog: &BacklogV1, from: u64, cuts: &[u64]) -> Result<Vec<PieceState>, String>;
}

/// Zeros in the place of the output, as many as there are bytes: for the trial of a reader, to which the bytes mean
/// nothing. However much waits, that costs next to nothing.
#[derive(Debug, Clone, Copy)]
pub struct StandIn;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl Backlogs for StandIn {
    fn pieces(&mut self, backlog: &BacklogV1, from: u64, cuts: &[u64]) -> Result<Vec<PieceState>, String> {
        let zeros = Bytes::from_static(&ZEROS);
        let mut pieces = Vec::new();
        let mut at = from;
        let cuts = cuts.iter().copied().filter(|cut| *cut < backlog.end);
        for end in cuts.chain([backlog.end]) {
            while at < end {
                let rest = usize::try_from(end - at).unwrap_or(usize::MAX);
                let len = rest.min(ZEROS.len());
                // One body is known by where it ends.
                pieces.push(PieceState::Shared(zeros.slice(zeros.len() - len..)));
                at += len as u64;
            }
        }
        Ok(pieces)
    }
}
