//! The event log: segments of shared memory that bytes are received straight into.
//!
//! Segments are few and recycled, since fresh pages cost several times what resident ones do. A segment is free again
//! when nothing looks at its bytes any more.

#![allow(unsafe_code, reason = "writes records into mapped memory")]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use bus_wire::Fd;
use bytes::Bytes;

use super::header::{HEADER_LEN, Header, MAX_FDS};
use super::record::{Kind, RECORD_HEADER, RecordHeader};
use super::region::Region;
use super::view::{Lookers, view};

/// Bytes of one segment.
const SEGMENT: usize = 256 * 1024;
/// Segments whose pages are kept when nobody looks at them: 4 MiB.
const RESIDENT: usize = 16;
/// Segments there may be at most: 64 MiB.
const MOST: usize = 256;
/// The segment used when all others are looked at: bytes are copied out of it at once, so that nothing pins it.
const SPARE: usize = MOST;
/// Most bytes taken from a socket in one read.
const READ: usize = 64 * 1024;
/// Least room for a read; with less, the next segment begins.
const LEAST_READ: usize = 16 * 1024;
/// Room kept behind a read's data for its descriptors and padding.
const READ_TAIL: usize = 4 * MAX_FDS + 16;

/// Where a read is to put its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The first byte.
    pub(crate) start: *mut u8,
    /// How many fit.
    pub(crate) len: usize,
}

/// The log's writing end.
pub(crate) struct Log {
    region: Region,
    header: &'static Header,
    /// One for each segment there may be, and the spare one.
    segments: Vec<Lookers>,
    /// How many segments have been used, from the first on.
    opened: usize,
    current: usize,
    /// Where the next record begins in the current segment.
    offset: usize,
    /// A view of the whole current segment, of which the reads are slices.
    active: Bytes,
    sequence: u64,
}

impl Log {
    /// A log in a new region of its own; also the header in front of it.
    pub(crate) fn create() -> io::Result<(Self, &'static mut Header)> {
        let region = Region::create(c"bus-journal", HEADER_LEN + (MOST + 1) * SEGMENT)?;
        if let Err(error) = region.lock(HEADER_LEN) {
            // A crash could then lose a count where memory is swapped out at that very moment; running is better.
            tracing::warn!("cannot lock the in-flight slot in memory: {error}");
        }
        // SAFETY: the region is new. The log below only uses the header's atomics by shared reference.
        let header = unsafe { Header::of(&region) };
        // SAFETY: as above: the second reference reads atomics that the first one's owner never borrows mutably.
        let shared: &'static Header = unsafe { &*std::ptr::from_ref::<Header>(header) };
        let mut log = Self {
            region,
            header: shared,
            segments: std::iter::repeat_with(Lookers::default).take(MOST + 1).collect(),
            opened: 1,
            current: 0,
            offset: 0,
            active: Bytes::new(),
            sequence: 0,
        };
        log.open_segment(0);
        Ok((log, header))
    }

    /// Whether the worker serves.
    pub(crate) fn serving(&self) -> &'static AtomicU32 {
        &self.header.serving
    }

    /// The number of the next record.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Room for a read at the log's end; [`finish_read`](Self::finish_read) makes a record of it.
    pub(crate) fn room(&mut self) -> Room {
        if self.offset + RECORD_HEADER + LEAST_READ + READ_TAIL > SEGMENT {
            self.next_segment();
        }
        let start = self.offset + RECORD_HEADER;
        let len = READ.min(SEGMENT - start - READ_TAIL);
        Room { start: self.place(start, len), len }
    }

    /// The last [`room`](Self::room) took `len` bytes and these descriptors.
    pub(crate) fn finish_read(&mut self, peer: u64, len: usize, fds: &[Fd]) -> Bytes {
        let start = self.offset + RECORD_HEADER;
        self.publish(Kind::Received, peer, 0, 0, len, fds);
        let data = self.active.slice(start..start + len);
        if self.current == SPARE { Bytes::copy_from_slice(&data) } else { data }
    }

    /// Appends a record without received bytes in the log itself.
    pub(crate) fn append(&mut self, kind: Kind, peer: u64, number: u64, filled: u64, fds: &[Fd]) {
        if self.offset + RECORD_HEADER + READ_TAIL > SEGMENT {
            self.next_segment();
        }
        self.publish(kind, peer, number, filled, 0, fds);
    }

    /// Appends a record with data of at most [`Log::MOST_DATA`] bytes.
    pub(crate) fn append_data(&mut self, kind: Kind, peer: u64, number: u64, data: &[u8]) {
        assert!(data.len() <= Self::MOST_DATA);
        if self.offset + RECORD_HEADER + data.len() + READ_TAIL > SEGMENT {
            self.next_segment();
        }
        let place = self.place(self.offset + RECORD_HEADER, data.len());
        // SAFETY: `place` is room for that many bytes, past everything that was handed out.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place, data.len()) };
        self.publish(kind, peer, number, 0, data.len(), &[]);
    }

    /// Most bytes of data in one record of [`append_data`](Self::append_data).
    pub(crate) const MOST_DATA: usize = SEGMENT - RECORD_HEADER - READ_TAIL - 64;

    fn publish(&mut self, kind: Kind, peer: u64, number: u64, filled: u64, data_len: usize, fds: &[Fd]) {
        let record = RecordHeader {
            sequence: self.sequence,
            peer,
            number,
            filled,
            data_len: data_len as u32,
            fds: fds.len().min(MAX_FDS) as u16,
            kind: kind as u8,
            reserved: 0,
        };
        let fds_at = self.offset + RECORD_HEADER + data_len.next_multiple_of(4);
        for (index, fd) in fds.iter().take(MAX_FDS).enumerate() {
            let place = self.place(fds_at + 4 * index, 4);
            // SAFETY: `place` is 4 writable bytes at a multiple of 4.
            unsafe { place.cast::<i32>().write(fd.0) };
        }
        let place = self.place(self.offset, RECORD_HEADER);
        // SAFETY: room for a header at a multiple of 8.
        unsafe { record.write_to(place) };
        self.offset += record.total();
        self.sequence += 1;
        self.header.records.store(self.sequence, Ordering::Release);
    }

    /// Goes on in the lowest segment that nobody looks at: the fewer are used, the warmer they are.
    fn next_segment(&mut self) {
        self.active = Bytes::new();
        self.shrink();
        let free = (0..self.opened).find(|index| !self.segments[*index].any());
        let next = match free {
            Some(index) => index,
            None if self.opened < MOST => {
                self.opened += 1;
                self.opened - 1
            }
            None => SPARE,
        };
        self.open_segment(next);
    }

    /// Gives back what a burst of pinned segments took.
    fn shrink(&mut self) {
        while self.opened > RESIDENT && !self.segments[self.opened - 1].any() {
            self.opened -= 1;
            self.region.release_range((HEADER_LEN + self.opened * SEGMENT) as u64, SEGMENT);
        }
    }

    fn open_segment(&mut self, index: usize) {
        self.current = index;
        self.offset = 0;
        let start = self.place(0, SEGMENT);
        // SAFETY: the region is never unmapped; only bytes behind those handed out are written; of the spare segment
        // nothing is handed out that outlives `finish_read`.
        self.active = unsafe { view(start, SEGMENT, &self.segments[index]) };
    }

    fn place(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= SEGMENT);
        self.region.at(HEADER_LEN + self.current * SEGMENT + offset, len)
    }
}
