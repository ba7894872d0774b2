//! Peers for whom more descriptors wait than may (`max_outgoing_unix_fds`), and senders that wait for them a moment.
//!
//! All that was read in a turn is routed before anything is sent, so the queue of a peer that reads all the time may fill
//! up between two looks at its socket. Therefore what has no room is not refused at once: the message waits in the framer of
//! its sender, as one that is [paced](super::pacing), and is tried again, first after a millisecond, which is after what
//! waits was offered to the peer's socket. A message waits [`MOST`] times, and only for a peer that reads; then it is
//! refused. So every wait ends, whatever the peer does, and one that does not read keeps nobody waiting once that is known.
//!
//! All of it follows from what is saved: queues, [how they are read](super::liveness), and in the sender's credit how often
//! its message has waited.

use std::collections::BTreeSet;

use bus_wire::MessageType;

use super::event::{Millis, PeerId};
use super::invariants::Violation;
use super::{Broker, DRIVER};

/// So often a message waits for a peer that reads: for about half a second in all.
const MOST: u64 = 32;
/// So often what is none of the receiver's sender's choice: a reply, which nobody's slowness may hold up, and what goes to
/// all. Long enough for one look at the socket.
const FEW: u64 = 4;
/// The longest of the single waits, as a power of two, in milliseconds.
const LONGEST: u64 = 4;
/// A peer whose queue was empty within so many awake milliseconds is taken for one that reads,
const FRESH: u64 = 500;
/// or within so many where it is waited for but [`FEW`] times,
const JUST_NOW: u64 = 100;
/// and whoever has read in some time what makes all that waits come to an end within so many.
const SOON: u64 = 2000;

/// For whom too many descriptors wait.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    peers: BTreeSet<PeerId>,
}

impl Crowd {
    /// Whether there are too many for a peer, now that their number has changed.
    pub(super) fn note(&mut self, id: PeerId, is_crowded: bool) {
        if is_crowded {
            self.peers.insert(id);
        } else if !self.peers.is_empty() {
            self.peers.remove(&id);
        }
    }
}

impl Broker {
    /// Whether too many descriptors wait for anybody at all.
    #[inline]
    pub(super) fn is_anybody_crowded(&self) -> bool {
        !self.crowd.peers.is_empty()
    }

    /// Whether the next message of a peer waits until there is room for its descriptors. If so, the peer is not read from
    /// for a moment.
    #[cold]
    pub(super) fn waits_for_room(&mut self, id: PeerId) -> bool {
        // What its framer has is not changed by being looked at.
        let Some(peer) = self.roster.at_mut(id.index).filter(|peer| peer.id == id) else {
            return false;
        };
        if peer.agenda.puts_off_input() || !peer.takes_fds {
            return false;
        }
        let credit = peer.credit;
        let Some(next) = peer.framer.next_with_fds() else {
            return false;
        };
        let (message_type, destination) = (next.message_type, next.destination.map(str::to_owned));
        // What it has reserved by waiting for its time is more, and not for this.
        let waited = if credit <= MOST { credit } else { 0 };
        if waited >= self.most_waits(message_type, destination.as_deref()) {
            return false;
        }
        let wait = 1 << waited.saturating_sub(1).min(LONGEST);
        let until = Millis(self.deadlines.now().0.saturating_add(wait));
        self.hold(id, until, waited + 1);
        true
    }

    /// How often a message with descriptors waits at the most, as things are.
    fn most_waits(&self, message_type: MessageType, destination: Option<&str>) -> u64 {
        let to = destination
            .filter(|name| *name != DRIVER)
            .and_then(|name| self.resolve(name))
            .filter(|to| self.crowd.peers.contains(to));
        if let Some(to) = to
            && !message_type.is_reply()
            && self.reads_soon(to)
        {
            return MOST;
        }
        let is_for_all = destination.is_none() && message_type == MessageType::Signal;
        let may_get_it = |id: &PeerId| {
            let Some(peer) = self.roster.get(*id) else {
                return false;
            };
            let has_copy = peer.is_monitor() || is_for_all || self.in_force.may_overhear();
            (Some(*id) == to || (has_copy && self.subscriptions.held_count(*id) > 0))
                && self.awake.now().saturating_sub(peer.reading.since) < JUST_NOW
        };
        if self.crowd.peers.iter().any(may_get_it) {
            FEW
        } else {
            0
        }
    }

    /// Whether a peer, for which something waits, reads what it is sent.
    fn reads_soon(&self, id: PeerId) -> bool {
        self.roster.get(id).is_some_and(|peer| {
            let is_fresh = self.awake.now().saturating_sub(peer.reading.since) < FRESH;
            is_fresh
                || peer
                    .reading
                    .reads_within(self.awake, peer.out.sent(), peer.out.len(), SOON)
        })
    }

    /// A message with descriptors was dealt with: the next one may wait as often.
    #[inline]
    pub(super) fn note_room_found(&mut self, id: PeerId) {
        if let Some(peer) = self.roster.get_mut(id)
            && peer.credit <= MOST
        {
            peer.credit = 0;
        }
    }

    /// Another limit is in force, or queues were restored.
    pub(super) fn recount_crowd(&mut self) {
        self.crowd.peers = self.crowded().collect();
    }

    fn crowded(&self) -> impl Iterator<Item = PeerId> {
        let crowded = self.roster.iter().filter(|peer| self.is_full_of_fds(peer));
        crowded.map(|peer| peer.id)
    }

    /// The index agrees with the queues.
    pub(super) fn check_crowd(&self) -> Result<(), Violation> {
        if self.crowded().eq(self.crowd.peers.iter().copied()) {
            Ok(())
        } else {
            Err(Violation::new(
                "for whom too many descriptors wait is not who is noted",
            ))
        }
    }
}
