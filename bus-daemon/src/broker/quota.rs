//! Limits, and what is charged against them.
//!
//! Every byte that waits in the bus waits in the send queue of its receiver, so the receiver is charged: only a slow
//! peer pays. Input waits nowhere, apart from the one message of each peer that has not arrived completely, and from what one
//! read brought beyond a step.

use super::agenda::Agenda;
use super::descriptors::Payer;
use super::disconnect::Excess;
use super::event::PeerId;
use super::peer::Peer;
use super::shares::{Party, counted_from};
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

/// From which length of its queue on a peer is not read from.
pub(super) fn stop_reading_above(limit: u64) -> u64 {
    limit - limit / 8
}

/// Whether a peer that is read from has too long a queue for that.
#[inline]
pub(super) fn is_to_be_stopped(peer: &Peer, limit: u64) -> bool {
    !peer.is_stopped && peer.out.len() > stop_reading_above(limit)
}

/// Whether more descriptors wait for a peer than may.
#[inline]
pub(super) fn is_full_of_fds(peer: &Peer, limit: u64) -> bool {
    peer.out.queued_fds() as u64 > limit
}

/// Whether one of the two parts of a long queue is longer than the limit by itself.
#[cold]
fn is_part_full(peer: &Peer, limit: u64) -> bool {
    let own = peer.cells.of(Party::Own);
    own > limit || peer.out.len() - own > limit
}

/// Whether what a peer awaits would be more, with a reply, than that beside which it is still read. The rest of its limit is
/// for what tells it that there is no room.
#[cold]
fn exceeds_own(peer: &Peer, reply: u64, limit: u64) -> bool {
    let own = peer.cells.of(Party::Own);
    own > 0 && own.saturating_add(reply) > stop_reading_above(limit)
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

    /// Whether a queue is too long for another message: with what the peer awaits, or with what others make wait, each by
    /// itself. So neither takes the other's room. One message may pass the limit, as in dbus-daemon.
    #[inline]
    pub(super) fn is_full(&self, peer: &Peer) -> bool {
        let limit = self.config.limits.max_outgoing_bytes;
        peer.out.len() > limit && is_part_full(peer, limit)
    }

    /// Whether more descriptors wait for a peer than may: it gets no more of them, and whatever has none.
    pub(super) fn is_full_of_fds(&self, peer: &Peer) -> bool {
        is_full_of_fds(peer, self.config.limits.max_outgoing_unix_fds)
    }

    /// Whether there is no room for a reply that a peer awaits. Where it awaits nothing else one passes, whatever its length.
    pub(super) fn is_full_of_replies(&self, peer: &Peer, reply: u64) -> bool {
        let limit = self.config.limits.max_outgoing_bytes;
        let has_replies = peer.out.len() > counted_from(limit);
        has_replies && exceeds_own(peer, reply, limit)
    }

    /// Stops and resumes reading from a peer that does not read: its own calls would fill its queue with answers.
    pub(super) fn regulate(&mut self, id: PeerId) {
        let limit = self.config.limits.max_outgoing_bytes;
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        let is_waiting = peer.is_waiting;
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
        let waits = is_waiting || matches!(peer.agenda, Agenda::Paced { .. });
        if !waits && !self.shortage.is_unread(id) {
            self.outgoing.ask(action);
        }
    }

    /// Whether so many connections of a user have not said Hello that some of them could never be heard while the others are
    /// there: beside those that have a slot, as many as the user may have at all. Nobody waits behind more of them.
    pub fn has_too_many_newcomers(&self, uid: Option<u32>) -> bool {
        let limits = &self.config.limits;
        let most = limits
            .max_incomplete_connections
            .saturating_add(limits.max_connections_per_user);
        uid.is_some() && !self.descriptors.is_privileged(uid) && self.roster.newcomers_of(uid) >= most
    }

    /// Gives slots to those who have not said Hello (`max_incomplete_connections`), and stops and resumes accepting.
    pub(super) fn regulate_accepting(&mut self) {
        let slots = self.config.limits.max_incomplete_connections;
        for id in self.roster.regulate_newcomers(slots) {
            let uid = self.roster.get(id).and_then(|peer| peer.credentials.uid);
            let rounds = 1 + self.roster.newcomers_of(uid) / slots.max(1);
            let timeout = self.config.limits.auth_timeout;
            let Some(peer) = self.roster.get_mut(id) else {
                continue;
            };
            // Until it has a slot its time does not count. By then those before it will have had theirs.
            let until = timeout.saturating_mul(if peer.is_waiting { rounds } else { 1 });
            if peer.hello_deadline.is_some() {
                let until = self.deadlines.later(until);
                self.deadlines.expect_hello(peer, Some(until));
            }
            if peer.is_waiting {
                self.outgoing.ask(Action::StopReading(id));
            } else if !peer.is_unread() && !self.shortage.is_unread(id) {
                self.outgoing.ask(Action::ResumeReading(id));
            }
        }
        if let Some(action) = self.roster.regulate_accepting(self.descriptors.is_full()) {
            self.outgoing.ask(action);
        }
    }

    /// The process may have so many descriptors open beside its own.
    pub(super) fn limit_descriptors(&mut self, limit: u64) {
        self.descriptors.set_limit(limit);
        self.regulate_accepting();
    }

    /// Whether a peer may have so many descriptors more that wait in queues.
    pub(crate) fn has_room_for_fds(&self, id: PeerId, count: usize) -> bool {
        let peer = self.roster.get(id);
        peer.is_none_or(|peer| self.descriptors.has_room(Payer::of(peer), count as u64))
    }

    /// Charges a peer for the descriptors of its input that belong to no whole message yet. True: that is not more than it
    /// may have.
    pub(super) fn settle_pending_fds(&mut self, id: PeerId) -> bool {
        let Some(peer) = self.roster.get_mut(id) else {
            return true;
        };
        let (before, now) = (peer.pending_fds, peer.framer.pending_fds() as u64);
        if before == now {
            return true;
        }
        peer.pending_fds = now;
        let payer = Payer::of(peer);
        self.descriptors.release(payer, before);
        let has_room = now <= before || self.descriptors.has_room_for_input(payer, now);
        self.descriptors.hold(payer, now);
        if now < before {
            self.regulate_accepting();
        }
        has_room
    }

    /// Descriptors that came with input wait with it: a peer that has more of them than its share is disconnected.
    pub(super) fn bound_pending_fds(&mut self, id: PeerId) {
        if !self.settle_pending_fds(id) {
            let pending = self.roster.get(id).map_or(0, |peer| peer.pending_fds);
            self.disconnect(id, Excess::Descriptors(pending).into());
        }
    }
}
