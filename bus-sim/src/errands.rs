//! What goes on around the broker in its own time: errands, upgrades that were asked for, and links that are lost and come
//! back.

use bus_daemon::broker::{ConfigRefusal, Errand, ErrandOutcome, Event, PeerId, Start};
use bus_wire::Fd;

use crate::bus::config;
use crate::model::{Check, End, wrong};
use crate::world::World;

impl World {
    /// Something of that kind happens.
    pub(crate) fn errand(&mut self) -> Check {
        match self.random.below(20) {
            0 => {
                self.note(|| "a signal asks for a reload".to_owned());
                self.apply(Event::ReloadRequested, |model| {
                    model.reload_requested();
                    Ok(())
                })
            }
            1 => {
                self.note(|| "a signal asks for an upgrade".to_owned());
                self.apply(Event::UpgradeRequested, |model| model.upgrade_requested())
            }
            2 => self.end_other_errand(),
            _ if self.errands.is_empty() => Ok(()),
            _ => self.end_errand(),
        }
    }

    /// One of the errands under way ends, in whatever order.
    pub(crate) fn end_errand(&mut self) -> Check {
        let all: Vec<u64> = self.errands.keys().copied().collect();
        let Some(&number) = self.random.pick(&all) else {
            return Ok(());
        };
        let Some(errand) = self.errands.remove(&number) else {
            return Ok(());
        };
        let told = if self.bus.model.is_awaited(number) && self.bus.saboteur.loses_errand() {
            number + 1_000
        } else {
            number
        };
        self.tell_end(&errand, number, told)
    }

    /// An errand ends that nobody waits for: of another number, or one that has ended already.
    fn end_other_errand(&mut self) -> Check {
        let number = self.random.below(40);
        if self.errands.contains_key(&number) {
            return Ok(());
        }
        let errand = if self.random.percent(50) {
            Errand::LoadConfiguration
        } else {
            Errand::TryBinary {
                binary: String::new(),
            }
        };
        self.tell_end(&errand, number, number)
    }

    /// Tells the broker that the errand of this number has ended.
    fn tell_end(&mut self, errand: &Errand, number: u64, told: u64) -> Check {
        let is_good = self.random.percent(70);
        self.note(|| format!("errand {number} ends, {errand:?}: {is_good}"));
        let file = self.bus.files.create();
        let payload: Option<Fd> = Some(self.bus.files.open(file));
        let event = |outcome| Event::ErrandEnded {
            errand: told,
            outcome,
            payload,
        };
        let no = || "no".to_owned();
        match errand {
            Errand::TryBinary { .. } => {
                let verdict = if is_good { Ok(()) } else { Err(no()) };
                let event = event(ErrandOutcome::Trial(verdict));
                self.apply(event, |model| model.trial_ended(number, is_good))
            }
            Errand::LoadConfiguration if is_good => {
                let mut limits = self.bus.model.limits.clone();
                if self.random.percent(40) {
                    limits.max_outgoing_bytes = 2000 + self.random.below(400_000);
                }
                let config = config(limits.clone(), self.bus.model.eavesdrop_allowed);
                let event = event(ErrandOutcome::Configuration(Ok(config)));
                self.apply(event, |model| model.reading_ended(number, Some(limits)))
            }
            Errand::ReadKeyring => wrong("the simulated peers know no cookies"),
            Errand::LoadConfiguration => {
                let refusal = ConfigRefusal {
                    error: "org.freedesktop.DBus.Error.Failed".to_owned(),
                    text: no(),
                };
                let event = event(ErrandOutcome::Configuration(Err(refusal)));
                self.apply(event, |model| model.reading_ended(number, None))
            }
        }
    }

    /// The state is handed over: somebody serves, or the upgrade has failed.
    pub(crate) fn end_upgrade(&mut self) -> Check {
        let end = match self.random.below(4) {
            0 => End::Failed,
            1 => End::RolledBack,
            _ => End::Serves,
        };
        self.note(|| format!("an upgrade ends: {end:?}"));
        let reason = "no".to_owned();
        let pause = 5;
        let event = match end {
            End::Failed => Event::UpgradeFailed { reason },
            End::Serves | End::RolledBack => {
                self.upgrade()?;
                let start = if end == End::Serves {
                    Start::Upgraded { pause }
                } else {
                    Start::RolledBack { reason, pause }
                };
                Event::Serving { worker_pid: 3, start }
            }
        };
        self.is_handing_over = false;
        let event = if self.bus.model.is_upgrade_awaited() && self.bus.saboteur.loses_serving() {
            Event::ReloadRequested
        } else {
            event
        };
        self.stats.hand_overs += 1;
        self.apply(event, |model| model.upgrade_ended(end))
    }

    /// A link is lost, comes back, or is replaced.
    pub(crate) fn detach_or_attach(&mut self) -> Check {
        let Some(id) = self.some_link(|link| !link.is_hung_up) else {
            return Ok(());
        };
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        if link.is_closed || link.socket.is_none() || self.random.percent(20) {
            return self.attach(id);
        }
        self.note(|| format!("{id:?} loses its link"));
        self.stats.parked += 1;
        if let Some(link) = self.links.get_mut(&id) {
            link.socket = None;
            link.large = None;
        }
        self.apply(Event::Detached { peer: id }, |model| {
            model.parked(id, true);
            Ok(())
        })
    }

    /// A peer has a link again, or another one; or it is gone, and the link is for nobody.
    pub(crate) fn attach(&mut self, id: PeerId) -> Check {
        let file = self.bus.files.create();
        let socket = self.bus.files.open(file);
        self.note(|| format!("{id:?} has a link, {socket:?}"));
        if let Some(link) = self.links.get_mut(&id).filter(|link| !link.is_closed) {
            link.socket = Some(socket);
        }
        let waits = self.bus.broker.send_queue(id).filter(|queue| !queue.is_empty());
        if let Some(upto) = waits.map(bus_wire::SendQueue::end)
            && self.bus.saboteur.loses_parked()
        {
            self.apply(Event::Sent { peer: id, upto }, |_| Ok(()))?;
        }
        self.apply(Event::Attached { peer: id, socket }, |model| {
            model.parked(id, false);
            Ok(())
        })?;
        if let Some(link) = self.links.get_mut(&id).filter(|link| !link.is_closed) {
            link.large = None;
            link.continue_large(&self.bus.broker);
        }
        Ok(())
    }
}
