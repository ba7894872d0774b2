//! The settle window: after another bus has come, calls wait until those whom they are for are back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::CallId;

/// So many names are remembered as owned.
const REMEMBERED: usize = 1024;

/// Which well-known names were owned on the bus from before and are not seen on this one.
#[derive(Debug, Default)]
pub(super) struct Settle {
    until: Option<Duration>,
    /// There was no link with which calls can be made since [`begin`](Self::begin): the window is not open yet.
    is_unopened: bool,
    /// Where the link was lost in the window: when it ends, if the bus stays the same.
    paused: Option<Duration>,
    /// Names that were owned before and are not yet known to be owned now; empty while there is no window.
    expected: BTreeSet<Box<str>>,
    /// Calls that wait for such names, in order. Each name here is watched.
    waiting: BTreeMap<Box<str>, BTreeSet<CallId>>,
    /// Names that were owned on this bus: they have answered.
    owned: BTreeSet<Box<str>>,
}

impl Settle {
    /// A well-known name has answered.
    pub(super) fn note(&mut self, name: &str) {
        if name.starts_with(':') || self.owned.contains(name) || self.owned.len() == REMEMBERED {
            return;
        }
        self.owned.insert(name.into());
    }

    /// Another bus has come. Names that were known to be owned, besides those that have answered.
    pub(super) fn begin(&mut self, until: Duration, watched: Vec<Box<str>>) {
        // Whoever had no time to come back on the last bus is expected on this one.
        self.expected.extend(std::mem::take(&mut self.owned));
        self.expected.extend(watched);
        self.until = Some(until);
        self.is_unopened = true;
        self.paused = None;
    }

    /// Calls can be made: the window of a bus that has come is open until then, and that of one that stayed goes on.
    pub(super) fn open(&mut self, until: Duration) {
        if let Some(paused) = self.paused.take() {
            self.until = Some(paused);
        }
        if self.until.is_some() && std::mem::take(&mut self.is_unopened) {
            self.until = Some(until);
        }
    }

    /// Whether a call to this name is to wait.
    pub(super) fn is_expected(&self, name: &str) -> bool {
        self.expected.contains(name)
    }

    /// A call waits for this name. True: the name is to be watched.
    pub(super) fn wait(&mut self, name: &str, call: CallId) -> bool {
        if let Some(waiting) = self.waiting.get_mut(name) {
            waiting.insert(call);
            return false;
        }
        self.waiting.insert(name.into(), BTreeSet::from([call]));
        true
    }

    /// The call waits no longer.
    pub(super) fn remove(&mut self, name: &str, call: CallId) {
        if let Some(waiting) = self.waiting.get_mut(name) {
            waiting.remove(&call);
        }
    }

    /// The name has an owner. The calls that waited for it; `None` where the name was not watched for this.
    pub(super) fn back(&mut self, name: &str) -> Option<BTreeSet<CallId>> {
        if self.expected.remove(name) {
            self.note(name);
        }
        self.waiting.remove(name)
    }

    /// When the window is over; a bus on which no call can be made yet may take its time.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.until.filter(|_| !self.is_unopened)
    }

    /// The window is over, or the link is gone: names that were watched, and the calls that waited for them.
    pub(super) fn end(&mut self, lost: bool) -> BTreeMap<Box<str>, BTreeSet<CallId>> {
        let until = self.until.take();
        if lost {
            self.paused = self.paused.or(until);
        } else {
            self.expected.clear();
        }
        std::mem::take(&mut self.waiting)
    }

    /// How many names are remembered, and watched.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.owned.len() + self.expected.len(), self.waiting.len())
    }
}
