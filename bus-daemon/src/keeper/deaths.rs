//! What deaths of the worker say: whether an event kills it, and whether it makes progress between them.

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::journal::Remains;
use crate::runtime::clock::Nanos;

/// Deaths by its own fault without an event applied in between, after which the daemon gives up.
const FUTILE: u32 = 32;
/// How long a new binary is on probation.
pub(crate) const PROBATION: Nanos = Nanos(60_000_000_000);
/// Deaths by its own fault that it may not have in that time.
const PROBATION_FAULTS: u32 = 3;

/// The deaths since the worker last made progress.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    /// Events noted when it died last.
    records: u64,
    /// The event being applied when it died last.
    event: Option<u64>,
    /// Deaths at that event.
    at_event: u32,
    /// Those of them by its own fault.
    faults_at_event: u32,
    /// Deaths by its own fault since an event was last noted.
    futile: u32,
    /// Deaths by its own fault since this process image began.
    faults: u32,
}

impl Deaths {
    /// Whether a binary that began at `started` is on probation and has failed: three deaths by its own fault in its first
    /// minute.
    pub(crate) fn are_too_many(&self, now: Nanos, started: Nanos) -> bool {
        self.faults >= PROBATION_FAULTS && now <= started + PROBATION
    }

    /// Takes note of a death. The event that is not to be applied again: the worker has died there twice by its own
    /// fault, or three times in all.
    pub(crate) fn note(&mut self, status: WaitStatus, remains: &Remains) -> Result<Option<u64>, String> {
        let fault = is_own_fault(status);
        let (records, event) = (remains.records(), remains.applying());
        if event != self.event || event.is_none() {
            (self.at_event, self.faults_at_event) = (0, 0);
        }
        if records != self.records {
            self.futile = 0;
        }
        (self.records, self.event) = (records, event);
        self.at_event += 1;
        if fault {
            self.faults_at_event += 1;
            self.futile += 1;
            self.faults += 1;
        }
        if self.futile > FUTILE {
            return Err("the worker dies again and again without any progress".into());
        }
        Ok(event.filter(|_| self.faults_at_event >= 2 || self.at_event >= 3))
    }
}

/// Whether a process ended by its own fault: nobody outside sends these signals.
pub(crate) fn is_own_fault(status: WaitStatus) -> bool {
    const FAULTS: [Signal; 7] = [
        Signal::SIGSEGV,
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGSYS,
        Signal::SIGTRAP,
    ];
    matches!(status, WaitStatus::Exited(..))
        || matches!(status, WaitStatus::Signaled(_, signal, _) if FAULTS.contains(&signal))
}
