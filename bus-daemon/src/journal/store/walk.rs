//! Walking along backlogs: dropping what was sent, what is left of peers that are gone, and counting after a reopen.

use super::backlog::BacklogV1;
use super::class::PAGE;
use super::medium::Medium;
use super::page::{NONE, PAGE_HEADER, Record, Seal, is_page, page_item};
use super::space::NoSuchItem;
use super::{Result, Store, StoreError};
use crate::handoff::stored::LAYOUT;

/// Records that a page is worth, as work.
const PAGE_UNITS: usize = 16;

/// A page as it was read.
#[derive(Debug)]
pub(super) struct Page {
    /// Where it lies in the file; `u64::MAX` = nowhere yet.
    pub(super) offset: u64,
    /// Where its records end.
    pub(super) end: usize,
    /// The page behind it; `u64::MAX` = it is the last one.
    pub(super) next: u64,
    bytes: Vec<u8>,
    owner: u64,
    seal: Seal,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            offset: NONE,
            end: 0,
            next: NONE,
            bytes: Vec::new(),
            owner: 0,
            seal: Seal::new(LAYOUT, 0, 0, NONE),
        }
    }
}

impl Page {
    /// The record that begins there.
    pub(super) fn record(&self, at: usize) -> Result<Record> {
        self.seal
            .read(&self.bytes, at, self.end)
            .ok_or_else(|| self.damage(at, "a record"))
    }

    /// Bytes of the page.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.bytes[at..at + len]
    }

    pub(super) fn damage(&self, at: usize, what: &'static str) -> StoreError {
        StoreError::Damaged {
            owner: self.owner,
            offset: self.offset.wrapping_add(at as u64),
            what,
        }
    }
}

/// What a walk does with each reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Count,
    Drop,
}

/// What is known of a backlog in a store that was reopened, until all of it has been counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// Nothing.
    Pending,
    /// Its last page is its own.
    OfTail,
    /// It is damaged: nothing more is appended, since pages behind the damage may come to be others'.
    Failed,
}

/// A walk along a backlog, page by page.
#[derive(Debug)]
pub(super) struct Walk {
    purpose: Purpose,
    backlog: BacklogV1,
    /// The page that comes next, and the first record in it.
    page: u64,
    at: usize,
    /// Bytes of the stream from that record on.
    left: u64,
    /// Pages that it may still come to.
    pages: u64,
    /// The page that it is at has shown that it is the owner's.
    is_own: bool,
}

impl Walk {
    fn new(purpose: Purpose, backlog: BacklogV1, pages: u64) -> Self {
        Self {
            purpose,
            page: backlog.head_page,
            at: backlog.head_at as usize,
            left: backlog.len().saturating_add(u64::from(backlog.head_sent)),
            pages,
            is_own: false,
            backlog,
        }
    }
}

impl<M: Medium> Store<M> {
    /// Drops what was sent: all bytes before the absolute offset `upto` of the stream. Doing it again does nothing.
    ///
    /// # Errors
    /// Damage, or the system's; what could be dropped before it is dropped.
    pub(crate) fn advance(&mut self, backlog: &mut BacklogV1, upto: u64) -> Result<()> {
        let upto = upto.min(backlog.end);
        if upto <= backlog.start || backlog.is_empty() {
            return Ok(());
        }
        let mut page = std::mem::take(&mut self.spare);
        let result = self.advance_over(backlog, upto, &mut page);
        self.spare = page;
        result
    }

    fn advance_over(&mut self, backlog: &mut BacklogV1, upto: u64, page: &mut Page) -> Result<()> {
        let mut pages = self.space.pages();
        loop {
            let cached = self.cursors.get_mut(&backlog.owner);
            let cached = cached.and_then(|cursor| cursor.take_page(backlog, backlog.head_page));
            match cached {
                Some(cached) => *page = cached,
                None => self.load(backlog, backlog.head_page, page)?,
            }
            pages = next_page(pages, page)?;
            let result = self.advance_in(backlog, upto, page);
            let next = page.next;
            let missing = page.damage(page.end, "bytes are missing");
            if let Some(cursor) = self.cursors.get_mut(&backlog.owner) {
                // Back to where it was taken from; a cursor that has gone ahead keeps its own.
                cursor.offer_page(page);
            }
            if !result? {
                return Ok(());
            }
            if next != NONE {
                self.drop_page(backlog.owner, backlog.head_page);
                backlog.head_page = next;
                backlog.head_at = PAGE_HEADER as u32;
            } else if backlog.start == backlog.end {
                self.drop_page(backlog.owner, backlog.head_page);
                *backlog = BacklogV1::empty(backlog.owner, backlog.end);
                return Ok(());
            } else {
                return Err(missing);
            }
        }
    }

    /// Drops the records of a page up to `upto`; whether all of them are sent.
    fn advance_in(&mut self, backlog: &mut BacklogV1, upto: u64, page: &Page) -> Result<bool> {
        while (backlog.head_at as usize) < page.end {
            if backlog.start == upto {
                return Ok(false);
            }
            let at = backlog.head_at as usize;
            let record = page.record(at)?;
            let rest = u64::from(record.len.saturating_sub(backlog.head_sent));
            if rest > upto - backlog.start {
                backlog.head_sent += (upto - backlog.start) as u32;
                backlog.start = upto;
                return Ok(false);
            }
            if let Some(item) = record.body.item() {
                self.space
                    .drop(item)
                    .map_err(|NoSuchItem| page.damage(at, "a reference"))?;
            }
            backlog.start += rest;
            backlog.head_sent = 0;
            backlog.head_at = record.next as u32;
        }
        Ok(true)
    }

    /// A peer is gone: what waits for it is dropped in steps.
    pub(crate) fn abandon(&mut self, backlog: BacklogV1) {
        self.cursors.remove(&backlog.owner);
        self.unproved.remove(&backlog.owner);
        if !backlog.is_empty() {
            let pages = self.space.pages();
            self.walks.push_back(Walk::new(Purpose::Drop, backlog, pages));
        }
    }

    /// Drops a backlog at once.
    pub(super) fn abandon_now(&mut self, backlog: BacklogV1) -> Result<()> {
        self.walk_whole(Walk::new(Purpose::Drop, backlog, self.space.pages()))
    }

    /// Drops what was appended to a backlog since `old` was copied from it.
    pub(super) fn drop_behind(&mut self, backlog: BacklogV1, old: BacklogV1) -> Result<()> {
        let left = backlog.end.saturating_sub(old.end);
        // The page stays, what was appended to it goes; the pages behind it go as a whole.
        let mut first = Page::default();
        self.load(&backlog, old.tail_page, &mut first)?;
        let passed = self.pass(Purpose::Drop, &first, old.tail_at as usize, left)?;
        self.walk_whole(Walk {
            purpose: Purpose::Drop,
            backlog,
            page: first.next,
            at: PAGE_HEADER,
            left: left - passed,
            pages: self.space.pages(),
            is_own: false,
        })
    }

    fn walk_whole(&mut self, mut walk: Walk) -> Result<()> {
        while !walk.is_done() {
            self.walk_page(&mut walk)?;
        }
        Ok(())
    }

    /// Begins to count the references of a store that was reopened: those of all committed backlogs.
    /// [`step`](Self::step) counts on; until it is done, nothing that the file held is freed.
    pub(crate) fn begin_rebuild(&mut self, backlogs: impl IntoIterator<Item = BacklogV1>) {
        let stored = backlogs.into_iter().filter(|backlog| !backlog.is_empty());
        let pages = self.space.pages();
        for backlog in stored {
            self.unproved.insert(backlog.owner, Proof::Pending);
            self.walks.push_back(Walk::new(Purpose::Count, backlog, pages));
        }
    }

    /// Every backlog, and every extent that the caller holds, of a store that was reopened has been named.
    pub(crate) fn end_naming(&mut self) {
        self.is_naming = false;
        self.finish_counting();
    }

    /// Whether references are still being counted.
    #[cfg(test)]
    pub(super) fn is_rebuilding(&self) -> bool {
        self.space.is_counting()
    }

    /// Damage that was met while counting or dropping; reading meets it too.
    pub(crate) fn take_damaged(&mut self) -> Vec<StoreError> {
        std::mem::take(&mut self.damaged)
    }

    /// Carries walks on.
    pub(super) fn walk(&mut self, budget: usize) -> Result<()> {
        let mut left = budget;
        while left > 0 {
            let Some(mut walk) = self.walks.pop_front() else {
                break;
            };
            let result = self.walk_page(&mut walk);
            let is_done = walk.is_done();
            match result {
                Ok(records) => left = left.saturating_sub(PAGE_UNITS + records),
                Err(error @ StoreError::Damaged { .. }) => {
                    self.damaged.push(error);
                    left = left.saturating_sub(PAGE_UNITS);
                }
                Err(error) => {
                    self.walks.push_front(walk);
                    return Err(error);
                }
            }
            if !is_done {
                self.walks.push_front(walk);
            }
        }
        self.finish_counting();
        Ok(())
    }

    fn finish_counting(&mut self) {
        let is_counting = |walk: &Walk| walk.purpose == Purpose::Count;
        if self.space.is_counting() && !self.is_naming && !self.walks.iter().any(is_counting) {
            self.space.counted();
        }
    }

    /// One page of a walk; the records it had. After damage, the walk is done: there is no way on.
    fn walk_page(&mut self, walk: &mut Walk) -> Result<usize> {
        let mut page = std::mem::take(&mut self.spare);
        walk.is_own = false;
        let result = self.walk_into(walk, &mut page);
        self.spare = page;
        let owner = walk.backlog.owner;
        match (&result, walk.purpose) {
            (Err(StoreError::Damaged { .. }), Purpose::Count) => {
                // What lies behind is not counted, and so will be others'.
                self.unproved.insert(owner, Proof::Failed);
                walk.page = NONE;
            }
            (Err(StoreError::Damaged { .. }), Purpose::Drop) => {
                if walk.is_own {
                    self.drop_page(owner, walk.page);
                }
                self.has_lost_items = true;
                walk.page = NONE;
            }
            (Ok(_), Purpose::Count) if walk.is_done() => {
                self.unproved.remove(&owner);
            }
            (Ok(_) | Err(_), _) => {}
        }
        result
    }

    /// A place is claimed for a backlog only where what lies there shows whose it is: what a backlog says is not under the
    /// checksums of the store.
    fn walk_into(&mut self, walk: &mut Walk, page: &mut Page) -> Result<usize> {
        self.load(&walk.backlog, walk.page, page)?;
        walk.pages = next_page(walk.pages, page)?;
        if page.next == NONE {
            // It has no header yet.
            page.record(walk.at)?;
        }
        if walk.purpose == Purpose::Count {
            let claimed = self.space.add(page_item(walk.page));
            claimed.map_err(|NoSuchItem| page.damage(0, "a page where something else lies"))?;
        }
        walk.is_own = true;
        let before = walk.left;
        walk.left -= self.pass(walk.purpose, page, walk.at, walk.left)?;
        let is_last = page.next == NONE;
        if is_last != (walk.left == 0) {
            return Err(page.damage(page.end, "bytes are missing, or too many"));
        }
        if walk.purpose == Purpose::Drop {
            self.drop_page(walk.backlog.owner, walk.page);
        }
        walk.page = page.next;
        walk.at = PAGE_HEADER;
        Ok((before - walk.left).min(PAGE / 24) as usize)
    }

    /// Counts or drops the references of a page from a record on; the bytes of the stream that they were.
    fn pass(&mut self, purpose: Purpose, page: &Page, mut at: usize, most: u64) -> Result<u64> {
        let mut passed = 0;
        while at < page.end {
            let record = page.record(at)?;
            passed += u64::from(record.len);
            if passed > most {
                return Err(page.damage(at, "too many bytes"));
            }
            if let Some(item) = record.body.item() {
                match purpose {
                    Purpose::Count => self.space.add(item),
                    Purpose::Drop => self.space.drop(item),
                }
                .map_err(|NoSuchItem| page.damage(at, "a reference"))?;
            }
            at = record.next;
        }
        Ok(passed)
    }

    /// Before the first append to a backlog of a store that was reopened: whether its last page is its own, and not another's
    /// that would be written over.
    pub(super) fn prove_tail(&mut self, backlog: &BacklogV1) -> Result<()> {
        let damage = |what| StoreError::Damaged {
            owner: backlog.owner,
            offset: backlog.tail_page,
            what,
        };
        match self.unproved.get(&backlog.owner) {
            None | Some(Proof::OfTail) => return Ok(()),
            Some(Proof::Failed) => return Err(damage("what waits before it")),
            Some(Proof::Pending) => {}
        }
        let mut page = Page::default();
        let is_head = backlog.tail_page == backlog.head_page;
        let mut at = if is_head {
            backlog.head_at as usize
        } else {
            PAGE_HEADER
        };
        self.load(backlog, backlog.tail_page, &mut page)?;
        while at < page.end {
            at = page.record(at)?.next;
        }
        self.unproved.insert(backlog.owner, Proof::OfTail);
        Ok(())
    }

    /// Items are still taken for used that a walk could not come to, for damage on its way. Nothing finds them but to
    /// [reopen](Self::reopen) the store and count again, once everything that it holds has been named.
    pub(crate) fn has_lost_items(&self) -> bool {
        self.has_lost_items && !self.is_naming
    }

    /// Reads a page of a backlog.
    pub(super) fn load(&self, backlog: &BacklogV1, offset: u64, page: &mut Page) -> Result<()> {
        page.offset = NONE;
        page.owner = backlog.owner;
        let damage = |what| StoreError::Damaged {
            owner: backlog.owner,
            offset,
            what,
        };
        if !is_page(offset) {
            return Err(damage("there is no such page"));
        }
        let unwritten = self.images.get(&backlog.owner);
        // A page that was flushed in part ends with the file.
        let len = match backlog.end_of(offset) {
            Some(end) if (PAGE_HEADER..=PAGE as usize).contains(&(end as usize)) => end as usize,
            Some(_) => return Err(damage("the end of the last page")),
            None => PAGE as usize,
        };
        page.bytes.clear();
        page.bytes.resize(PAGE as usize, 0);
        self.read_page(offset, &mut page.bytes[..len], unwritten.is_some(), damage)?;
        if let Some(image) = unwritten {
            image.lay_over(offset, &mut page.bytes);
        }
        page.seal = self.seal(backlog.owner, offset);
        (page.next, page.end) = match backlog.end_of(offset) {
            Some(end) => (NONE, end as usize),
            None => page
                .seal
                .read_header(&page.bytes)
                .ok_or_else(|| damage("the header of a page"))?,
        };
        page.offset = offset;
        Ok(())
    }

    fn read_page(
        &self,
        offset: u64,
        bytes: &mut [u8],
        may_be_unwritten: bool,
        damage: impl Fn(&'static str) -> StoreError,
    ) -> Result<()> {
        let Err(source) = self.medium.pread(offset, bytes) else {
            return Ok(());
        };
        if source.kind() != std::io::ErrorKind::UnexpectedEof {
            return Err(StoreError::system("read records")(source));
        }
        // A page that is complete may be the file's last, whose end was never written; one that is not written, behind it.
        let len = self.medium.len().map_err(StoreError::system("read records"))?;
        let there = len.saturating_sub(offset).min(bytes.len() as u64) as usize;
        if there == 0 && !may_be_unwritten {
            return Err(damage("the file is too short"));
        }
        self.medium
            .pread(offset, &mut bytes[..there])
            .map_err(StoreError::system("read records"))
    }
}

/// How many pages may come after this one, where it and so many others may. Damage: a chain of more pages than there are
/// leads in a circle.
pub(super) fn next_page(pages: u64, page: &Page) -> Result<u64> {
    pages
        .checked_sub(1)
        .ok_or_else(|| page.damage(0, "its pages lead in a circle"))
}

impl Walk {
    fn is_done(&self) -> bool {
        self.page == NONE
    }
}
