//! How errands ended, read back out of the memfds that hold it: state and log only have handles of those.

use std::io::Error;
use std::os::fd::RawFd;
use std::sync::Arc;

use bus_wire::Fd;

use super::Journal;
use crate::broker::{ConfigRefusal, ConfigV1, ErrandOutcome};
use crate::config::Config;
use crate::control::{Outcome, Refusal};
use crate::handoff::codec;
use crate::os::memfd;

impl Journal {
    /// The outcome in the memfd of this handle.
    pub(super) fn read_outcome(&self, payload: Fd) -> ErrandOutcome {
        read_outcome(self.verified_number(payload).unwrap_or(-1))
    }
}

/// What stands in the payload of an errand that has ended. A payload that cannot be read is an outcome, too.
pub(crate) fn read_outcome(payload: RawFd) -> ErrandOutcome {
    let outcome = memfd::read(payload).and_then(|bytes| codec::decode(&bytes).map_err(Error::other));
    let refusal = |text: String| ConfigRefusal {
        error: "org.freedesktop.DBus.Error.Failed".into(),
        text,
    };
    match outcome {
        Ok(Outcome::Trial(verdict)) => ErrandOutcome::Trial(verdict),
        Ok(Outcome::Configuration(Ok(bytes))) => {
            let config = codec::decode::<ConfigV1>(&bytes).map(|config| Arc::new(Config::from(config)));
            ErrandOutcome::Configuration(config.map_err(|error| refusal(error.to_string())))
        }
        Ok(Outcome::Configuration(Err(Refusal { error, text }))) => {
            ErrandOutcome::Configuration(Err(ConfigRefusal { error, text }))
        }
        Err(error) => {
            ErrandOutcome::Configuration(Err(refusal(format!("the outcome cannot be read: {error}"))))
        }
    }
}
