//! Log lines to standard error. Whoever does not read them loses lines; the bus does not wait for readers.

#![allow(
    unsafe_code,
    reason = "signal dispositions, and the environment of later process images"
)]

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError, TryLockError};

use nix::sys::signal::{SigHandler, Signal, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::sink::Sink;
use super::syslog::Syslog;

/// Where lines go. A worker inherits the keeper's sink, with its descriptor; what the one has left out the other does
/// not know.
static SINK: Mutex<Option<Sink>> = Mutex::new(None);

/// The way to the system's log, where lines go there, too.
static SYSLOG: Mutex<Option<Syslog>> = Mutex::new(None);

/// In the environment of process images that come after this one: lines go to the system's log.
const SYSLOG_VARIABLE: &str = "BUS_DAEMON_SYSLOG";

/// Where lines go besides standard error, or instead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SystemLog {
    /// Nowhere else.
    Never,
    /// To the system's log, too.
    Also,
    /// To the system's log and not to standard error.
    Only,
}

/// Has lines go to the system's log from now on, in the process images after this one as well.
///
/// Call it while the process has one thread.
pub(crate) fn use_system_log(system_log: SystemLog) {
    let value = match system_log {
        SystemLog::Never => "",
        SystemLog::Also => "also",
        SystemLog::Only => "only",
    };
    // SAFETY: the process has one thread.
    unsafe { std::env::set_var(SYSLOG_VARIABLE, value) };
    follow_system_log();
}

/// As the process image before this one was told.
fn follow_system_log() {
    let (is_used, is_only) = match std::env::var(SYSLOG_VARIABLE).as_deref() {
        Ok("also") => (true, false),
        Ok("only") => (true, true),
        Ok(_) | Err(_) => (false, false),
    };
    let opened = is_used.then(Syslog::new).transpose().unwrap_or(None);
    *SYSLOG.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    if is_only {
        *SINK.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Starts logging. `BUS_LOG` filters (tracing's directives); `warn` by default.
///
/// Call it in the main process, before there are others that share its descriptor table.
pub(crate) fn start() {
    // Neither a limit of file sizes nor `stty tostop` may end or stop the daemon for a log line: the write fails, or
    // is done.
    for ignored in [Signal::SIGXFSZ, Signal::SIGTTOU] {
        // SAFETY: ignoring a signal runs no code.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    follow();
    follow_system_log();
    let log = tracing_subscriber::fmt()
        .with_writer(Stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        // They would be printed to standard error in the ordinary way, which waits.
        .log_internal_errors(false);
    let _ = match EnvFilter::try_from_env("BUS_LOG") {
        Ok(filter) => log.with_env_filter(filter).try_init(),
        // There is no filter to parse, in the pause of an upgrade above all.
        Err(_) => log.with_max_level(tracing::Level::WARN).try_init(),
    };
}

/// Looks where standard error leads: at the start, and when it was made to lead elsewhere.
pub(crate) fn follow() {
    let is_only = std::env::var(SYSLOG_VARIABLE).is_ok_and(|value| value == "only");
    let sink = (!is_only).then(|| Sink::new(libc::STDERR_FILENO));
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = sink;
}

/// Descriptors besides standard error that log lines are written to: they must stay open under their numbers for as long
/// as the process image and its workers live. They are close-on-exec.
pub(crate) fn descriptors() -> Vec<RawFd> {
    let sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
    let system_log = SYSLOG.lock().unwrap_or_else(PoisonError::into_inner);
    let own = sink.as_ref().and_then(Sink::own_descriptor);
    own.into_iter()
        .chain(system_log.as_ref().map(Syslog::descriptor))
        .collect()
}

/// A text that does not come by way of tracing, a panic's for example. It may come in the middle of another line's
/// way, and is left out then.
pub(crate) fn say(text: &str) {
    let mut sink = match SINK.try_lock() {
        Ok(sink) => sink,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(sink) = sink.as_mut() {
        for line in text.lines() {
            sink.write(format!("{line}\n").as_bytes());
        }
    }
    if let Ok(mut system_log) = SYSLOG.try_lock()
        && let Some(system_log) = system_log.as_mut()
    {
        system_log.write(text.as_bytes());
    }
}

/// The way from tracing to the sink.
#[derive(Debug, Clone, Copy)]
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        *self
    }
}

impl Write for Stderr {
    /// Takes a whole line at a time, which is how tracing gives them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = sink.as_mut() {
            sink.write(line);
        }
        if let Ok(mut system_log) = SYSLOG.try_lock()
            && let Some(system_log) = system_log.as_mut()
        {
            system_log.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
