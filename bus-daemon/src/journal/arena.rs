//! Where the bodies of checkpoint entries lie: blocks of four sizes for each doubling, and which of their memory is in use.

use std::collections::BTreeSet;

use crate::os::region::Region;

/// Four for each doubling.
const CLASSES: usize = 4 * 64;
/// Smallest block.
const LEAST: usize = 64;
/// What is given back at a time: the pages that no block in use lies in.
const CHUNK: u64 = 64 * 1024;
/// Bytes without a block in use that are kept, since fresh pages cost more than resident ones; beside an eighth of what is
/// in use.
const KEPT: u64 = 1 << 20;
/// Chunks given back in one go at most, which takes less than a millisecond.
const MOST: usize = 256;

/// A block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) offset: u64,
    size: usize,
}

impl Block {
    /// The block at this offset that holds so many bytes.
    pub(super) fn holding(len: usize, offset: u64) -> Self {
        Self {
            offset,
            size: size_for(len),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    /// Bytes of it in blocks that are in use.
    used: u32,
    /// Its pages may be in memory.
    is_resident: bool,
}

/// Part of a region, cut into blocks.
pub(super) struct Arena {
    region: Region,
    start: u64,
    /// Behind the last block that was ever in use.
    end: u64,
    /// Free blocks by size class.
    free: Vec<Vec<u64>>,
    /// From `start` on.
    chunks: Vec<Chunk>,
    /// Resident chunks without a byte in use.
    idle: BTreeSet<u32>,
    used: u64,
    resident: u64,
}

impl Arena {
    /// The region from `start` on, without any block.
    pub(super) fn new(region: Region, start: u64) -> Self {
        Self {
            region,
            start,
            end: start,
            free: vec![Vec::new(); CLASSES],
            chunks: Vec::new(),
            idle: BTreeSet::new(),
            used: 0,
            resident: 0,
        }
    }

    /// The same with these blocks in use, up to `end`. The gaps between them are free; their pages may be in memory.
    pub(super) fn reclaim(region: Region, start: u64, end: u64, mut blocks: Vec<Block>) -> Self {
        let mut arena = Self::new(region, start);
        arena.end = end;
        // Whatever was in use may be in memory.
        arena.grow(end);
        for index in 0..arena.chunks.len() {
            arena.chunks[index].is_resident = true;
            arena.idle.insert(index as u32);
        }
        arena.resident = arena.chunks.len() as u64 * CHUNK;
        for block in &blocks {
            arena.note_used(*block);
        }
        blocks.sort_unstable_by_key(|block| block.offset);
        blocks.push(Block { offset: end, size: 0 });
        let mut at = start;
        for block in blocks {
            let mut gap = block.offset.saturating_sub(at);
            while gap >= LEAST as u64 {
                let size = largest_within(gap);
                arena.free[class_of(size)].push(at);
                at += size as u64;
                gap -= size as u64;
            }
            at = at.max(block.offset + block.size as u64);
        }
        arena
    }

    /// Behind the last block.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that may be in memory.
    pub(super) fn resident(&self) -> u64 {
        self.resident
    }

    /// A block for so many bytes.
    pub(super) fn allocate(&mut self, len: usize) -> Result<Block, String> {
        let mut block = Block::holding(len, 0);
        block.offset = match self.free[class_of(block.size)].pop() {
            Some(offset) => offset,
            None => {
                let end = self.end + block.size as u64;
                if end > self.region.len() as u64 {
                    return Err("the checkpoint's arena is full".into());
                }
                std::mem::replace(&mut self.end, end)
            }
        };
        self.note_used(block);
        Ok(block)
    }

    /// Nothing refers to the block any more.
    pub(super) fn set_free(&mut self, block: Block) {
        self.free[class_of(block.size)].push(block.offset);
        self.used -= block.size as u64;
        for (index, bytes) in self.parts(block) {
            let chunk = &mut self.chunks[index];
            chunk.used -= bytes;
            if chunk.used == 0 && chunk.is_resident {
                self.idle.insert(index as u32);
            }
        }
    }

    /// Whether [`trim`](Self::trim) has something to do.
    pub(super) fn wants_trim(&self, keeps_some: bool) -> bool {
        let kept = if keeps_some { KEPT + self.used / 8 } else { 0 };
        self.idle.len() as u64 * CHUNK > kept
    }

    /// Gives the memory of chunks without a block in use back to the system, the highest first, some of them at a time;
    /// `keeps_some`: but for a few.
    pub(super) fn trim(&mut self, keeps_some: bool) {
        let mut given = 0;
        while given < MOST
            && self.wants_trim(keeps_some)
            && let Some(last) = self.idle.pop_last()
        {
            let mut first = last;
            // At least one, and no more than there are too many.
            while given + ((last - first) as usize) < MOST
                && self.wants_trim(keeps_some)
                && first > 0
                && self.idle.remove(&(first - 1))
            {
                first -= 1;
            }
            let count = last - first + 1;
            let offset = self.start + u64::from(first) * CHUNK;
            self.region
                .release_range(offset, u64::from(count) as usize * CHUNK as usize);
            for chunk in &mut self.chunks[first as usize..=last as usize] {
                chunk.is_resident = false;
            }
            self.resident -= u64::from(count) * CHUNK;
            given += count as usize;
        }
    }

    fn grow(&mut self, end: u64) {
        let chunks = (end - self.start).div_ceil(CHUNK) as usize;
        if chunks > self.chunks.len() {
            self.chunks.resize(chunks, Chunk::default());
        }
    }

    fn note_used(&mut self, block: Block) {
        self.used += block.size as u64;
        self.grow(block.offset + block.size as u64);
        for (index, bytes) in self.parts(block) {
            let chunk = &mut self.chunks[index];
            if chunk.used == 0 {
                self.idle.remove(&(index as u32));
            }
            chunk.used += bytes;
            if !chunk.is_resident {
                chunk.is_resident = true;
                self.resident += CHUNK;
            }
        }
    }

    /// The chunks that a block lies in, and how many bytes of it lie in each.
    fn parts(&self, block: Block) -> impl Iterator<Item = (usize, u32)> + use<> {
        let from = block.offset - self.start;
        let end = from + block.size as u64;
        (from / CHUNK..end.div_ceil(CHUNK)).map(move |index| {
            let bytes = end.min((index + 1) * CHUNK) - from.max(index * CHUNK);
            (index as usize, bytes as u32)
        })
    }
}

/// The size of a block for so many bytes: a multiple of the smallest, and of a quarter of the power of two below. Whole powers of
/// two would leave a third of the memory empty, which a recovery has to map all the same.
fn size_for(len: usize) -> usize {
    let len = len.max(LEAST);
    len.next_multiple_of(step_below(len - 1))
}

/// The largest size of a block in so many bytes, which are no fewer than [`LEAST`].
fn largest_within(len: u64) -> usize {
    let len = len.min(1 << 40) as usize;
    len - len % step_below(len)
}

/// The difference between two sizes there.
fn step_below(len: usize) -> usize {
    ((1 << len.max(LEAST).ilog2()) / 4).max(LEAST)
}

/// Each size has its own.
fn class_of(size: usize) -> usize {
    let below = size.ilog2();
    4 * below as usize + ((size >> (below - 2)) & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 64 << 20;

    fn arena() -> (Arena, u64) {
        // As the tables before it are: no multiple of a chunk.
        let start = 4096 + 64;
        let region = Region::create(c"test-arena", LEN).unwrap();
        (Arena::new(region, start), start)
    }

    fn check(arena: &Arena, blocks: &[Block]) {
        let used: u64 = blocks.iter().map(|block| block.size as u64).sum();
        assert_eq!(arena.used(), used);
        let resident = arena.chunks.iter().filter(|chunk| chunk.is_resident).count();
        assert_eq!(arena.resident(), resident as u64 * CHUNK);
        for (index, chunk) in arena.chunks.iter().enumerate() {
            let parts = blocks.iter().flat_map(|block| arena.parts(*block));
            let bytes: u32 = parts.filter(|(at, _)| *at == index).map(|(_, bytes)| bytes).sum();
            assert_eq!(chunk.used, bytes, "chunk {index}");
            let is_idle = bytes == 0 && chunk.is_resident;
            assert_eq!(arena.idle.contains(&(index as u32)), is_idle, "chunk {index}");
            assert!(chunk.is_resident || bytes == 0);
        }
    }

    #[test]
    fn sizes_waste_a_fifth_at_most_and_each_has_a_class_of_its_own() {
        let mut classes = std::collections::BTreeMap::new();
        for len in 0..20_000 {
            let size = size_for(len);
            assert!(
                size >= len.max(LEAST) && size - len <= LEAST.max(len / 4),
                "{len}: {size}"
            );
            assert_eq!(size_for(size), size);
            assert_eq!(largest_within(size as u64), size);
            assert_eq!(*classes.entry(class_of(size)).or_insert(size), size);
            if len >= LEAST {
                let within = largest_within(len as u64);
                assert!(within <= len && within == size_for(within), "{len}: {within}");
            }
        }
        for shift in 20..=40 {
            assert_eq!(largest_within(1 << shift), 1 << shift);
            assert!(class_of(size_for(1 << shift)) < CLASSES);
        }
    }

    #[test]
    fn small_blocks_give_their_memory_back_too() {
        let (mut arena, start) = arena();
        let mut blocks = Vec::new();
        for n in 0..20_000_usize {
            blocks.push(arena.allocate(1 + n % 1500).unwrap());
        }
        check(&arena, &blocks);
        let most = arena.resident();
        // Whoever stays stands among those who go.
        let (stay, gone): (Vec<_>, Vec<_>) = (0..).zip(blocks).partition(|(n, _)| n % 5000 == 7);
        for (_, block) in gone {
            arena.set_free(block);
        }
        let stay: Vec<Block> = stay.into_iter().map(|(_, block)| block).collect();
        while arena.wants_trim(true) {
            let before = arena.resident();
            arena.trim(true);
            assert!(arena.resident() < before, "nothing is given back");
        }
        check(&arena, &stay);
        assert!(
            arena.resident() <= KEPT + CHUNK * (2 + stay.len() as u64),
            "{most}"
        );
        while arena.wants_trim(false) {
            arena.trim(false);
        }
        assert!(arena.resident() <= CHUNK * 2 * stay.len() as u64);
        check(&arena, &stay);
        // And all of it can be used again.
        let again: Vec<Block> = (0..20_000_usize)
            .map(|n| arena.allocate(1 + n % 1500).unwrap())
            .collect();
        assert!(arena.end() - start < most + CHUNK);
        let all: Vec<Block> = stay.into_iter().chain(again).collect();
        check(&arena, &all);
        let mut places: Vec<_> = all.iter().map(|block| (block.offset, block.size)).collect();
        places.sort_unstable();
        assert!(
            places
                .windows(2)
                .all(|pair| pair[0].0 + pair[0].1 as u64 <= pair[1].0)
        );
    }

    #[test]
    fn what_was_in_use_before_a_restart_is_reclaimed() {
        let (mut arena, start) = arena();
        let blocks: Vec<Block> = (0..100_usize).map(|n| arena.allocate(n * 700).unwrap()).collect();
        let kept: Vec<Block> = blocks.into_iter().step_by(3).collect();
        let again = Arena::reclaim(arena.region, start, arena.end(), kept.clone());
        check(&again, &kept);
        assert_eq!(again.end(), arena.end());
    }
}
