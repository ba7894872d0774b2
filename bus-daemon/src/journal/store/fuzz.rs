//! For the fuzz target of the store: a file that holds what waits for one honest peer, and besides whatever the input says,
//! under checksums that fit. Reopened, counted, read, appended to and dropped, it must never panic, never go in a circle,
//! and cost neither memory nor calls without bound; and the honest peer gets its bytes unless somebody has forged places of
//! the honest ones.

use std::cell::{Cell, RefCell};
use std::io::{Error, ErrorKind, Result};

use super::class::{CHUNK, Class, Item, PAGE};
use super::page::{Fill, NONE, Reference};
use super::{BacklogV1, Medium, Store};

const SALT: u32 = 0x5eed_0002;
const HONEST: u64 = 100;
/// Peers of whom the input tells.
const OTHERS: usize = 4;
/// The file grows no longer.
const LONGEST: u64 = 8 << 20;
/// Things that are told of the file, and that are done with the store.
const MOST_TOLD: usize = 128;
const MOST_DONE: usize = 128;

/// Plays `data`: see this module.
#[cfg_attr(
    not(feature = "test-hooks"),
    allow(unreachable_pub, reason = "for the fuzz target")
)]
pub fn store(data: &[u8]) {
    let mut input = Input(data);
    let mut scene = Scene::build();
    for _ in 0..MOST_TOLD {
        let Some(what) = input.next() else { break };
        if what == u8::MAX {
            break;
        }
        scene.tell(what, &mut input);
    }
    scene.play(input);
}

/// The input, byte by byte; behind its end are zeroes.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or_default()
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A place in the file, in it mostly, and sometimes far behind it.
    fn place(&mut self) -> u64 {
        match self.byte() {
            page @ 0..=159 => u64::from(page) * PAGE,
            block @ 160..=239 => CHUNK + u64::from(block - 160) * 256,
            240 => NONE,
            241 => NONE - 1,
            242 => NONE - 4095,
            243 => (1 << 62) - PAGE,
            244 => CHUNK * u64::from(u32::MAX),
            245 => (1 << 56) - PAGE,
            246 => LONGEST - PAGE,
            _ => u64::from(self.word()) * 8,
        }
    }

    /// An absolute offset in a stream.
    fn offset(&mut self) -> u64 {
        match self.byte() {
            near @ 0..=199 => u64::from(near) * 7,
            200..=239 => u64::from(self.word()),
            240 => u64::MAX,
            241 => 1 << 62,
            242 => (1 << 62) + 1,
            243 => 1 << 40,
            _ => u64::from(self.word()) << 8,
        }
    }

    fn owner(&mut self) -> u64 {
        u64::from(self.byte() % OTHERS as u8) + 1
    }

    fn item(&mut self) -> Option<Item> {
        let class = Class::new(self.byte() % 80)?;
        let place = self.place();
        (place < 1 << 56).then(|| Item::new(class, place))
    }
}

/// A file in memory that counts calls.
#[derive(Default)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    calls: Cell<u64>,
}

impl Memory {
    fn call(&self) {
        self.calls.set(self.calls.get() + 1);
    }

    /// Writes without counting; what lies behind the longest file is left out.
    fn put(&self, offset: u64, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > LONGEST {
            return;
        }
        let mut all = self.bytes.borrow_mut();
        if all.len() < end as usize {
            all.resize(end as usize, 0);
        }
        all[offset as usize..end as usize].copy_from_slice(bytes);
    }
}

impl Medium for &Memory {
    fn pread(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.call();
        if bytes.is_empty() {
            return Ok(());
        }
        let all = self.bytes.borrow();
        let end = offset.saturating_add(bytes.len() as u64);
        if end > all.len() as u64 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.copy_from_slice(&all[offset as usize..end as usize]);
        Ok(())
    }

    fn pwrite(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.call();
        if offset.saturating_add(bytes.len() as u64) > LONGEST {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        self.put(offset, bytes);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.call();
        let mut all = self.bytes.borrow_mut();
        let end = offset.saturating_add(len).min(all.len() as u64) as usize;
        if let Some(range) = all.get_mut(offset as usize..end) {
            range.fill(0);
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }

    fn allocated(&self) -> Result<u64> {
        (*self).len()
    }
}

/// The file, and what is said of it.
struct Scene {
    memory: Memory,
    honest: BacklogV1,
    expected: Vec<u8>,
    /// Bytes of the file that the honest peer's store had.
    honest_len: u64,
    others: [Option<BacklogV1>; OTHERS],
    /// Something was sealed as only the store does it, or the file of the honest peer was written to.
    is_forged: bool,
}

impl Scene {
    fn build() -> Self {
        let memory = Memory::default();
        let mut honest = BacklogV1::empty(HONEST, 0);
        let mut expected = Vec::new();
        let mut store = Store::create(&memory, SALT);
        for number in 0..150_usize {
            let bytes: Vec<u8> = (0..100 + number % 100)
                .map(|at| (at * 3 + number) as u8)
                .collect();
            let appended = if number % 3 == 0 {
                store.append_inline(&mut honest, &bytes)
            } else {
                store.begin_checkpoint();
                store.append_body(&mut honest, bytes.as_ptr() as usize + bytes.len(), &bytes)
            };
            assert!(appended.is_ok(), "{appended:?}");
            expected.extend_from_slice(&bytes);
        }
        assert!(store.flush().is_ok());
        store.committed();
        drop(store);
        let honest_len = memory.bytes.borrow().len() as u64;
        Self {
            memory,
            honest,
            expected,
            honest_len,
            others: [None; OTHERS],
            is_forged: false,
        }
    }

    /// One thing about the file.
    fn tell(&mut self, what: u8, input: &mut Input<'_>) {
        match what % 7 {
            0 => self.tell_header(input),
            1 => {
                let bytes = vec![input.byte(); 1 + usize::from(input.byte())];
                self.tell_record(input, Fill::Inline(&bytes));
            }
            2 => {
                let Some(item) = input.item() else { return };
                let (len, of_it) = (u32::from(input.word()), u32::from(input.word()));
                let crc = self.crc_of(item, len);
                self.tell_record(input, Fill::Block(Reference { item, len, crc }, of_it));
            }
            3 => {
                let Some(item) = input.item() else { return };
                let (from, len) = (u32::from(input.word()), u32::from(input.word()) << 8);
                self.tell_record(input, Fill::Extent { item, from, len });
            }
            4 => {
                let bytes = [input.byte(); 24];
                let place = input.place();
                self.put(place, &bytes);
            }
            _ => self.tell_backlog(input),
        }
    }

    fn tell_header(&mut self, input: &mut Input<'_>) {
        let (owner, page, next) = (input.owner(), input.place(), input.place());
        let end = usize::from(input.word() % 4200);
        let store = Store::create(&self.memory, SALT);
        let header = store.seal(owner, page).header(next, end);
        drop(store);
        self.is_forged = true;
        self.put(page, &header);
    }

    fn tell_record(&mut self, input: &mut Input<'_>, fill: Fill<'_>) {
        let (owner, page) = (input.owner(), input.place());
        let at = 16 + usize::from(input.byte()) * 8;
        let mut bytes = Vec::new();
        let store = Store::create(&self.memory, SALT);
        store.seal(owner, page).write(at, fill, &mut bytes);
        drop(store);
        self.is_forged = true;
        self.put(page.saturating_add(at as u64), &bytes);
    }

    fn tell_backlog(&mut self, input: &mut Input<'_>) {
        let owner = input.owner();
        let start = input.offset();
        let is_near = !input.byte().is_multiple_of(8);
        let end = if is_near {
            start.saturating_add(u64::from(input.word()))
        } else {
            input.offset()
        };
        let backlog = BacklogV1 {
            owner,
            start,
            end,
            head_page: input.place(),
            tail_page: input.place(),
            head_at: 16 + u32::from(input.byte()) * 8,
            head_sent: u32::from(input.byte()),
            tail_at: 16 + u32::from(input.word() % 520) * 8,
        };
        // Where it goes on, there it writes.
        self.is_forged |= backlog.tail_page < self.honest_len;
        self.others[owner as usize - 1] = Some(backlog);
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.is_forged |= offset < self.honest_len;
        self.memory.put(offset, bytes);
    }

    /// The checksum that a body there would have.
    fn crc_of(&self, item: Item, len: u32) -> u32 {
        let mut body = vec![0; len as usize];
        let _ = (&self.memory).pread(item.offset(), &mut body);
        Store::create(&self.memory, SALT).body_crc(item, &body)
    }

    /// What a worker does with a store that it finds.
    fn play(mut self, mut input: Input<'_>) {
        let memory = &self.memory;
        let Ok(mut store) = Store::reopen(memory, SALT) else {
            panic!("a file of that length can be reopened")
        };
        store.set_limit(LONGEST);
        let others = &mut self.others;
        for other in others.iter_mut() {
            other.take_if(|backlog| !backlog.is_sound());
        }
        let all = others.iter().flatten().copied().chain([self.honest]);
        store.begin_rebuild(all);
        store.end_naming();
        for _ in 0..MOST_DONE {
            let Some(what) = input.next() else { break };
            let before = memory.calls.get();
            let peer = usize::from(input.byte()) % (OTHERS + 1);
            let backlog = match others.get_mut(peer) {
                Some(Some(backlog)) => backlog,
                Some(None) => continue,
                None => &mut self.honest,
            };
            match what % 8 {
                0 => {
                    let mut room = vec![0; 1 + usize::from(input.word())];
                    let at = backlog.start.saturating_add(input.offset());
                    if let Ok(len) = store.read(backlog, at, &mut room) {
                        assert!(len == 0 || at + len as u64 <= backlog.end);
                    }
                }
                1 => {
                    let upto = backlog.start.saturating_add(input.offset());
                    let start = backlog.start;
                    let advanced = store.advance(backlog, upto);
                    assert!(backlog.start <= upto.max(start));
                    if backlog.owner == HONEST {
                        assert!(self.is_forged || advanced.is_ok(), "{advanced:?}");
                        self.expected.drain(..(backlog.start - start) as usize);
                    }
                }
                2 => {
                    let bytes = vec![input.byte(); usize::from(input.word())];
                    let before = *backlog;
                    if store.append_inline(backlog, &bytes).is_err() {
                        let _ = store.revert(backlog, before);
                    } else if backlog.owner == HONEST {
                        self.expected.extend_from_slice(&bytes);
                    }
                }
                3 => {
                    let bytes = vec![input.byte(); usize::from(input.word())];
                    let before = *backlog;
                    store.begin_checkpoint();
                    if store.append_body(backlog, 1 << 40, &bytes).is_err() {
                        let _ = store.revert(backlog, before);
                    } else if backlog.owner == HONEST {
                        self.expected.extend_from_slice(&bytes);
                    }
                }
                4 => {
                    if backlog.owner != HONEST {
                        let gone = *backlog;
                        store.abandon(gone);
                        others[peer] = None;
                    }
                }
                5 => drop(store.flush()),
                6 => {
                    if store.flush().is_ok() {
                        store.committed();
                    }
                }
                _ => drop(store.step(1 + usize::from(input.byte()))),
            }
            let calls = memory.calls.get() - before;
            // Each page and each block once or twice, and what is freed.
            assert!(calls < 4 * LONGEST / PAGE, "{calls} calls");
        }
        for _ in 0..3 {
            settle(&mut store);
            let _ = store.flush();
            store.committed();
        }
        settle(&mut store);
        assert!(store.take_damaged().len() <= 3 * (OTHERS + 1));
        if !self.is_forged {
            let mut all = vec![0; self.expected.len() + 1];
            let mut filled = 0;
            while filled < self.expected.len() {
                let at = self.honest.start + filled as u64;
                match store.read(&self.honest, at, &mut all[filled..]) {
                    Ok(len) if len > 0 => filled += len,
                    other => panic!("the honest peer does not get its bytes: {other:?}"),
                }
            }
            assert!(all[..filled] == self.expected, "the honest peer gets other bytes");
        }
    }
}

/// All that was put off comes to an end.
fn settle(store: &mut Store<&Memory>) {
    for _ in 0..100_000 {
        match store.step(64) {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
    panic!("the store has work without end");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_fuzzing_is_survived() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/store");
        let mut files: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty());
        for file in files {
            eprintln!("{}", file.display());
            super::store(&std::fs::read(file).unwrap());
        }
    }

    #[test]
    fn some_hostile_files() {
        let mut dice = super::super::tests::Dice(5);
        for _ in 0..300 {
            let len = dice.below(400);
            let data = dice.bytes(len);
            super::store(&data);
        }
    }
}
