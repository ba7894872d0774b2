//! A line in which everybody has a place, which is a number: the smallest is next, and of those at the same place whoever came
//! first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// The place, how many came before, and who it is.
type Entry<T> = (u64, u64, T);

/// The line. Whoever comes to a place behind the last one costs next to nothing: so it is while all have the same.
#[derive(Debug)]
pub(super) struct Line<T> {
    /// In their order.
    ordered: VecDeque<Entry<T>>,
    /// Those who came to a place before the last of these.
    early: BinaryHeap<Reverse<Entry<T>>>,
    come: u64,
}

impl<T> Default for Line<T>
where
    T: Ord,
{
    fn default() -> Self {
        Self {
            ordered: VecDeque::new(),
            early: BinaryHeap::new(),
            come: 0,
        }
    }
}

impl<T: Ord + Copy> Line<T> {
    /// Adds somebody at this place, behind those who have it already.
    pub(super) fn add(&mut self, place: u64, item: T) {
        self.come += 1;
        let entry = (place, self.come, item);
        match self.ordered.back() {
            Some((last, ..)) if *last > place => self.early.push(Reverse(entry)),
            _ => self.ordered.push_back(entry),
        }
    }

    /// Takes out who is next.
    pub(super) fn next(&mut self) -> Option<T> {
        let entry = match (self.ordered.front(), self.early.peek()) {
            (Some(first), Some(Reverse(early))) if early < first => self.early.pop().map(|entry| entry.0),
            (Some(_), _) => self.ordered.pop_front(),
            (None, _) => self.early.pop().map(|entry| entry.0),
        };
        entry.map(|(.., item)| item)
    }

    /// Whether nobody is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.ordered.is_empty() && self.early.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_place_is_next_and_then_who_came_first() {
        let mut line = Line::default();
        let places = [7, 7, 3, 9, 3, 7, 1, 8, 9, 0, 3];
        for (item, place) in places.into_iter().enumerate() {
            line.add(place, (place, item));
        }
        let mut expected: Vec<(u64, usize)> = places
            .into_iter()
            .enumerate()
            .map(|(n, place)| (place, n))
            .collect();
        expected.sort_unstable();
        assert_eq!(std::iter::from_fn(|| line.next()).collect::<Vec<_>>(), expected);
        assert!(line.is_empty());
    }

    #[test]
    fn whoever_comes_and_goes_at_random_is_taken_out_once_and_in_order() {
        let mut line = Line::default();
        let mut inside = std::collections::BTreeSet::new();
        let mut random = 1_u64;
        for number in 0..20_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if random >> 62 > 0 || inside.is_empty() {
                let place = (random >> 33) % 50;
                line.add(place, (place, number));
                inside.insert((place, number));
            } else {
                assert_eq!(line.next(), inside.pop_first());
            }
            assert_eq!(line.is_empty(), inside.is_empty());
        }
    }
}
