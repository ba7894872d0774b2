//! Reading: the bytes of a backlog, for a send.

use smallvec::SmallVec;

use super::backlog::BacklogV1;
use super::class::{Item, LARGEST_BLOCK, PAGE};
use super::medium::Medium;
use super::page::{Body, NONE, PAGE_HEADER, Reference};
use super::walk::Page;
use super::{Result, Store, StoreError};

/// Peers whose pages are kept at hand.
const CURSORS: usize = 256;
/// Bytes that are read and not wanted rather than read around.
const GAP: u64 = 1024;

/// A place that a read came by.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Absolute offset in the stream of the first byte of the record there.
    stream: u64,
    page: u64,
    at: usize,
}

/// Where a peer's last read was, so that the next goes on from there, or from a place before where less was sent.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Where that read began, each page it came to, and where it ended.
    marks: SmallVec<[Mark; 4]>,
    page: Page,
    /// A block that was read in part, and was whole.
    whole: Option<Reference>,
}

impl Cursor {
    /// That page is the peer's no more.
    pub(super) fn forget(&mut self, page: u64) {
        self.marks.retain(|mark| mark.page != page);
        if self.page.offset == page {
            self.page.offset = NONE;
        }
    }

    /// Its page, if it is that one and holds all that the backlog has there.
    pub(super) fn take_page(&mut self, backlog: &BacklogV1, offset: u64) -> Option<Page> {
        let is_current = match backlog.end_of(offset) {
            Some(end) => self.page.next == NONE && self.page.end == end as usize,
            None => self.page.next != NONE,
        };
        (self.page.offset == offset && is_current).then(|| std::mem::take(&mut self.page))
    }

    /// A page that may be of use to it.
    pub(super) fn offer_page(&mut self, page: &mut Page) {
        if self.page.offset == NONE {
            std::mem::swap(&mut self.page, page);
        }
    }
}

/// Bytes to be brought to the caller's buffer, at `to`.
#[derive(Debug, Clone, Copy)]
struct Piece {
    to: usize,
    len: usize,
    /// First byte, counted from that of the block or extent.
    from: usize,
    source: Source,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Block(Reference),
    Extent(Item),
}

impl Piece {
    /// Where the block or extent begins in the file.
    fn offset(&self) -> u64 {
        match self.source {
            Source::Block(block) => block.item.offset(),
            Source::Extent(item) => item.offset(),
        }
    }
}

impl Source {
    fn block(&self) -> Option<Reference> {
        match self {
            Self::Block(block) => Some(*block),
            Self::Extent(_) => None,
        }
    }
}

impl<M: Medium> Store<M> {
    /// Fills `buffer` with the bytes of the stream from the absolute offset `at` on; the number of bytes. 0: nothing is
    /// stored there. Every block is compared with its checksum before any byte of it is given.
    ///
    /// # Errors
    /// Damage at `at`: bytes before the damage are given first. The system's.
    pub(crate) fn read(&mut self, backlog: &BacklogV1, at: u64, buffer: &mut [u8]) -> Result<usize> {
        if at < backlog.start || at >= backlog.end || backlog.is_empty() {
            return Ok(0);
        }
        if !self.is_flushed() {
            self.flush()?;
        }
        let most = backlog.end - at;
        let len = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let mut cursor = self.cursor(backlog, at);
        let result = self.read_at(backlog, &mut cursor, at, &mut buffer[..len]);
        if result.is_ok() {
            self.keep(backlog.owner, cursor);
        }
        result
    }

    fn cursor(&mut self, backlog: &BacklogV1, at: u64) -> Cursor {
        let mut cursor = self.cursors.remove(&backlog.owner).unwrap_or_else(|| Cursor {
            marks: SmallVec::new(),
            page: Page::default(),
            whole: None,
        });
        let newest = cursor.marks.iter().rfind(|mark| mark.stream <= at).copied();
        let head = Mark {
            stream: backlog.start.saturating_sub(u64::from(backlog.head_sent)),
            page: backlog.head_page,
            at: backlog.head_at as usize,
        };
        cursor.marks.clear();
        cursor.marks.push(newest.unwrap_or(head));
        cursor
    }

    fn keep(&mut self, owner: u64, cursor: Cursor) {
        if self.cursors.len() >= CURSORS {
            // Which one is of no importance: its reader looks its place up again.
            let other = self.cursors.keys().next().copied();
            other.map(|other| self.cursors.remove(&other));
        }
        self.cursors.insert(owner, cursor);
    }

    fn read_at(
        &mut self,
        backlog: &BacklogV1,
        cursor: &mut Cursor,
        at: u64,
        buffer: &mut [u8],
    ) -> Result<usize> {
        let mut pieces: SmallVec<[Piece; 64]> = SmallVec::new();
        let found = self.plan(backlog, cursor, at, buffer, &mut pieces);
        let (planned, damage) = match found {
            Ok(planned) => (planned, None),
            Err((planned, error)) => (planned, Some(error)),
        };
        // In the order of the file: where sizes alternate, blocks of each size still lie behind each other.
        pieces.sort_unstable_by_key(|piece| (piece.offset(), piece.to));
        let whole = cursor.whole.take();
        let mut filled = planned;
        let mut missing = damage;
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let (run, others) = rest.split_at(run_of(rest));
            if let Err((to, error)) = self.bring(backlog.owner, cursor, whole, run, buffer)
                && to < filled
            {
                filled = to;
                missing = Some(error);
            }
            rest = others;
        }
        match missing {
            Some(error) if filled == 0 => Err(error),
            Some(_) | None => Ok(filled),
        }
    }

    /// Finds what fills the buffer, and fills in what lies in pages; the number of bytes. With an error: so many before it.
    fn plan(
        &self,
        backlog: &BacklogV1,
        cursor: &mut Cursor,
        at: u64,
        buffer: &mut [u8],
        pieces: &mut SmallVec<[Piece; 64]>,
    ) -> std::result::Result<usize, (usize, StoreError)> {
        let Some(mut mark) = cursor.marks.first().copied() else {
            return Ok(0);
        };
        let mut filled = 0;
        let mut begin = None;
        loop {
            match cursor.take_page(backlog, mark.page) {
                Some(page) => cursor.page = page,
                None => self
                    .load(backlog, mark.page, &mut cursor.page)
                    .map_err(|error| (filled, error))?,
            }
            let page = &cursor.page;
            while mark.at < page.end && filled < buffer.len() {
                let record = page.record(mark.at).map_err(|error| (filled, error))?;
                let end = mark.stream + u64::from(record.len);
                let wanted = at + filled as u64;
                if end > wanted {
                    if begin.is_none() {
                        begin = Some(mark);
                    }
                    let skip = wanted.saturating_sub(mark.stream) as usize;
                    let len = (record.len as usize - skip).min(buffer.len() - filled);
                    let piece = |from, source| Piece {
                        to: filled,
                        len,
                        from,
                        source,
                    };
                    match record.body {
                        Body::Inline(start) => {
                            buffer[filled..filled + len].copy_from_slice(page.bytes(start + skip, len));
                        }
                        Body::Block(block) => {
                            let from = (block.len - record.len) as usize + skip;
                            pieces.push(piece(from, Source::Block(block)));
                        }
                        Body::Extent { item, from } => {
                            pieces.push(piece(from as usize + skip, Source::Extent(item)));
                        }
                    }
                    filled += len;
                    if at + (filled as u64) < end {
                        break;
                    }
                }
                mark.stream = end;
                mark.at = record.next;
            }
            if filled == buffer.len() {
                if let Some(begin) = begin {
                    cursor.marks[0] = begin;
                }
                cursor.marks.push(mark);
                return Ok(filled);
            }
            if page.next == NONE {
                return Err((filled, page.damage(page.end, "bytes are missing")));
            }
            mark.page = page.next;
            mark.at = PAGE_HEADER;
            cursor.marks.push(mark);
        }
    }

    /// Brings pieces that are [one run](run_of). With an error: the first place of the buffer that is missing.
    fn bring(
        &mut self,
        owner: u64,
        cursor: &mut Cursor,
        whole: Option<Reference>,
        run: &[Piece],
        buffer: &mut [u8],
    ) -> std::result::Result<(), (usize, StoreError)> {
        if let [piece] = run {
            let result = self.bring_one(owner, cursor, whole, *piece, buffer);
            return result.map_err(|error| (piece.to, error));
        }
        let blocks = || {
            run.iter()
                .filter_map(|piece| Some((*piece, piece.source.block()?)))
        };
        let start = run.first().map_or(0, Piece::offset);
        let end = blocks()
            .map(|(_, block)| block.item.offset() + u64::from(block.len))
            .max();
        let len = end.map_or(0, |end| end - start) as usize;
        let first = run.iter().map(|piece| piece.to).min().unwrap_or(0);
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(len.max(scratch.len()), 0);
        let mut result = self
            .fetch(owner, start, &mut scratch[..len])
            .map_err(|error| (first, error));
        if result.is_ok() {
            for (piece, block) in blocks() {
                let body = &scratch[(block.item.offset() - start) as usize..][..block.len as usize];
                if self.body_crc(block.item, body) == block.crc {
                    buffer[piece.to..piece.to + piece.len]
                        .copy_from_slice(&body[piece.from..piece.from + piece.len]);
                } else if result.as_ref().err().is_none_or(|(to, _)| piece.to < *to) {
                    result = Err((piece.to, damaged_block(owner, block)));
                }
            }
        }
        self.scratch = scratch;
        result
    }

    fn bring_one(
        &mut self,
        owner: u64,
        cursor: &mut Cursor,
        whole: Option<Reference>,
        piece: Piece,
        buffer: &mut [u8],
    ) -> Result<()> {
        let to = &mut buffer[piece.to..piece.to + piece.len];
        let block = match piece.source {
            Source::Extent(item) => return self.fetch(owner, item.offset() + piece.from as u64, to),
            Source::Block(block) => block,
        };
        let end = piece.from + piece.len;
        if end < block.len as usize {
            // The next read goes on in it.
            cursor.whole = Some(block);
        }
        if whole == Some(block) {
            return self.fetch(owner, block.item.offset() + piece.from as u64, to);
        }
        if piece.len == block.len as usize {
            self.fetch(owner, block.item.offset(), to)?;
            let is_whole = self.body_crc(block.item, to) == block.crc;
            return if is_whole {
                Ok(())
            } else {
                Err(damaged_block(owner, block))
            };
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(scratch.len().max(block.len as usize), 0);
        let body = &mut scratch[..block.len as usize];
        let mut result = self.fetch(owner, block.item.offset(), body);
        if result.is_ok() {
            if self.body_crc(block.item, body) == block.crc {
                to.copy_from_slice(&body[piece.from..end]);
            } else {
                result = Err(damaged_block(owner, block));
            }
        }
        if result.is_err() {
            cursor.whole = None;
        }
        self.scratch = scratch;
        result
    }

    pub(super) fn fetch(&self, owner: u64, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.medium.pread(offset, bytes).map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof {
                StoreError::Damaged {
                    owner,
                    offset,
                    what: "the file is too short",
                }
            } else {
                StoreError::system("read what waits")(source)
            }
        })
    }
}

pub(super) fn damaged_block(owner: u64, block: Reference) -> StoreError {
    StoreError::Damaged {
        owner,
        offset: block.item.offset(),
        what: "a body",
    }
}

/// How many of the first pieces lie close enough behind each other to be read at once, being small.
fn run_of(pieces: &[Piece]) -> usize {
    let small = |piece: &Piece| {
        piece
            .source
            .block()
            .filter(|block| block.item.class().size() < PAGE)
    };
    let Some(first) = pieces.first().and_then(small) else {
        return 1;
    };
    let mut last = first;
    let follows = pieces[1..].iter().map_while(small).take_while(|next| {
        let end = last.item.offset() + last.item.class().size();
        let offset = next.item.offset();
        let is_near = offset >= end && offset - end <= GAP;
        last = *next;
        is_near && offset + u64::from(next.len) - first.item.offset() <= LARGEST_BLOCK as u64
    });
    1 + follows.count()
}
