//! Restoring: peers from their records, everything else rebuilt from them. A record that makes no sense costs its peer
//! the connection, and the other peers nothing.

mod parts;

use std::sync::Arc;

use bus_wire::{Fd, Framer, FramerState, SendQueue, SendQueueState};
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;
use thiserror::Error;

use super::activation_environment::ActivationEnvironment;
use super::agenda::{Agenda, Then};
use super::connect::max_message_size;
use super::deadline::Deadline;
use super::descriptors::Payers;
use super::disconnect::Disconnect;
use super::event::{Credentials, PeerId};
use super::frozen::{
    AgendaV1, Blob, BrokerState, ConfigV2, GlobalV2, IdentityV2, InForceV1, NameEntryV1, NameTextV1, NameV1,
    PeerRecord, PeerV2, PhaseV1, RuleV1, SheddingV1, ThenV1,
};
use super::ledger::Charge;
use super::liveness::Liveness;
use super::match_rule::MatchRule;
use super::name::{NameFlags, Ordered};
use super::origins::Origins;
use super::outgoing::Outgoing;
use super::peer::{Peaks, Peer, Phase, Unique};
use super::policy::Rights;
use super::record_fault::RecordFault;
use super::reply::{DISCONNECTED, NO_REPLY};
use super::shares::Cells;
use super::{Broker, Identity, Seeded, Violation};
use crate::config::Config;
use parts::{piece_length, restore_listener, restore_piece, restore_reload, restore_restart};

/// More peers than any machine has descriptors for: an index beyond this is nonsense.
const MAX_INDEX: u32 = 1 << 22;

/// More than one read gives.
const MOST_READ: usize = 1 << 20;

/// No position in a stream and no number of a unique name gets this far; beyond, counting could overflow.
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
    /// The state says that every unique name is given out: the state is damaged.
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
            in_force,
            peers,
            shared,
            stored,
            agenda,
            shares,
            admissions,
        } = state;
        let (mut broker, dropped) =
            Self::restore_from(global, in_force, with_stored(peers, stored), &shared, agenda)?;
        broker.resume_shares(shares);
        broker.resume_admissions(admissions);
        Ok((broker, dropped))
    }

    /// [`restore`](Self::restore), with peers' records that come one after the other, so that only one is in memory at a
    /// time, each with the absolute offset up to which the peer's output is kept elsewhere, if any is.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_from(
        global: GlobalV2,
        in_force: Option<InForceV1>,
        peers: impl IntoIterator<Item = (PeerRecord, Option<u64>)>,
        shared: &[Blob],
        agenda: AgendaV1,
    ) -> Result<(Self, Vec<Dropped>), RestoreError> {
        Self::restore_placed(global, in_force, peers, shared, agenda, &[])
    }

    /// The texts of its rules lie in a state that was [lent](super::lending): it is to be [settled](Self::settle_rules).
    pub fn note_lent(&mut self) {
        self.subscriptions.note_lent();
    }

    /// Whether all rules have memory of their own.
    pub fn is_settled(&self) -> bool {
        self.subscriptions.is_settled()
    }

    /// Gives the texts of so many rules memory of their own. True: all have it, and nothing refers to the state any more.
    pub fn settle_rules(&mut self, most: usize) -> bool {
        self.subscriptions.settle(most)
    }

    /// The same with names whose places in the lists of their owners are known, instead of the lists in the records.
    pub(super) fn restore_placed(
        global: GlobalV2,
        in_force: Option<InForceV1>,
        peers: impl IntoIterator<Item = (PeerRecord, Option<u64>)>,
        shared: &[Blob],
        agenda: AgendaV1,
        places: &[(u32, NameEntryV1)],
    ) -> Result<(Self, Vec<Dropped>), RestoreError> {
        let GlobalV2 {
            identity,
            config,
            now,
            next_unique,
            driver_serial,
            roster,
            names,
            restart,
            reload,
            next_errand,
            activation_environment,
            peak_rules,
            peak_names,
            is_accepting_stopped,
        } = global;
        let IdentityV2 {
            guid,
            listeners,
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        } = identity;
        let identity = Identity {
            guid,
            listeners: listeners.into_iter().map(restore_listener).collect(),
            machine_id,
            keeper_pid,
            own_uid,
            hash_seed,
        };
        let (policy, at_console) = match in_force {
            Some(InForceV1 { policy, at_console }) => (Some(policy), at_console),
            None => (None, Vec::new()),
        };
        let config = match policy {
            Some(policy) => Config::from(ConfigV2 { config, policy }),
            None => Config::from(config),
        };
        let mut broker = Self::new(identity, Arc::new(config), now);
        if next_unique > MAX_COUNT {
            return Err(RestoreError::NoUniqueNameLeft);
        }
        broker
            .roster
            .resume(next_unique, is_accepting_stopped, roster.len());
        broker.outgoing = Outgoing::new(driver_serial);
        broker.restart = restore_restart(restart);
        broker.reload = restore_reload(reload);
        let due = broker.reload.due();
        broker.deadlines.change(Deadline::Reload, None, due);
        broker.next_errand = next_errand.max(1);
        broker.activation_environment = ActivationEnvironment::restore(activation_environment);

        let mut dropped = Vec::new();
        let mut kept = Vec::with_capacity(roster.len());
        let mut owned = HashSet::with_hasher(Seeded::default());
        for (record, stored) in peers {
            let id = record.id;
            let fds = fds_of(&record);
            match broker.restore_peer(record, shared, stored, &mut owned) {
                Ok(lists) => kept.push((id, lists)),
                Err(fault) => dropped.push(Dropped {
                    peer: id,
                    reason: fault.to_string(),
                    fds,
                }),
            }
        }
        let mut known: HashSet<PeerId, Seeded> = dropped.iter().map(|one| one.peer).collect();
        for (id, _) in &roster {
            if broker.roster.get(*id).is_none() && known.insert(*id) {
                let reason = RecordFault::Missing.to_string();
                dropped.push(Dropped {
                    peer: *id,
                    reason,
                    fds: Vec::new(),
                });
            }
        }
        broker.resume_shedding(agenda);
        let gone = Gone::new(&roster, &broker);
        let changed = broker.restore_names(names, places, &kept, &gone);
        broker.restore_at_console(&at_console);
        broker.apply_policy_to_all();
        broker.restore_calls(&kept);
        broker.subscriptions.raise_peak(peak_rules);
        broker.names.raise_peak(peak_names);
        broker.names.note_peak(broker.roster.unique_count());
        broker.restart.dropped_in_restore = broker
            .restart
            .dropped_in_restore
            .saturating_add(dropped.len() as u32);
        // Whoever takes over asks who is to be read from.
        broker
            .roster
            .regulate_newcomers(broker.config.limits.max_incomplete_connections);
        broker.regulate_accepting();
        broker.announce_gone(&gone, changed);
        broker.bury_condemned();
        broker.resume_agendas();
        broker.recount_crowd();
        broker.check_invariants()?;
        Ok((broker, dropped))
    }

    /// Puts one peer into the roster, and its rules, deadlines and output into the other parts.
    fn restore_peer(
        &mut self,
        record: PeerRecord,
        shared: &[Blob],
        stored: Option<u64>,
        owned: &mut HashSet<Fd, Seeded>,
    ) -> Result<Kept, RecordFault> {
        let fds = fds_of(&record);
        #[cfg(feature = "next-version")]
        let PeerRecord { peer: record, note } = record;
        let PeerV2 {
            id,
            listener,
            uid,
            gid,
            pid,
            socket,
            groups,
            label,
            taken,
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
            PhaseV1::Authenticating(sasl) => Phase::Authenticating(Box::new(sasl.into())),
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
        if unique.is_some_and(|number| !self.roster.is_unclaimed(number)) {
            return Err(RecordFault::UniqueTaken);
        }
        if id.index > MAX_INDEX {
            return Err(RecordFault::Index);
        }
        let longest = max_message_size(&self.config);
        let input_length = input.0.len();
        let framer = FramerState {
            partial: input.0,
            fds: input_fds,
        };
        let framer = Framer::restore(framer, longest);
        // Whole messages may wait for a step, as many as one read gives.
        let is_waiting = framer.has_whole() && input_length <= longest.saturating_add(MOST_READ);
        if input_length > longest && !is_waiting {
            return Err(RecordFault::Input);
        }
        let rules = rules
            .into_iter()
            .map(RuleV1::into_rule)
            .collect::<Result<Vec<_>, _>>()?;
        let mut pieces = Vec::with_capacity(output.len());
        for piece in output {
            restore_piece(piece, shared, &mut pieces).ok_or(RecordFault::OutputMissing)?;
        }
        let length: u64 = pieces.iter().map(|piece| piece_length(piece) as u64).sum();
        let stored = stored.unwrap_or(sent).max(sent);
        let end = stored.saturating_add(length);
        if end > MAX_COUNT {
            return Err(RecordFault::OutputEndless);
        }
        if output_fds.iter().any(|(at, _)| *at < sent || *at >= end) {
            return Err(RecordFault::FdsMisplaced);
        }
        if !takes_fds && fds.len() > usize::from(socket.is_some()) {
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
        let peer = Peer {
            id,
            listener,
            socket,
            taken,
            credentials: Credentials { uid, gid, pid },
            groups,
            label,
            takes_fds,
            phase,
            rights: Rights::default(),
            unique,
            framer,
            out: SendQueue::restore(SendQueueState {
                sent,
                stored,
                pieces,
                fds: output_fds,
            }),
            agenda: Agenda::Idle,
            is_condemned: false,
            is_congested,
            is_dirty: false,
            is_stopped,
            is_waiting: false,
            hello_deadline: None,
            fds_deadline: None,
            peaks: Peaks {
                names: peak_names,
                rules: peak_rules,
                outgoing_bytes: peak_outgoing_bytes,
                outgoing_fds: peak_outgoing_fds,
            },
            #[cfg(feature = "next-version")]
            note,
            charge: Charge::default(),
            pending_fds: 0,
            payers: Payers::default(),
            origins: Origins::default(),
            cells: Cells::default(),
            credit: 0,
            reading: Liveness::default(),
        };
        if !self.roster.enter(peer) {
            return Err(RecordFault::IndexTaken);
        }
        owned.extend(fds);
        if let Some(peer) = self.roster.get_mut(id) {
            if end > sent {
                self.outgoing.mark_dirty(peer);
            }
            self.ledger.settle(peer);
            self.descriptors.take_up(peer);
            self.deadlines.expect_hello(peer, hello_deadline);
            self.deadlines.expect_fds(peer, fds_deadline);
        }
        if is_monitor || is_active {
            self.subscriptions.reserve(id, rules.len(), is_monitor);
        }
        for rule in rules {
            if is_monitor {
                self.subscriptions.add_filter(id, uid, rule);
            } else if is_active {
                self.subscriptions.add(id, uid, rule);
            }
        }
        Ok(Kept { names, owed, awaited })
    }

    /// Peers go on giving up what they have.
    fn resume_shedding(&mut self, agenda: AgendaV1) {
        for SheddingV1 {
            peer: id,
            is_retired,
            then,
        } in agenda.shedding
        {
            let then = match then {
                ThenV1::Gone { reason, is_fault } => Then::Gone(Disconnect::Saved {
                    text: reason,
                    is_fault,
                }),
                ThenV1::Monitor { filters } => {
                    let filters = filters.iter();
                    Then::Monitor(
                        filters
                            .filter_map(|text| MatchRule::parse_any_length(text).ok())
                            .collect(),
                    )
                }
            };
            self.resume_shedding_of(id, is_retired, then);
        }
    }

    /// Fills the name table with the peers that are still there. Returns each name that lost its primary owner, and that
    /// owner.
    fn restore_names(
        &mut self,
        names: Vec<NameV1>,
        places: &[(u32, NameEntryV1)],
        kept: &[(PeerId, Kept)],
        gone: &Gone,
    ) -> Vec<(Arc<str>, PeerId)> {
        let mut changed = Vec::new();
        self.names.reserve(names.len());
        let mut all = Vec::with_capacity(names.len());
        // Those of a checkpoint come in the order of the names.
        let mut places = places.iter();
        for NameV1 { name, owners } in names {
            let places = places
                .next()
                .filter(|(_, entry)| entry.name == name)
                .map_or(&[][..], |(_, entry)| &entry.owners);
            let places = places.iter().map(|(_, _, place)| Some(*place));
            if bus_wire::WellKnownName::new(&name).is_err() {
                continue;
            }
            let name = name.into_shared();
            let mut seen: SmallVec<[PeerId; 2]> = SmallVec::new();
            let mut is_new = |peer: PeerId| {
                let place = seen.binary_search(&peer);
                place.map_err(|place| seen.insert(place, peer)).is_err()
            };
            let before = owners.first().map(|(peer, _)| *peer);
            let owners: SmallVec<[(PeerId, NameFlags, Option<u64>); 2]> = owners
                .into_iter()
                .zip(places.chain(std::iter::repeat(None)))
                .filter(|((peer, _), _)| self.roster.get(*peer).is_some_and(Peer::is_active) && is_new(*peer))
                .map(|((peer, flags), place)| (peer, NameFlags::from_bits(flags), place))
                .collect();
            let primary = owners.first().map(|(peer, ..)| *peer);
            if self.names.restore_queue(&name, owners) {
                all.push(Ordered::new(&name));
            }
            if let Some(before) = before
                && primary != Some(before)
                && gone.unique.contains_key(&before)
            {
                changed.push((name, before));
            }
        }
        for (id, lists) in kept {
            self.names.restore_order(*id, &lists.names);
        }
        self.names.restore_rest(all);
        changed.sort_unstable();
        changed
    }

    /// A call is open if both ends say so. A caller that waits for a call which its callee does not know is told that there is no answer.
    fn restore_calls(&mut self, kept: &[(PeerId, Kept)]) {
        let awaited: HashSet<(PeerId, PeerId, u32), Seeded> = kept
            .iter()
            .flat_map(|(caller, lists)| {
                lists
                    .awaited
                    .iter()
                    .map(|(callee, serial)| (*callee, *caller, *serial))
            })
            .collect();
        for (callee, lists) in kept {
            for (caller, serial, deadline) in &lists.owed {
                if !awaited.contains(&(*callee, *caller, *serial)) {
                    continue;
                }
                self.calls
                    .open(*callee, *caller, *serial, *deadline, &mut self.deadlines);
            }
        }
        for (caller, lists) in kept {
            for (callee, serial) in &lists.awaited {
                if !self.calls.is_open(*callee, *caller, *serial) {
                    self.send_late_error(*caller, *serial, NO_REPLY, DISCONNECTED);
                }
            }
        }
    }

    /// Announces the names of peers that are not there any more.
    fn announce_gone(&mut self, gone: &Gone, changed: Vec<(Arc<str>, PeerId)>) {
        for (name, before) in changed {
            let Some(old) = gone.unique.get(&before) else {
                continue;
            };
            let owner = self.names.owner(&name);
            let new = owner
                .and_then(|id| self.roster.get(id))
                .map(|peer| peer.unique_name().to_owned());
            self.broadcast_driver_signal("NameOwnerChanged", None, |w| {
                w.str(&name);
                w.str(&old.name);
                w.str(new.as_deref().unwrap_or_default());
            });
            if let Some(owner) = owner {
                self.send_signal_to(owner, "NameAcquired", None, |w| {
                    w.str(&name);
                });
            }
        }
        for unique in &gone.in_order {
            self.broadcast_driver_signal("NameOwnerChanged", None, |w| {
                w.str(&unique.name);
                w.str(&unique.name);
                w.str("");
            });
        }
    }
}

/// The records, each with the absolute offset up to which the peer's output is kept elsewhere.
pub(super) fn with_stored(
    peers: Vec<PeerRecord>,
    stored: Vec<(PeerId, u64)>,
) -> impl Iterator<Item = (PeerRecord, Option<u64>)> {
    let stored: HashMap<PeerId, u64, Seeded> = stored.into_iter().collect();
    peers.into_iter().map(move |peer| {
        let stored = stored.get(&peer.id).copied();
        (peer, stored)
    })
}

/// The lists of one record that only make sense together with the other records.
struct Kept {
    names: Vec<NameTextV1>,
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
                && broker.roster.get(*id).is_none()
            {
                let unique = Unique::new(*number);
                gone.in_order.push(unique.clone());
                gone.unique.insert(*id, unique);
            }
        }
        gone
    }
}

fn fds_of(record: &PeerV2) -> Vec<Fd> {
    let output = record.output_fds.iter().flat_map(|(_, fds)| fds);
    let received = record.input_fds.iter().chain(output);
    received.chain(&record.socket).copied().collect()
}

#[cfg(test)]
mod tests;
