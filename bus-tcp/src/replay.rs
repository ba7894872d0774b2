//! The bytes of a stream that the other side has not committed yet.

use crate::limits::MAX_DATA;
use crate::pool::Buffer;
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes are gathered in pieces of this size: of a stream that flows, each is one DATA frame, and is not copied again.
const PIECE: usize = MAX_DATA;

/// A queue of bytes with absolute offsets: appended at the end, forgotten at the start, read anywhere between.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Offset of the first byte that is kept.
    start: u64,
    /// All but the first are whole.
    pieces: VecDeque<Bytes>,
    length: usize,
    /// What is not a whole piece, behind all that are.
    tail: Vec<u8>,
    /// Bytes of the tail that are forgotten.
    tail_start: usize,
}

impl Replay {
    /// Empty, at `start`.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    /// Offset of the first byte that is kept.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    /// How many bytes are kept.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether none are.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.tail.len()));
            if now.len() == PIECE {
                self.seal(now);
            } else {
                self.tail.extend_from_slice(now);
                if self.tail.len() == PIECE {
                    let tail = std::mem::take(&mut self.tail);
                    self.seal(&tail);
                }
            }
            bytes = later;
        }
    }

    /// Forgets all before `upto`.
    pub fn forget(&mut self, upto: u64) {
        let mut count = usize::try_from(upto.saturating_sub(self.start))
            .unwrap_or(usize::MAX)
            .min(self.length);
        self.start += count as u64;
        self.length -= count;
        while count > 0 {
            match self.pieces.front_mut() {
                Some(piece) if piece.len() <= count => {
                    count -= piece.len();
                    self.pieces.pop_front();
                }
                Some(piece) => {
                    piece.advance(count);
                    count = 0;
                }
                None => {
                    self.tail_start += count;
                    count = 0;
                }
            }
        }
        if self.is_empty() {
            // Nothing waits, so nothing is held.
            *self = Self::new(self.start);
        }
    }

    /// The longest run of bytes that lies together from `offset` on; empty at the end.
    #[must_use]
    pub fn run(&self, offset: u64) -> &[u8] {
        match self.find(offset) {
            (Some(piece), skip) => &piece[skip..],
            (None, skip) => self.tail.get(skip..).unwrap_or_default(),
        }
    }

    /// The same, shared and not copied, where it lies in memory that does not change any more.
    #[must_use]
    pub fn shared(&self, offset: u64) -> Option<Bytes> {
        let (piece, skip) = self.find(offset);
        Some(piece?.slice(skip..))
    }

    /// The piece that `offset` is in, and where in it; none: in the tail.
    fn find(&self, offset: u64) -> (Option<&Bytes>, usize) {
        let skip = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let first = self.pieces.front().map_or(0, Bytes::len);
        if skip < first {
            return (self.pieces.front(), skip);
        }
        let (number, at) = ((skip - first) / PIECE, (skip - first) % PIECE);
        match self.pieces.get(number + 1) {
            Some(piece) => (Some(piece), at),
            None => {
                let before = first + self.pieces.len().saturating_sub(1) * PIECE;
                (None, (skip - before).saturating_add(self.tail_start))
            }
        }
    }

    /// All that is kept, to be saved.
    #[must_use]
    pub fn save(&self) -> SavedReplay {
        let mut bytes = Vec::with_capacity(self.length);
        for piece in &self.pieces {
            bytes.extend_from_slice(piece);
        }
        bytes.extend_from_slice(&self.tail[self.tail_start..]);
        SavedReplay {
            start: self.start,
            bytes,
        }
    }

    /// What was saved.
    #[must_use]
    pub fn restore(saved: &SavedReplay) -> Self {
        let mut replay = Self::new(saved.start);
        replay.append(&saved.bytes);
        replay
    }

    /// These are a whole piece, of which what was forgotten of the tail is no part.
    fn seal(&mut self, whole: &[u8]) {
        let mut buffer = Buffer::new();
        buffer.whole()[..PIECE].copy_from_slice(whole);
        let mut piece = buffer.into_bytes(PIECE);
        piece.advance(std::mem::take(&mut self.tail_start));
        self.pieces.push_back(piece);
    }
}

/// Bytes as they are written down.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedReplay {
    start: u64,
    bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Spread;

    #[test]
    fn it_is_a_window_on_the_stream_whatever_is_appended_and_forgotten() {
        let mut spread = Spread::new(7);
        let byte = |offset: u64| (offset % 251) as u8;
        let mut replay = Replay::new(1000);
        for _ in 0..3000 {
            let count = spread.next() % [3, 500, 40_000][(spread.next() % 3) as usize];
            let end = replay.end();
            let bytes: Vec<u8> = (end..end + count).map(byte).collect();
            replay.append(&bytes);
            let to = replay.start() + spread.next() % (replay.len() as u64 + 1);
            replay.forget(to);
            assert_eq!((replay.start(), replay.end()), (to, end + count));
            let mut at = to;
            while at < replay.end() {
                let run = replay.run(at);
                if let Some(shared) = replay.shared(at) {
                    assert_eq!(shared, run);
                }
                assert!(
                    !run.is_empty()
                        && run[0] == byte(at)
                        && run[run.len() - 1] == byte(at + run.len() as u64 - 1)
                );
                at += run.len() as u64;
            }
            assert!(replay.run(at).is_empty());
            let saved = replay.save();
            assert_eq!(saved.bytes.len(), replay.len());
            assert!(
                saved
                    .bytes
                    .iter()
                    .zip(to..)
                    .all(|(got, offset)| *got == byte(offset))
            );
            assert_eq!(Replay::restore(&saved).save(), saved);
        }
    }
}
