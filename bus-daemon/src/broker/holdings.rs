//! Which names each peer has, in the order in which it came by them.

use std::sync::Arc;

use super::event::PeerId;
use super::per_peer::PerPeer;

/// Where a name stands in one of a peer's lists. Later ones are greater.
pub(super) type Place = u64;

/// The place of a queued name that is not in its peer's list yet: only so while the table is restored.
pub(super) const UNPLACED: Place = Place::MAX;

/// The names of each peer. The [`NameTable`](super::NameTable) keeps each name's place with the name, so that a name is
/// taken out without a search.
#[derive(Debug)]
pub(super) struct Holdings {
    lists: PerPeer<Lists>,
    next: Place,
}

#[derive(Debug, Default)]
struct Lists {
    /// Names that the peer owns or waits for, in the order of its requests.
    held: List,
    /// Names that the peer is the primary owner of, in the order in which they became its own.
    owned: List,
}

/// Names in the order of their places.
#[derive(Debug, Default)]
struct List {
    /// Ascending places. What was taken out leaves a gap; fewer than half are gaps, and the last is none.
    names: Vec<(Place, Option<Arc<str>>)>,
    len: usize,
    /// As a checkpoint is restored they come in any order: to be [sorted](Self::sort).
    is_unsorted: bool,
}

impl List {
    /// Adds one behind all others.
    fn push(&mut self, place: Place, name: &Arc<str>) {
        self.is_unsorted |= self.names.last().is_some_and(|(last, _)| *last >= place);
        self.names.push((place, Some(name.clone())));
        self.len += 1;
    }

    fn find(&self, place: Place) -> Option<usize> {
        let (first, last) = (self.names.first()?.0, self.names.last()?.0);
        // As a rule places are evenly spread.
        let (ahead, spread) = (
            place.checked_sub(first)?,
            last.checked_sub(place)? + place - first,
        );
        let guess = (ahead as u128 * (self.names.len() - 1) as u128)
            .checked_div(spread.into())
            .unwrap_or(0) as usize;
        if self.names.get(guess).is_some_and(|(other, _)| *other == place) {
            return Some(guess);
        }
        self.names.binary_search_by_key(&place, |(other, _)| *other).ok()
    }

    fn get(&self, place: Place) -> Option<&Arc<str>> {
        self.names[self.find(place)?].1.as_ref()
    }

    fn remove(&mut self, place: Place) {
        let found = self.find(place);
        if found.and_then(|at| self.names[at].1.take()).is_none() {
            return;
        }
        self.len -= 1;
        while self.names.pop_if(|(_, name)| name.is_none()).is_some() {}
        if self.names.len() > 2 * self.len {
            self.names.retain(|(_, name)| name.is_some());
        }
        if self.names.capacity() > 4 * self.names.len() + 16 {
            self.names.shrink_to(2 * self.names.len());
        }
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<str>> {
        self.names.iter().filter_map(|(_, name)| name.as_ref())
    }

    /// Where two have the same place, one is taken out and told of.
    fn sort(&mut self, mut twice: impl FnMut(Place, Arc<str>)) {
        if !std::mem::take(&mut self.is_unsorted) {
            return;
        }
        self.names.sort_by_key(|(place, _)| *place);
        self.names.dedup_by(|(place, name), (before, _)| {
            let is_same = *place == *before;
            if is_same && let Some(name) = name.take() {
                twice(*place, name);
            }
            is_same
        });
        self.len = self.names.len();
    }
}

impl Holdings {
    pub(super) fn new() -> Self {
        Self {
            lists: PerPeer::new(),
            next: 0,
        }
    }

    /// The peer is in the queue of a name from now on.
    pub(super) fn hold(&mut self, peer: PeerId, name: &Arc<str>) -> Place {
        let place = self.next_place();
        self.lists_of(peer).held.push(place, name);
        place
    }

    /// The peer is in the queue of a name, in this place of its list. False, and it is not, if there is no such place. Others
    /// may have it, too, until the lists are [sorted](Self::sort).
    pub(super) fn hold_at(&mut self, peer: PeerId, name: &Arc<str>, place: Place) -> bool {
        // No counter gets this far; beyond, counting could overflow.
        if place >= UNPLACED / 2 {
            return false;
        }
        self.lists_of(peer).held.push(place, name);
        self.next = self.next.max(place + 1);
        true
    }

    /// The peer will have so many names.
    pub(super) fn reserve(&mut self, peer: PeerId, count: usize) {
        self.lists_of(peer).held.names.reserve(count);
    }

    /// Puts the lists in order. What has another's place is not in a list any more: whose it was, and its name.
    pub(super) fn sort(&mut self) -> Vec<(PeerId, Arc<str>)> {
        let mut twice = Vec::new();
        for (peer, lists) in self.lists.iter_mut() {
            lists.held.sort(|_, name| twice.push((peer, name)));
        }
        twice
    }

    /// The peer is not in the queue any more.
    pub(super) fn let_go(&mut self, peer: PeerId, held_at: Place) {
        if let Some(lists) = self.lists.get_mut(peer) {
            lists.held.remove(held_at);
        }
    }

    /// The peer is the primary owner of a name from now on.
    pub(super) fn own(&mut self, peer: PeerId, name: &Arc<str>) -> Place {
        let place = self.next_place();
        self.lists_of(peer).owned.push(place, name);
        place
    }

    /// The peer is not the primary owner any more.
    pub(super) fn disown(&mut self, peer: PeerId, owned_at: Place) {
        if let Some(lists) = self.lists.get_mut(peer) {
            lists.owned.remove(owned_at);
        }
    }

    /// Names that a peer owns or waits for, in the order of its requests.
    pub(super) fn held(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        let lists = self.lists.get(peer).into_iter();
        lists.flat_map(|lists| lists.held.iter())
    }

    /// The last of those.
    pub(super) fn newest(&self, peer: PeerId) -> Option<&Arc<str>> {
        self.lists.get(peer)?.held.iter().next_back()
    }

    /// How many those are.
    pub(super) fn held_count(&self, peer: PeerId) -> usize {
        self.lists.get(peer).map_or(0, |lists| lists.held.len)
    }

    /// Names that a peer is the primary owner of, in the order in which they became its own.
    pub(super) fn owned(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        let lists = self.lists.get(peer).into_iter();
        lists.flat_map(|lists| lists.owned.iter())
    }

    /// How many those are.
    pub(super) fn owned_count(&self, peer: PeerId) -> usize {
        self.lists.get(peer).map_or(0, |lists| lists.owned.len)
    }

    /// The name in a place of the list of held names, for comparison.
    pub(super) fn held_at(&self, peer: PeerId, place: Place) -> Option<&Arc<str>> {
        self.lists.get(peer)?.held.get(place)
    }

    /// The name in a place of the list of owned names, for comparison.
    pub(super) fn owned_at(&self, peer: PeerId, place: Place) -> Option<&Arc<str>> {
        self.lists.get(peer)?.owned.get(place)
    }

    /// How many names are in all lists: held, and owned.
    pub(super) fn totals(&self) -> (usize, usize) {
        let counts = self.lists.iter();
        counts.fold((0, 0), |(held, owned), (_, lists)| {
            (held + lists.held.len, owned + lists.owned.len)
        })
    }

    fn lists_of(&mut self, peer: PeerId) -> &mut Lists {
        self.lists.get_or_insert_with(peer, Lists::default)
    }

    fn next_place(&mut self) -> Place {
        let place = self.next;
        self.next += 1;
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a table with the places as its keys has it, however many come and go.
    #[test]
    fn a_list_is_in_the_order_of_its_places() {
        let mut seed = 7_u64;
        let mut below = |limit: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % limit
        };
        let (mut list, mut plain) = (
            List::default(),
            std::collections::BTreeMap::<Place, Arc<str>>::new(),
        );
        let mut next = 0;
        for round in 0..20_000 {
            let is_growing = round / 2_000 % 2 == 0;
            if below(10) < if is_growing { 7 } else { 2 } {
                // Evenly spread, or not.
                next += 1 + below(if round < 10_000 { 1 } else { 50 });
                let name: Arc<str> = next.to_string().into();
                list.push(next, &name);
                plain.insert(next, name);
            } else {
                let place = below(next + 2);
                assert_eq!(list.get(place), plain.get(&place));
                let place = *plain.range(place..).next().map_or(&place, |(place, _)| place);
                list.remove(place);
                plain.remove(&place);
                assert_eq!(list.get(place), None);
            }
            assert_eq!(list.len, plain.len());
            assert_eq!(list.iter().next_back(), plain.values().next_back());
            assert!(list.names.len() <= 2 * list.len.max(1));
            if round % 100 == 0 {
                assert!(list.iter().eq(plain.values()));
            }
        }
    }

    #[test]
    fn of_two_with_the_same_place_one_is_told_of() {
        let peer = PeerId {
            index: 3,
            generation: 1,
        };
        let mut holdings = Holdings::new();
        for (name, place) in [("c", 7), ("a", 2), ("b", 7), ("d", 4)] {
            assert!(holdings.hold_at(peer, &name.into(), place));
        }
        assert!(!holdings.hold_at(peer, &"e".into(), UNPLACED));
        assert_eq!(holdings.sort(), [(peer, "b".into())]);
        assert!(holdings.held(peer).map(|name| &**name).eq(["a", "d", "c"]));
        assert_eq!(holdings.hold(peer, &"b".into()), 8);
        assert_eq!(holdings.newest(peer).map(|name| &**name), Some("b"));
        assert_eq!(holdings.held_count(peer), 4);
    }
}
