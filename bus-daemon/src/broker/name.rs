//! The name table: who owns each well-known name, and who waits for it (specification, "Message Bus Names").

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::Seeded;
use super::event::PeerId;

/// The flags of `RequestName` that are kept with an owner. Unknown bits are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NameFlags(u32);

impl NameFlags {
    /// `DBUS_NAME_FLAG_ALLOW_REPLACEMENT`
    pub(crate) const ALLOW_REPLACEMENT: Self = Self(1);
    /// `DBUS_NAME_FLAG_REPLACE_EXISTING`
    pub(crate) const REPLACE_EXISTING: Self = Self(2);
    /// `DBUS_NAME_FLAG_DO_NOT_QUEUE`
    pub(crate) const DO_NOT_QUEUE: Self = Self(4);

    /// From the argument of `RequestName`.
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits & 7)
    }

    /// As in the argument of `RequestName`.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The answer of `RequestName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestNameReply {
    PrimaryOwner = 1,
    InQueue = 2,
    Exists = 3,
    AlreadyOwner = 4,
}

/// The answer of `ReleaseName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReleaseNameReply {
    Released = 1,
    NonExistent = 2,
    NotOwner = 3,
}

/// A name changed hands; whoever caused it announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnerChange {
    pub(crate) name: Arc<str>,
    pub(crate) old: Option<PeerId>,
    pub(crate) new: Option<PeerId>,
}

/// A peer that owns a name, or waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) peer: PeerId,
    pub(crate) flags: NameFlags,
}

/// One well-known name. Never without an owner: the last release removes it from the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: Arc<str>,
    /// The first is the primary owner, the others wait in this order.
    pub(crate) owners: VecDeque<Owner>,
}

/// All well-known names of the bus.
#[derive(Debug)]
pub(crate) struct NameTable {
    names: HashMap<Arc<str>, Name, Seeded>,
    /// Whether anything may have changed since this was last asked.
    changed: bool,
}

impl NameTable {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            names: HashMap::with_hasher(hasher),
            changed: true,
        }
    }

    /// Whether anything may have changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// How many names have an owner.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The primary owner.
    pub(crate) fn owner(&self, name: &str) -> Option<PeerId> {
        self.names.get(name)?.owners.front().map(|owner| owner.peer)
    }

    /// The primary owner and those who wait, in order.
    pub(crate) fn queue(&self, name: &str) -> Option<impl Iterator<Item = Owner> + '_> {
        self.names.get(name).map(|name| name.owners.iter().copied())
    }

    /// Every name, sorted, so that no hash order shows.
    pub(crate) fn sorted(&self) -> Vec<&Name> {
        let mut all: Vec<&Name> = self.names.values().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Puts a name with its whole queue into the table, as a restored broker finds it. False if it was there already
    /// or the queue is empty.
    pub(crate) fn insert(&mut self, name: Name) -> bool {
        if name.owners.is_empty() || self.names.contains_key(&name.name) {
            return false;
        }
        self.changed = true;
        self.names.insert(name.name.clone(), name);
        true
    }

    /// `RequestName`. The name must be a valid well-known name that may be owned.
    ///
    /// Follows the reference implementation where the specification is silent: a request with `REPLACE_EXISTING` that
    /// cannot replace waits at the head of the queue.
    pub(crate) fn request(
        &mut self,
        name: &str,
        peer: PeerId,
        flags: NameFlags,
    ) -> (RequestNameReply, Option<OwnerChange>, Arc<str>) {
        self.changed = true;
        let Some(entry) = self.names.get_mut(name) else {
            let name: Arc<str> = name.into();
            let owners = VecDeque::from([Owner { peer, flags }]);
            self.names.insert(
                name.clone(),
                Name {
                    name: name.clone(),
                    owners,
                },
            );
            let change = OwnerChange {
                name: name.clone(),
                old: None,
                new: Some(peer),
            };
            return (RequestNameReply::PrimaryOwner, Some(change), name);
        };
        let name = entry.name.clone();
        let Some(primary) = entry.owners.front_mut() else {
            // Never so: a name without owners is not in the table.
            entry.owners.push_back(Owner { peer, flags });
            return (RequestNameReply::PrimaryOwner, None, name);
        };
        if primary.peer == peer {
            primary.flags = flags;
            return (RequestNameReply::AlreadyOwner, None, name);
        }
        let primary = *primary;
        let replaces = flags.contains(NameFlags::REPLACE_EXISTING)
            && primary.flags.contains(NameFlags::ALLOW_REPLACEMENT);
        let place = entry.owners.iter().position(|owner| owner.peer == peer);
        if !replaces && flags.contains(NameFlags::DO_NOT_QUEUE) {
            if let Some(place) = place {
                entry.owners.remove(place);
            }
            return (RequestNameReply::Exists, None, name);
        }
        let owner = Owner { peer, flags };
        if !replaces {
            match place.and_then(|place| entry.owners.get_mut(place).map(|owner| (place, owner))) {
                Some((_, waiting)) if !flags.contains(NameFlags::REPLACE_EXISTING) => waiting.flags = flags,
                Some((place, _)) => {
                    entry.owners.remove(place);
                    entry.owners.insert(1, owner);
                }
                None if flags.contains(NameFlags::REPLACE_EXISTING) => entry.owners.insert(1, owner),
                None => entry.owners.push_back(owner),
            }
            return (RequestNameReply::InQueue, None, name);
        }
        if let Some(place) = place {
            entry.owners.remove(place);
        }
        entry.owners.push_front(owner);
        if primary.flags.contains(NameFlags::DO_NOT_QUEUE) {
            entry.owners.remove(1);
        }
        let change = OwnerChange {
            name: name.clone(),
            old: Some(primary.peer),
            new: Some(peer),
        };
        (RequestNameReply::PrimaryOwner, Some(change), name)
    }

    /// `ReleaseName`, and what happens to each name of a peer that leaves.
    pub(crate) fn release(&mut self, name: &str, peer: PeerId) -> (ReleaseNameReply, Option<OwnerChange>) {
        let Some(entry) = self.names.get_mut(name) else {
            return (ReleaseNameReply::NonExistent, None);
        };
        let Some(place) = entry.owners.iter().position(|owner| owner.peer == peer) else {
            return (ReleaseNameReply::NotOwner, None);
        };
        self.changed = true;
        entry.owners.remove(place);
        if place > 0 {
            return (ReleaseNameReply::Released, None);
        }
        let new = entry.owners.front().map(|owner| owner.peer);
        let change = OwnerChange {
            name: entry.name.clone(),
            old: Some(peer),
            new,
        };
        if new.is_none() {
            self.names.remove(name);
        }
        (ReleaseNameReply::Released, Some(change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId {
        index: 0,
        generation: 1,
    };
    const B: PeerId = PeerId {
        index: 1,
        generation: 1,
    };
    const C: PeerId = PeerId {
        index: 2,
        generation: 1,
    };

    enum Step {
        Request(PeerId, u32, RequestNameReply),
        Release(PeerId, ReleaseNameReply),
    }
    use RequestNameReply::{AlreadyOwner, Exists, InQueue, PrimaryOwner};
    use Step::{Release, Request};

    /// Plays the steps and compares the answers, and the queue that is left.
    fn check(steps: &[Step], queue: &[PeerId]) {
        let mut table = NameTable::new(Seeded::default());
        for (n, step) in steps.iter().enumerate() {
            let before = table.owner("a.b");
            let change = match *step {
                Request(peer, flags, expected) => {
                    let (reply, change, _) = table.request("a.b", peer, NameFlags::from_bits(flags));
                    assert_eq!(reply, expected, "step {n}");
                    change
                }
                Release(peer, expected) => {
                    let (reply, change) = table.release("a.b", peer);
                    assert_eq!(reply, expected, "step {n}");
                    change
                }
            };
            let after = table.owner("a.b");
            match change {
                Some(change) => assert_eq!((change.old, change.new), (before, after), "step {n}"),
                None => assert_eq!(before, after, "step {n}"),
            }
        }
        let left: Vec<PeerId> = table
            .queue("a.b")
            .into_iter()
            .flatten()
            .map(|owner| owner.peer)
            .collect();
        assert_eq!(left, queue);
    }

    #[test]
    fn queues_in_order() {
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Request(B, 0, InQueue),
                Request(C, 0, InQueue),
            ],
            &[A, B, C],
        );
    }

    #[test]
    fn release_hands_over() {
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Request(B, 0, InQueue),
                Release(A, ReleaseNameReply::Released),
                Release(A, ReleaseNameReply::NotOwner),
            ],
            &[B],
        );
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Release(A, ReleaseNameReply::Released),
            ],
            &[],
        );
        check(&[Release(A, ReleaseNameReply::NonExistent)], &[]);
    }

    #[test]
    fn replacement_needs_both_sides() {
        check(
            &[Request(A, 1, PrimaryOwner), Request(B, 2, PrimaryOwner)],
            &[B, A],
        );
        check(&[Request(A, 5, PrimaryOwner), Request(B, 2, PrimaryOwner)], &[B]);
        check(&[Request(A, 0, PrimaryOwner), Request(B, 6, Exists)], &[A]);
        check(&[Request(A, 1, PrimaryOwner), Request(B, 4, Exists)], &[A]);
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Request(C, 0, InQueue),
                Request(B, 2, InQueue),
            ],
            &[A, B, C],
        );
    }

    #[test]
    fn a_new_request_updates_the_flags() {
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Request(A, 1, AlreadyOwner),
                Request(B, 2, PrimaryOwner),
            ],
            &[B, A],
        );
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Request(B, 0, InQueue),
                Request(B, 4, Exists),
            ],
            &[A],
        );
        check(
            &[
                Request(A, 0, PrimaryOwner),
                Request(B, 0, InQueue),
                Request(C, 0, InQueue),
                Request(C, 2, InQueue),
            ],
            &[A, C, B],
        );
    }
}
