//! The new binary's side of a trial: can it take over this state?

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::RawFd;

use bus_wire::Fd;

use super::error::CheckError;
use crate::config::options::Options;
use crate::handoff::container;
use crate::handoff::form::{Form, VERSION};
use crate::handoff::image::{self, Restored, SaveError};
use crate::handoff::keeper::KeeperV1;
use crate::handoff::stored::{BacklogV1, LAYOUT, StandIn};
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
    if let Some(stored) = &restored.worker.stored
        && stored.layout != LAYOUT
    {
        let bytes: u64 = stored.backlogs.iter().map(BacklogV1::len).sum();
        super::start::print(&format!(
            "{NOTE}the store has layout {}; {bytes} bytes of waiting output are to be rewritten",
            stored.layout
        ));
    }
    // In the version of the binary that asks. What is in a store stays there, so that costs no more the more waits.
    let version = image::version_of(&bytes).unwrap_or(VERSION);
    let difference = match Form::new(version, Some(LAYOUT)) {
        Some(form) => container::difference(&bytes, &written_again(&restored, form)?),
        None => {
            // Nobody writes that version any more, so what this build makes of it is compared with itself.
            let again = written_again(&restored, Form::OWN)?;
            let restored = image::load(&again, crate::runtime::now()).map_err(|error| state(&error))?;
            container::difference(&again, &written_again(&restored, Form::OWN)?)
        }
    };
    if let Some(kind) = difference {
        return Err(CheckError::Restored(format!(
            "written again, its record of type {kind} is not the same"
        )));
    }
    Ok(approval(&bytes))
}

fn written_again(restored: &Restored, form: Form) -> Result<Vec<u8>, CheckError> {
    rewritten(restored, form).map_err(|error| CheckError::Restored(error.to_string()))
}

/// A state that was read, written in this form. Zeros stand in for output that moves out of the store: what they are means
/// nothing for a trial.
fn rewritten(restored: &Restored, form: Form) -> Result<Vec<u8>, SaveError> {
    let numbers: BTreeMap<Fd, i32> = restored.manifest.iter().copied().collect();
    let number = |handle: Fd| numbers.get(&handle).copied();
    image::save_as(form, &restored.broker, &restored.worker, number, &mut StandIn)
}

/// The image of a trial in another form, for a binary that does not read this build's own; or why there is none.
pub(crate) fn in_form(image: &[u8], form: Form) -> Result<Vec<u8>, String> {
    let restored = image::load(image, crate::runtime::now()).map_err(|error| error.to_string())?;
    rewritten(&restored, form).map_err(|error| error.to_string())
}

/// Begins a line that the log of the bus is to have, if the upgrade takes place.
pub(crate) const NOTE: &str = "org.busdaemon state check: note: ";

/// The line by which a new binary says that it read the state and wrote the same again.
pub(crate) fn approval(image: &[u8]) -> String {
    format!("org.busdaemon state check: ok {:08x}", crc32c::crc32c(image))
}
