//! What takes time: reading the configuration again, and upgrades. Who asked is answered, and once.

use std::collections::BTreeMap;

use bus_daemon::broker::{Errand, PeerId};
use bus_daemon::config::Limits;

use super::{Check, Model, OWN_UID, wrong};
use crate::letter::{Letter, Value};

/// A reading begins when nobody has asked for so long, or somebody has waited for so long.
const IDLE: u64 = 250;
const LONGEST: u64 = 2_000;

/// Who waits for a reading: those of one peer in the order of their calls.
pub(super) type Callers = BTreeMap<PeerId, Vec<u32>>;

/// Requests to read the configuration.
#[derive(Debug, Default)]
pub(super) struct Reload {
    /// When the first and when the last of those was made that the next reading is for.
    wanted: Option<(u64, u64)>,
    waiting: Callers,
    /// The errand under way.
    reading: Option<u64>,
    reading_for: Callers,
}

/// How far an upgrade has come, with who is answered.
#[derive(Debug, Default)]
pub(super) enum Upgrade {
    #[default]
    None,
    Trying(u64, Option<(PeerId, u32)>),
    HandingOver(Option<(PeerId, u32)>),
}

/// How an upgrade ends, once the state is to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The new one serves.
    Serves,
    /// The old one serves again.
    RolledBack,
    /// It did not even begin.
    Failed,
}

impl Model {
    /// When a reading must begin.
    pub(crate) fn reload_due(&self) -> Option<u64> {
        let (first, last) = self.reload.wanted.filter(|_| self.reload.reading.is_none())?;
        Some((last + IDLE).min(first + LONGEST))
    }

    /// ReloadConfig.
    pub(super) fn call_reload(&mut self, id: PeerId, call: &Letter) -> Check {
        let count = |callers: &Callers| callers.get(&id).map_or(0, Vec::len) as u64;
        let waiting = count(&self.reload.waiting) + count(&self.reload.reading_for);
        if waiting >= self.limits.max_replies_per_connection.max(4096) {
            return self.fail(id, call, "LimitsExceeded");
        }
        if call.expects_reply() {
            self.reload.waiting.entry(id).or_default().push(call.serial);
        }
        self.reload_requested();
        Ok(())
    }

    pub(crate) fn reload_requested(&mut self) {
        let first = self.reload.wanted.map_or(self.now, |(first, _)| first);
        self.reload.wanted = Some((first, self.now));
    }

    pub(super) fn begin_reading(&mut self) -> Check {
        let errand = self.ask(&Errand::LoadConfiguration)?;
        self.reload.wanted = None;
        self.reload.reading = Some(errand);
        self.reload.reading_for = std::mem::take(&mut self.reload.waiting);
        Ok(())
    }

    /// A reading has ended (`None`: it was refused).
    pub(crate) fn reading_ended(&mut self, errand: u64, limits: Option<Limits>) -> Check {
        if self.reload.reading != Some(errand) {
            return Ok(());
        }
        self.reload.reading = None;
        let is_loaded = limits.is_some();
        if let Some(limits) = limits {
            self.limits = limits;
            self.give_slots();
        }
        for (caller, serials) in std::mem::take(&mut self.reload.reading_for) {
            for serial in serials {
                let answer = if is_loaded {
                    Letter::driver_reply(serial, Vec::new())
                } else {
                    Letter::driver_error(serial, "Failed")
                };
                self.say(caller, answer)?;
            }
        }
        Ok(())
    }

    /// Upgrade.
    pub(super) fn call_upgrade(&mut self, id: PeerId, call: &Letter, binary: &str) -> Check {
        if self.peers.get(&id).map(|peer| peer.uid) != Some(OWN_UID) {
            return self.fail(id, call, "AccessDenied");
        }
        if !matches!(self.upgrade, Upgrade::None) {
            if call.expects_reply() {
                self.say(id, of_the_bus(call.serial, "UpgradeInProgress"))?;
            }
            return Ok(());
        }
        self.try_binary(binary, call.expects_reply().then_some((id, call.serial)))
    }

    pub(crate) fn upgrade_requested(&mut self) -> Check {
        match self.upgrade {
            Upgrade::None => self.try_binary("", None),
            Upgrade::Trying(..) | Upgrade::HandingOver(_) => Ok(()),
        }
    }

    fn try_binary(&mut self, binary: &str, caller: Option<(PeerId, u32)>) -> Check {
        let binary = binary.to_owned();
        let errand = self.ask(&Errand::TryBinary { binary })?;
        self.upgrade = Upgrade::Trying(errand, caller);
        Ok(())
    }

    /// A trial has ended, well or not.
    pub(crate) fn trial_ended(&mut self, errand: u64, is_good: bool) -> Check {
        match self.upgrade {
            Upgrade::Trying(trial, caller) if trial == errand => {
                self.upgrade = Upgrade::HandingOver(caller);
                if !is_good {
                    return self.upgrade_ended(End::Failed);
                }
                if self.seen.hand_overs == 0 {
                    return wrong("the state is not to be handed over");
                }
                self.seen.hand_overs -= 1;
                Ok(())
            }
            Upgrade::None | Upgrade::Trying(..) | Upgrade::HandingOver(_) => Ok(()),
        }
    }

    /// An upgrade is over.
    pub(crate) fn upgrade_ended(&mut self, end: End) -> Check {
        self.generation += u32::from(end == End::Serves);
        let (Upgrade::Trying(_, caller) | Upgrade::HandingOver(caller)) = std::mem::take(&mut self.upgrade)
        else {
            return Ok(());
        };
        let Some((caller, serial)) = caller else {
            return Ok(());
        };
        let answer = match end {
            End::Serves => Letter::driver_reply(serial, vec![Value::U32(self.generation)]),
            End::RolledBack => of_the_bus(serial, "UpgradeRolledBack"),
            End::Failed => of_the_bus(serial, "UpgradeRefused"),
        };
        self.say(caller, answer)
    }

    /// Whether anything is under way that somebody may wait for.
    pub(crate) fn has_errands(&self) -> bool {
        let is_quiet = matches!(self.upgrade, Upgrade::None);
        !is_quiet || self.reload.wanted.is_some() || self.reload.reading.is_some()
    }

    /// Whether somebody is answered when this errand has ended.
    pub(crate) fn is_awaited(&self, errand: u64) -> bool {
        let is_trial = matches!(self.upgrade, Upgrade::Trying(trial, Some(_)) if trial == errand);
        is_trial || (self.reload.reading == Some(errand) && !self.reload.reading_for.is_empty())
    }

    /// Whether somebody is answered when the upgrade is over.
    pub(crate) fn is_upgrade_awaited(&self) -> bool {
        matches!(self.upgrade, Upgrade::HandingOver(Some(_)))
    }

    /// Nobody is answered any more who waits for an errand.
    pub(super) fn forget_caller(&mut self, id: PeerId) {
        self.reload.waiting.remove(&id);
        self.reload.reading_for.remove(&id);
        match &mut self.upgrade {
            Upgrade::None => {}
            Upgrade::Trying(_, caller) | Upgrade::HandingOver(caller) => {
                caller.take_if(|(peer, _)| *peer == id);
            }
        }
    }

    /// The next errand that the broker asked for must be this one.
    fn ask(&mut self, errand: &Errand) -> Check<u64> {
        let number = self.next_errand;
        self.next_errand += 1;
        match self.seen.errands.pop_front() {
            Some((found, what)) if found == number && what == *errand => Ok(number),
            other => wrong(format!(
                "errand {number} must be {errand:?}, and what is asked for is {other:?}"
            )),
        }
    }
}

/// An error that only this bus has.
fn of_the_bus(serial: u32, name: &str) -> Letter {
    Letter {
        error: Some(format!("org.busdaemon.Error.{name}")),
        ..Letter::driver_error(serial, name)
    }
}
