//! The keeper: the daemon's main process, which never changes its pid.
//!
//! It binds and listens, owns the shared memory, starts the [worker] and replaces its own process image in an upgrade.
//! It is single-threaded and parses nothing that a client sent.
//!
//! Architecture invariant: descriptors that are to survive an upgrade are never close-on-exec (clearing the flag of
//! thousands would take longer than the exec itself); whatever is spawned sets it on all that it does not need
//! ([`close_on_exec_from`]).

mod control;
mod deaths;
mod exec;
mod listen;
mod preflight;
mod record;
mod start;
mod supervise;
pub(crate) mod worker;

use std::ffi::OsString;
use std::io::{Error, Result};
use std::os::fd::{IntoRawFd, RawFd};
use std::process::ExitCode;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::config::options::{self, Command};

pub(crate) use control::{ToKeeper, ToWorker};
pub(crate) use preflight::approval;
pub(crate) use record::{KeeperV1, Listener};
pub(crate) use supervise::worker_exit;

/// The whole daemon: reads the command line (without the program's name), serves until it is told to stop.
///
/// Call it before the process has a second thread.
pub fn main_from(arguments: Vec<OsString>) -> ExitCode {
    // First of all: where this binary is, before its path or the right to ask changes.
    let own_binary = match open("/proc/self/exe", OFlag::O_PATH, Mode::empty()) {
        Ok(fd) => fd.into_raw_fd(),
        Err(errno) => return fail(&format!("cannot open the daemon's own binary: {errno}")),
    };
    // Both binaries of the project are replaced by either: only one of them needs the subcommand.
    let mut arguments = arguments;
    if arguments.first().is_some_and(|first| first == "daemon") {
        arguments.remove(0);
    }
    let texts: Option<Vec<String>> = arguments
        .iter()
        .map(|argument| argument.to_str().map(str::to_owned))
        .collect();
    let Some(texts) = texts else {
        return fail("an argument is not UTF-8");
    };
    let options = match options::parse(texts) {
        Ok(Command::Run(options)) => *options,
        Ok(Command::Help) => return start::print(&format!("bus-daemon {}", options::USAGE)),
        Ok(Command::Version) => {
            return start::print(&format!(
                "Message bus daemon (bus-daemon) {}",
                env!("CARGO_PKG_VERSION")
            ));
        }
        Ok(Command::Introspect) => return start::print(&crate::driver::introspection()),
        Err(error) => return fail(&error.to_string()),
    };
    crate::os::log::start();
    let outcome = if let Some(fd) = options.check_upgrade_fd {
        crate::handoff::preflight::check(fd, &options).map(|approval| start::print(&approval))
    } else if let Some(fd) = options.restore_fd {
        start::restored(fd, own_binary, options.rolled_back.clone())
    } else {
        start::clean(&arguments, &options, own_binary)
    };
    match outcome {
        Ok(code) => code,
        Err(reason) => fail(&reason),
    }
}

fn fail(reason: &str) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "bus-daemon: {reason}");
    ExitCode::FAILURE
}

/// Marks every descriptor from `first` on close-on-exec.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
pub(crate) fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: changes flags only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// Closes every descriptor from `first` to `last`, if there are any.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
pub(crate) fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: the caller owns that range.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Sets or clears the flag of one descriptor; one that is not open is left alone.
#[expect(unsafe_code, reason = "a descriptor by number")]
pub(crate) fn set_close_on_exec(fd: RawFd, close: bool) {
    // SAFETY: changes a flag only.
    unsafe { libc::fcntl(fd, libc::F_SETFD, if close { libc::FD_CLOEXEC } else { 0 }) };
}

/// For a child: no signal blocked or ignored.
#[expect(unsafe_code, reason = "signal dispositions")]
pub(crate) fn reset_signals() -> Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    for kind in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGTTOU,
    ] {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { signal(kind, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Random bytes of the kernel.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
pub(crate) fn random_bytes(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is writable for its length.
        let len = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(len) {
            Ok(len) => filled += len,
            Err(_) if Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            // Only a kernel without the call (before 3.17) gets here; it lacks much else that is needed.
            Err(_) => std::process::abort(),
        }
    }
}

/// A record for tests: one listener at this path.
#[cfg(test)]
pub(crate) fn test_record(socket: &std::path::Path, epoll: RawFd) -> KeeperV1 {
    let address = format!("unix:path={}", socket.display());
    let Ok(listeners) = listen::listen_on_all(&[address]) else {
        panic!("cannot listen")
    };
    let Ok(control) = control::Control::create() else {
        panic!("no control sockets")
    };
    let (guid, machine) = (listen::fresh_guid().to_string(), listen::fresh_guid().to_string());
    KeeperV1::new(
        &[],
        std::path::Path::new("/proc/self/exe"),
        listeners,
        guid,
        machine,
        epoll,
        control,
        None,
    )
}
