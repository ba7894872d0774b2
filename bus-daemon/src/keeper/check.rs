//! The new binary's side of a trial: can it take over this state?

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::RawFd;

use bus_wire::Fd;

use super::error::CheckError;
use crate::config::options::Options;
use crate::handoff::image::{self, Restored};
use crate::handoff::keeper::KeeperV1;
use crate::os::memfd;

/// Reads the keeper's record from `fd` and the state that it names, loads the live configuration, restores, writes the
/// state again and compares. The line that tells the keeper that all went well, or what did not.
pub(crate) fn check(fd: RawFd, options: &Options) -> Result<String, CheckError> {
    let state = |error: &dyn Display| CheckError::State(error.to_string());
    let record = KeeperV1::load(fd).map_err(CheckError::Record)?;
    crate::config::load::load(options)?;
    let bytes = memfd::read(record.image).map_err(|error| state(&error))?;
    let restored = image::load(&bytes, crate::runtime::now()).map_err(|error| state(&error))?;
    if let Some(damage) = restored.damage.first() {
        return Err(state(damage));
    }
    if let Some(dropped) = restored.dropped.first() {
        let (index, reason) = (dropped.peer.index, &dropped.reason);
        return Err(CheckError::State(format!("peer {index} would be lost: {reason}")));
    }
    restored
        .broker
        .check_invariants()
        .map_err(|what| CheckError::Restored(what.to_string()))?;
    let again = written_again(&restored)?;
    let is_own = bytes
        .first_chunk()
        .and_then(image::version_of)
        .is_some_and(|version| version == image::VERSION);
    let is_same = if !is_own {
        // It is written in this build's version, so it is compared with what that gives when it is read.
        let restored = image::load(&again, crate::runtime::now()).map_err(|error| state(&error))?;
        written_again(&restored)? == again
    } else {
        again == *bytes
    };
    if !is_same {
        return Err(CheckError::Restored("written again, it is not the same".into()));
    }
    Ok(approval(&bytes))
}

fn written_again(restored: &Restored) -> Result<Vec<u8>, CheckError> {
    let numbers: BTreeMap<Fd, i32> = restored.manifest.iter().copied().collect();
    image::save(&restored.broker, &restored.worker, |handle| {
        numbers.get(&handle).copied()
    })
    .map_err(|error| CheckError::Restored(error.to_string()))
}

/// The line by which a new binary says that it read the state and wrote the same again.
pub(crate) fn approval(image: &[u8]) -> String {
    format!("org.busdaemon state check: ok {:08x}", crc32c::crc32c(image))
}
