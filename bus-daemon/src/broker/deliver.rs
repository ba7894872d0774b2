//! The last step of every message: into a send queue, or not.

use bus_wire::{Fd, Message};
use bytes::Bytes;

use super::disconnect::{Disconnect, Excess};
use super::event::{Fds, PeerId};
use super::quota::is_to_be_stopped;
use super::{Broker, System};

/// Pieces of at least this length are shared by all queues they are in; shorter ones are copied.
pub(super) const SHARED: usize = 1024;

/// A message on its way into send queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transit<'a> {
    pub(super) message: &'a Message,
    /// The header under which the message is forwarded; a short body follows in the same bytes.
    pub(super) head: &'a [u8],
    /// A longer body, which all receivers share.
    pub(super) tail: Option<&'a Bytes>,
}

impl Broker {
    /// Queues a message of the driver. A peer whose queue is full already is condemned: an answer or a signal that is
    /// missing would mislead the peer for good.
    pub(super) fn push_own(&mut self, to: PeerId, bytes: &[u8]) {
        if self.may_push(to)
            && let Some(peer) = self.roster.get_mut(to)
        {
            if bytes.len() >= SHARED {
                peer.out.push_shared(Bytes::copy_from_slice(bytes));
            } else {
                peer.out.push(bytes);
            }
            self.outgoing.note_pushed(peer);
            if is_to_be_stopped(peer, self.config.limits.max_outgoing_bytes) {
                self.regulate(to);
            }
        }
    }

    /// Queues a forwarded message, with the descriptors that are its own.
    pub(super) fn push(&mut self, to: PeerId, transit: Transit<'_>, fds: Fds) {
        let Some(peer) = self.roster.get_mut(to) else {
            return self.close_fds(fds);
        };
        if !fds.is_empty() {
            peer.out.begin_fds(fds);
        }
        peer.out.push(transit.head);
        if let Some(tail) = transit.tail {
            peer.out.push_shared(tail.clone());
        }
        self.outgoing.note_pushed(peer);
        if is_to_be_stopped(peer, self.config.limits.max_outgoing_bytes) {
            self.regulate(to);
        }
    }

    /// Queues copies of a forwarded message for many. A receiver that takes no descriptors does not get a message that
    /// has some; one whose queue is full is condemned.
    pub(super) fn push_copies(
        &mut self,
        receivers: &[PeerId],
        transit: Transit<'_>,
        fds: &[Fd],
        system: &mut dyn System,
    ) {
        for receiver in receivers {
            let takes_fds = self.roster.get(*receiver).is_some_and(|peer| peer.takes_fds);
            if (!fds.is_empty() && !takes_fds) || !self.may_push(*receiver) {
                continue;
            }
            match self.duplicate(fds, system) {
                Some(copies) => self.push(*receiver, transit, copies),
                None => self.condemn(*receiver, Disconnect::NoDescriptorsLeft),
            }
        }
    }

    /// A descriptor of its own for one more receiver, for each of these; all or none.
    fn duplicate(&mut self, fds: &[Fd], system: &mut dyn System) -> Option<Fds> {
        let mut copies = Fds::new();
        for fd in fds {
            match system.duplicate(*fd) {
                Some(copy) => copies.push(copy),
                None => {
                    self.close_fds(copies);
                    return None;
                }
            }
        }
        Some(copies)
    }

    /// Whether a peer is there to be sent to; one with a full queue is condemned instead.
    pub(super) fn may_push(&mut self, to: PeerId) -> bool {
        let Some(peer) = self.roster.get(to) else {
            return false;
        };
        if peer.is_condemned {
            return false;
        }
        if self.is_full(peer) {
            let queued = peer.out.len();
            self.condemn(to, Excess::Unread(queued).into());
            return false;
        }
        true
    }

    /// The link of a peer took bytes up to this absolute offset.
    pub(super) fn sent(&mut self, id: PeerId, upto: u64) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        let Some(bytes) = upto.checked_sub(peer.out.sent()).filter(|bytes| *bytes > 0) else {
            return;
        };
        let gone = peer.out.advance(bytes);
        self.close_fds(gone);
        self.regulate(id);
    }
}
