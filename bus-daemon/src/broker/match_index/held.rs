//! The rules of one peer, in the order in which they were added, repeated ones included.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use super::{Held, RuleId};

/// So many are searched one by one; from there on it is known where each is.
const FEW: usize = 32;

/// A list from which any rule can be removed at once, however many there are.
#[derive(Debug, Default)]
pub(super) struct HeldRules {
    /// What was removed leaves a gap. Fewer than half of the places are gaps.
    list: SmallVec<[Option<Held>; 2]>,
    len: usize,
    /// Places in the list by the rule, ascending. `None`: they are few.
    places: Option<HashMap<RuleId, Places, FixedState>>,
}

/// Where a rule is: nearly always the peer has it once.
#[derive(Debug)]
enum Places {
    One(u32),
    /// Ascending. Never empty, but in passing.
    Many(VecDeque<u32>),
}

impl Places {
    fn push(&mut self, place: u32) {
        match self {
            Self::One(first) => *self = Self::Many(VecDeque::from([*first, place])),
            Self::Many(places) => places.push_back(place),
        }
    }

    /// Takes the first out; whether it was the only one.
    fn take_first(&mut self) -> Option<(u32, bool)> {
        match self {
            Self::One(place) => Some((*place, true)),
            Self::Many(places) => places.pop_front().map(|place| (place, places.is_empty())),
        }
    }

    /// Takes the last out; true if it was the only one.
    fn drop_last(&mut self) -> bool {
        match self {
            Self::One(_) => true,
            Self::Many(places) => {
                places.pop_back();
                places.is_empty()
            }
        }
    }
}

fn note_place(places: &mut HashMap<RuleId, Places, FixedState>, id: RuleId, place: u32) {
    match places.entry(id) {
        Entry::Occupied(mut of_rule) => of_rule.get_mut().push(place),
        Entry::Vacant(vacant) => {
            vacant.insert(Places::One(place));
        }
    }
}

impl HeldRules {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Held> {
        self.list.iter().flatten().copied()
    }

    /// In order, to be changed: the numbers only.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.list.iter_mut().flatten()
    }

    /// There will be so many more.
    pub(super) fn reserve(&mut self, count: usize, hasher: &FixedState) {
        self.list.reserve(count);
        if self.len + count > FEW {
            if self.places.is_none() {
                self.find_places(hasher);
            }
            if let Some(places) = &mut self.places {
                places.reserve(count);
            }
        }
    }

    /// Adds one behind the others.
    pub(super) fn push(&mut self, held: Held, hasher: &FixedState) {
        let place = self.list.len() as u32;
        self.list.push(Some(held));
        self.len += 1;
        match &mut self.places {
            Some(places) => note_place(places, held.id, place),
            None if self.len > FEW => self.find_places(hasher),
            None => {}
        }
    }

    /// Removes the first that is this rule.
    pub(super) fn remove(&mut self, id: RuleId) -> Option<Held> {
        let place = match &mut self.places {
            None => self
                .list
                .iter()
                .position(|held| held.is_some_and(|held| held.id == id))?,
            Some(places) => {
                let (place, is_only) = places.get_mut(&id)?.take_first()?;
                if is_only {
                    places.remove(&id);
                }
                place as usize
            }
        };
        let held = self.list.get_mut(place)?.take()?;
        self.len -= 1;
        self.close_gaps();
        Some(held)
    }

    /// Removes the last.
    pub(super) fn pop(&mut self) -> Option<Held> {
        let held = loop {
            if let Some(held) = self.list.pop()? {
                break held;
            }
        };
        self.len -= 1;
        if let Some(places) = &mut self.places
            && places.get_mut(&held.id).is_some_and(Places::drop_last)
        {
            places.remove(&held.id);
        }
        self.close_gaps();
        Some(held)
    }

    fn close_gaps(&mut self) {
        if self.list.len() > 2 * self.len {
            self.list.retain(|held| held.is_some());
            self.places_anew();
        }
    }

    fn places_anew(&mut self) {
        if let Some(places) = self.places.take()
            && self.len > FEW
        {
            self.find_places(places.hasher());
        }
    }

    fn find_places(&mut self, hasher: &FixedState) {
        let mut places = HashMap::with_capacity_and_hasher(self.len, hasher.clone());
        for (place, held) in self.list.iter().enumerate() {
            if let Some(held) = held {
                note_place(&mut places, held.id, place as u32);
            }
        }
        self.places = Some(places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a plain list does it, with many and few, equal and different ones.
    #[test]
    fn the_first_that_is_equal_goes_and_the_order_stays() {
        let hasher = FixedState::with_seed(1);
        let mut seed = 7_u64;
        let mut below = |limit: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % limit
        };
        let (mut rules, mut plain) = (HeldRules::default(), Vec::<(RuleId, u32)>::new());
        for number in 0..20_000 {
            // It grows to hundreds, and shrinks to nothing.
            let is_growing = number / 2_000 % 2 == 0;
            let id = below(100) as RuleId;
            if below(10) < if is_growing { 7 } else { 2 } {
                rules.push(Held { id, number }, &hasher);
                plain.push((id, number));
            } else {
                let place = plain.iter().position(|(other, _)| *other == id);
                let expected = place.map(|place| plain.remove(place));
                let removed = rules.remove(id).map(|held| (held.id, held.number));
                assert_eq!(removed, expected);
            }
            if below(20) == 0 {
                let last = rules.pop().map(|held| (held.id, held.number));
                assert_eq!(last, plain.pop());
            }
            assert_eq!(rules.len(), plain.len());
            if number % 50 == 0 {
                assert!(
                    rules
                        .iter()
                        .map(|held| (held.id, held.number))
                        .eq(plain.iter().copied())
                );
            }
        }
    }
}
