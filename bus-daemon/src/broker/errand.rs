//! Errands: what takes time in the system, and is asked for by number and answered by an event.

use std::sync::Arc;

use bus_wire::Fd;
use bus_wire::sasl::cookie::Cookie;

use super::speak::FAILED;
use super::{Broker, System};
use crate::config::Config;

/// Something that the broker wants done. A worker that replaces a dead one asks again for those that are open, under the
/// same numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Read the configuration again.
    LoadConfiguration,
    /// Find a cookie in the keyring of the bus's user, or make one.
    ReadKeyring,
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
    /// Of [`Errand::ReadKeyring`]. `Err` says why there is no cookie.
    Keyring(Result<Keys, String>),
    /// Of [`Errand::TryBinary`]. `Err` says why the binary cannot take over.
    Trial(Result<(), String>),
}

/// What was found in the keyring.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Keys {
    /// Whose it is: the name of the bus's user, empty where that has none.
    pub user: String,
    /// A cookie that clients find there.
    pub cookie: Cookie,
    /// What challenges are made of: nobody can guess it.
    pub seed: [u8; 16],
}

/// Without the secrets.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("user", &self.user)
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

/// Why a configuration is not taken. The one in force stays.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConfigRefusal {
    /// The D-Bus error that the callers of ReloadConfig get.
    pub error: String,
    /// What is wrong, with file and line.
    pub text: String,
}

impl Broker {
    /// An errand has ended. Its number says what it was: an outcome that cannot be read may claim to be of another kind,
    /// and then the errand has failed.
    pub(super) fn errand_ended(
        &mut self,
        errand: u64,
        outcome: ErrandOutcome,
        payload: Option<Fd>,
        system: &mut dyn System,
    ) {
        if self.is_keyring(errand) {
            self.close_fds(payload);
            let keys = match outcome {
                ErrandOutcome::Keyring(keys) => keys,
                ErrandOutcome::Configuration(Err(refusal)) => Err(refusal.text),
                ErrandOutcome::Configuration(Ok(_)) | ErrandOutcome::Trial(_) => Err(MIXED_UP.to_owned()),
            };
            return self.keyring_read(keys, system);
        }
        if self.is_trial(errand) {
            self.close_fds(payload);
            let verdict = match outcome {
                ErrandOutcome::Trial(verdict) => verdict,
                ErrandOutcome::Configuration(Err(refusal)) => Err(refusal.text),
                ErrandOutcome::Configuration(Ok(_)) | ErrandOutcome::Keyring(_) => Err(MIXED_UP.to_owned()),
            };
            return self.binary_tried(errand, verdict);
        }
        let result = match outcome {
            ErrandOutcome::Configuration(result) => result,
            ErrandOutcome::Trial(_) | ErrandOutcome::Keyring(_) => Err(ConfigRefusal {
                error: FAILED.to_owned(),
                text: MIXED_UP.to_owned(),
            }),
        };
        self.configuration_read(errand, result, payload, system);
    }
}

const MIXED_UP: &str = "the outcome is that of another errand";
