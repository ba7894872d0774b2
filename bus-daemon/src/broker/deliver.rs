//! The last step of every message: into a send queue, or not.

use std::cell::OnceCell;

use bus_wire::{Fd, Message, SendQueue};
use bytes::Bytes;

use super::descriptors::Payer;
use super::disconnect::{Disconnect, Excess};
use super::event::{Fds, PeerId};
use super::pacing::Wait;
use super::quota::{is_full_of_fds, is_to_be_stopped};
use super::shares::counted_from;
use super::{Broker, System};

/// Pieces of at least this length are shared by all queues they are in; shorter ones are copied.
pub(super) const SHARED: usize = 1024;

/// Bodies of at least this length are not copied together with their header, even if the message waits for many.
const LARGE: usize = 64 * 1024;

/// From this length on it is noted whose messages a queue holds.
const LONG: u64 = 16 * 1024;

/// A message on its way into send queues.
///
/// For a receiver that reads, copies of small messages lie in one buffer and are written at once; where many do not read,
/// all wait for one copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transit<'a> {
    pub(super) message: &'a Message,
    /// The header under which the message is forwarded; a short body follows in the same bytes. Of a long header its
    /// beginning.
    pub(super) head: &'a [u8],
    /// The rest of a long header, and a longer body, which all receivers share.
    pub(super) tail: &'a [Bytes],
    /// All of it, once it has been put together for receivers that do not read.
    pub(super) whole: &'a OnceCell<Bytes>,
    /// Who makes it wait: its sender. `None`: the receiver, which asked for it.
    pub(super) origin: Option<PeerId>,
}

impl Transit<'_> {
    /// How many bytes it is in a queue.
    pub(super) fn len(&self) -> u64 {
        (self.head.len() + self.tail.iter().map(Bytes::len).sum::<usize>()) as u64
    }

    /// Queues it for one of many receivers.
    fn copy_to(&self, out: &mut SendQueue) {
        let is_large = self.tail.iter().any(|piece| piece.len() >= LARGE);
        if !is_large && is_waiting_long(out) {
            out.push_kept(self.whole.get_or_init(|| self.put_together()).clone());
        } else {
            self.push_to(out);
        }
    }

    fn push_to(&self, out: &mut SendQueue) {
        out.push(self.head);
        for piece in self.tail {
            out.push_shared(piece.clone());
        }
    }

    fn put_together(&self) -> Bytes {
        let mut whole = self.head.to_vec();
        for piece in self.tail {
            whole.extend_from_slice(piece);
        }
        whole.into()
    }
}

/// Whether a queue holds more than a turn leaves to a receiver that reads.
pub(super) fn is_waiting_long(out: &SendQueue) -> bool {
    out.stored() > out.sent() || out.len() > 128 * 1024
}

impl Broker {
    /// Queues a message of the driver. `cause` is who makes it wait, if it is not the peer itself; returns how long that one is
    /// to wait for it.
    pub(super) fn push_own(&mut self, to: PeerId, cause: Option<PeerId>, bytes: &[u8]) -> Wait {
        // What the bus says itself was put together first, value by value.
        self.outgoing.note_work(bytes.len() as u64 / 1024);
        self.outgoing.note_own(bytes.len());
        self.push_with(to, Fds::new(), cause, |out| {
            if bytes.len() >= SHARED {
                out.push_shared(Bytes::copy_from_slice(bytes));
            } else {
                out.push(bytes);
            }
        })
    }

    /// The same of a message that goes to many. A peer whose queue is full already is condemned.
    pub(super) fn push_own_copy(&mut self, to: PeerId, cause: Option<PeerId>, message: &Message) -> Wait {
        if !self.may_push(to) {
            return Wait::default();
        }
        self.push_with(to, Fds::new(), cause, |out| {
            if is_waiting_long(out) {
                out.push_kept(message.to_bytes());
            } else {
                out.push_shared(message.to_bytes());
            }
        })
    }

    /// Queues a forwarded message, with the descriptors that are its own.
    pub(super) fn push(&mut self, to: PeerId, transit: Transit<'_>, fds: Fds) {
        if !fds.is_empty() {
            let payer = self.roster.get(transit.origin.unwrap_or(to));
            self.charge_fds(to, payer.map_or(Payer::UNKNOWN, Payer::of), fds.len());
        }
        self.push_with(to, fds, transit.origin, |out| transit.push_to(out));
    }

    /// The same; somebody is charged for the descriptors already. How long it makes the sender of a broadcast wait.
    fn push_with(
        &mut self,
        to: PeerId,
        fds: Fds,
        origin: Option<PeerId>,
        push: impl FnOnce(&mut SendQueue),
    ) -> Wait {
        let Some(peer) = self.roster.get_mut(to) else {
            self.close_fds(fds);
            return Wait::default();
        };
        if !fds.is_empty() {
            peer.out.begin_fds(fds);
            self.crowd
                .note(to, is_full_of_fds(peer, self.config.limits.max_outgoing_unix_fds));
        }
        let (before, queued) = (peer.out.end(), peer.out.len());
        if queued == 0 {
            peer.reading.begin(self.awake, before);
        }
        push(&mut peer.out);
        if peer.out.len() > LONG || !peer.origins.is_empty() {
            let upto = peer.out.end();
            self.ledger
                .note_waiting(&mut peer.origins, before, upto, origin.unwrap_or(to));
        }
        self.ledger.settle(peer);
        self.outgoing.note_pushed(peer);
        let limit = self.config.limits.max_outgoing_bytes;
        let is_counted = peer.out.len() > counted_from(limit) || !peer.cells.is_empty();
        if is_to_be_stopped(peer, limit) {
            self.regulate(to);
        }
        if is_counted {
            self.count_share(to, origin, queued)
        } else {
            Wait::default()
        }
    }

    /// Descriptors begin to wait for a peer; another one may be charged for them.
    fn charge_fds(&mut self, to: PeerId, payer: Payer, count: usize) {
        if let Some(peer) = self.roster.get_mut(to) {
            peer.payers.push(payer, count as u64);
            self.descriptors.hold(payer, count as u64);
        }
    }

    /// Queues copies of a forwarded message for many. A receiver that takes no descriptors does not get a message that
    /// has some; one whose queue is full is condemned. Where there is no room for the descriptors, see
    /// [`duplicates_for`](Self::duplicates_for).
    pub(super) fn push_copies(
        &mut self,
        receivers: &[PeerId],
        transit: Transit<'_>,
        fds: &[Fd],
        system: &mut dyn System,
    ) {
        let mut wait = Wait::default();
        for receiver in receivers {
            if !self.may_push(*receiver) {
                continue;
            }
            let copies = if fds.is_empty() {
                Fds::new()
            } else if let Some(copies) = self.duplicates_for(*receiver, transit.origin, fds, system) {
                copies
            } else {
                continue;
            };
            let here = self.push_with(*receiver, copies, transit.origin, |out| transit.copy_to(out));
            wait = wait.and(here);
        }
        if let Some(sender) = transit.origin {
            self.note_broadcast(sender, wait);
        }
    }

    /// Descriptors for one more receiver of a message that has some, which somebody is charged for. `None`: the receiver does
    /// not get it. Where there is no room, a receiver that asked for what is others' is condemned, and a sender of the same
    /// user; otherwise nobody is, and only this receiver misses it.
    fn duplicates_for(
        &mut self,
        id: PeerId,
        origin: Option<PeerId>,
        fds: &[Fd],
        system: &mut dyn System,
    ) -> Option<Fds> {
        let receiver = self.roster.get(id).filter(|peer| peer.takes_fds)?;
        if self.is_full_of_fds(receiver) {
            match origin {
                Some(_) => self.note_congested(id),
                None => self.condemn(id, Excess::Unread(receiver.out.len()).into()),
            }
            return None;
        }
        let sender = origin.and_then(|origin| self.roster.get(origin));
        let payer = sender.map_or(Payer::of(receiver), |sender| Payer::of_copy(sender, receiver));
        let blamed = origin.unwrap_or(id);
        if !self.descriptors.has_room(payer, fds.len() as u64) {
            if payer.is_host() {
                self.note_congested(id);
            } else {
                self.condemn(blamed, Excess::Descriptors(fds.len() as u64).into());
            }
            return None;
        }
        let Some(copies) = self.duplicate(fds, system) else {
            if payer.is_host() {
                self.note_congested(id);
            } else {
                self.condemn(blamed, Disconnect::NoDescriptorsLeft);
            }
            return None;
        };
        self.charge_fds(id, payer, fds.len());
        Some(copies)
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
        let queued = peer.out.len();
        let gone = peer.out.advance(bytes);
        let sent = peer.out.sent();
        peer.reading.note_sent(self.awake, sent);
        if !peer.cells.is_empty() {
            peer.cells.drain(queued, bytes);
        }
        self.ledger.drained(&mut peer.origins, sent);
        self.ledger.settle(peer);
        if !gone.is_empty() {
            peer.payers.pop(gone.len() as u64, &mut self.descriptors);
            self.crowd
                .note(id, is_full_of_fds(peer, self.config.limits.max_outgoing_unix_fds));
            self.close_fds(gone);
            self.regulate_accepting();
        }
        self.regulate(id);
    }
}
