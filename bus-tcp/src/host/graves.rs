//! Sessions that are over, so that a client that comes late learns exactly what was taken.

use super::Identity;
use crate::frame::Reason;
use crate::limits::{TOMBSTONE_AGE, TOMBSTONES};
use crate::moment::Moment;
use crate::resume::{Secret, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// What is kept of a session that is over.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Grave {
    /// Whose it was: nobody else is told.
    #[serde(with = "super::saved::text")]
    pub owner: Identity,
    /// What its owner has to prove.
    pub secret: Secret,
    /// Why it is over.
    pub reason: Reason,
    /// Bytes that were taken from its client in all.
    pub offset: u64,
}

/// At most [`TOMBSTONES`], each for [`TOMBSTONE_AGE`]; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Graves {
    by_id: BTreeMap<SessionId, Grave>,
    /// When each is forgotten, in the order of their coming.
    order: VecDeque<(Moment, SessionId)>,
}

impl Graves {
    pub(super) fn add(&mut self, now: Moment, id: SessionId, grave: Grave) {
        if self.by_id.insert(id, grave).is_none() {
            self.order.push_back((now + TOMBSTONE_AGE, id));
        }
        while self.order.len() > TOMBSTONES {
            self.drop_oldest();
        }
    }

    pub(super) fn get(&self, id: &SessionId) -> Option<&Grave> {
        self.by_id.get(id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Grave)> {
        self.order
            .iter()
            .filter_map(|(_, id)| Some((*id, self.by_id.get(id)?)))
    }

    pub(super) fn next(&self) -> Option<Moment> {
        self.order.front().map(|(until, _)| *until)
    }

    pub(super) fn expire(&mut self, now: Moment) {
        while self.next().is_some_and(|until| now >= until) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, id)) = self.order.pop_front() {
            self.by_id.remove(&id);
        }
    }
}
