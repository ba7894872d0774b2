//! The end of a run: everyone reads, everything is answered, and then nothing may be left.

use std::collections::BTreeSet;

use bus_daemon::broker::PeerId;

use crate::link::Link;
use crate::model::{Check, Phase, wrong};
use crate::operation::Scene;
use crate::world::World;

/// Rounds after which the bus must have come to rest.
const ROUNDS: usize = 10_000;

impl World {
    /// Brings the run to its end.
    pub(crate) fn finish(&mut self) -> Check {
        self.bus.shortage = 0;
        for client in self.clients.values_mut() {
            client.is_asleep = false;
        }
        self.attach_all()?;
        self.settle()?;
        self.answer_all()?;
        self.check_clients()?;
        for link in self.links.values_mut() {
            link.is_hung_up = true;
        }
        self.settle()?;
        self.check_empty()
    }

    /// Every parked peer has a link again.
    fn attach_all(&mut self) -> Check {
        while let Some(id) = self.some_link(|link| !link.is_closed && link.socket.is_none()) {
            self.attach(id)?;
        }
        Ok(())
    }

    /// Everything that takes time is done. False if there is nothing.
    fn do_errands(&mut self) -> Check<bool> {
        if self.is_handing_over {
            self.end_upgrade()?;
        } else if !self.errands.is_empty() {
            self.end_errand()?;
        } else if let Some(due) = self.bus.model.reload_due() {
            self.now = self.now.max(due);
            self.tick()?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Until nobody has anything to read or to write.
    fn settle(&mut self) -> Check {
        for _ in 0..ROUNDS {
            let mut has_moved = false;
            let ids: Vec<PeerId> = self.links.keys().copied().collect();
            for id in ids {
                if self.links.get(&id).is_some_and(Link::is_readable) {
                    self.read_from(id)?;
                    has_moved = true;
                }
                self.let_read(id, usize::MAX)?;
                while self.send_to(id)? {
                    has_moved = true;
                    self.let_read(id, usize::MAX)?;
                }
            }
            has_moved |= self.do_errands()?;
            if !has_moved {
                has_moved = self.outwait_pace()? || self.outwait_shortage()? || self.outwait_newcomers()?;
            }
            if !has_moved {
                return match self
                    .links
                    .values()
                    .find(|link| !link.is_closed && link.unread() > 0)
                {
                    Some(link) => wrong(format!("{:?} is not read from any more", link.id)),
                    None => Ok(()),
                };
            }
        }
        wrong("the bus does not come to rest")
    }

    /// Time goes on until somebody who does not say Hello is disconnected, if others wait for that. False if nobody does.
    fn outwait_newcomers(&mut self) -> Check<bool> {
        let Some(until) = self.bus.model.slot_is_free_at() else {
            return Ok(false);
        };
        self.now = self.now.max(until);
        self.tick()?;
        Ok(true)
    }

    /// Every client answers what it has not answered.
    fn answer_all(&mut self) -> Check {
        loop {
            let found = self.clients.values_mut().find_map(|client| {
                let link = self.links.get(&client.id)?;
                if link.is_hung_up || link.is_closed || client.is_done {
                    return None;
                }
                Some((client.id, client.unanswered.pop()?))
            });
            let Some((id, call)) = found else { return Ok(()) };
            let Some(client) = self.clients.get_mut(&id) else {
                return Ok(());
            };
            let mut scene = Scene {
                random: &mut self.random,
                client,
                files: &mut self.bus.files,
                names: &[],
                number: &mut self.number,
            };
            let letter = scene.reply_to(&call, false);
            self.post(id, letter)?;
            self.settle()?;
        }
    }

    /// What each client knows must be so.
    fn check_clients(&mut self) -> Check {
        for client in self.clients.values() {
            let Some(peer) = self.bus.model.peers.get(&client.id) else {
                continue;
            };
            if peer.phase != Phase::Active || client.unique.is_none() {
                continue;
            }
            let mut owned: BTreeSet<String> = self.bus.model.owned(client.id).into_iter().collect();
            owned.insert(peer.name());
            client.check_at_rest(&owned)?;
            if let Some(due) = self.bus.due.get(&client.id).filter(|due| !due.is_empty()) {
                return wrong(format!(
                    "{} messages did not arrive at {:?}",
                    due.len(),
                    client.id
                ));
            }
        }
        Ok(())
    }

    fn check_empty(&mut self) -> Check {
        if let Some(id) = self.bus.broker.peer_ids().next() {
            return wrong(format!("{id:?} is still there at the end"));
        }
        if !self.bus.model.names.is_empty() {
            return wrong(format!(
                "names are still owned at the end: {:?}",
                self.bus.model.names
            ));
        }
        let mut numbers = self.bus.files.numbers();
        // Where the configuration in force came from.
        let source = self.bus.broker.config_source();
        numbers.retain(|number| source.is_none_or(|source| source.0 != *number));
        if !numbers.is_empty() || self.bus.model.has_errands() {
            return wrong(format!("descriptors are still open at the end: {numbers:?}"));
        }
        let open = self.bus.broker.open_errands();
        if !open.is_empty() || self.bus.broker.is_handing_over() {
            return wrong(format!("at the end the bus still waits for something: {open:?}"));
        }
        if let Some(at) = self.bus.broker.next_deadline() {
            return wrong(format!("a deadline is left at the end: {at:?}"));
        }
        Ok(())
    }
}
