//! Which names each peer has, in the order in which it came by them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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
    held: BTreeMap<Place, Arc<str>>,
    /// Names that the peer is the primary owner of, in the order in which they became its own.
    owned: BTreeMap<Place, Arc<str>>,
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
        self.lists_of(peer).held.insert(place, name.clone());
        place
    }

    /// The peer is in the queue of a name, in this place of its list. False, and it is not, if there is another, or no such
    /// place.
    pub(super) fn hold_at(&mut self, peer: PeerId, name: &Arc<str>, place: Place) -> bool {
        // No counter gets this far; beyond, counting could overflow.
        if place >= UNPLACED / 2 {
            return false;
        }
        match self.lists_of(peer).held.entry(place) {
            Entry::Vacant(vacant) => {
                vacant.insert(name.clone());
                self.next = self.next.max(place + 1);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// The peer is not in the queue any more.
    pub(super) fn let_go(&mut self, peer: PeerId, held_at: Place) {
        if let Some(lists) = self.lists.get_mut(peer) {
            lists.held.remove(&held_at);
        }
    }

    /// The peer is the primary owner of a name from now on.
    pub(super) fn own(&mut self, peer: PeerId, name: &Arc<str>) -> Place {
        let place = self.next_place();
        self.lists_of(peer).owned.insert(place, name.clone());
        place
    }

    /// The peer is not the primary owner any more.
    pub(super) fn disown(&mut self, peer: PeerId, owned_at: Place) {
        if let Some(lists) = self.lists.get_mut(peer) {
            lists.owned.remove(&owned_at);
        }
    }

    /// Names that a peer owns or waits for, in the order of its requests.
    pub(super) fn held(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        let lists = self.lists.get(peer).into_iter();
        lists.flat_map(|lists| lists.held.values())
    }

    /// The last of those.
    pub(super) fn newest(&self, peer: PeerId) -> Option<&Arc<str>> {
        self.lists.get(peer)?.held.values().next_back()
    }

    /// How many those are.
    pub(super) fn held_count(&self, peer: PeerId) -> usize {
        self.lists.get(peer).map_or(0, |lists| lists.held.len())
    }

    /// Names that a peer is the primary owner of, in the order in which they became its own.
    pub(super) fn owned(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        let lists = self.lists.get(peer).into_iter();
        lists.flat_map(|lists| lists.owned.values())
    }

    /// How many those are.
    pub(super) fn owned_count(&self, peer: PeerId) -> usize {
        self.lists.get(peer).map_or(0, |lists| lists.owned.len())
    }

    /// The name in a place of the list of held names, for comparison.
    pub(super) fn held_at(&self, peer: PeerId, place: Place) -> Option<&Arc<str>> {
        self.lists.get(peer)?.held.get(&place)
    }

    /// The name in a place of the list of owned names, for comparison.
    pub(super) fn owned_at(&self, peer: PeerId, place: Place) -> Option<&Arc<str>> {
        self.lists.get(peer)?.owned.get(&place)
    }

    /// How many names are in all lists: held, and owned.
    pub(super) fn totals(&self) -> (usize, usize) {
        let counts = self.lists.iter();
        counts.fold((0, 0), |(held, owned), (_, lists)| {
            (held + lists.held.len(), owned + lists.owned.len())
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
