//! Replies that are awaited: only a reply to a call that is open here may pass (dbus-daemon(1), "requested_reply").
//!
//! An open call is known at both ends: the callee keeps `(caller, serial)` with the deadline, the caller keeps
//! `(callee, serial)`, so that either can leave without a search through the whole bus.

use hashbrown::{HashMap, HashSet};

use super::Seeded;
use super::event::{Millis, PeerId};

/// An open call as one end knows it: the other end, and the serial that the caller gave it.
pub(crate) type OpenCall = (PeerId, u32);

/// The open calls of one peer, in both roles.
#[derive(Debug)]
pub(crate) struct OpenCalls {
    /// Calls that this peer has to answer, and until when.
    owed: HashMap<OpenCall, Option<Millis>, Seeded>,
    /// Calls that this peer waits for.
    awaited: HashSet<OpenCall, Seeded>,
}

impl OpenCalls {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self { owed: HashMap::with_hasher(hasher.clone()), awaited: HashSet::with_hasher(hasher) }
    }

    /// How many calls this peer waits for.
    pub(crate) fn awaited_count(&self) -> usize {
        self.awaited.len()
    }

    pub(crate) fn owes(&self, caller: PeerId, serial: u32) -> bool {
        self.owed.contains_key(&(caller, serial))
    }

    pub(crate) fn awaits(&self, callee: PeerId, serial: u32) -> bool {
        self.awaited.contains(&(callee, serial))
    }

    /// At the callee.
    pub(crate) fn owe(&mut self, caller: PeerId, serial: u32, deadline: Option<Millis>) {
        self.owed.insert((caller, serial), deadline);
    }

    /// At the caller.
    pub(crate) fn wait(&mut self, callee: PeerId, serial: u32) {
        self.awaited.insert((callee, serial));
    }

    /// At the callee: the call is answered or given up. The deadline it had; `None` if it was not open.
    pub(crate) fn settle(&mut self, caller: PeerId, serial: u32) -> Option<Option<Millis>> {
        self.owed.remove(&(caller, serial))
    }

    /// At the caller.
    pub(crate) fn unwait(&mut self, callee: PeerId, serial: u32) -> bool {
        self.awaited.remove(&(callee, serial))
    }

    /// All that this peer owes, sorted, so that no hash order shows.
    pub(crate) fn owed(&self) -> Vec<(OpenCall, Option<Millis>)> {
        let mut all: Vec<_> = self.owed.iter().map(|(call, deadline)| (*call, *deadline)).collect();
        all.sort_unstable();
        all
    }

    /// All that this peer waits for, sorted.
    pub(crate) fn awaited(&self) -> Vec<OpenCall> {
        let mut all: Vec<_> = self.awaited.iter().copied().collect();
        all.sort_unstable();
        all
    }
}
