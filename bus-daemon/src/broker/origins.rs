//! Whose messages wait in a queue.

use std::collections::VecDeque;

use super::event::PeerId;
use super::invariants::Violation;

/// Runs at most: what many senders queue in turn is then nobody's in particular.
const MOST: usize = 4096;

/// Of a queue that has become long: who sent which part of it, in order. It only advises on whom to hold back when memory
/// is short: it is not saved, and begins anew after a restart.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    /// The absolute offset at which the first run begins.
    from: u64,
    /// Where each run ends, and whose it is.
    runs: VecDeque<(u64, PeerId)>,
}

impl Origins {
    /// Whether nothing is known of the queue.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes from one absolute offset, at which the last run ends, to another.
    pub(super) fn push(&mut self, from: u64, upto: u64, sender: PeerId) {
        let is_full = self.runs.len() >= MOST;
        match self.runs.back_mut() {
            None => {
                self.from = from;
                self.runs.push_back((upto, sender));
            }
            Some((end, last)) if *last == sender || is_full => *end = upto,
            Some(_) => self.runs.push_back((upto, sender)),
        }
    }

    /// What comes before this offset was sent: `gone` is told whose how much of it was.
    pub(super) fn drain(&mut self, upto: u64, mut gone: impl FnMut(PeerId, u64)) {
        while let Some((end, sender)) = self.runs.front().copied() {
            let until = end.min(upto);
            if until > self.from {
                gone(sender, until - self.from);
                self.from = until;
            }
            if end > upto {
                return;
            }
            self.runs.pop_front();
        }
        self.runs = VecDeque::new();
    }

    /// Whose how many bytes are.
    pub(super) fn runs(&self) -> impl Iterator<Item = (PeerId, u64)> {
        let mut from = self.from;
        self.runs.iter().map(move |(end, sender)| {
            let bytes = end - from;
            from = *end;
            (*sender, bytes)
        })
    }

    /// The runs are those of a queue that was sent up to one offset, and ends at the other.
    pub(super) fn check(&self, sent: u64, end: u64) -> Result<(), Violation> {
        let last = self.runs.back().map_or(end, |(end, _)| *end);
        if !self.is_empty() && (self.from < sent || last != end) {
            let text = format!("whose {sent}..{end} is, is known of {}..{last}", self.from);
            return Err(Violation::new(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(index: u32) -> PeerId {
        PeerId { index, generation: 1 }
    }

    #[test]
    fn each_byte_is_somebodys_until_it_is_sent() {
        let mut origins = Origins::default();
        origins.push(100, 200, peer(1));
        origins.push(200, 250, peer(1));
        origins.push(250, 300, peer(2));
        origins.push(300, 310, peer(1));
        let runs: Vec<_> = origins.runs().collect();
        assert_eq!(runs, [(peer(1), 150), (peer(2), 50), (peer(1), 10)]);
        let mut gone = Vec::new();
        for upto in [50, 120, 260, 260, 400] {
            origins.drain(upto, |sender, bytes| gone.push((sender.index, bytes)));
        }
        assert_eq!(gone, [(1, 20), (1, 130), (2, 10), (2, 40), (1, 10)]);
        assert!(origins.is_empty());
    }

    #[test]
    fn many_senders_in_turn_are_remembered_up_to_a_bound() {
        let mut origins = Origins::default();
        for n in 0..10_000 {
            origins.push(n, n + 1, peer(n as u32 % 2));
        }
        assert_eq!(origins.runs().count(), MOST);
        let mut gone = 0;
        origins.drain(u64::MAX, |_, bytes| gone += bytes);
        assert_eq!(gone, 10_000);
    }
}
