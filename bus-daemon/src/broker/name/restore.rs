//! The name table as a saved state has it, put back queue by queue.

use std::sync::Arc;

use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use super::{Name, NameFlags, NameTable, Ordered, Owner};
use crate::broker::entries::Slot;
use crate::broker::event::PeerId;
use crate::broker::frozen::NameTextV1;
use crate::broker::holdings::{Place, UNPLACED};
use crate::broker::invariants::Violation;

impl NameTable {
    /// Puts a saved queue back, with the places of the name in the lists of its owners where they were saved. False if there
    /// is none, or if the name is there already.
    ///
    /// The peers' lists are restored when all queues are: [`restore_order`](Self::restore_order), then
    /// [`restore_rest`](Self::restore_rest).
    pub(in crate::broker) fn restore_queue(
        &mut self,
        name: &Arc<str>,
        owners: impl IntoIterator<Item = (PeerId, NameFlags, Option<Place>)>,
    ) -> bool {
        let Entry::Vacant(vacant) = self.names.entry(name.clone()) else {
            return false;
        };
        let holdings = &mut self.holdings;
        let owner = |(peer, flags, place): (PeerId, NameFlags, Option<Place>)| Owner {
            peer,
            flags,
            held_at: place
                .filter(|place| holdings.hold_at(peer, name, *place))
                .unwrap_or(UNPLACED),
        };
        let owners: SmallVec<[Owner; 1]> = owners.into_iter().map(owner).collect();
        let Some(primary) = owners.first() else {
            return false;
        };
        vacant.insert(Name {
            name: name.clone(),
            owned_at: self.holdings.own(primary.peer, name),
            owners,
            slot: self.entries.insert(name.clone()),
        });
        true
    }

    /// There will be so many names.
    pub(in crate::broker) fn reserve(&mut self, count: usize) {
        self.names.reserve(count);
        self.entries.reserve(count);
    }

    /// The order in which a peer asked for its names. What the queues do not say is left out.
    pub(in crate::broker) fn restore_order(&mut self, peer: PeerId, names: &[NameTextV1]) {
        if !names.is_empty() {
            self.holdings.reserve(peer, names.len());
        }
        for name in names {
            let entry = self.names.get_mut(&**name);
            if let Some(Name { name, owners, .. }) = entry
                && let Some(owner) = owners.iter_mut().find(|owner| owner.peer == peer)
                && owner.held_at == UNPLACED
            {
                owner.held_at = self.holdings.hold(peer, name);
            }
        }
    }

    /// What no saved list named comes last, in the order of the names. Then the table is complete, with all these names.
    pub(in crate::broker) fn restore_rest(&mut self, names: Vec<Ordered>) {
        for (peer, name) in self.holdings.sort() {
            let owners = self
                .names
                .get_mut(&name)
                .into_iter()
                .flat_map(|name| &mut name.owners);
            for owner in owners.filter(|owner| owner.peer == peer) {
                owner.held_at = UNPLACED;
            }
        }
        let is_unplaced = |name: &&mut Name| name.owners.iter().any(|owner| owner.held_at == UNPLACED);
        let mut all: Vec<&mut Name> = self.names.values_mut().filter(is_unplaced).collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for Name { name, owners, .. } in all {
            for owner in owners.iter_mut().filter(|owner| owner.held_at == UNPLACED) {
                owner.held_at = self.holdings.hold(owner.peer, name);
            }
        }
        self.in_order = names.into_iter().collect();
    }

    /// Goes on from a checkpoint that has room for `len` names and each of those in the table in a slot.
    pub(in crate::broker) fn resume(&mut self, len: u32, saved: Vec<(Slot, &str)>) -> Result<(), Violation> {
        let unknown = || Violation::new("a checkpoint has a name that nobody owns");
        let mut held = Vec::with_capacity(saved.len());
        for (slot, name) in saved {
            let entry = self.names.get_mut(name).ok_or_else(unknown)?;
            entry.slot = slot;
            held.push((slot, entry.name.clone()));
        }
        self.entries.resume(len, held)
    }
}
