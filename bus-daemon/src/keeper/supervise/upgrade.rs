//! Upgrades, as the keeper sees them: the change of the process image, the way back, and probation.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};

use super::worker::WorkerProcess;
use super::{End, Keeper};
use crate::control::Told;
use crate::handoff::form::Output;
use crate::keeper::exec;
use crate::keeper::life::{Life, Standing};
use crate::os::clock;
use crate::os::descriptor::{close, set_close_on_exec};
use crate::runtime::Beginning;

impl Keeper {
    /// If the worker has handed its state over, goes on as another process image. Handing over is the worker's last act:
    /// its end is not waited for.
    pub(super) fn take_over(&mut self) -> Result<(), End> {
        let Life::HandingOver { image, back } = &mut self.life else {
            return Ok(());
        };
        let (image, back) = (*image, back.take());
        self.record.image = image;
        let form = match &back {
            None => self.errands.approved_form(),
            Some((_, form)) => Some(*form),
        };
        let store = self.worker.as_ref().map(WorkerProcess::store);
        if let Some(store) = store {
            // Kept where the image refers to it.
            set_close_on_exec(store, form.is_some_and(|form| form.output() == Output::Inline));
        }
        let reason = match back {
            None => self.replace_process(),
            Some((reason, _)) => self.go_back(reason),
        };
        for fd in store.into_iter().chain([image]) {
            set_close_on_exec(fd, true);
        }
        // Where a worker of this image dies now, there is this state to go on from.
        self.life = Life::Resuming;
        self.start_with_journal(Beginning::RolledBack { reason })
            .map_err(End::of)
    }

    /// Executes what passed the trial. Returns only if that cannot be done: why.
    fn replace_process(&mut self) -> String {
        let reason = match self.errands.take_approved() {
            None => "no binary has passed a trial".to_owned(),
            Some(approved) => match approved.binary.check_again() {
                Err(error) => error.to_string(),
                Ok(()) => {
                    let binary = &approved.binary;
                    let record = self.record.handed_to(binary.path(), self.own_binary);
                    match record.save() {
                        Err(error) => format!("no memory for the keeper's record: {error}"),
                        Ok(saved) => {
                            self.leave_nothing_behind();
                            let error = exec::approved(&record, binary, saved);
                            close(saved);
                            error.to_string()
                        }
                    }
                }
            },
        };
        tracing::error!(
            "upgrade failed after the worker had stopped: {reason}; going on with the old binary"
        );
        reason
    }

    /// Returns to the binary before this one, with the state that the worker has just converted. Returns only if that
    /// cannot be done: why it was to be.
    fn go_back(&mut self, reason: String) -> String {
        let standing = std::mem::replace(&mut self.standing, Standing::Proven);
        if let Standing::OnProbation {
            previous,
            restored_from,
            ..
        } = standing
        {
            match self.record.save() {
                Ok(saved) => {
                    self.leave_nothing_behind();
                    let error = self.execute_previous(previous, saved, &reason);
                    close(saved);
                    tracing::error!("cannot return to the old binary: {error}; going on with this one");
                }
                Err(error) => tracing::error!("no memory for the keeper's record: {error}"),
            }
            close(previous);
            close(restored_from);
        }
        reason
    }

    /// Goes on as the binary before this one, with the keeper's record in `saved`. Returns only on failure.
    pub(super) fn execute_previous(&mut self, previous: RawFd, saved: RawFd, reason: &str) -> Errno {
        self.leave_nothing_behind();
        set_close_on_exec(saved, false);
        // This binary is not one to return to.
        set_close_on_exec(self.own_binary, true);
        let error = exec::previous(&self.record, previous, saved, reason);
        set_close_on_exec(self.own_binary, false);
        error
    }

    /// The next process image has no children and no outbox of this one. Requests that nobody has heard are made again in
    /// the way they came: a blocked signal stays pending over exec.
    fn leave_nothing_behind(&mut self) {
        self.errands.abandon();
        let (reload, upgrade) = self.outbox.unheard_requests();
        for (is_unheard, signal) in [(reload, Signal::SIGHUP), (upgrade, Signal::SIGUSR2)] {
            if is_unheard {
                let _ = raise(signal);
            }
        }
    }

    /// Tells a worker again what the one before it had not heard.
    pub(super) fn repeat_requests(&mut self, reload: bool, upgrade: bool) {
        for (is_unheard, told) in [(reload, Told::ReloadWanted), (upgrade, Told::UpgradeWanted)] {
            if is_unheard {
                self.outbox.post(told);
            }
        }
    }

    /// Lets go of what a return to the binary before this one would need, once this one has proved itself.
    pub(super) fn end_probation(&mut self) {
        if let Standing::OnProbation {
            previous,
            restored_from,
            until,
            ..
        } = self.standing
            && self.is_serving()
            && clock::monotonic() > until
        {
            close(previous);
            close(restored_from);
            self.standing = Standing::Proven;
        }
    }
}
