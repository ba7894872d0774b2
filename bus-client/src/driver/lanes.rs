//! Interfaces whose calls run one after the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::object::{BoxFuture, Incoming, Interface};
use crate::session::CallId;

const DRIVER: &str = "org.freedesktop.DBus";

/// All serial interfaces that have something to do, and whom their handlers wait for.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    /// How many calls wait.
    waiting: usize,
    next: u64,
    /// Whom each running handler of theirs has called, and has no answer of.
    calls: BTreeMap<u64, BTreeMap<CallId, Box<str>>>,
    callers: BTreeMap<CallId, u64>,
}

/// Which interface: where it is in memory.
pub(super) type LaneId = usize;

struct Lane {
    interface: Arc<dyn Interface>,
    running: u64,
    waiting: VecDeque<Waiting>,
}

/// A call that waits for its turn.
pub(super) struct Waiting {
    id: u64,
    pub(super) call: Incoming,
    pub(super) link: u64,
}

/// What becomes of a call to a serial interface.
pub(super) enum Turn {
    /// It is its turn.
    Now(LaneId, Incoming),
    /// It would wait for itself.
    Never(Incoming),
    /// It waits; where the future says so, for itself.
    Later(Option<Doubt>),
}

/// The running handler waits for somebody whose unique name is not known: is it the caller?
pub(super) struct Doubt {
    pub(super) lane: LaneId,
    pub(super) waiting: u64,
    pub(super) is_caller: BoxFuture<bool>,
}

impl Lanes {
    /// A call has come.
    pub(super) fn come(&mut self, interface: &Arc<dyn Interface>, call: Incoming, link: u64) -> Turn {
        let id = Arc::as_ptr(interface).cast::<()>().addr();
        let Some(lane) = self.lanes.get_mut(&id) else {
            return Turn::Now(id, call);
        };
        let awaited = self.calls.get(&lane.running);
        let awaited: Vec<Box<str>> = awaited.into_iter().flat_map(BTreeMap::values).cloned().collect();
        let caller = call.sender().unwrap_or_default();
        if awaited.iter().any(|name| **name == *caller) {
            return Turn::Never(call);
        }
        self.next += 1;
        let waiting = self.next;
        let names = awaited
            .into_iter()
            .filter(|name| !name.starts_with(':') && **name != *DRIVER);
        let names: Vec<_> = names.collect();
        let doubt = (!names.is_empty()).then(|| Doubt {
            lane: id,
            waiting,
            is_caller: is_caller(&call, names),
        });
        self.waiting += 1;
        lane.waiting.push_back(Waiting {
            id: waiting,
            call,
            link,
        });
        Turn::Later(doubt)
    }

    /// This handler runs now.
    pub(super) fn begin(&mut self, lane: LaneId, interface: Arc<dyn Interface>, task: u64) {
        let known = self.lanes.entry(lane).or_insert_with(|| Lane {
            interface,
            running: task,
            waiting: VecDeque::new(),
        });
        known.running = task;
        self.calls.insert(task, BTreeMap::new());
    }

    /// The handler that ran has ended. The next call.
    pub(super) fn end(&mut self, lane: LaneId) -> Option<(Arc<dyn Interface>, Waiting)> {
        let known = self.lanes.get_mut(&lane)?;
        for call in self.calls.remove(&known.running).into_iter().flatten() {
            self.callers.remove(&call.0);
        }
        let Some(waiting) = known.waiting.pop_front() else {
            self.lanes.remove(&lane);
            return None;
        };
        self.waiting -= 1;
        Some((known.interface.clone(), waiting))
    }

    /// Takes a call out that waits for itself, if it waits still.
    pub(super) fn refuse(&mut self, lane: LaneId, waiting: u64) -> Option<Waiting> {
        let known = self.lanes.get_mut(&lane)?;
        let place = known.waiting.iter().position(|known| known.id == waiting)?;
        self.waiting -= 1;
        known.waiting.remove(place)
    }

    /// A handler has called somebody, and waits.
    pub(super) fn waits(&mut self, task: u64, call: CallId, to: &str) {
        if let Some(calls) = self.calls.get_mut(&task) {
            calls.insert(call, to.into());
            self.callers.insert(call, task);
        }
    }

    /// The call of a handler has ended.
    pub(super) fn waits_no_more(&mut self, call: CallId) {
        let Some(task) = self.callers.remove(&call) else {
            return;
        };
        if let Some(calls) = self.calls.get_mut(&task) {
            calls.remove(&call);
        }
    }

    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

/// Whether one of these names is the caller's.
fn is_caller(call: &Incoming, names: Vec<Box<str>>) -> BoxFuture<bool> {
    let connection = call.connection();
    let caller: Box<str> = call.sender().unwrap_or_default().into();
    Box::pin(async move {
        for name in names {
            let member = "org.freedesktop.DBus.GetNameOwner";
            let owner = connection.call::<String>(DRIVER, "/org/freedesktop/DBus", member, &&*name);
            if owner.idempotent().await.is_ok_and(|owner| *owner == *caller) {
                return true;
            }
        }
        false
    })
}
