//! Saving: every live struct taken apart completely, so that a new field cannot be forgotten.
//!
//! A snapshot is taken between events, with the actions carried out.

use bus_wire::{FramerState, PieceState, SendQueueState};
use bytes::Bytes;
use hashbrown::HashMap;

use super::deliver::SHARED;
use super::event::{Credentials, PeerId};
use super::frozen::{
    Blob, BrokerState, ConfigV1, GlobalV1, IdentityV1, ListsV1, NameV1, PeerV1, PhaseV1, PieceV1, RestartV1,
};
use super::name::{Name, Owner};
use super::peer::{Peaks, Peer, Phase};
use super::restart::{LastRestart, Restart};
use super::{Broker, Identity, Seeded};
use crate::config::Config;

/// The bodies that send queues share, each once.
///
/// One body is known by where it ends in memory: a queue that has sent the first part of it holds only the rest.
#[derive(Debug, Default)]
pub struct SharedBodies {
    bodies: Vec<Blob>,
    by_end: HashMap<usize, u32, Seeded>,
}

impl SharedBodies {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bodies, in the order that the records of the peers refer to.
    pub fn into_bodies(self) -> Vec<Blob> {
        self.bodies
    }

    fn add(&mut self, bytes: &Bytes) -> PieceV1 {
        let end = bytes.as_ptr() as usize + bytes.len();
        let next = self.bodies.len() as u32;
        let index = *self.by_end.entry(end).or_insert(next);
        match self.bodies.get_mut(index as usize) {
            Some(Blob(body)) if body.len() >= bytes.len() => {}
            Some(Blob(body)) => *body = bytes.clone(),
            None => self.bodies.push(Blob(bytes.clone())),
        }
        PieceV1::Shared {
            index,
            length: bytes.len() as u64,
        }
    }
}

impl Broker {
    /// The whole broker, to be continued by [`restore`](Self::restore).
    pub fn save(&self) -> BrokerState {
        let mut shared = SharedBodies::new();
        let peers = self
            .roster
            .iter()
            .map(|peer| self.save_one(peer, &mut shared))
            .collect();
        BrokerState {
            global: self.save_global(),
            peers,
            shared: shared.into_bodies(),
        }
    }

    /// The record of one peer. Bodies that its queue shares are added to `shared`.
    pub fn save_peer(&self, id: PeerId, shared: &mut SharedBodies) -> Option<PeerV1> {
        self.roster.get(id).map(|peer| self.save_one(peer, shared))
    }

    /// What belongs to no single peer.
    pub fn save_global(&self) -> GlobalV1 {
        let roster = self
            .roster
            .iter()
            .map(|peer| (peer.id, peer.unique.as_ref().map(|unique| unique.number)));
        self.save_bus().complete(self.save_lists(), roster.collect())
    }

    /// The configuration and the names: the lists that grow with the bus, apart from the peers.
    pub fn save_lists(&self) -> ListsV1 {
        ListsV1 {
            config: ConfigV1::from(&*self.config),
            names: self.names.sorted().into_iter().map(save_name).collect(),
        }
    }

    /// What belongs to no single peer, without the configuration and the names: see [`GlobalV1::complete`].
    pub fn save_bus(&self) -> GlobalV1 {
        let Self {
            identity,
            roster,
            names,
            subscriptions,
            deadlines,
            outgoing,
            restart,
            reload_callers,
            activation_environment,
            // In the lists.
            config: _,
            // Only says what the next checkpoint must write.
            is_config_changed: _,
            // In the records of the peers at both ends.
            calls: _,
            // Without meaning.
            scratch: _,
        } = self;
        let Identity {
            guid,
            listener_guids,
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        } = identity.clone();
        let (next_unique, is_accepting_stopped) = roster.save();
        GlobalV1 {
            identity: IdentityV1 {
                guid,
                listener_guids,
                machine_id,
                keeper_pid,
                own_uid,
                hash_seed,
            },
            config: ConfigV1::from(&Config::default()),
            now: deadlines.now(),
            next_unique,
            driver_serial: outgoing.save(),
            roster: Vec::new(),
            names: Vec::new(),
            restart: save_restart(restart),
            reload_callers: reload_callers.clone(),
            activation_environment: activation_environment.clone().into_iter().collect(),
            peak_rules: subscriptions.peak(),
            peak_names: names.peak(),
            is_accepting_stopped,
        }
    }

    fn save_one(&self, peer: &Peer, shared: &mut SharedBodies) -> PeerV1 {
        let Peer {
            id,
            listener,
            credentials,
            can_pass_fds,
            takes_fds,
            phase,
            unique,
            framer,
            out,
            is_congested,
            is_stopped,
            hello_deadline,
            fds_deadline,
            peaks,
            // Empty between events.
            is_condemned: _,
            // Rebuilt: a peer with output is dirty.
            is_dirty: _,
        } = peer;
        let Credentials { uid, gid, pid } = *credentials;
        let FramerState {
            partial,
            fds: input_fds,
        } = framer.save();
        let SendQueueState {
            sent,
            pieces,
            fds: output_fds,
        } = out.save();
        let Peaks {
            names: peak_names,
            rules: peak_rules,
            outgoing_bytes,
            outgoing_fds,
        } = *peaks;
        PeerV1 {
            id: *id,
            listener: *listener,
            uid,
            gid,
            pid,
            can_pass_fds: *can_pass_fds,
            takes_fds: *takes_fds,
            phase: match phase {
                Phase::Authenticating(sasl) => PhaseV1::Authenticating((**sasl).clone()),
                Phase::Greeting => PhaseV1::Greeting,
                Phase::Active => PhaseV1::Active,
                Phase::Monitor => PhaseV1::Monitor,
            },
            unique: unique.as_ref().map(|unique| unique.number),
            input: Blob(partial),
            input_fds,
            sent,
            output: save_output(pieces, shared),
            output_fds,
            is_congested: *is_congested,
            is_stopped: *is_stopped,
            hello_deadline: *hello_deadline,
            fds_deadline: *fds_deadline,
            names: self.names.held_by(*id).map(|name| name.to_string()).collect(),
            rules: self.rules_of(*id).map(ToString::to_string).collect(),
            owed: (self.calls)
                .owed_by(*id)
                .into_iter()
                .map(|((caller, serial), deadline)| (caller, serial, deadline))
                .collect(),
            awaited: self.calls.awaited_by(*id),
            peak_names,
            peak_rules,
            peak_outgoing_bytes: outgoing_bytes,
            peak_outgoing_fds: outgoing_fds,
        }
    }
}

/// Copied bytes as one run, however the queue has them in buffers, and only long pieces as shared: so the same output
/// is saved as the same record.
fn save_output(pieces: Vec<PieceState>, shared: &mut SharedBodies) -> Vec<PieceV1> {
    let mut output = Vec::new();
    let mut run: Vec<u8> = Vec::new();
    for piece in pieces {
        match piece {
            PieceState::Shared(bytes) if bytes.len() >= SHARED => {
                if !run.is_empty() {
                    output.push(PieceV1::Inline(Blob(std::mem::take(&mut run).into())));
                }
                output.push(shared.add(&bytes));
            }
            PieceState::Shared(bytes) => run.extend_from_slice(&bytes),
            PieceState::Inline(bytes) if run.is_empty() => run = bytes,
            PieceState::Inline(bytes) => run.extend_from_slice(&bytes),
        }
    }
    if !run.is_empty() {
        output.push(PieceV1::Inline(Blob(run.into())));
    }
    output
}

fn save_name(name: &Name) -> NameV1 {
    let Name {
        name,
        owners,
        // Rebuilt from the peers' lists.
        owned_at: _,
    } = name;
    let owners = owners.iter().map(|owner| {
        let Owner {
            peer,
            flags,
            held_at: _,
        } = owner;
        (*peer, flags.bits())
    });
    NameV1 {
        name: name.to_string(),
        owners: owners.collect(),
    }
}

fn save_restart(restart: &Restart) -> RestartV1 {
    let Restart {
        generation,
        recoveries,
        worker_pid,
        last,
        is_upgrading,
        upgrade_caller,
        dropped_in_restore,
    } = restart.clone();
    let LastRestart {
        cause,
        pause,
        carried,
        dropped,
        quarantined,
    } = last;
    RestartV1 {
        generation,
        recoveries,
        worker_pid,
        last_cause: cause,
        last_pause: pause,
        last_carried: carried,
        last_dropped: dropped,
        last_quarantined: quarantined,
        is_upgrading,
        upgrade_caller,
        dropped_in_restore,
    }
}
