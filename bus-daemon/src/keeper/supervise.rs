//! The keeper's loop: signals, what the worker says, errands, and the end of processes.

mod patience;
mod upgrade;
mod worker;

use std::os::fd::{AsFd, RawFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SigSet, SignalFd};
use nix::unistd::Pid;

use super::announcement::Announcement;
use super::deaths::Deaths;
use super::errands::Errands;
use super::error::KeeperError;
use super::life::{Life, PROBATION, Standing};
use super::memory_group::MemoryGroup;
use super::watch::Watch;
use crate::control::{Outbox, Request, Told};
use crate::handoff::form::Form;
use crate::handoff::image;
use crate::handoff::keeper::KeeperV1;
use crate::os::clock::{self, Nanos};
use crate::os::descriptor::{borrow, set_close_on_exec};
use crate::os::process;
use worker::WorkerProcess;

/// Messages of a worker that are looked at in one go; the next turn looks at the rest.
const MESSAGES: usize = 64;

/// Why the supervision ends.
enum End {
    /// Asked to stop.
    Stopped,
    /// Cannot go on.
    Failed(KeeperError),
}

impl End {
    /// There is no way to go on, or it was not waited for any longer because the daemon is to stop.
    fn of(why: KeeperError) -> Self {
        if process::is_asked_to_stop() {
            Self::Stopped
        } else {
            Self::Failed(why)
        }
    }
}

/// How this process image came to be.
pub(crate) enum Origin {
    /// Started afresh.
    Clean {
        /// The configuration, encoded.
        config: Vec<u8>,
        /// What is to be said when the bus serves.
        announcement: Announcement,
    },
    /// Put in the place of another by an upgrade.
    Upgraded {
        /// The memfd with the keeper's record; for the way back.
        restored_from: RawFd,
    },
    /// The new binary failed; this is the old one again.
    RolledBack {
        /// What was wrong with the new one.
        reason: String,
    },
}

/// The main process of the daemon.
pub(crate) struct Keeper {
    record: KeeperV1,
    /// This binary, open, so that a failed upgrade can return to it wherever its path then leads.
    own_binary: RawFd,
    /// The keeper's descriptor for signals.
    signals: RawFd,
    life: Life,
    standing: Standing,
    /// The newest worker; `None` before the first.
    worker: Option<WorkerProcess>,
    deaths: Deaths,
    memory_group: MemoryGroup,
    outbox: Outbox,
    errands: Errands,
    /// What is still to be said when the bus serves.
    announcement: Option<Announcement>,
}

/// The signals the keeper answers, blocked and to be read from a descriptor.
pub(crate) fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    process::hear_of_children().map_err(|_| Errno::last())?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

impl Keeper {
    pub(crate) fn new(
        record: KeeperV1,
        own_binary: RawFd,
        signals: RawFd,
        origin: Origin,
    ) -> Result<Self, KeeperError> {
        let (standing, config, announcement) = match origin {
            Origin::Clean { config, announcement } => (Standing::First, Some(config), Some(announcement)),
            Origin::Upgraded { restored_from } => {
                // What that binary wrote itself, it reads. One that reads nothing that this one writes is returned to only while
                // its own image is still true.
                let form = form_of(record.image);
                let standing = Standing::OnProbation {
                    previous: record.previous,
                    restored_from,
                    until: form.map_or(Nanos(0), |_| clock::monotonic() + PROBATION),
                    form: form.unwrap_or(Form::OWN),
                };
                (standing, None, None)
            }
            Origin::RolledBack { reason } => (Standing::RolledBack { reason }, None, None),
        };
        // What this image was given is not for the one after it; its own binary is, to return to.
        for fd in standing.fds().into_iter().chain([record.image]) {
            set_close_on_exec(fd, true);
        }
        set_close_on_exec(own_binary, false);
        let outbox =
            Outbox::create().map_err(|error| KeeperError::system("no memory for the outbox", error))?;
        Ok(Self {
            record,
            own_binary,
            signals,
            life: Life::Restoring { tries: 0 },
            standing,
            worker: None,
            deaths: Deaths::default(),
            memory_group: MemoryGroup::own(),
            outbox,
            errands: Errands::new(config, Watch::new()),
            announcement,
        })
    }

    /// Starts the worker and watches over it until the daemon is to stop.
    pub(crate) fn run(mut self, signals: &SignalFd) -> ExitCode {
        let end = match self.start_given() {
            Ok(()) => self.watch(signals),
            Err(error) => End::of(error),
        };
        self.errands.abandon();
        self.remove_files();
        match end {
            End::Stopped => ExitCode::SUCCESS,
            End::Failed(reason) => {
                tracing::error!("{reason}");
                ExitCode::FAILURE
            }
        }
    }

    fn watch(&mut self, signals: &SignalFd) -> End {
        loop {
            // First of all: the worker before an upgrade may have ended before this process image could be told.
            if let Err(end) = self.turn(signals) {
                return end;
            }
            if let Err(errno) = self.wait(signals) {
                return End::Failed(KeeperError::system("cannot wait for events", errno));
            }
        }
    }

    /// Deals with whatever has happened. Each part is bounded, and none waits for anybody.
    fn turn(&mut self, signals: &SignalFd) -> Result<(), End> {
        self.read_signals(signals)?;
        // What the worker asks for is asked by one that serves.
        self.note_serving()?;
        self.listen_to_worker();
        // Its wakes are taken now, and what they were for is looked at after that: else nothing would wake the keeper again.
        self.note_serving()?;
        self.take_over()?;
        self.note_fault()?;
        self.reap()?;
        self.end_probation();
        let may_open = self.is_serving();
        let has_told = self
            .errands
            .follow(&self.record, self.own_binary, may_open, &mut self.outbox);
        // What did not fit before may fit now.
        if self.outbox.settle() || has_told {
            self.record.control.wake_worker();
        }
        Ok(())
    }

    fn read_signals(&mut self, signals: &SignalFd) -> Result<(), End> {
        while let Ok(Some(signal)) = signals.read_signal() {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGTERM | Signal::SIGINT)) => {
                    if let Some(worker) = &self.worker {
                        let _ = kill(worker.pid, Signal::SIGKILL);
                        // Not for ever: the system may hold it in a call.
                        for _ in 0..500 {
                            if process::is_over(worker.pid) {
                                break;
                            }
                            std::thread::sleep(std::time::Duration::from_millis(2));
                        }
                    }
                    return Err(End::Stopped);
                }
                Ok(Ok(Signal::SIGHUP)) => self.outbox.post(Told::ReloadWanted),
                Ok(Ok(Signal::SIGUSR2)) => self.outbox.post(Told::UpgradeWanted),
                _ => {}
            }
        }
        Ok(())
    }

    fn wait(&self, signals: &SignalFd) -> nix::Result<()> {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(borrow(self.record.control.keeper), PollFlags::POLLIN),
        ];
        let sources = self.errands.sources(self.is_serving());
        fds.extend(
            sources
                .iter()
                .map(|fd| PollFd::new(borrow(*fd), PollFlags::POLLIN)),
        );
        let now = clock::monotonic();
        let due = self
            .errands
            .due()
            .into_iter()
            .chain(self.probation_due(now))
            .min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            let left = due.0.saturating_sub(now.0) / 1_000_000 + 1;
            PollTimeout::try_from(left.min(60_000)).unwrap_or(PollTimeout::ZERO)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn is_serving(&self) -> bool {
        self.life == Life::Serving && self.worker.as_ref().is_some_and(WorkerProcess::is_serving)
    }

    fn listen_to_worker(&mut self) {
        for _ in 0..MESSAGES {
            match self.record.control.asked() {
                Ok(None) => return,
                Ok(Some(Request::Errand { id, errand })) => self.errands.ask(id, errand, &mut self.outbox),
                Ok(Some(Request::Exec { image })) => {
                    // The worker exits now, and touches nothing on its way.
                    self.life.hand_over(image);
                }
                Err(error) => tracing::error!("the worker cannot be understood: {error}"),
            }
        }
    }

    /// Takes note of processes that ended.
    fn reap(&mut self) -> Result<(), End> {
        while let Some(status) = process::ended(None) {
            let Some(ended) = status.pid() else { continue };
            if !self.errands.note_end(ended, status) && self.is_worker(ended) {
                self.worker_died(status)?;
            }
        }
        Ok(())
    }

    fn is_worker(&self, process: Pid) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.pid == process)
    }

    /// What this process has open, besides listeners, the worker's memory and what the broker owns.
    fn own_fds(&mut self) -> Vec<RawFd> {
        let control = self.record.control;
        let own = [
            self.own_binary,
            self.signals,
            self.record.epoll,
            self.record.image,
            control.keeper,
            control.worker,
        ];
        self.outbox.settle();
        let mut fds = own.to_vec();
        fds.extend(crate::os::log::descriptors());
        fds.extend(self.standing.fds());
        fds.extend(self.outbox.fds());
        fds.extend(self.errands.fds());
        fds.extend(self.announcement.iter().flat_map(Announcement::fds));
        fds
    }

    /// When to look whether the probation of this binary has ended, if it is on probation.
    fn probation_due(&self, now: Nanos) -> Option<Nanos> {
        match self.standing {
            // One that does not serve even then is asked again from time to time.
            Standing::OnProbation { until, .. } => Some(until.max(now + Nanos(1_000_000_000))),
            Standing::First | Standing::Proven | Standing::RolledBack { .. } | Standing::Afresh => None,
        }
    }

    fn remove_files(&self) {
        super::listen::remove_files(&self.record.listeners);
        if let Some(path) = &self.record.pid_file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The form in which the binary before this one reads its state again.
fn form_of(image: RawFd) -> Option<Form> {
    image::form_of(|from, len| {
        let mut bytes = vec![0; len];
        let read = nix::sys::uio::pread(borrow(image), &mut bytes, from as i64);
        (read == Ok(len)).then_some(bytes)
    })
}
