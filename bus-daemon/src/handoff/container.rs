//! The state container: records with a type, a version and a checksum, readable past damage.
//!
//! ```text
//! container = header header record* END
//! header    = "BUSSTATE" major:u16 least_reader:u16 salt:u32 crc:u32 0:u32
//! record    = "brec" type:u16 version:u16 flags:u16 0:u16 length:u32 header_crc:u32 body_crc:u32 body 0-padding to 8
//! END       = the record of type 0xffff whose body is the number of records before it:u64
//! ```
//! All numbers are little endian. The header is there twice, either is enough. A damaged body costs that record; after a
//! damaged record header the reader looks for the next whole one. The bodies hold bytes that clients chose, and what a
//! client can send must not be taken for a record then: `header_crc` goes on from the salt, which no client knows.
//! What a record of an unknown type means for the reader is in its flags.

use super::codec;

const MAGIC: &[u8; 8] = b"BUSSTATE";
const RECORD_MAGIC: &[u8; 4] = b"brec";
const HEADER_COPY: usize = 24;
const CONTAINER_HEADER: usize = 2 * HEADER_COPY;
const RECORD_HEADER: usize = 24;
const END: u16 = 0xffff;

/// The version of the container and of the records in it that this build writes.
pub const VERSION: u16 = 1;
/// The oldest build that can read what this build writes.
pub const LEAST_READER: u16 = 1;

/// What a reader does with a record of a type it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum IfUnknown {
    /// Refuse the whole container.
    Refuse = 1,
    /// Go on without it.
    Skip = 2,
    /// Go on without it, and write it again as it is whenever the state is written, for a later reader that knows it. What it
    /// speaks of may be gone by then. Readers from before this flag refuse the container.
    Carry = 3,
}

/// A record as it stands in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it holds.
    pub kind: u16,
    /// Which form of that.
    pub version: u16,
    /// What a reader that does not know `kind` does.
    pub if_unknown: IfUnknown,
    /// The encoded value.
    pub body: &'a [u8],
}

/// Something in a container that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// These bytes are no container at all.
    #[error("not a saved state: it does not begin with \"BUSSTATE\"")]
    NotAContainer,
    /// Written by a later version that says it cannot be read by this one.
    #[error(
        "the state has version {version} and needs a reader of version {least_reader}; this one is {VERSION}"
    )]
    TooNew {
        /// Its version.
        version: u16,
        /// The least version that reads it.
        least_reader: u16,
    },
    /// One of the two headers of the container does not fit its checksum; the other does.
    #[error("a header of the state is damaged; the other one is used")]
    Header,
    /// A body whose checksum does not fit.
    #[error("the record of type {kind} at byte {offset} is damaged")]
    Damaged {
        /// The type its header gives.
        kind: u16,
        /// Where its header begins.
        offset: usize,
    },
    /// No record header where one should be.
    #[error("bytes {offset} to {resumed} are no record")]
    Gap {
        /// Where a header should be.
        offset: usize,
        /// Where the next one was found, or the end.
        resumed: usize,
    },
    /// The end record is missing, or counts other than what was read.
    #[error("the state is cut off, or {missing} records of it are missing")]
    Incomplete {
        /// How many are missing, as far as known.
        missing: u64,
    },
}

/// Where a container goes while it is built, so that it does not have to be in this process's memory as well.
pub trait Spill {
    /// Puts bytes there from this offset on.
    ///
    /// # Errors
    /// Where it cannot take them.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
}

/// Bytes that are spilled at once. They are still in the processor's cache when their checksum is made and they are copied.
const SPILLED: usize = 256 * 1024;

/// Builds a container.
pub struct Writer<'a> {
    /// From `spilled` on.
    bytes: Vec<u8>,
    spilled: usize,
    spill: Option<&'a mut dyn Spill>,
    /// Why something that was added is not there.
    failure: Option<codec::CodecError>,
    salt: u32,
    records: u64,
}

impl<'a> Writer<'a> {
    /// An empty container. `salt` is nothing that a client could know, where clients have a say in what is saved.
    pub fn new(salt: u32) -> Self {
        let mut header = [0; HEADER_COPY];
        header[..8].copy_from_slice(MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10..12].copy_from_slice(&LEAST_READER.to_le_bytes());
        header[12..16].copy_from_slice(&salt.to_le_bytes());
        let crc = crc32c::crc32c(&header[..16]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        let mut bytes = Vec::with_capacity(64 * 1024);
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&header);
        Self {
            bytes,
            spilled: 0,
            spill: None,
            failure: None,
            salt,
            records: 0,
        }
    }

    /// The same, which goes to `spill`.
    pub fn spilling(salt: u32, spill: &'a mut dyn Spill) -> Self {
        Self {
            spill: Some(spill),
            ..Self::new(salt)
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When the value is too long for one record; the container is as it was.
    pub fn record(
        &mut self,
        kind: u16,
        version: u16,
        if_unknown: IfUnknown,
        value: &impl serde::Serialize,
    ) -> Result<(), codec::CodecError> {
        let start = self.begin();
        let mut body = Body::new(self);
        let encoded = codec::encode_into(value, &mut body);
        let seal = body.seal();
        if let Err(error) = encoded.and_then(|()| self.seal(start, seal, kind, version, if_unknown)) {
            self.bytes.truncate(start.saturating_sub(self.spilled));
            self.spilled = self.spilled.min(start);
            return Err(error);
        }
        Ok(())
    }

    /// Room for the header of the next record; where that is in the container.
    fn begin(&mut self) -> usize {
        let start = self.spilled + self.bytes.len();
        self.bytes.extend_from_slice(&[0; RECORD_HEADER]);
        start
    }

    /// Adds a record whose value is encoded already.
    pub fn encoded(&mut self, record: Record<'_>) {
        let start = self.begin();
        let mut body = Body::new(self);
        let written = std::io::Write::write_all(&mut body, record.body);
        let seal = body.seal();
        let written = written.map_err(codec::CodecError::from);
        let sealed =
            written.and_then(|()| self.seal(start, seal, record.kind, record.version, record.if_unknown));
        self.failure = self.failure.take().or(sealed.err());
    }

    /// Writes the header in front of the body that begins behind it at `start`.
    fn seal(
        &mut self,
        start: usize,
        body: Sealed,
        kind: u16,
        version: u16,
        if_unknown: IfUnknown,
    ) -> Result<(), codec::CodecError> {
        let mut header = [0; RECORD_HEADER];
        header[..4].copy_from_slice(RECORD_MAGIC);
        header[4..6].copy_from_slice(&kind.to_le_bytes());
        header[6..8].copy_from_slice(&version.to_le_bytes());
        header[8..10].copy_from_slice(&(if_unknown as u16).to_le_bytes());
        header[12..16].copy_from_slice(&(body.len as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(self.salt, &header[..16]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header[20..24].copy_from_slice(&body.crc.to_le_bytes());
        match (start.checked_sub(self.spilled), &mut self.spill) {
            (None, Some(spill)) => spill.put(start as u64, &header)?,
            (at, _) => {
                let at = at.unwrap_or(0);
                self.bytes[at..at + RECORD_HEADER].copy_from_slice(&header);
            }
        }
        let end = self.spilled + self.bytes.len();
        let padding = end.next_multiple_of(8) - end;
        self.bytes.resize(self.bytes.len() + padding, 0);
        self.records += 1;
        Ok(())
    }

    /// Ends the container; its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.end();
        self.bytes
    }

    /// Ends a container that is spilled.
    ///
    /// # Errors
    /// Where some of it could not be.
    pub fn finish_spilled(mut self) -> Result<(), codec::CodecError> {
        self.end();
        self.spill_all()?;
        self.failure.map_or(Ok(()), Err)
    }

    fn end(&mut self) {
        let records = self.records.to_le_bytes();
        self.encoded(Record {
            kind: END,
            version: 1,
            if_unknown: IfUnknown::Refuse,
            body: &records,
        });
    }

    fn spill_all(&mut self) -> std::io::Result<()> {
        if let Some(spill) = &mut self.spill {
            spill.put(self.spilled as u64, &self.bytes)?;
            self.spilled += self.bytes.len();
            self.bytes.clear();
        }
        Ok(())
    }
}

/// The body of a record that is being written.
struct Body<'a, 'b> {
    writer: &'a mut Writer<'b>,
    /// Where the bytes begin, among those that are not spilled, that are not in `so_far`.
    from: usize,
    so_far: Sealed,
}

/// Bytes of a body, and their checksum.
#[derive(Clone, Copy)]
struct Sealed {
    len: usize,
    crc: u32,
}

impl<'a, 'b> Body<'a, 'b> {
    fn new(writer: &'a mut Writer<'b>) -> Self {
        Self {
            from: writer.bytes.len(),
            writer,
            so_far: Sealed { len: 0, crc: 0 },
        }
    }

    fn seal(mut self) -> Sealed {
        self.count();
        self.so_far
    }

    fn count(&mut self) {
        let bytes = &self.writer.bytes[self.from..];
        self.so_far.crc = crc32c::crc32c_append(self.so_far.crc, bytes);
        self.so_far.len += bytes.len();
        self.from = self.writer.bytes.len();
    }
}

impl std::io::Write for Body<'_, '_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.bytes.extend_from_slice(bytes);
        if self.writer.bytes.len() >= SPILLED && self.writer.spill.is_some() {
            self.count();
            self.writer.spill_all()?;
            self.from = 0;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Walks over the records of a container, past damage.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    salt: u32,
    /// Whether a damaged header is to be told of.
    header_is_damaged: bool,
    offset: usize,
    /// Records seen, damaged ones too.
    records: u64,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// Looks at the container's header.
    ///
    /// # Errors
    /// When it is none, or too new.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ContainerError> {
        let copies = bytes
            .get(..CONTAINER_HEADER)
            .ok_or(ContainerError::NotAContainer)?;
        let (first, second) = copies.split_at(HEADER_COPY);
        let whole = |copy: &&[u8]| {
            copy.starts_with(MAGIC)
                && u32_at(copy, 16) == crc32c::crc32c(&copy[..16])
                && u32_at(copy, 20) == 0
        };
        let header = [first, second]
            .into_iter()
            .find(whole)
            .ok_or(ContainerError::NotAContainer)?;
        let (version, least_reader) = (u16_at(header, 8), u16_at(header, 10));
        if least_reader > VERSION {
            return Err(ContainerError::TooNew {
                version,
                least_reader,
            });
        }
        Ok(Self {
            bytes,
            salt: u32_at(header, 12),
            header_is_damaged: first != second,
            offset: CONTAINER_HEADER,
            records: 0,
            ended: false,
        })
    }

    /// A whole record header at `offset`: type, version, flags, length, checksum of the body.
    fn header_at(&self, offset: usize) -> Option<(u16, u16, u16, usize, u32)> {
        let header = self.bytes.get(offset..offset.checked_add(RECORD_HEADER)?)?;
        if !header.starts_with(RECORD_MAGIC)
            || u32_at(header, 16) != crc32c::crc32c_append(self.salt, &header[..16])
        {
            return None;
        }
        let length = u32_at(header, 12) as usize;
        Some((
            u16_at(header, 4),
            u16_at(header, 6),
            u16_at(header, 8),
            length,
            u32_at(header, 20),
        ))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Record<'a>, ContainerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if std::mem::take(&mut self.header_is_damaged) {
            return Some(Err(ContainerError::Header));
        }
        let start = self.offset;
        let Some((kind, version, flags, length, crc)) = self.header_at(start) else {
            // Headers stand at multiples of 8.
            let resumed = ((start + 1).next_multiple_of(8)..self.bytes.len())
                .step_by(8)
                .find(|offset| self.header_at(*offset).is_some());
            return match resumed {
                Some(resumed) => {
                    self.offset = resumed;
                    Some(Err(ContainerError::Gap {
                        offset: start,
                        resumed,
                    }))
                }
                None => {
                    self.ended = true;
                    Some(Err(ContainerError::Incomplete { missing: 0 }))
                }
            };
        };
        let body_start = start + RECORD_HEADER;
        let Some(body) = body_start
            .checked_add(length)
            .and_then(|end| self.bytes.get(body_start..end))
        else {
            // The header is whole, so its length is right, and the bytes end too early.
            self.offset = self.bytes.len();
            self.records += 1;
            return Some(Err(ContainerError::Damaged { kind, offset: start }));
        };
        self.offset = (body_start + length).next_multiple_of(8);
        if crc32c::crc32c(body) != crc {
            self.records += 1;
            return Some(Err(ContainerError::Damaged { kind, offset: start }));
        }
        if kind == END {
            self.ended = true;
            let count = body.try_into().map(u64::from_le_bytes).unwrap_or(0);
            return (count != self.records).then(|| {
                Err(ContainerError::Incomplete {
                    missing: count.abs_diff(self.records),
                })
            });
        }
        self.records += 1;
        let if_unknown = match flags {
            2 => IfUnknown::Skip,
            3 => IfUnknown::Carry,
            // What a later build means by another flag is not known, so the record cannot be passed over.
            _ => IfUnknown::Refuse,
        };
        Some(Ok(Record {
            kind,
            version,
            if_unknown,
            body,
        }))
    }
}

/// The first record in which two containers differ, of those that no reader may pass over: others an older build may have left
/// out, or kept after what they speak of was gone. `None`: they say the same.
pub fn difference(a: &[u8], b: &[u8]) -> Option<u16> {
    let records = |bytes| -> Vec<Record<'_>> {
        let all = Reader::new(bytes).into_iter().flatten().filter_map(Result::ok);
        all.filter(|record| record.if_unknown == IfUnknown::Refuse)
            .collect()
    };
    let (a, b) = (records(a), records(b));
    let other = a.iter().zip(&b).find(|(a, b)| a != b).map(|(a, _)| a.kind);
    let longer = a.get(b.len()).or(b.get(a.len())).map(|record| record.kind);
    other.or(longer)
}

/// Version and body of the first record of a container, of which `read` gives so many bytes, from there on. `None`: there is
/// none that is whole.
#[cfg(feature = "runtime")]
pub(crate) fn first_record(read: impl Fn(usize, usize) -> Option<Vec<u8>>) -> Option<(u16, Vec<u8>)> {
    let beginning = read(0, CONTAINER_HEADER + RECORD_HEADER)?;
    let reader = Reader::new(&beginning).ok()?;
    let (_, version, _, length, crc) = reader.header_at(CONTAINER_HEADER)?;
    let body = read(CONTAINER_HEADER + RECORD_HEADER, length)?;
    (crc32c::crc32c(&body) == crc).then_some((version, body))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(values: &[&str]) -> Vec<u8> {
        let mut writer = Writer::new(0x1234_5678);
        for (index, value) in values.iter().enumerate() {
            writer.record(index as u16, 1, IfUnknown::Refuse, value).unwrap();
        }
        writer.finish()
    }

    fn read(bytes: &[u8]) -> (Vec<u16>, Vec<ContainerError>) {
        let (mut kinds, mut errors) = (Vec::new(), Vec::new());
        for record in Reader::new(bytes).unwrap() {
            match record {
                Ok(record) => kinds.push(record.kind),
                Err(error) => errors.push(error),
            }
        }
        (kinds, errors)
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = container(&["a", "", "longer than eight bytes"]);
        assert_eq!(read(&bytes), (vec![0, 1, 2], vec![]));
        let last = Reader::new(&bytes).unwrap().nth(2).unwrap().unwrap();
        assert_eq!(
            codec::decode::<String>(last.body).unwrap(),
            "longer than eight bytes"
        );
    }

    #[test]
    fn what_a_reader_does_with_a_record_that_it_does_not_know_is_in_its_flags() {
        let all = [IfUnknown::Refuse, IfUnknown::Skip, IfUnknown::Carry];
        let mut writer = Writer::new(7);
        for if_unknown in all {
            writer.record(1, 1, if_unknown, &"encoded").unwrap();
        }
        let bytes = writer.finish();
        let records: Vec<Record<'_>> = Reader::new(&bytes).unwrap().map(Result::unwrap).collect();
        assert!(records.iter().map(|record| record.if_unknown).eq(all));
        // One that is carried along is written again as it was.
        let mut again = Writer::new(7);
        for record in records {
            again.encoded(record);
        }
        assert!(again.finish() == bytes);
    }

    #[test]
    fn containers_differ_in_what_nobody_may_pass_over() {
        let make = |records: &[(u16, IfUnknown, &str)]| {
            let mut writer = Writer::new(1);
            for (kind, if_unknown, value) in records {
                writer.record(*kind, 1, *if_unknown, value).unwrap();
            }
            writer.finish()
        };
        let (refuse, carry, skip) = (IfUnknown::Refuse, IfUnknown::Carry, IfUnknown::Skip);
        let one = make(&[
            (1, refuse, "a"),
            (2, skip, "b"),
            (3, carry, "c"),
            (4, refuse, "d"),
        ]);
        assert_eq!(difference(&one, &one), None);
        let other = |last| make(&[(5, carry, "e"), (1, refuse, "a"), (4, refuse, last)]);
        assert_eq!(difference(&one, &other("d")), None);
        assert_eq!(difference(&one, &other("e")), Some(4));
        assert_eq!(difference(&one, &make(&[(1, refuse, "a")])), Some(4));
        assert_eq!(difference(&make(&[]), &one), Some(1));
    }

    #[test]
    fn a_flag_of_a_later_build_means_refuse() {
        let mut writer = Writer::new(0);
        writer.record(1, 1, IfUnknown::Carry, &"").unwrap();
        let mut bytes = writer.finish();
        bytes[CONTAINER_HEADER + 8] = 77;
        let crc = crc32c::crc32c_append(0, &bytes[CONTAINER_HEADER..][..16]);
        bytes[CONTAINER_HEADER + 16..][..4].copy_from_slice(&crc.to_le_bytes());
        let record = Reader::new(&bytes).unwrap().next().unwrap().unwrap();
        assert_eq!(record.if_unknown, IfUnknown::Refuse);
    }

    #[test]
    fn a_flipped_bit_costs_at_most_one_record_and_is_reported() {
        let bytes = container(&["first record", "second record", "third record"]);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let (kinds, errors) = read(&damaged);
                let least = if at < CONTAINER_HEADER { 3 } else { 2 };
                assert!(kinds.len() >= least, "byte {at} bit {bit}: only {kinds:?}");
                // Padding carries nothing, so a change there is no damage.
                assert!(!errors.is_empty() || kinds == [0, 1, 2], "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_cut_at_any_byte_is_reported() {
        let bytes = container(&["first record", "second record", "third record"]);
        for len in 0..CONTAINER_HEADER {
            assert_eq!(
                Reader::new(&bytes[..len]).unwrap_err(),
                ContainerError::NotAContainer
            );
        }
        for len in CONTAINER_HEADER..bytes.len() {
            let (kinds, errors) = read(&bytes[..len]);
            assert!(!errors.is_empty() || kinds.len() == 3, "cut at {len}");
        }
    }

    /// A client sends what looks like a record, and the real one around it is damaged.
    #[test]
    fn bytes_of_a_client_are_never_taken_for_a_record() {
        let mut forged = Writer::new(0);
        forged.record(13, 1, IfUnknown::Refuse, &"forged").unwrap();
        let forged = &forged.finish()[CONTAINER_HEADER..];
        for shift in 0..8 {
            let body = [&vec![0; shift], forged].concat();
            let mut writer = Writer::new(0x1234_5678);
            writer.record(1, 1, IfUnknown::Refuse, &body).unwrap();
            let mut bytes = writer.finish();
            bytes[CONTAINER_HEADER] ^= 1;
            let (kinds, errors) = read(&bytes);
            assert_eq!(kinds, []);
            assert_eq!(errors.len(), 2, "{errors:?}");
        }
    }

    #[test]
    fn a_container_for_later_readers_is_refused() {
        let mut bytes = container(&["a"]);
        for copy in [0, HEADER_COPY] {
            bytes[copy + 8] = 9;
            bytes[copy + 10] = 9;
            let crc = crc32c::crc32c(&bytes[copy..copy + 16]);
            bytes[copy + 16..copy + 20].copy_from_slice(&crc.to_le_bytes());
        }
        assert_eq!(
            Reader::new(&bytes).unwrap_err(),
            ContainerError::TooNew {
                version: 9,
                least_reader: 9
            }
        );
    }

    /// A place of its own, which refuses what goes beyond a limit.
    struct Place {
        bytes: Vec<u8>,
        limit: usize,
    }

    impl Spill for Place {
        fn put(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            let (from, end) = (offset as usize, offset as usize + bytes.len());
            if end > self.limit {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            self.bytes[from..end].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn fill(writer: &mut Writer<'_>) -> Result<(), codec::CodecError> {
        for length in [0, 1, 7, 5_000, SPILLED - RECORD_HEADER - 30, 3 * SPILLED + 5, 100] {
            let texts: Vec<String> = (0..3).map(|n| n.to_string().repeat(length)).collect();
            writer.record(3, 1, IfUnknown::Refuse, &texts)?;
            writer.encoded(Record {
                kind: 4,
                version: 2,
                if_unknown: IfUnknown::Carry,
                body: &vec![length as u8; length],
            });
        }
        Ok(())
    }

    #[test]
    fn spilled_it_is_the_same() {
        let mut whole = Writer::new(11);
        fill(&mut whole).unwrap();
        let whole = whole.finish();
        assert!(whole.len() > 10 * SPILLED);
        for limit in [0, 100, SPILLED, 5 * SPILLED, whole.len() - 1, whole.len()] {
            let mut place = Place {
                bytes: Vec::new(),
                limit,
            };
            let mut writer = Writer::spilling(11, &mut place);
            let filled = fill(&mut writer);
            let finished = writer.finish_spilled();
            assert_eq!(
                filled.is_ok() && finished.is_ok(),
                limit == whole.len(),
                "{limit}"
            );
            assert!(limit < whole.len() || place.bytes == whole);
        }
    }
}
