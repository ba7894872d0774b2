//! What always holds between events: everything that is kept twice agrees.

use std::collections::BTreeSet;

use thiserror::Error;

use super::Broker;
use super::agenda::Agenda;
use super::deadline::Deadline;
use super::event::PeerId;
use super::peer::Peer;

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
        let with = |is_in: fn(&Peer) -> bool| -> Vec<PeerId> {
            let peers = self.roster.iter().filter(|peer| is_in(peer));
            peers.map(|peer| peer.id).collect()
        };
        self.outgoing.check(&self.roster)?;
        self.roster.check()?;
        self.names
            .check(|id| self.roster.get(id).is_some_and(Peer::is_active))?;
        self.calls.check(|id| self.roster.get(id).is_some())?;
        self.subscriptions
            .check(&with(Peer::is_active), &with(Peer::is_monitor))?;
        self.ledger.check(&self.roster)?;
        self.descriptors.check(self.roster.iter())?;
        self.check_crowd()?;
        self.shortage.check(|id| self.roster.get(id).is_some())?;
        self.check_shares()?;
        self.check_rights()?;
        self.check_deadlines()?;
        self.check_fds()
    }

    fn check_deadlines(&self) -> Result<(), Violation> {
        let mut expected: BTreeSet<_> = self.calls.deadlines().collect();
        expected.extend(self.shortage.deadlines());
        expected.extend(self.reload.due().map(|at| (at, Deadline::Reload)));
        let keyring = self.keyring.due();
        expected.extend(keyring.map(|at| (at, Deadline::Keyring)));
        for peer in self.roster.iter() {
            expected.extend(peer.hello_deadline.map(|at| (at, Deadline::Hello(peer.id))));
            expected.extend(peer.fds_deadline.map(|at| (at, Deadline::Fds(peer.id))));
            if let Agenda::Paced { until } = peer.agenda {
                expected.insert((until, Deadline::Paced(peer.id)));
            }
        }
        self.deadlines.check(&expected)
    }

    fn check_fds(&self) -> Result<(), Violation> {
        let all = self.owned_fds();
        let distinct: BTreeSet<_> = all.iter().collect();
        if distinct.len() != all.len() {
            return Err(Violation::new(format!("a descriptor is owned twice: {all:?}")));
        }
        let misplaced =
            |peer: &&Peer| !peer.takes_fds && (peer.out.queued_fds() > 0 || peer.framer.pending_fds() > 0);
        match self.roster.iter().find(misplaced) {
            Some(peer) => {
                let text = format!("{:?} has descriptors and takes none", peer.id);
                Err(Violation::new(text))
            }
            None => Ok(()),
        }
    }
}
