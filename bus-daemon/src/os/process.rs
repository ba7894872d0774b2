//! What a process does to itself.

#![allow(
    unsafe_code,
    reason = "signal dispositions, waiting for children, an exit without destructors"
)]

use std::io::Result;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// For a child: no signal blocked or ignored.
pub(crate) fn reset_signals() -> Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, signal, sigprocmask};
    for kind in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGXCPU,
        Signal::SIGCHLD,
    ] {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { signal(kind, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Whoever started this process may have ignored the end of children, and that lasts over an exec: the kernel would reap them
/// itself, and nobody be told.
pub(crate) fn hear_of_children() -> Result<()> {
    use nix::sys::signal::{SigHandler, signal};
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

/// Whether a signal that is blocked, and asks this process to stop, waits for it.
pub(crate) fn is_asked_to_stop() -> bool {
    // SAFETY: a set of signals is plain data.
    let mut pending: libc::sigset_t = unsafe { std::mem::zeroed() };
    let stops = [libc::SIGTERM, libc::SIGINT];
    // SAFETY: `pending` is a set, and these are signals.
    unsafe {
        libc::sigpending(&raw mut pending) == 0
            && stops
                .iter()
                .any(|signal| libc::sigismember(&raw const pending, *signal) == 1)
    }
}

/// For a child: it is killed when its parent ends. Called after a change of user, which undoes it.
pub(crate) fn die_with_parent() -> Result<()> {
    // SAFETY: plain system call.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Leaves at once, without destructors: they would close descriptors of a table that is shared.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// A child that has ended, and how; it is reaped. `child`: only this one. `None`: none has.
///
/// A signal that has no name (a real-time one) is told as SIGKILL: nobody but somebody outside sends either.
pub(crate) fn ended(child: Option<Pid>) -> Option<WaitStatus> {
    let mut status = 0;
    // SAFETY: room for a status.
    let pid = unsafe { libc::waitpid(child.map_or(-1, Pid::as_raw), &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let pid = Pid::from_raw(pid);
    Some(if libc::WIFSIGNALED(status) {
        let signal = Signal::try_from(libc::WTERMSIG(status)).unwrap_or(Signal::SIGKILL);
        WaitStatus::Signaled(pid, signal, libc::WCOREDUMP(status))
    } else {
        WaitStatus::Exited(pid, libc::WEXITSTATUS(status))
    })
}

/// Whether a child has ended; it is reaped then. One that was reaped before has.
pub(crate) fn is_over(child: Pid) -> bool {
    ended(Some(child)).is_some() || nix::sys::signal::kill(child, None).is_err()
}
