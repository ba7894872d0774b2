//! What a checkpoint needs: the parts of the broker that may have changed since the one before.

use super::Broker;
use super::event::PeerId;
use super::frozen::{Blob, PeerV1};
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

    /// Whether what `save_lists` saves may have changed since this was last asked.
    pub fn take_changed_lists(&mut self) -> bool {
        let config = std::mem::take(&mut self.is_config_changed);
        self.names.take_changed() || config
    }

    /// The record of the peer that has this index, if any, and the bodies that its output refers to.
    pub fn save_at(&self, index: u32) -> Option<(PeerV1, Vec<Blob>)> {
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

    /// An upgrade was begun and has not ended.
    pub fn is_upgrading(&self) -> bool {
        self.restart.is_upgrading
    }

    /// Somebody waits for the answer of ReloadConfig.
    pub fn is_reloading(&self) -> bool {
        !self.reload_callers.is_empty()
    }
}
