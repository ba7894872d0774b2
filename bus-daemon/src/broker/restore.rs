//! Restoring: peers from their records, everything else rebuilt from them. A record that makes no sense costs its peer
//! the connection, and nobody else anything.

use std::sync::Arc;

use bus_wire::{Fd, Framer, FramerState, MatchRule, PieceState, SendQueue, SendQueueState};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use thiserror::Error;

use super::connect::max_message_size;
use super::deliver::SHARED;
use super::event::{Credentials, PeerId};
use super::frozen::{Blob, BrokerState, GlobalV1, IdentityV1, NameV1, PeerV1, PhaseV1, PieceV1, RestartV1};
use super::name::{Name, NameFlags, Owner};
use super::peer::{Peaks, Peer, Phase, Unique};
use super::record_fault::RecordFault;
use super::reply::{DISCONNECTED, NO_REPLY, OpenCalls};
use super::restart::{LastRestart, Restart};
use super::timer::Deadline;
use super::{Broker, Identity, Seeded, Violation};
use crate::config::Config;

/// More peers than any machine has descriptors for: an index beyond this is nonsense.
const MAX_INDEX: u32 = 1 << 22;

/// No position in a stream and no number of a unique name gets this far; behind it, counting could overflow.
const MAX_COUNT: u64 = 1 << 62;

/// A peer that was not restored. Its link is to be closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Which.
    pub peer: PeerId,
    /// What is wrong with its record.
    pub reason: String,
    /// Received descriptors that its record named, which are to be closed.
    pub fds: Vec<Fd>,
}

/// Why a state cannot be restored at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The state has given out every unique name that there is: it is damaged.
    #[error("the restored state is inconsistent: no unique name is left")]
    NoUniqueNameLeft,
    /// The part that belongs to no single peer contradicts itself, or this program is at fault.
    #[error("the restored state is inconsistent: {0}")]
    Inconsistent(#[from] Violation),
}

impl Broker {
    /// Continues where [`save`](Self::save) was called. Peers whose records are missing or make no sense are left out
    /// and returned; the others see them as disconnected.
    ///
    /// # Errors
    /// See [`RestoreError`]. Whatever is wrong with single peers is none.
    pub fn restore(state: BrokerState) -> Result<(Self, Vec<Dropped>), RestoreError> {
        let BrokerState {
            global,
            peers,
            shared,
        } = state;
        Self::restore_from(global, peers, &shared)
    }

    /// The same, with records that come one after the other, so that each needs the memory of the one before it.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_from(
        global: GlobalV1,
        peers: impl IntoIterator<Item = PeerV1>,
        shared: &[Blob],
    ) -> Result<(Self, Vec<Dropped>), RestoreError> {
        let GlobalV1 {
            identity,
            config,
            now,
            next_unique,
            driver_serial,
            roster,
            names,
            restart,
            reload_callers,
            activation_environment,
            peak_rules,
            peak_names,
            is_accepting_stopped,
        } = global;
        let IdentityV1 {
            guid,
            listener_guids,
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        } = identity;
        let identity = Identity {
            guid,
            listener_guids,
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        };
        let mut broker = Self::new(identity, Arc::new(Config::from(config)), now);
        if next_unique > MAX_COUNT {
            return Err(RestoreError::NoUniqueNameLeft);
        }
        broker.next_unique = next_unique;
        broker.driver_serial = driver_serial;
        broker.restart = restore_restart(restart);
        broker.reload_callers = reload_callers;
        broker.activation_environment = activation_environment.into_iter().collect();

        let mut dropped = Vec::new();
        broker.unique.reserve(roster.len());
        let mut calls = Vec::with_capacity(roster.len());
        let mut owned = HashSet::with_hasher(Seeded::default());
        for record in peers {
            let id = record.id;
            let fds = fds_of(&record);
            match broker.restore_peer(record, shared, &mut owned) {
                Ok(records) => calls.push((id, records)),
                Err(fault) => dropped.push(Dropped {
                    peer: id,
                    reason: fault.to_string(),
                    fds,
                }),
            }
        }
        let mut known: HashSet<PeerId, Seeded> = dropped.iter().map(|one| one.peer).collect();
        for (id, _) in &roster {
            if broker.peers.get(*id).is_none() && known.insert(*id) {
                let reason = RecordFault::Missing.to_string();
                dropped.push(Dropped {
                    peer: *id,
                    reason,
                    fds: Vec::new(),
                });
            }
        }
        let gone = Gone::new(&roster, &broker);
        let changed = broker.restore_names(names, &gone);
        broker.restore_calls(calls);
        broker.stats.peak_rules = peak_rules;
        broker.stats.peak_names = peak_names;
        broker.note_rules();
        broker.stats.note_names(broker.names.len() + broker.unique.len());
        broker.restart.dropped_in_restore = broker
            .restart
            .dropped_in_restore
            .saturating_add(dropped.len() as u32);
        broker.is_accepting_stopped = is_accepting_stopped;
        broker.regulate_accepting();
        broker.announce_gone(&gone, changed);
        broker.bury_condemned();
        broker.check_invariants()?;
        Ok((broker, dropped))
    }

    /// Puts one peer into the table and all that is rebuilt from it.
    fn restore_peer(
        &mut self,
        record: PeerV1,
        shared: &[Blob],
        owned: &mut HashSet<Fd, Seeded>,
    ) -> Result<Calls, RecordFault> {
        let fds = fds_of(&record);
        let PeerV1 {
            id,
            listener,
            uid,
            gid,
            pid,
            can_pass_fds,
            takes_fds,
            phase,
            unique,
            input,
            input_fds,
            sent,
            output,
            output_fds,
            is_congested,
            is_stopped,
            hello_deadline,
            fds_deadline,
            names,
            rules,
            owed,
            awaited,
            peak_names,
            peak_rules,
            peak_outgoing_bytes,
            peak_outgoing_fds,
        } = record;
        let phase = match phase {
            PhaseV1::Authenticating(sasl) => Phase::Authenticating(Box::new(sasl)),
            PhaseV1::Greeting => Phase::Greeting,
            PhaseV1::Active => Phase::Active,
            PhaseV1::Monitor => Phase::Monitor,
        };
        let is_named = match phase {
            Phase::Authenticating(_) | Phase::Greeting => false,
            Phase::Active | Phase::Monitor => true,
        };
        if unique.is_some() != is_named {
            return Err(RecordFault::UniqueOutOfPhase);
        }
        if unique.is_some_and(|number| number >= self.next_unique || self.unique.contains_key(&number)) {
            return Err(RecordFault::UniqueTaken);
        }
        if id.index > MAX_INDEX {
            return Err(RecordFault::Index);
        }
        if input.0.len() > max_message_size(&self.config) {
            return Err(RecordFault::Input);
        }
        // What was taken as a match rule is longer as canonical text, where it has apostrophes.
        let rules = rules
            .iter()
            .map(|text| MatchRule::parse_any_length(text))
            .collect::<Result<Vec<_>, _>>()?;
        let mut pieces = Vec::with_capacity(output.len());
        for piece in output {
            restore_piece(piece, shared, &mut pieces).ok_or(RecordFault::OutputMissing)?;
        }
        let length: u64 = pieces.iter().map(|piece| piece_length(piece) as u64).sum();
        let end = sent.saturating_add(length);
        if end > MAX_COUNT {
            return Err(RecordFault::OutputEndless);
        }
        if output_fds.iter().any(|(at, _)| *at < sent || *at >= end) {
            return Err(RecordFault::FdsMisplaced);
        }
        if !takes_fds && !fds.is_empty() {
            return Err(RecordFault::FdsNotTaken);
        }
        if fds.iter().any(|fd| owned.contains(fd)) {
            return Err(RecordFault::FdTaken);
        }
        let mut own = HashSet::with_hasher(Seeded::default());
        if !fds.iter().all(|fd| own.insert(*fd)) {
            return Err(RecordFault::FdTwice);
        }
        let unique = unique.map(Unique::new);
        let is_monitor = matches!(phase, Phase::Monitor);
        let is_active = matches!(phase, Phase::Active);
        let number = unique.as_ref().map(|unique| unique.number);
        let peer = Peer {
            id,
            listener,
            credentials: Credentials { uid, gid, pid },
            can_pass_fds,
            takes_fds,
            phase,
            unique,
            framer: Framer::restore(
                FramerState {
                    partial: input.0,
                    fds: input_fds,
                },
                max_message_size(&self.config),
            ),
            out: SendQueue::restore(SendQueueState {
                sent,
                pieces,
                fds: output_fds,
            }),
            is_condemned: false,
            is_congested,
            is_dirty: length > 0,
            is_stopped,
            hello_deadline,
            fds_deadline,
            names: names.into_iter().map(Arc::from).collect(),
            owned: Vec::new(),
            calls: OpenCalls::new(Seeded::with_seed(self.identity.hash_seed)),
            peaks: Peaks {
                names: peak_names,
                rules: peak_rules,
                outgoing_bytes: peak_outgoing_bytes,
                outgoing_fds: peak_outgoing_fds,
            },
        };
        if !self.peers.insert(peer) {
            return Err(RecordFault::IndexTaken);
        }
        owned.extend(fds);
        if length > 0 {
            self.dirty.push(id);
        }
        if let Some(deadline) = hello_deadline {
            self.deadlines.insert((deadline, Deadline::Hello(id)));
        }
        if let Some(deadline) = fds_deadline {
            self.deadlines.insert((deadline, Deadline::Fds(id)));
        }
        match number {
            None => self.stats.incomplete += 1,
            Some(number) => {
                self.stats.active += 1;
                if let Some(uid) = uid {
                    *self.users.entry(uid).or_insert(0) += 1;
                }
                if is_active {
                    self.unique.insert(number, id);
                }
            }
        }
        for rule in rules {
            if is_monitor {
                self.monitors.add(id, rule);
            } else if is_active {
                self.index_rule(id, rule);
            }
        }
        Ok(Calls { owed, awaited })
    }

    /// Fills the name table with those who are still there. Returns the names whose primary owner is not, with it.
    fn restore_names(&mut self, names: Vec<NameV1>, gone: &Gone) -> Vec<(Arc<str>, PeerId)> {
        let mut changed = Vec::new();
        for NameV1 { name, owners } in names {
            let name: Arc<str> = name.into();
            if bus_wire::WellKnownName::new(&name).is_err() {
                continue;
            }
            let mut seen = HashSet::with_hasher(Seeded::default());
            let before = owners.first().map(|(peer, _)| *peer);
            let owners = owners
                .into_iter()
                .filter(|(peer, _)| self.peers.get(*peer).is_some_and(Peer::is_active) && seen.insert(*peer))
                .map(|(peer, flags)| Owner {
                    peer,
                    flags: NameFlags::from_bits(flags),
                });
            let entry = Name {
                name: name.clone(),
                owners: owners.collect(),
            };
            let primary = entry.owners.front().map(|owner| owner.peer);
            if self.names.insert(entry)
                && let Some(peer) = primary.and_then(|id| self.peers.get_mut(id))
            {
                peer.owned.push(name.clone());
            }
            if let Some(before) = before
                && primary != Some(before)
                && gone.unique.contains_key(&before)
            {
                changed.push((name, before));
            }
        }
        self.agree_on_names();
        changed
    }

    /// The peers' own lists of names give the order; the name table says what is true.
    fn agree_on_names(&mut self) {
        let held: Vec<(Arc<str>, Vec<PeerId>)> = (self.names.sorted().into_iter())
            .map(|name| {
                (
                    name.name.clone(),
                    name.owners.iter().map(|owner| owner.peer).collect(),
                )
            })
            .collect();
        let mut true_names: HashMap<PeerId, Vec<Arc<str>>, Seeded> = HashMap::with_hasher(Seeded::default());
        for (name, owners) in held {
            for owner in owners {
                true_names.entry(owner).or_default().push(name.clone());
            }
        }
        let ids: Vec<PeerId> = self.peer_ids().collect();
        for id in ids {
            let mut truth = true_names.remove(&id).unwrap_or_default();
            let Some(peer) = self.peers.get_mut(id) else {
                continue;
            };
            let mut agreed = Vec::with_capacity(truth.len());
            for name in &peer.names {
                // Sorted, and it stays so.
                if let Ok(place) = truth.binary_search(name) {
                    agreed.push(truth.remove(place));
                }
            }
            agreed.extend(truth);
            peer.names = agreed;
        }
    }

    /// A call is open if both ends say so. A caller whose callee does not know of it is told that there is no answer.
    fn restore_calls(&mut self, records: Vec<(PeerId, Calls)>) {
        let awaited: HashSet<(PeerId, PeerId, u32), Seeded> = records
            .iter()
            .flat_map(|(caller, calls)| {
                calls
                    .awaited
                    .iter()
                    .map(|(callee, serial)| (*callee, *caller, *serial))
            })
            .collect();
        for (callee, calls) in &records {
            for (caller, serial, deadline) in &calls.owed {
                if !awaited.contains(&(*callee, *caller, *serial)) {
                    continue;
                }
                if let Some(peer) = self.peers.get_mut(*callee) {
                    peer.calls.owe(*caller, *serial, *deadline);
                }
                if let Some(peer) = self.peers.get_mut(*caller) {
                    peer.calls.wait(*callee, *serial);
                }
                if let Some(at) = deadline {
                    let due = Deadline::Reply {
                        callee: *callee,
                        caller: *caller,
                        serial: *serial,
                    };
                    self.deadlines.insert((*at, due));
                }
            }
        }
        for (caller, calls) in &records {
            for (callee, serial) in &calls.awaited {
                if self
                    .peers
                    .get(*caller)
                    .is_some_and(|peer| !peer.calls.awaits(*callee, *serial))
                {
                    self.send_late_error(*caller, *serial, NO_REPLY, DISCONNECTED);
                }
            }
        }
    }

    /// Tells everyone what the peers that are not there any more owned.
    fn announce_gone(&mut self, gone: &Gone, changed: Vec<(Arc<str>, PeerId)>) {
        for (name, before) in changed {
            let Some(old) = gone.unique.get(&before) else {
                continue;
            };
            let owner = self.names.owner(&name);
            let new = owner
                .and_then(|id| self.peers.get(id))
                .map(|peer| peer.unique_name().to_owned());
            self.broadcast_driver_signal("NameOwnerChanged", |w| {
                w.str(&name);
                w.str(&old.name);
                w.str(new.as_deref().unwrap_or_default());
            });
            if let Some(owner) = owner {
                self.send_signal_to(owner, "NameAcquired", |w| {
                    w.str(&name);
                });
            }
        }
        for unique in &gone.in_order {
            self.broadcast_driver_signal("NameOwnerChanged", |w| {
                w.str(&unique.name);
                w.str(&unique.name);
                w.str("");
            });
        }
    }
}

/// The open calls of one record.
struct Calls {
    owed: Vec<(PeerId, u32, Option<super::Millis>)>,
    awaited: Vec<(PeerId, u32)>,
}

/// The unique names of peers that are not there any more.
struct Gone {
    unique: HashMap<PeerId, Unique, Seeded>,
    in_order: Vec<Unique>,
}

impl Gone {
    fn new(roster: &[(PeerId, Option<u64>)], broker: &Broker) -> Self {
        let mut gone = Self {
            unique: HashMap::with_hasher(Seeded::default()),
            in_order: Vec::new(),
        };
        for (id, number) in roster {
            if let Some(number) = number
                && broker.peers.get(*id).is_none()
            {
                let unique = Unique::new(*number);
                gone.in_order.push(unique.clone());
                gone.unique.insert(*id, unique);
            }
        }
        gone
    }
}

fn fds_of(record: &PeerV1) -> Vec<Fd> {
    let output = record.output_fds.iter().flat_map(|(_, fds)| fds);
    record.input_fds.iter().chain(output).copied().collect()
}

/// `None` where it refers to bytes that are not there.
fn restore_piece(piece: PieceV1, shared: &[Blob], pieces: &mut Vec<PieceState>) -> Option<()> {
    match piece {
        // The queue takes long pieces for shared ones; these are not.
        PieceV1::Inline(Blob(bytes)) => {
            pieces.extend(
                bytes
                    .chunks(SHARED - 1)
                    .map(|chunk| PieceState::Inline(chunk.to_vec())),
            );
        }
        PieceV1::Shared { index, length } => {
            let Blob(body) = shared.get(index as usize)?;
            // Shorter ones are never shared; many of them would be copied again and again.
            if length < SHARED as u64 {
                return None;
            }
            let from = body.len().checked_sub(usize::try_from(length).ok()?)?;
            pieces.push(PieceState::Shared(body.slice(from..)));
        }
    }
    Some(())
}

fn piece_length(piece: &PieceState) -> usize {
    match piece {
        PieceState::Inline(bytes) => bytes.len(),
        PieceState::Shared(bytes) => Bytes::len(bytes),
    }
}

fn restore_restart(restart: RestartV1) -> Restart {
    let RestartV1 {
        generation,
        recoveries,
        worker_pid,
        last_cause,
        last_pause,
        last_carried,
        last_dropped,
        last_quarantined,
        is_upgrading,
        upgrade_caller,
        dropped_in_restore,
    } = restart;
    let last = LastRestart {
        cause: last_cause,
        pause: last_pause,
        carried: last_carried,
        dropped: last_dropped,
        quarantined: last_quarantined,
    };
    Restart {
        generation,
        recoveries,
        worker_pid,
        last,
        is_upgrading,
        upgrade_caller,
        dropped_in_restore,
    }
}

#[cfg(test)]
mod tests;
