//! The file's space: which chunk holds what, how many references each item has, and what is free.
//!
//! ```text
//! chunk:  Unknown -> Free <-> Items | Extent      Unknown: of a file that was reopened, and nothing refers to it so far
//! item:   free -> used (count >= 1) -> dying (0) --committed()--> freeable -> free
//! phase:  Counting -> Counted --committed()--> Sweeping -> Whole        (reopened: Counting; created: Whole)
//! ```
//!
//! After a reopen, the chunks that were there ("old") are counted from 0, and up and down in any order, so their counts
//! wrap around; nothing of them is freed. Once all is counted, and a commit has made sure that what fell to 0 meanwhile
//! is not needed either, whatever stands at 0 is free: a sweep finds it. A chunk that is touched before the sweep comes
//! to it is swept at once, so that an item which falls to 0 later waits for the commit after, like any.

mod reclaim;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Result;

use super::class::{CHUNK, Class, Item, PAGE, PAGES_PER_CHUNK};
use super::medium::Medium;

/// Bytes of idle memory that are kept, since fresh pages cost more than resident ones; beside an eighth of what is used.
const SLACK: u64 = 1 << 20;
/// Chunks that are given back by one system call at most.
const HOLE: u32 = 8;
/// Work of giving back one of them: the system takes a microsecond or two for each page.
const CHUNK_BACK: usize = 512;
/// Free chunks that are looked at for a large extent, before it goes to the end of the file.
const SEARCH: usize = 1024;
const ALL_PAGES: u64 = u64::MAX;

/// A place that no writer of the store can have named.
#[derive(Debug)]
pub(super) struct NoSuchItem;

#[derive(Debug)]
enum Chunk {
    Unknown,
    Free,
    Items(Box<Items>),
    Extent {
        class: Class,
        count: u32,
        is_swept: bool,
    },
    /// Of the extent that begins further ahead.
    Within,
}

/// Items of a chunk.
#[derive(Debug)]
struct Items {
    class: Class,
    counts: Box<[u32]>,
    /// A bit for each free item.
    free: [u64; 16],
    free_items: usize,
    /// A bit for each page of the system that may be in memory.
    resident: u64,
    is_swept: bool,
}

impl Items {
    fn new(class: Class, items: usize, is_free: bool, resident: u64) -> Self {
        let mut new = Self {
            class,
            counts: vec![0; items].into(),
            free: [0; 16],
            free_items: 0,
            resident,
            is_swept: is_free,
        };
        if is_free {
            (0..items).for_each(|index| new.set_free(index));
        }
        new
    }

    fn is_free(&self, index: usize) -> bool {
        self.free[index / 64] >> (index % 64) & 1 == 1
    }

    fn set_free(&mut self, index: usize) {
        self.free[index / 64] |= 1 << (index % 64);
        self.free_items += 1;
    }

    fn take_lowest(&mut self) -> Option<usize> {
        let word = self.free.iter().position(|word| *word != 0)?;
        let index = word * 64 + self.free[word].trailing_zeros() as usize;
        self.free[word] &= self.free[word] - 1;
        self.free_items -= 1;
        Some(index)
    }

    fn pages_of(&self, index: usize) -> u64 {
        let size = self.class.size();
        let first = index as u64 * size / PAGE;
        let last = ((index as u64 + 1) * size - 1) / PAGE;
        ALL_PAGES >> (63 - (last - first)) << first
    }

    /// Pages that used items lie in.
    fn used_pages(&self) -> u64 {
        (0..self.counts.len())
            .filter(|index| !self.is_free(*index))
            .fold(0, |pages, index| pages | self.pages_of(index))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Counting,
    Counted,
    Sweeping { next: u32 },
    Whole,
}

/// All chunks.
#[derive(Debug)]
pub(super) struct Space {
    chunks: Vec<Chunk>,
    /// Chunks that were there when the file was reopened, until they are swept.
    old: u32,
    phase: Phase,
    /// By class: chunks with free items.
    partial: BTreeMap<Class, BTreeSet<u32>>,
    /// Free chunks with the pages of them that may be in memory, and those without any.
    kept: BTreeMap<u32, u64>,
    bare: BTreeSet<u32>,
    /// Chunks in which items were freed since they were last trimmed.
    ragged: BTreeSet<u32>,
    dying: Vec<Item>,
    dying_bytes: u64,
    freeable: Vec<Item>,
    freeable_bytes: u64,
    /// Nothing idle is kept, until all that there is has been given back.
    is_thrifty: bool,
    /// Bytes in memory, as far as known: all but `old_bytes`.
    resident: u64,
    /// Bytes of items that are not free.
    used: u64,
    /// Bytes of the reopened file that were in memory then.
    old_bytes: u64,
}

impl Space {
    /// Of a file of that length, of which so much is in memory.
    pub(super) fn new(len: u64, allocated: u64) -> Self {
        let old = u32::try_from(len.div_ceil(CHUNK)).unwrap_or(u32::MAX);
        let mut chunks = Vec::new();
        chunks.resize_with(old as usize, || Chunk::Unknown);
        Self {
            chunks,
            old,
            phase: if old == 0 { Phase::Whole } else { Phase::Counting },
            partial: BTreeMap::new(),
            kept: BTreeMap::new(),
            bare: BTreeSet::new(),
            ragged: BTreeSet::new(),
            dying: Vec::new(),
            dying_bytes: 0,
            freeable: Vec::new(),
            freeable_bytes: 0,
            is_thrifty: false,
            resident: 0,
            used: 0,
            old_bytes: allocated,
        }
    }

    /// Bytes of memory that the file takes, at most.
    pub(super) fn held(&self) -> u64 {
        self.resident + self.unswept()
    }

    /// Bytes of items that are needed, at most.
    pub(super) fn used(&self) -> u64 {
        self.used.saturating_sub(self.dying_bytes + self.freeable_bytes) + self.unswept()
    }

    /// Bytes of a reopened file of which nothing is known yet.
    fn unswept(&self) -> u64 {
        match self.phase {
            Phase::Counting | Phase::Counted => self.old_bytes,
            Phase::Sweeping { next } => self.old_bytes.min(u64::from(self.old - next) * CHUNK),
            Phase::Whole => 0,
        }
    }

    /// Pages that there can be: no chain of them is longer.
    pub(super) fn pages(&self) -> u64 {
        self.chunks.len() as u64 * PAGES_PER_CHUNK
    }

    /// Bytes by which an item of that class may make the file grow.
    pub(super) fn cost(class: Class) -> u64 {
        class.size().next_multiple_of(PAGE)
    }

    // Items

    /// A free item, lowest first; it has one reference.
    pub(super) fn allocate(&mut self, class: Class) -> Item {
        let Some(items) = class.items() else {
            return self.allocate_chunks(class);
        };
        loop {
            let first = self
                .partial
                .get(&class)
                .and_then(|chunks| chunks.first().copied());
            let index = first.unwrap_or_else(|| self.new_chunk(class, items));
            let Chunk::Items(chunk) = &mut self.chunks[index as usize] else {
                self.set_full(class, index);
                continue;
            };
            let Some(place) = chunk.take_lowest() else {
                self.set_full(class, index);
                continue;
            };
            chunk.counts[place] = 1;
            let pages = chunk.pages_of(place);
            self.resident += u64::from((pages & !chunk.resident).count_ones()) * PAGE;
            chunk.resident |= pages;
            if chunk.free_items == 0 {
                self.set_full(class, index);
            }
            self.used += class.size();
            return Item::new(class, u64::from(index) * CHUNK + place as u64 * class.size());
        }
    }

    fn set_full(&mut self, class: Class, index: u32) {
        if let Some(chunks) = self.partial.get_mut(&class) {
            chunks.remove(&index);
        }
    }

    fn new_chunk(&mut self, class: Class, items: usize) -> u32 {
        let (index, resident) = if let Some((index, resident)) = self.kept.pop_first() {
            (index, resident)
        } else if let Some(index) = self.bare.pop_first() {
            (index, 0)
        } else {
            self.chunks.push(Chunk::Free);
            (self.chunks.len() as u32 - 1, 0)
        };
        self.chunks[index as usize] = Chunk::Items(Box::new(Items::new(class, items, true, resident)));
        self.partial.entry(class).or_default().insert(index);
        index
    }

    fn allocate_chunks(&mut self, class: Class) -> Item {
        let chunks = class.chunks();
        let first = self.find_free(chunks).unwrap_or_else(|| {
            let first = self.chunks.len();
            self.chunks.resize_with(first + chunks as usize, || Chunk::Free);
            first as u32
        });
        let mut resident = 0;
        for index in first..first + chunks {
            self.bare.remove(&index);
            resident += u64::from(self.kept.remove(&index).unwrap_or(0).count_ones()) * PAGE;
            self.chunks[index as usize] = Chunk::Within;
        }
        self.chunks[first as usize] = Chunk::Extent {
            class,
            count: 1,
            is_swept: true,
        };
        self.resident += class.size() - resident;
        self.used += class.size();
        Item::new(class, u64::from(first) * CHUNK)
    }

    /// The first of so many free chunks in a row.
    fn find_free(&self, chunks: u32) -> Option<u32> {
        let run_in = |free: &mut dyn Iterator<Item = u32>| {
            let mut run = 0..0;
            for index in free.take(SEARCH) {
                if index != run.end {
                    run = index..index;
                }
                run.end += 1;
                if run.len() == chunks as usize {
                    return Some(run.start);
                }
            }
            None
        };
        run_in(&mut self.kept.keys().copied()).or_else(|| run_in(&mut self.bare.iter().copied()))
    }

    /// One reference more. Errors: there can be no such item, or it is dying.
    pub(super) fn add(&mut self, item: Item) -> std::result::Result<(), NoSuchItem> {
        let is_exact = self.is_exact(item);
        let count = self.count(item)?;
        if is_exact && *count == 0 {
            return Err(NoSuchItem);
        }
        *count = count.wrapping_add(1);
        Ok(())
    }

    /// One reference less; without any, the item dies. Errors: there can be no such item.
    pub(super) fn drop(&mut self, item: Item) -> std::result::Result<(), NoSuchItem> {
        let is_exact = self.is_exact(item);
        let count = self.count(item)?;
        if is_exact && *count == 0 {
            return Err(NoSuchItem);
        }
        *count = count.wrapping_sub(1);
        if is_exact && *count == 0 {
            self.dying.push(item);
            self.dying_bytes += item.class().size();
        }
        Ok(())
    }

    /// Takes back what was allocated just now, and is referred to nowhere.
    pub(super) fn undo(&mut self, item: Item) {
        if let Ok(count) = self.count(item) {
            *count = 0;
            self.free(item);
        }
    }

    /// Whether an item may have other references than the one that the caller knows of.
    pub(super) fn is_shared(&mut self, item: Item) -> bool {
        !self.is_exact(item) || self.count(item).is_ok_and(|count| *count > 1)
    }

    /// Whether an item's count is all there is.
    fn is_exact(&self, item: Item) -> bool {
        item.chunk() >= u64::from(self.old) || matches!(self.phase, Phase::Sweeping { .. } | Phase::Whole)
    }

    /// The references to an item, which comes into being where nothing is known of its chunk.
    fn count(&mut self, item: Item) -> std::result::Result<&mut u32, NoSuchItem> {
        let class = item.class();
        let index = usize::try_from(item.chunk())
            .ok()
            .filter(|index| *index < self.chunks.len())
            .ok_or(NoSuchItem)?;
        let in_chunk = item.offset() % CHUNK;
        let place = (in_chunk / class.size()) as usize;
        let is_aligned = in_chunk.is_multiple_of(class.size());
        if !is_aligned || class.items().is_some_and(|items| place >= items) {
            return Err(NoSuchItem);
        }
        if matches!(self.phase, Phase::Sweeping { .. }) {
            self.sweep_early(index);
        }
        if matches!(self.chunks[index], Chunk::Unknown) {
            self.discover(index, class)?;
        }
        match &mut self.chunks[index] {
            Chunk::Items(items) if items.class == class && !items.is_free(place) => {
                Ok(&mut items.counts[place])
            }
            Chunk::Extent {
                class: extent, count, ..
            } if *extent == class => Ok(count),
            Chunk::Unknown | Chunk::Free | Chunk::Within | Chunk::Items(_) | Chunk::Extent { .. } => {
                Err(NoSuchItem)
            }
        }
    }

    fn discover(&mut self, index: usize, class: Class) -> std::result::Result<(), NoSuchItem> {
        if !matches!(self.phase, Phase::Counting | Phase::Counted) {
            return Err(NoSuchItem);
        }
        if let Some(items) = class.items() {
            self.chunks[index] = Chunk::Items(Box::new(Items::new(class, items, false, 0)));
            return Ok(());
        }
        let end = index + class.chunks() as usize;
        let range = self.chunks.get_mut(index..end).ok_or(NoSuchItem)?;
        if end > self.old as usize || !range.iter().all(|chunk| matches!(chunk, Chunk::Unknown)) {
            return Err(NoSuchItem);
        }
        range.fill_with(|| Chunk::Within);
        self.chunks[index] = Chunk::Extent {
            class,
            count: 0,
            is_swept: false,
        };
        Ok(())
    }

    /// What the counts of all items that are not free add up to.
    #[cfg(test)]
    pub(super) fn counts(&self) -> BTreeMap<Item, u32> {
        let mut counts = BTreeMap::new();
        for (index, chunk) in self.chunks.iter().enumerate() {
            let start = index as u64 * CHUNK;
            match chunk {
                Chunk::Items(items) => {
                    let used = items.counts.iter().enumerate().filter(|(_, count)| **count != 0);
                    let place = |place: usize| start + place as u64 * items.class.size();
                    counts.extend(used.map(|(at, count)| (Item::new(items.class, place(at)), *count)));
                }
                Chunk::Extent { class, count, .. } if *count != 0 => {
                    counts.insert(Item::new(*class, start), *count);
                }
                Chunk::Extent { .. } | Chunk::Unknown | Chunk::Free | Chunk::Within => {}
            }
        }
        counts
    }

    // Freeing

    /// What was dying is not needed any more.
    pub(super) fn committed(&mut self) {
        self.freeable.append(&mut self.dying);
        self.freeable_bytes += std::mem::take(&mut self.dying_bytes);
        if self.phase == Phase::Counted {
            self.phase = Phase::Sweeping { next: 0 };
        }
    }

    /// Bytes that the next commit sets free, at least; those of a reopened file, once they are counted, are not known.
    pub(super) fn freed_by_commit(&self) -> u64 {
        let unswept = if self.phase == Phase::Counted {
            self.old_bytes
        } else {
            0
        };
        self.dying_bytes + unswept
    }

    /// Every reference to old chunks is counted.
    pub(super) fn counted(&mut self) {
        if self.phase == Phase::Counting {
            self.phase = Phase::Counted;
        }
    }

    /// Whether references to old chunks are still to be counted.
    pub(super) fn is_counting(&self) -> bool {
        self.phase == Phase::Counting
    }

    /// Whether [`work`](Self::work) has something to do.
    pub(super) fn has_work(&self) -> bool {
        !self.freeable.is_empty() || matches!(self.phase, Phase::Sweeping { .. }) || self.wants_trim()
    }

    /// Frees, sweeps and gives memory back, about so many units of work; the units left over.
    pub(super) fn work(&mut self, medium: &impl Medium, budget: usize) -> Result<usize> {
        let mut left = self.free_some(budget);
        while left > 0 {
            let units = match self.phase {
                Phase::Sweeping { next } => self.sweep(medium, next)?,
                Phase::Counting | Phase::Counted | Phase::Whole => {
                    if !self.wants_trim() {
                        break;
                    }
                    self.trim(medium)?
                }
            };
            left = left.saturating_sub(units);
        }
        self.is_thrifty &= self.wants_trim();
        Ok(left)
    }

    /// Frees up to so many items; the number left over.
    pub(super) fn free_some(&mut self, budget: usize) -> usize {
        let count = budget.min(self.freeable.len());
        for _ in 0..count {
            if let Some(item) = self.freeable.pop() {
                self.freeable_bytes = self.freeable_bytes.saturating_sub(item.class().size());
                self.free(item);
            }
        }
        if self.freeable.is_empty() {
            self.freeable = Vec::new();
        }
        budget - count
    }

    fn free(&mut self, item: Item) {
        let class = item.class();
        let index = item.chunk() as u32;
        match &mut self.chunks[index as usize] {
            Chunk::Items(items) => {
                let place = (item.offset() % CHUNK / class.size()) as usize;
                if items.is_free(place) {
                    return;
                }
                items.set_free(place);
                self.used -= class.size();
                if items.free_items < items.counts.len() {
                    self.partial.entry(class).or_default().insert(index);
                    self.ragged.insert(index);
                    return;
                }
                let resident = items.resident;
                self.set_full(class, index);
                self.ragged.remove(&index);
                self.set_chunk_free(index, resident);
            }
            Chunk::Extent { .. } => {
                self.used -= class.size();
                for index in index..index + class.chunks() {
                    self.set_chunk_free(index, ALL_PAGES);
                }
            }
            Chunk::Unknown | Chunk::Free | Chunk::Within => {}
        }
    }

    fn set_chunk_free(&mut self, index: u32, resident: u64) {
        self.chunks[index as usize] = Chunk::Free;
        if resident == 0 {
            self.bare.insert(index);
        } else {
            self.kept.insert(index, resident);
        }
    }
}
