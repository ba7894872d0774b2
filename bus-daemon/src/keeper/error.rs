//! Why the keeper cannot go on, or cannot begin: whose fault it is.

use std::io::Error;
use std::path::PathBuf;

use nix::errno::Errno;

use super::limits::LimitError;
use super::listen::ListenError;
use crate::config::error::ConfigError;

/// What stops the daemon, or one way of going on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeeperError {
    /// The administrator: the configuration is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The administrator, or whoever started the daemon: a resource limit is too small.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The administrator, or another daemon.
    #[error("the pid file {path} exists: another daemon may be running; remove it if not")]
    PidFileExists {
        /// Its path.
        path: String,
    },
    /// An address, or the system.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The administrator: there is no such user.
    #[error("the configuration's <user> {0} does not exist")]
    NoUser(String),
    /// The system says no.
    #[error("{what}: {error}")]
    System {
        /// What was to be done.
        what: String,
        /// What it says.
        error: Error,
    },
    /// The binary before this one, or one of the future: its record cannot be read.
    #[error("the keeper's record: {0}")]
    Record(String),
    /// This binary: its worker cannot begin.
    #[error("the worker {how} before it served")]
    NeverServed {
        /// How it ended.
        how: String,
    },
    /// This binary: its worker gets nowhere.
    #[error("the worker dies again and again without any progress")]
    Futile,
    /// This binary: there is nothing to go on from.
    #[error("{0}")]
    NoState(String),
    /// The new binary, which was given up, and then the way back.
    #[error("cannot return to the old binary: {0}")]
    NoWayBack(Errno),
    /// In the background the daemon did not come to serve; its own log says why.
    #[error("the daemon did not become ready in the background")]
    NotReady,
}

impl KeeperError {
    /// The system says no to `what`.
    pub(crate) fn system(what: impl Into<String>, error: impl Into<Error>) -> Self {
        Self::System {
            what: what.into(),
            error: error.into(),
        }
    }
}

/// What a new binary finds wrong with the state that it is to take over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The record of the keeper that asks.
    #[error("the keeper's record: {0}")]
    Record(String),
    /// The configuration as it is on the disk now.
    #[error("the configuration: {0}")]
    Configuration(#[from] ConfigError),
    /// The state cannot be read, or not all of it.
    #[error("the state: {0}")]
    State(String),
    /// This binary restores something else.
    #[error("the restored state: {0}")]
    Restored(String),
}

/// A file that the daemon was to write.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the pid file {}: {error}", path.display())]
pub(crate) struct PidFileError {
    /// Its path.
    pub(crate) path: PathBuf,
    /// What the system says.
    pub(crate) error: Error,
}
