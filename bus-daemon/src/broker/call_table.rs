//! Which calls are open: forwarded, and not answered yet.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::deadline::{Deadline, Deadlines};
use super::entries::{Entries, Slot};
use super::event::{Millis, PeerId};
use super::invariants::Violation;
use super::per_peer::PerPeer;

/// An open call as one end knows it: the other end, and the serial that the caller gave it.
pub(super) type OpenCall = (PeerId, u32);

/// All open calls of the bus.
///
/// A call stands in the slot of its entry, and both ends know of it, so that either can leave without a search through the
/// whole bus. The callee finds it by who called with which serial: that is what a reply says. Its deadline, if it has one,
/// is also among the [`Deadlines`], which every change is given.
#[derive(Debug)]
pub(super) struct CallTable {
    ends: PerPeer<Ends>,
    entries: Entries<Call>,
}

/// What an open call is found by: callee, caller and serial.
type CallKey = (PeerId, PeerId, u32);

/// An open call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    callee: PeerId,
    caller: PeerId,
    serial: u32,
    /// When it is overdue.
    until: Option<Millis>,
    /// Where it stands in the caller's list.
    place: u32,
}

impl Call {
    fn key(&self) -> CallKey {
        (self.callee, self.caller, self.serial)
    }

    fn deadline(&self) -> Deadline {
        Deadline::Reply {
            callee: self.callee,
            caller: self.caller,
            serial: self.serial,
        }
    }
}

/// The caller and the serial of a call that is to be answered, as one number: each message looks one up, and to compare ids
/// part by part took most of that. In the order of those parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Owed(u128);

impl Owed {
    fn new(caller: PeerId, serial: u32) -> Self {
        let PeerId { index, generation } = caller;
        let low = u64::from(generation) << 32 | u64::from(serial);
        Self(u128::from(index) << 64 | u128::from(low))
    }

    fn call(self) -> OpenCall {
        let caller = PeerId {
            index: (self.0 >> 64) as u32,
            generation: (self.0 >> 32) as u32,
        };
        (caller, self.0 as u32)
    }
}

/// The open calls of one peer, in both roles.
#[derive(Debug, Default)]
struct Ends {
    /// Calls that the peer has to answer: in order, so that those of a peer that leaves end one by one, in the same order in a
    /// replay.
    owed: BTreeMap<Owed, Slot>,
    /// Calls that the peer waits for, in any order.
    awaited: Vec<Slot>,
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
    pub(super) fn entries(&self) -> &Entries<Call> {
        &self.entries
    }

    /// The same, to take them.
    pub(super) fn entries_mut(&mut self) -> &mut Entries<Call> {
        &mut self.entries
    }

    /// The call that has an entry, with its deadline.
    pub(super) fn saved_in(&self, slot: Slot) -> Option<(CallKey, Option<Millis>)> {
        let call = self.entries.get(slot)?;
        Some((call.key(), call.until))
    }

    /// Goes on from a checkpoint that has room for `len` calls and each of the open ones in a slot.
    pub(super) fn resume(&mut self, len: u32, saved: &[(Slot, CallKey)]) -> Result<(), Violation> {
        if saved.len() != self.entries.len() {
            return Err(Violation::new(
                "a checkpoint has other calls than those that are open",
            ));
        }
        let mut calls = Vec::with_capacity(saved.len());
        for (slot, key) in saved {
            let call = self.move_to(*slot, *key);
            let call = call.ok_or_else(|| Violation::new("a checkpoint has a call that is not open"))?;
            calls.push((*slot, call));
        }
        self.entries.resume(len, calls)
    }

    /// Both ends of a call know it by another slot from now on.
    fn move_to(&mut self, slot: Slot, (callee, caller, serial): CallKey) -> Option<Call> {
        let owed = self.ends.get_mut(callee)?;
        let owed = owed.owed.get_mut(&Owed::new(caller, serial))?;
        let old = std::mem::replace(owed, slot);
        let call = *self.entries.get(old)?;
        let awaited = &mut self.ends.get_mut(caller)?.awaited;
        *awaited.get_mut(call.place as usize)? = slot;
        (call.key() == (callee, caller, serial)).then_some(call)
    }

    /// Whether this call is open.
    pub(super) fn is_open(&self, callee: PeerId, caller: PeerId, serial: u32) -> bool {
        let ends = self.ends.get(callee);
        ends.is_some_and(|ends| ends.owed.contains_key(&Owed::new(caller, serial)))
    }

    /// Opens a call at both ends. False: it is open already, and stays as it is.
    pub(super) fn open(
        &mut self,
        callee: PeerId,
        caller: PeerId,
        serial: u32,
        until: Option<Millis>,
        deadlines: &mut Deadlines,
    ) -> bool {
        let awaited = &mut self.ends.get_or_insert_with(caller, Ends::default).awaited;
        let call = Call {
            callee,
            caller,
            serial,
            until,
            place: awaited.len() as u32,
        };
        let owed = &mut self.ends.get_or_insert_with(callee, Ends::default).owed;
        let Entry::Vacant(owed) = owed.entry(Owed::new(caller, serial)) else {
            return false;
        };
        let slot = *owed.insert(self.entries.insert(call));
        if let Some(ends) = self.ends.get_mut(caller) {
            ends.awaited.push(slot);
        }
        deadlines.change(call.deadline(), None, until);
        true
    }

    /// Forgets a call at both ends. False if it is not open.
    pub(super) fn close(
        &mut self,
        callee: PeerId,
        caller: PeerId,
        serial: u32,
        deadlines: &mut Deadlines,
    ) -> bool {
        let owed = (self.ends.get_mut(callee)).and_then(|ends| ends.owed.remove(&Owed::new(caller, serial)));
        let Some(call) = owed.and_then(|slot| self.entries.take(slot)) else {
            return false;
        };
        if let Some(ends) = self.ends.get_mut(caller) {
            let place = call.place as usize;
            ends.awaited.swap_remove(place);
            let moved = ends.awaited.get(place).copied();
            if let Some(moved) = moved.and_then(|slot| self.entries.get_mut(slot)) {
                moved.place = call.place;
            }
        }
        deadlines.change(call.deadline(), call.until, None);
        true
    }

    /// The peer, which has no open calls, is gone.
    pub(super) fn drop_peer(&mut self, id: PeerId) {
        self.ends.remove(id);
    }

    /// The first of the calls that a peer waits for, at most so many, or all if there are no more. So which are left follows
    /// from which there were, and not from the order of a list that a restart makes anew.
    pub(super) fn first_awaited(&self, caller: PeerId, most: usize) -> Vec<OpenCall> {
        if self.awaited_count(caller) <= most {
            return self.awaited_by(caller);
        }
        let calls_of = |(callee, ends): (PeerId, &Ends)| -> Vec<OpenCall> {
            let range = Owed::new(caller, 0)..=Owed::new(caller, u32::MAX);
            let serials = ends.owed.range(range).map(|(owed, _)| owed.call().1);
            serials.take(most).map(|serial| (callee, serial)).collect()
        };
        self.ends.iter().flat_map(calls_of).take(most).collect()
    }

    /// The first of the calls that a peer has to answer.
    pub(super) fn first_owed(&self, callee: PeerId) -> Option<OpenCall> {
        let (owed, _) = self.ends.get(callee)?.owed.first_key_value()?;
        Some(owed.call())
    }

    /// All calls that a peer has to answer, sorted.
    pub(super) fn owed_by(&self, callee: PeerId) -> Vec<(OpenCall, Option<Millis>)> {
        let slots = (self.ends.get(callee).into_iter()).flat_map(|ends| ends.owed.values());
        let calls = slots.filter_map(|slot| self.entries.get(*slot));
        calls
            .map(|call| ((call.caller, call.serial), call.until))
            .collect()
    }

    /// All calls that a peer waits for, sorted.
    pub(super) fn awaited_by(&self, caller: PeerId) -> Vec<OpenCall> {
        let slots = (self.ends.get(caller).into_iter()).flat_map(|ends| &ends.awaited);
        let calls = slots.filter_map(|slot| self.entries.get(*slot));
        let mut all: Vec<_> = calls.map(|call| (call.callee, call.serial)).collect();
        all.sort_unstable();
        all
    }

    /// The deadlines of all open calls.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Millis, Deadline)> + '_ {
        let calls = self.entries.iter();
        calls.filter_map(|call| Some((call.until?, call.deadline())))
    }

    /// Both ends of every call know of it, and are peers of the bus.
    pub(super) fn check(&self, is_there: impl Fn(PeerId) -> bool) -> Result<(), Violation> {
        let (mut owed, mut awaited) = (0, 0);
        for (id, ends) in self.ends.iter() {
            let has_calls = !ends.owed.is_empty() || !ends.awaited.is_empty();
            if has_calls && !is_there(id) {
                return Err(Violation::new(format!("{id:?} is gone and has open calls")));
            }
            let is_owed = |(owed, slot): (&Owed, &Slot)| {
                let (caller, serial) = owed.call();
                let entry = self.entries.get(*slot);
                entry.is_some_and(|entry| entry.key() == (id, caller, serial))
            };
            let is_awaited = |(place, slot): (u32, &Slot)| {
                let entry = self.entries.get(*slot);
                entry.is_some_and(|entry| (entry.caller, entry.place) == (id, place))
            };
            if !ends.owed.iter().all(is_owed) || !(0..).zip(&ends.awaited).all(is_awaited) {
                return Err(Violation::new(format!("a call of {id:?} has another's entry")));
            }
            owed += ends.owed.len();
            awaited += ends.awaited.len();
        }
        if (owed, awaited) != (self.entries.len(), self.entries.len()) {
            let entered = self.entries.len();
            return Err(Violation::new(format!(
                "{owed} answers owed, {awaited} awaited, {entered} calls entered"
            )));
        }
        Ok(())
    }
}
