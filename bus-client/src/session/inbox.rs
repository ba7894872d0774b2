//! What waits for a reader that may be slow, bounded.

use std::collections::VecDeque;

/// A queue of items and of notes about items that are missing, in their order. Where the reader is slower than the items come,
/// the newest are left out and counted, and nobody else waits.
#[derive(Debug)]
pub struct Inbox<T, N> {
    queue: VecDeque<(Entry<T, N>, usize)>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
    /// Left out since the last entry of the queue.
    lagged: u64,
    has_ended: bool,
}

#[derive(Debug)]
enum Entry<T, N> {
    Item(T),
    Note(N),
    Lagged(u64),
}

/// What comes out of an [`Inbox`].
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<T, N> {
    /// An item.
    Item(T),
    /// A note.
    Note(N),
    /// So many items were left out here.
    Lagged(u64),
    /// There is nothing at the moment.
    Empty,
    /// There is nothing and will never be.
    Ended,
}

impl<T, N> Inbox<T, N> {
    /// With room for so many items, and so many bytes of them.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            most,
            most_bytes,
            lagged: 0,
            has_ended: false,
        }
    }

    /// An item of so many bytes; given back if there is no room for it.
    pub fn push(&mut self, item: T, bytes: usize) -> Result<(), T> {
        let is_full = self.queue.len() >= self.most || self.bytes.saturating_add(bytes) > self.most_bytes;
        // One item is let in however long it is, or it never would be.
        if is_full && !self.queue.is_empty() {
            self.lagged += 1;
            return Err(item);
        }
        self.note_lag();
        self.bytes += bytes;
        self.queue.push_back((Entry::Item(item), bytes));
        Ok(())
    }

    /// An item that says what is so now: where there is no room for it, those go that said what was so before.
    pub fn push_latest(&mut self, item: T, bytes: usize) {
        while self.queue.len() >= self.most || self.bytes.saturating_add(bytes) > self.most_bytes {
            let Some((_, oldest)) = self.queue.pop_front() else {
                break;
            };
            self.bytes -= oldest;
        }
        self.bytes += bytes;
        self.queue.push_back((Entry::Item(item), bytes));
    }

    /// A note. Where the last entry is one that `merge` can take it into, there is still one.
    pub fn note(&mut self, note: N, merge: impl FnOnce(&mut N, &N) -> bool) {
        self.note_lag();
        if let Some((Entry::Note(last), _)) = self.queue.back_mut()
            && merge(last, &note)
        {
            return;
        }
        self.queue.push_back((Entry::Note(note), 0));
    }

    fn note_lag(&mut self) {
        if self.lagged > 0 {
            let lagged = std::mem::take(&mut self.lagged);
            self.queue.push_back((Entry::Lagged(lagged), 0));
        }
    }

    /// Nothing more comes.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// The oldest.
    pub fn pop(&mut self) -> Popped<T, N> {
        let Some((entry, bytes)) = self.queue.pop_front() else {
            return match (self.lagged, self.has_ended) {
                (0, true) => Popped::Ended,
                (0, false) => Popped::Empty,
                _ => Popped::Lagged(std::mem::take(&mut self.lagged)),
            };
        };
        self.bytes -= bytes;
        match entry {
            Entry::Item(item) => Popped::Item(item),
            Entry::Note(note) => Popped::Note(note),
            Entry::Lagged(count) => Popped::Lagged(count),
        }
    }

    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.lagged == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_is_told_how_many_it_missed_and_where() {
        let mut inbox: Inbox<u32, &str> = Inbox::new(2, 100);
        for item in 0..5 {
            let _ = inbox.push(item, 10);
        }
        assert_eq!(inbox.pop(), Popped::Item(0));
        assert_eq!(inbox.push(5, 10), Ok(()));
        assert_eq!(inbox.push(6, 10), Err(6));
        inbox.note("gap", |_, _| false);
        inbox.end();
        let mut rest = Vec::new();
        loop {
            let popped = inbox.pop();
            if popped == Popped::Ended {
                break;
            }
            rest.push(popped);
        }
        let expected = [
            Popped::Item(1),
            Popped::Lagged(3),
            Popped::Item(5),
            Popped::Lagged(1),
            Popped::Note("gap"),
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn of_states_the_last_ones_stay() {
        let mut inbox: Inbox<u32, ()> = Inbox::new(3, 100);
        for state in 0..1000 {
            inbox.push_latest(state, 1);
        }
        inbox.end();
        let kept = [(); 4].map(|()| inbox.pop());
        let last = [997, 998, 999].map(Popped::Item);
        assert_eq!(kept[..3], last);
        assert_eq!(kept[3], Popped::Ended);
        let mut inbox: Inbox<u32, ()> = Inbox::new(3, 10);
        inbox.push_latest(1, 8);
        inbox.push_latest(2, 8);
        assert_eq!((inbox.pop(), inbox.pop()), (Popped::Item(2), Popped::Empty));
    }

    #[test]
    fn bytes_are_bounded_and_one_long_item_fits() {
        let mut inbox: Inbox<u32, ()> = Inbox::new(10, 100);
        assert_eq!(inbox.push(1, 1000), Ok(()));
        assert_eq!(inbox.push(2, 1), Err(2));
        assert_eq!(inbox.pop(), Popped::Item(1));
        assert_eq!(inbox.pop(), Popped::Lagged(1));
        assert_eq!(inbox.push(3, 1), Ok(()));
    }
}
