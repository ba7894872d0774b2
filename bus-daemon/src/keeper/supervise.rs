//! The keeper's loop: signals, what the worker says, and the end of processes.

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SigSet, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

mod upgrade;

use super::control::{ToKeeper, ToWorker};
use super::deaths::{Deaths, is_own_fault};
use super::preflight::{FileIdentity, Preflight};
use super::record::KeeperV1;
use super::worker;
use crate::config::Config;
use crate::journal::{Journal, Remains, Serving};
use crate::runtime::clock::Nanos;
use crate::runtime::{self, Beginning};

/// Workers that are started with the same state before it is given up.
const TRIES: u32 = 4;

/// Why the supervision ends.
enum End {
    /// Asked to stop.
    Stopped,
    /// Cannot go on.
    Failed(String),
}

/// How this process image came to be.
pub(crate) enum Origin {
    /// Started afresh.
    Clean(Box<Config>),
    /// Put in the place of another by an upgrade.
    Upgraded,
    /// The new binary failed; this is the old one again.
    RolledBack {
        /// What was wrong with the new one.
        reason: String,
    },
}

/// The main process of the daemon.
pub(crate) struct Keeper {
    pub(crate) record: KeeperV1,
    /// This binary, open, so that a failed upgrade can return to it wherever its path then leads.
    pub(crate) own_binary: RawFd,
    worker: Pid,
    serving: Option<Serving>,
    preflight: Option<Preflight>,
    /// What passed the preflight, and may be executed.
    approved: Option<(PathBuf, FileIdentity)>,
    /// The memfd of a worker that is about to exit for an upgrade.
    handed: Option<RawFd>,
    /// What the worker leaves when it dies.
    remains: Option<Remains>,
    deaths: Deaths,
    /// When this process image began.
    started_at: Nanos,
    /// Why the worker is to convert the state for the binary before this one, while it does.
    converting: Option<String>,
    /// Why an upgrade was rolled back to this binary, if one was.
    rolled_back: Option<String>,
    /// Workers started with the state that this process image was given.
    tries: u32,
    /// This process image took over connections.
    is_restored: bool,
    /// A worker of this process image has served: what it was given to begin with is out of date.
    has_served: bool,
    /// The bus has begun anew once, since it could not go on.
    is_afresh: bool,
    /// The keeper's descriptor for signals.
    signals: RawFd,
    /// The memfd this process image was told to restore; for the way back.
    restored_from: Option<RawFd>,
    previous: Option<RawFd>,
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
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

impl Keeper {
    pub(crate) fn new(
        record: KeeperV1,
        own_binary: RawFd,
        signals: RawFd,
        restored_from: Option<RawFd>,
    ) -> Self {
        // What this image was given is not for the one after it; its own binary is, to return to.
        let previous = restored_from.map(|_| record.previous);
        for fd in restored_from.into_iter().chain(previous).chain([record.image]) {
            super::set_close_on_exec(fd, true);
        }
        super::set_close_on_exec(own_binary, false);
        Self {
            record,
            own_binary,
            worker: Pid::from_raw(0),
            serving: None,
            preflight: None,
            approved: None,
            handed: None,
            remains: None,
            deaths: Deaths::default(),
            started_at: runtime::clock::monotonic(),
            converting: None,
            rolled_back: None,
            tries: 0,
            is_restored: false,
            has_served: false,
            is_afresh: false,
            signals,
            restored_from,
            previous,
        }
    }

    /// Starts the worker and watches over it until the daemon is to stop.
    pub(crate) fn run(mut self, signals: &SignalFd, origin: Origin) -> ExitCode {
        let end = match self.start_worker(origin) {
            Ok(()) => self.watch(signals),
            Err(error) => End::Failed(error),
        };
        self.give_up_preflight();
        self.remove_files();
        match end {
            End::Stopped => ExitCode::SUCCESS,
            End::Failed(reason) => {
                tracing::error!("{reason}");
                ExitCode::FAILURE
            }
        }
    }

    fn start_worker(&mut self, origin: Origin) -> Result<(), String> {
        self.is_restored = !matches!(origin, Origin::Clean(_));
        self.tries += 1;
        let is_first = self.remains.is_none();
        self.discard_remains();
        let journal = Journal::create().map_err(|error| format!("no memory for the journal: {error}"))?;
        // The first worker of a process image finds nothing that another has left open.
        let kept = (!is_first).then(|| self.kept(&journal.remains()));
        let beginning = match origin {
            Origin::Clean(config) => Beginning::Clean(config),
            Origin::Upgraded => Beginning::Upgraded,
            Origin::RolledBack { reason } => {
                self.rolled_back = Some(reason.clone());
                Beginning::RolledBack { reason }
            }
        };
        self.spawn_worker(journal, beginning, kept)
    }

    fn spawn_worker(
        &mut self,
        journal: Journal,
        beginning: Beginning,
        kept: Option<Vec<RawFd>>,
    ) -> Result<(), String> {
        self.serving = Some(journal.serving());
        self.remains = Some(journal.remains());
        self.worker = worker::spawn(|| runtime::run(&self.record, journal, beginning, kept.as_deref()))
            .map_err(|error| format!("cannot start the worker: {error}"))?;
        Ok(())
    }

    /// Starts a worker where the last one died.
    fn respawn(&mut self, status: WaitStatus) -> Result<(), String> {
        let died_at = runtime::clock::monotonic();
        let remains = self.remains.ok_or("there was no worker")?;
        let skip = self.deaths.note(status, died_at, &remains)?;
        std::thread::sleep(self.deaths.delay());
        if self.previous.is_some() && self.deaths.are_too_many(died_at, self.started_at) {
            self.converting = Some("its worker died three times within a minute after the upgrade".into());
        }
        self.give_up_preflight();
        self.take_back_verdicts(is_own_fault(status));
        if remains.has_checkpoint() {
            // The worker has closed the image it began with, or the next one's sweep does.
            self.record.image = -1;
        }
        let kept = self.kept(&remains);
        let journal = Journal::reopen(remains).map_err(|error| format!("the journal: {error}"))?;
        self.spawn_worker(
            journal,
            Beginning::Recovered {
                died_at,
                skip,
                convert: self.converting.is_some(),
            },
            Some(kept),
        )
    }

    /// Nobody goes on from what the last worker left: it has handed its state over, or never came to use it.
    fn discard_remains(&mut self) {
        self.serving = None;
        if let Some(remains) = self.remains.take() {
            remains.discard();
        }
        self.deaths.begin_journal();
    }

    /// What this process and a worker with this journal have open, besides listeners and what the broker owns.
    fn kept(&self, remains: &Remains) -> Vec<RawFd> {
        let control = self.record.control;
        let own = [
            self.own_binary,
            self.signals,
            self.record.epoll,
            self.record.image,
            control.keeper,
            control.worker,
        ];
        let given = self.restored_from.into_iter().chain(self.previous);
        own.into_iter()
            .chain(crate::os::log::descriptor())
            .chain(remains.fds())
            .chain(given)
            .collect()
    }

    fn watch(&mut self, signals: &SignalFd) -> End {
        // The worker before an upgrade may have ended before this process image could be told.
        if let Some(end) = self.reap() {
            return end;
        }
        loop {
            if let Err(error) = self.wait(signals) {
                return End::Failed(format!("cannot wait for events: {error}"));
            }
            while let Ok(Some(signal)) = signals.read_signal() {
                match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                    Ok(Ok(Signal::SIGTERM | Signal::SIGINT)) => {
                        let _ = nix::sys::signal::kill(self.worker, Signal::SIGKILL);
                        let _ = waitpid(self.worker, None);
                        return End::Stopped;
                    }
                    Ok(Ok(Signal::SIGHUP)) => self.tell(&ToWorker::Reload),
                    Ok(Ok(Signal::SIGUSR2)) => self.tell(&ToWorker::Upgrade),
                    _ => {}
                }
            }
            self.end_probation();
            self.listen_to_worker();
            if let Some(end) = self.take_over().or_else(|| {
                self.follow_preflight();
                self.reap()
            }) {
                return end;
            }
        }
    }

    fn wait(&self, signals: &SignalFd) -> nix::Result<()> {
        let control = borrow(self.record.control.keeper);
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control, PollFlags::POLLIN),
        ];
        let preflight_end = self.preflight.as_ref().map(Preflight::deadline);
        let now = runtime::clock::monotonic();
        let due = preflight_end.into_iter().chain(self.probation_due(now)).min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            let left = due.0.saturating_sub(now.0) / 1_000_000 + 1;
            PollTimeout::try_from(left.min(60_000)).unwrap_or(PollTimeout::ZERO)
        });
        if let Some(preflight) = &self.preflight {
            fds.extend(
                preflight
                    .output_fd()
                    .map(|fd| PollFd::new(borrow(fd), PollFlags::POLLIN)),
            );
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn tell(&self, message: &ToWorker) {
        if let Err(error) = self.record.control.tell_worker(message) {
            tracing::warn!("the worker cannot be told of a request: {error}");
        }
    }

    fn listen_to_worker(&mut self) {
        while let Ok(Some(message)) = self.record.control.heard_by_keeper() {
            match message {
                ToKeeper::Preflight { binary, image } => self.begin_preflight(&binary, image),
                // The worker exits now, and touches nothing on its way.
                ToKeeper::Exec { image } => self.handed = Some(image),
            }
        }
    }

    /// Takes note of processes that ended.
    fn reap(&mut self) -> Option<End> {
        loop {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let ended = match waitid(Id::All, flags) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => pid,
                _ => return None,
            };
            if self
                .preflight
                .as_ref()
                .is_some_and(|preflight| preflight.pid() == ended)
            {
                self.follow_preflight();
                continue;
            }
            let Ok(status) = waitpid(ended, Some(WaitPidFlag::WNOHANG)) else {
                return None;
            };
            if ended == self.worker
                && let Some(end) = self.worker_ended(status)
            {
                return Some(end);
            }
        }
    }

    fn worker_ended(&mut self, status: WaitStatus) -> Option<End> {
        self.listen_to_worker();
        if self.handed.is_some() {
            return self.take_over();
        }
        self.converting = None;
        let how = describe(status);
        self.has_served |= self.serving.as_ref().is_none_or(Serving::get);
        if let (false, Some(record), Some(previous)) = (self.has_served, self.restored_from, self.previous) {
            if !is_own_fault(status) {
                tracing::warn!("the worker {how} before it served; starting it again");
                return self.start_worker(Origin::Upgraded).err().map(End::Failed);
            }
            let reason = format!("the new binary's worker {how} before it served");
            tracing::error!("{reason}; returning to the old binary");
            super::set_close_on_exec(self.record.image, false);
            let error = self.execute_previous(previous, record, &reason);
            return Some(End::Failed(format!("cannot return to the old binary: {error}")));
        }
        if !self.has_served && !self.is_restored {
            if is_own_fault(status) {
                return Some(End::Failed(format!("the worker {how} before it served")));
            }
            tracing::warn!("the worker {how} before it served; starting it again");
            let again = runtime::load_config(&self.record)
                .and_then(|config| self.start_worker(Origin::Clean(Box::new(config))));
            return again.err().map(End::Failed);
        }
        let went_on = if self.has_served {
            tracing::error!("the worker {how}; going on where it was");
            self.respawn(status)
        } else if self.tries < TRIES || !is_own_fault(status) {
            // The state that it was to begin with is as it was.
            tracing::error!("the worker {how} before it served; trying again");
            let reason = self.rolled_back.clone();
            self.start_worker(reason.map_or(Origin::Upgraded, |reason| Origin::RolledBack { reason }))
        } else {
            Err(format!("the worker {how} before it served"))
        };
        went_on
            .or_else(|why| self.start_afresh(&why))
            .err()
            .map(End::Failed)
    }

    /// There is no way to go on with the connections: they are closed, and the bus begins anew at the same addresses.
    fn start_afresh(&mut self, why: &str) -> Result<(), String> {
        if std::mem::replace(&mut self.is_afresh, true) {
            return Err(why.to_owned());
        }
        tracing::error!("{why}: EVERY CONNECTION IS LOST; the bus starts anew");
        self.give_up_preflight();
        self.take_back_verdicts(true);
        self.discard_remains();
        let config = runtime::load_config(&self.record)?;
        let control = self.record.control;
        let mut kept = vec![
            self.own_binary,
            self.signals,
            self.record.epoll,
            control.keeper,
            control.worker,
        ];
        kept.extend(crate::os::log::descriptor());
        kept.extend(self.record.listeners.iter().map(|listener| listener.fd));
        kept.sort_unstable();
        let mut from = 3;
        for fd in kept {
            super::close_range(from, fd - 1);
            from = fd + 1;
        }
        super::close_range(from, RawFd::MAX);
        (self.restored_from, self.previous) = (None, None);
        (self.deaths, self.record.image, self.has_served) = (Deaths::default(), -1, false);
        self.start_worker(Origin::Clean(Box::new(config)))
    }

    fn remove_files(&self) {
        let sockets = self
            .record
            .listeners
            .iter()
            .filter_map(|listener| listener.path.as_deref());
        for path in sockets.chain(self.record.pid_file.as_deref()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What the worker's exit code means, for whoever looks at its process: the keeper goes by what the worker has said.
pub(crate) mod worker_exit {
    /// It has handed its state over.
    pub(crate) const HANDED_OVER: i32 = 0;
    /// It could not begin to serve.
    pub(crate) const UNABLE: i32 = 11;
}

fn describe(status: WaitStatus) -> String {
    if let WaitStatus::Exited(_, code) = status {
        return format!("exited with code {code}");
    }
    if let WaitStatus::Signaled(_, signal, _) = status {
        return format!("was ended by {signal}");
    }
    format!("changed to {status:?}")
}

fn close(fd: RawFd) {
    let _ = nix::unistd::close(fd);
}

#[expect(unsafe_code, reason = "borrows a descriptor by number")]
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the keeper's own descriptors stay open while it polls them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
