//! Checkpoints as the journal takes them: only what changed since the one before is saved again, some of it ahead.

use std::collections::BTreeMap;

use bus_daemon::broker::{
    AdmissionsV1, AgendaV1, Blob, Broker, BrokerState, Checkpoint as Saved, ConfigV2, EntryKind, EntryV1,
    GlobalV2, HeldV1, InForceV1, PacingV1, Payer, PeerId, PeerRecord, PeerShareV1, SavedShortage, SharesV1,
};
use bus_daemon::handoff::stored::BacklogV1;
use bus_wire::Fd;

use crate::model::{Check, wrong};
use crate::random::Random;
use crate::sabotage::Saboteur;
use crate::store::Store;

/// What a checkpoint is taken of.
pub(crate) struct Source<'a> {
    pub(crate) broker: &'a mut Broker,
    pub(crate) store: &'a mut Store,
    pub(crate) saboteur: &'a mut Saboteur,
    pub(crate) random: &'a mut Random,
}

/// The newest checkpoint, and what is written ahead of the next one.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    bus: Option<GlobalV2>,
    config: Option<ConfigV2>,
    agenda: AgendaV1,
    admissions: AdmissionsV1,
    /// The memfd that the configuration came in.
    config_source: Option<Fd>,
    peers: BTreeMap<u32, Peer>,
    ahead: BTreeMap<u32, Option<Peer>>,
    entries: BTreeMap<Place, EntryV1>,
    entries_ahead: BTreeMap<Place, Option<EntryV1>>,
    /// For how many slots of each kind there are entries.
    slots: [u32; 3],
    shortage: SavedShortage,
    table: Option<u64>,
    pacing: PacingV1,
}

/// The entry of a peer.
#[derive(Debug)]
struct Peer {
    record: PeerRecord,
    bodies: Vec<Blob>,
    held: HeldV1,
    share: Option<PeerShareV1>,
    /// What is in the store.
    backlog: Option<BacklogV1>,
    /// Who is charged for the descriptors of its output.
    payers: Vec<(Payer, u64)>,
}

type Place = (EntryKind, u32);

impl Checkpoint {
    /// Writes some of what changed.
    pub(crate) fn write_ahead(&mut self, mut source: Source<'_>) -> Check {
        let random = &mut source.random;
        let (peers, entries) = (random.below(4) as usize, random.below(8) as usize);
        self.write(&mut source, peers, entries)
    }

    fn write(&mut self, source: &mut Source<'_>, peers: usize, entries: usize) -> Check {
        let mut changed = Vec::new();
        source.broker.take_changed_peers(peers, &mut changed);
        for index in changed {
            let peer = Peer::save(source, index)?;
            self.ahead.insert(index, peer);
        }
        let broker = &mut *source.broker;
        let mut changed = Vec::new();
        broker.take_changed_entries(entries, &mut changed);
        for (kind, slot) in changed {
            let used = &mut self.slots[kind as usize];
            *used = (*used).max(slot + 1);
            self.entries_ahead
                .insert((kind, slot), broker.save_entry(kind, slot));
        }
        Ok(())
    }

    /// All that has happened is part of it from now on.
    pub(crate) fn take(&mut self, mut source: Source<'_>) -> Check {
        self.write(&mut source, usize::MAX, usize::MAX)?;
        let Source {
            broker,
            store,
            saboteur,
            ..
        } = source;
        for (index, saved) in std::mem::take(&mut self.ahead) {
            match saved {
                Some(mut saved) => {
                    saved.backlog = saved.backlog.and_then(|backlog| saboteur.spoil_backlog(backlog));
                    self.peers.insert(index, saved)
                }
                None => self.peers.remove(&index),
            };
        }
        for (place, saved) in std::mem::take(&mut self.entries_ahead) {
            match saved {
                Some(saved) => self.entries.insert(place, saved),
                None => self.entries.remove(&place),
            };
        }
        if broker.is_config_changed() || self.config.is_none() {
            self.config = Some(broker.save_config());
            self.config_source = broker.config_source();
            broker.note_config_saved();
        }
        self.bus = Some(broker.save_bus());
        self.shortage = broker.save_shortage();
        self.table = broker.save_table();
        self.pacing = broker.save_pacing();
        self.agenda = broker.save_agenda();
        self.admissions = broker.save_admissions();
        store.committed();
        Ok(())
    }

    /// What is in the store, as the checkpoint has it.
    pub(crate) fn backlogs(&self) -> impl Iterator<Item = BacklogV1> {
        self.peers.values().filter_map(|peer| peer.backlog)
    }

    /// Who wrote ahead has died.
    pub(crate) fn forget_ahead(&mut self) {
        self.ahead.clear();
        self.entries_ahead.clear();
    }

    /// The broker as it was.
    pub(crate) fn restore(&self) -> Check<Broker> {
        let (Some(bus), Some(config)) = (self.bus.clone(), self.config.clone()) else {
            return wrong("there is no checkpoint");
        };
        let (mut peers, mut shared, mut roster, mut held) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for peer in self.peers.values() {
            let mut record = peer.record.clone();
            record.shift_bodies(shared.len() as u32);
            shared.extend(peer.bodies.iter().cloned());
            roster.push((record.id(), record.unique()));
            peers.push(record);
            held.push(peer.held);
        }
        let stored = self.backlogs();
        let (config, policy) = config.into_parts();
        let state = BrokerState {
            global: bus.complete(config, Vec::new(), roster),
            in_force: Some(InForceV1 {
                policy,
                at_console: Vec::new(),
            }),
            peers,
            shared,
            stored: stored
                .map(|backlog| (PeerId::from_u64(backlog.owner()), backlog.end()))
                .collect(),
            agenda: self.agenda.clone(),
            admissions: self.admissions.clone(),
            shares: SharesV1 {
                pacing: self.pacing.clone(),
                peers: self
                    .peers
                    .values()
                    .filter_map(|peer| peer.share.clone())
                    .collect(),
            },
        };
        let entries = self.entries.iter();
        let saved = Saved {
            state,
            held,
            entries: entries.map(|((_, slot), entry)| (*slot, entry.clone())).collect(),
            slots: self.slots,
            shortage: self.shortage.clone(),
            table: self.table,
            payers: self
                .peers
                .values()
                .map(|peer| (peer.record.id(), peer.payers.clone()))
                .collect(),
        };
        match Broker::restore_checkpoint(saved) {
            Ok((mut broker, dropped)) if dropped.is_empty() => {
                broker.set_config_source(self.config_source);
                Ok(broker)
            }
            Ok((_, dropped)) => wrong(format!("a checkpoint lost something: {dropped:?}")),
            Err(error) => wrong(format!("a checkpoint cannot be restored: {error}")),
        }
    }
}

impl Peer {
    /// As the daemon does it: first the tail goes to the store, then what is left is saved.
    fn save(source: &mut Source<'_>, index: u32) -> Check<Option<Self>> {
        let Source {
            broker,
            store,
            random,
            ..
        } = source;
        store.take_over(broker, index, random)?;
        let saved = broker.save_alone(index);
        let id = saved.as_ref().map(|(record, ..)| record.id());
        Ok(saved.map(|(record, bodies, held)| Self {
            record,
            bodies,
            held,
            share: broker.save_share_at(index),
            backlog: store.backlog_at(index),
            payers: id.map_or_else(Vec::new, |id| broker.payers_of(id)),
        }))
    }
}
