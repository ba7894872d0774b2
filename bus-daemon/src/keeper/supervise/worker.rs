//! Workers: how one is started, and what its death leads to.

use std::io::Error;
use std::os::fd::RawFd;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::patience::Patience;
use super::{End, Keeper};
use crate::control::Outbox;
use crate::journal::{Journal, Remains, Serving};
use crate::keeper::configuration::{self, Reading};
use crate::keeper::deaths::{Cause, Deaths};
use crate::keeper::error::KeeperError;
use crate::keeper::helper::describe;
use crate::keeper::life::{Life, Standing};
use crate::os::clock;
use crate::os::descriptor;
use crate::os::memfd;
use crate::os::process;
use crate::runtime::{self, Beginning, Death, Open};

/// Workers that are started with the same state before it is given up.
const TRIES: u32 = 4;

/// A worker, and what it leaves when it dies.
pub(super) struct WorkerProcess {
    pub(super) pid: Pid,
    remains: Remains,
    serving: Serving,
    /// Processes of the control group that had been killed for want of memory when it was started.
    memory_kills: u64,
}

impl WorkerProcess {
    /// The memfd of what waits for slow readers.
    pub(super) fn store(&self) -> RawFd {
        self.remains.store()
    }

    /// Whether it does I/O on links, or did before it died.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.get()
    }
}

impl Keeper {
    /// Starts a worker with what this process image was given.
    pub(super) fn start_given(&mut self) -> Result<(), KeeperError> {
        let beginning = match &self.standing {
            Standing::First | Standing::Afresh => {
                let config = self.errands.config().unwrap_or_default();
                let config = configuration::decoded(config)
                    .map_err(|error| KeeperError::NoState(format!("the configuration: {error}")))?;
                Beginning::Clean(Box::new(config))
            }
            Standing::OnProbation { .. } | Standing::Proven => Beginning::Upgraded,
            Standing::RolledBack { reason } => Beginning::RolledBack {
                reason: reason.clone(),
            },
        };
        self.life = Life::Restoring {
            tries: self.life.tries() + 1,
        };
        self.start_with_journal(beginning)
    }

    /// Starts a worker with a journal of its own.
    pub(super) fn start_with_journal(&mut self, beginning: Beginning) -> Result<(), KeeperError> {
        let is_first = self.worker.is_none();
        self.discard_remains();
        let patience = self.patience();
        let journal = patience
            .until_there_is_room("no memory for the journal", Journal::create)
            .map_err(|error| KeeperError::system("no memory for the journal", error))?;
        let open = Open {
            kept: self.kept(&journal.remains()),
            // The first worker of a process image finds nothing that another has left open.
            has_more: !is_first,
        };
        self.spawn(journal, beginning, open)
    }

    fn spawn(&mut self, journal: Journal, beginning: Beginning, open: Open) -> Result<(), KeeperError> {
        let (remains, serving) = (journal.remains(), journal.serving());
        let memory_kills = self.memory_group.kills();
        self.outbox.set_approved(self.errands.approved_form());
        let inbox = self.outbox.inbox();
        let record = &self.record;
        let mut patience = self.patience();
        let is_tried_again = |error: &Error| patience.wait("cannot start the worker", error);
        let pid = runtime::process::spawn(is_tried_again, || {
            runtime::run(record, journal, inbox, beginning, &open)
        })
        .map_err(|error| KeeperError::system("cannot start the worker", error))?;
        self.worker = Some(WorkerProcess {
            pid,
            remains,
            serving,
            memory_kills,
        });
        // Whatever it had not heard, it hears now.
        self.record.control.wake_worker();
        Ok(())
    }

    /// How long to wait for what the system has no room for: while there are connections to be lost, for ever.
    fn patience(&self) -> Patience {
        let is_start =
            matches!(self.standing, Standing::First) && matches!(self.life, Life::Restoring { .. });
        if is_start {
            Patience::none()
        } else {
            Patience::endless()
        }
    }

    /// Nobody goes on from what the last worker left: it has handed its state over, or never came to use it.
    fn discard_remains(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.remains.discard();
        }
        self.deaths.begin_journal();
    }

    /// What this process and a worker with this journal have open, besides listeners and what the broker owns.
    fn kept(&mut self, remains: &Remains) -> Vec<RawFd> {
        let mut kept = self.own_fds();
        kept.extend(remains.fds());
        kept
    }

    /// Takes note that the worker serves: the way back to what it was given is closed, and the world is told.
    pub(super) fn note_serving(&mut self) -> Result<(), End> {
        let has_begun = self.worker.as_ref().is_some_and(WorkerProcess::is_serving);
        let is_beginning = matches!(
            self.life,
            Life::Restoring { .. } | Life::Resuming | Life::Converting { .. }
        );
        if has_begun && is_beginning {
            self.life = Life::Serving;
            if let Some(announcement) = self.announcement.take() {
                announcement.make().map_err(End::Failed)?;
            }
        }
        Ok(())
    }

    /// Takes note of a worker that says it dies of a signal. It runs no code any more, so the next one is not kept waiting
    /// until the kernel has written its core; it is reaped whenever that is done.
    pub(super) fn note_fault(&mut self) -> Result<(), End> {
        let Some(worker) = &self.worker else { return Ok(()) };
        let pid = worker.pid;
        let Some(signal) = self.outbox.fault_of(pid.as_raw()) else {
            return Ok(());
        };
        let signal = Signal::try_from(signal).unwrap_or(Signal::SIGABRT);
        self.worker_died(WaitStatus::Signaled(pid, signal, false))
    }

    /// The worker has died, and whatever it said before is heard.
    pub(super) fn worker_died(&mut self, status: WaitStatus) -> Result<(), End> {
        self.listen_to_worker();
        self.note_serving()?;
        if matches!(self.life, Life::HandingOver { .. }) {
            return self.take_over();
        }
        let how = describe(status);
        let cause = self.cause_of(status);
        if cause == Cause::OwnFault {
            self.errands.note_fault(&mut self.outbox);
        }
        if !matches!(self.life, Life::Restoring { .. }) {
            tracing::error!("the worker {how}; going on where it was");
            return self
                .respawn(cause)
                .or_else(|why| self.start_afresh(why))
                .map_err(End::of);
        }
        self.died_restoring(cause, how).map_err(End::of)
    }

    /// A worker has died that had not touched any link: what it began with is as it was.
    fn died_restoring(&mut self, cause: Cause, how: String) -> Result<(), KeeperError> {
        if cause != Cause::OwnFault {
            tracing::warn!("the worker {how} before it served; starting it again");
            return self.start_given();
        }
        match self.standing {
            Standing::OnProbation {
                previous,
                restored_from,
                ..
            } => {
                let reason = format!("the new binary's worker {how} before it served");
                tracing::error!("{reason}; returning to the old binary");
                descriptor::set_close_on_exec(self.record.image, false);
                Err(KeeperError::NoWayBack(self.execute_previous(
                    previous,
                    restored_from,
                    &reason,
                )))
            }
            Standing::First | Standing::Afresh => Err(KeeperError::NeverServed { how }),
            Standing::Proven | Standing::RolledBack { .. } if self.life.tries() < TRIES => {
                tracing::error!("the worker {how} before it served; trying again");
                self.start_given()
            }
            Standing::Proven | Standing::RolledBack { .. } => {
                self.start_afresh(KeeperError::NeverServed { how })
            }
        }
    }

    fn cause_of(&self, status: WaitStatus) -> Cause {
        // Read only where it matters: a worker that is killed over and over is replaced at once.
        let is_killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        let before = self.worker.as_ref().map_or(0, |worker| worker.memory_kills);
        Cause::of(status, is_killed && self.memory_group.kills() > before)
    }

    /// Starts a worker where the last one died.
    fn respawn(&mut self, cause: Cause) -> Result<(), KeeperError> {
        let died_at = clock::monotonic();
        let remains = match &self.worker {
            Some(worker) => worker.remains,
            None => return Err(KeeperError::NoState("there was no worker".into())),
        };
        self.deaths.note_recovery(self.life == Life::Resuming);
        let death = Death {
            at: died_at,
            skip: self.deaths.note(cause, died_at, &remains)?,
            cut_short: self.deaths.cut_short(),
        };
        std::thread::sleep(self.deaths.delay());
        self.life = match self.standing.way_back(died_at) {
            Some(form) if self.deaths.are_too_many() => Life::Converting {
                reason: "its worker died three times within a minute after the upgrade".into(),
                form,
            },
            Some(_) | None => Life::Resuming,
        };
        if remains.has_checkpoint() {
            // The worker has closed the image it began with, or the next one's sweep does.
            self.record.image = -1;
        }
        let open = Open {
            kept: self.kept(&remains),
            has_more: true,
        };
        let journal = self
            .patience()
            .until_there_is_room("cannot open the journal", || Journal::reopen(remains))
            .map_err(|error| KeeperError::system("the journal", error))?;
        let convert = match self.life {
            Life::Converting { form, .. } => Some(form),
            Life::Restoring { .. } | Life::Resuming | Life::Serving | Life::HandingOver { .. } => None,
        };
        self.spawn(journal, Beginning::Recovered { death, convert }, open)
    }

    /// There is no way to go on with the connections: they are closed, and the bus begins anew at the same addresses.
    fn start_afresh(&mut self, why: KeeperError) -> Result<(), KeeperError> {
        if self.standing == Standing::Afresh || process::is_asked_to_stop() {
            return Err(why);
        }
        tracing::error!("{why}: EVERY CONNECTION IS LOST; the bus starts anew");
        self.errands.abandon();
        self.discard_remains();
        (self.standing, self.record.image) = (Standing::Afresh, -1);
        // The errands of the bus that begins are counted from the beginning: what is told of others is not for it.
        let (reload, upgrade) = self.outbox.unheard_requests();
        self.outbox =
            Outbox::create().map_err(|error| KeeperError::system("no memory for the outbox", error))?;
        self.repeat_requests(reload, upgrade);
        let mut kept = self.own_fds();
        kept.extend(self.record.listeners.iter().map(|listener| listener.fd));
        descriptor::close_all_but(&kept);
        if self.errands.config().is_none() {
            self.read_configuration()?;
        }
        (self.deaths, self.life) = (Deaths::default(), Life::Restoring { tries: 0 });
        self.start_given()
    }

    /// A process image that was put in the place of another has read no configuration yet. There is nobody to serve
    /// meanwhile.
    fn read_configuration(&mut self) -> Result<(), KeeperError> {
        let system = |error| KeeperError::system("cannot read the configuration", error);
        let payload = memfd::create(c"bus-outcome").map_err(system)?;
        let reading = Reading::start(self.record.arguments(), payload, None)
            .inspect_err(|_| descriptor::close(payload))
            .map_err(system)?;
        let read = reading.wait();
        descriptor::close(read.payload);
        let config = read
            .config
            .map_err(|refusal| KeeperError::NoState(refusal.text))?;
        self.errands.take_config(config);
        Ok(())
    }
}
