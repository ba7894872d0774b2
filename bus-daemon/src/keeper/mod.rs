//! The keeper: the daemon's main process, which never changes its pid.
//!
//! It binds and listens, owns the shared memory, starts the worker and replaces its own process image in an upgrade.
//! It is single-threaded and parses nothing that a client sent.
//!
//! Architecture invariant: descriptors that are to survive an upgrade are never close-on-exec (clearing the flag of
//! thousands would take longer than the exec itself); whatever is spawned sets it on all that it does not need
//! ([`close_on_exec_from`](crate::os::descriptor::close_on_exec_from)).

mod announcement;
mod binary;
mod check;
mod configuration;
mod deaths;
mod errands;
mod error;
mod exec;
mod helper;
mod keyring;
mod life;
mod limits;
mod listen;
mod memory_group;
mod start;
mod supervise;
mod trial;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::config::options::{self, Command};
use crate::handoff::form::Reads;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use deaths::{Cause, Deaths};

/// The whole daemon: reads the command line (without the program's name), serves until it is told to stop.
///
/// Call it before the process has a second thread.
pub fn main_from(arguments: Vec<OsString>) -> ExitCode {
    // First of all: where this binary is, before its path or the right to ask changes.
    let own_binary = match start::OwnBinary::find() {
        Ok(own_binary) => own_binary,
        Err(error) => return fail(&error.to_string()),
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
        Ok(Command::Introspect) => return start::print(&crate::broker::introspection()),
        Err(error) => return fail(&error.to_string()),
    };
    crate::os::log::start();
    let outcome = if let Some(fd) = options.check_upgrade_fd {
        // First of all, so that it is known whatever becomes of the rest.
        start::print(&Reads::own().to_string());
        let checked = check::check(fd, &options);
        return match checked {
            Ok(approval) => start::print(&approval),
            Err(error) => fail(&error.to_string()),
        };
    } else if let Some(fd) = options.restore_fd {
        start::restored(fd, own_binary, options.rolled_back.clone())
    } else {
        start::clean(&arguments, &options, own_binary)
    };
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(reason: &str) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "bus-daemon: {reason}");
    ExitCode::FAILURE
}
