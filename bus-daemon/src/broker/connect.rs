//! The life of a peer: accepted, authenticated, named, gone.

use std::sync::Arc;

use bus_wire::{Fd, Framer, Message, SaslConfig, SaslDone, SaslError, SaslServer, SaslStep, SendQueue};
use bytes::Bytes;

use super::agenda::{Agenda, Then};
use super::descriptors::Payers;
use super::disconnect::{Breach, Disconnect, Excess, Refusal};
use super::event::{Attested, Fds, PeerId};
use super::ledger::Charge;
use super::liveness::{AwakeTime, Liveness};
use super::origins::Origins;
use super::peer::{Peaks, Peer, Phase};
use super::policy::Rights;
use super::shares::Cells;
use super::speak::{FAILED, LIMITS_EXCEEDED, NOT_ACTIVE_YET};
use super::{Action, Broker, System};
use crate::config::Config;

/// Bytes of answers that may wait for a peer before BEGIN. Nobody who means well is told so much before reading any of it;
/// the reference implementation ends there, too.
const UNREAD_ANSWERS: u64 = 16 * 1024;

/// Bytes of an authentication that are answered before that is looked at. No answer that may come without end is longer than
/// its command.
const ANSWERED_AT_ONCE: usize = 1024;

impl Broker {
    pub(super) fn accept(&mut self, id: PeerId, listener: u32, socket: Fd, attested: Attested) {
        let Attested {
            credentials,
            groups,
            label,
        } = if self.identity.transport(listener).attests() {
            attested
        } else {
            Attested::default()
        };
        if !self.descriptors.has_room_for_link(credentials.uid) {
            self.outgoing.ask(Action::Close {
                peer: id,
                reason: Excess::Links.to_string().into(),
                uid: credentials.uid,
                is_fault: true,
                last_words: Bytes::new(),
            });
            return;
        }
        let sasl = SaslConfig {
            guid: self.identity.listener_guid(listener),
            mechanisms: self.config.auth.clone(),
            can_pass_fds: self.identity.transport(listener).passes_fds(),
        };
        let sasl = match self.identity.nonce(listener) {
            Some(nonce) => SaslServer::behind_nonce(sasl, credentials.uid, nonce),
            None => SaslServer::new(sasl, credentials.uid),
        };
        let deadline = self.deadlines.later(self.config.limits.auth_timeout);
        let peer = Peer {
            id,
            listener,
            socket: Some(socket),
            taken: 0,
            credentials,
            groups,
            label,
            takes_fds: false,
            phase: Phase::Authenticating(Box::new(sasl)),
            rights: Rights::default(),
            unique: None,
            framer: Framer::new(max_message_size(&self.config)),
            agenda: Agenda::Idle,
            out: SendQueue::new(),
            is_condemned: false,
            is_congested: false,
            is_dirty: false,
            is_stopped: false,
            is_waiting: false,
            hello_deadline: None,
            fds_deadline: None,
            peaks: Peaks::default(),
            #[cfg(feature = "next-version")]
            note: None,
            charge: Charge::default(),
            pending_fds: 0,
            payers: Payers::default(),
            origins: Origins::default(),
            cells: Cells::default(),
            credit: 0,
            reading: Liveness::default(),
        };
        if !self.roster.enter(peer) {
            return self.refuse_index(id, socket, credentials.uid);
        }
        if let Some(peer) = self.roster.get_mut(id) {
            self.deadlines.expect_hello(peer, Some(deadline));
            self.ledger.settle(peer);
        }
        self.descriptors.add_link(credentials.uid);
        self.regulate_accepting();
    }

    /// The runtime gave a connection an index that another peer has. That peer stays; the socket is not kept open for a
    /// peer that there is not.
    fn refuse_index(&mut self, id: PeerId, socket: Fd, uid: Option<u32>) {
        let reason = format!("a connection was given the index {}, which is in use", id.index);
        if self.roster.get(id).is_none() {
            return self.outgoing.ask(Action::Close {
                peer: id,
                reason: reason.into(),
                uid,
                is_fault: true,
                last_words: Bytes::new(),
            });
        }
        // Its very id is in use: to close a link of this id would disconnect the peer that has it.
        if self.socket(id) != Some(socket) {
            self.warn(uid, reason);
            self.close_fds([socket]);
        }
    }

    /// Feeds what a peer says before BEGIN, and routes what follows.
    pub(super) fn authenticate(&mut self, id: PeerId, data: Bytes, fds: Fds, system: &mut dyn System) {
        let Some(peer) = self.roster.get_mut(id) else {
            return self.close_fds(fds);
        };
        let Phase::Authenticating(sasl) = &mut peer.phase else {
            return self.close_fds(fds);
        };
        let has_asked = sasl.wanted_cookie().is_some();
        let mut step = Ok(SaslStep {
            consumed: 0,
            done: None,
        });
        let mut is_answered = false;
        // A read may bring thousands of commands: no more are answered than may be unread.
        for part in data.chunks(ANSWERED_AT_ONCE) {
            let mut answer = Vec::new();
            let fed = sasl.feed(part, &mut answer);
            let before = step.map_or(0, |step| step.consumed);
            step = fed.map(|step| SaslStep {
                consumed: before + step.consumed,
                ..step
            });
            if !answer.is_empty() {
                push_answer(&mut peer.out, &mut peer.reading, self.awake, &answer);
                is_answered = true;
            }
            if peer.out.len() > UNREAD_ANSWERS || !matches!(step, Ok(SaslStep { done: None, .. })) {
                break;
            }
        }
        if is_answered {
            self.outgoing.note_pushed(peer);
        }
        self.ledger.settle(peer);
        self.regulate(id);
        let fed = Fed {
            step,
            data,
            fds,
            has_asked,
        };
        self.authenticated(id, fed, system);
    }

    /// Queues an answer that no input brought about.
    pub(super) fn answer_authentication(&mut self, id: PeerId, answer: &[u8]) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        if !answer.is_empty() {
            push_answer(&mut peer.out, &mut peer.reading, self.awake, answer);
            self.outgoing.note_pushed(peer);
        }
        self.ledger.settle(peer);
        self.regulate(id);
    }

    /// Goes on behind what an exchange has taken.
    pub(super) fn authenticated(&mut self, id: PeerId, fed: Fed, system: &mut dyn System) {
        let Fed {
            step,
            data,
            fds,
            has_asked,
        } = fed;
        let unread = self.roster.get(id).map_or(0, |peer| peer.out.len());
        match step {
            Err(error) => {
                self.close_fds(fds);
                self.disconnect(id, Breach::from(error).into());
            }
            Ok(_) if unread > UNREAD_ANSWERS => {
                self.close_fds(fds);
                self.disconnect(id, Excess::UnreadAnswers(unread).into());
            }
            Ok(step) => match step.done {
                None if fds.is_empty() && has_asked => {}
                None if fds.is_empty() => self.look_for_cookie(id, system),
                None => {
                    self.close_fds(fds);
                    self.disconnect(id, Breach::FdsBeforeBegin.into());
                }
                Some(done) => {
                    if let Err(refusal) = self.admit(id, &done, system) {
                        self.close_fds(fds);
                        self.disconnect(id, refusal.into());
                    } else if step.consumed < data.len() {
                        self.receive(id, data.slice(step.consumed..), fds, system);
                    } else if !fds.is_empty() {
                        self.close_fds(fds);
                        self.disconnect(id, Breach::FdsWithoutMessage.into());
                    }
                }
            },
        }
    }

    /// Lets a peer that has authenticated go on, if the policy lets its user connect.
    fn admit(&mut self, id: PeerId, done: &SaslDone, system: &mut dyn System) -> Result<(), Refusal> {
        match done.uid {
            None if !self.config.allow_anonymous => return Err(Refusal::Anonymous),
            Some(uid) if !self.may_connect(id, uid) => return Err(Refusal::User(uid)),
            None | Some(_) => {}
        }
        if let Some(peer) = self.roster.get(id).filter(|peer| peer.socket.is_some()) {
            self.descriptors.remove_link(peer.credentials.uid);
            self.descriptors.add_link(done.uid);
        }
        self.roster.admit(id, done);
        self.apply_policy(id, system);
        self.regulate_accepting();
        Ok(())
    }

    /// `Hello`: the answer, then NameOwnerChanged and NameAcquired (specification, "org.freedesktop.DBus.Hello").
    pub(crate) fn hello(&mut self, id: PeerId, call: &Message) {
        let Some(peer) = self.roster.get(id) else { return };
        if !peer.is_incomplete() {
            self.send_driver_error(id, call, FAILED, "Already handled an Hello message");
            return;
        }
        let uid = peer.credentials.uid;
        if let Some(text) = self.hello_refusal(uid) {
            self.send_driver_error(id, call, LIMITS_EXCEEDED, &text);
            return;
        }
        let Some((peer, unique)) = self.roster.activate(id) else {
            return;
        };
        self.deadlines.expect_hello(peer, None);
        self.note_name(id, &unique.name, true);
        self.names.note_peak(self.roster.unique_count());
        self.regulate_accepting();
        self.send_driver_reply(id, call, |w| {
            w.str(&unique.name);
        });
        self.announce_unique(id, &unique, true);
    }

    /// Why a peer of this user would not get a unique name now.
    fn hello_refusal(&self, uid: Option<u32>) -> Option<String> {
        let limits = &self.config.limits;
        let of_user = uid.map_or(0, |uid| self.roster.of_user(uid));
        if u64::from(self.roster.active()) >= limits.max_completed_connections {
            Some("The maximum number of active connections has been reached".to_owned())
        } else if u64::from(of_user) >= limits.max_connections_per_user {
            let uid = uid.unwrap_or_default();
            Some(format!(
                "The maximum number of active connections for UID {uid} has been reached"
            ))
        } else {
            None
        }
    }

    /// The name that monitors see as the sender of a Hello: the unique name that the answer will give.
    pub(super) fn expected_name(&self, uid: Option<u32>) -> Arc<str> {
        match self.hello_refusal(uid) {
            None => self.roster.next_unique().name,
            Some(_) => NOT_ACTIVE_YET.into(),
        }
    }

    /// Marks a peer for disconnection once the message at hand is dealt with.
    pub(super) fn condemn(&mut self, id: PeerId, reason: Disconnect) {
        if let Some(peer) = self.roster.get_mut(id) {
            self.outgoing.condemn(peer, reason);
        }
    }

    /// Disconnects the condemned peers, and the peers that become condemned by the signals of that.
    pub(super) fn bury_condemned(&mut self) {
        while let Some((id, reason)) = self.outgoing.next_condemned() {
            self.disconnect(id, reason);
        }
    }

    /// Takes a peer out of the bus, with its rules, names (and their signals), open calls and send queue: in steps, if
    /// these are many.
    pub(super) fn disconnect(&mut self, id: PeerId, reason: Disconnect) {
        let Some(peer) = self.roster.get_mut(id).filter(|peer| !peer.agenda.is_leaving()) else {
            return;
        };
        // Nothing is sent to the peer any more.
        peer.is_condemned = true;
        self.deadlines.expect_hello(peer, None);
        self.deadlines.expect_fds(peer, None);
        self.forget_caller(id);
        self.begin_shedding(id, Then::Gone(reason));
        self.shed(id);
    }

    /// Takes out a peer that has given up all it had.
    pub(super) fn take_out(&mut self, id: PeerId, reason: &Disconnect) {
        self.calls.drop_peer(id);
        let Some(mut peer) = self.roster.remove(id) else {
            return;
        };
        self.in_force.forget(&mut peer);
        self.ledger.forget(&mut peer);
        self.descriptors.let_go(&mut peer);
        self.shortage.forget(id, &mut self.deadlines);
        self.crowd.note(id, false);
        self.pacing.forget(id);
        let last_words = match peer.phase {
            Phase::Authenticating(_) => peer.out.to_bytes(),
            Phase::Greeting | Phase::Active | Phase::Monitor => Bytes::new(),
        };
        self.close_fds(peer.framer.take_fds().into_iter().chain(peer.out.clear()));
        let is_fault = reason.is_fault();
        let reason = match (reason, &peer.unique) {
            (Disconnect::Transport(reason), _) => (*reason).into(),
            (reason, _) if !is_fault => reason.to_string().into(),
            (reason, Some(unique)) => format!("{}: {reason}", unique.name).into(),
            (reason, None) => reason.to_string().into(),
        };
        self.outgoing.ask(Action::Close {
            peer: id,
            reason,
            uid: peer.credentials.uid,
            is_fault,
            last_words,
        });
        self.regulate_accepting();
    }

    /// A peer that waits for the runtime, by ReloadConfig or Upgrade, is not answered any more.
    pub(super) fn forget_caller(&mut self, id: PeerId) {
        self.reload.forget(id);
        self.restart.upgrade.forget_caller(id);
        self.forget_cookie(id);
    }

    /// The peer's link is gone. What the peer has sent of a message so far is kept, and so is what it was not sent.
    pub(super) fn detach(&mut self, id: PeerId) {
        let peer = self.roster.get_mut(id);
        let Some((socket, uid)) = peer.and_then(|peer| Some((peer.socket.take()?, peer.credentials.uid)))
        else {
            return;
        };
        self.descriptors.remove_link(uid);
        self.close_fds([socket]);
        self.regulate_accepting();
    }

    /// The peer has a link again.
    pub(super) fn attach(&mut self, id: PeerId, socket: Fd) {
        let Some(peer) = self.roster.get_mut(id).filter(|peer| !peer.agenda.is_leaving()) else {
            return self.close_fds([socket]);
        };
        let old = peer.socket.replace(socket);
        if old.is_none() {
            self.descriptors.add_link(peer.credentials.uid);
        }
        if !peer.out.is_empty() {
            self.outgoing.mark_dirty(peer);
        }
        self.close_fds(old);
    }
}

/// How an exchange took what came for it, and what came: behind BEGIN it is messages.
pub(super) struct Fed {
    pub(super) step: Result<SaslStep, SaslError>,
    pub(super) data: Bytes,
    pub(super) fds: Fds,
    /// Whether the exchange waited for a cookie before, and so still does.
    pub(super) has_asked: bool,
}

fn push_answer(out: &mut SendQueue, reading: &mut Liveness, awake: AwakeTime, answer: &[u8]) {
    if out.is_empty() {
        reading.begin(awake, out.sent());
    }
    out.push(answer);
}

/// `max_message_size`, within what the specification allows.
pub(super) fn max_message_size(config: &Config) -> usize {
    config
        .limits
        .max_message_size
        .min(bus_wire::limits::MAX_MESSAGE as u64) as usize
}
