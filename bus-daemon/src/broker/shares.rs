//! Whose bytes wait for a receiver, and what is a fair share of its queue: `docs/fair-shares.md`.
//!
//! Nothing is counted as long as little waits, which is the common case. From [`counted_from`] on each message is put into
//! the *cell* of a [`Party`]. What the receiver takes is shared equally by the cells, as if it served the parties in
//! turn: so no order of bytes has to be remembered, and one who sent little is soon without a cell again however much
//! others sent before.

use super::event::PeerId;
use super::invariants::Violation;
use super::liveness::LIVE_RATE;

/// A queue that is not longer is nobody's in particular; or else an eighth of its limit.
const UNCOUNTED: u64 = 16 * 1024;

/// Who makes bytes wait for a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// The receiver: with replies that it awaits, with what the driver tells it, with copies that it asked for as a monitor
    /// or an eavesdropper.
    Own,
    /// A peer of the receiver's own user.
    Peer(PeerId),
    /// Another user; `None`: those of whom no uid is known.
    User(Option<u32>),
}

/// From which length on it is counted whose a queue with this limit is.
#[inline]
pub(super) fn counted_from(limit: u64) -> u64 {
    (limit / 8).min(UNCOUNTED)
}

/// The cells of a receiver: what of its queue is whose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cells {
    /// By party; none is empty.
    cells: Vec<(Party, u64)>,
    /// Of all of them.
    sum: u64,
}

impl Cells {
    /// Whether nothing is known to be anybody's.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// In the order of the parties.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Party, u64)> + '_ {
        self.cells.iter().copied()
    }

    /// What of it is a party's.
    pub(super) fn of(&self, party: Party) -> u64 {
        let place = self.cells.binary_search_by_key(&party, |(party, _)| *party);
        place
            .ok()
            .and_then(|place| self.cells.get(place))
            .map_or(0, |(_, bytes)| *bytes)
    }

    /// How many parties there are, `party` among them.
    pub(super) fn parties_with(&self, party: Party) -> u64 {
        self.cells.len() as u64 + u64::from(self.of(party) == 0)
    }

    /// Whether a message of a party leaves room for as much of each of the others, and of one more: of what is not others'
    /// now a party has at most one part, of one part more than there are parties. `free` is what the receiver's limit leaves.
    pub(super) fn is_within_share(&self, party: Party, message: u64, free: u64) -> bool {
        let cell = self.of(party);
        let wanted = (self.parties_with(party) + 1).saturating_mul(cell.saturating_add(message));
        wanted - cell <= free
    }

    /// A message of a party waits.
    pub(super) fn add(&mut self, party: Party, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.sum += bytes;
        match self.cells.binary_search_by_key(&party, |(party, _)| *party) {
            Ok(place) => self.cells[place].1 += bytes,
            Err(place) => self.cells.insert(place, (party, bytes)),
        }
    }

    /// Of a queue of so many bytes so many were taken. First those that are nobody's; the others of all parties equally.
    pub(super) fn drain(&mut self, queued: u64, taken: u64) {
        if taken >= queued {
            return self.clear();
        }
        let uncounted = queued.saturating_sub(self.sum);
        let mut rest = taken.saturating_sub(uncounted).min(self.sum);
        self.sum -= rest;
        while rest > 0 {
            let each = rest / self.cells.len() as u64;
            // What cannot be shared is of the first ones.
            let mut single = if each == 0 { rest } else { 0 };
            for (_, bytes) in &mut self.cells {
                let part = (each + u64::from(single > 0)).min(*bytes);
                single = single.saturating_sub(1);
                *bytes -= part;
                rest -= part;
            }
            self.cells.retain(|(_, bytes)| *bytes > 0);
        }
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// As they were saved, for a queue of so many bytes. `None`: they cannot be its.
    pub(super) fn restore(cells: Vec<(Party, u64)>, queued: u64) -> Option<Self> {
        let sum = cells
            .iter()
            .try_fold(0_u64, |sum, (_, bytes)| sum.checked_add(*bytes))?;
        let restored = Self { cells, sum };
        restored.check(queued).is_ok().then_some(restored)
    }

    /// They are those of a queue of so many bytes.
    pub(super) fn check(&self, queued: u64) -> Result<(), Violation> {
        let is_sorted = self.cells.is_sorted_by(|(one, _), (other, _)| one < other);
        let sum: u64 = self.cells.iter().map(|(_, bytes)| *bytes).sum();
        let is_whole = sum == self.sum && sum <= queued && self.cells.iter().all(|(_, bytes)| *bytes > 0);
        if is_sorted && is_whole {
            Ok(())
        } else {
            Err(Violation::new(format!(
                "{self:?} are the cells of a queue of {queued}"
            )))
        }
    }
}

/// Microseconds in which a live receiver reads this many bytes of one party among so many, at the least.
pub(super) fn reading_time(bytes: u64, parties: u64) -> u64 {
    let of_all = u128::from(bytes).saturating_mul(u128::from(parties) * 1000) / u128::from(LIVE_RATE);
    u64::try_from(of_all).unwrap_or(u64::MAX >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Party {
        Party::User(Some(uid))
    }

    #[test]
    fn of_k_parties_each_gets_a_part_and_one_is_left() {
        let mut cells = Cells::default();
        let mut queued = 0;
        let limit = 12_000;
        for (uid, share) in [(1, 6000), (2, 2000), (3, 1000), (4, 600)] {
            while cells.is_within_share(user(uid), 100, limit - queued) {
                cells.add(user(uid), 100);
                queued += 100;
            }
            assert_eq!(cells.of(user(uid)), share);
        }
        // Each finds more once another is gone.
        assert!(!cells.is_within_share(user(1), 1, limit - queued));
        assert_eq!(cells.parties_with(user(1)), 4);
        assert_eq!(cells.parties_with(Party::Own), 5);
    }

    #[test]
    fn what_is_taken_is_shared_equally_and_nothing_is_lost() {
        let mut cells = Cells::default();
        for (uid, bytes) in [(1, 1000), (2, 10), (3, 100)] {
            cells.add(user(uid), bytes);
        }
        // 500 bytes before them are nobody's.
        cells.drain(1610, 400);
        assert_eq!(cells.sum, 1110);
        cells.drain(1210, 130);
        let left: Vec<u64> = cells.iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(left, [990, 90]);
        cells.drain(1080, 181);
        let left: Vec<u64> = cells.iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(left, [899]);
        cells.check(899).unwrap();
        cells.drain(899, 899);
        assert!(cells.is_empty());
    }

    #[test]
    fn a_share_is_exact_to_the_byte_and_no_number_is_too_large() {
        let mut cells = Cells::default();
        cells.add(user(1), 100);
        // (1 + 1) * (100 + 50) - 100 = 200
        assert!(cells.is_within_share(user(1), 50, 200));
        assert!(!cells.is_within_share(user(1), 50, 199));
        assert!(!cells.is_within_share(user(1), u64::MAX, u64::MAX >> 1));
        assert!(reading_time(u64::MAX, u64::MAX) > 1 << 50);
        assert_eq!(reading_time(4_194_000, 1), 1_000_000);
        assert_eq!(reading_time(4_194_000, 3), 3_000_000);
    }

    #[test]
    fn cells_that_cannot_be_are_not_restored() {
        let one = (user(1), 5);
        assert!(Cells::restore(vec![one], 5).is_some());
        assert!(Cells::restore(vec![one], 4).is_none());
        assert!(Cells::restore(vec![one, one], 50).is_none());
        assert!(Cells::restore(vec![(user(1), 0)], 50).is_none());
        assert!(Cells::restore(vec![one, (Party::Own, 1)], 50).is_none());
        assert!(Cells::restore(vec![one, (user(2), u64::MAX)], 50).is_none());
    }
}
