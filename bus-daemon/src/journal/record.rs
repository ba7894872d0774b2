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
    /// CRC-32C of the fields above, and of the data where it is at most [`CHECKED_DATA`] bytes, and of the descriptors.
    pub(crate) crc: u32,
}

/// Bytes of a [`RecordHeader`].
pub(crate) const RECORD_HEADER: usize = size_of::<RecordHeader>();
const _: () = assert!(RECORD_HEADER == 48);

/// Data up to this length is under the checksum. Beyond it a checksum would cost more than the read itself; what such
/// data is made of is checked by the framer again.
pub(crate) const CHECKED_DATA: usize = 4096;

impl RecordHeader {
    /// Where the descriptors begin, counted from the header.
    pub(crate) const fn fds_at(&self) -> usize {
        RECORD_HEADER + (self.data_len as usize).next_multiple_of(4)
    }

    /// Bytes of the whole record, padding to the next one included.
    pub(crate) const fn total(&self) -> usize {
        (self.fds_at() + 4 * self.fds as usize).next_multiple_of(8)
    }

    /// The checksum that belongs into `crc`. `salt` is the journal's own.
    pub(crate) fn checksum(&self, salt: u32, data: &[u8], fds: &[u8]) -> u32 {
        /// Aligned and of whole words, for which there is one instruction each.
        #[repr(align(8))]
        struct Words([u8; 48]);
        let Words(fields) = &mut Words([0; 48]);
        fields[..8].copy_from_slice(&self.sequence.to_ne_bytes());
        fields[8..16].copy_from_slice(&self.peer.to_ne_bytes());
        fields[16..24].copy_from_slice(&self.number.to_ne_bytes());
        fields[24..32].copy_from_slice(&self.extent.to_ne_bytes());
        fields[32..36].copy_from_slice(&self.data_len.to_ne_bytes());
        fields[36] = self.fds;
        fields[37] = self.lost_fds;
        fields[38] = self.kind;
        fields[39] = self.class;
        fields[40..44].copy_from_slice(&self.filled.to_ne_bytes());
        let mut crc = crc32c::crc32c_append(salt, fields);
        if data.len() <= CHECKED_DATA {
            crc = crc32c::crc32c_append(crc, data);
        }
        if fds.is_empty() {
            crc
        } else {
            crc32c::crc32c_append(crc, fds)
        }
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
