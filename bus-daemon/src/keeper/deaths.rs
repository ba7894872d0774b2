//! What deaths of the worker say: whether an event kills it, and whether it makes progress between them.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::journal::Remains;
use crate::os::clock::Nanos;

/// Deaths by its own fault without an event applied in between, after which the daemon gives up.
const FUTILE: u32 = 32;
/// Records that a worker notes before it serves anybody: the time, that it serves, what its predecessor left undone.
const BEGINNING: u64 = 4;
/// Deaths by its own fault at no event after which the next worker is started later and later.
const IN_A_ROW: u32 = 8;
/// How late at most, in milliseconds; deaths that are further apart are not in a row.
const LONGEST_DELAY: u64 = 1000;
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
    /// Deaths by its own fault at no event, in a row.
    in_a_row: u32,
    /// The event that is not to be applied again.
    left_out: Option<u64>,
    /// When it died last.
    at: Nanos,
    /// Deaths by its own fault since this process image began.
    faults: u32,
}

impl Deaths {
    /// Whether a binary that began at `started` is on probation and has failed: three deaths by its own fault in its first
    /// minute.
    pub(crate) fn are_too_many(&self, now: Nanos, started: Nanos) -> bool {
        self.faults >= PROBATION_FAULTS && now <= started + PROBATION
    }

    /// How long to wait before the next worker: one that dies again and again leaves the machine to others meanwhile.
    pub(crate) fn delay(&self) -> Duration {
        match self.in_a_row.saturating_sub(IN_A_ROW) {
            0 => Duration::ZERO,
            over => Duration::from_millis((1 << over.min(10)).min(LONGEST_DELAY)),
        }
    }

    /// Takes note of a death. The event that is not to be applied again: the worker has died there twice by its own
    /// fault, or three times in all.
    pub(crate) fn note(
        &mut self,
        status: WaitStatus,
        now: Nanos,
        remains: &Remains,
    ) -> Result<Option<u64>, String> {
        let skip = self.note_at(is_own_fault(status), now, remains.records(), remains.suspect())?;
        Ok(self.leave_out(skip, |event| remains.is_replayed(event)))
    }

    /// What is left out stays so until a checkpoint passes it, however often the workers die before that.
    fn leave_out(&mut self, event: Option<u64>, is_replayed: impl Fn(u64) -> bool) -> Option<u64> {
        self.left_out = event.or(self.left_out.filter(|event| is_replayed(*event)));
        self.left_out
    }

    /// The next worker begins with a journal of its own, and events are counted anew.
    pub(crate) fn begin_journal(&mut self) {
        (self.event, self.left_out) = (None, None);
    }

    fn note_at(
        &mut self,
        fault: bool,
        now: Nanos,
        records: u64,
        event: Option<u64>,
    ) -> Result<Option<u64>, String> {
        if event != self.event || event.is_none() {
            (self.at_event, self.faults_at_event) = (0, 0);
        }
        if records.abs_diff(self.records) > BEGINNING {
            self.futile = 0;
        }
        if event.is_some() || now > self.at + Nanos(2 * LONGEST_DELAY * 1_000_000) {
            self.in_a_row = 0;
        }
        (self.records, self.event, self.at) = (records, event, now);
        self.at_event += 1;
        if fault {
            self.faults_at_event += 1;
            self.futile += 1;
            self.faults += 1;
            self.in_a_row += u32::from(event.is_none());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Nanos {
        Nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn an_event_is_left_out_at_the_second_fault_or_the_third_death() {
        let mut deaths = Deaths::default();
        assert_eq!(deaths.note_at(true, at(0), 10, Some(9)), Ok(None));
        assert_eq!(deaths.note_at(true, at(1), 10, Some(9)), Ok(Some(9)));
        assert_eq!(deaths.note_at(false, at(2), 20, Some(19)), Ok(None));
        assert_eq!(deaths.note_at(false, at(3), 20, Some(19)), Ok(None));
        assert_eq!(deaths.note_at(false, at(4), 20, Some(19)), Ok(Some(19)));
    }

    #[test]
    fn what_is_left_out_stays_so_until_a_checkpoint_passes_it() {
        let mut deaths = Deaths::default();
        assert_eq!(deaths.leave_out(None, |_| true), None);
        assert_eq!(deaths.leave_out(Some(9), |_| true), Some(9));
        assert_eq!(deaths.leave_out(None, |event| event == 9), Some(9));
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
            assert_eq!(deaths.note_at(false, at(death), 10, None), Ok(None));
        }
        // It gets as far as to serve, and no further.
        let mut noted = (1..).map(|death| deaths.note_at(true, at(10_000), 10 + 2 * death, None));
        assert_eq!(noted.position(|verdict| verdict.is_err()), Some(FUTILE as usize));
        let mut deaths = Deaths::default();
        for death in 0..10_000 {
            assert_eq!(deaths.note_at(true, at(death), 10 * death, None), Ok(None));
        }
    }

    #[test]
    fn the_next_worker_waits_only_after_many_faults_in_a_row() {
        let mut deaths = Deaths::default();
        let mut delays = Vec::new();
        for death in 0..30 {
            deaths.note_at(true, at(death), 10 * death, None).unwrap();
            delays.push(deaths.delay().as_millis());
        }
        assert_eq!(delays[..10], [0, 0, 0, 0, 0, 0, 0, 0, 2, 4]);
        assert_eq!(delays[29], u128::from(LONGEST_DELAY));
        deaths.note_at(true, at(10_000), 1_000, None).unwrap();
        assert!(deaths.delay().is_zero());
    }
}
