//! Who has something to do when.

use crate::moment::Moment;
use crate::resume::SessionId;
use crate::session::CarrierId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Who {
    Session(SessionId),
    Carrier(CarrierId),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Moment, Who)>,
    by_who: BTreeMap<Who, Moment>,
}

impl Timers {
    pub(super) fn set(&mut self, who: Who, at: Option<Moment>) {
        let before = match at {
            Some(at) => self.by_who.insert(who, at),
            None => self.by_who.remove(&who),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, who));
        }
        if let Some(at) = at {
            self.by_time.insert((at, who));
        }
    }

    pub(super) fn next(&self) -> Option<Moment> {
        self.by_time.first().map(|(at, _)| *at)
    }

    pub(super) fn due(&self, now: Moment) -> Option<Who> {
        self.by_time
            .first()
            .filter(|(at, _)| *at <= now)
            .map(|(_, who)| *who)
    }
}
