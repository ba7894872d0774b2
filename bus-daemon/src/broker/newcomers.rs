//! Peers that have not said Hello: a share of slots for each user, and a queue behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::event::PeerId;
use super::invariants::Violation;

/// In the order in which the connections were accepted: by generation, then by index.
type Arrival = (u32, u32);

/// Who of the peers that have not said Hello is heard, and who waits for a slot.
///
/// `max_incomplete_connections` is what each user may have of slots: whoever does not authenticate waits beside peers of its
/// own user only. Peers of which no user is known (TCP) share the slots of one user, whatever address they come from. A peer
/// without a slot has been accepted and is not read from; when a slot of its user becomes free, the one that came first
/// gets it. So who has a slot follows from who is there, and is not saved.
///
/// ```text
/// Waiting ──a slot is free──> Heard ──Hello, or the end──> (not here)
/// Heard ──the limit is lowered──> Waiting
/// ```
#[derive(Debug)]
pub(super) struct Newcomers {
    users: BTreeMap<Option<u32>, Queue>,
    /// Slots of each user.
    slots: usize,
    /// Whose standing has changed since this was last asked.
    turned: Vec<PeerId>,
}

/// The newcomers of one user.
#[derive(Debug, Default)]
struct Queue {
    all: BTreeSet<Arrival>,
    /// The last that is heard: all up to it are.
    last_heard: Option<Arrival>,
    heard: usize,
}

fn arrival(id: PeerId) -> Arrival {
    (id.generation, id.index)
}

fn peer((generation, index): Arrival) -> PeerId {
    PeerId { index, generation }
}

impl Newcomers {
    /// Nobody, and slots for everybody.
    pub(super) fn new() -> Self {
        Self {
            users: BTreeMap::new(),
            slots: usize::MAX,
            turned: Vec::new(),
        }
    }

    /// A newcomer of this user.
    pub(super) fn insert(&mut self, uid: Option<u32>, id: PeerId) {
        let queue = self.users.entry(uid).or_default();
        queue.all.insert(arrival(id));
        if queue.last_heard.is_some_and(|last| arrival(id) < last) {
            queue.heard += 1;
        } else {
            self.turned.push(id);
        }
        queue.settle(self.slots, &mut self.turned);
    }

    /// It has said Hello, or is gone, or is another user's.
    pub(super) fn remove(&mut self, uid: Option<u32>, id: PeerId) {
        let Some(queue) = self.users.get_mut(&uid) else {
            return;
        };
        if queue.all.remove(&arrival(id)) && queue.last_heard.is_some_and(|last| arrival(id) <= last) {
            queue.heard -= 1;
            let before = queue.all.range(..arrival(id)).next_back().copied();
            if queue.last_heard == Some(arrival(id)) {
                queue.last_heard = before;
            }
        }
        self.turned.push(id);
        queue.settle(self.slots, &mut self.turned);
        if queue.all.is_empty() {
            self.users.remove(&uid);
        }
    }

    /// How many slots each user has; at least one.
    pub(super) fn set_slots(&mut self, slots: u64) {
        let slots = usize::try_from(slots).unwrap_or(usize::MAX).max(1);
        if slots != self.slots {
            self.slots = slots;
            for queue in self.users.values_mut() {
                queue.settle(slots, &mut self.turned);
            }
        }
    }

    /// Whether a newcomer has a slot.
    pub(super) fn is_heard(&self, uid: Option<u32>, id: PeerId) -> bool {
        let queue = self.users.get(&uid);
        queue.is_some_and(|queue| queue.last_heard.is_some_and(|last| arrival(id) <= last))
    }

    /// How many newcomers of this user there are.
    pub(super) fn count(&self, uid: Option<u32>) -> u64 {
        self.users.get(&uid).map_or(0, |queue| queue.all.len() as u64)
    }

    /// Takes out the peers of which it may have changed whether they have a slot.
    pub(super) fn take_turned(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.turned)
    }

    /// These are here, and no others, and each user has as many slots in use as it may.
    pub(super) fn check(&self, expected: &BTreeMap<Option<u32>, BTreeSet<PeerId>>) -> Result<(), Violation> {
        let found: BTreeMap<_, BTreeSet<PeerId>> = self
            .users
            .iter()
            .map(|(uid, queue)| (*uid, queue.all.iter().copied().map(peer).collect()))
            .collect();
        if found != *expected {
            return Err(Violation::new("the newcomers are others"));
        }
        for (uid, queue) in &self.users {
            let first: Vec<Arrival> = queue.all.iter().copied().take(self.slots).collect();
            let heard = first.len();
            if (heard, first.last().copied()) != (queue.heard, queue.last_heard) {
                let text = format!("{} newcomers of {uid:?} have a slot, not {heard}", queue.heard);
                return Err(Violation::new(text));
            }
        }
        Ok(())
    }
}

impl Queue {
    /// Gives out slots that are free, and takes back those that there are too many of.
    fn settle(&mut self, slots: usize, turned: &mut Vec<PeerId>) {
        while self.heard > slots
            && let Some(last) = self.last_heard
        {
            turned.push(peer(last));
            self.heard -= 1;
            self.last_heard = self.all.range(..last).next_back().copied();
        }
        while self.heard < slots {
            let after = self.last_heard.map_or(Bound::Unbounded, Bound::Excluded);
            let Some(next) = self.all.range((after, Bound::Unbounded)).next().copied() else {
                return;
            };
            turned.push(peer(next));
            self.heard += 1;
            self.last_heard = Some(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> PeerId {
        PeerId {
            index: n % 7,
            generation: n,
        }
    }

    fn heard(newcomers: &Newcomers, uid: Option<u32>) -> Vec<u32> {
        let is_heard = |n: &u32| newcomers.is_heard(uid, id(*n));
        (1..30).filter(is_heard).collect()
    }

    #[test]
    fn who_came_first_has_a_slot_beside_its_own_user_only() {
        let mut newcomers = Newcomers::new();
        newcomers.set_slots(2);
        let (mallory, alice) = (Some(1), Some(2));
        for n in 1..=5 {
            newcomers.insert(mallory, id(n));
        }
        newcomers.insert(alice, id(6));
        newcomers.insert(None, id(7));
        newcomers.take_turned();
        newcomers.remove(mallory, id(1));
        assert_eq!(newcomers.take_turned(), [id(1), id(3)]);
        assert!(newcomers.is_heard(alice, id(6)) && newcomers.is_heard(None, id(7)));
        assert!(!newcomers.is_heard(mallory, id(4)));
        newcomers.remove(mallory, id(5));
        assert_eq!(newcomers.take_turned(), [id(5)]);
        newcomers.remove(mallory, id(2));
        newcomers.remove(mallory, id(3));
        assert_eq!(newcomers.take_turned(), [id(2), id(4), id(3)]);
    }

    #[test]
    fn who_has_a_slot_does_not_follow_from_the_order_of_insertion() {
        let numbers = [8, 3, 9, 1, 7, 2, 6, 4, 5];
        let mut sorted = Newcomers::new();
        let mut shuffled = Newcomers::new();
        shuffled.set_slots(4);
        for n in 1..=9 {
            sorted.insert(None, id(n));
        }
        for n in numbers {
            shuffled.insert(None, id(n));
        }
        sorted.set_slots(4);
        let all = BTreeMap::from([(None, numbers.map(id).into_iter().collect())]);
        for newcomers in [&sorted, &shuffled] {
            newcomers.check(&all).unwrap();
        }
        assert_eq!(heard_peers(&sorted), heard_peers(&shuffled));
        assert_eq!(heard_peers(&sorted), [1, 2, 3, 4]);
        shuffled.set_slots(0);
        shuffled.check(&all).unwrap();
        assert_eq!(heard_peers(&shuffled), [1]);
    }

    fn heard_peers(newcomers: &Newcomers) -> Vec<u32> {
        let all = &newcomers.users[&None].all;
        let here = |n: &u32| all.contains(&arrival(id(*n)));
        heard(newcomers, None).into_iter().filter(here).collect()
    }
}
