//! The life of a peer: accepted, authenticated, named, gone.

use std::sync::Arc;

use bus_wire::{Framer, Message, SaslConfig, SaslDone, SaslServer, SendQueue};
use bytes::Bytes;

use super::event::{Credentials, Fds, PeerId};
use super::peer::{Peaks, Peer, Phase, Unique};
use super::quota::ACCEPT_SLACK;
use super::reply::OpenCalls;
use super::speak::{FAILED, LIMITS_EXCEEDED, NOT_ACTIVE_YET};
use super::timer::Deadline;
use super::{Action, Broker, Seeded, System};
use crate::config::{Config, Connect};

impl Broker {
    pub(super) fn accept(&mut self, id: PeerId, listener: u32, credentials: Credentials, can_pass_fds: bool) {
        let limit = self
            .config
            .limits
            .max_incomplete_connections
            .saturating_add(ACCEPT_SLACK);
        if u64::from(self.stats.incomplete) >= limit {
            let reason = "too many connections have not said Hello yet".to_owned();
            self.actions.push_back(Action::Close {
                peer: id,
                reason,
                uid: credentials.uid,
                is_fault: true,
                last_words: Bytes::new(),
            });
            return;
        }
        let sasl = SaslConfig {
            guid: self
                .identity
                .listener_guids
                .get(listener as usize)
                .copied()
                .unwrap_or(self.identity.guid),
            mechanisms: self.config.auth.clone(),
            can_pass_fds,
        };
        let deadline = self.later(self.config.limits.auth_timeout);
        let peer = Peer {
            id,
            listener,
            credentials,
            can_pass_fds,
            takes_fds: false,
            phase: Phase::Authenticating(Box::new(SaslServer::new(sasl, credentials.uid))),
            unique: None,
            framer: Framer::new(max_message_size(&self.config)),
            out: SendQueue::new(),
            is_condemned: false,
            is_congested: false,
            is_dirty: false,
            is_stopped: false,
            hello_deadline: Some(deadline),
            fds_deadline: None,
            names: Vec::new(),
            owned: Vec::new(),
            calls: OpenCalls::new(Seeded::with_seed(self.identity.hash_seed)),
            peaks: Peaks::default(),
        };
        if !self.peers.insert(peer) {
            let text = format!("a connection was given the index {}, which is in use", id.index);
            self.warn(credentials.uid, text);
            return;
        }
        self.deadlines.insert((deadline, Deadline::Hello(id)));
        self.stats.incomplete += 1;
        self.regulate_accepting();
    }

    /// Feeds what a peer says before BEGIN, and routes what follows.
    pub(super) fn authenticate(&mut self, id: PeerId, data: Bytes, fds: Fds, system: &mut dyn System) {
        let Some(peer) = self.peers.get_mut(id) else {
            return self.close_fds(fds);
        };
        let Phase::Authenticating(sasl) = &mut peer.phase else {
            return self.close_fds(fds);
        };
        let mut answer = Vec::new();
        let step = sasl.feed(&data, &mut answer);
        if !answer.is_empty() {
            peer.out.push(&answer);
            self.mark_dirty(id);
        }
        match step {
            Err(error) => {
                self.close_fds(fds);
                self.disconnect(id, error.to_string(), true);
            }
            Ok(step) => match step.done {
                None if fds.is_empty() => {}
                None => {
                    self.close_fds(fds);
                    self.disconnect(id, "it sent file descriptors before BEGIN".to_owned(), true);
                }
                Some(done) => {
                    if let Err(reason) = self.admit(id, &done) {
                        self.close_fds(fds);
                        self.disconnect(id, reason, true);
                    } else if step.consumed < data.len() {
                        self.receive(id, data.slice(step.consumed..), fds, system);
                    } else if !fds.is_empty() {
                        self.close_fds(fds);
                        self.disconnect(id, "it sent file descriptors without a message".to_owned(), true);
                    }
                }
            },
        }
    }

    /// Lets a peer that has authenticated go on, if the policy lets its user connect.
    fn admit(&mut self, id: PeerId, done: &SaslDone) -> Result<(), String> {
        match (done.uid, self.config.connect) {
            (None, _) if !self.config.allow_anonymous => {
                return Err("anonymous peers may not connect".to_owned());
            }
            (Some(uid), Connect::OwnerOnly) if uid != self.identity.own_uid => {
                return Err(format!("user {uid} may not connect to this bus"));
            }
            (None | Some(_), Connect::OwnerOnly | Connect::Anyone) => {}
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.credentials.uid = done.uid;
            peer.takes_fds = done.fds;
            peer.phase = Phase::Greeting;
        }
        Ok(())
    }

    /// `Hello`: the answer, then NameOwnerChanged and NameAcquired (specification, "org.freedesktop.DBus.Hello").
    pub(crate) fn hello(&mut self, id: PeerId, call: &Message) {
        let Some(peer) = self.peers.get(id) else { return };
        if !peer.is_incomplete() {
            self.send_driver_error(id, call, FAILED, "Already handled an Hello message");
            return;
        }
        let uid = peer.credentials.uid;
        if let Some(text) = self.hello_refusal(uid) {
            self.send_driver_error(id, call, LIMITS_EXCEEDED, &text);
            return;
        }
        let unique = Unique::new(self.next_unique);
        self.next_unique += 1;
        self.unique.insert(unique.number, id);
        self.stats.note_names(self.names.len() + self.unique.len());
        self.stats.incomplete -= 1;
        self.stats.active += 1;
        if let Some(uid) = uid {
            *self.users.entry(uid).or_insert(0) += 1;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.phase = Phase::Active;
            peer.unique = Some(unique.clone());
            if let Some(deadline) = peer.hello_deadline.take() {
                self.deadlines.remove(&(deadline, Deadline::Hello(id)));
            }
        }
        self.regulate_accepting();
        self.send_driver_reply(id, call, |w| {
            w.str(&unique.name);
        });
        self.announce_unique(id, &unique, true);
    }

    /// Why a peer of this user would not get a unique name now.
    fn hello_refusal(&self, uid: Option<u32>) -> Option<String> {
        let limits = &self.config.limits;
        let of_user = uid.and_then(|uid| self.users.get(&uid)).copied().unwrap_or(0);
        if u64::from(self.stats.active) >= limits.max_completed_connections {
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

    /// Whom monitors are to see as the sender of a Hello: the name that it will be answered with.
    pub(super) fn expected_name(&self, uid: Option<u32>) -> Arc<str> {
        match self.hello_refusal(uid) {
            None => Unique::new(self.next_unique).name,
            Some(_) => NOT_ACTIVE_YET.into(),
        }
    }

    /// Marks a peer for disconnection once the message at hand is dealt with.
    pub(super) fn condemn(&mut self, id: PeerId, reason: String) {
        if let Some(peer) = self.peers.get_mut(id)
            && !peer.is_condemned
        {
            peer.is_condemned = true;
            self.condemned.push_back((id, reason));
        }
    }

    /// Disconnects the condemned, and those who are condemned by what that brings about.
    pub(super) fn bury_condemned(&mut self) {
        while let Some((id, reason)) = self.condemned.pop_front() {
            self.disconnect(id, reason, true);
        }
    }

    /// Takes a peer out of the bus: its rules, its names (with the signals), its open calls, everything queued.
    pub(super) fn disconnect(&mut self, id: PeerId, reason: String, is_fault: bool) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        // Nothing is sent to it any more.
        peer.is_condemned = true;
        if let Some(deadline) = peer.hello_deadline.take() {
            self.deadlines.remove(&(deadline, Deadline::Hello(id)));
        }
        if let Some(deadline) = peer.fds_deadline.take() {
            self.deadlines.remove(&(deadline, Deadline::Fds(id)));
        }
        self.drop_rules(id);
        self.release_all_names(id);
        self.drop_calls(id);
        let Some(mut peer) = self.peers.remove(id) else {
            return;
        };
        if peer.is_incomplete() {
            self.stats.incomplete -= 1;
        } else {
            self.stats.active -= 1;
            if let Some(uid) = peer.credentials.uid
                && let Some(count) = self.users.get_mut(&uid)
            {
                *count -= 1;
                if *count == 0 {
                    self.users.remove(&uid);
                }
            }
        }
        let last_words = match peer.phase {
            Phase::Authenticating(_) => peer.out.to_bytes(),
            Phase::Greeting | Phase::Active | Phase::Monitor => Bytes::new(),
        };
        self.close_fds(peer.framer.take_fds().into_iter().chain(peer.out.clear()));
        self.forget_caller(id);
        let reason = match &peer.unique {
            Some(unique) if is_fault => format!("{}: {reason}", unique.name),
            Some(_) | None => reason,
        };
        self.actions.push_back(Action::Close {
            peer: id,
            reason,
            uid: peer.credentials.uid,
            is_fault,
            last_words,
        });
        self.regulate_accepting();
    }

    /// Nobody is answered any more who waits for the runtime.
    pub(super) fn forget_caller(&mut self, id: PeerId) {
        self.reload_callers.retain(|(caller, _)| *caller != id);
        self.restart.upgrade_caller.take_if(|(caller, _)| *caller == id);
    }

    /// Notes a caller of ReloadConfig, who is answered when the runtime has reported the outcome. `serial` is that of
    /// the call, 0 if it wants no answer.
    pub(crate) fn request_reload(&mut self, caller: PeerId, serial: u32) {
        if serial != 0 {
            self.reload_callers.push((caller, serial));
        }
        self.actions.push_back(Action::ReloadConfig);
    }

    pub(super) fn config_loaded(&mut self, config: Arc<Config>) {
        let services_changed = config.services != self.config.services;
        self.config = config;
        self.is_config_changed = true;
        let max_message_size = max_message_size(&self.config);
        let ids: Vec<PeerId> = self.peer_ids().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.framer.set_max_message_size(max_message_size);
            }
            self.regulate(id);
        }
        self.regulate_accepting();
        if services_changed {
            self.broadcast_driver_signal("ActivatableServicesChanged", |_| {});
        }
        for (caller, serial) in std::mem::take(&mut self.reload_callers) {
            self.send_late_reply(caller, serial, |_| {});
        }
    }

    pub(super) fn config_refused(&mut self, reason: &str) {
        for (caller, serial) in std::mem::take(&mut self.reload_callers) {
            self.send_late_error(caller, serial, FAILED, reason);
        }
    }
}

/// `max_message_size`, within what the specification allows.
pub(super) fn max_message_size(config: &Config) -> usize {
    config
        .limits
        .max_message_size
        .min(bus_wire::limits::MAX_MESSAGE as u64) as usize
}
