//! The name table: who owns each well-known name, and who waits for it (specification, "Message Bus Names").

mod ordered;
mod restore;

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use smallvec::{SmallVec, smallvec};

use super::Seeded;
use super::entries::{Entries, Slot};
use super::event::PeerId;
use super::holdings::{Holdings, Place};
use super::invariants::Violation;
pub(super) use ordered::Ordered;

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
    /// Where the name is in the peer's list of held names.
    pub(super) held_at: Place,
}

/// One well-known name. Never without an owner: the last release removes it from the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: Arc<str>,
    /// The first is the primary owner, the others wait in this order.
    pub(crate) owners: SmallVec<[Owner; 1]>,
    /// Where the name is in the primary owner's list of owned names.
    pub(super) owned_at: Place,
    /// Of its entry.
    pub(super) slot: Slot,
}

/// All well-known names of the bus, and the lists of each peer's names.
#[derive(Debug)]
pub(crate) struct NameTable {
    names: HashMap<Arc<str>, Name, Seeded>,
    /// The same names, in alphabetical order, so that a list of them costs no more than its length.
    in_order: BTreeSet<Ordered>,
    holdings: Holdings,
    /// The highest count of names so far, unique names among them.
    peak: u32,
    entries: Entries<Arc<str>>,
}

impl NameTable {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            names: HashMap::with_hasher(hasher),
            in_order: BTreeSet::new(),
            holdings: Holdings::new(),
            peak: 0,
            entries: Entries::new(),
        }
    }

    /// Which names have changed.
    pub(super) fn entries(&self) -> &Entries<Arc<str>> {
        &self.entries
    }

    /// The same, to take them.
    pub(super) fn entries_mut(&mut self) -> &mut Entries<Arc<str>> {
        &mut self.entries
    }

    /// The name that has an entry.
    pub(super) fn saved_in(&self, slot: Slot) -> Option<&Name> {
        self.names.get(self.entries.get(slot)?)
    }

    /// How many names have an owner.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The highest count of names so far, unique names among them.
    pub(crate) fn peak(&self) -> u32 {
        self.peak
    }

    /// The count of names is now this, with so many unique names.
    pub(super) fn note_peak(&mut self, unique: usize) {
        self.raise_peak((self.len() + unique) as u32);
    }

    /// The count of names has been as high as this.
    pub(super) fn raise_peak(&mut self, count: u32) {
        self.peak = self.peak.max(count);
    }

    /// Names that a peer owns or waits for, in the order of its requests.
    pub(super) fn held_by(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        self.holdings.held(peer)
    }

    /// The name that a peer asked for last, of those that it owns or waits for.
    pub(super) fn newest_of(&self, peer: PeerId) -> Option<Arc<str>> {
        self.holdings.newest(peer).cloned()
    }

    /// How many names a peer owns or waits for.
    pub(crate) fn held_count(&self, peer: PeerId) -> usize {
        self.holdings.held_count(peer)
    }

    /// Names that a peer is the primary owner of, in the order in which they became its own.
    pub(super) fn owned_by(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        self.holdings.owned(peer)
    }

    /// How many those are.
    pub(super) fn owned_count(&self, peer: PeerId) -> usize {
        self.holdings.owned_count(peer)
    }

    /// Whether a peer owns a name or waits for it.
    pub(super) fn is_held(&self, name: &str, peer: PeerId) -> bool {
        self.queue(name)
            .is_some_and(|mut queue| queue.any(|owner| owner.peer == peer))
    }

    /// The primary owner.
    pub(crate) fn owner(&self, name: &str) -> Option<PeerId> {
        self.names.get(name)?.owners.first().map(|owner| owner.peer)
    }

    /// The primary owner and those who wait, in order.
    pub(crate) fn queue(&self, name: &str) -> Option<impl Iterator<Item = Owner> + '_> {
        self.names.get(name).map(|name| name.owners.iter().copied())
    }

    /// Every name in alphabetical order.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &str> {
        self.in_order.iter().map(|ordered| &**ordered.name())
    }

    /// Every name, sorted, so that no hash order shows.
    pub(crate) fn sorted(&self) -> Vec<&Name> {
        self.listed().filter_map(|name| self.names.get(name)).collect()
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
    ) -> (RequestNameReply, Option<OwnerChange>) {
        let Some(entry) = self.names.get_mut(name) else {
            return (
                RequestNameReply::PrimaryOwner,
                Some(self.found(name, peer, flags)),
            );
        };
        self.entries.mark(entry.slot);
        let Some(primary) = entry.owners.first_mut().filter(|primary| primary.peer != peer) else {
            if let Some(primary) = entry.owners.first_mut() {
                primary.flags = flags;
            }
            return (RequestNameReply::AlreadyOwner, None);
        };
        let primary = *primary;
        let replaces = flags.contains(NameFlags::REPLACE_EXISTING)
            && primary.flags.contains(NameFlags::ALLOW_REPLACEMENT);
        let place = entry.owners.iter().position(|owner| owner.peer == peer);
        if !replaces && flags.contains(NameFlags::DO_NOT_QUEUE) {
            if let Some(waiting) = place.map(|place| entry.owners.remove(place)) {
                self.holdings.let_go(peer, waiting.held_at);
            }
            return (RequestNameReply::Exists, None);
        }
        let held_at = match place.and_then(|place| entry.owners.get(place)) {
            Some(waiting) => waiting.held_at,
            None => self.holdings.hold(peer, &entry.name),
        };
        let owner = Owner { peer, flags, held_at };
        if !replaces {
            entry.wait(owner, place);
            return (RequestNameReply::InQueue, None);
        }
        if let Some(place) = place {
            entry.owners.remove(place);
        }
        entry.owners.insert(0, owner);
        if primary.flags.contains(NameFlags::DO_NOT_QUEUE) {
            entry.owners.remove(1);
            self.holdings.let_go(primary.peer, primary.held_at);
        }
        self.holdings.disown(primary.peer, entry.owned_at);
        entry.owned_at = self.holdings.own(peer, &entry.name);
        let change = OwnerChange {
            name: entry.name.clone(),
            old: Some(primary.peer),
            new: Some(peer),
        };
        (RequestNameReply::PrimaryOwner, Some(change))
    }

    /// Gives a name that nobody has to its first owner.
    fn found(&mut self, name: &str, peer: PeerId, flags: NameFlags) -> OwnerChange {
        let name: Arc<str> = name.into();
        let owner = Owner {
            peer,
            flags,
            held_at: self.holdings.hold(peer, &name),
        };
        let entry = Name {
            name: name.clone(),
            owners: smallvec![owner],
            owned_at: self.holdings.own(peer, &name),
            slot: self.entries.insert(name.clone()),
        };
        self.in_order.insert(Ordered::new(&name));
        self.names.insert(name.clone(), entry);
        OwnerChange {
            name,
            old: None,
            new: Some(peer),
        }
    }

    /// `ReleaseName`, and what happens to each name of a peer that leaves.
    pub(crate) fn release(&mut self, name: &str, peer: PeerId) -> (ReleaseNameReply, Option<OwnerChange>) {
        let Some(entry) = self.names.get_mut(name) else {
            return (ReleaseNameReply::NonExistent, None);
        };
        let Some(place) = entry.owners.iter().position(|owner| owner.peer == peer) else {
            return (ReleaseNameReply::NotOwner, None);
        };
        self.entries.mark(entry.slot);
        let owner = entry.owners.remove(place);
        self.holdings.let_go(peer, owner.held_at);
        if place > 0 {
            return (ReleaseNameReply::Released, None);
        }
        self.holdings.disown(peer, entry.owned_at);
        let new = entry.owners.first().map(|owner| owner.peer);
        if let Some(new) = new {
            entry.owned_at = self.holdings.own(new, &entry.name);
        }
        let change = OwnerChange {
            name: entry.name.clone(),
            old: Some(peer),
            new,
        };
        if new.is_none() {
            self.entries.remove(entry.slot);
            self.in_order.remove(&Ordered::new(&entry.name));
            self.names.remove(name);
        }
        (ReleaseNameReply::Released, Some(change))
    }

    /// Queues and lists agree, and only peers that `may_own` are in them.
    pub(super) fn check(&self, may_own: impl Fn(PeerId) -> bool) -> Result<(), Violation> {
        let mut places = 0;
        for entry in self.names.values() {
            let Name {
                name,
                owners,
                owned_at,
                slot,
            } = entry;
            if self.entries.get(*slot).is_none_or(|other| !is_same(other, name)) {
                return Err(Violation::new(format!("{name} has another's entry")));
            }
            let are_distinct = owners.len() == 1 || {
                let distinct: BTreeSet<PeerId> = owners.iter().map(|owner| owner.peer).collect();
                distinct.len() == owners.len()
            };
            if owners.is_empty() || !are_distinct {
                let text = format!("the queue of {name} is empty or has somebody twice");
                return Err(Violation::new(text));
            }
            for (place, Owner { peer, held_at, .. }) in owners.iter().enumerate() {
                if !may_own(*peer) {
                    let text = format!("{peer:?} waits for {name} and is not active");
                    return Err(Violation::new(text));
                }
                if self
                    .holdings
                    .held_at(*peer, *held_at)
                    .is_none_or(|other| !is_same(other, name))
                {
                    let text = format!("{peer:?} does not know that it waits for {name}");
                    return Err(Violation::new(text));
                }
                let is_owned = self
                    .holdings
                    .owned_at(*peer, *owned_at)
                    .is_some_and(|other| is_same(other, name));
                if is_owned != (place == 0) {
                    let text = format!("{peer:?} is wrong about whether it owns {name}");
                    return Err(Violation::new(text));
                }
            }
            places += owners.len();
        }
        // Both have the same text in the same place, as a rule: then nothing long has to be hashed and compared.
        let place = |name: &Arc<str>| Arc::as_ptr(name).cast::<u8>();
        let texts: HashSet<*const u8, Seeded> = self.names.values().map(|entry| place(&entry.name)).collect();
        let is_known = |name: &Arc<str>| texts.contains(&place(name)) || self.names.contains_key(name);
        let mut in_order = self.in_order.iter().map(Ordered::name);
        if self.in_order.len() != self.names.len() || !in_order.all(is_known) {
            return Err(Violation::new("the list of all names has others than the table"));
        }
        let (held, owned) = self.holdings.totals();
        let primaries = self.names.len();
        if (held, owned) != (places, primaries) {
            return Err(Violation::new(format!(
                "{held} names held, {owned} owned: {places} and {primaries} in the table"
            )));
        }
        Ok(())
    }
}

/// As a rule both are one in memory: then nothing long has to be compared.
fn is_same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

impl Name {
    /// Puts a peer that cannot replace the primary owner into the queue. `place` is where the peer waits already.
    fn wait(&mut self, owner: Owner, place: Option<usize>) {
        let goes_first = owner.flags.contains(NameFlags::REPLACE_EXISTING);
        match place {
            Some(place) if !goes_first => {
                if let Some(waiting) = self.owners.get_mut(place) {
                    *waiting = owner;
                }
            }
            Some(place) => {
                self.owners.remove(place);
                self.owners.insert(1, owner);
            }
            None if goes_first => self.owners.insert(1, owner),
            None => self.owners.push(owner),
        }
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
                    let (reply, change) = table.request("a.b", peer, NameFlags::from_bits(flags));
                    assert_eq!(reply, expected, "step {n}");
                    change
                }
                Release(peer, expected) => {
                    let (reply, change) = table.release("a.b", peer);
                    assert_eq!(reply, expected, "step {n}");
                    change
                }
            };
            table.check(|_| true).unwrap();
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

    fn held(table: &NameTable, peer: PeerId) -> Vec<&str> {
        table.held_by(peer).map(|name| &**name).collect()
    }

    #[test]
    fn lists_are_in_the_order_of_the_requests() {
        let mut table = NameTable::new(Seeded::default());
        for (peer, name) in [
            (A, "c.c"),
            (B, "c.c"),
            (B, "a.a"),
            (B, "b.b"),
            (A, "a.a"),
            (B, "c.c"),
        ] {
            table.request(name, peer, NameFlags::default());
            table.check(|_| true).unwrap();
        }
        assert_eq!(held(&table, A), ["c.c", "a.a"]);
        assert_eq!(held(&table, B), ["c.c", "a.a", "b.b"]);
        assert_eq!(table.newest_of(B).as_deref(), Some("b.b"));
        // What falls to B is its newest own name, and keeps its place among the requests.
        table.release("c.c", A);
        table.check(|_| true).unwrap();
        let owned: Vec<&str> = table.owned_by(B).map(|name| &**name).collect();
        assert_eq!(owned, ["a.a", "b.b", "c.c"]);
        assert_eq!(held(&table, A), ["a.a"]);
        assert_eq!(held(&table, B), ["c.c", "a.a", "b.b"]);
        // The next user of an index has nothing of the user before it.
        let next = PeerId { generation: 2, ..A };
        assert_eq!(held(&table, next), [""; 0]);
        table.release("a.a", A);
        table.request("d.d", next, NameFlags::default());
        table.check(|peer| peer != A).unwrap();
        assert_eq!(held(&table, next), ["d.d"]);
    }

    #[test]
    fn saved_lists_give_the_order_and_the_queues_the_truth() {
        let mut table = NameTable::new(Seeded::default());
        let names = ["c.c", "a.a", "b.b"].map(Arc::<str>::from);
        for (name, owners) in names.iter().zip([vec![B, A], vec![A, B], vec![B]]) {
            let owners = owners.into_iter().map(|peer| (peer, NameFlags::default(), None));
            assert!(table.restore_queue(name, owners));
        }
        assert!(!table.restore_queue(&"a.a".into(), [(C, NameFlags::default(), None)]));
        assert!(!table.restore_queue(&"d.d".into(), []));
        table.restore_order(
            B,
            &["c.c", "d.d", "c.c", "a.a"].map(|name| name.to_owned().into()),
        );
        table.restore_order(A, &["b.b", "c.c"].map(|name| name.to_owned().into()));
        table.restore_rest(names.iter().map(Ordered::new).collect());
        table.check(|_| true).unwrap();
        assert!(table.listed().eq(["a.a", "b.b", "c.c"]));
        assert_eq!(held(&table, A), ["c.c", "a.a"]);
        assert_eq!(held(&table, B), ["c.c", "a.a", "b.b"]);
    }
}
