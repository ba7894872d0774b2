//! What waits to go out when the event at hand is dealt with.

use std::collections::{BTreeSet, VecDeque};

use bus_wire::Fd;

use super::Action;
use super::agenda::STEP;
use super::deliver::is_waiting_long;
use super::disconnect::Disconnect;
use super::event::{Fds, PeerId};
use super::invariants::Violation;
use super::peer::Peer;
use super::roster::Roster;

/// Actions for the runtime, send queues that got bytes, and peers that are to be disconnected.
#[derive(Debug)]
pub(super) struct Outgoing {
    actions: VecDeque<Action>,
    /// The peers whose send queue got bytes: each peer that [is dirty](Peer::is_dirty), once. A peer that is gone may be
    /// left in the list.
    dirty: Vec<PeerId>,
    /// Peers to be disconnected as soon as the message at hand is dealt with, each once, and why. Empty between events.
    condemned: VecDeque<(PeerId, Disconnect)>,
    /// The serial of the driver's last message.
    serial: u32,
    /// Work done since this process began, in units: a message, 4 KiB of one, a delivery. Only for sharing time fairly.
    work: u64,
    /// Where the step at hand ends, in the same units.
    step_end: u64,
    /// How long a step is.
    step: u64,
    /// Messages that were queued since this process began for receivers that do not read, and [`OWN`] bytes of the bus's own
    /// for anybody.
    waiting: u64,
}

/// So many bytes of a message that the bus has made itself take a checkpoint as long as a message that others have sent: those
/// are in the log, which wants a checkpoint before there are many, or in extents, which are not copied.
const OWN: usize = 64;

impl Outgoing {
    /// `serial` is that of the driver's last message, 0 if there is none.
    pub(super) fn new(serial: u32) -> Self {
        Self {
            actions: VecDeque::new(),
            dirty: Vec::new(),
            condemned: VecDeque::new(),
            serial,
            work: 0,
            step_end: 0,
            step: STEP,
            waiting: 0,
        }
    }

    /// What the runtime is asked for, in order.
    pub(super) fn actions(&mut self) -> &mut VecDeque<Action> {
        &mut self.actions
    }

    /// Asks the runtime for something.
    pub(super) fn ask(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Asks for the descriptors to be closed, which now belong to nobody.
    pub(super) fn close_fds(&mut self, fds: impl IntoIterator<Item = Fd>) {
        let fds: Fds = fds.into_iter().collect();
        if !fds.is_empty() {
            self.actions.push_back(Action::CloseFds(fds));
        }
    }

    /// The send queue of a peer got bytes.
    pub(super) fn mark_dirty(&mut self, peer: &mut Peer) {
        if !peer.is_dirty {
            peer.is_dirty = true;
            self.dirty.push(peer.id);
        }
    }

    /// A message was queued for a peer.
    #[inline]
    pub(super) fn note_pushed(&mut self, peer: &mut Peer) {
        self.note_work(1);
        self.waiting += u64::from(is_waiting_long(&peer.out));
        let peaks = &mut peer.peaks;
        peaks.outgoing_bytes = peaks.outgoing_bytes.max(peer.out.len());
        peaks.outgoing_fds = peaks.outgoing_fds.max(peer.out.queued_fds() as u32);
        self.mark_dirty(peer);
    }

    /// Moves to `out` the peers whose send queue got bytes since this was last called, each once.
    pub(super) fn take_dirty(&mut self, roster: &mut Roster, out: &mut Vec<PeerId>) {
        for id in self.dirty.drain(..) {
            if let Some(peer) = roster.get_mut(id)
                && peer.is_dirty
            {
                peer.is_dirty = false;
                out.push(id);
            }
        }
    }

    /// Marks a peer for disconnection. Nothing is queued for the peer any more.
    pub(super) fn condemn(&mut self, peer: &mut Peer, reason: Disconnect) {
        if !peer.is_condemned {
            peer.is_condemned = true;
            self.condemned.push_back((peer.id, reason));
        }
    }

    /// Takes out the peer that was condemned first.
    pub(super) fn next_condemned(&mut self) -> Option<(PeerId, Disconnect)> {
        self.condemned.pop_front()
    }

    /// The serial of the driver's last message.
    pub(super) fn serial(&self) -> u32 {
        self.serial
    }

    /// A serial for the driver's next message; never 0.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        self.serial
    }

    /// Counts units of work.
    #[inline]
    pub(super) fn note_work(&mut self, units: u64) {
        self.work += units;
    }

    /// Units of work done so far.
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// An event begins.
    #[inline]
    pub(super) fn begin_step(&mut self) {
        self.step_end = self.work + self.step;
    }

    /// Whether what is left of the work is for another step.
    #[inline]
    pub(super) fn is_step_over(&self) -> bool {
        self.work >= self.step_end
    }

    /// How long a step is from now on, in units of work.
    pub(super) fn set_step(&mut self, units: u64) {
        self.step = units;
    }

    /// So many bytes of the bus's own are queued, and stand nowhere else.
    pub(super) fn note_own(&mut self, bytes: usize) {
        self.waiting += (bytes / OWN) as u64;
    }

    /// Messages that were queued so far for receivers that do not read, and what took as long.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// What is saved of it: the serial of the driver's last message.
    pub(super) fn save(&self) -> u32 {
        let Self {
            serial,
            // The peers with output are dirty.
            dirty: _,
            // Empty between events, or carried out.
            actions: _,
            condemned: _,
            // Of this process alone.
            work: _,
            // Nothing is under way between events.
            step_end: _,
            step: _,
            waiting: _,
        } = self;
        *serial
    }

    /// The dirty list agrees with the peers, and nobody is condemned between events.
    pub(super) fn check(&self, roster: &Roster) -> Result<(), Violation> {
        if let Some((id, reason)) = self.condemned.front() {
            let text = format!("{id:?} is condemned between events: {reason}");
            return Err(Violation::new(text));
        }
        let listed: BTreeSet<PeerId> = self.dirty.iter().copied().collect();
        let mut dirty = 0;
        for peer in roster.iter() {
            let id = peer.id;
            if peer.is_condemned != peer.agenda.is_leaving() {
                return Err(Violation::new(format!(
                    "{id:?} is condemned between events, or leaves and is not"
                )));
            }
            if peer.is_dirty != listed.contains(&id) {
                return Err(Violation::new(format!("{id:?} disagrees with the dirty list")));
            }
            dirty += usize::from(peer.is_dirty);
        }
        let entries = self.dirty.iter().filter(|id| roster.get(**id).is_some());
        let listed = entries.count();
        if listed != dirty {
            return Err(Violation::new(format!(
                "{listed} entries on the dirty list for {dirty} peers"
            )));
        }
        Ok(())
    }
}
