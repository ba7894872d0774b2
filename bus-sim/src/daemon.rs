//! What the daemon around the broker does in a run: it reads, it writes, it tells the time, it carries out actions, and it
//! is replaced.

use std::collections::BTreeSet;

use bus_daemon::broker::{Action, Event, Fds, Millis, PeerId, Start};
use bytes::Bytes;

use crate::bus::Bus;
use crate::link::{Link, Read};
use crate::model::{Check, wrong};
use crate::random::Random;
use crate::world::World;

impl World {
    pub(crate) fn read_from_someone(&mut self) -> Check {
        match self.some_link(Link::is_readable) {
            Some(id) => self.read_from(id),
            None => Ok(()),
        }
    }

    /// The bus reads once.
    pub(crate) fn read_from(&mut self, id: PeerId) -> Check {
        let max = match self.random.below(8) {
            0 => 1 + self.random.index(16),
            1..3 => 1 + self.random.index(400),
            3 => 1 + self.random.index(70_000),
            _ => 256 * 1024,
        };
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.is_closed) else {
            return Ok(());
        };
        let max = link
            .large
            .as_ref()
            .map_or(max, |large| max.min(large.total - large.bytes.len()));
        match link.read(max) {
            Read::Nothing => Ok(()),
            Read::End => {
                self.note(|| format!("the bus finds {id:?} gone"));
                self.apply(
                    Event::Closed {
                        peer: id,
                        reason: "end of file",
                    },
                    |model| model.disconnect(id),
                )
            }
            Read::Bytes(bytes, files) => {
                let fds: Fds = files.iter().map(|file| self.bus.files.open(*file)).collect();
                let count = bytes.len() as u64;
                let mut large = None;
                let event = match link.grow_large(&bytes) {
                    Some(prefix) => {
                        self.stats.large += u64::from(link.large.is_none());
                        let upto = link.taken;
                        large = Some((upto, prefix.clone()));
                        Event::ReceivedLarge {
                            peer: id,
                            upto,
                            prefix,
                            fds,
                        }
                    }
                    None => {
                        let upto = link.taken;
                        let data = overlap(link, bytes, &mut self.random);
                        Event::Received {
                            peer: id,
                            upto,
                            data,
                            fds,
                        }
                    }
                };
                self.note(|| format!("the bus reads {count} bytes and {} files of {id:?}", files.len()));
                self.apply(event, |model| model.received(id, count, files))?;
                if let Some(link) = self.links.get_mut(&id) {
                    link.continue_large(&self.bus.broker);
                }
                if self.random.percent(10) {
                    self.tell_again(id)?;
                }
                if let Some((upto, prefix)) = large
                    && self.random.percent(50)
                {
                    self.tell_large_again(id, upto, prefix)?;
                }
                Ok(())
            }
        }
    }

    /// Something that was told of a peer is told again: that changes nothing.
    fn tell_again(&mut self, id: PeerId) -> Check {
        let Some(link) = self.links.get(&id) else {
            return Ok(());
        };
        let end = 1 + self.random.index(link.recent.len().max(1));
        let begin = self.random.index(end);
        let Some(bytes) = link.recent.get(begin..end) else {
            return Ok(());
        };
        let mut upto = link.taken - (link.recent.len() - end) as u64;
        let is_there = self.bus.broker.send_queue(id).is_some();
        if is_there && self.bus.saboteur.takes_twice() {
            upto = link.taken + bytes.len() as u64;
        }
        let data = Bytes::copy_from_slice(bytes);
        let fds = self.perhaps_a_file();
        self.note(|| format!("{} bytes of {id:?} up to {upto} are told again", data.len()));
        self.stats.told_again += 1;
        let event = Event::Received {
            peer: id,
            upto,
            data,
            fds,
        };
        self.apply(event, |_| Ok(()))
    }

    /// A part of a large message is told again, or only the beginning of that.
    fn tell_large_again(&mut self, id: PeerId, upto: u64, prefix: Bytes) -> Check {
        let end = if self.random.percent(50) {
            prefix.len()
        } else {
            1 + self.random.index(prefix.len())
        };
        let event = Event::ReceivedLarge {
            peer: id,
            upto: upto - (prefix.len() - end) as u64,
            prefix: prefix.slice(..end),
            fds: self.perhaps_a_file(),
        };
        self.note(|| format!("{end} bytes of a large message of {id:?} are told again"));
        self.stats.told_again += 1;
        self.apply(event, |_| Ok(()))
    }

    /// What comes with something that is told again.
    fn perhaps_a_file(&mut self) -> Fds {
        if self.random.percent(20) {
            let file = self.bus.files.create();
            [self.bus.files.open(file)].into_iter().collect()
        } else {
            Fds::new()
        }
    }

    pub(crate) fn send_to_someone(&mut self) -> Check {
        let broker = &self.bus.broker;
        let ids: Vec<PeerId> = self
            .links
            .values()
            .filter(|link| link.room() > 0)
            .map(|link| link.id)
            .collect();
        let ids: Vec<PeerId> = ids
            .into_iter()
            .filter(|id| broker.send_queue(*id).is_some_and(|queue| !queue.is_empty()))
            .collect();
        match self.random.pick(&ids).copied() {
            Some(id) => self.send_to(id).map(drop),
            None => Ok(()),
        }
    }

    /// The bus writes to a peer once. False if there is nothing to write, or no room.
    pub(crate) fn send_to(&mut self, id: PeerId) -> Check<bool> {
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.is_closed) else {
            return Ok(false);
        };
        let Bus {
            broker, store, files, ..
        } = &self.bus;
        let queue = broker.send_queue(id);
        let is_stored = queue.is_some_and(|queue| queue.next_stored_write().is_some());
        let Some((bytes, files)) = link.send(broker, store, files, &mut self.random)? else {
            return Ok(false);
        };
        self.stats.stored += u64::from(is_stored);
        let upto = link.sent;
        self.note(|| format!("{id:?} is sent {bytes} bytes and {files} files"));
        self.apply(Event::Sent { peer: id, upto }, |model| {
            model.drained(id, bytes, files);
            Ok(())
        })?;
        if self.random.percent(10) {
            let mut again = upto - self.random.below(1 + bytes.min(upto));
            let end = self
                .bus
                .broker
                .send_queue(id)
                .map_or(upto, bus_wire::SendQueue::end);
            if end > upto && self.bus.saboteur.sends_twice() {
                again = end.min(upto + bytes);
            }
            self.stats.told_again += 1;
            self.apply(
                Event::Sent {
                    peer: id,
                    upto: again,
                },
                |_| Ok(()),
            )?;
        }
        Ok(true)
    }

    pub(crate) fn tick(&mut self) -> Check {
        let now = self.now;
        self.note(|| format!("it is {now}"));
        self.apply(Event::Tick { now: Millis(now) }, |model| model.tick(now))
    }

    pub(crate) fn apply(
        &mut self,
        event: Event,
        model: impl FnOnce(&mut crate::model::Model) -> Check,
    ) -> Check {
        self.stats.events += 1;
        let mut actions = self.bus.apply(event, &mut self.random, model)?;
        let dies = self.random.permille(self.options.deaths);
        let later = if dies {
            actions.split_off(self.random.index(actions.len() + 1))
        } else {
            Vec::new()
        };
        for action in actions {
            self.perform(action)?;
        }
        if dies {
            self.note(|| format!("death, before {later:?} is done"));
            self.die_before(&later)?;
        }
        self.look_who_waits();
        self.check_places()?;
        self.bus.check_files()
    }

    /// Who waits with a message is not read from, not even its end: that would overtake the message.
    fn look_who_waits(&mut self) {
        for link in self.links.values_mut() {
            let is_paced = self.bus.broker.paced_until(link.id).is_some();
            self.stats.paced += u64::from(is_paced && !link.is_paced);
            link.is_paced = is_paced;
        }
    }

    /// Time goes on until the first who waits does not any more. False if nobody does.
    pub(crate) fn outwait_pace(&mut self) -> Check<bool> {
        let Some(until) = self.bus.model.paced_until() else {
            return Ok(false);
        };
        self.now = self.now.max(until);
        self.tick()?;
        Ok(true)
    }

    /// The bus knows how far each stream has come.
    fn check_places(&self) -> Check {
        for link in self.links.values().filter(|link| !link.is_closed) {
            let Some(queue) = self.bus.broker.send_queue(link.id) else {
                return wrong(format!("{:?} has a link and is unknown", link.id));
            };
            let found = (self.bus.broker.taken(link.id), queue.sent());
            if found != (link.taken, link.sent) {
                return wrong(format!(
                    "of {:?}, {} bytes were read and {} sent, and the bus counts {found:?}",
                    link.id, link.taken, link.sent
                ));
            }
        }
        Ok(())
    }

    /// It dies between an event and the end of what is to be done about it. Whoever goes on knows nothing of the
    /// actions, only the state: it closes descriptors and links that the state does not know, and asks the state who is
    /// to be read from.
    pub(crate) fn die_before(&mut self, undone: &[Action]) -> Check {
        self.stats.recoveries += 1;
        let events = self.twin_events();
        let actions = self.bus.recover(events)?;
        // A checkpoint between two steps keeps what was asked before it from being asked again.
        if !actions.ends_with(undone) && !undone.ends_with(&actions) {
            return wrong(format!(
                "in replay the last event asks for {actions:?}, and not for {undone:?}"
            ));
        }
        let owned: BTreeSet<i32> = self.bus.broker.owned_fds().iter().map(|fd| fd.0).collect();
        for number in self.bus.files.numbers() {
            if !owned.contains(&number) {
                self.bus.files.close(bus_wire::Fd(number))?;
            }
        }
        for link in self.links.values_mut() {
            if self.bus.broker.send_queue(link.id).is_none() {
                link.is_closed = true;
                link.socket = None;
            }
        }
        self.take_over();
        Ok(())
    }

    pub(crate) fn perform(&mut self, action: Action) -> Check {
        match action {
            Action::Close {
                peer,
                reason,
                uid: _,
                is_fault,
                last_words: _,
            } => {
                self.note(|| format!("{peer:?} is disconnected: {reason}"));
                self.stats.disconnected += u64::from(is_fault);
                if let Some(link) = self.links.get_mut(&peer) {
                    link.is_closed = true;
                    link.large = None;
                    if let Some(socket) = link.socket.take() {
                        self.bus.files.close(socket)?;
                    }
                }
            }
            Action::HangUp { peer, socket } => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.is_closed = true;
                    link.large = None;
                    link.socket = None;
                }
                self.bus.files.close(socket)?;
            }
            // Done already.
            Action::ScheduleStep(_) => {}
            Action::CloseFds(fds) => {
                if self.bus.saboteur.closes(&fds) {
                    for fd in fds {
                        self.bus.files.close(fd)?;
                    }
                }
            }
            Action::StopReading(peer) => self.set_stopped(peer, true),
            Action::ResumeReading(peer) => self.set_stopped(peer, false),
            Action::StopAccepting => self.is_accepting = false,
            Action::ResumeAccepting => self.is_accepting = true,
            Action::RunErrand { id, errand } => {
                if let Some(other) = self.errands.insert(id, errand) {
                    return wrong(format!(
                        "the number {id} is given again, and {other:?} is not done"
                    ));
                }
            }
            Action::HandOver => self.is_handing_over = true,
            Action::Warn { .. } => {}
        }
        Ok(())
    }

    pub(crate) fn set_stopped(&mut self, peer: PeerId, is_stopped: bool) {
        self.note(|| {
            format!(
                "{peer:?} is {}",
                if is_stopped {
                    "not read from any more"
                } else {
                    "read from again"
                }
            )
        });
        if let Some(link) = self.links.get_mut(&peer) {
            link.is_stopped = is_stopped;
        }
    }

    // Restarts

    pub(crate) fn twin_events(&mut self) -> u64 {
        if self.options.twin_events == 0 {
            0
        } else {
            1 + self.random.below(self.options.twin_events)
        }
    }

    pub(crate) fn upgrade(&mut self) -> Check {
        self.outwait_shortage()?;
        self.note(|| "upgrade".to_owned());
        self.stats.upgrades += 1;
        let events = self.twin_events();
        self.bus.upgrade(events, &mut self.random)?;
        self.take_over();
        Ok(())
    }

    pub(crate) fn die(&mut self) -> Check {
        self.note(|| "death and recovery".to_owned());
        self.stats.recoveries += 1;
        let events = self.twin_events();
        self.bus.recover(events)?;
        self.take_over();
        if self.random.percent(30) {
            let start = Start::Recovered {
                pause: 1,
                quarantined: 0,
            };
            // It ends no upgrade.
            self.apply(Event::Serving { worker_pid: 4, start }, |_| Ok(()))?;
        }
        Ok(())
    }

    /// What a runtime does that goes on with the links of another.
    pub(crate) fn take_over(&mut self) {
        for link in self.links.values_mut().filter(|link| !link.is_closed) {
            link.large = None;
            link.continue_large(&self.bus.broker);
            link.is_stopped = !self.bus.broker.may_read(link.id);
        }
        self.is_accepting = self.bus.broker.may_accept();
        // What is under way is asked for again, by the same number: the keeper knows what it was asked already.
        self.errands.extend(self.bus.broker.open_errands());
        self.is_handing_over = self.bus.broker.is_handing_over();
    }
}

/// Some of the bytes before these, and these.
fn overlap(link: &Link, bytes: Vec<u8>, random: &mut Random) -> Bytes {
    let known = link.recent.len().saturating_sub(bytes.len());
    if known == 0 || !random.percent(15) {
        return Bytes::from(bytes);
    }
    let from = random.index(known);
    Bytes::copy_from_slice(&link.recent[from..])
}
