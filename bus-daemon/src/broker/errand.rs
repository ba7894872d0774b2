//! Errands: what takes time in the system, and is asked for by number and answered by an event.

use std::sync::Arc;

use crate::config::Config;

/// Something that the broker wants done. A worker that replaces a dead one asks again for those that are open, under the
/// same numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Read the configuration again.
    LoadConfiguration,
    /// Try whether a binary can take over.
    TryBinary {
        /// Its path; empty = the path this one was started from.
        binary: String,
    },
}

/// How an errand ended.
#[derive(Debug, Clone)]
pub enum ErrandOutcome {
    /// Of [`Errand::LoadConfiguration`].
    Configuration(Result<Arc<Config>, ConfigRefusal>),
    /// Of [`Errand::TryBinary`]. `Err` says why the binary cannot take over.
    Trial(Result<(), String>),
}

/// Why a configuration is not taken. The one in force stays.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConfigRefusal {
    /// The D-Bus error that the callers of ReloadConfig get.
    pub error: String,
    /// What is wrong, with file and line.
    pub text: String,
}
