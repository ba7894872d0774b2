//! Numbers for what a checkpoint saves one by one, and which of them it has to write again.

use std::collections::VecDeque;

use super::invariants::Violation;

/// The number of an entry: dense, and used again when what had it is gone.
pub(super) type Slot = u32;

/// Names, match rules or open calls, each with the slot of its entry in the checkpoints. `K` is by what one is found.
///
/// A change costs a mark, and a slot is listed once however often it changes; what comes and goes between two
/// checkpoints leaves a vacant slot that was never saved, and nothing is written.
#[derive(Debug)]
pub(super) struct Entries<K> {
    slots: Vec<Held<K>>,
    /// Vacant slots; the one that was left last is taken first.
    free: Vec<Slot>,
    /// Those that are listed, the longest ago first.
    changed: VecDeque<Slot>,
}

#[derive(Debug)]
struct Held<K> {
    /// Who has the slot now.
    key: Option<K>,
    state: State,
}

/// How a slot stands to the newest checkpoint, or the one in the making.
///
/// ```text
/// Absent ──change──> New ──taken──> Saved ──change──> Old ──taken──> Saved
///    ^───────────────taken, vacant───┴─────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has no entry, and nobody has the slot.
    Absent,
    /// Listed, and it has no entry.
    New,
    /// Its entry is as it is.
    Saved,
    /// Listed, and its entry is out of date.
    Old,
}

impl<K> Entries<K> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            changed: VecDeque::new(),
        }
    }

    /// How many there are, at most.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// There will be so many more.
    pub(super) fn reserve(&mut self, count: usize) {
        self.slots.reserve(count);
        self.changed.reserve(count);
    }

    /// A slot for something new.
    pub(super) fn insert(&mut self, key: K) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Held {
                key: None,
                state: State::Absent,
            });
            (self.slots.len() - 1) as Slot
        });
        self.set(slot, Some(key));
        slot
    }

    /// What has the slot is gone.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.take(slot);
    }

    /// The same; what had the slot, if anything did.
    pub(super) fn take(&mut self, slot: Slot) -> Option<K> {
        let gone = self.slots.get_mut(slot as usize)?.key.take()?;
        self.mark(slot);
        self.free.push(slot);
        Some(gone)
    }

    /// What has the slot has changed.
    pub(super) fn mark(&mut self, slot: Slot) {
        if let Some(held) = self.slots.get_mut(slot as usize) {
            held.state = match held.state {
                State::Absent => State::New,
                State::Saved => State::Old,
                State::New | State::Old => return,
            };
            self.changed.push_back(slot);
        }
    }

    /// What has the slot.
    pub(super) fn get(&self, slot: Slot) -> Option<&K> {
        self.slots.get(slot as usize)?.key.as_ref()
    }

    /// What has the slot, to change what no entry tells of.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut K> {
        self.slots.get_mut(slot as usize)?.key.as_mut()
    }

    /// What has slots, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &K> {
        self.slots.iter().filter_map(|held| held.key.as_ref())
    }

    /// How many slots are listed.
    pub(super) fn changed_count(&self) -> usize {
        self.changed.len()
    }

    /// Calls `out` with the slots whose entries are to be written again, or taken away where nothing has the slot; visits at
    /// most `most` of those that are listed.
    pub(super) fn take_changed(&mut self, most: usize, mut out: impl FnMut(Slot)) {
        let most = most.min(self.changed.len());
        for slot in self.changed.drain(..most) {
            let Some(held) = self.slots.get_mut(slot as usize) else {
                continue;
            };
            let had_entry = held.state == State::Old;
            held.state = if held.key.is_some() {
                State::Saved
            } else {
                State::Absent
            };
            if had_entry || held.key.is_some() {
                out(slot);
            }
        }
    }

    /// Goes on from a checkpoint that has room for `len` slots and `held` in some: nothing has changed.
    pub(super) fn resume(
        &mut self,
        len: u32,
        held: impl IntoIterator<Item = (Slot, K)>,
    ) -> Result<(), Violation> {
        self.changed.clear();
        self.slots.clear();
        let vacant = || Held {
            key: None,
            state: State::Absent,
        };
        self.slots.resize_with(len as usize, vacant);
        for (slot, key) in held {
            match self.slots.get_mut(slot as usize) {
                Some(vacant) if vacant.key.is_none() => {
                    *vacant = Held {
                        key: Some(key),
                        state: State::Saved,
                    };
                }
                _ => return Err(Violation::new("two have the same entry in a checkpoint")),
            }
        }
        let is_vacant = |slot: &Slot| self.slots[*slot as usize].key.is_none();
        self.free = (0..len).rev().filter(is_vacant).collect();
        Ok(())
    }

    /// The checkpoint has entries in `len` slots, none of which is what has the slot now: all are to be written again.
    pub(super) fn supersede(&mut self, len: u32) {
        let vacant = self.slots.len() as u32..len;
        for _ in vacant.clone() {
            self.slots.push(Held {
                key: None,
                state: State::Absent,
            });
        }
        self.free.splice(0..0, vacant.rev());
        for slot in 0..len {
            self.mark(slot);
            if let Some(held) = self.slots.get_mut(slot as usize) {
                held.state = State::Old;
            }
        }
    }

    fn set(&mut self, slot: Slot, key: Option<K>) {
        if let Some(held) = self.slots.get_mut(slot as usize) {
            held.key = key;
        }
        self.mark(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(entries: &mut Entries<char>) -> Vec<(Slot, Option<char>)> {
        let mut slots = Vec::new();
        entries.take_changed(usize::MAX, |slot| slots.push(slot));
        slots
            .into_iter()
            .map(|slot| (slot, entries.get(slot).copied()))
            .collect()
    }

    #[test]
    fn what_comes_and_goes_between_two_checkpoints_is_not_written() {
        let mut entries = Entries::new();
        let a = entries.insert('a');
        for _ in 0..1_000 {
            let b = entries.insert('b');
            entries.remove(b);
        }
        assert_eq!(entries.changed_count(), 2);
        assert_eq!(taken(&mut entries), [(a, Some('a'))]);
        assert_eq!(taken(&mut entries), []);
        entries.remove(a);
        let c = entries.insert('c');
        assert_eq!(c, a);
        assert_eq!(taken(&mut entries), [(a, Some('c'))]);
        entries.remove(c);
        assert_eq!(taken(&mut entries), [(a, None)]);
        assert_eq!(taken(&mut entries), []);
    }

    #[test]
    fn a_checkpoint_is_gone_on_from() {
        let mut entries = Entries::new();
        entries.insert('x');
        entries.resume(4, [(2, 'c'), (0, 'a')]).unwrap();
        assert_eq!(taken(&mut entries), []);
        assert_eq!(
            [entries.insert('b'), entries.insert('d'), entries.insert('e')],
            [1, 3, 4]
        );
        entries.mark(2);
        entries.remove(0);
        assert_eq!(
            taken(&mut entries),
            [
                (1, Some('b')),
                (3, Some('d')),
                (4, Some('e')),
                (2, Some('c')),
                (0, None)
            ]
        );
        assert!(entries.resume(2, [(1, 'a'), (1, 'b')]).is_err());
        assert!(entries.resume(2, [(2, 'a')]).is_err());
    }

    #[test]
    fn entries_that_nothing_goes_on_from_are_taken_away() {
        let mut entries = Entries::new();
        entries.insert('a');
        entries.supersede(3);
        assert_eq!(taken(&mut entries), [(0, Some('a')), (1, None), (2, None)]);
        assert_eq!(taken(&mut entries), []);
        assert_eq!([entries.insert('b'), entries.insert('c')], [1, 2]);
    }
}
