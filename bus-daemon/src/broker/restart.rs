//! What `org.busdaemon.Restart1` tells of the daemon's own life, and who waits for the end of an upgrade.

use super::agenda::Agenda;
use super::errand::Errand;
use super::event::{PeerId, Start};
use super::{Action, Broker};

/// The state's version: what `StateVersion` answers.
pub(crate) const STATE_VERSION: u16 = if cfg!(feature = "next-version") {
    CURRENT_VERSION + 1
} else {
    CURRENT_VERSION
};

/// The newest that is in use.
const CURRENT_VERSION: u16 = 5;

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
    pub(crate) upgrade: Upgrade,
    /// Peers that were lost since the last restart was complete.
    pub(crate) dropped_in_restore: u32,
}

/// How far an upgrade has come. The caller is whoever called Upgrade and waits for the answer, with the serial of the
/// call; there is none after a signal.
///
/// ```text
/// None ──a call, a signal──> Trying ──the binary can take over──> HandingOver ──whoever serves next──> None
///   ^────────────────it cannot──┘                                      │
///   ^──────────────────────────────────the state cannot be handed over─┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upgrade {
    None,
    /// A child of the keeper tries the binary.
    Trying {
        /// The errand's number.
        errand: u64,
        /// Path of the binary; empty = the path this one was started from.
        binary: String,
        caller: Option<(PeerId, u32)>,
    },
    /// The worker hands its state over, and does nothing else any more.
    HandingOver {
        caller: Option<(PeerId, u32)>,
    },
}

impl Upgrade {
    /// It is over, one way or the other: who waits for the answer.
    fn end(&mut self) -> Option<(PeerId, u32)> {
        match std::mem::replace(self, Self::None) {
            Self::None => None,
            Self::Trying { caller, .. } | Self::HandingOver { caller } => caller,
        }
    }

    pub(super) fn forget_caller(&mut self, id: PeerId) {
        match self {
            Self::None => {}
            Self::Trying { caller, .. } | Self::HandingOver { caller } => {
                caller.take_if(|(peer, _)| *peer == id);
            }
        }
    }
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
            upgrade: Upgrade::None,
            dropped_in_restore: 0,
        }
    }
}

impl Broker {
    /// `Upgrade`: the caller is answered by whoever serves next. `serial` is that of the call, 0 if it wants no answer.
    /// False if an upgrade is under way already.
    pub(crate) fn call_upgrade(&mut self, caller: PeerId, serial: u32, binary: String) -> bool {
        self.begin_upgrade(binary, (serial != 0).then_some((caller, serial)))
    }

    /// The same by a signal: nobody is answered.
    pub(super) fn upgrade_requested(&mut self) {
        if !self.begin_upgrade(String::new(), None) {
            self.warn(None, "an upgrade is under way already".to_owned());
        }
    }

    fn begin_upgrade(&mut self, binary: String, caller: Option<(PeerId, u32)>) -> bool {
        if self.restart.upgrade != Upgrade::None {
            return false;
        }
        let errand = self.next_errand;
        self.next_errand += 1;
        self.outgoing.ask(Action::RunErrand {
            id: errand,
            errand: Errand::TryBinary {
                binary: binary.clone(),
            },
        });
        self.restart.upgrade = Upgrade::Trying {
            errand,
            binary,
            caller,
        };
        true
    }

    /// Whether this errand is the trial under way.
    pub(super) fn is_trial(&self, errand: u64) -> bool {
        matches!(&self.restart.upgrade, Upgrade::Trying { errand: trial, .. } if *trial == errand)
    }

    /// The trial of a binary has ended.
    pub(super) fn binary_tried(&mut self, errand: u64, verdict: Result<(), String>) {
        match &mut self.restart.upgrade {
            Upgrade::Trying {
                errand: under_way,
                caller,
                ..
            } if *under_way == errand => {
                let caller = caller.take();
                self.restart.upgrade = Upgrade::HandingOver { caller };
                match verdict {
                    Ok(()) => self.outgoing.ask(Action::HandOver),
                    Err(reason) => self.upgrade_failed(&reason),
                }
            }
            // Of an upgrade that is over.
            Upgrade::None | Upgrade::Trying { .. } | Upgrade::HandingOver { .. } => {}
        }
    }

    pub(super) fn upgrade_failed(&mut self, reason: &str) {
        if self.restart.upgrade != Upgrade::None {
            self.warn(None, format!("upgrade refused: {reason}"));
        }
        if let Some((caller, serial)) = self.restart.upgrade.end() {
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
                self.restart.last = last("upgrade", pause, self.roster.len());
                let generation = self.restart.generation;
                if let Some((caller, serial)) = self.restart.upgrade.end() {
                    self.send_late_reply(caller, serial, |w| {
                        w.u32(generation);
                    });
                }
            }
            Start::RolledBack { reason, pause } => {
                self.restart.last = last("upgrade", pause, self.roster.len());
                if let Some((caller, serial)) = self.restart.upgrade.end() {
                    self.send_late_error(caller, serial, UPGRADE_ROLLED_BACK, &reason);
                }
            }
            Start::Recovered { pause, quarantined } => {
                self.restart.recoveries = self.restart.recoveries.saturating_add(1);
                self.restart.last = LastRestart {
                    quarantined,
                    ..last("crash", pause, self.roster.len())
                };
            }
        }
    }

    /// What a peer sent killed the worker and is left out. If it began with a call, that is answered.
    pub(super) fn quarantined(&mut self, id: PeerId, begins_with: &[u8]) {
        let is_between = self.roster.get(id).is_some_and(|peer| {
            let is_whole = matches!(peer.agenda, Agenda::Input);
            peer.is_active() && (is_whole || peer.framer.partial_bytes() == 0)
        });
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
}
