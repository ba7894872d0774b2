//! The peers that have one rule.

use smallvec::SmallVec;

use crate::broker::event::PeerId;

/// Who has a rule, and how often. Whoever comes or goes costs no more where the others are many.
#[derive(Debug)]
pub(super) enum Subscribers {
    /// Sorted by peer; at most [`FEW`].
    Few(SmallVec<[Subscriber; 1]>),
    /// Sorted lists, one behind the other. None is empty, and each has at most [`FEW`].
    Many(Vec<Vec<Subscriber>>),
}

/// A peer, and how often it has the rule.
type Subscriber = (PeerId, u32);

/// So many are moved to make room for one.
const FEW: usize = 256;

impl Default for Subscribers {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Subscribers {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    /// Adds all to a list, in ascending order.
    #[inline]
    pub(super) fn append_to(&self, peers: &mut Vec<PeerId>) {
        match self {
            Self::Few(few) => peers.extend(few.iter().map(|(peer, _)| *peer)),
            Self::Many(many) => {
                for list in many {
                    peers.extend(list.iter().map(|(peer, _)| *peer));
                }
            }
        }
    }

    /// The last of them.
    pub(super) fn last(&self) -> Option<PeerId> {
        let last = match self {
            Self::Few(few) => few.last(),
            Self::Many(many) => many.last()?.last(),
        };
        last.map(|(peer, _)| *peer)
    }

    /// A peer has the rule once more. True if it had none before.
    pub(super) fn add(&mut self, peer: PeerId) -> bool {
        if let Self::Few(few) = self
            && few.len() == FEW
        {
            *self = Self::Many(vec![few.to_vec()]);
        }
        match self {
            Self::Few(few) => match find(few, peer) {
                Ok(place) => {
                    few[place].1 += 1;
                    false
                }
                Err(place) => {
                    few.insert(place, (peer, 1));
                    true
                }
            },
            Self::Many(many) => {
                let at = list_of(many, peer);
                let place = match find(&many[at], peer) {
                    Ok(place) => {
                        many[at][place].1 += 1;
                        return false;
                    }
                    Err(place) => place,
                };
                many[at].insert(place, (peer, 1));
                if many[at].len() > FEW {
                    let upper = many[at].split_off(FEW / 2);
                    many.insert(at + 1, upper);
                }
                true
            }
        }
    }

    /// A peer has the rule once less: whether it has none now. `None` if it had none.
    pub(super) fn remove(&mut self, peer: PeerId) -> Option<bool> {
        match self {
            Self::Few(few) => {
                let place = find(few, peer).ok()?;
                few[place].1 -= 1;
                let is_last = few[place].1 == 0;
                if is_last {
                    few.remove(place);
                }
                Some(is_last)
            }
            Self::Many(many) => {
                let at = list_of(many, peer);
                let list = &mut many[at];
                let place = find(list, peer).ok()?;
                list[place].1 -= 1;
                if list[place].1 > 0 {
                    return Some(false);
                }
                list.remove(place);
                if list.is_empty() {
                    many.remove(at);
                }
                match &many[..] {
                    [] => *self = Self::default(),
                    [list] if list.len() <= FEW / 2 => *self = Self::Few(SmallVec::from_slice(list)),
                    _ => {}
                }
                Some(true)
            }
        }
    }
}

fn find(list: &[Subscriber], peer: PeerId) -> Result<usize, usize> {
    list.binary_search_by_key(&peer, |(peer, _)| *peer)
}

/// The list in which the peer is, if in any, and belongs.
fn list_of(lists: &[Vec<Subscriber>], peer: PeerId) -> usize {
    let begins_before = |list: &Vec<Subscriber>| list.first().is_some_and(|(first, _)| *first <= peer);
    lists.partition_point(begins_before).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_as_few() {
        let peer = |index| PeerId { index, generation: 1 };
        let mut subscribers = Subscribers::default();
        let count = 4 * FEW as u32;
        for round in 0..2 {
            for index in 0..count {
                assert_eq!(subscribers.add(peer(index * 7 % count)), round == 0, "{index}");
            }
        }
        assert!(matches!(subscribers, Subscribers::Many(_)));
        assert_eq!(subscribers.remove(peer(count)), None);
        for index in 0..count {
            let mut all = Vec::new();
            subscribers.append_to(&mut all);
            assert_eq!(all, (index..count).map(peer).collect::<Vec<_>>());
            assert_eq!(subscribers.remove(peer(index)), Some(false));
            assert_eq!(subscribers.remove(peer(index)), Some(true));
            assert_eq!(subscribers.remove(peer(index)), None);
        }
        assert!(subscribers.is_empty() && matches!(subscribers, Subscribers::Few(_)));
    }
}
