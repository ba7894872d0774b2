//! Names and their queues (specification, "Message Bus Names", RequestName and ReleaseName).

use bus_daemon::broker::PeerId;

use super::{Check, Model, Phase};
use crate::letter::Letter;

const ALLOW_REPLACEMENT: u32 = 1;
const REPLACE_EXISTING: u32 = 2;
const DO_NOT_QUEUE: u32 = 4;

impl Model {
    /// The answer: 1 owner, 2 in the queue, 3 exists, 4 owner already; `None`: one name too many.
    pub(super) fn request_name(&mut self, id: PeerId, name: &str, flags: u32) -> Check<Option<u32>> {
        let flags = flags & 7;
        let held = self
            .peers
            .get(&id)
            .map(|peer| peer.names.clone())
            .unwrap_or_default();
        if held.len() as u64 + 1 >= self.limits.max_names_per_connection
            && !held.iter().any(|one| one == name)
        {
            return Ok(None);
        }
        let queue = self.names.entry(name.to_owned()).or_default();
        let waiting = queue.iter().position(|(peer, _)| *peer == id);
        let Some((owner, owner_flags)) = queue.front().copied() else {
            queue.push_back((id, flags));
            self.hold(id, name);
            self.announce(id, name, None, Some(id))?;
            return Ok(Some(1));
        };
        if owner == id {
            queue[0].1 = flags;
            return Ok(Some(4));
        }
        if let Some(place) = waiting
            && (flags & (REPLACE_EXISTING | DO_NOT_QUEUE) != 0)
        {
            queue.remove(place);
        }
        if flags & REPLACE_EXISTING != 0 && owner_flags & ALLOW_REPLACEMENT != 0 {
            if owner_flags & DO_NOT_QUEUE != 0 {
                queue.pop_front();
            }
            queue.push_front((id, flags));
            self.hold(id, name);
            if owner_flags & DO_NOT_QUEUE != 0 {
                self.unhold(owner, name);
            }
            self.announce(id, name, Some(owner), Some(id))?;
            return Ok(Some(1));
        }
        if flags & DO_NOT_QUEUE != 0 {
            self.unhold(id, name);
            return Ok(Some(3));
        }
        match waiting {
            // The reference implementation puts who wanted to replace, and could not, first in the queue.
            _ if flags & REPLACE_EXISTING != 0 => queue.insert(1, (id, flags)),
            Some(place) => queue[place].1 = flags,
            None => queue.push_back((id, flags)),
        }
        self.hold(id, name);
        Ok(Some(2))
    }

    /// The answer: 1 released, 2 no such name, 3 not in its queue.
    pub(super) fn release_name(&mut self, id: PeerId, name: &str) -> Check<u32> {
        let Some(queue) = self.names.get_mut(name) else {
            return Ok(2);
        };
        let Some(place) = queue.iter().position(|(peer, _)| *peer == id) else {
            return Ok(3);
        };
        queue.remove(place);
        let next = queue.front().map(|(peer, _)| *peer);
        if queue.is_empty() {
            self.names.remove(name);
        }
        self.unhold(id, name);
        if place == 0 {
            self.announce(id, name, Some(id), next)?;
        }
        Ok(1)
    }

    /// All names of a peer that leaves, the newest first, and its unique name.
    pub(super) fn release_all(&mut self, id: PeerId) -> Check {
        while let Some(name) = self.peers.get(&id).and_then(|peer| peer.names.last().cloned()) {
            self.release_name(id, &name)?;
        }
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.unique.is_some()) else {
            return Ok(());
        };
        let name = peer.name();
        if std::mem::take(&mut peer.is_reachable) {
            self.say(id, Letter::driver_signal("NameLost", &[&name]))?;
            self.broadcast(
                id,
                &Letter::driver_signal("NameOwnerChanged", &[&name, &name, ""]),
            )?;
        }
        // Nobody is called that ever again. A monitor also sees what is sent to nobody.
        for peer in self
            .peers
            .values_mut()
            .filter(|peer| peer.phase != Phase::Monitor)
        {
            let is_named = |end: &Option<String>| end.as_ref() == Some(&name);
            peer.rules
                .retain(|rule| !is_named(&rule.sender) && !is_named(&rule.destination));
        }
        Ok(())
    }

    fn hold(&mut self, id: PeerId, name: &str) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.names.iter().any(|held| held == name)
        {
            peer.names.push(name.to_owned());
        }
    }

    fn unhold(&mut self, id: PeerId, name: &str) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.names.retain(|held| held != name);
        }
    }

    fn announce(&mut self, cause: PeerId, name: &str, old: Option<PeerId>, new: Option<PeerId>) -> Check {
        let unique = |id: Option<PeerId>| {
            let peer = id.and_then(|id| self.peers.get(&id));
            peer.map(super::Peer::name).unwrap_or_default()
        };
        let words = [name.to_owned(), unique(old), unique(new)];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let changed = Letter::driver_signal("NameOwnerChanged", &words);
        if let Some(old) = old {
            self.say_of(Some(cause), old, Letter::driver_signal("NameLost", &[name]))?;
        }
        self.broadcast(cause, &changed)?;
        if let Some(new) = new {
            self.say_of(Some(cause), new, Letter::driver_signal("NameAcquired", &[name]))?;
        }
        Ok(())
    }
}
