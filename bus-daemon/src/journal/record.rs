//! How one event stands in the log: a header, the bytes received, the descriptors received.

#![allow(unsafe_code, reason = "reads and writes headers in mapped memory")]

/// What kind of event a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// [`Event::Received`](crate::broker::Event::Received): the data follows the header.
    Received = 1,
    /// [`Event::ReceivedLarge`](crate::broker::Event::ReceivedLarge): the data is in an extent.
    ReceivedLarge = 2,
    /// [`Event::Drained`](crate::broker::Event::Drained).
    Drained = 3,
    /// [`Event::Tick`](crate::broker::Event::Tick).
    Tick = 4,
    /// Any other event: bincode of [`RareEvent`](super::RareEvent).
    Rare = 5,
    /// What the system answered in the middle of the event before: bincode of [`Answer`](super::Answer).
    Answer = 6,
}

/// Stands before each record, at a multiple of 8.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct RecordHeader {
    /// Position in the order of all events.
    pub(crate) sequence: u64,
    /// Whose; 0 where no peer is concerned.
    pub(crate) peer: u64,
    /// `Drained`: bytes. `Tick`: milliseconds. `ReceivedLarge`: offset of the extent.
    pub(crate) number: u64,
    /// `ReceivedLarge`: bytes of the message that have arrived.
    pub(crate) filled: u64,
    /// Bytes of data behind the header.
    pub(crate) data_len: u32,
    /// Descriptors behind the data, 4 bytes each, from the next multiple of 4.
    pub(crate) fds: u16,
    /// A [`Kind`].
    pub(crate) kind: u8,
    /// Zero.
    pub(crate) reserved: u8,
}

/// Bytes of a [`RecordHeader`].
pub(crate) const RECORD_HEADER: usize = size_of::<RecordHeader>();
const _: () = assert!(RECORD_HEADER == 40);

impl RecordHeader {
    /// Bytes of the whole record, padding to the next one included.
    pub(crate) const fn total(&self) -> usize {
        (RECORD_HEADER + (self.data_len as usize).next_multiple_of(4) + 4 * self.fds as usize)
            .next_multiple_of(8)
    }

    /// Writes it at `place`.
    ///
    /// # Safety
    /// `place` is writable for [`RECORD_HEADER`] bytes and aligned to 8.
    pub(crate) unsafe fn write_to(self, place: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { place.cast::<Self>().write(self) }
    }
}
