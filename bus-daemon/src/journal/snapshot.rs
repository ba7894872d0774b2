//! The broker as entries of a checkpoint.
//!
//! Bodies of large messages are not copied: an entry names the part of the extent that they lie in.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bus_wire::Fd;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Saved, Table};
use super::extent::ExtentRange;
use super::log::Position;
use super::{BacklogV1, Journal, KEPT};
use crate::broker::{
    AdmissionsV1, AgendaV1, Blob, Broker, BrokerState, Checkpoint, ConfigV2, Dropped, EntryKind, EntryV1,
    ErrandOutcome, GlobalV2, HeldV1, InForceV1, PacingV1, Payer, PeerId, PeerRecord, PeerShareV1, Room,
    SavedShortage, SharesV1, lending,
};
use crate::handoff::codec;

const BUS: usize = 0;
const WORKER: usize = 2;
const CONFIG: usize = 3;
const FOREIGN: usize = 4;
const AGENDA: usize = 5;
const ADMISSIONS: usize = 6;
/// The entry of the peer with index 0.
const PEERS: usize = 16;
/// Where more peers than this have changed, some are written ahead of the checkpoint. Each takes about a microsecond.
const MANY: usize = if cfg!(test) { 128 } else { 4096 };
/// Peers written ahead of a checkpoint in one go.
const AHEAD: usize = MANY / 4;
/// Peers that are taken at a time, until there are so many, or so many bytes of their entries, which takes two to three
/// milliseconds: what a peer has sent of a message or a line that is not whole stands in its entry, and the list of its groups.
const BATCH: usize = 4;
const AHEAD_BYTES: usize = 1 << 20;
/// The same for names, match rules and open calls. A rule of 1 kB takes about two microseconds.
const AHEAD_ENTRIES: usize = 512;

/// Bytes in an entry, or where they are.
#[derive(Debug, Serialize, Deserialize)]
enum Bytes1 {
    Here(Blob),
    InExtent(ExtentRange),
}

/// Where the configuration is.
#[derive(Debug, Serialize, Deserialize)]
enum ConfigEntry {
    Here(Box<ConfigV2>),
    /// The outcome of the errand that read it.
    InMemfd(Fd),
}

/// Messages for receivers that do not read after which a checkpoint is wanted: to take them over takes one or two
/// milliseconds.
const QUEUED: u64 = 16_384;

/// One peer.
#[derive(Debug, Serialize, Deserialize)]
struct PeerEntry {
    /// Without what has entries of its own.
    record: PeerRecord,
    held: HeldV1,
    share: Option<PeerShareV1>,
    /// The record's partial input, where that is in an extent.
    input: Option<ExtentRange>,
    bodies: Vec<Bytes1>,
    /// Output of which the record has nothing.
    backlog: Option<BacklogV1>,
    /// Who is charged for the descriptors of its output.
    payers: Vec<(Payer, u64)>,
    at_console: bool,
}

/// What a checkpoint gives back.
pub(crate) struct Loaded {
    /// To be restored. The roster names peers whose entries are damaged, too.
    pub(crate) checkpoint: Checkpoint,
    /// The memfd that the configuration lies in.
    pub(crate) config_source: Option<Fd>,
    /// The generation of the newest link.
    pub(crate) generation: u32,
    /// Where the events begin that are not part of it.
    pub(crate) position: Position,
    /// Peers, be their entries damaged or not, and the indexes of these.
    pub(crate) indexes: Vec<(PeerId, u32)>,
}

/// A peer's entry, put together; the last are who is charged for the descriptors of its output, and whether its user sat at the
/// machine.
type LoadedPeer = (
    PeerRecord,
    HeldV1,
    Option<BacklogV1>,
    Option<PeerShareV1>,
    Vec<(Payer, u64)>,
    bool,
);

impl Journal {
    /// How much state there is room for. A little is kept for entries that are free again, and not yet in a checkpoint.
    pub(crate) fn room(&self) -> Room {
        let most = |table| {
            let all = self.checkpoints.room(table);
            all - all / 16
        };
        Room {
            names: most(Table::Names),
            rules: most(Table::Rules),
            calls: most(Table::Calls),
        }
    }

    /// Whether a checkpoint should be taken before the next event.
    pub(crate) fn wants_checkpoint(&self, broker: &Broker) -> bool {
        self.is_checkpoint_wanted
            || broker.queued_to_wait().saturating_sub(self.queued_before) >= QUEUED
            || self.log.wants_checkpoint(broker.changed_peers())
            || self.extents.wants_checkpoint()
            || self.waiting.wants_checkpoint()
    }

    /// A checkpoint is to come soon, and may be written ahead.
    pub(crate) fn want_checkpoint(&mut self) {
        self.is_checkpoint_wanted = true;
    }

    /// Whether so many entries have changed that they are written ahead.
    pub(crate) fn are_many_changed(broker: &Broker) -> bool {
        broker.changed_entries() > 2 * AHEAD_ENTRIES
    }

    /// Writes some of the many peers and entries that changed, ahead of the next checkpoint: so none takes long. True if it
    /// did.
    ///
    /// They are left until a checkpoint is wanted: many entries are gone by then, and most peers have changed again. After an upgrade with many they are
    /// written from the beginning, since each death costs as much as the upgrade until they are. Where more change all the
    /// time than are written, that leads nowhere, and the checkpoint is not put off for ever.
    pub(crate) fn write_ahead(&mut self, broker: &mut Broker) -> bool {
        let is_overdue = self.log.is_checkpoint_overdue() || self.extents.is_checkpoint_overdue();
        let are_many_peers = broker.changed_peers() > MANY;
        let are_many_entries = Self::are_many_changed(broker);
        let are_many_bytes = broker.rewritten_bytes() > AHEAD_BYTES as u64;
        let is_first = self.header.committed.load(Ordering::Acquire) == 0;
        self.is_checkpoint_wanted |= is_first && are_many_entries;
        let are_many = are_many_peers || are_many_entries || are_many_bytes;
        if is_overdue || !are_many || !self.wants_checkpoint(broker) {
            return false;
        }
        if are_many_entries {
            broker.take_changed_entries(AHEAD_ENTRIES, &mut self.changed_entries);
        }
        self.begin_checkpoint();
        let result = if are_many_peers || are_many_bytes {
            self.put_some(broker)
        } else {
            self.put_changed(broker).map(|_| ())
        };
        // Where only the bytes might have been too many, and were not, the checkpoint need not wait for the next turn.
        let is_more = are_many_peers || are_many_entries || broker.changed_peers() > 0;
        result
            .inspect_err(|error| tracing::error!("checkpoint: {error}"))
            .is_ok()
            && is_more
    }

    /// Writes the entries that are to be written, and of the peers that have changed those that have waited longest, a bounded
    /// number and a bounded number of bytes.
    fn put_some(&mut self, broker: &mut Broker) -> Result<(), String> {
        let (mut peers, mut bytes) = (0, 0);
        loop {
            broker.take_changed_peers(BATCH, &mut self.changed);
            peers += self.changed.len();
            bytes += self.put_changed(broker)?;
            if broker.changed_peers() == 0 || peers >= AHEAD || bytes >= AHEAD_BYTES {
                return Ok(());
            }
        }
    }

    /// Takes a checkpoint: all that has happened is part of it.
    pub(crate) fn checkpoint(&mut self, broker: &mut Broker, generation: u32) -> Result<(), String> {
        self.begin_checkpoint();
        broker.take_changed_peers(usize::MAX, &mut self.changed);
        broker.take_changed_entries(usize::MAX, &mut self.changed_entries);
        self.put_changed(broker)?;
        if broker.is_config_changed() {
            let entry = match broker.config_source() {
                Some(handle) => ConfigEntry::InMemfd(handle),
                None => ConfigEntry::Here(Box::new(broker.save_config())),
            };
            self.put(CONFIG, &entry)?;
            broker.note_config_saved();
        }
        if self.is_foreign_new {
            let foreign = std::mem::take(&mut self.foreign);
            let put = self.put(FOREIGN, &foreign);
            self.foreign = foreign;
            put?;
            self.is_foreign_new = false;
        }
        self.put(BUS, &broker.save_bus())?;
        let agenda = broker.save_agenda();
        if self.has_agenda || !agenda.is_empty() {
            self.put(AGENDA, &agenda)?;
            self.has_agenda = !agenda.is_empty();
        }
        let admissions = broker.save_admissions();
        if self.has_admissions || admissions != AdmissionsV1::default() {
            self.put(ADMISSIONS, &admissions)?;
            self.has_admissions = admissions != AdmissionsV1::default();
        }
        let worker = (
            generation,
            self.heard,
            broker.save_shortage(),
            broker.save_table(),
            broker.save_pacing(),
        );
        self.put(WORKER, &worker)?;
        self.waiting
            .flush()
            .map_err(|error| format!("the store: {error}"))?;
        if broker.is_settled() {
            self.checkpoints.end_lending();
        }
        self.checkpoints.commit(self.header, self.log.end());
        if !self.is_reading {
            self.extents.checkpointed(&mut self.waiting);
        }
        self.waiting.committed(&self.extents);
        self.is_checkpoint_begun = false;
        self.is_checkpoint_wanted = false;
        self.queued_before = broker.queued_to_wait();
        self.log.checkpointed();
        Ok(())
    }

    /// Writes the peers and entries that changed; how many bytes the peers took. One that cannot be written, and those after
    /// it, are still to be.
    fn put_changed(&mut self, broker: &mut Broker) -> Result<usize, String> {
        let mut bytes = 0;
        while let Some(index) = self.changed.pop() {
            let put = self.put_peer(broker, index);
            bytes += put.inspect_err(|_| self.changed.push(index))?;
        }
        while let Some((kind, slot)) = self.changed_entries.pop() {
            self.put_entry(broker, kind, slot)
                .inspect_err(|_| self.changed_entries.push((kind, slot)))?;
        }
        Ok(bytes)
    }

    fn begin_checkpoint(&mut self) {
        if !self.is_checkpoint_begun {
            self.checkpoints.begin();
            self.waiting.begin_checkpoint();
            self.is_checkpoint_begun = true;
        }
    }

    fn put(&mut self, index: usize, value: &impl Serialize) -> Result<(), String> {
        let body = codec::encode(value).map_err(|error| error.to_string())?;
        self.checkpoints.put(Table::Peers, index, [0; 2], &body)
    }

    fn put_entry(&mut self, broker: &Broker, kind: EntryKind, slot: u32) -> Result<(), String> {
        let body = match broker.save_entry(kind, slot) {
            Some(entry) => codec::encode(&entry).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        self.checkpoints.put(table_of(kind), slot as usize, [0; 2], &body)
    }

    /// Writes a peer; how many bytes that took.
    fn put_peer(&mut self, broker: &mut Broker, index: u32) -> Result<usize, String> {
        self.waiting.take_over(broker, &self.extents, index);
        let entry = PEERS + index as usize;
        let Some((mut record, bodies, held)) = broker.save_alone(index) else {
            return self.checkpoints.put(Table::Peers, entry, [0; 2], &[]).map(|()| 0);
        };
        let input = self.extents.locate(record.input());
        if input.is_some() {
            record.set_input(Bytes::new());
        }
        let bodies = bodies.into_iter().map(|body| match self.extents.locate(&body.0) {
            Some(range) => Bytes1::InExtent(range),
            None => Bytes1::Here(body),
        });
        let owner = [
            record.id().to_u64(),
            record.unique().map_or(0, |number| number + 1),
        ];
        let value = PeerEntry {
            input,
            bodies: bodies.collect(),
            backlog: self.waiting.at(index).filter(|backlog| !backlog.is_empty()),
            payers: broker.payers_of(record.id()),
            share: broker.save_share_at(index),
            at_console: broker.is_at_console(record.id()),
            record,
            held,
        };
        let mut body = std::mem::take(&mut self.encoded);
        let encoded = codec::encode_into(&value, &mut body).map_err(|error| error.to_string());
        let put = encoded.and_then(|()| self.checkpoints.put(Table::Peers, entry, owner, &body));
        let put = put.map(|()| body.len());
        body.clear();
        body.shrink_to(KEPT);
        self.encoded = body;
        put
    }

    /// Reads the newest checkpoint. `None`: there is none yet. `Err`: it cannot be gone on from.
    pub(crate) fn load(&mut self) -> Result<Option<Loaded>, String> {
        if self.header.committed.load(Ordering::Acquire) == 0 {
            return Ok(None);
        }
        let commit = self
            .header
            .newest_checkpoint()
            .ok_or("the checkpoint's description is damaged")?;
        let entries = self.checkpoints.read(&commit, decode_entry);
        let whole = |index: usize| {
            let mut of_bus = entries.iter().take_while(|saved| saved.table == Table::Peers);
            let entry = of_bus.find(|saved| saved.index == index);
            entry
                .and_then(|saved| saved.body)
                .ok_or_else(|| format!("entry {index} of the checkpoint is damaged"))
        };
        let decoded = |error: codec::CodecError| format!("the checkpoint: {error}");
        let bus: GlobalV2 = codec::decode(whole(BUS)?).map_err(decoded)?;
        let (config, config_source) = match codec::decode(whole(CONFIG)?).map_err(decoded)? {
            ConfigEntry::Here(config) => (*config, None),
            ConfigEntry::InMemfd(handle) => (self.read_config(handle)?, Some(handle)),
        };
        let (config, policy) = config.into_parts();
        let has_entry = |index: usize| {
            let mut of_bus = entries.iter().take_while(|saved| saved.table == Table::Peers);
            of_bus.any(|saved| saved.index == index)
        };
        let agenda = if has_entry(AGENDA) {
            codec::decode(whole(AGENDA)?).map_err(decoded)?
        } else {
            AgendaV1::default()
        };
        self.has_agenda = true;
        let admissions = if has_entry(ADMISSIONS) {
            codec::decode(whole(ADMISSIONS)?).map_err(decoded)?
        } else {
            AdmissionsV1::default()
        };
        self.has_admissions = true;
        let worker: (u32, u64, SavedShortage, Option<u64>, PacingV1) =
            codec::decode(whole(WORKER)?).map_err(decoded)?;
        let (generation, heard, shortage, table, pacing) = worker;
        self.has_heard(heard);
        if has_entry(FOREIGN) {
            self.foreign = codec::decode(whole(FOREIGN)?).map_err(decoded)?;
        }
        let (mut peers, mut held, mut shared, mut roster) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut rest = Vec::new();
        let mut indexes = Vec::new();
        let mut backlogs: Vec<BacklogV1> = Vec::new();
        let mut payers = Vec::new();
        let mut at_console = Vec::new();
        let mut shares = Vec::new();
        rest.reserve(entries.iter().filter(|saved| saved.table != Table::Peers).count());
        for saved in entries {
            if saved.table != Table::Peers {
                rest.extend(load_entry(saved));
                continue;
            }
            if saved.index < PEERS {
                continue;
            }
            let owner = PeerId::from_u64(saved.owner[0]);
            roster.push((owner, saved.owner[1].checked_sub(1)));
            indexes.push((owner, (saved.index - PEERS) as u32));
            match self.load_peer(&saved, &mut shared) {
                Ok((record, parts, backlog, share, paying, is_at_console)) => {
                    at_console.extend(is_at_console.then_some(owner));
                    if !paying.is_empty() {
                        payers.push((owner, paying));
                    }
                    peers.push(record);
                    held.push(parts);
                    backlogs.extend(backlog);
                    shares.extend(share);
                }
                // The roster tells that it is missing.
                Err(reason) => tracing::error!("peer {}: {reason}", owner.index),
            }
        }
        self.waiting.restore(backlogs.iter().copied());
        let ends = backlogs
            .iter()
            .map(|backlog| (PeerId::from_u64(backlog.owner), backlog.end));
        Ok(Some(Loaded {
            checkpoint: Checkpoint {
                state: BrokerState {
                    global: bus.complete(config, Vec::new(), roster),
                    in_force: Some(InForceV1 { policy, at_console }),
                    peers,
                    shared,
                    stored: ends.collect(),
                    agenda,
                    shares: SharesV1 {
                        pacing,
                        peers: shares,
                    },
                    admissions,
                },
                held,
                entries: rest,
                shortage,
                table,
                payers,
                slots: [EntryKind::Name, EntryKind::Rule, EntryKind::Call]
                    .map(|kind| self.checkpoints.used(table_of(kind)) as u32),
            },
            config_source,
            generation,
            position: commit.position(),
            indexes,
        }))
    }

    /// The next checkpoint takes the entries of these peers away: they could not be restored, and the recovery after this
    /// one is not to meet them again.
    pub(crate) fn forget_dropped(&mut self, indexes: &[(PeerId, u32)], dropped: &[Dropped]) {
        let dropped: BTreeSet<u64> = dropped.iter().map(|one| one.peer.to_u64()).collect();
        let of_dropped = indexes
            .iter()
            .filter(|(peer, _)| dropped.contains(&peer.to_u64()));
        self.changed.extend(of_dropped.map(|(_, index)| *index));
    }

    fn load_peer(
        &mut self,
        saved: &Saved<'_, EntryV1>,
        shared: &mut Vec<Blob>,
    ) -> Result<LoadedPeer, String> {
        let body = saved.body.ok_or("its entry in the checkpoint is damaged")?;
        let PeerEntry {
            mut record,
            held,
            share,
            input,
            bodies,
            backlog,
            payers,
            at_console,
        } = codec::decode(body).map_err(|error| format!("its entry in the checkpoint: {error}"))?;
        let is_other = |owner: u64| owner != saved.owner[0];
        if is_other(record.id().to_u64()) || backlog.is_some_and(|backlog| is_other(backlog.owner)) {
            return Err("its entry in the checkpoint is another's".into());
        }
        if let Some(range) = input {
            record.set_input(self.adopt(range)?);
        }
        record.shift_bodies(shared.len() as u32);
        for body in bodies {
            shared.push(match body {
                Bytes1::Here(body) => body,
                Bytes1::InExtent(range) => Blob(self.adopt(range)?),
            });
        }
        Ok((record, held, backlog, share, payers, at_console))
    }

    /// The configuration in the memfd of this handle.
    fn read_config(&self, handle: Fd) -> Result<ConfigV2, String> {
        match self.read_outcome(Some(handle)) {
            ErrandOutcome::Configuration(Ok(config)) => Ok(ConfigV2::from(&*config)),
            ErrandOutcome::Configuration(Err(refusal)) => Err(refusal.text),
            ErrandOutcome::Trial(_) | ErrandOutcome::Keyring(_) => {
                Err("the memfd of the configuration holds none".into())
            }
        }
    }

    fn adopt(&mut self, range: ExtentRange) -> Result<Bytes, String> {
        self.extents
            .adopt(&mut self.waiting, range)
            .ok_or_else(|| "it refers to an extent that is not there".to_owned())
    }
}

/// What an entry of this table holds, which is not that of a peer or of the bus.
fn decode_entry(table: Table, body: &'static [u8]) -> Option<EntryV1> {
    let is_expected = |entry: &EntryV1| table_of(entry.kind()) == table;
    let decoded = match table {
        Table::Peers => return None,
        Table::Rules | Table::Names => lending(Bytes::from_static(body), || codec::decode(body)),
        Table::Calls => codec::decode(body),
    };
    decoded.ok().filter(is_expected)
}

/// An entry and its slot. Peers that one which cannot be read belongs to miss it.
fn load_entry(saved: Saved<'_, EntryV1>) -> Option<(u32, EntryV1)> {
    match saved.value {
        Some(entry) => Some((saved.index as u32, entry)),
        None => {
            tracing::error!("entry {} of {:?} is damaged", saved.index, saved.table);
            None
        }
    }
}

fn table_of(kind: EntryKind) -> Table {
    match kind {
        EntryKind::Name => Table::Names,
        EntryKind::Rule => Table::Rules,
        EntryKind::Call => Table::Calls,
    }
}
