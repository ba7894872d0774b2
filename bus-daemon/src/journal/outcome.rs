//! How errands ended, read back out of the memfds that hold it, or out of the log where that is not much.

use std::io::{Error, Result};
use std::sync::Arc;

use bus_wire::Fd;
use bytes::Bytes;

use super::Journal;
use crate::broker::{Blob, ConfigRefusal, ConfigV1, ConfigV2, ErrandOutcome, LIMITS_EXCEEDED};
use crate::config::Config;
use crate::control::{Outcome, Refusal};
use crate::handoff::codec;
use crate::os::memfd;

impl Journal {
    /// The outcome in the memfd of this handle.
    pub(super) fn read_outcome(&self, payload: Option<Fd>) -> ErrandOutcome {
        let number = payload.and_then(|handle| self.verified_number(handle));
        match memfd::read(number.unwrap_or(-1)) {
            Ok(bytes) => outcome_in(Ok(&bytes)),
            Err(error) => outcome_in(Err(error)),
        }
    }
}

/// Bytes of an outcome that are noted with the event.
const SMALL: usize = 64 * 1024;

/// What of an outcome is noted with the event: all or nothing.
pub(crate) fn small_outcome(bytes: &[u8]) -> Option<Blob> {
    (bytes.len() <= SMALL).then(|| Blob(Bytes::copy_from_slice(bytes)))
}

/// The outcome, encoded, of an errand whose payload cannot be kept: whatever it brought, the errand has failed.
pub(crate) fn failed_outcome(text: &str) -> Result<Vec<u8>> {
    let refusal = Refusal {
        error: LIMITS_EXCEEDED.into(),
        text: text.into(),
    };
    codec::encode(&Outcome::Configuration(Err(refusal))).map_err(Error::other)
}

/// What stands in the payload of an errand that has ended. A payload that cannot be read is an outcome, too.
pub(crate) fn outcome_in(payload: Result<&[u8]>) -> ErrandOutcome {
    let outcome = payload.and_then(|bytes| codec::decode(bytes).map_err(Error::other));
    let refusal = |text: String| ConfigRefusal {
        error: "org.freedesktop.DBus.Error.Failed".into(),
        text,
    };
    match outcome {
        Ok(Outcome::Trial(verdict)) => ErrandOutcome::Trial(verdict),
        Ok(Outcome::Keyring(keys)) => ErrandOutcome::Keyring(keys),
        Ok(Outcome::Configuration(Ok(bytes))) => {
            let config = decode_config(&bytes).map(Arc::new);
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

/// A configuration as it stands in the payload of an errand. One that a build before this one has read may still be underway.
pub(crate) fn decode_config(bytes: &[u8]) -> std::result::Result<Config, codec::CodecError> {
    let config = codec::decode::<ConfigV2>(bytes).map(Config::from);
    config.or_else(|error| {
        let older = codec::decode::<ConfigV1>(bytes).map(Config::from);
        older.map_err(|_| error)
    })
}
