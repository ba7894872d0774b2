//! For tests: damage to the journal's memory.

use super::header::HEADER_LEN;
use super::replay::Remains;

/// One bit that was flipped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flip {
    what: &'static str,
    offset: usize,
    bit: u8,
}

impl Remains {
    /// Flips a bit in the header, in the first segments of the log, or in the part of the checkpoint that is used.
    /// `choose(limit)` gives a number below `limit`.
    pub(crate) fn flip_a_bit(&self, mut choose: impl FnMut(usize) -> usize) -> Flip {
        let (what, offset) = match choose(4) {
            0 => ("header", choose(HEADER_LEN)),
            1 => ("table", choose(128 * 96)),
            2 => ("arena", super::checkpoint::ARENA as usize + choose(64 << 10)),
            _ => ("log", HEADER_LEN + choose(1 << 20)),
        };
        let flip = Flip {
            what,
            offset,
            bit: 1 << choose(8),
        };
        self.undo(&flip);
        flip
    }

    /// Flips it back.
    #[expect(unsafe_code, reason = "writes into mapped memory")]
    pub(crate) fn undo(&self, flip: &Flip) {
        let region = if matches!(flip.what, "header" | "log") {
            self.log
        } else {
            self.checkpoints
        };
        // SAFETY: in the mapping; the test looks at nothing of it meanwhile.
        unsafe { *region.at(flip.offset, 1) ^= flip.bit };
    }
}
