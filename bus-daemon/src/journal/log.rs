//! The event log: segments of shared memory that bytes are received straight into.
//!
//! Segments are few and recycled, since fresh pages cost several times what resident ones do. A segment is free again
//! when nothing looks at its bytes any more and no replay would need it: everything in it is part of a checkpoint.

#![allow(unsafe_code, reason = "reads and writes records in mapped memory")]

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use bus_wire::Fd;
use bytes::Bytes;

use super::header::{HEADER_LEN, Header, MAX_FDS};
use super::record::{Fields, Kind, RECORD_HEADER, RecordHeader};
use super::view::{Lookers, view};
use crate::os::region::Region;

/// Bytes of one segment.
pub(super) const SEGMENT: usize = 256 * 1024;
/// Segments whose pages are kept when nobody looks at them: 4 MiB.
const RESIDENT: usize = 16;
/// Segments there may be at most: 64 MiB.
const MOST: usize = 256;
/// Segments behind those, used when all of them are looked at: bytes are copied out of these at once, so that nothing pins
/// them. As many as the records of several turns take; with one in use each turn ends with a checkpoint.
const SPARES: usize = 8;
/// All of them.
pub(super) const SEGMENTS: usize = MOST + SPARES;
/// So many spare ones must be free for another turn.
const NEEDED: usize = 5;
/// Segments that a replay may have to read before a checkpoint is wanted.
const RETAINED: usize = 3;
/// Records after which a checkpoint is wanted: replaying them takes about a millisecond.
const RECORDS: u64 = 4096;
/// For each peer that has changed it may be so many more, and for so many peers a segment: all of them stand in the
/// checkpoint, and it must not cost more than what it saves a replay.
const RECORDS_PER_PEER: u64 = 32;
const PEERS_PER_SEGMENT: usize = 128;
/// How many times as much may come together before a checkpoint is taken at once, without parts of it written ahead.
const OVERDUE: u64 = 16;
/// Most bytes taken from a socket in one read.
const READ: usize = 64 * 1024;
/// Least room for a read; with less, the next segment begins.
pub(super) const LEAST_READ: usize = 16 * 1024;
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

/// A place in the log, between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The number of the next record.
    pub(crate) sequence: u64,
    /// The segment it is in, unless it begins a new one.
    pub(crate) segment: u32,
    /// Its offset there.
    pub(crate) offset: u32,
}

/// A record read back.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) header: RecordHeader,
    pub(crate) kind: Kind,
    pub(crate) data: Bytes,
    pub(crate) fds: Vec<Fd>,
}

/// The log.
pub(crate) struct Log {
    region: Region,
    header: &'static Header,
    /// One for each segment there may be, and each spare one.
    segments: Vec<Lookers>,
    /// Segments with records since the last checkpoint, the current one included.
    retained: Vec<usize>,
    /// How many segments have been used, from the first on.
    opened: usize,
    current: usize,
    /// Where the next record begins in the current segment.
    offset: usize,
    /// Which segments may have pages in memory.
    resident: Vec<bool>,
    /// Segments that were not in use when a worker died may have pages, too.
    is_stale: bool,
    /// How often another segment was begun.
    turnover: u64,
    /// A view of the whole current segment, of which the reads are slices.
    active: Bytes,
    sequence: u64,
    /// The next record's number at the last checkpoint.
    checkpoint: u64,
    /// Something has happened since that is not in the log.
    is_incomplete: bool,
}

impl Log {
    /// An empty log in a new region; also the header in front of it.
    pub(crate) fn create() -> io::Result<(Self, &'static mut Header)> {
        let region = Region::create(c"bus-journal", HEADER_LEN + SEGMENTS * SEGMENT)?;
        if let Err(error) = region.lock(HEADER_LEN) {
            // A crash could then lose a count where memory is swapped out at that very moment; running is better.
            tracing::warn!("cannot lock the in-flight slot in memory: {error}");
        }
        // SAFETY: the region is new. The log below only uses the header's atomics by shared reference.
        let header = unsafe { Header::of(&region) };
        // SAFETY: as above: the second reference reads atomics that the first one's owner never borrows mutably.
        let shared: &'static Header = unsafe { &*std::ptr::from_ref::<Header>(header) };
        let mut salt = [0; 4];
        crate::os::random::fill(&mut salt);
        shared.salt.store(u32::from_ne_bytes(salt), Ordering::Relaxed);
        let mut log = Self {
            region,
            header: shared,
            segments: std::iter::repeat_with(Lookers::default).take(SEGMENTS).collect(),
            retained: Vec::new(),
            opened: 1,
            current: 0,
            offset: 0,
            resident: vec![false; SEGMENTS],
            is_stale: false,
            turnover: 0,
            active: Bytes::new(),
            sequence: 0,
            checkpoint: 0,
            is_incomplete: false,
        };
        log.open_segment(0);
        Ok((log, header))
    }

    /// The log of a worker that died, to be [rewound](Self::rewind) and read; also the header in front of it.
    pub(crate) fn reopen(region: Region) -> (Self, &'static mut Header) {
        // SAFETY: this process has made no other reference; the rest as in `create`.
        let header = unsafe { Header::of(&region) };
        // SAFETY: as in `create`.
        let shared: &'static Header = unsafe { &*std::ptr::from_ref::<Header>(header) };
        let log = Self {
            region,
            header: shared,
            segments: std::iter::repeat_with(Lookers::default).take(SEGMENTS).collect(),
            retained: Vec::new(),
            opened: MOST,
            current: 0,
            offset: Self::FIRST as usize,
            resident: vec![false; SEGMENTS],
            is_stale: false,
            turnover: 0,
            active: Bytes::new(),
            sequence: 0,
            checkpoint: 0,
            is_incomplete: false,
        };
        (log, header)
    }

    /// Where the first record of a segment is.
    pub(crate) const FIRST: u32 = 0;

    /// Its memory.
    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// The header in front of it.
    pub(crate) fn header(&self) -> &'static Header {
        self.header
    }

    /// Whether the worker serves.
    pub(crate) fn serving(&self) -> &'static AtomicU32 {
        &self.header.serving
    }

    /// The number of the next record.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes of shared memory that the log takes.
    pub(crate) fn memory(&self) -> usize {
        let resident = self.touched().filter(|index| self.resident[*index]);
        HEADER_LEN + resident.count() * SEGMENT
    }

    /// The same without segments that are free.
    pub(crate) fn used(&self) -> u64 {
        let used = self
            .touched()
            .filter(|index| self.resident[*index] && !self.is_free(*index));
        (HEADER_LEN + used.count() * SEGMENT) as u64
    }

    /// Segments that may be in memory: asked for at each turn, so not all that there can be.
    fn touched(&self) -> impl Iterator<Item = usize> {
        (0..self.opened).chain(MOST..SEGMENTS)
    }

    /// Bytes in segments beyond those in use, of which a worker that died did not say whether they are in memory.
    pub(crate) fn stale(&self) -> u64 {
        u64::from(self.is_stale) * (RESIDENT * SEGMENT) as u64
    }

    /// Grows with each segment that is begun.
    pub(crate) fn turnover(&self) -> u64 {
        self.turnover
    }

    /// Nobody looks at the segment, and no replay would.
    fn is_free(&self, index: usize) -> bool {
        !self.segments[index].any() && !self.retained.contains(&index)
    }

    /// Gives the memory of all segments that are free back to the system.
    pub(crate) fn return_idle(&mut self) {
        for index in 0..SEGMENTS {
            let may_be = self.resident[index] || self.is_stale;
            if may_be && self.is_free(index) {
                self.release(index);
            }
        }
        self.is_stale = false;
    }

    fn release(&mut self, index: usize) {
        self.resident[index] = false;
        self.region
            .release_range((HEADER_LEN + index * SEGMENT) as u64, SEGMENT);
    }

    /// Something happened that is not in the log: a checkpoint is to come before anything else.
    pub(crate) fn demand_checkpoint(&mut self) {
        self.is_incomplete = true;
    }

    /// Whether something has happened that is not in the log: nothing may be sent before a checkpoint has it.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether a replay from the last checkpoint would take long, measured by how many peers have changed since.
    pub(crate) fn wants_checkpoint(&self, changed: usize) -> bool {
        let segments = (RETAINED + changed / PEERS_PER_SEGMENT).min(RESIDENT / 2);
        // There must be time left to write it ahead.
        let records = (RECORDS + RECORDS_PER_PEER * changed as u64).min(OVERDUE / 2 * RECORDS);
        self.is_incomplete
            || self.is_in_spare()
            || self.sequence - self.checkpoint >= records
            || self.retained.len() > segments
    }

    /// Whether no checkpoint came in all the time that one was wanted: the log must not run out of segments.
    pub(crate) fn is_checkpoint_overdue(&self) -> bool {
        self.is_incomplete
            || self.is_in_spare()
            || self.sequence - self.checkpoint >= OVERDUE * RECORDS
            || self.retained.len() >= RESIDENT
    }

    /// Whether another turn may not find room for its records before a checkpoint has been taken: all segments are looked
    /// at, and most of the spare ones are needed for a replay.
    pub(crate) fn is_short_of_segments(&self) -> bool {
        self.is_in_spare() && (MOST..SEGMENTS).filter(|index| self.is_free(*index)).count() < NEEDED
    }

    /// Where the log ends.
    pub(crate) fn end(&self) -> Position {
        Position {
            sequence: self.sequence,
            segment: self.current as u32,
            offset: self.offset as u32,
        }
    }

    /// A checkpoint has been taken at the end: what is before it is not needed for a replay any more.
    pub(crate) fn checkpointed(&mut self) {
        self.checkpoint = self.sequence;
        self.is_incomplete = false;
        self.retained.clear();
        self.retained.push(self.current);
    }

    /// Room for a read at the log's end; [`finish_read`](Self::finish_read) makes a record of it.
    pub(crate) fn room(&mut self) -> Room {
        if self.offset + RECORD_HEADER + LEAST_READ + READ_TAIL > SEGMENT {
            self.next_segment();
        }
        let start = self.offset + RECORD_HEADER;
        let len = READ.min(SEGMENT - start - READ_TAIL);
        Room {
            start: self.place(start, len),
            len,
        }
    }

    /// The last [`room`](Self::room) took `len` bytes and these descriptors.
    /// The number in `fields` is the absolute offset in the peer's stream that was reached.
    pub(crate) fn finish_read(&mut self, fields: Fields, len: usize, fds: &[Fd]) -> Bytes {
        let start = self.offset + RECORD_HEADER;
        self.publish(Kind::Received, fields, len, fds);
        let data = self.active.slice(start..start + len);
        self.outlasting(data)
    }

    /// What may be handed out of the current segment: of a spare one a copy.
    fn outlasting(&self, data: Bytes) -> Bytes {
        if self.is_in_spare() {
            Bytes::copy_from_slice(&data)
        } else {
            data
        }
    }

    fn is_in_spare(&self) -> bool {
        self.current >= MOST
    }

    /// Appends a record without received bytes in the log itself.
    pub(crate) fn append(&mut self, kind: Kind, fields: Fields, fds: &[Fd]) {
        if self.offset + RECORD_HEADER + READ_TAIL > SEGMENT {
            self.next_segment();
        }
        if fds.is_empty() {
            // The header is all of it, as of everything that is sent.
            let mut record = fields.record(kind, self.sequence, 0, 0);
            record.hash = record.hash_with(self.header.salt(), &[], &[]);
            return self.put(record, kind);
        }
        self.publish(kind, fields, 0, fds);
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
        self.publish(kind, Fields::new(peer, number), data.len(), &[]);
    }

    /// Most bytes of data in one record of [`append_data`](Self::append_data).
    pub(crate) const MOST_DATA: usize = SEGMENT - RECORD_HEADER - READ_TAIL - 64;

    fn publish(&mut self, kind: Kind, fields: Fields, data_len: usize, fds: &[Fd]) {
        let fds = &fds[..fds.len().min(MAX_FDS)];
        let mut record = fields.record(kind, self.sequence, data_len, fds.len());
        let fds_at = self.offset + record.fds_at();
        for (index, fd) in fds.iter().enumerate() {
            let place = self.place(fds_at + 4 * index, 4);
            // SAFETY: `place` is 4 writable bytes at a multiple of 4.
            unsafe { place.cast::<i32>().write(fd.0) };
        }
        record.hash = record.hash_with(
            self.header.salt(),
            self.bytes(self.current, self.offset + RECORD_HEADER, data_len),
            self.bytes(self.current, fds_at, 4 * fds.len()),
        );
        self.put(record, kind);
    }

    /// A record whose data and descriptors stand in their places counts from here on.
    #[inline]
    fn put(&mut self, record: RecordHeader, kind: Kind) {
        let place = self.place(self.offset, RECORD_HEADER);
        // SAFETY: room for a header at a multiple of 8.
        unsafe { record.write_to(place) };
        self.offset += record.total();
        self.sequence += 1;
        if kind != Kind::Answer {
            self.header.newest_event.store(self.sequence, Ordering::Release);
        }
        self.header.records.store(self.sequence, Ordering::Release);
    }

    /// A replay has found this event. The worker that wrote it may have been killed before it had noted that it is the newest;
    /// nobody could suspect it then, however many workers it ends.
    pub(crate) fn note_found(&self, sequence: u64) {
        if self.header.newest_event.load(Ordering::Acquire) <= sequence {
            self.header.newest_event.store(sequence + 1, Ordering::Release);
        }
    }

    /// Goes on in the lowest segment that is free: the fewer are used, the warmer they are.
    fn next_segment(&mut self) {
        if self.offset + RECORD_HEADER <= SEGMENT {
            // What stands here is a peer's old bytes; a replay must not take them for a record.
            let place = self.place(self.offset, RECORD_HEADER);
            // SAFETY: room for a header, past everything that was handed out.
            unsafe { place.write_bytes(0, RECORD_HEADER) };
        }
        self.active = Bytes::new();
        self.shrink();
        self.turnover += 1;
        let next = match (0..self.opened).find(|index| self.is_free(*index)) {
            Some(index) => index,
            None if self.opened < MOST => {
                self.opened += 1;
                self.opened - 1
            }
            None => self.spare(),
        };
        self.open_segment(next);
    }

    /// A spare segment for what comes next.
    fn spare(&mut self) -> usize {
        let mut spares = MOST..SEGMENTS;
        spares.find(|index| self.is_free(*index)).unwrap_or_else(|| {
            // Turns end long before that. A replay could not go on from what is there: nothing is sent before a checkpoint
            // is complete.
            tracing::error!("the log has no segment left, and takes one that a replay would need");
            self.demand_checkpoint();
            let used = self.current.checked_sub(MOST);
            MOST + used.map_or(0, |used| (used + 1) % SPARES)
        })
    }

    /// Gives back what a burst of pinned segments took.
    fn shrink(&mut self) {
        while self.opened > RESIDENT {
            let last = self.opened - 1;
            if !self.is_free(last) {
                return;
            }
            self.opened = last;
            self.release(last);
        }
    }

    fn open_segment(&mut self, index: usize) {
        self.current = index;
        self.offset = 0;
        self.resident[index] = true;
        if !self.retained.contains(&index) {
            self.retained.push(index);
        }
        self.header.begins[index].store(self.sequence, Ordering::Release);
        self.view_segment();
    }

    fn view_segment(&mut self) {
        let start = self.place(0, SEGMENT);
        // SAFETY: the region is never unmapped; only bytes behind those handed out are written; of a spare
        // segment nothing is handed out that outlives `finish_read`.
        self.active = unsafe { view(start, SEGMENT, &self.segments[self.current]) };
    }

    fn place(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= SEGMENT);
        self.region.at(HEADER_LEN + self.current * SEGMENT + offset, len)
    }

    fn bytes(&self, segment: usize, offset: usize, len: usize) -> &[u8] {
        assert!(segment < SEGMENTS && offset + len <= SEGMENT);
        let start = self.region.at(HEADER_LEN + segment * SEGMENT + offset, len);
        // SAFETY: in the mapping, and written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    #[cfg(feature = "bench-hooks")]
    pub(crate) fn plain_room(&mut self) -> Room {
        self.retained.clear();
        self.room()
    }

    #[cfg(feature = "bench-hooks")]
    pub(crate) fn plain_read(&mut self, len: usize) -> Bytes {
        let start = self.offset + RECORD_HEADER;
        self.offset = (start + len).next_multiple_of(8);
        self.active.slice(start..start + len)
    }

    // Reading back, after the worker that wrote the log has died

    /// Goes to the place where a checkpoint was taken, to read from there on. The log looks at no segment yet, and
    /// all of it is retained.
    pub(crate) fn rewind(&mut self, to: Position) {
        self.opened = MOST;
        self.retained = vec![to.segment as usize];
        self.current = to.segment as usize;
        self.offset = to.offset as usize;
        self.sequence = to.sequence;
        self.checkpoint = to.sequence;
        self.view_segment();
    }

    /// Whether the next record was written. One that is whole counts even if the worker died before it was counted.
    pub(crate) fn has_more(&self) -> bool {
        self.sequence < self.header.records.load(Ordering::Acquire) || self.next_header().is_some()
    }

    /// The header of the record that stands here, if that is the next one, and whole.
    fn next_header(&self) -> Option<RecordHeader> {
        if !self.is_next_here() {
            return None;
        }
        // SAFETY: a header's room in the mapping, at a multiple of 8 (offsets only grow by `total`).
        let header = unsafe { RecordHeader::read_from(self.place(self.offset, RECORD_HEADER)) };
        if usize::from(header.fds) > MAX_FDS || self.offset + header.total() > SEGMENT {
            return None;
        }
        let data = self.bytes(
            self.current,
            self.offset + RECORD_HEADER,
            header.data_len as usize,
        );
        let fds = self.bytes(
            self.current,
            self.offset + header.fds_at(),
            4 * usize::from(header.fds),
        );
        let salt = self.header.salt();
        (header.hash_with(salt, data, fds) == header.hash).then_some(header)
    }

    /// Reads the next record and goes behind it. `Err`: what stands there is not what was written.
    pub(crate) fn read_next(&mut self) -> Result<Record, String> {
        if !self.is_next_here() {
            self.follow();
        }
        let damaged = |what: &str| format!("record {} of the journal: {what}", self.sequence);
        let header = self
            .next_header()
            .ok_or_else(|| damaged("not there, or its checksum does not fit"))?;
        let kind = Kind::from_u8(header.kind).ok_or_else(|| damaged("of no known kind"))?;
        let fds_at = self.offset + header.fds_at();
        let fds = self.bytes(self.current, fds_at, 4 * usize::from(header.fds));
        let fds = fds
            .as_chunks()
            .0
            .iter()
            .map(|bytes| Fd(i32::from_ne_bytes(*bytes)))
            .collect();
        let data_at = self.offset + RECORD_HEADER;
        let data = self.active.slice(data_at..data_at + header.data_len as usize);
        let data = self.outlasting(data);
        self.offset += header.total();
        self.sequence += 1;
        Ok(Record {
            header,
            kind,
            data,
            fds,
        })
    }

    /// Whether the next record is what the system answered to the last event.
    pub(crate) fn is_answer_next(&mut self) -> bool {
        if !self.is_next_here() {
            self.follow();
        }
        self.next_header()
            .is_some_and(|header| header.kind == Kind::Answer as u8)
    }

    fn is_next_here(&self) -> bool {
        self.offset + RECORD_HEADER <= SEGMENT && {
            // SAFETY: as in `read_next`.
            let header = unsafe { RecordHeader::read_from(self.place(self.offset, RECORD_HEADER)) };
            header.sequence == self.sequence && header.kind != 0
        }
    }

    /// Goes to the segment whose first record is the next one, if there is such a segment.
    pub(crate) fn follow(&mut self) {
        let begins = |index: &usize| {
            *index != self.current && self.header.begins[*index].load(Ordering::Acquire) == self.sequence
        };
        // A segment that was never opened has 0 there, and sequence 0 is only ever first in the first one.
        if let Some(index) = (0..SEGMENTS).find(|index| self.sequence > 0 && begins(index)) {
            self.retained.push(index);
            self.current = index;
            self.offset = 0;
            self.view_segment();
        }
    }

    /// The segments that were read, or written after that.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn visited(&self) -> Vec<std::ops::Range<usize>> {
        let range = |index: &usize| {
            let start = HEADER_LEN + index * SEGMENT;
            start..start + SEGMENT
        };
        self.retained.iter().map(range).collect()
    }

    /// Everything was read: writing goes on here. `opened` is taken in as far as segments are needed.
    pub(crate) fn resume(&mut self) {
        let last = self
            .retained
            .iter()
            .copied()
            .filter(|index| *index < MOST)
            .max()
            .unwrap_or(0);
        let pinned = (0..MOST)
            .rev()
            .find(|index| self.segments[*index].any())
            .unwrap_or(0);
        self.opened = last.max(pinned) + 1;
        self.resident[..self.opened].fill(true);
        self.resident[MOST..].fill(true);
        self.is_stale = true;
    }
}
