//! What a checkpoint needs: the parts of the broker that may have changed since the one before.

use bus_wire::SendQueue;

use super::Broker;
use super::errand::Errand;
use super::event::PeerId;
use super::frozen::{Blob, PeerV2};
use super::peer::Phase;
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

    /// The output of the peer with this index that is to be kept elsewhere from now on, and whose it is: of one that has
    /// come to send messages. The end of an authentication is still to be told what stands in its queue.
    pub fn output_at(&self, index: u32) -> Option<(PeerId, &SendQueue)> {
        let peer = self.roster.at(index)?;
        let is_kept = !matches!(peer.phase, Phase::Authenticating(_));
        is_kept.then_some((peer.id, &peer.out))
    }

    /// All output of the peer with this index is kept elsewhere.
    pub fn note_output_kept(&mut self, index: u32) {
        if let Some(peer) = self.roster.at_mut(index) {
            peer.out.set_stored();
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
