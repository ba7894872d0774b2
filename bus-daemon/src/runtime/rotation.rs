//! Who is served next: users take turns, and the peers of one user take turns at that user's turn. Accepting
//! connections is one participant beside the users.

use std::collections::{BTreeMap, VecDeque};

use crate::broker::PeerId;

/// A participant's place in the rotation's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserSlot(u32);

impl UserSlot {
    /// The one who accepts connections.
    pub(crate) const ACCEPTING: Self = Self(0);
}

/// Who or what is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// A peer's link.
    Peer(PeerId),
    /// A listener, by its index.
    Listener(u32),
}

#[derive(Debug, Default)]
struct Participant {
    ready: VecDeque<Ready>,
}

/// The order in which those who are ready are served. Each that is added is served once, unless it is added again.
#[derive(Debug)]
pub(crate) struct Rotation {
    participants: Vec<Participant>,
    /// Those with somebody ready, in their order.
    order: VecDeque<u32>,
    /// Users, by uid; `None` for peers of whom no uid is known.
    slots: BTreeMap<Option<u32>, u32>,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            participants: vec![Participant::default()],
            order: VecDeque::new(),
            slots: BTreeMap::new(),
        }
    }
}

impl Rotation {
    /// The slot of a user.
    pub(crate) fn user(&mut self, uid: Option<u32>) -> UserSlot {
        let next = self.participants.len() as u32;
        let slot = *self.slots.entry(uid).or_insert(next);
        if slot == next {
            self.participants.push(Participant::default());
        }
        UserSlot(slot)
    }

    /// Adds somebody at the end of a user's own queue.
    pub(crate) fn add(&mut self, user: UserSlot, ready: Ready) {
        let Some(participant) = self.participants.get_mut(user.0 as usize) else {
            return;
        };
        if participant.ready.is_empty() {
            self.order.push_back(user.0);
        }
        participant.ready.push_back(ready);
    }

    /// Takes out who is to be served now.
    pub(crate) fn next(&mut self) -> Option<Ready> {
        let slot = self.order.pop_front()?;
        let participant = self.participants.get_mut(slot as usize)?;
        let ready = participant.ready.pop_front();
        if !participant.ready.is_empty() {
            self.order.push_back(slot);
        }
        ready
    }

    /// Whether nobody waits to be served.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(index: u32) -> Ready {
        Ready::Peer(PeerId { index, generation: 1 })
    }

    fn served(rotation: &mut Rotation) -> Vec<Ready> {
        std::iter::from_fn(|| rotation.next()).collect()
    }

    #[test]
    fn a_user_with_many_peers_is_served_as_often_as_one_with_one() {
        let mut rotation = Rotation::default();
        let (greedy, modest) = (rotation.user(Some(1)), rotation.user(Some(2)));
        for index in 0..100 {
            rotation.add(greedy, peer(index));
        }
        rotation.add(modest, peer(500));
        rotation.add(UserSlot::ACCEPTING, Ready::Listener(0));
        let order = served(&mut rotation);
        assert_eq!(order[..3], [peer(0), peer(500), Ready::Listener(0)]);
        assert_eq!(order.len(), 102);
        assert!(rotation.is_empty());
    }

    #[test]
    fn who_is_added_again_goes_behind_the_others_of_its_user() {
        let mut rotation = Rotation::default();
        let user = rotation.user(Some(7));
        assert_eq!(rotation.user(Some(7)), user);
        assert_ne!(rotation.user(None), user);
        rotation.add(user, peer(1));
        rotation.add(user, peer(2));
        assert_eq!(rotation.next(), Some(peer(1)));
        rotation.add(user, peer(1));
        assert_eq!(served(&mut rotation), [peer(2), peer(1)]);
    }

    #[test]
    fn nobody_is_forgotten_and_nobody_is_served_twice() {
        let mut rotation = Rotation::default();
        let users: Vec<UserSlot> = (0..10).map(|uid| rotation.user(Some(uid))).collect();
        for round in 0..3 {
            for index in 0..1_000 {
                rotation.add(users[(index as usize * 7 + round) % 10], peer(index));
            }
            let mut all = served(&mut rotation);
            all.sort_unstable_by_key(|ready| match ready {
                Ready::Peer(peer) => peer.index,
                Ready::Listener(index) => *index,
            });
            assert_eq!(all, (0..1_000).map(peer).collect::<Vec<_>>());
        }
    }
}
