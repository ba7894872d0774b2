//! What always holds between events: everything that is kept twice agrees.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use thiserror::Error;

use super::event::PeerId;
use super::peer::{Peer, Phase};
use super::timer::Deadline;
use super::{Broker, Seeded};

/// Something that is kept twice and does not agree: this program is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Violation(String);

impl Violation {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Broker {
    /// Rebuilds every index and recounts every count, and compares them with those in use.
    ///
    /// # Errors
    /// What does not hold, of the first that does not.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        if let Some((id, reason)) = self.condemned.front() {
            return Err(Violation::new(format!(
                "{id:?} is condemned between events: {reason}"
            )));
        }
        self.check_peers()?;
        self.check_names()?;
        self.check_calls_and_deadlines()?;
        self.check_rules()?;
        self.check_fds()
    }

    fn check_peers(&self) -> Result<(), Violation> {
        let (mut active, mut incomplete, mut reachable) = (0, 0, 0);
        let mut users: HashMap<u32, u32, Seeded> = HashMap::with_hasher(Seeded::default());
        let listed: BTreeSet<PeerId> = self.dirty.iter().copied().collect();
        let mut dirty = 0;
        for peer in self.peers.iter() {
            let id = peer.id;
            match (&peer.unique, peer.is_incomplete()) {
                (None, true) => incomplete += 1,
                (Some(unique), false) => {
                    active += 1;
                    if let Some(uid) = peer.credentials.uid {
                        *users.entry(uid).or_insert(0) += 1;
                    }
                    let found = self.unique.get(&unique.number).copied();
                    if found != peer.is_active().then_some(id) {
                        return Err(Violation::new(format!(
                            "{} leads to {found:?}, not to {id:?}",
                            unique.name
                        )));
                    }
                    reachable += usize::from(peer.is_active());
                    if unique.number >= self.next_unique {
                        return Err(Violation::new(format!("{} was never given out", unique.name)));
                    }
                }
                (Some(_), true) | (None, false) => {
                    return Err(Violation::new(format!(
                        "{id:?} has a unique name that does not fit its phase"
                    )));
                }
            }
            if peer.is_condemned {
                return Err(Violation::new(format!("{id:?} is condemned between events")));
            }
            if peer.is_dirty != listed.contains(&id) {
                return Err(Violation::new(format!("{id:?} disagrees with the dirty list")));
            }
            dirty += usize::from(peer.is_dirty);
        }
        // Of those who are gone, entries may be left.
        let listed = self
            .dirty
            .iter()
            .filter(|id| self.peers.get(**id).is_some())
            .count();
        if listed != dirty {
            return Err(Violation::new(format!(
                "{listed} entries on the dirty list for {dirty} peers"
            )));
        }
        if reachable != self.unique.len() {
            return Err(Violation::new(format!(
                "{} unique names for {reachable} peers",
                self.unique.len()
            )));
        }
        if (active, incomplete) != (self.stats.active, self.stats.incomplete) {
            return Err(Violation::new(format!(
                "{active} active and {incomplete} incomplete peers: {:?}",
                self.stats
            )));
        }
        if users != self.users {
            return Err(Violation::new(format!(
                "peers per user: {users:?}, and not {:?}",
                self.users
            )));
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), Violation> {
        let (mut places, mut primaries) = (0, 0);
        for name in self.names.sorted() {
            let owners: BTreeSet<PeerId> = name.owners.iter().map(|owner| owner.peer).collect();
            if owners.is_empty() || owners.len() != name.owners.len() {
                return Err(Violation::new(format!(
                    "the queue of {} is empty or has somebody twice",
                    name.name
                )));
            }
            for (place, owner) in name.owners.iter().enumerate() {
                let Some(peer) = self.peers.get(owner.peer).filter(|peer| peer.is_active()) else {
                    return Err(Violation::new(format!(
                        "{:?} waits for {} and is not active",
                        owner.peer, name.name
                    )));
                };
                if !peer.names.contains(&name.name) {
                    return Err(Violation::new(format!(
                        "{:?} does not know that it waits for {}",
                        owner.peer, name.name
                    )));
                }
                if peer.owned.contains(&name.name) != (place == 0) {
                    return Err(Violation::new(format!(
                        "{:?} is wrong about whether it owns {}",
                        owner.peer, name.name
                    )));
                }
            }
            places += owners.len();
            primaries += 1;
        }
        let held: usize = self.peers.iter().map(|peer| peer.names.len()).sum();
        let owned: usize = self.peers.iter().map(|peer| peer.owned.len()).sum();
        if (held, owned) != (places, primaries) {
            return Err(Violation::new(format!(
                "{held} names held, {owned} owned: {places} and {primaries} in the table"
            )));
        }
        Ok(())
    }

    fn check_calls_and_deadlines(&self) -> Result<(), Violation> {
        let mut deadlines = BTreeSet::new();
        let (mut owed, mut awaited) = (0, 0);
        for peer in self.peers.iter() {
            deadlines.extend(peer.hello_deadline.map(|at| (at, Deadline::Hello(peer.id))));
            deadlines.extend(peer.fds_deadline.map(|at| (at, Deadline::Fds(peer.id))));
            for ((caller, serial), deadline) in peer.calls.owed() {
                owed += 1;
                let callee = peer.id;
                deadlines.extend(deadline.map(|at| {
                    (
                        at,
                        Deadline::Reply {
                            callee,
                            caller,
                            serial,
                        },
                    )
                }));
                if !self
                    .peers
                    .get(caller)
                    .is_some_and(|peer| peer.calls.awaits(callee, serial))
                {
                    return Err(Violation::new(format!(
                        "{callee:?} owes {caller:?} an answer that it does not wait for"
                    )));
                }
            }
            awaited += peer.calls.awaited_count();
        }
        if owed != awaited {
            return Err(Violation::new(format!("{owed} answers owed, {awaited} awaited")));
        }
        if deadlines != self.deadlines {
            return Err(Violation::new("the deadlines are not those of the peers"));
        }
        Ok(())
    }

    fn check_rules(&self) -> Result<(), Violation> {
        let (mut rules, mut eavesdropping, mut filters) = (0, 0, 0);
        for peer in self.peers.iter() {
            match peer.phase {
                Phase::Active => {
                    rules += self.matches.count(peer.id);
                    eavesdropping += self.eavesdroppers.count(peer.id);
                    let expected = self.matches.rules_of(peer.id).filter(|rule| rule.eavesdrop);
                    if !expected.eq(self.eavesdroppers.rules_of(peer.id)) {
                        return Err(Violation::new(format!(
                            "{:?} eavesdrops by other rules than its own",
                            peer.id
                        )));
                    }
                }
                Phase::Monitor => filters += self.monitors.count(peer.id),
                Phase::Authenticating(_) | Phase::Greeting => {}
            }
        }
        let counted = (rules, eavesdropping, filters);
        let indexed = (self.matches.len(), self.eavesdroppers.len(), self.monitors.len());
        if counted != indexed {
            return Err(Violation::new(format!(
                "rules of peers, eavesdropping, of monitors: {counted:?}, and not {indexed:?}"
            )));
        }
        Ok(())
    }

    fn check_fds(&self) -> Result<(), Violation> {
        let all = self.owned_fds();
        let distinct: BTreeSet<_> = all.iter().collect();
        if distinct.len() != all.len() {
            return Err(Violation::new(format!("a descriptor is owned twice: {all:?}")));
        }
        let misplaced =
            |peer: &&Peer| !peer.takes_fds && (peer.out.queued_fds() > 0 || peer.framer.pending_fds() > 0);
        match self.peers.iter().find(misplaced) {
            Some(peer) => Err(Violation::new(format!(
                "{:?} has descriptors and takes none",
                peer.id
            ))),
            None => Ok(()),
        }
    }
}
