//! The resource limits that the daemon was started under: those of somebody's shell, perhaps.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Makes the best of the limits.
///
/// # Errors
/// A limit that cannot be raised does not leave what the daemon needs.
pub(crate) fn raise() -> Result<(), LimitError> {
    ignore_signals();
    raise_open_files();
    let _ = raise_to_most(Resource::RLIMIT_CPU);
    let size = raise_to_most(Resource::RLIMIT_FSIZE);
    let needed = crate::journal::LARGEST_FILE;
    if size < needed {
        return Err(LimitError::FileSize { size, needed });
    }
    Ok(())
}

/// A limit is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitError {
    /// Files in memory count for it.
    #[error(
        "the limit of the size of files (RLIMIT_FSIZE, ulimit -f) is {size} bytes, and cannot be raised; the files in \
         memory that hold the bus's state need {needed}"
    )]
    FileSize {
        /// In bytes.
        size: rlim_t,
        /// In bytes.
        needed: rlim_t,
    },
}

/// Signals that tell of a limit: a call that fails, or a limit that is to come, ends nobody's bus.
#[expect(unsafe_code, reason = "signal dispositions")]
pub(crate) fn ignore_signals() {
    for kind in [Signal::SIGXFSZ, Signal::SIGXCPU] {
        // SAFETY: ignoring a signal runs no code.
        let _ = unsafe { signal(kind, SigHandler::SigIgn) };
    }
}

/// As far as it goes: without end for the privileged, to the hard limit for others. What it is then.
fn raise_to_most(resource: Resource) -> rlim_t {
    let Ok((soft, hard)) = getrlimit(resource) else {
        return rlim_t::MAX;
    };
    for wanted in [rlim_t::MAX, hard] {
        if soft == wanted || setrlimit(resource, wanted, wanted).is_ok() {
            return wanted;
        }
    }
    soft
}

fn raise_open_files() {
    const WANTED: rlim_t = 65_536;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let raised = if nix::unistd::geteuid().is_root() && hard < WANTED {
        setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED)
    } else {
        Err(nix::errno::Errno::EPERM)
    };
    if raised.is_err() && soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        tracing::warn!("cannot raise the limit of open files from {soft}");
    }
}
