//! Work that is longer than a step: each peer's agenda, and the steps that carry it on.
//!
//! An event does what a step allows; the rest stays on the agenda of the peer that it is for, and
//! [`Event::Step`](super::Event::Step) goes on with it, in that peer's turn. How long a step is, the core counts in units
//! of work and never by a clock, so that a replay cuts where the bus did. Cuts fall only between messages, names, errors
//! and rules; what one message brings about is never cut.

use std::sync::Arc;

use bytes::Bytes;

use super::disconnect::Disconnect;
use super::event::{Millis, PeerId};
use super::match_rule::MatchRule;
use super::peer::Phase;
use super::reply::{DISCONNECTED, NO_REPLY};
use super::{Action, Broker, System};

/// Units of work in a step: about a millisecond. In unit tests there are many short ones, with deaths between them.
pub(super) const STEP: u64 = if cfg!(test) { 4 } else { 512 };
/// So many of its own calls a peer that leaves withdraws at once: to find them each peer of the bus may be asked.
const WITHDRAWN: usize = if cfg!(test) { 2 } else { 512 };

/// What is still to be done for a peer.
///
/// ```text
/// Idle ──more has arrived than a step takes──> Input ──steps──> Idle
/// Idle, Input ──its next message waits for its time──> Paced ──time──> Input
/// Idle, Input ──it becomes a monitor──> Shedding ──steps──> Idle, Input
/// any ──it is disconnected──> Shedding ──steps──> (gone)
/// ```
#[derive(Debug, Default)]
pub(crate) enum Agenda {
    /// Nothing.
    #[default]
    Idle,
    /// Whole messages have arrived and are still to be dealt with: they are in the framer.
    Input,
    /// The next message that has arrived waits for its time: its user, or it, sends more broadcasts than are read. Nothing
    /// is done for it until then, and nothing read from it.
    Paced {
        /// When the time comes.
        until: Millis,
    },
    /// It gives up its rules, its names (the newest first), its unique name and its open calls, in this order. What it
    /// still has is what is left to do.
    Shedding(Then),
}

/// What becomes of a peer that has given up everything.
#[derive(Debug)]
pub(crate) enum Then {
    /// It is taken out of the bus. Nothing is queued for it any more, and its link is closed already.
    Gone(Disconnect),
    /// It is a monitor with these filters.
    Monitor(Vec<MatchRule>),
}

/// One thing that a peer gives up.
#[derive(Debug)]
enum Burden {
    /// Its newest match rule or filter.
    Rule,
    /// A name that it owns or waits for.
    Name(Arc<str>),
    Unique,
    /// A rule of somebody that names its unique name, which it has lost. The name is never used again, so the rule is dead,
    /// and counts against nobody's limit any more. So dbus-daemon.
    DeadRule(Arc<str>),
    /// Some of its own calls. In which order they are withdrawn nobody sees: the peer has no name any more to which an answer
    /// could be sent.
    Awaited,
    /// A call that it has to answer: who waits is told.
    Owed(PeerId, u32),
}

impl Agenda {
    /// Whether the peer is giving up what it has.
    pub(crate) fn is_shedding(&self) -> bool {
        match self {
            Self::Shedding(_) => true,
            Self::Idle | Self::Input | Self::Paced { .. } => false,
        }
    }

    /// Whether what arrives is not to be dealt with now.
    #[inline]
    pub(crate) fn puts_off_input(&self) -> bool {
        match self {
            Self::Shedding(_) | Self::Paced { .. } => true,
            Self::Idle | Self::Input => false,
        }
    }

    /// Whether the peer is being taken out of the bus.
    pub(crate) fn is_leaving(&self) -> bool {
        match self {
            Self::Shedding(Then::Gone(_)) => true,
            Self::Shedding(Then::Monitor(_)) | Self::Idle | Self::Input | Self::Paced { .. } => false,
        }
    }
}

impl Broker {
    /// Whether an [`Event::Step`](super::Event::Step) is wanted for a peer. Until it is not, nothing more is to be read
    /// from the peer.
    pub fn wants_step(&self, id: PeerId) -> bool {
        self.roster
            .get(id)
            .is_some_and(|peer| !matches!(peer.agenda, Agenda::Idle | Agenda::Paced { .. }))
    }

    /// Whether a peer is being taken out of the bus, in steps: it has no link any more.
    pub fn is_leaving(&self, id: PeerId) -> bool {
        self.roster.get(id).is_some_and(|peer| peer.agenda.is_leaving())
    }

    /// Whether the next step of a peer deals with input that has arrived.
    pub fn is_input_waiting(&self, id: PeerId) -> bool {
        self.roster
            .get(id)
            .is_some_and(|peer| matches!(peer.agenda, Agenda::Input))
    }

    /// Input of the peer that has arrived and was not dealt with, if the next step of the peer deals with it.
    pub fn waiting_input(&self, id: PeerId) -> Option<Bytes> {
        let peer = self.roster.get(id)?;
        matches!(peer.agenda, Agenda::Input).then(|| peer.framer.save().partial)
    }

    /// How long a step is from now on, in units of work; a new broker has steps of about a millisecond. Shorter ones show
    /// what happens between them.
    pub fn set_step(&mut self, units: u64) {
        self.outgoing.set_step(units);
    }

    /// Goes on with a peer's agenda.
    pub(super) fn step(&mut self, id: PeerId, system: &mut dyn System) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        match peer.agenda {
            Agenda::Idle | Agenda::Paced { .. } => {}
            Agenda::Input => {
                peer.agenda = Agenda::Idle;
                self.route_input(id, system);
            }
            Agenda::Shedding(_) => {
                self.shed(id);
                if !self.wants_step(id) {
                    self.route_input(id, system);
                }
            }
        }
    }

    /// More messages of the peer have arrived than the step takes.
    pub(super) fn put_off_input(&mut self, id: PeerId) {
        if let Some(peer) = self.roster.get_mut(id) {
            peer.agenda = Agenda::Input;
            self.outgoing.ask(Action::ScheduleStep(id));
        }
    }

    /// The peer begins to give up what it has: with [`shed`](Self::shed), when the message at hand is dealt with.
    pub(super) fn begin_shedding(&mut self, id: PeerId, then: Then) {
        self.drop_wait(id);
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if !peer.agenda.is_shedding() {
            self.shedding += 1;
        }
        peer.agenda = Agenda::Shedding(then);
    }

    /// If the peer is giving up what it has: goes on with that, as far as the step allows.
    pub(super) fn shed(&mut self, id: PeerId) {
        if !self.is_shedding(id) {
            return;
        }
        while let Some(next) = self.next_to_shed(id) {
            if self.outgoing.is_step_over() {
                self.hang_up(id);
                self.outgoing.ask(Action::ScheduleStep(id));
                return;
            }
            self.outgoing.note_work(1);
            self.shed_one(id, next);
        }
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if let Agenda::Shedding(then) = std::mem::take(&mut peer.agenda) {
            self.shedding -= 1;
            match then {
                Then::Gone(reason) => self.take_out(id, &reason),
                Then::Monitor(filters) => self.become_monitor(id, filters),
            }
        }
    }

    /// What the peer gives up next.
    fn next_to_shed(&self, id: PeerId) -> Option<Burden> {
        if self.subscriptions.held_count(id) > 0 {
            return Some(Burden::Rule);
        }
        if let Some(name) = self.names.newest_of(id) {
            return Some(Burden::Name(name));
        }
        let peer = self.roster.get(id)?;
        let unique = peer.unique.as_ref()?;
        if peer.is_active() && !self.roster.is_retired(peer) {
            return Some(Burden::Unique);
        }
        if self.subscriptions.is_named(&unique.name) {
            return Some(Burden::DeadRule(unique.name.clone()));
        }
        if self.calls.awaited_count(id) > 0 {
            return Some(Burden::Awaited);
        }
        let (caller, serial) = self.calls.first_owed(id)?;
        Some(Burden::Owed(caller, serial))
    }

    fn shed_one(&mut self, id: PeerId, burden: Burden) {
        match burden {
            Burden::Rule => {
                self.roster.mark_changed(id);
                self.subscriptions.drop_newest(id);
            }
            Burden::Name(name) => {
                self.release_name(id, &name);
            }
            Burden::Unique => {
                if let Some(unique) = self.roster.retire(id) {
                    self.note_name(id, &unique.name, false);
                    self.announce_unique(id, &unique, false);
                }
            }
            Burden::DeadRule(unique) => {
                if let Some(owner) = self.subscriptions.drop_named(&unique) {
                    self.roster.mark_changed(owner);
                }
            }
            Burden::Awaited => {
                let calls = self.calls.first_awaited(id, WITHDRAWN);
                self.outgoing.note_work(calls.len() as u64 / 4);
                for (callee, serial) in calls {
                    self.close_call(callee, id, serial);
                }
            }
            Burden::Owed(caller, serial) => {
                self.close_call(id, caller, serial);
                self.send_late_error(caller, serial, NO_REPLY, DISCONNECTED);
            }
        }
    }

    /// A peer that leaves, and needs more than a step for that, is at once without a link, and without what was on its way
    /// in or out.
    fn hang_up(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get_mut(id).filter(|peer| peer.agenda.is_leaving()) else {
            return;
        };
        let fds: Vec<_> = peer
            .framer
            .take_fds()
            .into_iter()
            .chain(peer.out.clear())
            .collect();
        self.descriptors.let_go(peer);
        self.crowd.note(id, false);
        let socket = peer.socket.take();
        self.ledger.drained(&mut peer.origins, u64::MAX);
        peer.cells.clear();
        self.ledger.settle(peer);
        self.close_fds(fds);
        if let Some(socket) = socket {
            self.outgoing.ask(Action::HangUp { peer: id, socket });
            self.regulate_accepting();
        }
    }

    /// Before anybody looks at a name: whoever is giving up what it has gives up this name now, so that nobody finds a
    /// name taken by a peer that has left.
    pub(crate) fn settle_name(&mut self, name: &str) {
        if self.shedding == 0 || name.starts_with(':') {
            return;
        }
        while let Some(id) = self.shedding_owner(name) {
            self.release_name(id, name);
        }
    }

    fn shedding_owner(&self, name: &str) -> Option<PeerId> {
        let mut owners = self.names.queue(name)?.map(|owner| owner.peer);
        owners.find(|id| self.is_shedding(*id))
    }

    /// Whether a peer is giving up what it has.
    pub(super) fn is_shedding(&self, id: PeerId) -> bool {
        self.shedding > 0 && self.roster.get(id).is_some_and(|peer| peer.agenda.is_shedding())
    }

    /// A restored peer goes on giving up what it has.
    pub(super) fn resume_shedding_of(&mut self, id: PeerId, is_retired: bool, then: Then) {
        let Some(peer) = self.roster.get_mut(id).filter(|peer| !peer.agenda.is_shedding()) else {
            return;
        };
        peer.is_condemned = matches!(then, Then::Gone(_));
        peer.agenda = Agenda::Shedding(then);
        self.shedding += 1;
        if is_retired {
            self.roster.retire(id);
        }
        self.hang_up(id);
    }

    /// Puts on the agendas of restored peers whose input has not been dealt with.
    pub(super) fn resume_agendas(&mut self) {
        let has_input = |peer: &&super::Peer| {
            let routes = matches!(peer.phase, Phase::Greeting | Phase::Active | Phase::Monitor);
            routes && matches!(peer.agenda, Agenda::Idle) && peer.framer.has_whole()
        };
        let with_input: Vec<PeerId> = self.roster.iter().filter(has_input).map(|peer| peer.id).collect();
        for id in with_input {
            if let Some(peer) = self.roster.get_mut(id) {
                peer.agenda = Agenda::Input;
            }
        }
    }
}
