//! The names that we want to own.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{NameFlags, NameId, NameState};

/// All of them.
#[derive(Debug, Default)]
pub(super) struct OwnNames {
    table: BTreeMap<Box<str>, Own>,
    handles: BTreeMap<NameId, Box<str>>,
}

#[derive(Debug)]
struct Own {
    flags: NameFlags,
    handles: BTreeSet<NameId>,
    phase: Phase,
    state: NameState,
    /// The bus was asked for it at least once: what is asked for after that is a replay.
    was_asked: bool,
}

/// What the bus knows of it, on this link.
///
/// ```text
///         RequestName          reply
/// Absent ------------> Asking ------> Answered
///   ^ \____________________/(lost)      | ReleaseName
///   +-------------- Releasing <---------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Absent,
    Asking,
    Answered,
    Releasing,
}

/// What is to be asked about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Request,
    Release,
}

impl OwnNames {
    /// A handle wants this name. The state, and what the bus is to be asked.
    pub(super) fn own(&mut self, handle: NameId, name: &str, flags: NameFlags) -> (NameState, Option<Ask>) {
        self.handles.insert(handle, name.into());
        let own = self.table.entry(name.into()).or_insert_with(|| Own {
            flags,
            handles: BTreeSet::new(),
            phase: Phase::Absent,
            state: NameState::Pending,
            was_asked: false,
        });
        // Whoever asks anew for a name that was not to be had, or was given up, means it, with the flags that he says.
        let is_asked_anew = own.phase == Phase::Answered && own.state != NameState::Owned;
        if is_asked_anew || own.handles.is_empty() {
            own.was_asked = false;
            own.flags = flags;
            own.state = NameState::Pending;
        }
        if is_asked_anew {
            own.phase = Phase::Absent;
        }
        own.handles.insert(handle);
        (own.state.clone(), own.wanted())
    }

    /// A handle is gone. The name, and what the bus is to be asked.
    pub(super) fn disown(&mut self, handle: NameId) -> Option<(Box<str>, Ask)> {
        let name = self.handles.remove(&handle)?;
        let own = self.table.get_mut(&name)?;
        own.handles.remove(&handle);
        let ask = own.wanted();
        self.forget_unused(&name);
        ask.map(|ask| (name, ask))
    }

    fn forget_unused(&mut self, name: &str) {
        if self
            .table
            .get(name)
            .is_some_and(|own| own.handles.is_empty() && own.phase == Phase::Absent)
        {
            self.table.remove(name);
        }
    }

    /// Whether the bus is still to be asked this; then the flags of RequestName. From now on it is being asked.
    pub(super) fn begin(&mut self, name: &str, ask: Ask) -> Option<u32> {
        let own = self.table.get_mut(name)?;
        if own.wanted() != Some(ask) {
            return None;
        }
        match ask {
            Ask::Request => {
                own.phase = Phase::Asking;
                let replayed = std::mem::replace(&mut own.was_asked, true);
                Some(own.flags.bits(replayed))
            }
            Ask::Release => {
                own.phase = Phase::Releasing;
                Some(0)
            }
        }
    }

    /// The bus has answered. Who is to be told of which state, and what is to be asked next.
    pub(super) fn done(
        &mut self,
        name: &str,
        ask: Ask,
        state: NameState,
    ) -> (Vec<NameId>, NameState, Option<Ask>) {
        let Some(own) = self.table.get_mut(name) else {
            return (Vec::new(), state, None);
        };
        match ask {
            Ask::Request => {
                own.phase = Phase::Answered;
                let had = matches!(own.state, NameState::Owned | NameState::Lost);
                own.state = if had && state == NameState::Taken {
                    NameState::Lost
                } else {
                    state
                };
            }
            Ask::Release => {
                own.phase = Phase::Absent;
                own.state = NameState::Pending;
            }
        }
        let told = (
            own.handles.iter().copied().collect(),
            own.state.clone(),
            own.wanted(),
        );
        self.forget_unused(name);
        told
    }

    /// The bus says that a name is ours now, or is not any more. Who is to be told of which state.
    pub(super) fn told(&mut self, name: &str, is_ours: bool) -> Option<(Vec<NameId>, NameState)> {
        let own = self.table.get_mut(name)?;
        // The answer to what is being asked says it too.
        if own.phase != Phase::Answered {
            return None;
        }
        let state = match (is_ours, own.flags.queue) {
            (true, _) => NameState::Owned,
            (false, true) => NameState::Queued,
            (false, false) => NameState::Lost,
        };
        if own.state == state || (!is_ours && own.state != NameState::Owned) {
            return None;
        }
        own.state = state.clone();
        Some((own.handles.iter().copied().collect(), state))
    }

    /// The link is gone. The state in which a name was is kept to be compared with.
    pub(super) fn lost(&mut self) {
        for own in self.table.values_mut() {
            own.phase = Phase::Absent;
        }
        self.table.retain(|_, own| !own.handles.is_empty());
    }

    /// All that are to be asked for anew.
    pub(super) fn all(&self) -> Vec<Box<str>> {
        self.table.keys().cloned().collect()
    }

    /// How many names and handles there are.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.table.len(), self.handles.len())
    }
}

impl Own {
    fn wanted(&self) -> Option<Ask> {
        match (self.handles.is_empty(), self.phase) {
            (false, Phase::Absent) => Some(Ask::Request),
            (true, Phase::Answered) => Some(Ask::Release),
            (false, Phase::Asking | Phase::Answered | Phase::Releasing)
            | (true, Phase::Absent | Phase::Asking | Phase::Releasing) => None,
        }
    }
}

impl NameFlags {
    /// As RequestName takes them (specification, "org.freedesktop.DBus.RequestName").
    fn bits(self, replayed: bool) -> u32 {
        let replace = self.replace_existing && !replayed;
        u32::from(self.allow_replacement) | u32::from(replace) << 1 | u32::from(!self.queue) << 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_taken_away_from_others_in_replay() {
        let mut names = OwnNames::default();
        let flags = NameFlags {
            replace_existing: true,
            ..NameFlags::default()
        };
        assert_eq!(names.own(NameId(1), "a.b", flags).1, Some(Ask::Request));
        assert_eq!(names.begin("a.b", Ask::Request), Some(6));
        names.done("a.b", Ask::Request, NameState::Owned);
        names.lost();
        assert_eq!(names.begin("a.b", Ask::Request), Some(4));
        let (told, state, _) = names.done("a.b", Ask::Request, NameState::Taken);
        assert_eq!((told, state), (vec![NameId(1)], NameState::Lost));
    }

    #[test]
    fn the_last_handle_releases() {
        let mut names = OwnNames::default();
        names.own(NameId(1), "a.b", NameFlags::default());
        names.begin("a.b", Ask::Request);
        names.done("a.b", Ask::Request, NameState::Owned);
        assert_eq!(
            names.own(NameId(2), "a.b", NameFlags::default()),
            (NameState::Owned, None)
        );
        assert_eq!(names.disown(NameId(1)), None);
        assert_eq!(names.disown(NameId(2)), Some(("a.b".into(), Ask::Release)));
        assert!(names.begin("a.b", Ask::Release).is_some());
        names.done("a.b", Ask::Release, NameState::Pending);
        assert_eq!(names.count(), (0, 0));
    }
}
