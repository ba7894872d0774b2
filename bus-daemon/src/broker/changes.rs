//! What a checkpoint needs: the parts of the broker that may have changed since the one before.

use bus_wire::SendQueue;

use super::Broker;
use super::errand::Errand;
use super::event::PeerId;
use super::frozen::{Blob, CallEntryV1, EntryV1, HeldV1, Lists, NameEntryV1, PeerRecord, RuleEntryV1};
use super::peer::Phase;
use super::restart::Upgrade;
use super::snapshot::SharedBodies;

/// What has entries of its own in a checkpoint; each kind has slots from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// Well-known names.
    Name,
    /// Match rules and filters.
    Rule,
    /// Open calls.
    Call,
}

impl Broker {
    /// How many indexes [`take_changed_peers`](Self::take_changed_peers) would give.
    pub fn changed_peers(&self) -> usize {
        self.roster.changed_count()
    }

    /// Bytes that are written whenever their peers have changed, of all peers together: of messages and lines that have not
    /// arrived completely, and of long lists of groups.
    pub fn rewritten_bytes(&self) -> u64 {
        self.ledger.input() + self.ledger.groups()
    }

    /// The same of one peer.
    pub fn rewritten_of(&self, peer: PeerId) -> u64 {
        let peer = self.roster.get(peer);
        peer.map_or(0, |peer| peer.charge.input + peer.charge.groups)
    }

    /// Moves to `out` the indexes whose peers may have changed, come or gone since they were last taken, each once: at most
    /// `most` of them, those that have waited longest.
    pub fn take_changed_peers(&mut self, most: usize, out: &mut Vec<u32>) {
        self.roster.take_changed(most, out);
    }

    /// Whether another configuration may be in force than the one that was last saved.
    pub fn is_config_changed(&self) -> bool {
        self.is_config_changed
    }

    /// The configuration is saved.
    pub fn note_config_saved(&mut self) {
        self.is_config_changed = false;
    }

    /// The record of the peer that has this index, if any, and the bodies that its output refers to.
    pub fn save_at(&self, index: u32) -> Option<(PeerRecord, Vec<Blob>)> {
        let id = self.roster.at(index)?.id;
        let mut bodies = SharedBodies::new();
        let record = self.save_peer(id, &mut bodies)?;
        Some((record, bodies.into_bodies()))
    }

    /// The same without what has [entries](Self::save_entry) of its own, and how many of these the peer has a part in.
    pub fn save_alone(&self, index: u32) -> Option<(PeerRecord, Vec<Blob>, HeldV1)> {
        let peer = self.roster.at(index)?;
        let mut bodies = SharedBodies::new();
        let record = self.save_one(peer, Lists::default(), Vec::new(), &mut bodies);
        let held = HeldV1 {
            names: self.names.held_count(peer.id) as u32,
            rules: self.subscriptions.held_count(peer.id) as u32,
            owed: self.calls.owed_count(peer.id) as u32,
            awaited: self.calls.awaited_count(peer.id) as u32,
        };
        Some((record, bodies.into_bodies(), held))
    }

    /// How many entries [`take_changed_entries`](Self::take_changed_entries) would visit.
    pub fn changed_entries(&self) -> usize {
        self.names.entries().changed_count()
            + self.subscriptions.entries().changed_count()
            + self.calls.entries().changed_count()
    }

    /// Moves to `out` the entries that are to be written again, or taken away, since they were last taken, each once. At most
    /// `most` of those that may have to are looked at, of each kind those that have waited longest.
    pub fn take_changed_entries(&mut self, most: usize, out: &mut Vec<(EntryKind, u32)>) {
        let mut left = most;
        let mut take = |count: usize| {
            let now = left.min(count);
            left -= now;
            now
        };
        let names = self.names.entries_mut();
        names.take_changed(take(names.changed_count()), |slot| {
            out.push((EntryKind::Name, slot))
        });
        let rules = self.subscriptions.entries_mut();
        rules.take_changed(take(rules.changed_count()), |slot| {
            out.push((EntryKind::Rule, slot))
        });
        // At last: many of them are over soon.
        let calls = self.calls.entries_mut();
        calls.take_changed(take(calls.changed_count()), |slot| {
            out.push((EntryKind::Call, slot))
        });
    }

    /// What is to be in an entry; `None`: nothing any more.
    pub fn save_entry(&self, kind: EntryKind, slot: u32) -> Option<EntryV1> {
        Some(match kind {
            EntryKind::Name => {
                let name = self.names.saved_in(slot)?;
                let owners = name.owners.iter();
                EntryV1::Name(NameEntryV1 {
                    name: (&name.name).into(),
                    owners: owners
                        .map(|owner| (owner.peer, owner.flags.bits(), owner.held_at))
                        .collect(),
                })
            }
            EntryKind::Rule => {
                let (peer, order, rule) = self.subscriptions.saved_in(slot)?;
                EntryV1::Rule(RuleEntryV1 {
                    peer,
                    order,
                    rule: rule.into(),
                })
            }
            EntryKind::Call => {
                let ((callee, caller, serial), deadline) = self.calls.saved_in(slot)?;
                EntryV1::Call(CallEntryV1 {
                    callee,
                    caller,
                    serial,
                    deadline,
                })
            }
        })
    }

    /// The output of the peer with this index that is to be kept elsewhere from now on, and whose it is: of one that has
    /// come to send messages. The end of an authentication is still to be told what stands in its queue.
    pub fn output_at(&self, index: u32) -> Option<(PeerId, &SendQueue)> {
        let peer = self.roster.at(index)?;
        let is_kept = !matches!(peer.phase, Phase::Authenticating(_)) && !peer.agenda.is_leaving();
        is_kept.then_some((peer.id, &peer.out))
    }

    /// All output of the peer with this index is kept elsewhere.
    pub fn note_output_kept(&mut self, index: u32) {
        if let Some(peer) = self.roster.at_mut(index) {
            peer.out.set_stored();
            self.ledger.settle(peer);
        }
    }

    /// So many peers' streams could not be proved after a crash: `LastRestart` will tell.
    pub fn note_in_doubt(&mut self, peers: u32) {
        self.restart.dropped_in_restore = self.restart.dropped_in_restore.saturating_add(peers);
    }

    /// Whether the state was about to be handed over.
    pub fn is_handing_over(&self) -> bool {
        matches!(self.restart.upgrade, Upgrade::HandingOver { .. })
    }

    /// Whether a binary is being tried, or has passed its trial.
    pub fn is_upgrading(&self) -> bool {
        !matches!(self.restart.upgrade, Upgrade::None)
    }

    /// The errands that are under way, or were asked for by a worker that died before it could pass them on.
    pub fn open_errands(&self) -> Vec<(u64, Errand)> {
        let mut open = Vec::new();
        if let Some(reading) = self.reload.reading() {
            open.push((reading.errand, Errand::LoadConfiguration));
        }
        if let Upgrade::Trying { errand, binary, .. } = &self.restart.upgrade {
            let binary = binary.clone();
            open.push((*errand, Errand::TryBinary { binary }));
        }
        if let Some(reading) = self.keyring.reading() {
            open.push((reading, Errand::ReadKeyring));
        }
        open
    }
}
