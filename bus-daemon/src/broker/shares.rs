//! Whose bytes wait for a receiver, and what is a fair share of its queue: `docs/fair-shares.md`.
//!
//! Nothing is counted as long as little waits, which is the common case. From [`counted_from`] on each message is put into
//! the *cell* of a [`Party`]. The receiver and all peers of its user are together one *side*, each other user is one of
//! its own: how many connections a user has makes no difference to another one. What the receiver takes is shared equally by
//! the sides, and within a side by its cells, as if it served them in turn: so no order of bytes has to be remembered, and
//! one who sent little is soon without a cell again however much others sent before.

use smallvec::SmallVec;

use super::event::PeerId;
use super::invariants::Violation;
use super::liveness::LIVE_RATE;

/// A queue that is not longer is nobody's in particular; or else an eighth of its limit.
const UNCOUNTED: u64 = 16 * 1024;
/// So many peers of the receiver's user have cells of their own, gone ones among them as long as something of theirs waits.
const PEERS: usize = 64;
/// Nobody waits longer for one message, in microseconds.
const LONGEST_READING: u64 = 60_000_000;

/// Who makes bytes wait for a receiver. Those of the receiver's own side come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// The receiver: with replies that it awaits, with what the driver tells it, with copies that it asked for as a monitor
    /// or an eavesdropper.
    Own,
    /// A peer of the receiver's own user.
    Peer(PeerId),
    /// All other peers of that user, where more than [`PEERS`] have something there.
    Peers,
    /// Another user; `None`: those of whom no uid is known.
    User(Option<u32>),
}

/// From which length on it is counted whose a queue with this limit is.
#[inline]
pub(super) fn counted_from(limit: u64) -> u64 {
    (limit / 8).min(UNCOUNTED)
}

impl Party {
    /// Whether it is of the receiver's own side.
    fn is_own_side(self) -> bool {
        match self {
            Self::Own | Self::Peer(_) | Self::Peers => true,
            Self::User(_) => false,
        }
    }
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

    /// In whose cell a party's bytes are, or come: its own, or that of all other peers.
    pub(super) fn holder(&self, party: Party) -> Party {
        match party {
            Party::Peer(_) if self.of(party) == 0 && self.peers() >= PEERS => Party::Peers,
            Party::Own | Party::Peer(_) | Party::Peers | Party::User(_) => party,
        }
    }

    /// How many peers have cells of their own.
    fn peers(&self) -> usize {
        let is_peer = |party: Party| matches!(party, Party::Peer(_));
        // Cells are sorted: there is at most one before them, and one behind them on their side.
        let side = &self.cells[..self.own_side()];
        let ends = [side.first(), side.last().filter(|_| side.len() > 1)];
        let strangers = ends.into_iter().flatten().filter(|(party, _)| !is_peer(*party));
        side.len() - strangers.count()
    }

    /// What of it is a party's.
    pub(super) fn of(&self, party: Party) -> u64 {
        let place = self.cells.binary_search_by_key(&party, |(party, _)| *party);
        place
            .ok()
            .and_then(|place| self.cells.get(place))
            .map_or(0, |(_, bytes)| *bytes)
    }

    /// Of how many parts of what the receiver takes a party has one, if each side has as much as another, and within a side
    /// each party.
    pub(super) fn parts_with(&self, party: Party) -> u64 {
        let (sides, parties) = self.divided_with(party);
        sides * parties
    }

    /// How many sides there are, and parties on that of `party`, it among them.
    fn divided_with(&self, party: Party) -> (u64, u64) {
        let own = self.own_side() as u64;
        let others = self.cells.len() as u64 - own;
        let new = u64::from(self.of(party) == 0);
        if party.is_own_side() {
            (others + 1, own + new)
        } else {
            (others + new + u64::from(own > 0), 1)
        }
    }

    /// How many cells are of the receiver's own side: the first ones.
    fn own_side(&self) -> usize {
        self.cells.partition_point(|(party, _)| party.is_own_side())
    }

    /// Whether a message of a party leaves room for as much of each of the others, and of one more: of what is not others'
    /// now a party has at most one part, of one part more than there are parties. Who is of the receiver's own side shares
    /// that side's part in this way, and each other user all. `free` is what the receiver's limit leaves.
    pub(super) fn is_within_share(&self, party: Party, message: u64, free: u64) -> bool {
        let cell = self.of(party);
        let (sides, parties) = self.divided_with(party);
        let whole = cell.saturating_add(message);
        if !party.is_own_side() {
            return (sides + 1).saturating_mul(whole) - cell <= free;
        }
        let side: u64 = self.cells[..self.own_side()]
            .iter()
            .map(|(_, bytes)| *bytes)
            .sum();
        let wanted = (parties + 1).saturating_mul(whole).saturating_add(side - cell);
        sides.saturating_mul(wanted) <= free.saturating_add(side)
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

    /// Of a queue of so many bytes so many were taken. First those that are nobody's; the others of all sides equally, and of
    /// the receiver's own side of all its parties.
    pub(super) fn drain(&mut self, queued: u64, taken: u64) {
        if taken >= queued {
            return self.clear();
        }
        let uncounted = queued.saturating_sub(self.sum);
        let counted = taken.saturating_sub(uncounted).min(self.sum);
        self.sum -= counted;
        let own = self.own_side();
        let (side, others) = self.cells.split_at_mut(own);
        let before: u64 = side.iter().map(|(_, bytes)| *bytes).sum();
        let mut after = before;
        take_equally(&mut after, others, counted);
        take_equally(&mut 0, side, before - after);
        self.cells.retain(|(_, bytes)| *bytes > 0);
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// As they were saved (with more peers than have cells of their own now, perhaps), for a queue of so many bytes. `None`: they cannot be its.
    pub(super) fn restore(cells: Vec<(Party, u64)>, queued: u64) -> Option<Self> {
        let sum = cells
            .iter()
            .try_fold(0_u64, |sum, (_, bytes)| sum.checked_add(*bytes))?;
        let is_possible = sum <= queued
            && cells.is_sorted_by(|(one, _), (other, _)| one < other)
            && cells.iter().all(|(_, bytes)| *bytes > 0);
        if !is_possible {
            return None;
        }
        let mut restored = Self::default();
        for (party, bytes) in cells {
            restored.add(restored.holder(party), bytes);
        }
        Some(restored)
    }

    /// They are those of a queue of so many bytes.
    pub(super) fn check(&self, queued: u64) -> Result<(), Violation> {
        let is_sorted = self.cells.is_sorted_by(|(one, _), (other, _)| one < other);
        let sum: u64 = self.cells.iter().map(|(_, bytes)| *bytes).sum();
        let is_whole = sum == self.sum && sum <= queued && self.cells.iter().all(|(_, bytes)| *bytes > 0);
        if is_sorted && is_whole && self.peers() <= PEERS {
            Ok(())
        } else {
            Err(Violation::new(format!(
                "{self:?} are the cells of a queue of {queued}"
            )))
        }
    }
}

/// Takes so many bytes of `first` and of all cells, of each as many as of another while it has any, and what cannot be shared of
/// the first ones. There are so many.
fn take_equally(first: &mut u64, cells: &mut [(Party, u64)], rest: u64) {
    let mut sizes: SmallVec<[u64; 16]> = cells.iter().map(|(_, bytes)| *bytes).collect();
    sizes.push(*first);
    sizes.sort_unstable();
    // How much of each, at the most: who has less gives all it has, and the others share what is missing then.
    let (mut missing, mut each, mut single) = (rest, u64::MAX, 0);
    for (place, size) in sizes.iter().enumerate() {
        let left = (sizes.len() - place) as u64;
        if *size > missing / left {
            (each, single) = (missing / left, missing % left);
            break;
        }
        missing -= size;
    }
    for bytes in std::iter::once(first).chain(cells.iter_mut().map(|(_, bytes)| bytes)) {
        let has_more = *bytes > each && single > 0;
        single -= u64::from(has_more);
        *bytes -= each.saturating_add(u64::from(has_more)).min(*bytes);
    }
}

/// Microseconds in which a live receiver reads this many bytes, if of so many parts that it reads one is of them, at the
/// least; a minute at the most.
pub(super) fn reading_time(bytes: u64, parts: u64) -> u64 {
    let of_all = u128::from(bytes).saturating_mul(u128::from(parts) * 1000) / u128::from(LIVE_RATE);
    u64::try_from(of_all).map_or(LONGEST_READING, |time| time.min(LONGEST_READING))
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
        assert_eq!(cells.parts_with(user(1)), 4);
        assert_eq!(cells.parts_with(Party::Own), 5);
    }

    fn peer(index: u32) -> Party {
        Party::Peer(PeerId { index, generation: 1 })
    }

    /// However many connections the receiver's user has, they are one side.
    #[test]
    fn peers_of_the_receivers_user_share_one_part() {
        let mut cells = Cells::default();
        for index in 0..PEERS as u32 {
            cells.add(peer(index), 100);
        }
        cells.add(Party::Own, 400);
        assert_eq!(cells.parts_with(user(1)), 2);
        assert_eq!(cells.parts_with(peer(7)), 65);
        assert_eq!(cells.parts_with(Party::Peers), 66);
        // (2 + 1) * 1000 = 3000
        assert!(cells.is_within_share(user(1), 1000, 3000));
        assert!(!cells.is_within_share(user(1), 1000, 2999));
        cells.add(user(1), 1000);
        assert_eq!(cells.parts_with(user(1)), 2);
        assert_eq!(cells.parts_with(peer(7)), 130);
        // 2 * ((65 + 1) * (100 + 1) + 6800 - 100) - 6800 = 19,932
        assert!(cells.is_within_share(peer(7), 1, 19_932));
        assert!(!cells.is_within_share(peer(7), 1, 19_931));
        // A half of what is taken is the user's: 132 of 264; of the other half each has two, and the first ones one more.
        cells.drain(7800, 264);
        assert_eq!(cells.of(user(1)), 868);
        assert_eq!(cells.of(Party::Own), 397);
        assert_eq!(
            (cells.of(peer(0)), cells.of(peer(1)), cells.of(peer(63))),
            (97, 98, 98)
        );
        cells.check(7536).unwrap();
        // Once the user has nothing more, all is of the others.
        cells.drain(7536, 1736 + 100);
        assert_eq!(cells.of(user(1)), 0);
        cells.check(5700).unwrap();
        assert_eq!(cells.sum, 5700);
    }

    /// However many peers of its user come and go while a receiver does not read, it has so many cells and no more.
    #[test]
    fn there_are_only_so_many_cells() {
        for with_own in [false, true] {
            let mut cells = Cells::default();
            let mut queued = 0;
            if with_own {
                cells.add(Party::Own, 5);
                queued += 5;
            }
            for index in 0..1000 {
                let holder = cells.holder(peer(index));
                assert_eq!(holder == Party::Peers, index >= 64, "{index}");
                cells.add(holder, 10);
                queued += 10;
                cells.check(queued).unwrap();
            }
            assert_eq!(cells.iter().count(), 65 + usize::from(with_own));
            assert_eq!(cells.of(Party::Peers), 9360);
            assert_eq!(cells.holder(peer(63)), peer(63));
            assert_eq!(cells.holder(Party::Own), Party::Own);
            let saved: Vec<(Party, u64)> = cells.iter().collect();
            assert_eq!(Cells::restore(saved, queued), Some(cells.clone()));
            // What was saved with a cell for each peer is divided as it is now.
            let own = with_own.then_some((Party::Own, 5));
            let each = (0..1000).map(|index| (peer(index), 10));
            assert_eq!(
                Cells::restore(own.into_iter().chain(each).collect(), queued),
                Some(cells)
            );
        }
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
        assert_eq!(reading_time(u64::MAX, u64::MAX), 60_000_000);
        assert_eq!(reading_time(4_194_000, 61), 60_000_000);
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
