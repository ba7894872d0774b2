//! A table with a place for each peer.

use super::event::PeerId;

/// A value for each peer that has one, found by the dense index of its id: without hashing, and in an order that is
/// the same everywhere.
///
/// The next user of an index takes over the place of the one before, which must have given up what it had.
#[derive(Debug)]
pub(super) struct PerPeer<T> {
    slots: Vec<Option<(PeerId, T)>>,
}

impl<T> PerPeer<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&T> {
        match self.slots.get(id.index as usize)? {
            Some((user, value)) if *user == id => Some(value),
            Some(_) | None => None,
        }
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut T> {
        match self.slots.get_mut(id.index as usize)? {
            Some((user, value)) if *user == id => Some(value),
            Some(_) | None => None,
        }
    }

    /// The value of a peer, made by `new` if the peer has none.
    pub(super) fn get_or_insert_with(&mut self, id: PeerId, new: impl FnOnce() -> T) -> &mut T {
        let index = id.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        let slot = &mut self.slots[index];
        if slot.as_ref().is_some_and(|(user, _)| *user != id) {
            *slot = None;
        }
        &mut slot.get_or_insert_with(|| (id, new())).1
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.take_if(|(user, _)| *user == id).map(|(_, value)| value)
    }

    /// In the order of the index, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut T)> {
        self.slots.iter_mut().flatten().map(|(id, value)| (*id, value))
    }

    /// In the order of the index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &T)> {
        self.slots.iter().flatten().map(|(id, value)| (*id, value))
    }
}
