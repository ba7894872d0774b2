//! Limits, and what is charged against them.
//!
//! Every byte that waits in the bus waits in the send queue of its receiver, so the receiver is charged: only a slow
//! peer pays. Input waits nowhere, apart from the one message of each peer that has not arrived completely, and from what one
//! read brought beyond a step.

use super::agenda::Agenda;
use super::event::PeerId;
use super::peer::Peer;
use super::shares::counted_from;
use super::{Action, Broker};

/// Counts of the whole bus, for `org.freedesktop.DBus.Debug.Stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Peers that have said Hello, monitors among them.
    pub(crate) active: u32,
    /// Peers that have not.
    pub(crate) incomplete: u32,
    /// Filters of monitors count.
    pub(crate) rules: u32,
    pub(crate) peak_rules: u32,
    /// Unique names count.
    pub(crate) names: u32,
    /// Unique names count.
    pub(crate) peak_names: u32,
}

/// Bytes held by kind, and what the cap of memory has led to, for `org.freedesktop.DBus.Debug.Stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldBytes {
    /// Charged for output that waits: what waits for several is charged to each.
    pub(crate) queued: u64,
    /// Charged for messages that have not arrived completely.
    pub(crate) input: u64,
    /// Charged for match rules, names and open calls.
    pub(crate) state: u64,
    /// Charged for the activation environment.
    pub(crate) environment: u64,
    /// Messages and calls refused.
    pub(crate) refused: u64,
    /// How often a peer was not read from for a while.
    pub(crate) paced: u64,
    /// Peers disconnected.
    pub(crate) dismissed: u64,
}

/// How many peers more than `max_incomplete_connections` are let in: the runtime may have accepted a few before
/// [`Action::StopAccepting`] reached it.
pub(super) const ACCEPT_SLACK: u64 = 64;

/// From which length of its queue on a peer is not read from.
pub(super) fn stop_reading_above(limit: u64) -> u64 {
    limit - limit / 8
}

/// Whether a peer that is read from has too long a queue for that.
#[inline]
pub(super) fn is_to_be_stopped(peer: &Peer, limit: u64) -> bool {
    !peer.is_stopped && peer.out.len() > stop_reading_above(limit)
}

impl Broker {
    /// The counts at this moment.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            active: self.roster.active(),
            incomplete: self.roster.incomplete(),
            rules: self.subscriptions.len() as u32,
            peak_rules: self.subscriptions.peak(),
            names: (self.names.len() + self.roster.unique_count()) as u32,
            peak_names: self.names.peak(),
        }
    }

    /// What is held at this moment.
    pub(crate) fn holdings(&self) -> HeldBytes {
        let counts = self.shortage.counts();
        HeldBytes {
            queued: self.ledger.queued(),
            input: self.ledger.input(),
            state: self.state_charge(),
            environment: self.activation_environment.charge(),
            refused: counts.refused,
            paced: counts.paced,
            dismissed: counts.dismissed,
        }
    }

    /// Whether a queue is too long for another message. One message may pass the limit, as in dbus-daemon.
    pub(super) fn is_full(&self, peer: &Peer) -> bool {
        let limits = &self.config.limits;
        peer.out.len() > limits.max_outgoing_bytes
            || peer.out.queued_fds() as u64 > limits.max_outgoing_unix_fds
    }

    /// Stops and resumes reading from a peer that does not read: its own calls would fill its queue with answers.
    pub(super) fn regulate(&mut self, id: PeerId) {
        let limit = self.config.limits.max_outgoing_bytes;
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        let queued = peer.out.len();
        if queued <= counted_from(limit) {
            peer.is_congested = false;
        }
        let action = if is_to_be_stopped(peer, limit) {
            peer.is_stopped = true;
            Action::StopReading(id)
        } else if peer.is_stopped && queued <= limit - limit / 4 {
            peer.is_stopped = false;
            Action::ResumeReading(id)
        } else {
            return;
        };
        // Whoever is held back, or waits, is not read from either way.
        let waits = matches!(peer.agenda, Agenda::Paced { .. });
        if !waits && !self.shortage.is_paced(id) {
            self.outgoing.ask(action);
        }
    }

    /// Stops and resumes accepting, with `max_incomplete_connections`.
    pub(super) fn regulate_accepting(&mut self) {
        let limit = self.config.limits.max_incomplete_connections;
        if let Some(action) = self.roster.regulate_accepting(limit) {
            self.outgoing.ask(action);
        }
    }
}
