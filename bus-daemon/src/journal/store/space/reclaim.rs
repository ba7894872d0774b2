//! Memory that goes back to the system: of what is free, and of what nothing refers to after a reopen.

use std::io::Result;

use super::{ALL_PAGES, CHUNK_BACK, Chunk, HOLE, Phase, SLACK, Space};
use crate::journal::store::class::{CHUNK, PAGE, PAGES_PER_CHUNK};
use crate::journal::store::medium::Medium;

impl Space {
    pub(super) fn wants_trim(&self) -> bool {
        let idle = self.resident.saturating_sub(self.used);
        let has_some = !(self.kept.is_empty() && self.ragged.is_empty());
        has_some && (self.is_thrifty || idle > SLACK + self.used / 8)
    }

    /// Nothing idle is kept.
    pub(in crate::journal::store) fn return_idle(&mut self) {
        self.is_thrifty = true;
    }

    /// Gives back the memory of the highest free chunks, or of the free pages of a chunk; the units of work it was.
    pub(super) fn trim(&mut self, medium: &impl Medium) -> Result<usize> {
        let Some((&last, _)) = self.kept.last_key_value() else {
            return self.trim_ragged(medium);
        };
        // As many as there are too many, so that the rest stays.
        let kept = if self.is_thrifty { 0 } else { SLACK };
        let idle = self.resident.saturating_sub(self.used).saturating_sub(kept);
        let most = (idle.div_ceil(CHUNK) as u32).clamp(1, HOLE);
        let mut first = last;
        while last - first + 1 < most && first > 0 && self.kept.contains_key(&(first - 1)) {
            first -= 1;
        }
        let chunks = last - first + 1;
        medium.punch(u64::from(first) * CHUNK, u64::from(chunks) * CHUNK)?;
        for index in first..=last {
            let pages = self.kept.remove(&index).unwrap_or(0);
            self.resident -= u64::from(pages.count_ones()) * PAGE;
            self.bare.insert(index);
        }
        Ok(CHUNK_BACK * chunks as usize)
    }

    fn trim_ragged(&mut self, medium: &impl Medium) -> Result<usize> {
        let Some(&index) = self.ragged.last() else {
            return Ok(1);
        };
        if let Chunk::Items(items) = &mut self.chunks[index as usize] {
            let idle = items.resident & !items.used_pages();
            punch_pages(medium, index, idle)?;
            items.resident &= !idle;
            self.resident -= u64::from(idle.count_ones()) * PAGE;
        }
        self.ragged.remove(&index);
        Ok(64)
    }

    // After a reopen

    /// Sweeps the chunk `next`, and those behind it that are as empty; the units of work it was.
    pub(super) fn sweep(&mut self, medium: &impl Medium, next: u32) -> Result<usize> {
        if next >= self.old {
            self.phase = Phase::Whole;
            self.old = 0;
            self.old_bytes = 0;
            return Ok(1);
        }
        self.sweep_early(next as usize);
        let mut end = next;
        while end < self.old && end - next < HOLE && matches!(self.chunks[end as usize], Chunk::Unknown) {
            end += 1;
            if end < self.old {
                self.sweep_early(end as usize);
            }
        }
        if end > next {
            medium.punch(u64::from(next) * CHUNK, u64::from(end - next) * CHUNK)?;
            for index in next..end {
                self.set_chunk_free(index, 0);
            }
            self.phase = Phase::Sweeping { next: end };
            return Ok(CHUNK_BACK * (end - next) as usize);
        }
        // What was swept early, and may be used again in part, has still to give the rest back.
        let resident = match &self.chunks[next as usize] {
            Chunk::Items(items) => items.resident,
            Chunk::Free => self.kept.get(&next).copied().unwrap_or(0),
            Chunk::Unknown | Chunk::Extent { .. } | Chunk::Within => ALL_PAGES,
        };
        punch_pages(medium, next, !resident)?;
        self.phase = Phase::Sweeping { next: next + 1 };
        Ok(64)
    }

    /// What stands at 0 in a chunk is free; a chunk without anything else becomes unknown.
    pub(super) fn sweep_early(&mut self, index: usize) {
        match &mut self.chunks[index] {
            Chunk::Items(items) if !items.is_swept => {
                items.is_swept = true;
                for place in 0..items.counts.len() {
                    if items.counts[place] == 0 {
                        items.set_free(place);
                    }
                }
                let used = items.counts.len() - items.free_items;
                if used == 0 {
                    self.chunks[index] = Chunk::Unknown;
                    return;
                }
                items.resident = items.used_pages();
                self.used += used as u64 * items.class.size();
                self.resident += u64::from(items.resident.count_ones()) * PAGE;
                if items.free_items > 0 {
                    let class = items.class;
                    self.partial.entry(class).or_default().insert(index as u32);
                }
            }
            Chunk::Extent {
                class,
                count,
                is_swept,
            } if !*is_swept => {
                *is_swept = true;
                let (class, is_unused) = (*class, *count == 0);
                if is_unused {
                    let range = index..index + class.chunks() as usize;
                    self.chunks[range].fill_with(|| Chunk::Unknown);
                } else {
                    self.used += class.size();
                    self.resident += class.size();
                }
            }
            Chunk::Unknown | Chunk::Free | Chunk::Within | Chunk::Items(_) | Chunk::Extent { .. } => {}
        }
    }
}

/// Gives back these pages of a chunk.
fn punch_pages(medium: &impl Medium, chunk: u32, mut pages: u64) -> Result<()> {
    while pages != 0 {
        let first = u64::from(pages.trailing_zeros());
        let run = u64::from((pages >> first).trailing_ones()).min(PAGES_PER_CHUNK - first);
        medium.punch(u64::from(chunk) * CHUNK + first * PAGE, run * PAGE)?;
        pages &= !(ALL_PAGES >> (64 - run) << first);
    }
    Ok(())
}
