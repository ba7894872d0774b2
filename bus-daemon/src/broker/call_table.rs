//! Which calls are open: forwarded, and not answered yet.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::deadline::{Deadline, Deadlines};
use super::entries::{Entries, Slot};
use super::event::{Millis, PeerId};
use super::invariants::Violation;
use super::per_peer::PerPeer;

/// An open call as one end knows it: the other end, and the serial that the caller gave it.
pub(super) type OpenCall = (PeerId, u32);

/// All open calls of the bus.
///
/// An open call is known at both ends: the callee keeps `(caller, serial)` with the deadline, the caller keeps
/// `(callee, serial)`, so that either can leave without a search through the whole bus. Its deadline, if it has one,
/// is also among the [`Deadlines`], which every change is given.
#[derive(Debug)]
pub(super) struct CallTable {
    ends: PerPeer<Ends>,
    entries: Entries<CallKey>,
}

/// What an open call is found by: callee, caller and serial.
type CallKey = (PeerId, PeerId, u32);

/// An open call as its callee has it.
#[derive(Debug, Clone, Copy)]
struct Owed {
    until: Option<Millis>,
    /// Of its entry.
    slot: Slot,
}

/// The open calls of one peer, in both roles: ordered, so that those of a peer that leaves are ended one by one, and no
/// hash order shows.
#[derive(Debug, Default)]
struct Ends {
    /// Calls that the peer has to answer, and until when.
    owed: BTreeMap<OpenCall, Owed>,
    /// Calls that the peer waits for.
    awaited: BTreeSet<OpenCall>,
}

impl CallTable {
    pub(super) fn new() -> Self {
        Self {
            ends: PerPeer::new(),
            entries: Entries::new(),
        }
    }

    /// How many calls of a peer are open.
    pub(super) fn awaited_count(&self, caller: PeerId) -> usize {
        self.ends.get(caller).map_or(0, |ends| ends.awaited.len())
    }

    /// How many calls a peer has to answer.
    pub(super) fn owed_count(&self, callee: PeerId) -> usize {
        self.ends.get(callee).map_or(0, |ends| ends.owed.len())
    }

    /// Which calls have changed.
    pub(super) fn entries(&self) -> &Entries<CallKey> {
        &self.entries
    }

    /// The same, to take them.
    pub(super) fn entries_mut(&mut self) -> &mut Entries<CallKey> {
        &mut self.entries
    }

    /// The call that has an entry, with its deadline.
    pub(super) fn saved_in(&self, slot: Slot) -> Option<(CallKey, Option<Millis>)> {
        let (callee, caller, serial) = *self.entries.get(slot)?;
        let owed = self.ends.get(callee)?.owed.get(&(caller, serial))?;
        Some(((callee, caller, serial), owed.until))
    }

    /// Goes on from a checkpoint that has room for `len` calls and each of the open ones in a slot.
    pub(super) fn resume(&mut self, len: u32, saved: &[(Slot, CallKey)]) -> Result<(), Violation> {
        for (slot, (callee, caller, serial)) in saved {
            let ends = self.ends.get_mut(*callee);
            match ends.and_then(|ends| ends.owed.get_mut(&(*caller, *serial))) {
                Some(owed) => owed.slot = *slot,
                None => return Err(Violation::new("a checkpoint has a call that is not open")),
            }
        }
        self.entries.resume(len, saved.iter().copied())
    }

    /// Whether this call is open.
    pub(super) fn is_open(&self, callee: PeerId, caller: PeerId, serial: u32) -> bool {
        let ends = self.ends.get(callee);
        ends.is_some_and(|ends| ends.owed.contains_key(&(caller, serial)))
    }

    /// Whether the caller waits for the call's answer: the same, asked at the other end.
    pub(super) fn is_awaited(&self, callee: PeerId, caller: PeerId, serial: u32) -> bool {
        let ends = self.ends.get(caller);
        ends.is_some_and(|ends| ends.awaited.contains(&(callee, serial)))
    }

    /// Opens a call at both ends. One that is open already gets the new deadline.
    pub(super) fn open(
        &mut self,
        callee: PeerId,
        caller: PeerId,
        serial: u32,
        until: Option<Millis>,
        deadlines: &mut Deadlines,
    ) {
        let callee_ends = self.ends.get_or_insert_with(callee, Ends::default);
        let before = match callee_ends.owed.entry((caller, serial)) {
            Entry::Vacant(place) => {
                let slot = self.entries.insert((callee, caller, serial));
                place.insert(Owed { until, slot });
                None
            }
            Entry::Occupied(mut place) => {
                self.entries.mark(place.get().slot);
                std::mem::replace(&mut place.get_mut().until, until)
            }
        };
        let caller_ends = self.ends.get_or_insert_with(caller, Ends::default);
        caller_ends.awaited.insert((callee, serial));
        deadlines.change(due(callee, caller, serial), before, until);
    }

    /// Forgets a call at both ends. False if it is not open.
    pub(super) fn close(
        &mut self,
        callee: PeerId,
        caller: PeerId,
        serial: u32,
        deadlines: &mut Deadlines,
    ) -> bool {
        if let Some(ends) = self.ends.get_mut(caller) {
            ends.awaited.remove(&(callee, serial));
        }
        let owed = (self.ends.get_mut(callee)).and_then(|ends| ends.owed.remove(&(caller, serial)));
        let Some(Owed { until, slot }) = owed else {
            return false;
        };
        self.entries.remove(slot);
        deadlines.change(due(callee, caller, serial), until, None);
        true
    }

    /// The peer, which has no open calls, is gone.
    pub(super) fn drop_peer(&mut self, id: PeerId) {
        self.ends.remove(id);
    }

    /// The first of the calls that a peer waits for.
    pub(super) fn first_awaited(&self, caller: PeerId) -> Option<OpenCall> {
        self.ends.get(caller)?.awaited.first().copied()
    }

    /// The first of the calls that a peer has to answer.
    pub(super) fn first_owed(&self, callee: PeerId) -> Option<OpenCall> {
        let (call, _) = self.ends.get(callee)?.owed.first_key_value()?;
        Some(*call)
    }

    /// All calls that a peer has to answer, sorted.
    pub(super) fn owed_by(&self, callee: PeerId) -> Vec<(OpenCall, Option<Millis>)> {
        let owed = self.ends.get(callee).into_iter().flat_map(|ends| &ends.owed);
        owed.map(|(call, owed)| (*call, owed.until)).collect()
    }

    /// All calls that a peer waits for, sorted.
    pub(super) fn awaited_by(&self, caller: PeerId) -> Vec<OpenCall> {
        let awaited = self.ends.get(caller).into_iter().flat_map(|ends| &ends.awaited);
        awaited.copied().collect()
    }

    /// The deadlines of all open calls.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Millis, Deadline)> + '_ {
        self.ends.iter().flat_map(|(callee, ends)| {
            let of_call = move |((caller, serial), owed): (&OpenCall, &Owed)| {
                owed.until.map(|at| (at, due(callee, *caller, *serial)))
            };
            ends.owed.iter().filter_map(of_call)
        })
    }

    /// Both ends of every call know of it, and are peers of the bus.
    pub(super) fn check(&self, is_there: impl Fn(PeerId) -> bool) -> Result<(), Violation> {
        let (mut owed, mut awaited) = (0, 0);
        for (id, ends) in self.ends.iter() {
            let has_calls = !ends.owed.is_empty() || !ends.awaited.is_empty();
            if has_calls && !is_there(id) {
                return Err(Violation::new(format!("{id:?} is gone and has open calls")));
            }
            if let Some((caller, _)) = (ends.owed.keys()).find(|call| !self.is_awaited(id, call.0, call.1)) {
                return Err(Violation::new(format!(
                    "{id:?} owes {caller:?} an answer that it does not wait for"
                )));
            }
            let is_entered =
                |(call, owed): (&OpenCall, &Owed)| self.entries.get(owed.slot) == Some(&(id, call.0, call.1));
            if !ends.owed.iter().all(is_entered) {
                return Err(Violation::new(format!("a call to {id:?} has another's entry")));
            }
            owed += ends.owed.len();
            awaited += ends.awaited.len();
        }
        if owed != awaited {
            return Err(Violation::new(format!("{owed} answers owed, {awaited} awaited")));
        }
        Ok(())
    }
}

fn due(callee: PeerId, caller: PeerId, serial: u32) -> Deadline {
    Deadline::Reply {
        callee,
        caller,
        serial,
    }
}
