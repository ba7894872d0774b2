//! A peer: one connection as the broker sees it, and the table of all peers.

use std::collections::VecDeque;
use std::sync::Arc;

use bus_wire::{Fd, Framer, SaslServer, SendQueue};

use super::agenda::Agenda;
use super::descriptors::Payers;
use super::event::{Credentials, Millis, PeerId};
use super::ledger::Charge;
use super::liveness::Liveness;
use super::origins::Origins;
use super::policy::Rights;
use super::shares::Cells;

/// How far a peer has come.
///
/// ```text
/// Authenticating --BEGIN--> Greeting --Hello--> Active --BecomeMonitor--> Monitor
/// ```
/// A peer in any phase may be disconnected; then it is gone from the table.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It speaks SASL.
    Authenticating(Box<SaslServer>),
    /// Its first message must be Hello.
    Greeting,
    /// It has a unique name, and takes part.
    Active,
    /// It only listens, and owns no name any more.
    Monitor,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) listener: u32,
    /// The handle of its link's socket; `None`: it is parked, and what is for it waits.
    pub(crate) socket: Option<Fd>,
    /// Absolute offset of the first byte of its stream that was not taken.
    pub(crate) taken: u64,
    /// What the kernel said when it was accepted. The uid is the authenticated one from BEGIN on.
    pub(crate) credentials: Credentials,
    /// Its groups, as the kernel told them when it was accepted.
    pub(crate) groups: Option<Vec<u32>>,
    /// Its security label, likewise.
    pub(crate) label: Option<Vec<u8>>,
    /// Whether it negotiated to (specification, "NEGOTIATE_UNIX_FD").
    pub(crate) takes_fds: bool,
    pub(crate) phase: Phase,
    /// What of the policy in force concerns it.
    pub(crate) rights: Rights,
    /// Set from Hello on. A monitor keeps the name, but cannot be reached by it any more.
    pub(crate) unique: Option<Unique>,
    pub(crate) framer: Framer,
    /// What is still to be done for it.
    pub(crate) agenda: Agenda,
    pub(crate) out: SendQueue,
    /// Whether the peer is to be disconnected once the message at hand is dealt with, or is being disconnected: nothing
    /// more is queued for it.
    pub(crate) is_condemned: bool,
    /// Whether messages for the peer were refused since its queue was last short enough.
    pub(crate) is_congested: bool,
    /// Whether the peer is on the dirty list of [`Outgoing`](super::outgoing::Outgoing).
    pub(crate) is_dirty: bool,
    /// What the peer has asked the bus to remember.
    #[cfg(feature = "next-version")]
    pub(crate) note: Option<super::frozen::NoteV1>,
    /// Whether the runtime was told to stop reading from the peer.
    pub(crate) is_stopped: bool,
    /// Whether the peer waits for its user to have a slot for one more that has not said Hello, and is not read from.
    pub(crate) is_waiting: bool,
    /// When the peer will be disconnected if it is not active by then.
    pub(crate) hello_deadline: Option<Millis>,
    /// When the peer will be disconnected if the message with its descriptors is not complete by then.
    pub(crate) fds_deadline: Option<Millis>,
    pub(crate) peaks: Peaks,
    /// What the peer is charged; the [`Ledger`](super::ledger::Ledger) keeps it up.
    pub(crate) charge: Charge,
    /// Descriptors of its input that it is charged for.
    pub(crate) pending_fds: u64,
    /// Who is charged for the descriptors that wait for the peer.
    pub(crate) payers: Payers,
    /// Whose messages wait for the peer, once many do.
    pub(crate) origins: Origins,
    /// Whose bytes wait for the peer, once many do.
    pub(crate) cells: Cells,
    /// Microseconds that the peer has waited already for what it sends next.
    pub(crate) credit: u64,
    /// How the peer reads what waits.
    pub(crate) reading: Liveness,
}

/// A unique connection name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unique {
    pub(crate) number: u64,
    /// `:1.N`
    pub(crate) name: Arc<str>,
}

impl Unique {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            name: format!(":1.{number}").into(),
        }
    }

    /// The number in a unique name of this bus, in the one spelling that the bus gives out.
    pub(crate) fn parse(name: &str) -> Option<u64> {
        let digits = name.strip_prefix(":1.")?.as_bytes();
        if digits.is_empty() || (digits[0] == b'0' && digits.len() > 1) {
            return None;
        }
        digits.iter().try_fold(0_u64, |number, digit| {
            let value = digit.is_ascii_digit().then(|| digit - b'0')?;
            number.checked_mul(10)?.checked_add(u64::from(value))
        })
    }
}

/// The highest counts so far, for `org.freedesktop.DBus.Debug.Stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Peaks {
    pub(crate) names: u32,
    pub(crate) rules: u32,
    pub(crate) outgoing_bytes: u64,
    pub(crate) outgoing_fds: u32,
}

impl Peer {
    /// Its unique name; empty before Hello.
    pub(crate) fn unique_name(&self) -> &str {
        self.unique.as_ref().map_or("", |unique| &unique.name)
    }

    /// Whether it can be reached by its unique name.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Whether it is not read from: its own queue is too long, its next message waits for its time, or it waits to be heard at
    /// all.
    pub(crate) fn is_unread(&self) -> bool {
        self.is_stopped || self.is_waiting || matches!(self.agenda, Agenda::Paced { .. })
    }

    pub(crate) fn is_monitor(&self) -> bool {
        matches!(self.phase, Phase::Monitor)
    }

    /// Whether it has not said Hello: it counts as incomplete.
    pub(crate) fn is_incomplete(&self) -> bool {
        match self.phase {
            Phase::Authenticating(_) | Phase::Greeting => true,
            Phase::Active | Phase::Monitor => false,
        }
    }
}

/// All peers, by the dense index of their id.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    count: usize,
    changed: Changed,
}

/// The indexes whose peers may have changed since this was last asked, each once.
#[derive(Debug, Default)]
struct Changed {
    marks: Vec<bool>,
    indexes: VecDeque<u32>,
}

impl Changed {
    /// Whoever is at work is marked again and again: that a mark is there already is the case that counts.
    #[inline]
    fn mark(&mut self, index: usize) {
        if self.marks.get(index) != Some(&true) {
            self.mark_first(index);
        }
    }

    #[cold]
    fn mark_first(&mut self, index: usize) {
        if index >= self.marks.len() {
            self.marks.resize(index + 1, false);
        }
        if let Some(mark @ false) = self.marks.get_mut(index) {
            *mark = true;
            self.indexes.push_back(index as u32);
        }
    }
}

impl Peers {
    pub(crate) fn get(&self, id: PeerId) -> Option<&Peer> {
        let peer = self.slots.get(id.index as usize)?.as_deref()?;
        (peer.id == id).then_some(peer)
    }

    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let peer = self.slots.get_mut(id.index as usize)?.as_deref_mut()?;
        if peer.id != id {
            return None;
        }
        self.changed.mark(id.index as usize);
        Some(peer)
    }

    /// Something that belongs to a peer and is kept elsewhere has changed.
    pub(crate) fn mark_changed(&mut self, id: PeerId) {
        self.changed.mark(id.index as usize);
    }

    /// How many indexes are marked.
    pub(crate) fn changed_count(&self) -> usize {
        self.changed.indexes.len()
    }

    /// Moves to `out` the indexes whose peers may have changed, come or gone since they were last taken, each once: at most
    /// `most` of them, those that have waited longest.
    pub(crate) fn take_changed(&mut self, most: usize, out: &mut Vec<u32>) {
        let most = most.min(self.changed.indexes.len());
        for index in self.changed.indexes.drain(..most) {
            if let Some(mark) = self.changed.marks.get_mut(index as usize) {
                *mark = false;
            }
            out.push(index);
        }
    }

    /// Who has an index now.
    pub(crate) fn at(&self, index: u32) -> Option<&Peer> {
        self.slots.get(index as usize)?.as_deref()
    }

    /// The same, for what does not change the peer: where its bytes are kept.
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut Peer> {
        self.slots.get_mut(index as usize)?.as_deref_mut()
    }

    /// False, and the peer is dropped, where its index is in use.
    pub(crate) fn insert(&mut self, peer: Peer) -> bool {
        let index = peer.id.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.changed.mark(index);
        match self.slots.get_mut(index) {
            Some(slot @ None) => {
                *slot = Some(Box::new(peer));
                self.count += 1;
                true
            }
            Some(Some(_)) | None => false,
        }
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.as_ref()?.id != id {
            return None;
        }
        self.count -= 1;
        self.changed.mark(id.index as usize);
        slot.take()
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// In the order of their index, for what is not saved.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().filter_map(Option::as_deref_mut)
    }

    /// In the order of their index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().filter_map(Option::as_deref)
    }
}
