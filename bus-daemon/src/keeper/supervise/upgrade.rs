//! Upgrades, as the keeper sees them: preflight, the change of the process image, the way back, and probation.

use std::os::fd::RawFd;
use std::path::PathBuf;

use nix::errno::Errno;

use super::{End, Keeper, Origin};
use crate::control::Outcome;
use crate::journal::Serving;
use crate::keeper::deaths::PROBATION;
use crate::keeper::exec;
use crate::keeper::preflight::{FileIdentity, Preflight};
use crate::os::clock::{self, Nanos};
use crate::os::descriptor::{close, set_close_on_exec};

impl Keeper {
    pub(super) fn begin_preflight(&mut self, id: u64, binary: &str, image: RawFd) {
        self.trial = id;
        self.approved = None;
        let path = if binary.is_empty() {
            self.record.executable()
        } else {
            PathBuf::from(binary)
        };
        let started = if path.is_absolute() {
            let mut record = self.record.handed_to(&path, self.own_binary);
            record.image = image;
            record
                .save()
                .map_err(|error| format!("no memory for the keeper's record: {error}"))
                .and_then(|record| {
                    Preflight::start(&path, &self.record.arguments(), record, image)
                        .inspect_err(|_| close(record))
                })
        } else {
            Err(format!("{} is not an absolute path", path.display()))
        };
        match started {
            Ok(preflight) => self.preflight = Some(preflight),
            Err(reason) => {
                close(image);
                self.tell_end(id, &Outcome::Trial(Err(reason)));
            }
        }
    }

    pub(super) fn follow_preflight(&mut self) {
        let Some(preflight) = &mut self.preflight else {
            return;
        };
        preflight.check_time();
        preflight.listen();
        if let Some(verdict) = preflight.verdict() {
            if verdict.is_ok() {
                self.approved = Some((preflight.binary.clone(), preflight.identity));
            }
            close(preflight.image);
            close(preflight.record);
            self.preflight = None;
            self.tell_end(self.trial, &Outcome::Trial(verdict));
        }
    }

    /// A preflight under way has nobody any more who waits for its verdict.
    pub(super) fn give_up_preflight(&mut self) {
        if let Some(mut preflight) = self.preflight.take() {
            preflight.abandon();
            close(preflight.image);
            close(preflight.record);
        }
        self.approved = None;
    }

    /// If the worker has handed its state over, goes on as another process image. Handing over is the worker's last act:
    /// its end is not waited for.
    pub(super) fn take_over(&mut self) -> Option<End> {
        let image = self.handed.take()?;
        self.has_served = true;
        let replaced = match self.converting.take() {
            Some(reason) => self.go_back(image, reason),
            None => self.upgrade(image),
        };
        replaced.err().map(End::Failed)
    }

    fn upgrade(&mut self, image: RawFd) -> Result<(), String> {
        self.record.image = image;
        let reason = self.replace_process();
        tracing::error!(
            "upgrade failed after the worker had stopped: {reason}; going on with the old binary"
        );
        set_close_on_exec(image, true);
        self.start_worker(Origin::RolledBack { reason })
    }

    /// Executes what passed the preflight. Returns only if that cannot be done: why.
    fn replace_process(&mut self) -> String {
        let Some((binary, identity)) = self.approved.take() else {
            return "no binary has passed a preflight".into();
        };
        match FileIdentity::of(&binary) {
            Ok(present) if present == identity => {}
            Ok(_) => return format!("{} was replaced after it had been checked", binary.display()),
            Err(error) => return format!("{}: {error}", binary.display()),
        }
        let record = self.record.handed_to(&binary, self.own_binary);
        match record.save() {
            Ok(fd) => {
                let error = exec::approved(&record, &binary, fd);
                close(fd);
                format!("{}: {error}", binary.display())
            }
            Err(error) => format!("no memory for the keeper's record: {error}"),
        }
    }

    /// Returns to the binary before this one, with the state that the worker has just converted.
    fn go_back(&mut self, image: RawFd, reason: String) -> Result<(), String> {
        let previous = self.previous.take().ok_or("there is no binary to return to")?;
        self.record.image = image;
        let saved = self
            .record
            .save()
            .map_err(|error| format!("no memory for the keeper's record: {error}"))?;
        let error = self.execute_previous(previous, saved, &reason);
        close(saved);
        tracing::error!("cannot return to the old binary: {error}; going on with this one");
        set_close_on_exec(image, true);
        self.start_worker(Origin::RolledBack { reason })
    }

    /// Goes on as the binary before this one, with the keeper's record in `saved`. Returns only on failure.
    pub(super) fn execute_previous(&self, previous: RawFd, saved: RawFd, reason: &str) -> Errno {
        set_close_on_exec(saved, false);
        // This binary is not one to return to.
        set_close_on_exec(self.own_binary, true);
        let error = exec::previous(&self.record, previous, saved, reason);
        set_close_on_exec(self.own_binary, false);
        error
    }

    /// Lets go of what a return to the binary before this one would need, once this one has proved itself.
    pub(super) fn end_probation(&mut self) {
        let is_serving = self.serving.as_ref().is_some_and(Serving::get);
        if !is_serving || clock::monotonic() <= self.started_at + PROBATION {
            return;
        }
        for fd in self.restored_from.take().into_iter().chain(self.previous.take()) {
            close(fd);
        }
    }

    /// When to look whether the probation of this binary has ended, if it is on probation.
    pub(super) fn probation_due(&self, now: Nanos) -> Option<Nanos> {
        let is_on_probation = self.restored_from.or(self.previous).is_some();
        // One that does not serve even then is asked again from time to time.
        is_on_probation.then(|| (self.started_at + PROBATION).max(now + Nanos(1_000_000_000)))
    }
}
