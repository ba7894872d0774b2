//! Reading the configuration again: requests that come close together are one reading, and whoever asked is answered by a
//! reading that began after the request.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_wire::Fd;

use super::connect::max_message_size;
use super::deadline::Deadline;
use super::errand::{ConfigRefusal, Errand};
use super::event::{Millis, PeerId};
use super::{Action, Broker, System};
use crate::config::Config;

/// A reading begins when nobody has asked for so long, in milliseconds, ...
const IDLE: u64 = 250;
/// ... or when somebody has waited for so long.
const LONGEST: u64 = 2_000;

/// So many calls of one peer may wait, whatever `max_replies_per_connection` says: each is four bytes, and they are all answered
/// in one event.
const MOST_WAITING: usize = 4096;

/// Callers of ReloadConfig, with the serials of their calls.
pub(super) type Callers = BTreeMap<PeerId, Vec<u32>>;

/// Who waits for a reading.
///
/// ```text
/// idle ──a request──> wanted ──nobody asks for 250 ms, or 2 s have passed──> reading ──it ends──> idle
///                       ^──────────────a request during the reading──────────────┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reload {
    wanted: Option<Wanted>,
    reading: Option<Reading>,
}

/// A reading that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) first: Millis,
    pub(super) last: Millis,
    pub(super) callers: Callers,
}

/// A reading under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) errand: u64,
    pub(super) callers: Callers,
}

impl Wanted {
    /// When the reading is to begin.
    fn due(&self) -> Millis {
        Millis((self.last.0 + IDLE).min(self.first.0 + LONGEST))
    }
}

impl Reload {
    pub(super) fn new(wanted: Option<Wanted>, reading: Option<Reading>) -> Self {
        Self { wanted, reading }
    }

    pub(super) fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    pub(super) fn reading(&self) -> Option<&Reading> {
        self.reading.as_ref()
    }

    /// When the next reading is to begin, if none is under way.
    pub(super) fn due(&self) -> Option<Millis> {
        self.wanted
            .as_ref()
            .filter(|_| self.reading.is_none())
            .map(Wanted::due)
    }

    /// How many calls of this peer wait.
    fn waiting(&self, caller: PeerId) -> usize {
        let wanted = self.wanted.as_ref().map(|wanted| &wanted.callers);
        let reading = self.reading.as_ref().map(|reading| &reading.callers);
        let callers = wanted.into_iter().chain(reading);
        callers
            .filter_map(|callers| callers.get(&caller))
            .map(Vec::len)
            .sum()
    }

    fn request(&mut self, now: Millis, caller: Option<(PeerId, u32)>) {
        let wanted = self.wanted.get_or_insert_with(|| Wanted {
            first: now,
            last: now,
            callers: Callers::new(),
        });
        wanted.last = now;
        if let Some((peer, serial)) = caller {
            wanted.callers.entry(peer).or_default().push(serial);
        }
    }

    /// What was wanted is being read now.
    fn begin(&mut self, errand: u64) -> bool {
        let Some(wanted) = self.wanted.take() else {
            return false;
        };
        self.reading = Some(Reading {
            errand,
            callers: wanted.callers,
        });
        true
    }

    /// The errand has ended: who waits for it. `None`: it is not the one under way.
    fn end(&mut self, errand: u64) -> Option<Callers> {
        let reading = self.reading.take_if(|reading| reading.errand == errand)?;
        Some(reading.callers)
    }

    pub(super) fn forget(&mut self, caller: PeerId) {
        if let Some(wanted) = &mut self.wanted {
            wanted.callers.remove(&caller);
        }
        if let Some(reading) = &mut self.reading {
            reading.callers.remove(&caller);
        }
    }
}

impl Broker {
    /// ReloadConfig: the caller is answered when a reading that begins after this call has ended. `serial` is that of the
    /// call, 0 if it wants no answer. False: too many calls of this peer wait already.
    pub(crate) fn call_reload(&mut self, caller: PeerId, serial: u32) -> bool {
        if self.reload.waiting(caller) >= MOST_WAITING {
            return false;
        }
        self.request_reload((serial != 0).then_some((caller, serial)));
        true
    }

    /// Somebody wants the configuration to be read again.
    pub(super) fn request_reload(&mut self, caller: Option<(PeerId, u32)>) {
        let now = self.deadlines.now();
        let before = self.reload.due();
        self.reload.request(now, caller);
        self.move_reload(before);
    }

    /// The deadline of the next reading may be another.
    fn move_reload(&mut self, before: Option<Millis>) {
        let after = self.reload.due();
        if before != after {
            self.deadlines.change(Deadline::Reload, before, after);
        }
    }

    /// The time of the next reading has come.
    pub(super) fn begin_reload(&mut self) {
        let errand = self.next_errand;
        if self.reload.begin(errand) {
            self.next_errand += 1;
            self.outgoing.ask(Action::RunErrand {
                id: errand,
                errand: Errand::LoadConfiguration,
            });
        }
    }

    /// A reading has ended.
    pub(super) fn configuration_read(
        &mut self,
        errand: u64,
        result: Result<Arc<Config>, ConfigRefusal>,
        payload: Option<Fd>,
        system: &mut dyn System,
    ) {
        let before = self.reload.due();
        let Some(callers) = self.reload.end(errand) else {
            return self.close_fds(payload);
        };
        self.move_reload(before);
        match result {
            Ok(config) => {
                self.take_config(config, payload, system);
                for (caller, serials) in callers {
                    for serial in serials {
                        self.send_late_reply(caller, serial, |_| {});
                    }
                }
            }
            Err(ConfigRefusal { error, text }) => {
                self.close_fds(payload);
                self.warn(None, format!("the configuration in force stays: {text}"));
                for (caller, serials) in callers {
                    for serial in serials {
                        self.send_late_error(caller, serial, &error, &text);
                    }
                }
            }
        }
    }

    /// Another configuration is in force. `source` is a memfd that it is kept in.
    fn take_config(&mut self, config: Arc<Config>, source: Option<Fd>, system: &mut dyn System) {
        let services_changed = config.services != self.config.services;
        let fixed = self.config.fixed_differences(&config);
        if !fixed.is_empty() {
            let elements = fixed.join(", ");
            let text = format!(
                "a reload does not change {elements}: that takes effect when the bus is started anew"
            );
            self.warn(None, text);
        }
        let limits_changed = config.limits != self.config.limits;
        self.take_policy(config.policy.clone(), system);
        self.config = config;
        self.is_config_changed = true;
        let old = std::mem::replace(&mut self.config_source, source);
        self.close_fds(old);
        if limits_changed {
            self.take_limits();
        }
        if services_changed {
            // Nobody's doing: what the files say was changed.
            self.broadcast_driver_signal("ActivatableServicesChanged", None, |_| {});
        }
    }
    /// Other limits are in force. Where they are the same, as after most changes of a configuration, no peer is touched: all
    /// that are have to be in the next checkpoint.
    fn take_limits(&mut self) {
        let max_message_size = max_message_size(&self.config);
        let ids: Vec<PeerId> = self.peer_ids().collect();
        for id in ids {
            if let Some(peer) = self.roster.get_mut(id) {
                peer.framer.set_max_message_size(max_message_size);
            }
            self.regulate(id);
        }
        self.recount_crowd();
        self.regulate_accepting();
    }
}
