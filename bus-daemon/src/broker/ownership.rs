//! Requesting and releasing names, and telling everyone.

use std::sync::Arc;

use super::Broker;
use super::event::PeerId;
use super::name::{NameFlags, OwnerChange, ReleaseNameReply, RequestNameReply};
use super::peer::Unique;

impl Broker {
    /// `RequestName`, with its signals; the answer is the caller's to send after them (specification,
    /// "org.freedesktop.DBus.RequestName"). `None` if the peer would pass `max_names_per_connection`.
    /// The name must be valid, well-known and not the driver's.
    pub(crate) fn request_name(
        &mut self,
        id: PeerId,
        name: &str,
        flags: NameFlags,
    ) -> Option<RequestNameReply> {
        let limit = self.config.limits.max_names_per_connection;
        let peer = self.peers.get(id)?;
        // The unique name counts, as in dbus-daemon.
        if peer.names.len() as u64 + 1 >= limit && !peer.names.iter().any(|held| **held == *name) {
            return None;
        }
        let (reply, change, name) = self.names.request(name, id, flags);
        self.note_held(id, &name);
        if let Some(change) = &change {
            if let Some(old) = change.old {
                self.note_held(old, &name);
            }
            self.announce(change);
        }
        self.stats.note_names(self.names.len() + self.unique.len());
        Some(reply)
    }

    /// `ReleaseName`, with its signals.
    pub(crate) fn release_name(&mut self, id: PeerId, name: &str) -> ReleaseNameReply {
        let (reply, change) = self.names.release(name, id);
        if reply == ReleaseNameReply::Released
            && let Some(peer) = self.peers.get_mut(id)
        {
            peer.names.retain(|held| **held != *name);
            peer.owned.retain(|held| **held != *name);
        }
        if let Some(change) = &change {
            self.announce(change);
        }
        reply
    }

    /// Gives up all that a peer owns or waits for, the newest first, and at last its unique name.
    pub(super) fn release_all_names(&mut self, id: PeerId) {
        while let Some(name) = self.peers.get_mut(id).and_then(|peer| peer.names.pop()) {
            self.release_name(id, &name);
        }
        let Some(unique) = self.peers.get(id).and_then(|peer| peer.unique.clone()) else {
            return;
        };
        if self.unique.remove(&unique.number).is_some() {
            self.announce_unique(id, &unique, false);
            self.drop_dead_rules(&unique.name);
        }
    }

    /// Makes the peer's list agree with the queue of the name.
    fn note_held(&mut self, id: PeerId, name: &Arc<str>) {
        let is_held = self
            .names
            .queue(name)
            .is_some_and(|mut queue| queue.any(|owner| owner.peer == id));
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let place = peer.names.iter().position(|held| held == name);
        match (is_held, place) {
            (true, None) => {
                peer.names.push(name.clone());
                peer.peaks.names = peer.peaks.names.max(peer.names.len() as u32);
            }
            (false, Some(place)) => {
                peer.names.remove(place);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// NameLost to the old owner, NameOwnerChanged to all, NameAcquired to the new one: in the order of dbus-daemon.
    fn announce(&mut self, change: &OwnerChange) {
        let unique_name = |id: Option<PeerId>, broker: &Self| -> Arc<str> {
            let unique = id.and_then(|id| broker.peers.get(id)?.unique.as_ref());
            unique.map_or_else(|| "".into(), |unique| unique.name.clone())
        };
        let old = unique_name(change.old, self);
        let new = unique_name(change.new, self);
        if let Some(id) = change.old {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.owned.retain(|held| *held != change.name);
            }
            self.send_signal_to(id, "NameLost", |w| {
                w.str(&change.name);
            });
        }
        if let Some(peer) = change.new.and_then(|id| self.peers.get_mut(id)) {
            peer.owned.push(change.name.clone());
        }
        self.broadcast_driver_signal("NameOwnerChanged", |w| {
            w.str(&change.name);
            w.str(&old);
            w.str(&new);
        });
        if let Some(id) = change.new {
            self.send_signal_to(id, "NameAcquired", |w| {
                w.str(&change.name);
            });
        }
    }

    /// The same for a unique name, which comes with Hello and goes with its peer.
    pub(super) fn announce_unique(&mut self, id: PeerId, unique: &Unique, is_acquired: bool) {
        let (old, new) = if is_acquired {
            ("", &*unique.name)
        } else {
            (&*unique.name, "")
        };
        if !is_acquired {
            self.send_signal_to(id, "NameLost", |w| {
                w.str(&unique.name);
            });
        }
        self.broadcast_driver_signal("NameOwnerChanged", |w| {
            w.str(&unique.name);
            w.str(old);
            w.str(new);
        });
        if is_acquired {
            self.send_signal_to(id, "NameAcquired", |w| {
                w.str(&unique.name);
            });
        }
    }
}
