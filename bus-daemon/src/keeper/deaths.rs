//! What deaths of the worker say: whether received input kills it, whether it makes progress, whether its binary is bad.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::error::KeeperError;
use crate::journal::Remains;
use crate::os::clock::Nanos;

/// Deaths by its own fault without an event applied in between, after which the daemon gives up.
const FUTILE: u32 = 32;
/// Records that a worker notes before it serves anybody: the time, that it serves, what its predecessor left undone.
const BEGINNING: u64 = 4;
/// Deaths by its own fault at no received unit after which the next worker is started later and later.
const IN_A_ROW: u32 = 8;
/// How late at most, in milliseconds; deaths that are further apart are not in a row.
const LONGEST_DELAY: u64 = 1000;
/// Deaths by its own fault that a binary may not have while it is on probation.
const PROBATION_FAULTS: u32 = 3;
/// Deaths of one kind at the same received unit, after which it is left out.
const EVIDENCE: u32 = 2;

/// Whose doing a death is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The worker's own: a signal that nobody outside sends, a panic, an exit.
    OwnFault,
    /// The kernel killed it for want of memory in its control group.
    OutOfMemory,
    /// It used up time that others' state costs (the watchdog in a unit that is not input, a limit of CPU time).
    OutOfTime,
    /// Somebody else's.
    Outside,
}

impl Cause {
    /// `out_of_memory`: the control group has lost a process for want of memory since the worker was started.
    pub(crate) fn of(status: WaitStatus, out_of_memory: bool) -> Self {
        if matches!(status, WaitStatus::Exited(..)) {
            return Self::OwnFault;
        }
        let WaitStatus::Signaled(_, signal, _) = status else {
            return Self::Outside;
        };
        const FAULTS: [Signal; 7] = [
            Signal::SIGSEGV,
            Signal::SIGABRT,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGSYS,
            Signal::SIGTRAP,
        ];
        if FAULTS.contains(&signal) {
            Self::OwnFault
        } else if signal == Signal::SIGXCPU {
            Self::OutOfTime
        } else if signal == Signal::SIGKILL && out_of_memory {
            Self::OutOfMemory
        } else {
            Self::Outside
        }
    }
}

/// The deaths of this process image's workers.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    /// Records noted when it died last.
    records: u64,
    suspicion: Suspicion,
    /// Deaths by its own fault since an event was last noted.
    futile: u32,
    /// Deaths by its own fault at no received unit, in a row.
    in_a_row: u32,
    /// Whether the last one delays the next worker.
    is_delaying: bool,
    /// The received unit that is not to be applied again.
    left_out: Option<u64>,
    /// When it died last by its own fault.
    at: Nanos,
    /// Deaths by its own fault since this process image began.
    faults: u32,
    /// Workers that died before they had come to serve, in a row.
    cut_short: u32,
}

/// The evidence against one received unit.
#[derive(Debug, Default)]
struct Suspicion {
    unit: Option<u64>,
    faults: u32,
    out_of_memory: u32,
}

impl Deaths {
    /// Whether a binary that is on probation has failed.
    pub(crate) fn are_too_many(&self) -> bool {
        self.faults >= PROBATION_FAULTS
    }

    /// How long to wait before the next worker: one that dies again and again leaves the machine to others meanwhile.
    pub(crate) fn delay(&self) -> Duration {
        match self.in_a_row.saturating_sub(IN_A_ROW) {
            over @ 1.. if self.is_delaying => Duration::from_millis((1 << over.min(10)).min(LONGEST_DELAY)),
            _ => Duration::ZERO,
        }
    }

    /// Takes note of a death. The received unit that is not to be applied again: the worker has died there twice by its
    /// own fault, or twice of it for want of memory.
    pub(crate) fn note(
        &mut self,
        cause: Cause,
        now: Nanos,
        remains: &Remains,
    ) -> Result<Option<u64>, KeeperError> {
        let guilty = self.note_at(cause, now, remains.records(), remains.suspect())?;
        Ok(self.leave_out(guilty, |unit| remains.is_replayed(unit)))
    }

    /// Takes note of whether the dead worker was still recovering.
    pub(crate) fn note_recovery(&mut self, is_cut_short: bool) {
        self.cut_short = if is_cut_short { self.cut_short + 1 } else { 0 };
    }

    /// Recoveries that were cut short, in a row, up to now.
    pub(crate) fn cut_short(&self) -> u32 {
        self.cut_short
    }

    /// What is left out stays so until a checkpoint passes it, however often the workers die before that.
    fn leave_out(&mut self, unit: Option<u64>, is_replayed: impl Fn(u64) -> bool) -> Option<u64> {
        self.left_out = unit.or(self.left_out.filter(|unit| is_replayed(*unit)));
        self.left_out
    }

    /// The next worker begins with a journal of its own, and units are counted anew.
    pub(crate) fn begin_journal(&mut self) {
        (self.suspicion, self.left_out) = (Suspicion::default(), None);
    }

    fn note_at(
        &mut self,
        cause: Cause,
        now: Nanos,
        records: u64,
        unit: Option<u64>,
    ) -> Result<Option<u64>, KeeperError> {
        if records.abs_diff(self.records) > BEGINNING {
            self.futile = 0;
        }
        self.records = records;
        self.is_delaying = cause == Cause::OwnFault;
        if cause == Cause::OwnFault {
            if unit.is_some() || now > self.at + Nanos(2 * LONGEST_DELAY * 1_000_000) {
                self.in_a_row = 0;
            }
            self.at = now;
            self.futile += 1;
            self.faults += 1;
            self.in_a_row += u32::from(unit.is_none());
        }
        if self.futile > FUTILE {
            return Err(KeeperError::Futile);
        }
        Ok(unit.filter(|unit| self.suspicion.proves(*unit, cause)))
    }
}

impl Suspicion {
    /// Whether the unit is guilty, now that the worker has died at it.
    fn proves(&mut self, unit: u64, cause: Cause) -> bool {
        let is_evidence = matches!(cause, Cause::OwnFault | Cause::OutOfMemory);
        if is_evidence && self.unit != Some(unit) {
            *self = Self {
                unit: Some(unit),
                ..Self::default()
            };
        }
        match cause {
            Cause::OwnFault => {
                self.faults += 1;
                self.faults >= EVIDENCE
            }
            Cause::OutOfMemory => {
                self.out_of_memory += 1;
                self.out_of_memory >= EVIDENCE
            }
            Cause::OutOfTime | Cause::Outside => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Nanos {
        Nanos(milliseconds * 1_000_000)
    }

    /// The verdicts of deaths, one after the other, at one unit each.
    #[track_caller]
    fn check(deaths: &[(Cause, Option<u64>)], guilty: &[Option<u64>]) {
        let mut noted = Deaths::default();
        let verdicts = (0..).zip(deaths).map(|(index, (cause, unit))| {
            // Each makes progress.
            noted.note_at(*cause, at(index), 10 * index, *unit).unwrap()
        });
        assert_eq!(verdicts.collect::<Vec<_>>(), guilty, "{deaths:?}");
    }

    #[test]
    fn a_unit_is_guilty_at_the_second_death_by_own_fault_or_the_second_of_memory() {
        use Cause::{OutOfMemory, OutOfTime, Outside, OwnFault};
        check(&[(OwnFault, Some(9)), (OwnFault, Some(9))], &[None, Some(9)]);
        check(&[(OwnFault, Some(9)), (OwnFault, Some(11))], &[None, None]);
        check(
            &[(OutOfMemory, Some(9)), (OutOfMemory, Some(9))],
            &[None, Some(9)],
        );
        check(&[(OutOfMemory, Some(9)), (OwnFault, Some(9))], &[None, None]);
        check(&[(OwnFault, None), (OwnFault, None)], &[None, None]);
        check(&[(OutOfTime, Some(9)), (OutOfTime, Some(9))], &[None, None]);
        // A kill in between, anywhere, takes nothing away, and a thousand prove nothing.
        check(
            &[
                (OwnFault, Some(9)),
                (Outside, None),
                (Outside, Some(4)),
                (OwnFault, Some(9)),
            ],
            &[None, None, None, Some(9)],
        );
        check(&[(Outside, Some(9)); 1000], &[None; 1000]);
    }

    #[test]
    fn a_kill_is_for_want_of_memory_only_if_the_control_group_says_so() {
        let pid = nix::unistd::Pid::from_raw(1);
        let by = |signal| WaitStatus::Signaled(pid, signal, false);
        assert_eq!(Cause::of(by(Signal::SIGKILL), false), Cause::Outside);
        assert_eq!(Cause::of(by(Signal::SIGKILL), true), Cause::OutOfMemory);
        assert_eq!(Cause::of(by(Signal::SIGTERM), true), Cause::Outside);
        assert_eq!(Cause::of(by(Signal::SIGXCPU), false), Cause::OutOfTime);
        assert_eq!(Cause::of(by(Signal::SIGABRT), false), Cause::OwnFault);
        assert_eq!(Cause::of(WaitStatus::Exited(pid, 0), false), Cause::OwnFault);
    }

    #[test]
    fn what_is_left_out_stays_so_until_a_checkpoint_passes_it() {
        let mut deaths = Deaths::default();
        assert_eq!(deaths.leave_out(None, |_| true), None);
        assert_eq!(deaths.leave_out(Some(9), |_| true), Some(9));
        assert_eq!(deaths.leave_out(None, |unit| unit == 9), Some(9));
        assert_eq!(deaths.leave_out(Some(12), |_| true), Some(12));
        assert_eq!(deaths.leave_out(None, |_| false), None);
        deaths.leave_out(Some(3), |_| true);
        deaths.begin_journal();
        assert_eq!(deaths.leave_out(None, |_| true), None);
    }

    #[test]
    fn only_deaths_by_its_own_fault_without_progress_end_the_daemon() {
        let mut deaths = Deaths::default();
        for death in 0..10_000 {
            for cause in [Cause::Outside, Cause::OutOfTime, Cause::OutOfMemory] {
                assert_eq!(deaths.note_at(cause, at(death), 10, None).ok(), Some(None));
            }
        }
        // It gets as far as to serve, and no further. Kills in between do not help, and are not counted.
        let mut noted = (1..).map(|death| {
            let _ = deaths.note_at(Cause::Outside, at(10_000), 10 + 2 * death, None);
            deaths.note_at(Cause::OwnFault, at(10_000), 10 + 2 * death, None)
        });
        assert_eq!(noted.position(|verdict| verdict.is_err()), Some(FUTILE as usize));
        let mut deaths = Deaths::default();
        for death in 0..10_000 {
            assert!(
                deaths
                    .note_at(Cause::OwnFault, at(death), 10 * death, None)
                    .is_ok()
            );
        }
    }

    #[test]
    fn only_faults_of_its_own_are_held_against_a_binary() {
        let mut deaths = Deaths::default();
        for death in 0..1000 {
            for cause in [Cause::Outside, Cause::OutOfTime, Cause::OutOfMemory] {
                deaths.note_at(cause, at(death), 10 * death, Some(death)).unwrap();
            }
        }
        assert!(!deaths.are_too_many());
        for death in 0..3 {
            assert!(!deaths.are_too_many());
            deaths
                .note_at(Cause::OwnFault, at(death), 10 * death, None)
                .unwrap();
        }
        assert!(deaths.are_too_many());
    }

    #[test]
    fn the_next_worker_waits_only_after_many_faults_in_a_row() {
        let mut deaths = Deaths::default();
        let mut delays = Vec::new();
        for death in 0..30 {
            deaths
                .note_at(Cause::OwnFault, at(death), 10 * death, None)
                .unwrap();
            delays.push(deaths.delay().as_millis());
        }
        assert_eq!(delays[..10], [0, 0, 0, 0, 0, 0, 0, 0, 2, 4]);
        assert_eq!(delays[29], u128::from(LONGEST_DELAY));
        // A kill from outside is followed by a worker at once.
        deaths.note_at(Cause::Outside, at(30), 500, None).unwrap();
        assert!(deaths.delay().is_zero());
        deaths.note_at(Cause::OwnFault, at(31), 600, None).unwrap();
        assert_eq!(deaths.delay().as_millis(), u128::from(LONGEST_DELAY));
        deaths.note_at(Cause::OwnFault, at(10_000), 1_000, None).unwrap();
        assert!(deaths.delay().is_zero());
    }
}
