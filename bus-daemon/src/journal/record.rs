//! How one event stands in the log: a header, the bytes received, the descriptors received.

#![allow(unsafe_code, reason = "reads and writes headers in mapped memory")]

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

/// What kind of event a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// [`Event::Received`](crate::broker::Event::Received): the data follows the header.
    Received = 1,
    /// [`Event::ReceivedLarge`](crate::broker::Event::ReceivedLarge): the data is in an extent.
    ReceivedLarge = 2,
    /// [`Event::Sent`](crate::broker::Event::Sent).
    Sent = 3,
    /// [`Event::Tick`](crate::broker::Event::Tick).
    Tick = 4,
    /// Any other event: an encoded [`RareEvent`](super::RareEvent).
    Rare = 5,
    /// What the system answered in the middle of the event before: an encoded [`Answer`](super::Answer).
    Answer = 6,
}

impl Kind {
    pub(crate) fn from_u8(number: u8) -> Option<Self> {
        [
            Self::Received,
            Self::ReceivedLarge,
            Self::Sent,
            Self::Tick,
            Self::Rare,
            Self::Answer,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// What a record tells besides its data and descriptors: fields of its header.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fields {
    pub(crate) peer: u64,
    pub(crate) number: u64,
    pub(crate) extent: u64,
    pub(crate) filled: u32,
    pub(crate) class: u8,
    pub(crate) lost_fds: bool,
}

impl Fields {
    /// Those that most records have.
    pub(crate) fn new(peer: u64, number: u64) -> Self {
        Self {
            peer,
            number,
            ..Self::default()
        }
    }
    /// The header of such a record, as yet without its hash.
    #[inline]
    pub(crate) fn record(self, kind: Kind, sequence: u64, data_len: usize, fds: usize) -> RecordHeader {
        RecordHeader {
            sequence,
            peer: self.peer,
            number: self.number,
            extent: self.extent,
            data_len: data_len as u32,
            fds: fds as u8,
            lost_fds: u8::from(self.lost_fds),
            kind: kind as u8,
            class: self.class,
            filled: self.filled,
            hash: 0,
        }
    }
}

/// Stands before each record, at a multiple of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RecordHeader {
    /// Position in the order of all events.
    pub(crate) sequence: u64,
    /// Whose; 0 where no peer is concerned.
    pub(crate) peer: u64,
    /// `Received`, `ReceivedLarge`, `Sent`: absolute offset in the peer's stream that was reached. `Tick`: milliseconds.
    /// `Rare`: the number of the entry in the keeper's outbox that told of it, if one did.
    pub(crate) number: u64,
    /// `ReceivedLarge`: offset of the extent.
    pub(crate) extent: u64,
    /// Bytes of data behind the header.
    pub(crate) data_len: u32,
    /// Descriptors behind the data, 4 bytes each, from the next multiple of 4.
    pub(crate) fds: u8,
    /// `Received`, `ReceivedLarge`: 1 where descriptors that came with the bytes were lost, for want of room.
    pub(crate) lost_fds: u8,
    /// A [`Kind`].
    pub(crate) kind: u8,
    /// `ReceivedLarge`: size class of the extent.
    pub(crate) class: u8,
    /// `ReceivedLarge`: bytes of the message that have arrived.
    pub(crate) filled: u32,
    /// Of the fields above, and of the data where it is at most [`HASHED_DATA`] bytes, and of the descriptors. No more than one
    /// build ever sees it, whose number is in the salt: it may be any function that finds damage, and small records are so
    /// many that a CRC is felt.
    pub(crate) hash: u32,
}

/// Bytes of a [`RecordHeader`].
pub(crate) const RECORD_HEADER: usize = size_of::<RecordHeader>();
const _: () = assert!(RECORD_HEADER == 48);

/// Data up to this length is under the hash. Beyond it the hash would cost more than the read itself; what such data is
/// made of is checked by the framer again.
pub(crate) const HASHED_DATA: usize = 4096;

impl RecordHeader {
    /// Where the descriptors begin, counted from the header.
    pub(crate) const fn fds_at(&self) -> usize {
        RECORD_HEADER + (self.data_len as usize).next_multiple_of(4)
    }

    /// Bytes of the whole record, padding to the next one included.
    pub(crate) const fn total(&self) -> usize {
        (self.fds_at() + 4 * self.fds as usize).next_multiple_of(8)
    }

    /// What belongs into `hash`. `salt` is the journal's own.
    #[inline]
    pub(crate) fn hash_with(&self, salt: u32, data: &[u8], fds: &[u8]) -> u32 {
        let mut hasher = FixedState::with_seed(u64::from(salt)).build_hasher();
        for field in [self.sequence, self.peer, self.number, self.extent] {
            hasher.write_u64(field);
        }
        hasher.write_u32(self.data_len);
        hasher.write_u32(self.filled);
        hasher.write_u32(u32::from_le_bytes([
            self.fds,
            self.lost_fds,
            self.kind,
            self.class,
        ]));
        if !data.is_empty() && data.len() <= HASHED_DATA {
            hasher.write(data);
        }
        if !fds.is_empty() {
            hasher.write(fds);
        }
        let hash = hasher.finish();
        (hash >> 32) as u32 ^ hash as u32
    }

    /// Writes it at `place`.
    ///
    /// # Safety
    /// `place` is writable for [`RECORD_HEADER`] bytes and aligned to 8.
    pub(crate) unsafe fn write_to(self, place: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { place.cast::<Self>().write(self) }
    }

    /// Reads what stands at `place`, whatever it is.
    ///
    /// # Safety
    /// `place` is readable for [`RECORD_HEADER`] bytes and aligned to 8.
    pub(crate) unsafe fn read_from(place: *const u8) -> Self {
        // SAFETY: the caller's promise; any bytes are a value.
        unsafe { place.cast::<Self>().read() }
    }
}
