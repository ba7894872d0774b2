//! Which bus it is, and whose unique names are still theirs.

use std::collections::BTreeSet;

use bus_wire::Guid;

/// So many unique names of one bus are remembered.
const REMEMBERED: usize = 4096;

/// An epoch is the life of one bus, told by the GUID in its OK. With a new one all unique names of the old become strangers'.
///
/// A destination that is a text says nothing about when it was learnt. It is taken for a name of the old bus where it was seen
/// on that and was not seen on this one. Where more names were seen on the old bus than are remembered, it is so for each that
/// was not seen on this one.
#[derive(Debug, Clone, Default)]
pub(super) struct Epochs {
    guid: Option<Guid>,
    number: u64,
    /// Unique names that were seen on this bus.
    seen: BTreeSet<Box<str>>,
    /// The last one, which is likely to be the next.
    last: Box<str>,
    /// Unique names that were seen on buses before.
    old: BTreeSet<Box<str>>,
    /// Some were seen that are in neither set.
    forgot: bool,
}

impl Epochs {
    /// The first is 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the bus with this GUID is the one from before. A bus that has none (a peer that connected to us) never is.
    pub(super) fn enter(&mut self, guid: Option<Guid>) -> bool {
        if guid.is_some() && guid == self.guid {
            return true;
        }
        self.guid = guid;
        self.number += 1;
        let seen = std::mem::take(&mut self.seen);
        if self.old.len() + seen.len() > 2 * REMEMBERED {
            self.forgot = true;
            self.old = seen;
        } else {
            self.old.extend(seen);
        }
        self.last = Box::default();
        false
    }

    /// A name was seen on this bus; one that is not unique is left out.
    pub(super) fn note(&mut self, name: &str) {
        if *self.last == *name || !name.starts_with(':') {
            return;
        }
        self.last = name.into();
        if self.seen.contains(name) {
            return;
        }
        if self.seen.len() == REMEMBERED {
            self.forgot = true;
        } else {
            self.seen.insert(name.into());
        }
    }

    /// Whether a destination is a unique name of a bus that is gone. `learnt` is the epoch that it was learnt in, where known.
    pub(super) fn is_stale(&self, name: &str, learnt: Option<u64>) -> bool {
        if !name.starts_with(':') {
            return false;
        }
        match learnt {
            Some(learnt) => learnt != self.number,
            None => self.number > 1 && !self.seen.contains(name) && (self.forgot || self.old.contains(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guid(byte: u8) -> Option<Guid> {
        Some(Guid::from_bytes([byte; 16]))
    }

    #[test]
    fn names_of_the_same_bus_stay_and_those_of_another_do_not() {
        let mut epochs = Epochs::default();
        assert!(!epochs.enter(guid(1)));
        epochs.note(":1.5");
        assert!(epochs.enter(guid(1)), "the same bus");
        assert!(!epochs.is_stale(":1.5", None));
        assert!(!epochs.enter(guid(2)));
        assert!(epochs.is_stale(":1.5", None));
        assert!(epochs.is_stale(":1.6", Some(1)));
        assert!(!epochs.is_stale(":1.6", None), "it was never seen before");
        assert!(!epochs.is_stale("a.b", None));
        epochs.note(":1.5");
        assert!(!epochs.is_stale(":1.5", None), "it was seen on this bus");
        assert!(epochs.is_stale(":1.5", Some(1)), "but this one was learnt before");
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_is_not_trusted() {
        let mut epochs = Epochs::default();
        for bus in 1..50 {
            epochs.enter(guid(bus));
            for name in 0..5000 {
                epochs.note(&format!(":{bus}.{name}"));
            }
            assert!(epochs.seen.len() + epochs.old.len() <= 3 * REMEMBERED);
        }
        epochs.enter(guid(99));
        assert!(epochs.is_stale(":1.4999", None));
    }
}
