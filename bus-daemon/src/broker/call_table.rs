//! Which calls are open: forwarded, and not answered yet.

use hashbrown::{HashMap, HashSet};

use super::Seeded;
use super::deadline::{Deadline, Deadlines};
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
    hasher: Seeded,
    ends: PerPeer<Ends>,
}

/// The open calls of one peer, in both roles.
#[derive(Debug)]
struct Ends {
    /// Calls that the peer has to answer, and until when.
    owed: HashMap<OpenCall, Option<Millis>, Seeded>,
    /// Calls that the peer waits for.
    awaited: HashSet<OpenCall, Seeded>,
}

impl Ends {
    fn new(hasher: &Seeded) -> Self {
        Self {
            owed: HashMap::with_hasher(hasher.clone()),
            awaited: HashSet::with_hasher(hasher.clone()),
        }
    }
}

/// The calls that ended because a peer left, each list sorted.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// The peer's own calls, with the callee.
    pub(super) withdrawn: Vec<OpenCall>,
    /// Calls to the peer that it leaves unanswered, with the caller.
    pub(super) unanswered: Vec<OpenCall>,
}

impl CallTable {
    pub(super) fn new(hasher: Seeded) -> Self {
        Self {
            hasher,
            ends: PerPeer::new(),
        }
    }

    /// How many calls of a peer are open.
    pub(super) fn awaited_count(&self, caller: PeerId) -> usize {
        self.ends.get(caller).map_or(0, |ends| ends.awaited.len())
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
        let hasher = &self.hasher;
        let callee_ends = self.ends.get_or_insert_with(callee, || Ends::new(hasher));
        let before = callee_ends.owed.insert((caller, serial), until).flatten();
        let caller_ends = self.ends.get_or_insert_with(caller, || Ends::new(hasher));
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
        let Some(until) = (self.ends.get_mut(callee)).and_then(|ends| ends.owed.remove(&(caller, serial)))
        else {
            return false;
        };
        deadlines.change(due(callee, caller, serial), until, None);
        true
    }

    /// Forgets every call that a peer has a part in.
    pub(super) fn drop_peer(&mut self, id: PeerId, deadlines: &mut Deadlines) -> Ended {
        let mut ended = Ended {
            withdrawn: self.awaited_by(id),
            unanswered: Vec::new(),
        };
        for (callee, serial) in &ended.withdrawn {
            self.close(*callee, id, *serial, deadlines);
        }
        // A call of the peer to itself was withdrawn, and is not unanswered too.
        ended.unanswered = self.owed_by(id).into_iter().map(|(call, _)| call).collect();
        for (caller, serial) in &ended.unanswered {
            self.close(id, *caller, *serial, deadlines);
        }
        self.ends.remove(id);
        ended
    }

    /// All calls that a peer has to answer, sorted, so that no hash order shows.
    pub(super) fn owed_by(&self, callee: PeerId) -> Vec<(OpenCall, Option<Millis>)> {
        let owed = self.ends.get(callee).into_iter().flat_map(|ends| &ends.owed);
        let mut all: Vec<_> = owed.map(|(call, until)| (*call, *until)).collect();
        all.sort_unstable();
        all
    }

    /// All calls that a peer waits for, sorted.
    pub(super) fn awaited_by(&self, caller: PeerId) -> Vec<OpenCall> {
        let awaited = self.ends.get(caller).into_iter().flat_map(|ends| &ends.awaited);
        let mut all: Vec<_> = awaited.copied().collect();
        all.sort_unstable();
        all
    }

    /// The deadlines of all open calls.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Millis, Deadline)> + '_ {
        self.ends.iter().flat_map(|(callee, ends)| {
            let of_call = move |((caller, serial), until): (&OpenCall, &Option<Millis>)| {
                until.map(|at| (at, due(callee, *caller, *serial)))
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
