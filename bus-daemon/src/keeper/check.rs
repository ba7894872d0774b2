//! The new binary's side of a preflight: can it take over this state?

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use bus_wire::Fd;

use crate::config::options::Options;
use crate::handoff::image::{self, Restored};
use crate::handoff::keeper::KeeperV1;
use crate::os::memfd;

/// Reads the keeper's record from `fd` and the state that it names, loads the live configuration, restores, writes the
/// state again and compares. The line that tells the keeper that all went well, or what did not.
pub(crate) fn check(fd: RawFd, options: &Options) -> Result<String, String> {
    let record = KeeperV1::load(fd).map_err(|reason| format!("the keeper's record: {reason}"))?;
    crate::config::load::load(options).map_err(|error| format!("the configuration: {error}"))?;
    let bytes = memfd::read(record.image).map_err(|error| format!("the state: {error}"))?;
    let restored =
        image::load(&bytes, crate::runtime::now()).map_err(|error| format!("the state: {error}"))?;
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
    let again = written_again(&restored)?;
    let is_same = if restored.version == 1 {
        // It is written in this build's version, so it is compared with what that gives when it is read.
        let restored =
            image::load(&again, crate::runtime::now()).map_err(|error| format!("the state: {error}"))?;
        written_again(&restored)? == again
    } else {
        again == *bytes
    };
    if !is_same {
        return Err("the restored state, written again, is not the same".into());
    }
    Ok(approval(&bytes))
}

fn written_again(restored: &Restored) -> Result<Vec<u8>, String> {
    let numbers: BTreeMap<Fd, i32> = restored.manifest.iter().copied().collect();
    image::save(&restored.broker, &restored.worker, |handle| {
        numbers.get(&handle).copied()
    })
    .map_err(|error| error.to_string())
}

/// The line by which a new binary says that it read the state and wrote the same again.
pub(crate) fn approval(image: &[u8]) -> String {
    format!("org.busdaemon state check: ok {:08x}", crc32c::crc32c(image))
}
