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
        self.roster.get(id)?;
        // The unique name counts, as in dbus-daemon.
        if self.names.held_count(id) as u64 + 1 >= limit && !self.names.is_held(name, id) {
            return None;
        }
        let (reply, change) = self.names.request(name, id, flags);
        let held = self.names.held_count(id) as u32;
        if let Some(peer) = self.roster.get_mut(id) {
            peer.peaks.names = peer.peaks.names.max(held);
        }
        if let Some(change) = &change {
            self.announce(change);
        }
        self.names.note_peak(self.roster.unique_count());
        Some(reply)
    }

    /// `ReleaseName`, with its signals.
    pub(crate) fn release_name(&mut self, id: PeerId, name: &str) -> ReleaseNameReply {
        let (reply, change) = self.names.release(name, id);
        if reply == ReleaseNameReply::Released {
            self.roster.mark_changed(id);
        }
        if let Some(change) = &change {
            self.announce(change);
        }
        reply
    }

    /// NameLost to the old owner, NameOwnerChanged to all, NameAcquired to the new one: in the order of dbus-daemon.
    fn announce(&mut self, change: &OwnerChange) {
        let unique_name = |id: Option<PeerId>, broker: &Self| -> Arc<str> {
            let unique = id.and_then(|id| broker.roster.get(id)?.unique.as_ref());
            unique.map_or_else(|| "".into(), |unique| unique.name.clone())
        };
        let old = unique_name(change.old, self);
        let new = unique_name(change.new, self);
        if let Some(id) = change.old {
            self.roster.mark_changed(id);
            self.send_signal_to(id, "NameLost", |w| {
                w.str(&change.name);
            });
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
