//! The new binary's side of a preflight: can it take over this state?

use std::os::fd::RawFd;

use crate::config::options::Options;
use crate::handoff::image;
use crate::handoff::keeper::KeeperV1;
use crate::os::memfd;

/// Reads the keeper's record from `fd` and the state that it names, loads the live configuration, restores, writes the
/// state again and compares. The line that tells the keeper that all went well, or what did not.
pub(crate) fn check(fd: RawFd, options: &Options) -> Result<String, String> {
    let record = KeeperV1::load(fd).map_err(|reason| format!("the keeper's record: {reason}"))?;
    crate::config::load::load(options).map_err(|error| format!("the configuration: {error}"))?;
    let bytes = memfd::read(record.image).map_err(|error| format!("the state: {error}"))?;
    let restored = image::load(&bytes).map_err(|error| format!("the state: {error}"))?;
    if let Some(damage) = restored.damage.first() {
        return Err(format!("the state: {damage}"));
    }
    if let Some(dropped) = restored.dropped.first() {
        return Err(format!(
            "the state: peer {} would be lost: {}",
            dropped.peer.index, dropped.reason
        ));
    }
    restored
        .broker
        .check_invariants()
        .map_err(|what| format!("the restored state: {what}"))?;
    let again = image::save(&restored.broker, &restored.worker).map_err(|error| error.to_string())?;
    if again != *bytes {
        return Err("the restored state, written again, is not the same".into());
    }
    Ok(approval(&bytes))
}

/// The line by which a new binary says that it read the state and wrote the same again.
pub(crate) fn approval(image: &[u8]) -> String {
    format!("org.busdaemon state check: ok {:08x}", crc32c::crc32c(image))
}
