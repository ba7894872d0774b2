//! Match rules whose texts lie in the state that the worker began with get memory of their own, some in each turn: in the
//! beginning, while everybody waits, that would take long.

use super::Worker;
use crate::os::memfd::SharedMapping;

/// Rules that are settled in a turn: a quarter of a millisecond, where they are long.
const RULES: usize = 256;
/// Bytes of the state that are given back in a turn.
const BYTES: usize = 4 << 20;

/// What of the state is still in memory.
#[derive(Default)]
pub(super) struct Settling {
    image: Option<SharedMapping>,
    /// So much of it is given back.
    forgotten: usize,
}

impl Worker {
    /// The rules' texts lie in this image.
    pub(crate) fn settle_from(&mut self, image: SharedMapping) {
        self.settling = Settling {
            image: Some(image),
            forgotten: 0,
        };
    }

    /// Goes on with that. True: there is more.
    pub(super) fn settle(&mut self) -> bool {
        if !self.broker.is_settled() {
            self.broker.settle_rules(RULES);
            return true;
        }
        let Settling { image, forgotten } = &mut self.settling;
        let Some(SharedMapping(mapping)) = image else {
            return false;
        };
        let to = *forgotten + BYTES;
        mapping.forget(*forgotten, to);
        *forgotten = to;
        if to < mapping.len() {
            return true;
        }
        *image = None;
        false
    }
}
