//! What goes out on one carrier: many small things gathered, large ones as they lie in memory.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

/// What is shorter than this is copied, and goes out in one piece with what stands beside it.
const SHORT: usize = 2048;
/// Pieces that are handed over at once.
pub(super) const SLICES: usize = 16;

/// Bytes in the order in which they are written.
#[derive(Debug, Default)]
pub(super) struct Out {
    pieces: VecDeque<Bytes>,
    /// Behind all pieces.
    gathered: Vec<u8>,
    length: usize,
}

impl Out {
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn copy(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        self.gathered.extend_from_slice(bytes);
    }

    pub(super) fn share(&mut self, bytes: Bytes) {
        if bytes.len() < SHORT {
            return self.copy(&bytes);
        }
        self.seal();
        self.length += bytes.len();
        self.pieces.push_back(bytes);
    }

    /// What comes first, as far as it goes in one call.
    pub(super) fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        self.seal();
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// All of it in one piece, for what takes only one at a time.
    pub(super) fn flatten(&mut self) -> &[u8] {
        self.seal();
        if self.pieces.len() > 1 {
            let mut all = Vec::with_capacity(self.length);
            self.pieces
                .drain(..)
                .for_each(|piece| all.extend_from_slice(&piece));
            self.pieces.push_back(all.into());
        }
        self.pieces.front().map_or(&[], Bytes::as_ref)
    }

    /// So many are written. With nothing left nothing is held.
    pub(super) fn advance(&mut self, mut count: usize) {
        self.length -= count;
        if self.length == 0 {
            *self = Self::default();
            return;
        }
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > count {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }

    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.gathered).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_out_in_order_however_it_is_taken() {
        let mut out = Out::default();
        let mut expected = Vec::new();
        let mut written = Vec::new();
        for round in 0..500_usize {
            let bytes = vec![(round % 251) as u8; [3, 12, 16_372, SHORT, 700][round % 5]];
            expected.extend_from_slice(&bytes);
            if round % 2 == 0 {
                out.copy(&bytes);
            } else {
                out.share(bytes.into());
            }
            let count = match round % 3 {
                0 => continue,
                1 => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = out.slices(&mut slices);
                    let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                    let part = all.len() * 2 / 3;
                    written.extend_from_slice(&all[..part]);
                    part
                }
                _ => {
                    let all = out.flatten();
                    let part = all.len() / 2 + 1;
                    written.extend_from_slice(&all[..part]);
                    part
                }
            };
            out.advance(count);
            assert_eq!(out.len(), expected.len() - written.len());
        }
        written.extend_from_slice(out.flatten());
        assert_eq!(written, expected);
        out.advance(out.len());
        assert_eq!(
            (out.len(), out.pieces.capacity(), out.gathered.capacity()),
            (0, 0, 0)
        );
    }
}
