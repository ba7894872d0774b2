//! What a checkpoint needs: the parts of the broker that may have changed since the one before.

use super::Broker;
use super::errand::Errand;
use super::event::PeerId;
use super::frozen::{Blob, PeerV2};
use super::restart::Upgrade;
use super::snapshot::SharedBodies;

impl Broker {
    /// How many indexes [`take_changed_peers`](Self::take_changed_peers) would give.
    pub fn changed_peers(&self) -> usize {
        self.roster.changed_count()
    }

    /// Moves to `out` the indexes whose peers may have changed, come or gone since they were last taken, each once: at most
    /// `most` of them, those that have waited longest.
    pub fn take_changed_peers(&mut self, most: usize, out: &mut Vec<u32>) {
        self.roster.take_changed(most, out);
    }

    /// Whether any name may have changed since all were last saved.
    pub fn are_names_changed(&self) -> bool {
        self.names.is_changed()
    }

    /// All names are saved.
    pub fn note_names_saved(&mut self) {
        self.names.note_saved();
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
    pub fn save_at(&self, index: u32) -> Option<(PeerV2, Vec<Blob>)> {
        let id = self.roster.at(index)?.id;
        let mut bodies = SharedBodies::new();
        let record = self.save_peer(id, &mut bodies)?;
        Some((record, bodies.into_bodies()))
    }

    /// Every shared piece of output for which `is_there` is true is copied, once, to memory of its own.
    pub fn move_output_out(&mut self, is_there: &dyn Fn(&bytes::Bytes) -> bool) {
        let ids: Vec<PeerId> = self.peer_ids().collect();
        let mut moved = hashbrown::HashMap::with_hasher(super::Seeded::with_seed(self.identity.hash_seed));
        for id in ids {
            if self.roster.get(id).is_none_or(|peer| peer.out.is_empty()) {
                continue;
            }
            let Some(peer) = self.roster.get_mut(id) else {
                continue;
            };
            peer.out.replace_shared(|bytes| {
                is_there(bytes).then(|| {
                    moved
                        .entry((bytes.as_ptr() as usize, bytes.len()))
                        .or_insert_with(|| bytes::Bytes::copy_from_slice(bytes))
                        .clone()
                })
            });
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
        open
    }
}
