//! What the rules of each user cost everybody's messages, and how much of it a user may cause.
//!
//! The counts follow from the rules that there are and from nothing else, so that a bus that goes on decides as it did
//! before.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::key::{Depth, Key, Mask};
use crate::broker::Seeded;
use crate::broker::event::PeerId;

/// How many unusual forms the rules of one user may have. Each may cost a message a look-up.
pub(super) const MAX_FORMS: u32 = 2048;

/// How many `argNpath` the rules of one user may have that look at several prefixes or at a well-known name besides. A
/// message with a shorter path in this argument meets them all.
pub(super) const MAX_OVERLAPS: u32 = 4096;

/// Namespaces of usual rules are at most this deep.
const USUAL_DEPTH: Depth = 8;

/// What one rule adds to its user's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Load {
    /// The rule's form and depths, if they are unusual.
    form: Option<u64>,
    overlaps: u32,
}

/// The rules of all users that are not usual.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Those who have any, with their user and the number of these rules.
    peers: HashMap<PeerId, (User, u32), Seeded>,
    /// How many rules of a user have this form.
    forms: HashMap<(User, u64), u32, Seeded>,
    totals: HashMap<User, Total, Seeded>,
}

/// By uid; peers of whom none is known are one user.
pub(super) type User = Option<u32>;

#[derive(Debug, Clone, Copy, Default)]
struct Total {
    forms: u32,
    overlaps: u32,
}

impl Load {
    /// `hash` is of the key's form and depths.
    pub(super) fn of(key: &Key, hash: impl FnOnce() -> u64) -> Self {
        let namespaces = key.depths.len();
        let paths = key.mask.paths.count_ones();
        let is_overlapping = paths > 0 && namespaces + key.names.len() > 1;
        Self {
            form: (!is_usual(key)).then(hash),
            overlaps: if is_overlapping { paths } else { 0 },
        }
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Whether a rule is of the kind that programs have. Of these forms there are few, and they are not counted: nobody can
/// keep others of the same user from them.
fn is_usual(key: &Key) -> bool {
    let Mask {
        header,
        equals,
        paths,
    } = key.mask;
    let is_of_eavesdropper = header & Mask::DESTINATION != 0;
    equals <= 1
        && paths == 0
        && !is_of_eavesdropper
        && key.depths.len() <= 1
        && key.depths.iter().all(|depth| *depth <= USUAL_DEPTH)
}

impl Accounts {
    pub(super) fn new(hasher: Seeded) -> Self {
        Self {
            peers: HashMap::with_hasher(hasher.clone()),
            forms: HashMap::with_hasher(hasher.clone()),
            totals: HashMap::with_hasher(hasher),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.forms.is_empty() && self.totals.is_empty()
    }

    /// Whether the user may have more rules, which add these.
    pub(super) fn admits(&self, user: User, loads: impl Iterator<Item = Load>) -> bool {
        let mut total = self.totals.get(&user).copied().unwrap_or_default();
        let mut new = BTreeSet::new();
        let mut overlaps = 0;
        for load in loads {
            overlaps += load.overlaps;
            if let Some(form) = load.form
                && !self.forms.contains_key(&(user, form))
                && new.insert(form)
            {
                total.forms += 1;
            }
        }
        // What adds nothing is always taken.
        (new.is_empty() || total.forms <= MAX_FORMS)
            && (overlaps == 0 || total.overlaps + overlaps <= MAX_OVERLAPS)
    }

    /// A peer of this user has one rule more.
    pub(super) fn add(&mut self, peer: PeerId, user: User, load: Load) {
        if load.is_none() {
            return;
        }
        self.peers.entry(peer).or_insert((user, 0)).1 += 1;
        let total = self.totals.entry(user).or_default();
        total.overlaps += load.overlaps;
        if let Some(form) = load.form {
            let count = self.forms.entry((user, form)).or_insert(0);
            *count += 1;
            total.forms += u32::from(*count == 1);
        }
    }

    /// A peer has one rule less.
    pub(super) fn remove(&mut self, peer: PeerId, load: Load) {
        if load.is_none() {
            return;
        }
        let Some((user, count)) = self.peers.get_mut(&peer) else {
            return;
        };
        let user = *user;
        *count -= 1;
        if *count == 0 {
            self.peers.remove(&peer);
        }
        let Some(total) = self.totals.get_mut(&user) else {
            return;
        };
        total.overlaps -= load.overlaps;
        if let Some(form) = load.form
            && let Some(count) = self.forms.get_mut(&(user, form))
        {
            *count -= 1;
            if *count == 0 {
                self.forms.remove(&(user, form));
                total.forms -= 1;
            }
        }
        if (total.forms, total.overlaps) == (0, 0) {
            self.totals.remove(&user);
        }
    }
}
