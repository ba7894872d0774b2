//! Replies that are awaited: only a reply to a call that is open here may pass (dbus-daemon(1), "requested_reply").
//!
//! An open call is known at both ends: the callee keeps `(caller, serial)` with the deadline, the caller keeps
//! `(callee, serial)`, so that either can leave without a search through the whole bus.

use hashbrown::{HashMap, HashSet};

use super::event::{Millis, PeerId};
use super::timer::Deadline;
use super::{Broker, Seeded};

pub(super) const NO_REPLY: &str = "org.freedesktop.DBus.Error.NoReply";
pub(super) const DISCONNECTED: &str = "Message recipient disconnected from message bus without replying";

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
        Self {
            owed: HashMap::with_hasher(hasher.clone()),
            awaited: HashSet::with_hasher(hasher),
        }
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
        let mut all: Vec<_> = self
            .owed
            .iter()
            .map(|(call, deadline)| (*call, *deadline))
            .collect();
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

impl Broker {
    /// A call that expects a reply was forwarded.
    pub(super) fn open_call(&mut self, caller: PeerId, callee: PeerId, serial: u32) {
        let deadline = self
            .config
            .limits
            .reply_timeout
            .map(|timeout| self.later(timeout));
        if let Some(peer) = self.peers.get_mut(callee) {
            peer.calls.owe(caller, serial, deadline);
        }
        if let Some(peer) = self.peers.get_mut(caller) {
            peer.calls.wait(callee, serial);
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((
                deadline,
                Deadline::Reply {
                    callee,
                    caller,
                    serial,
                },
            ));
        }
    }

    /// Forgets an open call at both ends. False if it is not open.
    pub(super) fn close_call(&mut self, callee: PeerId, caller: PeerId, serial: u32) -> bool {
        if let Some(peer) = self.peers.get_mut(caller) {
            peer.calls.unwait(callee, serial);
        }
        let Some(deadline) = self
            .peers
            .get_mut(callee)
            .and_then(|peer| peer.calls.settle(caller, serial))
        else {
            return false;
        };
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(
                deadline,
                Deadline::Reply {
                    callee,
                    caller,
                    serial,
                },
            ));
        }
        true
    }

    pub(super) fn reply_overdue(&mut self, callee: PeerId, caller: PeerId, serial: u32) {
        if self.close_call(callee, caller, serial) {
            let text = "Message did not receive a reply (timeout by message bus)";
            self.send_late_error(caller, serial, NO_REPLY, text);
        }
    }

    /// Ends every call that a peer who leaves has a part in. Those who wait for it are told.
    pub(super) fn drop_calls(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        let (owed, awaited) = (peer.calls.owed(), peer.calls.awaited());
        for (callee, serial) in awaited {
            self.close_call(callee, id, serial);
        }
        for ((caller, serial), _) in owed {
            if self.close_call(id, caller, serial) {
                self.send_late_error(caller, serial, NO_REPLY, DISCONNECTED);
            }
        }
    }
}
