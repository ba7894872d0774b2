//! Restoring from a checkpoint: what has entries of its own is put back into the records that it belongs to.

use hashbrown::HashMap;

use super::changes::EntryKind;
use super::entries::Slot;
use super::event::PeerId;
use super::frozen::{
    BrokerState, CallEntryV1, EntryV1, HeldV1, Lists, NameEntryV1, NameV1, PeerRecord, RuleEntryV1,
};
use super::record_fault::RecordFault;
use super::restore::with_stored;
use super::{Broker, Dropped, Payer, RestoreError, SavedShortage, Seeded};

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// The peers' lists of names, rules and calls are empty, and so is the list of all names.
    pub state: BrokerState,
    /// How many entries each peer has a part in, in the order of the records.
    pub held: Vec<HeldV1>,
    /// All entries that could be read, with their slots: no kind has a slot twice.
    pub entries: Vec<(u32, EntryV1)>,
    /// For how many slots of each [`EntryKind`] there are entries, be they empty or damaged.
    pub slots: [u32; 3],
    /// Who was held back for want of memory.
    pub shortage: SavedShortage,
    /// What of the table of descriptors all peers together may have.
    pub table: Option<u64>,
    /// Who is charged for the descriptors that wait for each peer.
    pub payers: Vec<(PeerId, Vec<(Payer, u64)>)>,
}

/// The entries, sorted out.
#[derive(Default)]
struct Gathered {
    names: Vec<(Slot, NameEntryV1)>,
    rules: Vec<(Slot, RuleEntryV1)>,
    calls: Vec<(Slot, CallEntryV1)>,
}

impl Broker {
    /// Continues where a checkpoint was taken. A peer for which entries are missing is left out, as one whose record makes no
    /// sense: see [`restore`](Self::restore).
    ///
    /// The next checkpoint has to write only entries that have changed, if nobody was left out; otherwise all of them.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_checkpoint(checkpoint: Checkpoint) -> Result<(Self, Vec<Dropped>), RestoreError> {
        let Checkpoint {
            state:
                BrokerState {
                    mut global,
                    in_force,
                    peers,
                    shared,
                    stored,
                    agenda,
                    shares,
                    admissions,
                },
            held,
            entries,
            slots,
            shortage,
            table,
            payers,
        } = checkpoint;
        let mut gathered = Gathered::sorted(entries);
        global.names = gathered.names();
        let (peers, incomplete) = gathered.fill(peers, &held);
        let peers = with_stored(peers, stored);
        let (mut broker, mut dropped) =
            Self::restore_placed(global, in_force, peers, &shared, agenda, &gathered.names)?;
        // The entries' texts lie in the checkpoint.
        broker.note_lent();
        broker.restore_shortage(shortage);
        broker.restore_payers(table, payers);
        broker.resume_shares(shares);
        broker.resume_admissions(admissions);
        for one in &mut dropped {
            if incomplete.contains(&one.peer) {
                one.reason = RecordFault::Entries.to_string();
            }
        }
        if dropped.is_empty() {
            broker.resume_entries(gathered.slots(), slots)?;
        } else {
            broker
                .names
                .entries_mut()
                .supersede(slots[EntryKind::Name as usize]);
            broker
                .subscriptions
                .entries_mut()
                .supersede(slots[EntryKind::Rule as usize]);
            broker
                .calls
                .entries_mut()
                .supersede(slots[EntryKind::Call as usize]);
        }
        Ok((broker, dropped))
    }

    /// Descriptors are charged as they were. Where nothing is said of a peer's, nobody in particular is.
    pub fn restore_payers(&mut self, table: Option<u64>, payers: Vec<(PeerId, Vec<(Payer, u64)>)>) {
        self.descriptors.set_table(table);
        for (id, runs) in payers {
            if let Some(peer) = self.roster.get_mut(id) {
                self.descriptors.set_payers(peer, runs);
            }
        }
        self.regulate_accepting();
    }

    /// What of the table of descriptors all peers together may have, for a checkpoint.
    pub fn save_table(&self) -> Option<u64> {
        self.descriptors.table()
    }

    /// Who is charged for the descriptors that wait for a peer, for a checkpoint.
    pub fn payers_of(&self, id: PeerId) -> Vec<(Payer, u64)> {
        let peer = self.roster.get(id);
        peer.map_or_else(Vec::new, |peer| peer.payers.runs().collect())
    }

    /// Everything is in the checkpoint as it is, in these slots.
    fn resume_entries(&mut self, saved: SavedIn<'_>, slots: [u32; 3]) -> Result<(), RestoreError> {
        let [names, rules, calls] = slots;
        self.names.resume(names, saved.names)?;
        self.subscriptions.resume(rules, &saved.rules)?;
        self.calls.resume(calls, &saved.calls)?;
        Ok(())
    }
}

/// Where everything is in the checkpoint.
struct SavedIn<'a> {
    names: Vec<(Slot, &'a str)>,
    rules: Vec<(PeerId, u64, Slot)>,
    calls: Vec<(Slot, (PeerId, PeerId, u32))>,
}

impl Gathered {
    /// Names by slot, rules by peer and order, calls by their ends.
    fn sorted(entries: Vec<(u32, EntryV1)>) -> Self {
        let mut all = Self::default();
        for (slot, entry) in entries {
            match entry {
                EntryV1::Name(name) => all.names.push((slot, name)),
                EntryV1::Rule(rule) => all.rules.push((slot, rule)),
                EntryV1::Call(call) => all.calls.push((slot, call)),
            }
        }
        all.names.sort_unstable_by_key(|(slot, _)| *slot);
        all.rules
            .sort_unstable_by_key(|(_, rule)| (rule.peer, rule.order));
        all.calls
            .sort_unstable_by_key(|(_, call)| (call.callee, call.caller, call.serial));
        all
    }

    fn names(&self) -> Vec<NameV1> {
        let names = self.names.iter().map(|(_, name)| NameV1 {
            name: name.name.clone(),
            owners: name
                .owners
                .iter()
                .map(|(peer, flags, _)| (*peer, *flags))
                .collect(),
        });
        names.collect()
    }

    /// Puts the lists into the records; those of names are [left out](Broker::restore_placed). Returns those that are complete, and whose are not.
    fn fill(&mut self, peers: Vec<PeerRecord>, held: &[HeldV1]) -> (Vec<PeerRecord>, Vec<PeerId>) {
        let mut lists: HashMap<PeerId, Lists, Seeded> = HashMap::with_hasher(Seeded::default());
        let mut names: HashMap<PeerId, u32, Seeded> = HashMap::with_hasher(Seeded::default());
        for (peer, ..) in self.names.iter().flat_map(|(_, name)| &name.owners) {
            *names.entry(*peer).or_insert(0) += 1;
        }
        for of_one in self.rules.chunk_by_mut(|(_, a), (_, b)| a.peer == b.peer) {
            let peer = of_one[0].1.peer;
            let rules = of_one.iter_mut().map(|(_, rule)| std::mem::take(&mut rule.rule));
            lists.entry(peer).or_default().rules = rules.collect();
        }
        for (_, call) in &self.calls {
            let CallEntryV1 {
                callee,
                caller,
                serial,
                deadline,
            } = *call;
            let callee_lists = lists.entry(callee).or_default();
            callee_lists.owed.push((caller, serial, deadline));
            lists.entry(caller).or_default().awaited.push((callee, serial));
        }
        let (mut complete, mut incomplete) = (Vec::with_capacity(peers.len()), Vec::new());
        for (mut record, expected) in peers.into_iter().zip(held) {
            let lists = lists.remove(&record.id).unwrap_or_default();
            let found = HeldV1 {
                names: names.get(&record.id).copied().unwrap_or(0),
                rules: lists.rules.len() as u32,
                owed: lists.owed.len() as u32,
                awaited: lists.awaited.len() as u32,
            };
            if found == *expected {
                record.set_lists(lists);
                complete.push(record);
            } else {
                incomplete.push(record.id);
            }
        }
        (complete, incomplete)
    }

    fn slots(&self) -> SavedIn<'_> {
        let names = self.names.iter();
        let rules = self.rules.iter();
        let calls = self.calls.iter();
        SavedIn {
            names: names.map(|(slot, name)| (*slot, &*name.name)).collect(),
            rules: rules.map(|(slot, rule)| (rule.peer, rule.order, *slot)).collect(),
            calls: calls
                .map(|(slot, call)| (*slot, (call.callee, call.caller, call.serial)))
                .collect(),
        }
    }
}
