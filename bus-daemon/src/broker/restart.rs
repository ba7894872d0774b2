//! What `org.busdaemon.Restart1` tells of the daemon's own life, and who waits for the end of an upgrade.

use super::event::{PeerId, Start};
use super::{Action, Broker};

/// The state's version: what `StateVersion` answers, and the `V1` of the frozen structs.
pub(crate) const STATE_VERSION: u32 = 1;

const UPGRADE_REFUSED: &str = "org.busdaemon.Error.UpgradeRefused";
const QUARANTINED: &str = "org.busdaemon.Error.Quarantined";
const UPGRADE_ROLLED_BACK: &str = "org.busdaemon.Error.UpgradeRolledBack";

/// The restarts that the bus has lived through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Restart {
    /// 1 at a clean start, one more with each upgrade.
    pub(crate) generation: u32,
    /// Deaths of the worker since the clean start.
    pub(crate) recoveries: u32,
    pub(crate) worker_pid: u32,
    pub(crate) last: LastRestart,
    /// Whether an upgrade is under way, by a call or by a signal.
    pub(crate) is_upgrading: bool,
    /// Who called Upgrade and waits for the answer, with the serial of the call.
    pub(crate) upgrade_caller: Option<(PeerId, u32)>,
    /// Peers that were lost since the last restart was complete.
    pub(crate) dropped_in_restore: u32,
}

/// The property `LastRestart`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LastRestart {
    /// `""`, `"upgrade"`, `"crash"` or `"fdstore"`.
    pub(crate) cause: String,
    /// In microseconds.
    pub(crate) pause: u32,
    /// Peers that stayed connected.
    pub(crate) carried: u32,
    /// Peers that could not be restored.
    pub(crate) dropped: u32,
    /// Messages that were skipped because they killed the worker.
    pub(crate) quarantined: u32,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            generation: 1,
            recoveries: 0,
            worker_pid: 0,
            last: LastRestart::default(),
            is_upgrading: false,
            upgrade_caller: None,
            dropped_in_restore: 0,
        }
    }
}

impl Broker {
    /// `Upgrade`: notes the caller, who is answered by whoever serves next, and asks the runtime. `serial` is that of
    /// the call, 0 if it wants no answer. False if an upgrade is under way already.
    pub(crate) fn request_upgrade(&mut self, caller: PeerId, serial: u32, binary: String) -> bool {
        if self.restart.is_upgrading {
            return false;
        }
        self.restart.is_upgrading = true;
        self.restart.upgrade_caller = (serial != 0).then_some((caller, serial));
        self.actions.push_back(Action::Upgrade { binary });
        true
    }

    /// The same by a signal: nobody is answered.
    pub(super) fn upgrade_requested(&mut self) {
        if self.restart.is_upgrading {
            self.warn(None, "an upgrade is under way already".to_owned());
            return;
        }
        self.restart.is_upgrading = true;
        self.actions.push_back(Action::Upgrade {
            binary: String::new(),
        });
    }

    pub(super) fn upgrade_refused(&mut self, reason: &str) {
        if let Some((caller, serial)) = self.take_upgrade_caller() {
            self.send_late_error(caller, serial, UPGRADE_REFUSED, reason);
        }
    }

    pub(super) fn serving(&mut self, worker_pid: u32, start: Start) {
        self.restart.worker_pid = worker_pid;
        let dropped = std::mem::take(&mut self.restart.dropped_in_restore);
        let last = |cause: &str, pause: u32, carried: usize| LastRestart {
            cause: cause.to_owned(),
            pause,
            carried: carried as u32,
            dropped,
            quarantined: 0,
        };
        match start {
            Start::Clean => {}
            Start::Upgraded { pause } => {
                self.restart.generation = self.restart.generation.saturating_add(1);
                self.restart.last = last("upgrade", pause, self.peers.len());
                let generation = self.restart.generation;
                if let Some((caller, serial)) = self.take_upgrade_caller() {
                    self.send_late_reply(caller, serial, |w| {
                        w.u32(generation);
                    });
                }
            }
            Start::RolledBack { reason, pause } => {
                self.restart.last = last("upgrade", pause, self.peers.len());
                if let Some((caller, serial)) = self.take_upgrade_caller() {
                    self.send_late_error(caller, serial, UPGRADE_ROLLED_BACK, &reason);
                }
            }
            Start::Recovered { pause, quarantined } => {
                self.restart.recoveries = self.restart.recoveries.saturating_add(1);
                self.restart.last = LastRestart {
                    quarantined,
                    ..last("crash", pause, self.peers.len())
                };
            }
        }
    }

    /// What a peer sent killed the worker and is left out. If it began with a call, that is answered.
    pub(super) fn quarantined(&mut self, id: PeerId, begins_with: &[u8]) {
        let is_between = self
            .peers
            .get(id)
            .is_some_and(|peer| peer.is_active() && peer.framer.partial_bytes() == 0);
        // Only the fixed part of the header is looked at, by hand: who knows what of the rest is deadly.
        if let (true, &[endian, 1, flags, 1, _, _, _, _, a, b, c, d, ..]) = (is_between, begins_with)
            && flags & 1 == 0
        {
            let serial = match endian {
                b'l' => u32::from_le_bytes([a, b, c, d]),
                _ => u32::from_be_bytes([a, b, c, d]),
            };
            if serial != 0 {
                self.send_late_error(id, serial, QUARANTINED, "This message ended the message bus's worker process; it is kept for analysis, and you are disconnected");
            }
        }
    }

    /// The upgrade is over, one way or the other.
    fn take_upgrade_caller(&mut self) -> Option<(PeerId, u32)> {
        self.restart.is_upgrading = false;
        self.restart.upgrade_caller.take()
    }
}
