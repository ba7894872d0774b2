//! Saving: every live struct taken apart completely, so that a new field cannot be forgotten.
//!
//! A snapshot is taken between events, with the actions carried out.

use bus_wire::{Fd, FramerState, PieceState, SendQueueState};
use bytes::Bytes;
use hashbrown::HashMap;

use super::agenda::{Agenda, Then};
use super::deliver::SHARED;
use super::event::{Credentials, PeerId, Transport};
use super::frozen::{
    AgendaV1, Blob, BrokerState, ConfigV1, ConfigV2, GlobalV2, IdentityV2, InForceV1, ListenerV1, Lists,
    NameV1, PeerRecord, PeerV2, PhaseV1, PieceV1, PolicyV1, ReloadV1, RestartV2, RuleV1, SaslV1, SheddingV1,
    ThenV1, TransportV1, UpgradeV1,
};
use super::name::{Name, Owner};
use super::peer::{Peaks, Peer, Phase};
use super::reload::{Callers, Reload};
use super::restart::{LastRestart, Restart, Upgrade};
use super::{Broker, Identity, ListenerIdentity, Seeded};
use crate::config::{Config, Simple};

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
            .map(|peer| self.save_one(peer, self.save_lists(peer.id), Vec::new(), &mut shared))
            .collect();
        BrokerState {
            global: self.save_global(),
            in_force: Some(self.save_in_force()),
            peers,
            shared: shared.into_bodies(),
            stored: self.stored_offsets(),
            agenda: self.save_agenda(),
            shares: self.save_shares(),
            admissions: self.save_admissions(),
        }
    }

    /// The peers that are giving up what they have.
    pub fn save_agenda(&self) -> AgendaV1 {
        let mut agenda = AgendaV1::default();
        if self.shedding == 0 {
            return agenda;
        }
        for peer in self.roster.iter() {
            let Agenda::Shedding(then) = &peer.agenda else {
                continue;
            };
            agenda.shedding.push(SheddingV1 {
                peer: peer.id,
                is_retired: self.roster.is_retired(peer),
                then: match then {
                    // How a link ended only the log is told, and in a replay it is not known.
                    Then::Gone(reason) if !reason.is_fault() => ThenV1::Gone {
                        reason: "its link ended".to_owned(),
                        is_fault: false,
                    },
                    Then::Gone(reason) => ThenV1::Gone {
                        reason: reason.to_string(),
                        is_fault: reason.is_fault(),
                    },
                    Then::Monitor(filters) => ThenV1::Monitor {
                        filters: filters.iter().map(ToString::to_string).collect(),
                    },
                },
            });
        }
        agenda
    }

    /// Each peer of which output is kept elsewhere, and up to which absolute offset.
    pub fn stored_offsets(&self) -> Vec<(PeerId, u64)> {
        let kept = |peer: &&Peer| peer.out.stored() > peer.out.sent();
        let peers = self.roster.iter().filter(kept);
        peers.map(|peer| (peer.id, peer.out.stored())).collect()
    }

    /// The record of one peer. Bodies that its queue shares are added to `shared`.
    pub fn save_peer(&self, id: PeerId, shared: &mut SharedBodies) -> Option<PeerRecord> {
        self.save_peer_behind(Vec::new(), id, shared)
    }

    /// The same with output that is kept elsewhere, and comes first.
    pub fn save_peer_behind(
        &self,
        before: Vec<PieceState>,
        id: PeerId,
        shared: &mut SharedBodies,
    ) -> Option<PeerRecord> {
        let peer = self.roster.get(id)?;
        Some(self.save_one(peer, self.save_lists(id), before, shared))
    }

    /// Unique name and credentials of a peer.
    pub fn identity_of(&self, id: PeerId) -> Option<(Option<String>, Credentials)> {
        let peer = self.roster.get(id)?;
        let name = peer.unique.as_ref().map(|unique| unique.name.to_string());
        Some((name, peer.credentials))
    }

    /// What belongs to no single peer.
    pub fn save_global(&self) -> GlobalV2 {
        let roster = self
            .roster
            .iter()
            .map(|peer| (peer.id, peer.unique.as_ref().map(|unique| unique.number)));
        self.save_bus()
            .complete(ConfigV1::from(&*self.config), self.save_names(), roster.collect())
    }

    /// Every well-known name, sorted.
    pub fn save_names(&self) -> Vec<NameV1> {
        self.names.sorted().into_iter().map(save_name).collect()
    }

    /// The configuration in force.
    pub fn save_config(&self) -> ConfigV2 {
        ConfigV2::from(&*self.config)
    }

    /// The policy in force.
    pub fn save_in_force(&self) -> InForceV1 {
        let at_console = self.roster.iter().filter(|peer| peer.rights.is_at_console());
        InForceV1 {
            policy: PolicyV1::from(&*self.config.policy),
            at_console: at_console.map(|peer| peer.id).collect(),
        }
    }

    /// Whether the policy in force is one that versions before 5 of the state can express.
    pub fn has_simple_policy(&self) -> bool {
        Simple::of(&self.config.policy).is_some()
    }

    /// The memfd that the configuration in force came in, if it came in one.
    pub fn config_source(&self) -> Option<Fd> {
        self.config_source
    }

    /// What the kernel tells of a peer that was carried over from a version that did not save it.
    pub fn set_attested(&mut self, peer: PeerId, groups: Option<Vec<u32>>, label: Option<Vec<u8>>) {
        if let Some(peer) = self.roster.get_mut(peer) {
            (peer.groups, peer.label) = (groups, label);
            self.ledger.settle(peer);
        }
    }

    /// The configuration of a restored broker lies in this memfd, as before.
    pub fn set_config_source(&mut self, source: Option<Fd>) {
        self.config_source = source;
    }

    /// What belongs to no single peer, without names and configuration: see [`GlobalV2::complete`].
    pub fn save_bus(&self) -> GlobalV2 {
        let Self {
            identity,
            roster,
            names,
            subscriptions,
            deadlines,
            outgoing,
            restart,
            reload,
            next_errand,
            activation_environment,
            // In the lists.
            config: _,
            // Follows from the configuration, and from who is here.
            in_force: _,
            // By itself.
            keyring: _,
            // A handle, and the configuration is saved whole.
            config_source: _,
            // Only says what the next checkpoint must write.
            is_config_changed: _,
            // In the records of the peers at both ends.
            calls: _,
            // Counted again.
            ledger: _,
            // In a checkpoint by itself, and not in an image.
            shortage: _,
            descriptors: _,
            // By themselves.
            awake: _,
            pacing: _,
            shedding: _,
            // Of this process alone.
            room: _,
            // Without meaning.
            // Counted anew from the queues.
            crowd: _,
            scratch: _,
        } = self;
        let Identity {
            guid,
            listeners,
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        } = identity.clone();
        let (next_unique, is_accepting_stopped) = roster.save();
        GlobalV2 {
            identity: IdentityV2 {
                guid,
                listeners: listeners.into_iter().map(save_listener).collect(),
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
            reload: save_reload(reload),
            next_errand: *next_errand,
            activation_environment: activation_environment.save(),
            peak_rules: subscriptions.peak(),
            peak_names: names.peak(),
            is_accepting_stopped,
        }
    }

    /// What a peer has a part in and is kept elsewhere.
    fn save_lists(&self, id: PeerId) -> Lists {
        let owed = self.calls.owed_by(id).into_iter();
        Lists {
            names: self.names.held_by(id).map(Into::into).collect(),
            rules: self.rules_of(id).map(RuleV1::from).collect(),
            owed: owed
                .map(|((caller, serial), deadline)| (caller, serial, deadline))
                .collect(),
            awaited: self.calls.awaited_by(id),
        }
    }

    pub(super) fn save_one(
        &self,
        peer: &Peer,
        lists: Lists,
        mut output: Vec<PieceState>,
        shared: &mut SharedBodies,
    ) -> PeerRecord {
        let Peer {
            id,
            listener,
            socket,
            taken,
            credentials,
            groups,
            label,
            takes_fds,
            phase,
            unique,
            // By itself.
            rights: _,
            framer,
            // Input is found in the framer, and the rest is in a list of its own.
            agenda: _,
            out,
            is_congested,
            is_stopped,
            hello_deadline,
            fds_deadline,
            peaks,
            #[cfg(feature = "next-version")]
            note,
            // Empty between events.
            is_condemned: _,
            // Rebuilt: a peer with output is dirty.
            is_dirty: _,
            // Counted again.
            charge: _,
            pending_fds: _,
            is_waiting: _,
            // In a checkpoint, and not in an image.
            payers: _,
            // Only advises.
            origins: _,
            // By themselves.
            cells: _,
            credit: _,
            reading: _,
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
            // In a list of its own.
            stored: _,
        } = out.save();
        output.extend(pieces);
        let Peaks {
            names: peak_names,
            rules: peak_rules,
            outgoing_bytes,
            outgoing_fds,
        } = *peaks;
        let Lists {
            names,
            rules,
            owed,
            awaited,
        } = lists;
        let record = PeerV2 {
            id: *id,
            listener: *listener,
            socket: *socket,
            uid,
            gid,
            pid,
            groups: groups.clone(),
            label: label.clone(),
            takes_fds: *takes_fds,
            phase: match phase {
                Phase::Authenticating(sasl) => PhaseV1::Authenticating(SaslV1::from(&**sasl)),
                Phase::Greeting => PhaseV1::Greeting,
                Phase::Active => PhaseV1::Active,
                Phase::Monitor => PhaseV1::Monitor,
            },
            unique: unique.as_ref().map(|unique| unique.number),
            taken: *taken,
            input: Blob(partial),
            input_fds,
            sent,
            output: save_output(output, shared),
            output_fds,
            is_congested: *is_congested,
            is_stopped: *is_stopped,
            hello_deadline: *hello_deadline,
            fds_deadline: *fds_deadline,
            names,
            rules,
            owed,
            awaited,
            peak_names,
            peak_rules,
            peak_outgoing_bytes: outgoing_bytes,
            peak_outgoing_fds: outgoing_fds,
        };
        #[cfg(feature = "next-version")]
        let record = PeerRecord {
            peer: record,
            note: note.clone(),
        };
        record
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
        // Says where a checkpoint has it.
        slot: _,
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
        name: name.into(),
        owners: owners.collect(),
    }
}

fn save_restart(restart: &Restart) -> RestartV2 {
    let Restart {
        generation,
        recoveries,
        worker_pid,
        last,
        upgrade,
        dropped_in_restore,
    } = restart.clone();
    let LastRestart {
        cause,
        pause,
        carried,
        dropped,
        quarantined,
    } = last;
    RestartV2 {
        generation,
        recoveries,
        worker_pid,
        last_cause: cause,
        last_pause: pause,
        last_carried: carried,
        last_dropped: dropped,
        last_quarantined: quarantined,
        upgrade: match upgrade {
            Upgrade::None => UpgradeV1::None,
            Upgrade::Trying {
                errand,
                binary,
                caller,
            } => UpgradeV1::Trying {
                errand,
                binary,
                caller,
            },
            Upgrade::HandingOver { caller } => UpgradeV1::HandingOver { caller },
        },
        dropped_in_restore,
    }
}

fn save_listener(listener: ListenerIdentity) -> ListenerV1 {
    let ListenerIdentity {
        guid,
        transport,
        // By itself.
        nonce: _,
    } = listener;
    ListenerV1 {
        guid,
        transport: match transport {
            Transport::Unix => TransportV1::Unix,
            Transport::Tcp => TransportV1::Tcp,
        },
    }
}

fn save_reload(reload: &Reload) -> ReloadV1 {
    let flat = |callers: &Callers| -> Vec<(PeerId, u32)> {
        let each = callers
            .iter()
            .flat_map(|(peer, serials)| serials.iter().map(|serial| (*peer, *serial)));
        each.collect()
    };
    let wanted = reload.wanted();
    ReloadV1 {
        wanted: wanted.map(|wanted| (wanted.first, wanted.last)),
        callers: wanted.map_or_else(Vec::new, |wanted| flat(&wanted.callers)),
        reading: reload
            .reading()
            .map(|reading| (reading.errand, flat(&reading.callers))),
    }
}
