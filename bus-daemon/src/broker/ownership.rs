//! Requesting and releasing names, and telling everyone.

use std::sync::Arc;

use super::Broker;
use super::event::PeerId;
use super::name::{NameFlags, OwnerChange, ReleaseNameReply, RequestNameReply};
use super::pacing::Wait;
use super::peer::Unique;

/// Why a peer may not ask for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameRefusal {
    /// The peer is at `max_names_per_connection`, which is this.
    #[error("The connection has as many names as it may have (max_names_per_connection={0})")]
    TooMany(u64),
    /// All peers together have as many as there is room for.
    #[error("The bus has no room for another name")]
    NoRoom,
}

impl Broker {
    /// `RequestName`, with its signals; the answer is the caller's to send after them (specification,
    /// "org.freedesktop.DBus.RequestName").
    /// The name must be valid, well-known and not the driver's.
    pub(crate) fn request_name(
        &mut self,
        id: PeerId,
        name: &str,
        flags: NameFlags,
    ) -> Result<RequestNameReply, NameRefusal> {
        let limit = self.config.limits.max_names_per_connection;
        // The unique name counts, as in dbus-daemon.
        if self.names.held_count(id) as u64 + 1 >= limit && !self.names.is_held(name, id) {
            return Err(NameRefusal::TooMany(limit));
        }
        if self.names.queue(name).is_none() && !self.has_room_for_name() {
            return Err(NameRefusal::NoRoom);
        }
        let is_noted = self.is_name_noted(name);
        let was_held = is_noted && self.names.is_held(name, id);
        let (reply, change) = self.names.request(name, id, flags);
        if is_noted {
            let is_held = self.names.is_held(name, id);
            if is_held != was_held {
                self.note_name(id, name, is_held);
            }
            // Whoever is replaced waits, or does not.
            let old = change.as_ref().and_then(|change| change.old);
            if let Some(old) = old.filter(|old| !self.names.is_held(name, *old)) {
                self.note_name(old, name, false);
            }
        }
        let held = self.names.held_count(id) as u32;
        if let Some(peer) = self.roster.get_mut(id) {
            peer.peaks.names = peer.peaks.names.max(held);
        }
        if let Some(change) = &change {
            self.announce(change, id);
        }
        self.names.note_peak(self.roster.unique_count());
        Ok(reply)
    }

    /// `ReleaseName`, with its signals.
    pub(crate) fn release_name(&mut self, id: PeerId, name: &str) -> ReleaseNameReply {
        let (reply, change) = self.names.release(name, id);
        if reply == ReleaseNameReply::Released {
            self.roster.mark_changed(id);
            self.note_name(id, name, false);
        }
        if let Some(change) = &change {
            self.announce(change, id);
        }
        reply
    }

    /// NameLost to the old owner, NameOwnerChanged to all, NameAcquired to the new one: in the order of dbus-daemon. Whose
    /// doing it is makes these wait, as its own broadcasts.
    fn announce(&mut self, change: &OwnerChange, cause: PeerId) {
        let unique_name = |id: Option<PeerId>, broker: &Self| -> Arc<str> {
            let unique = id.and_then(|id| broker.roster.get(id)?.unique.as_ref());
            unique.map_or_else(|| "".into(), |unique| unique.name.clone())
        };
        let old = unique_name(change.old, self);
        let new = unique_name(change.new, self);
        if let Some(id) = change.old {
            self.roster.mark_changed(id);
        }
        let told = Announcement {
            name: &change.name,
            old: (&old, change.old),
            new: (&new, change.new),
        };
        self.tell(&told, cause);
    }

    /// The same for a unique name, which comes with Hello and goes with its peer.
    pub(super) fn announce_unique(&mut self, id: PeerId, unique: &Unique, is_acquired: bool) {
        let (old, new) = if is_acquired {
            (("", None), (&*unique.name, Some(id)))
        } else {
            ((&*unique.name, Some(id)), ("", None))
        };
        let told = Announcement {
            name: &unique.name,
            old,
            new,
        };
        self.tell(&told, id);
    }

    fn tell(&mut self, told: &Announcement<'_>, cause: PeerId) {
        let Announcement {
            name,
            old: (old, loser),
            new: (new, winner),
        } = *told;
        let by = Some(cause);
        let mut wait = Wait::default();
        if let Some(id) = loser {
            wait = self.send_signal_to(id, "NameLost", by, |w| {
                w.str(name);
            });
        }
        wait = wait.and(self.broadcast_driver_signal("NameOwnerChanged", by, |w| {
            w.str(name);
            w.str(old);
            w.str(new);
        }));
        if let Some(id) = winner {
            wait = wait.and(self.send_signal_to(id, "NameAcquired", by, |w| {
                w.str(name);
            }));
        }
        self.note_broadcast(cause, wait);
    }
}

/// Who lost a name, and who got it: how each is called, and who that is.
struct Announcement<'a> {
    name: &'a str,
    old: (&'a str, Option<PeerId>),
    new: (&'a str, Option<PeerId>),
}
